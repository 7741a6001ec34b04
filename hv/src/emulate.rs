//! Carries out the guest's instructions that touch devices: the forms that compilers and Linux emit for memory-mapped
//! registers, and string instructions between memory, devices and ports.
//!
//! The CPU has begun each instruction and stopped at a guest-physical address that is not mapped; here it is done from the beginning. Every
//! operand's segment limit or canonical form and its translation are checked before anything is changed; segment types and alignment are not.
//! An instruction that is not here is not guessed at: the guest stops with its bytes. SSE and VEX forms are such.

use crate::cpu::alu::{self, ARITHMETIC, CF, Shift, ZF};
use crate::cpu::{Event, GENERAL_PROTECTION, Gpr, PAGE_FAULT, Registers, System};
use crate::decode::{self, Bytes};
use crate::mem::GuestMemory;
use crate::mem::walk::{Intent, WalkError};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

mod operand;
mod string;
#[cfg(test)]
mod tests;

use operand::{Operand, accumulator};
use string::StringOperation;

/// Guest-physical accesses, to RAM and devices alike. Widths are 1, 2, 4 or 8 bytes; no access crosses a page.
pub trait Bus {
    /// Reads.
    fn read(&mut self, address: u64, width: u8) -> u64;
    /// Writes.
    fn write(&mut self, address: u64, width: u8, value: u64);
    /// Reads a port.
    fn port_read(&mut self, port: u16, width: u8) -> u32;
    /// Writes a port.
    fn port_write(&mut self, port: u16, width: u8, value: u32);
    /// Reads the local APIC's task priority as CR8 shows it.
    fn task_priority(&mut self) -> u64;
    /// Changes it.
    fn set_task_priority(&mut self, value: u64);
}

/// Why an instruction was not carried out. Nothing has changed then (of a repeated one: nothing of the element that is due).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The guest is to get this event; for a page fault CR2 too.
    Inject(Event, Option<u64>),
    /// The guest's code or page tables are not in its RAM.
    NoCode,
    /// Not an instruction that is known here.
    Unsupported(Bytes),
}

impl From<WalkError> for Trouble {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::PageFault { address, code } => {
                Self::Inject(Event::Exception(PAGE_FAULT, Some(code)), Some(address))
            }
            WalkError::TableOutOfGuest(_) => Self::NoCode,
        }
    }
}

/// Carries out the instruction at RIP and gives the RIP to go on at (the same one, if a repeated string instruction is not through).
///
/// # Errors
/// [`Trouble`].
pub fn step(
    memory: &GuestMemory,
    registers: &mut Registers,
    system: &System,
    bus: &mut dyn Bus,
) -> Result<u64, Trouble> {
    let bytes = decode::fetch(memory, registers, system)?;
    let instruction =
        decode::decode(&bytes, registers, system).ok_or(Trouble::Unsupported(bytes))?;
    let next = decode::after(registers, system, instruction.len());
    let mut step = Step {
        memory,
        registers,
        system,
        bus,
        instruction,
    };
    match step.run() {
        Ok(true) => Ok(next),
        Ok(false) => Ok(step.registers.rip),
        Err(Failure::Unknown) => Err(Trouble::Unsupported(bytes)),
        Err(Failure::Fault(event)) => Err(Trouble::Inject(event, None)),
        Err(Failure::Walk(error)) => Err(error.into()),
    }
}

enum Failure {
    Unknown,
    Fault(Event),
    Walk(WalkError),
}

impl From<WalkError> for Failure {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
    }
}

struct Step<'a> {
    memory: &'a GuestMemory,
    registers: &'a mut Registers,
    system: &'a System,
    bus: &'a mut dyn Bus,
    instruction: Instruction,
}

impl Step<'_> {
    /// True when the instruction is through.
    fn run(&mut self) -> Result<bool, Failure> {
        if let Some(string) = StringOperation::of(self.instruction.code()) {
            return self.string(string);
        }
        let mnemonic = self.instruction.mnemonic();
        match mnemonic {
            Mnemonic::Mov if self.instruction.op1_register() == Register::CR8 => {
                self.supervisor()?;
                let value = self.bus.task_priority();
                self.set_register(self.instruction.op0_register(), value);
            }
            Mnemonic::Mov if self.instruction.op0_register() == Register::CR8 => {
                let value = self.register(self.instruction.op1_register());
                self.supervisor()?;
                // Bits 4 to 63 are reserved (APM vol. 2, 3.1.4).
                if value > 0xF {
                    return Err(Failure::Fault(GENERAL_PROTECTION));
                }
                self.bus.set_task_priority(value);
            }
            Mnemonic::Mov | Mnemonic::Movnti => {
                let (to, from) = (
                    self.operand(0, Intent::Write)?,
                    self.operand(1, Intent::Read)?,
                );
                let value = self.get(from);
                self.put(to, value);
            }
            Mnemonic::Movbe => {
                let (to, from) = (
                    self.operand(0, Intent::Write)?,
                    self.operand(1, Intent::Read)?,
                );
                let value = self.get(from).swap_bytes() >> (64 - 8 * u32::from(to.width()));
                self.put(to, value);
            }
            Mnemonic::Movzx => {
                let (to, from) = (
                    self.operand(0, Intent::Write)?,
                    self.operand(1, Intent::Read)?,
                );
                let value = self.get(from);
                self.put(to, value);
            }
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                let (to, from) = (
                    self.operand(0, Intent::Write)?,
                    self.operand(1, Intent::Read)?,
                );
                let value = alu::sign_extend(self.get(from), from.width());
                self.put(to, value);
            }
            Mnemonic::Add
            | Mnemonic::Adc
            | Mnemonic::Sub
            | Mnemonic::Sbb
            | Mnemonic::And
            | Mnemonic::Or
            | Mnemonic::Xor
            | Mnemonic::Cmp
            | Mnemonic::Test => self.arithmetic(mnemonic)?,
            Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Neg | Mnemonic::Not => {
                self.unary(mnemonic)?
            }
            Mnemonic::Shl | Mnemonic::Sal => self.shift(Shift::Left)?,
            Mnemonic::Shr => self.shift(Shift::Right)?,
            Mnemonic::Sar => self.shift(Shift::RightSigned)?,
            Mnemonic::Rol => self.shift(Shift::RotateLeft)?,
            Mnemonic::Ror => self.shift(Shift::RotateRight)?,
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => self.bit(mnemonic)?,
            Mnemonic::Xchg | Mnemonic::Xadd | Mnemonic::Cmpxchg => self.exchange(mnemonic)?,
            Mnemonic::Imul if self.instruction.op_count() >= 2 => {
                let to = self.operand(0, Intent::Write)?;
                let first = self.operand(self.instruction.op_count() - 2, Intent::Read)?;
                let second = self.operand(self.instruction.op_count() - 1, Intent::Read)?;
                let (result, flags) =
                    alu::signed_multiply(self.get(first), self.get(second), to.width());
                self.set_flags(flags, ARITHMETIC);
                self.put(to, result);
            }
            Mnemonic::Push => self.push()?,
            _ => self.conditional()?,
        }
        Ok(true)
    }

    /// The CPU has checked that already, but of the bytes that it fetched; another vCPU may have changed them.
    fn supervisor(&self) -> Result<(), Failure> {
        if self.system.cpl() == 0 {
            Ok(())
        } else {
            Err(Failure::Fault(GENERAL_PROTECTION))
        }
    }

    fn arithmetic(&mut self, mnemonic: Mnemonic) -> Result<(), Failure> {
        let only_compares = matches!(mnemonic, Mnemonic::Cmp | Mnemonic::Test);
        let to = self.operand(
            0,
            if only_compares {
                Intent::Read
            } else {
                Intent::Write
            },
        )?;
        let from = self.operand(1, Intent::Read)?;
        let (a, b) = (self.get(to), self.get(from));
        let carry = self.registers.rflags & CF != 0;
        let width = to.width();
        let (result, flags) = match mnemonic {
            Mnemonic::Add => alu::add(a, b, false, width),
            Mnemonic::Adc => alu::add(a, b, carry, width),
            Mnemonic::Sub | Mnemonic::Cmp => alu::sub(a, b, false, width),
            Mnemonic::Sbb => alu::sub(a, b, carry, width),
            Mnemonic::And | Mnemonic::Test => alu::logic(a & b, width),
            Mnemonic::Or => alu::logic(a | b, width),
            _ => alu::logic(a ^ b, width),
        };
        self.set_flags(flags, ARITHMETIC);
        if !only_compares {
            self.put(to, result);
        }
        Ok(())
    }

    fn unary(&mut self, mnemonic: Mnemonic) -> Result<(), Failure> {
        let to = self.operand(0, Intent::Write)?;
        let (value, width) = (self.get(to), to.width());
        let (result, flags, changed) = match mnemonic {
            Mnemonic::Not => (!value, 0, 0),
            Mnemonic::Neg => {
                let (result, flags) = alu::sub(0, value, false, width);
                (result, flags, ARITHMETIC)
            }
            Mnemonic::Inc => {
                let (result, flags) = alu::add(value, 1, false, width);
                (result, flags, ARITHMETIC & !CF)
            }
            _ => {
                let (result, flags) = alu::sub(value, 1, false, width);
                (result, flags, ARITHMETIC & !CF)
            }
        };
        self.set_flags(flags, changed);
        self.put(to, result);
        Ok(())
    }

    fn shift(&mut self, kind: Shift) -> Result<(), Failure> {
        let (to, count) = (
            self.operand(0, Intent::Write)?,
            self.operand(1, Intent::Read)?,
        );
        let (value, count) = (self.get(to), self.get(count) as u8);
        let (result, flags) = alu::shift(kind, value, count, to.width(), self.registers.rflags);
        self.set_flags(flags, ARITHMETIC);
        self.put(to, result);
        Ok(())
    }

    /// BT and its kin. With the bit's number in a register, it may lie far from the operand.
    fn bit(&mut self, mnemonic: Mnemonic) -> Result<(), Failure> {
        let index = self.operand(1, Intent::Read)?;
        let number = alu::sign_extend(self.get(index), index.width()) as i64;
        let intent = if mnemonic == Mnemonic::Bt {
            Intent::Read
        } else {
            Intent::Write
        };
        let to = if self.instruction.op0_kind() == OpKind::Memory
            && matches!(index, Operand::Register(..))
        {
            let width = index.width();
            let bits = i64::from(width) * 8;
            let element = number.div_euclid(bits).wrapping_mul(i64::from(width));
            Operand::Memory(self.place(0, width, element as u64, intent)?)
        } else {
            self.operand(0, intent)?
        };
        let bit = 1 << (number as u64 & (u64::from(to.width()) * 8 - 1));
        let value = self.get(to);
        self.set_flags(if value & bit != 0 { CF } else { 0 }, CF);
        match mnemonic {
            Mnemonic::Bts => self.put(to, value | bit),
            Mnemonic::Btr => self.put(to, value & !bit),
            Mnemonic::Btc => self.put(to, value ^ bit),
            _ => {}
        }
        Ok(())
    }

    fn exchange(&mut self, mnemonic: Mnemonic) -> Result<(), Failure> {
        let (to, other) = (
            self.operand(0, Intent::Write)?,
            self.operand(1, Intent::Write)?,
        );
        let (old, new, width) = (self.get(to), self.get(other), to.width());
        match mnemonic {
            Mnemonic::Xchg => {
                self.put(to, new);
                self.put(other, old);
            }
            Mnemonic::Xadd => {
                let (sum, flags) = alu::add(old, new, false, width);
                self.set_flags(flags, ARITHMETIC);
                self.put(other, old);
                self.put(to, sum);
            }
            _ => {
                let accumulator = Operand::Register(accumulator(width), width);
                let (_, flags) = alu::sub(self.get(accumulator), old, false, width);
                self.set_flags(flags, ARITHMETIC);
                if flags & ZF != 0 {
                    self.put(to, new);
                } else {
                    self.put(to, old);
                    self.put(accumulator, old);
                }
            }
        }
        Ok(())
    }

    fn push(&mut self) -> Result<(), Failure> {
        let from = self.operand(0, Intent::Read)?;
        let width = from.width();
        let mask = match self.system.code_bits() {
            64 => u64::MAX,
            _ if self.system.ss.is_big() => 0xFFFF_FFFF,
            _ => 0xFFFF,
        };
        let old = self.registers.get(Gpr::Rsp);
        let stack = old.wrapping_sub(u64::from(width)) & mask;
        let to = self.locate(Register::SS, stack, width, Intent::Write)?;
        let value = self.get(from);
        self.write(to, value);
        self.registers.set(Gpr::Rsp, old & !mask | stack);
        Ok(())
    }

    /// SETcc and CMOVcc; anything else is unknown.
    fn conditional(&mut self) -> Result<(), Failure> {
        let holds = self.condition().ok_or(Failure::Unknown)?;
        match self.instruction.op_count() {
            1 if self.instruction.op0_kind() == OpKind::Memory => {
                let to = self.operand(0, Intent::Write)?;
                self.put(to, u64::from(holds));
            }
            2 if self.instruction.op1_kind() == OpKind::Memory => {
                let (to, from) = (
                    self.operand(0, Intent::Write)?,
                    self.operand(1, Intent::Read)?,
                );
                // The read happens, and a 32-bit destination is zero-extended, whether the condition holds or not.
                let (value, old) = (self.get(from), self.get(to));
                self.put(to, if holds { value } else { old });
            }
            _ => return Err(Failure::Unknown),
        }
        Ok(())
    }

    fn condition(&self) -> Option<bool> {
        use iced_x86::ConditionCode as Cc;
        let flag = |bits: u64| self.registers.rflags & bits != 0;
        let less = flag(alu::SF) != flag(alu::OF);
        Some(match self.instruction.condition_code() {
            Cc::None => return None,
            Cc::o => flag(alu::OF),
            Cc::no => !flag(alu::OF),
            Cc::b => flag(CF),
            Cc::ae => !flag(CF),
            Cc::e => flag(ZF),
            Cc::ne => !flag(ZF),
            Cc::be => flag(CF | ZF),
            Cc::a => !flag(CF | ZF),
            Cc::s => flag(alu::SF),
            Cc::ns => !flag(alu::SF),
            Cc::p => flag(alu::PF),
            Cc::np => !flag(alu::PF),
            Cc::l => less,
            Cc::ge => !less,
            Cc::le => less || flag(ZF),
            Cc::g => !(less || flag(ZF)),
            // `ConditionCode` is marked as open for more.
            #[allow(unreachable_patterns)]
            _ => return None,
        })
    }

    fn set_flags(&mut self, flags: u64, changed: u64) {
        self.registers.rflags = self.registers.rflags & !changed | flags & changed;
    }
}
