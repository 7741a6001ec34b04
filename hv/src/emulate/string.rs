//! String instructions, with their repetitions: between memory, devices, the accumulator and ports.

use super::operand::{Operand, accumulator};
use super::{Failure, Step};
use crate::cpu::alu::{self, ARITHMETIC, ZF};
use crate::cpu::{Gpr, RFLAGS_DF, RFLAGS_TF};
use crate::mem::walk::Intent;
use iced_x86::{Code, Instruction, OpKind};

/// How many elements of a repeated string instruction are done before the guest is entered again, so that interrupts are not held up.
pub(super) const REPEAT_LIMIT: u32 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StringKind {
    Store,
    Load,
    Move,
    Compare,
    Scan,
    In,
    Out,
}

impl StringKind {
    pub(super) fn reads_si(self) -> bool {
        matches!(self, Self::Load | Self::Move | Self::Compare | Self::Out)
    }

    pub(super) fn uses_di(self) -> bool {
        !matches!(self, Self::Load | Self::Out)
    }
}

#[derive(Clone, Copy)]
pub(super) struct StringOperation {
    kind: StringKind,
    width: u8,
}

impl StringOperation {
    /// By code, since MOVSD and CMPSD are SSE mnemonics too.
    pub(super) fn of(code: Code) -> Option<Self> {
        let (kind, width) = match code {
            Code::Stosb_m8_AL => (StringKind::Store, 1),
            Code::Stosw_m16_AX => (StringKind::Store, 2),
            Code::Stosd_m32_EAX => (StringKind::Store, 4),
            Code::Stosq_m64_RAX => (StringKind::Store, 8),
            Code::Lodsb_AL_m8 => (StringKind::Load, 1),
            Code::Lodsw_AX_m16 => (StringKind::Load, 2),
            Code::Lodsd_EAX_m32 => (StringKind::Load, 4),
            Code::Lodsq_RAX_m64 => (StringKind::Load, 8),
            Code::Movsb_m8_m8 => (StringKind::Move, 1),
            Code::Movsw_m16_m16 => (StringKind::Move, 2),
            Code::Movsd_m32_m32 => (StringKind::Move, 4),
            Code::Movsq_m64_m64 => (StringKind::Move, 8),
            Code::Cmpsb_m8_m8 => (StringKind::Compare, 1),
            Code::Cmpsw_m16_m16 => (StringKind::Compare, 2),
            Code::Cmpsd_m32_m32 => (StringKind::Compare, 4),
            Code::Cmpsq_m64_m64 => (StringKind::Compare, 8),
            Code::Scasb_AL_m8 => (StringKind::Scan, 1),
            Code::Scasw_AX_m16 => (StringKind::Scan, 2),
            Code::Scasd_EAX_m32 => (StringKind::Scan, 4),
            Code::Scasq_RAX_m64 => (StringKind::Scan, 8),
            Code::Insb_m8_DX => (StringKind::In, 1),
            Code::Insw_m16_DX => (StringKind::In, 2),
            Code::Insd_m32_DX => (StringKind::In, 4),
            Code::Outsb_DX_m8 => (StringKind::Out, 1),
            Code::Outsw_DX_m16 => (StringKind::Out, 2),
            Code::Outsd_DX_m32 => (StringKind::Out, 4),
            _ => return None,
        };
        Some(Self { kind, width })
    }

    /// Width of RSI, RDI and RCX as the instruction uses them.
    pub(super) fn address_width(self, instruction: &Instruction) -> u8 {
        let kinds = [instruction.op0_kind(), instruction.op1_kind()];
        if kinds
            .iter()
            .any(|kind| matches!(kind, OpKind::MemorySegRSI | OpKind::MemoryESRDI))
        {
            8
        } else if kinds
            .iter()
            .any(|kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI))
        {
            4
        } else {
            2
        }
    }
}

impl Step<'_> {
    /// One string instruction with its repetitions. True when it is through.
    pub(super) fn string(&mut self, string: StringOperation) -> Result<bool, Failure> {
        let repeated = self.instruction.has_rep_prefix() || self.instruction.has_repne_prefix();
        let address_mask = alu::mask(string.address_width(&self.instruction));
        let compares = matches!(string.kind, StringKind::Compare | StringKind::Scan);
        // Single step traps after each element.
        let limit = if self.registers.rflags & RFLAGS_TF != 0 {
            1
        } else {
            REPEAT_LIMIT
        };
        for _ in 0..limit {
            if repeated && self.registers.get(Gpr::Rcx) & address_mask == 0 {
                return Ok(true);
            }
            self.string_element(string)?;
            let backwards = self.registers.rflags & RFLAGS_DF != 0;
            let step = if backwards {
                0_u64.wrapping_sub(string.width.into())
            } else {
                string.width.into()
            };
            for (used, register) in [
                (string.kind.reads_si(), Gpr::Rsi),
                (string.kind.uses_di(), Gpr::Rdi),
            ] {
                if used {
                    self.add_to(register, step, address_mask);
                }
            }
            if !repeated {
                return Ok(true);
            }
            self.add_to(Gpr::Rcx, u64::MAX, address_mask);
            let equal = self.registers.rflags & ZF != 0;
            if compares && equal == self.instruction.has_repne_prefix() {
                return Ok(true);
            }
        }
        Ok(self.registers.get(Gpr::Rcx) & address_mask == 0)
    }

    pub(super) fn string_element(&mut self, string: StringOperation) -> Result<(), Failure> {
        let width = string.width;
        let accumulator = Operand::Register(accumulator(width), width);
        let port = self.registers.get(Gpr::Rdx) as u16;
        let memory_operand = |kind: fn(OpKind) -> bool| {
            (0..self.instruction.op_count())
                .find(|op| kind(self.instruction.op_kind(*op)))
                .ok_or(Failure::Unknown)
        };
        let source = || {
            memory_operand(|kind| {
                matches!(
                    kind,
                    OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI
                )
            })
        };
        let destination = || {
            memory_operand(|kind| {
                matches!(
                    kind,
                    OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI
                )
            })
        };
        match string.kind {
            StringKind::Store => {
                let to = self.place(destination()?, width, 0, Intent::Write)?;
                let value = self.get(accumulator);
                self.write(to, value);
            }
            StringKind::Load => {
                let from = self.place(source()?, width, 0, Intent::Read)?;
                let value = self.read(from);
                self.put(accumulator, value);
            }
            StringKind::Move => {
                let to = self.place(destination()?, width, 0, Intent::Write)?;
                let from = self.place(source()?, width, 0, Intent::Read)?;
                let value = self.read(from);
                self.write(to, value);
            }
            StringKind::Compare => {
                let first = self.place(source()?, width, 0, Intent::Read)?;
                let second = self.place(destination()?, width, 0, Intent::Read)?;
                let (_, flags) = alu::sub(self.read(first), self.read(second), false, width);
                self.set_flags(flags, ARITHMETIC);
            }
            StringKind::Scan => {
                let from = self.place(destination()?, width, 0, Intent::Read)?;
                let (_, flags) = alu::sub(self.get(accumulator), self.read(from), false, width);
                self.set_flags(flags, ARITHMETIC);
            }
            StringKind::In => {
                let to = self.place(destination()?, width, 0, Intent::Write)?;
                let value = self.bus.port_read(port, width);
                self.write(to, value.into());
            }
            StringKind::Out => {
                let from = self.place(source()?, width, 0, Intent::Read)?;
                let value = self.read(from);
                self.bus.port_write(port, width, value as u32);
            }
        }
        Ok(())
    }

    /// Adds to a register as far as the address width reaches.
    pub(super) fn add_to(&mut self, register: Gpr, step: u64, mask: u64) {
        let old = self.registers.get(register);
        let sum = old.wrapping_add(step) & mask;
        // A 32-bit result clears the upper half, a 16-bit one leaves it.
        self.registers.set(
            register,
            if mask == 0xFFFF {
                old & !mask | sum
            } else {
                sum
            },
        );
    }
}
