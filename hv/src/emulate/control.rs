//! The stack, and jumps and calls through memory.

use super::{Failure, Outcome, Step};
use crate::cpu::{GENERAL_PROTECTION, Gpr};
use crate::decode;
use crate::mem::walk::Intent;
use iced_x86::Register;

use super::operand::is_canonical;

impl Step<'_> {
    /// The bits of RSP that count.
    fn stack_mask(&self) -> u64 {
        match self.system.code_bits() {
            64 => u64::MAX,
            _ if self.system.ss.is_big() => 0xFFFF_FFFF,
            _ => 0xFFFF,
        }
    }

    pub(super) fn push(&mut self) -> Result<(), Failure> {
        let from = self.operand(0, Intent::Read)?;
        // An immediate has the width that the stack pointer moves by.
        let width = self.instruction.stack_pointer_increment().unsigned_abs() as u8;
        let (old, mask) = (self.registers.get(Gpr::Rsp), self.stack_mask());
        let stack = old.wrapping_sub(u64::from(width)) & mask;
        let to = self.locate(Register::SS, stack, width, Intent::Write)?;
        let value = self.get(from);
        self.write(to, value);
        self.registers.set(Gpr::Rsp, old & !mask | stack);
        Ok(())
    }

    /// An address that RSP is part of is made with RSP as it is after the pop (APM vol. 3, POP).
    pub(super) fn pop(&mut self) -> Result<(), Failure> {
        let width = self.instruction.stack_pointer_increment().unsigned_abs() as u8;
        let (old, mask) = (self.registers.get(Gpr::Rsp), self.stack_mask());
        let from = self.locate(Register::SS, old & mask, width, Intent::Read)?;
        let above = old.wrapping_add(width.into()) & mask;
        self.registers.set(Gpr::Rsp, old & !mask | above);
        match self.operand(0, Intent::Write) {
            Ok(to) => {
                let value = self.read(from);
                self.put(to, value);
                Ok(())
            }
            Err(failure) => {
                self.registers.set(Gpr::Rsp, old);
                Err(failure)
            }
        }
    }

    /// JMP and CALL to where a register or memory says, in the same segment (APM vol. 3).
    pub(super) fn branch(&mut self) -> Result<Outcome, Failure> {
        let from = self.operand(0, Intent::Read)?;
        let width = from.width();
        let (old, mask) = (self.registers.get(Gpr::Rsp), self.stack_mask());
        let stack = old.wrapping_sub(width.into()) & mask;
        let call = self.instruction.is_call_near_indirect();
        let place = match call {
            true => Some(self.locate(Register::SS, stack, width, Intent::Write)?),
            false => None,
        };
        let target = self.get(from);
        let within = match self.system.code_bits() {
            64 => is_canonical(target),
            _ => self.system.cs.offsets().contains(&target),
        };
        if !within {
            return Err(Failure::Fault(GENERAL_PROTECTION));
        }
        if let Some(place) = place {
            let back = decode::after(self.registers, self.system, self.instruction.len());
            self.write(place, back);
            self.registers.set(Gpr::Rsp, old & !mask | stack);
        }
        Ok(Outcome::Jump(target))
    }
}
