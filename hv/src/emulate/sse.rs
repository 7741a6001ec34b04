//! SSE instructions that move, or combine bit by bit: what compilers emit for copies of structures and for accesses of 8 and 16 bytes.
//!
//! A device sees 16 bytes as two accesses of 8, the lower one first: no CPU promises more than a quadword at once (APM vol. 2, 7.3.2). MMX registers
//! and arithmetic are not here, nor VEX forms: the guest is shown no AVX.

use super::{Failure, Step};
use crate::cpu::fpu::{CR0_EM, CR0_TS, CR4_OSFXSR};
use crate::cpu::{DEVICE_NOT_AVAILABLE, GENERAL_PROTECTION, INVALID_OPCODE, System};
use crate::mem::walk::Intent;
use iced_x86::{Mnemonic, OpKind};

/// What an instruction does with its XMM register and its memory operand, whose size iced knows.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// Moves the register's low bytes; a load clears the others.
    Move,
    /// Moves all 16, to or from an address that must be a multiple of 16.
    Aligned,
    /// Moves the element of this number and leaves the others.
    Element(u8),
    /// Moves the element that the immediate says.
    Chosen,
    /// Loads 8 bytes into both halves.
    Twice,
    /// Combines the register with memory.
    Logic(fn(u128, u128) -> u128),
}

impl Form {
    /// The form of an instruction (APM vol. 4, under its name). String MOVSD is not asked for here.
    pub(super) fn of(mnemonic: Mnemonic) -> Option<Self> {
        use Mnemonic as M;
        Some(match mnemonic {
            M::Movups | M::Movupd | M::Movdqu | M::Lddqu => Self::Move,
            M::Movss | M::Movsd | M::Movd | M::Movq | M::Movntss | M::Movntsd => Self::Move,
            M::Movaps | M::Movapd | M::Movdqa => Self::Aligned,
            M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => Self::Aligned,
            M::Movlps | M::Movlpd => Self::Element(0),
            M::Movhps | M::Movhpd => Self::Element(1),
            M::Pinsrb | M::Pinsrw | M::Pinsrd | M::Pinsrq => Self::Chosen,
            M::Pextrb | M::Pextrw | M::Pextrd | M::Pextrq | M::Extractps => Self::Chosen,
            M::Movddup => Self::Twice,
            M::Pand | M::Andps | M::Andpd => Self::Logic(|a, b| a & b),
            M::Pandn | M::Andnps | M::Andnpd => Self::Logic(|a, b| !a & b),
            M::Por | M::Orps | M::Orpd => Self::Logic(|a, b| a | b),
            M::Pxor | M::Xorps | M::Xorpd => Self::Logic(|a, b| a ^ b),
            _ => return None,
        })
    }
}

impl Step<'_> {
    pub(super) fn sse(&mut self, form: Form) -> Result<(), Failure> {
        let stores = self.instruction.op0_kind() == OpKind::Memory;
        let (memory, register, intent) = match stores {
            true => (0, 1, Intent::Write),
            false => (1, 0, Intent::Read),
        };
        let register = self.instruction.op_register(register);
        let width = match self.instruction.memory_size().size() {
            width @ (1 | 2 | 4 | 8 | 16) => width as u8,
            _ => return Err(Failure::Unknown),
        };
        if self.instruction.op_kind(memory) != OpKind::Memory || !register.is_xmm() {
            return Err(Failure::Unknown);
        }
        self.sse_is_on()?;
        let place = self.place(memory, width, 0, intent)?;
        // The other forms' operands of 16 bytes are aligned or MXCSR.MM is set: the CPU has looked.
        if matches!(form, Form::Aligned) && !place.is_aligned() {
            return Err(Failure::Fault(GENERAL_PROTECTION));
        }
        let bits = 8 * u32::from(width);
        let shift = bits
            * match form {
                Form::Element(number) => u32::from(number),
                Form::Chosen => u32::from(self.instruction.immediate8()) % (128 / bits),
                _ => 0,
            };
        let index = register.number();
        let old = self.bus.xmm(index);
        if stores {
            self.write_wide(place, old >> shift);
            return Ok(());
        }
        let value = self.read_wide(place);
        let new = match form {
            Form::Move | Form::Aligned => value,
            Form::Element(_) | Form::Chosen => {
                let element = u128::MAX >> (128 - bits) << shift;
                old & !element | value << shift
            }
            Form::Twice => value << 64 | value,
            Form::Logic(combine) => combine(old, value),
        };
        self.bus.set_xmm(index, new);
        Ok(())
    }

    /// The CPU has checked that already, but of the bytes that it fetched; another vCPU may have changed them, and the registers may be another
    /// task's (APM vol. 2, table 8-1: #UD and #NM).
    fn sse_is_on(&self) -> Result<(), Failure> {
        let System { cr0, cr4, .. } = *self.system;
        if cr0 & CR0_EM != 0 || cr4 & CR4_OSFXSR == 0 {
            return Err(Failure::Fault(INVALID_OPCODE));
        }
        if cr0 & CR0_TS != 0 {
            return Err(Failure::Fault(DEVICE_NOT_AVAILABLE));
        }
        Ok(())
    }
}
