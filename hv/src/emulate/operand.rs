//! Operands: registers of every width, immediates, and memory that may cross from one page to another.

use super::{Failure, Step};
use crate::cpu::alu;
use crate::cpu::{GENERAL_PROTECTION, Gpr, STACK_FAULT};
use crate::mem::walk::Intent;
use iced_x86::{OpKind, Register};

const PAGE: u64 = 4096;

/// A memory operand whose translation has been checked: one place, or two if it crosses a page.
#[derive(Clone, Copy)]
pub(super) struct Place {
    address: u64,
    /// How many bytes are at `address`, and where the rest is.
    split: Option<(u8, u64)>,
    width: u8,
}

impl Place {
    /// True if its address is a multiple of 16. Pages are, so it does not matter which address.
    pub(super) fn is_aligned(self) -> bool {
        self.address.is_multiple_of(16)
    }

    /// The 8 bytes that begin `from` bytes after the first of 16.
    fn quadword(self, from: u8) -> Self {
        let (address, split) = match self.split {
            Some((here, rest)) if here <= from => (rest.wrapping_add(u64::from(from - here)), None),
            Some((here, rest)) => {
                let here = here - from;
                let split = (here < 8).then_some((here, rest));
                (self.address.wrapping_add(from.into()), split)
            }
            None => (self.address.wrapping_add(from.into()), None),
        };
        Self {
            address,
            split,
            width: 8,
        }
    }
}

/// Where an operand is.
#[derive(Clone, Copy)]
pub(super) enum Operand {
    Register(Register, u8),
    Memory(Place),
    Immediate(u64, u8),
}

impl Operand {
    pub(super) fn width(self) -> u8 {
        match self {
            Self::Register(_, width) | Self::Immediate(_, width) => width,
            Self::Memory(place) => place.width,
        }
    }
}

impl Step<'_> {
    pub(super) fn operand(&self, op: u32, intent: Intent) -> Result<Operand, Failure> {
        Ok(match self.instruction.op_kind(op) {
            OpKind::Register => {
                let register = self.instruction.op_register(op);
                if !register.is_gpr() {
                    return Err(Failure::Unknown);
                }
                Operand::Register(register, register.size() as u8)
            }
            OpKind::Memory => {
                let width = self.instruction.memory_size().size();
                if !matches!(width, 1 | 2 | 4 | 8) {
                    return Err(Failure::Unknown);
                }
                Operand::Memory(self.place(op, width as u8, 0, intent)?)
            }
            OpKind::Immediate8 => Operand::Immediate(self.instruction.immediate(op), 1),
            OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Operand::Immediate(self.instruction.immediate(op), 8),
            _ => return Err(Failure::Unknown),
        })
    }

    /// Translates a memory operand of `width` bytes, `element` bytes away from where the instruction says.
    pub(super) fn place(
        &self,
        op: u32,
        width: u8,
        element: u64,
        intent: Intent,
    ) -> Result<Place, Failure> {
        let offset = self
            .instruction
            .try_virtual_address(op, 0, |register, _, _| {
                Some(if register.is_segment_register() {
                    0
                } else {
                    self.register(register)
                })
            });
        let offset = offset.ok_or(Failure::Unknown)?.wrapping_add(element);
        let segment = match self.instruction.op_kind(op) {
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => Register::ES,
            _ => self.instruction.memory_segment(),
        };
        self.locate(segment, offset, width, intent)
    }

    /// Translates `width` bytes at `offset` in a segment. Outside of it, or of what is canonical, are #SS for the stack's and #GP for the others
    /// (APM vol. 2, 4.12.1 and 8.2.13 to 8.2.14).
    pub(super) fn locate(
        &self,
        segment: Register,
        offset: u64,
        width: u8,
        intent: Intent,
    ) -> Result<Place, Failure> {
        let last = u64::from(width).saturating_sub(1);
        let descriptor = match segment {
            Register::ES => &self.system.es,
            Register::CS => &self.system.cs,
            Register::SS => &self.system.ss,
            Register::FS => &self.system.fs,
            Register::GS => &self.system.gs,
            _ => &self.system.ds,
        };
        let (linear, within) = if self.system.code_bits() == 64 {
            let has_base = matches!(segment, Register::FS | Register::GS);
            let base = if has_base { descriptor.base } else { 0 };
            let linear = base.wrapping_add(offset);
            let within = is_canonical(linear) && is_canonical(linear.wrapping_add(last));
            (linear, within)
        } else {
            let offset = offset & 0xFFFF_FFFF;
            let reach = descriptor.offsets();
            let within = reach.contains(&offset) && reach.contains(&(offset + last));
            (self.linear(descriptor.base.wrapping_add(offset)), within)
        };
        if !within {
            return Err(Failure::Fault(if segment == Register::SS {
                STACK_FAULT
            } else {
                GENERAL_PROTECTION
            }));
        }
        self.check(linear, width, intent)
    }

    /// Linear addresses are 32 bits wide outside 64-bit code.
    fn linear(&self, address: u64) -> u64 {
        if self.system.code_bits() == 64 {
            address
        } else {
            address & 0xFFFF_FFFF
        }
    }

    fn check(&self, linear: u64, width: u8, intent: Intent) -> Result<Place, Failure> {
        let (paging, user) = (self.system.paging(), self.system.cpl() == 3);
        let address = paging.translate(self.memory, linear, intent, user)?;
        let here = PAGE - linear % PAGE;
        let split = if here < u64::from(width) {
            let rest = self.linear(linear.wrapping_add(here));
            Some((
                here as u8,
                paging.translate(self.memory, rest, intent, user)?,
            ))
        } else {
            None
        };
        Ok(Place {
            address,
            split,
            width,
        })
    }

    pub(super) fn read(&mut self, place: Place) -> u64 {
        let Some((here, rest)) = place.split else {
            return self.bus.read(place.address, place.width) & alu::mask(place.width);
        };
        (0..place.width).rev().fold(0, |value, byte| {
            value << 8 | self.bus.read(byte_at(place.address, here, rest, byte), 1) & 0xFF
        })
    }

    pub(super) fn write(&mut self, place: Place, value: u64) {
        let Some((here, rest)) = place.split else {
            return self
                .bus
                .write(place.address, place.width, value & alu::mask(place.width));
        };
        for byte in 0..place.width {
            self.bus.write(
                byte_at(place.address, here, rest, byte),
                1,
                value >> (8 * byte) & 0xFF,
            );
        }
    }

    /// Reads up to 16 bytes: two accesses of 8, the lower one first, if there are so many.
    pub(super) fn read_wide(&mut self, place: Place) -> u128 {
        if place.width < 16 {
            return self.read(place).into();
        }
        let low = self.read(place.quadword(0));
        u128::from(self.read(place.quadword(8))) << 64 | u128::from(low)
    }

    /// Writes up to 16 bytes, in the same order.
    pub(super) fn write_wide(&mut self, place: Place, value: u128) {
        if place.width < 16 {
            return self.write(place, value as u64);
        }
        self.write(place.quadword(0), value as u64);
        self.write(place.quadword(8), (value >> 64) as u64);
    }

    pub(super) fn get(&mut self, operand: Operand) -> u64 {
        match operand {
            Operand::Register(register, _) => self.register(register),
            Operand::Memory(place) => self.read(place),
            Operand::Immediate(value, _) => value,
        }
    }

    pub(super) fn put(&mut self, operand: Operand, value: u64) {
        match operand {
            Operand::Register(register, _) => self.set_register(register, value),
            Operand::Memory(place) => self.write(place, value),
            Operand::Immediate(..) => {}
        }
    }

    pub(super) fn register(&self, register: Register) -> u64 {
        let (index, shift) = slot(register);
        self.registers
            .gpr
            .get(index)
            .map_or(0, |value| value >> shift & alu::mask(register.size() as u8))
    }

    pub(super) fn set_register(&mut self, register: Register, value: u64) {
        let (index, shift) = slot(register);
        let width = register.size() as u8;
        if let Some(slot) = self.registers.gpr.get_mut(index) {
            let mask = alu::mask(width) << shift;
            // A 32-bit write clears the upper half.
            let kept = if width == 4 { 0 } else { *slot & !mask };
            *slot = kept | value << shift & mask;
        }
    }
}

/// True if bits 47 to 63 are all the same.
pub(super) fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

fn byte_at(address: u64, here: u8, rest: u64, byte: u8) -> u64 {
    if byte < here {
        address.wrapping_add(byte.into())
    } else {
        rest.wrapping_add((byte - here).into())
    }
}

/// Index in [`Registers::gpr`] and first bit of a general-purpose register of any width.
fn slot(register: Register) -> (usize, u32) {
    match register {
        Register::AH => (Gpr::Rax as usize, 8),
        Register::CH => (Gpr::Rcx as usize, 8),
        Register::DH => (Gpr::Rdx as usize, 8),
        Register::BH => (Gpr::Rbx as usize, 8),
        _ => (register.full_register().number(), 0),
    }
}

pub(super) fn accumulator(width: u8) -> Register {
    match width {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}
