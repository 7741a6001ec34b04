//! Carries out the guest's instructions that touch devices: the forms that compilers and Linux emit for memory-mapped
//! registers, and string instructions between memory, devices and ports.
//!
//! The CPU has begun each instruction and stopped at a guest-physical address that is not mapped; here it is done from the beginning. So
//! segment limits and operand alignment are not checked again, but every translation is, before anything is changed.
//! An instruction that is not here is not guessed at: the guest stops with its bytes. SSE and VEX forms are such.

use crate::cpu::alu::{self, ARITHMETIC, CF, Shift, ZF};
use crate::cpu::{Event, Gpr, PAGE_FAULT, RFLAGS_DF, Registers, System};
use crate::decode::{self, Bytes};
use crate::mem::GuestMemory;
use crate::mem::walk::{Intent, WalkError};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

const PAGE: u64 = 4096;

/// How many elements of a repeated string instruction are done before the guest is entered again, so that interrupts are not held up.
const REPEAT_LIMIT: u32 = 1024;

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

/// Why an instruction was not carried out. Nothing has changed then.
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
        Err(Failure::Walk(error)) => Err(error.into()),
    }
}

enum Failure {
    Unknown,
    Walk(WalkError),
}

impl From<WalkError> for Failure {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
    }
}

/// A memory operand whose translation has been checked: one place, or two if it crosses a page.
#[derive(Clone, Copy)]
struct Place {
    address: u64,
    /// How many bytes are at `address`, and where the rest is.
    split: Option<(u8, u64)>,
    width: u8,
}

/// Where an operand is.
#[derive(Clone, Copy)]
enum Operand {
    Register(Register, u8),
    Memory(Place),
    Immediate(u64, u8),
}

impl Operand {
    fn width(self) -> u8 {
        match self {
            Self::Register(_, width) | Self::Immediate(_, width) => width,
            Self::Memory(place) => place.width,
        }
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
                let value = self.bus.task_priority();
                self.set_register(self.instruction.op0_register(), value);
            }
            Mnemonic::Mov if self.instruction.op0_register() == Register::CR8 => {
                let value = self.register(self.instruction.op1_register());
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
        let base = if mask == u64::MAX {
            0
        } else {
            self.system.ss.base
        };
        let to = self.check(self.linear(base.wrapping_add(stack)), width, Intent::Write)?;
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

    /// One string instruction with its repetitions. True when it is through.
    fn string(&mut self, string: StringOperation) -> Result<bool, Failure> {
        let repeated = self.instruction.has_rep_prefix() || self.instruction.has_repne_prefix();
        let address_mask = alu::mask(string.address_width(&self.instruction));
        let compares = matches!(string.kind, StringKind::Compare | StringKind::Scan);
        for _ in 0..REPEAT_LIMIT {
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

    fn string_element(&mut self, string: StringOperation) -> Result<(), Failure> {
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
    fn add_to(&mut self, register: Gpr, step: u64, mask: u64) {
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

    fn set_flags(&mut self, flags: u64, changed: u64) {
        self.registers.rflags = self.registers.rflags & !changed | flags & changed;
    }

    fn operand(&self, op: u32, intent: Intent) -> Result<Operand, Failure> {
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
    fn place(&self, op: u32, width: u8, element: u64, intent: Intent) -> Result<Place, Failure> {
        let long = self.system.code_bits() == 64;
        let address = self
            .instruction
            .try_virtual_address(op, 0, |register, _, _| {
                Some(match register {
                    Register::ES | Register::CS | Register::SS | Register::DS if long => 0,
                    Register::ES => self.system.es.base,
                    Register::CS => self.system.cs.base,
                    Register::SS => self.system.ss.base,
                    Register::DS => self.system.ds.base,
                    Register::FS => self.system.fs.base,
                    Register::GS => self.system.gs.base,
                    _ => self.register(register),
                })
            });
        let address = address.ok_or(Failure::Unknown)?.wrapping_add(element);
        self.check(self.linear(address), width, intent)
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

    fn read(&mut self, place: Place) -> u64 {
        let Some((here, rest)) = place.split else {
            return self.bus.read(place.address, place.width) & alu::mask(place.width);
        };
        (0..place.width).rev().fold(0, |value, byte| {
            value << 8 | self.bus.read(byte_at(place.address, here, rest, byte), 1) & 0xFF
        })
    }

    fn write(&mut self, place: Place, value: u64) {
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

    fn get(&mut self, operand: Operand) -> u64 {
        match operand {
            Operand::Register(register, _) => self.register(register),
            Operand::Memory(place) => self.read(place),
            Operand::Immediate(value, _) => value,
        }
    }

    fn put(&mut self, operand: Operand, value: u64) {
        match operand {
            Operand::Register(register, _) => self.set_register(register, value),
            Operand::Memory(place) => self.write(place, value),
            Operand::Immediate(..) => {}
        }
    }

    fn register(&self, register: Register) -> u64 {
        let (index, shift) = slot(register);
        self.registers
            .gpr
            .get(index)
            .map_or(0, |value| value >> shift & alu::mask(register.size() as u8))
    }

    fn set_register(&mut self, register: Register, value: u64) {
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

fn accumulator(width: u8) -> Register {
    match width {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StringKind {
    Store,
    Load,
    Move,
    Compare,
    Scan,
    In,
    Out,
}

impl StringKind {
    fn reads_si(self) -> bool {
        matches!(self, Self::Load | Self::Move | Self::Compare | Self::Out)
    }

    fn uses_di(self) -> bool {
        !matches!(self, Self::Load | Self::Out)
    }
}

#[derive(Clone, Copy)]
struct StringOperation {
    kind: StringKind,
    width: u8,
}

impl StringOperation {
    /// By code, since MOVSD and CMPSD are SSE mnemonics too.
    fn of(code: Code) -> Option<Self> {
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
    fn address_width(self, instruction: &Instruction) -> u8 {
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

#[cfg(test)]
mod tests;
