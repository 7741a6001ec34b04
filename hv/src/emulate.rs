//! Carries out the guest's instructions that touch devices: the forms that compilers and Linux emit for memory-mapped
//! registers, SSE moves among them, and string instructions between memory, devices and ports.
//!
//! The CPU has begun each instruction and stopped at a guest-physical address that is not mapped; here it is done from the beginning. Every
//! operand's segment limit or canonical form and its translation are checked before anything is changed; segment types are not, and alignment only where the instruction itself asks for it.
//! An instruction that is not here is not guessed at: the guest stops with its bytes. SSE arithmetic, x87, MMX and AVX are such.

use crate::cpu::alu::{self, Bits, CF, Scan, Shift, ZF};
use crate::cpu::{self, Event, GENERAL_PROTECTION, PAGE_FAULT, Registers, System};
use crate::decode::{self, Bytes};
use crate::mem::GuestMemory;
use crate::mem::walk::{Intent, WalkError};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

mod arithmetic;
mod bits;
mod control;
mod operand;
mod sse;
mod string;
#[cfg(test)]
mod tests;

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
    /// Reads one of the registers XMM0 to XMM15.
    fn xmm(&mut self, index: usize) -> u128;
    /// Changes it.
    fn set_xmm(&mut self, index: usize, value: u128);
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
        Ok(Outcome::Through) => Ok(next),
        Ok(Outcome::Again) => Ok(step.registers.rip),
        Ok(Outcome::Jump(target)) => Ok(target),
        Err(Failure::Unknown) => Err(Trouble::Unsupported(bytes)),
        Err(Failure::Fault(event)) => Err(Trouble::Inject(event, None)),
        Err(Failure::Walk(error)) => Err(error.into()),
    }
}

/// Where it goes on.
enum Outcome {
    /// Behind the instruction.
    Through,
    /// At the same one, which is not through.
    Again,
    /// There.
    Jump(u64),
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
    fn run(&mut self) -> Result<Outcome, Failure> {
        if let Some(string) = StringOperation::of(self.instruction.code()) {
            return Ok(match self.string(string)? {
                true => Outcome::Through,
                false => Outcome::Again,
            });
        }
        if self.instruction.is_jmp_near_indirect() || self.instruction.is_call_near_indirect() {
            return self.branch();
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
            Mnemonic::Rcl => self.shift(Shift::RotateLeftCarry)?,
            Mnemonic::Rcr => self.shift(Shift::RotateRightCarry)?,
            Mnemonic::Shld => self.double_shift(true)?,
            Mnemonic::Shrd => self.double_shift(false)?,
            Mnemonic::Adcx => self.add_with(CF)?,
            Mnemonic::Adox => self.add_with(alu::OF)?,
            Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => self.exchange_pair(mnemonic)?,
            Mnemonic::Imul if self.instruction.op_count() >= 2 => self.multiply_to()?,
            Mnemonic::Mul => self.multiply(false)?,
            Mnemonic::Imul => self.multiply(true)?,
            Mnemonic::Div => self.divide(false)?,
            Mnemonic::Idiv => self.divide(true)?,
            Mnemonic::Bsf => self.scan(Scan::Forward)?,
            Mnemonic::Bsr => self.scan(Scan::Reverse)?,
            Mnemonic::Tzcnt if cpu::has_tzcnt() => self.scan(Scan::TrailingZeros)?,
            Mnemonic::Tzcnt => self.scan(Scan::Forward)?,
            Mnemonic::Lzcnt if cpu::has_lzcnt() => self.scan(Scan::LeadingZeros)?,
            Mnemonic::Lzcnt => self.scan(Scan::Reverse)?,
            Mnemonic::Popcnt => self.scan(Scan::Ones)?,
            Mnemonic::Crc32 => self.checksum()?,
            Mnemonic::Andn => self.and_not()?,
            Mnemonic::Bextr => self.manipulate(Bits::Extract)?,
            Mnemonic::Bzhi => self.manipulate(Bits::Below)?,
            Mnemonic::Blsi => self.manipulate(Bits::LowestOne)?,
            Mnemonic::Blsmsk => self.manipulate(Bits::ToLowestOne)?,
            Mnemonic::Blsr => self.manipulate(Bits::WithoutLowestOne)?,
            Mnemonic::Pdep => self.pick(alu::deposit)?,
            Mnemonic::Pext => self.pick(alu::gather)?,
            Mnemonic::Mulx => self.multiply_apart()?,
            Mnemonic::Shlx => self.shift_apart(Shift::Left)?,
            Mnemonic::Shrx => self.shift_apart(Shift::Right)?,
            Mnemonic::Sarx => self.shift_apart(Shift::RightSigned)?,
            Mnemonic::Rorx => self.shift_apart(Shift::RotateRight)?,
            // All memory is coherent, and nothing of a device is in a cache: only the operand is checked (APM vol. 3, CLFLUSH).
            Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => {
                self.place(0, 1, 0, Intent::Read)?;
            }
            Mnemonic::Pop => self.pop()?,
            Mnemonic::Push => self.push()?,
            _ => match sse::Form::of(mnemonic) {
                Some(form) => self.sse(form)?,
                None => self.conditional()?,
            },
        }
        Ok(Outcome::Through)
    }

    /// The CPU has checked that already, but of the bytes that it fetched; another vCPU may have changed them.
    fn supervisor(&self) -> Result<(), Failure> {
        if self.system.cpl() == 0 {
            Ok(())
        } else {
            Err(Failure::Fault(GENERAL_PROTECTION))
        }
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
