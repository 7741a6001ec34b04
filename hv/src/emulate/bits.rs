//! BMI1 and BMI2 (APM vol. 3): general registers under a VEX prefix, with a destination of their own.

use super::{Failure, Step};
use crate::cpu::Gpr;
use crate::cpu::alu::{self, ARITHMETIC, Bits, Shift};
use crate::mem::walk::Intent;

impl Step<'_> {
    /// ANDN, whose inverted operand comes first.
    pub(super) fn and_not(&mut self) -> Result<(), Failure> {
        self.compute(Bits::AndNot, 2, Some(1))
    }

    /// BEXTR, BZHI; BLSI, BLSMSK and BLSR, which have no third operand.
    pub(super) fn manipulate(&mut self, kind: Bits) -> Result<(), Failure> {
        let other = (self.instruction.op_count() == 3).then_some(2);
        self.compute(kind, 1, other)
    }

    fn compute(&mut self, kind: Bits, value: u32, other: Option<u32>) -> Result<(), Failure> {
        let (to, from) = (
            self.operand(0, Intent::Write)?,
            self.operand(value, Intent::Read)?,
        );
        let other = match other {
            Some(other) => {
                let other = self.operand(other, Intent::Read)?;
                self.get(other)
            }
            None => 0,
        };
        let (result, flags) = alu::manipulate(kind, self.get(from), other, to.width());
        self.set_flags(flags, ARITHMETIC);
        self.put(to, result);
        Ok(())
    }

    /// PDEP and PEXT.
    pub(super) fn pick(&mut self, pick: fn(u64, u64) -> u64) -> Result<(), Failure> {
        let to = self.operand(0, Intent::Write)?;
        let (value, places) = (
            self.operand(1, Intent::Read)?,
            self.operand(2, Intent::Read)?,
        );
        let result = pick(self.get(value), self.get(places));
        self.put(to, result);
        Ok(())
    }

    /// MULX: rDX by the last operand; the upper half is what stays if both go to one register.
    pub(super) fn multiply_apart(&mut self) -> Result<(), Failure> {
        let (upper, lower) = (
            self.operand(0, Intent::Write)?,
            self.operand(1, Intent::Write)?,
        );
        let from = self.operand(2, Intent::Read)?;
        let factor = self.registers.get(Gpr::Rdx);
        let (low, high, _) = alu::multiply(false, factor, self.get(from), upper.width());
        self.put(lower, low);
        self.put(upper, high);
        Ok(())
    }

    /// SHLX, SHRX, SARX and RORX, which leave the flags.
    pub(super) fn shift_apart(&mut self, kind: Shift) -> Result<(), Failure> {
        let to = self.operand(0, Intent::Write)?;
        let (from, count) = (
            self.operand(1, Intent::Read)?,
            self.operand(2, Intent::Read)?,
        );
        let (value, count) = (self.get(from), self.get(count) as u8);
        let (result, _) = alu::shift(kind, value, count, to.width(), 0);
        self.put(to, result);
        Ok(())
    }
}
