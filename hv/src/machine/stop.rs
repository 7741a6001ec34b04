//! Why a guest's run ended, in words, and what it looked like at that moment.

use crate::cpu::{Place, Registers, System, Unavailable};
use crate::decode::Bytes;
use crate::exit::{ExitCounts, ExitRing, Refusal};
use core::fmt;

/// Why the run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest switched its machine off.
    PowerOff,
    /// The guest reset its machine.
    Reset,
    /// The guest ended with this status (debug-exit port).
    DebugExit(u32),
    /// The guest has not answered its watchdog for so many seconds.
    Watchdog(u32),
    /// The box asked for it.
    Requested,
    /// Triple fault.
    TripleFault,
    /// HLT with interrupts off: nothing can wake it.
    HaltedForEver,
    /// Every vCPU waits for a startup message, which only another one could send.
    SelfInit,
    /// This CPU runs no guests.
    Unavailable(Unavailable),
    /// The CPU or our own check refused the guest's state.
    BadState(Refusal),
    /// An instruction that touches a device and is not known to the emulator.
    UnknownInstruction {
        /// Where it accessed.
        address: u64,
        /// Its bytes.
        bytes: Bytes,
    },
    /// The guest executes where no RAM is.
    NoCode(u64),
    /// The guest's page tables, interrupt table or stack are where no RAM is.
    NoTables(u64),
    /// The nested tables do not let the guest reach its own RAM: our mistake.
    NestedFault(u64),
    /// The CPU reported a machine check: the box is in trouble.
    MachineCheck,
    /// An exit that is not handled: the back end's code and details.
    UnknownExit([u64; 3]),
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "the guest switched itself off"),
            Self::Reset => write!(f, "the guest reset itself"),
            Self::DebugExit(status) => write!(f, "the guest ended with status {status}"),
            Self::Watchdog(seconds) => write!(
                f,
                "the guest hangs: it has not answered its watchdog for {seconds} s"
            ),
            Self::Requested => write!(f, "the box stopped the guest"),
            Self::TripleFault => write!(f, "the guest crashed (triple fault)"),
            Self::HaltedForEver => write!(
                f,
                "the guest halted with interrupts off: nothing can wake it"
            ),
            Self::SelfInit => write!(
                f,
                "the guest sent INIT to its last running CPU: nobody can start it again"
            ),
            Self::Unavailable(reason) => write!(f, "{reason}"),
            Self::BadState(rule) => write!(f, "the guest's CPU state is refused: {rule}"),
            Self::UnknownInstruction { address, bytes } => {
                write!(
                    f,
                    "the guest accessed {address:#x} with an instruction that is not emulated: {bytes}"
                )
            }
            Self::NoCode(address) => write!(
                f,
                "the guest executes at {address:#x}, where it has no memory"
            ),
            Self::NoTables(address) => {
                write!(
                    f,
                    "the guest's page tables, interrupt table or stack are at {address:#x}, where it has no memory"
                )
            }
            Self::NestedFault(address) => write!(
                f,
                "the guest's memory at {address:#x} is not mapped: a mistake of the hypervisor"
            ),
            Self::MachineCheck => write!(f, "the CPU reported a machine check while the guest ran"),
            Self::UnknownExit([code, one, two]) => {
                write!(
                    f,
                    "the guest left with code {code:#x} ({one:#x}, {two:#x}), which is not handled"
                )
            }
        }
    }
}

impl StopReason {
    /// True if the guest itself wanted to stop, or the box: no fault to show evidence for.
    pub fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::PowerOff | Self::Reset | Self::DebugExit(_) | Self::Requested
        )
    }
}

/// The vCPU at the moment it stopped. `Display` gives several lines.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Its number.
    pub vcpu: u32,
    /// General-purpose registers, RIP, RFLAGS.
    pub registers: Registers,
    /// The other registers.
    pub system: System,
    /// Instruction bytes at RIP, as far as they are there.
    pub code: Bytes,
    /// The back end's exit code and details.
    pub raw: [u64; 3],
    /// Where it ran.
    pub place: Place,
    /// The last exits.
    pub ring: ExitRing,
    /// All exits, counted.
    pub counts: ExitCounts,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registers { gpr, rip, rflags } = &self.registers;
        let System {
            cs,
            ss,
            cr0,
            cr2,
            cr3,
            cr4,
            efer,
            ..
        } = &self.system;
        writeln!(
            f,
            "vCPU {} rip {:x}:{rip:#x} rflags {rflags:#x} code {}",
            self.vcpu, cs.selector, self.code
        )?;
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        for (names, values) in NAMES.chunks(4).zip(gpr.chunks(4)) {
            for (index, (name, value)) in names.iter().zip(values).enumerate() {
                write!(
                    f,
                    "{}{name:>3} {value:016x}",
                    if index == 0 { "" } else { "  " }
                )?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "cr0 {cr0:#x} cr2 {cr2:#x} cr3 {cr3:#x} cr4 {cr4:#x} efer {efer:#x}"
        )?;
        writeln!(
            f,
            "cs base {:#x} attributes {:#x}, ss {:x} attributes {:#x}",
            cs.base, cs.attributes, ss.selector, ss.attributes
        )?;
        writeln!(f, "{}", self.place)?;
        let [code, one, two] = self.raw;
        writeln!(
            f,
            "last exit: code {code:#x} details {one:#x} {two:#x}; the ones before, oldest first:"
        )?;
        for record in self.ring.iter() {
            writeln!(f, "  {record}")?;
        }
        write!(f, "{}", self.counts)
    }
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Why.
    pub reason: StopReason,
    /// What the vCPU looked like.
    pub evidence: Evidence,
}
