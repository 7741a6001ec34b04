//! Integer instructions that compute or exchange: the operands of [`crate::cpu::alu`].

use super::operand::{Operand, accumulator};
use super::{Failure, Step};
use crate::cpu::alu::{self, ARITHMETIC, CF, Scan, Shift, ZF};
use crate::cpu::{DIVIDE_ERROR, GENERAL_PROTECTION, Gpr};
use crate::mem::walk::Intent;
use iced_x86::{Mnemonic, OpKind, Register};

impl Step<'_> {
    pub(super) fn arithmetic(&mut self, mnemonic: Mnemonic) -> Result<(), Failure> {
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

    pub(super) fn unary(&mut self, mnemonic: Mnemonic) -> Result<(), Failure> {
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

    pub(super) fn shift(&mut self, kind: Shift) -> Result<(), Failure> {
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

    /// SHLD and SHRD (APM vol. 3).
    pub(super) fn double_shift(&mut self, left: bool) -> Result<(), Failure> {
        let to = self.operand(0, Intent::Write)?;
        let (other, count) = (
            self.operand(1, Intent::Read)?,
            self.operand(2, Intent::Read)?,
        );
        let (value, other, count) = (self.get(to), self.get(other), self.get(count) as u8);
        let flags = self.registers.rflags;
        let (result, flags) = alu::double_shift(left, value, other, count, to.width(), flags);
        self.set_flags(flags, ARITHMETIC);
        self.put(to, result);
        Ok(())
    }

    /// ADCX and ADOX, which carry by one flag and leave the others (APM vol. 3).
    pub(super) fn add_with(&mut self, flag: u64) -> Result<(), Failure> {
        let (to, from) = (
            self.operand(0, Intent::Write)?,
            self.operand(1, Intent::Read)?,
        );
        let carry = self.registers.rflags & flag != 0;
        let (sum, flags) = alu::add(self.get(to), self.get(from), carry, to.width());
        self.set_flags(if flags & CF != 0 { flag } else { 0 }, flag);
        self.put(to, sum);
        Ok(())
    }

    /// IMUL with two or three operands.
    pub(super) fn multiply_to(&mut self) -> Result<(), Failure> {
        let to = self.operand(0, Intent::Write)?;
        let first = self.operand(self.instruction.op_count() - 2, Intent::Read)?;
        let second = self.operand(self.instruction.op_count() - 1, Intent::Read)?;
        let (low, _, flags) = alu::multiply(true, self.get(first), self.get(second), to.width());
        self.set_flags(flags, ARITHMETIC);
        self.put(to, low);
        Ok(())
    }

    /// MUL and IMUL with one operand: rDX:rAX, or AX for bytes.
    pub(super) fn multiply(&mut self, signed: bool) -> Result<(), Failure> {
        let from = self.operand(0, Intent::Read)?;
        let width = from.width();
        let factor = self.register(accumulator(width));
        let (low, high, flags) = alu::multiply(signed, factor, self.get(from), width);
        self.set_flags(flags, ARITHMETIC);
        self.set_register(accumulator(width), low);
        self.set_register(upper(width), high);
        Ok(())
    }

    /// DIV and IDIV. #DE leaves everything as it was but for the device, which has been read; the flags are undefined and stay.
    pub(super) fn divide(&mut self, signed: bool) -> Result<(), Failure> {
        let from = self.operand(0, Intent::Read)?;
        let width = from.width();
        let (high, low) = (
            self.register(upper(width)),
            self.register(accumulator(width)),
        );
        let (quotient, remainder) = alu::divide(signed, high, low, self.get(from), width)
            .ok_or(Failure::Fault(DIVIDE_ERROR))?;
        self.set_register(accumulator(width), quotient);
        self.set_register(upper(width), remainder);
        Ok(())
    }

    /// BSF, BSR, TZCNT, LZCNT, POPCNT.
    pub(super) fn scan(&mut self, kind: Scan) -> Result<(), Failure> {
        let (to, from) = (
            self.operand(0, Intent::Write)?,
            self.operand(1, Intent::Read)?,
        );
        let (result, flags) = alu::scan(kind, self.get(from), to.width());
        self.set_flags(flags, ARITHMETIC);
        if let Some(result) = result {
            self.put(to, result);
        }
        Ok(())
    }

    /// CRC32.
    pub(super) fn checksum(&mut self) -> Result<(), Failure> {
        let (to, from) = (
            self.operand(0, Intent::Write)?,
            self.operand(1, Intent::Read)?,
        );
        let checksum = alu::crc32(self.get(to) as u32, self.get(from), from.width());
        self.put(to, checksum.into());
        Ok(())
    }

    /// BT and its kin. With the bit's number in a register, it may lie far from the operand.
    pub(super) fn bit(&mut self, mnemonic: Mnemonic) -> Result<(), Failure> {
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

    pub(super) fn exchange(&mut self, mnemonic: Mnemonic) -> Result<(), Failure> {
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

    /// CMPXCHG8B and CMPXCHG16B (APM vol. 3): the pair D:A is compared, C:B is written. What is written back where they differ is what was there.
    pub(super) fn exchange_pair(&mut self, mnemonic: Mnemonic) -> Result<(), Failure> {
        let half = if mnemonic == Mnemonic::Cmpxchg16b {
            8
        } else {
            4
        };
        let to = self.place(0, 2 * half, 0, Intent::Write)?;
        if half == 8 && !to.is_aligned() {
            return Err(Failure::Fault(GENERAL_PROTECTION));
        }
        let part = |register| u128::from(self.registers.get(register) & alu::mask(half));
        let expected = part(Gpr::Rdx) << (8 * half) | part(Gpr::Rax);
        let new = part(Gpr::Rcx) << (8 * half) | part(Gpr::Rbx);
        let old = self.read_wide(to);
        let equal = old == expected;
        self.set_flags(if equal { ZF } else { 0 }, ZF);
        self.write_wide(to, if equal { new } else { old });
        if !equal {
            let high = (old >> (8 * half)) as u64;
            self.registers.set(Gpr::Rax, old as u64 & alu::mask(half));
            self.registers.set(Gpr::Rdx, high & alu::mask(half));
        }
        Ok(())
    }
}

/// The register of the upper half of a product or dividend.
fn upper(width: u8) -> Register {
    match width {
        1 => Register::AH,
        2 => Register::DX,
        4 => Register::EDX,
        _ => Register::RDX,
    }
}
