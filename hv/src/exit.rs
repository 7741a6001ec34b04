//! Why the guest left: what the back ends decode and the exit handler sees; and the counts and the record of exits.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// Why the guest stopped executing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The box has an interrupt to take.
    HostInterrupt,
    /// The guest would now take an external interrupt.
    InterruptWindow,
    /// HLT.
    Halt,
    /// CPUID.
    Cpuid,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// IN, OUT, INS, OUTS.
    Port(PortAccess),
    /// An access to guest-physical memory that is not mapped.
    Memory(MemoryAccess),
    /// MOV to or from CR8.
    TaskPriority {
        /// MOV to CR8.
        write: bool,
    },
    /// INVD or WBINVD.
    CacheFlush,
    /// An exception that is only watched, to be delivered as it came: vector and error code.
    Exception(u8, Option<u32>),
    /// VMMCALL or VMCALL.
    Hypercall,
    /// An instruction that this machine does not have: #UD.
    Undefined,
    /// An instruction that always faults here: #GP(0).
    Refused,
    /// Triple fault or another shutdown.
    Shutdown,
    /// The CPU, or our own check before it, refused the guest's state.
    BadState(Refusal),
    /// A machine check: the box is in trouble.
    MachineCheck,
    /// Anything else, with the back end's code and details.
    Unknown([u64; 3]),
}

/// Who refused the guest's state, and for which rule. Reads as the end of a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Our own check, before the guest was entered.
    Check(&'static str),
    /// The CPU, and the rule that our check finds broken in what it was given, if it finds one.
    Cpu(Option<&'static str>),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Check(rule) => f.write_str(rule),
            Self::Cpu(Some(rule)) => write!(f, "by the CPU: {rule}"),
            Self::Cpu(None) => f.write_str(
                "by the CPU, and none of the rules in APM 15.5.1 that we check is broken",
            ),
        }
    }
}

/// One port instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// Port number.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub width: u8,
    /// OUT or OUTS.
    pub write: bool,
    /// INS or OUTS.
    pub string: bool,
    /// Address of the next instruction.
    pub next_rip: u64,
}

/// An access to guest-physical memory that the nested tables do not map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    /// Guest-physical address.
    pub address: u64,
    /// It was a write.
    pub write: bool,
    /// It was an instruction fetch.
    pub fetch: bool,
    /// It was the CPU walking the guest's page tables.
    pub table_walk: bool,
}

/// The kinds that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum ExitKind {
    HostInterrupt,
    InterruptWindow,
    Halt,
    Cpuid,
    ReadMsr,
    WriteMsr,
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
    TaskPriority,
    CacheFlush,
    Exception,
    Hypercall,
    Undefined,
    Refused,
    Shutdown,
    BadState,
    MachineCheck,
    Unknown,
}

/// Names of the kinds, in order, as statistics show them.
pub const EXIT_NAMES: [&str; 20] = [
    "host-interrupt",
    "interrupt-window",
    "halt",
    "cpuid",
    "read-msr",
    "write-msr",
    "port-read",
    "port-write",
    "mmio-read",
    "mmio-write",
    "task-priority",
    "cache-flush",
    "exception",
    "hypercall",
    "undefined",
    "refused",
    "shutdown",
    "bad-state",
    "machine-check",
    "unknown",
];

impl ExitKind {
    /// Its name in statistics.
    pub fn name(self) -> &'static str {
        EXIT_NAMES[self as usize]
    }
}

impl Exit {
    /// The kind under which it is counted.
    pub fn kind(&self) -> ExitKind {
        match self {
            Self::HostInterrupt => ExitKind::HostInterrupt,
            Self::InterruptWindow => ExitKind::InterruptWindow,
            Self::Halt => ExitKind::Halt,
            Self::Cpuid => ExitKind::Cpuid,
            Self::ReadMsr => ExitKind::ReadMsr,
            Self::WriteMsr => ExitKind::WriteMsr,
            Self::Port(access) if access.write => ExitKind::PortWrite,
            Self::Port(_) => ExitKind::PortRead,
            Self::Memory(access) if access.write => ExitKind::MmioWrite,
            Self::Memory(_) => ExitKind::MmioRead,
            Self::TaskPriority { .. } => ExitKind::TaskPriority,
            Self::CacheFlush => ExitKind::CacheFlush,
            Self::Exception(..) => ExitKind::Exception,
            Self::Hypercall => ExitKind::Hypercall,
            Self::Undefined => ExitKind::Undefined,
            Self::Refused => ExitKind::Refused,
            Self::Shutdown => ExitKind::Shutdown,
            Self::BadState(_) => ExitKind::BadState,
            Self::MachineCheck => ExitKind::MachineCheck,
            Self::Unknown(_) => ExitKind::Unknown,
        }
    }
}

/// How often the guest left, by kind: counted by the CPU that runs it, read by any.
#[derive(Debug, Default)]
pub struct ExitCounters([AtomicU64; EXIT_NAMES.len()]);

impl ExitCounters {
    /// Counts one. Only one CPU may count at a time; no locked access is needed then.
    pub fn count(&self, kind: ExitKind) {
        if let Some(counter) = self.0.get(kind as usize) {
            counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// The counts now.
    pub fn snapshot(&self) -> ExitCounts {
        ExitCounts(core::array::from_fn(|index| {
            self.0
                .get(index)
                .map_or(0, |counter| counter.load(Ordering::Relaxed))
        }))
    }
}

/// How often the guest left, by kind, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts([u64; EXIT_NAMES.len()]);

impl ExitCounts {
    /// How many of one kind.
    pub fn of(&self, kind: ExitKind) -> u64 {
        self.0.get(kind as usize).copied().unwrap_or(0)
    }

    /// Both together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(core::array::from_fn(|index| {
            let of = |counts: &Self| counts.0.get(index).copied().unwrap_or(0);
            of(&self) + of(&other)
        }))
    }

    /// How many in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Name and number of every kind that happened.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        EXIT_NAMES
            .iter()
            .copied()
            .zip(self.0)
            .filter(|(_, count)| *count > 0)
    }
}

impl fmt::Display for ExitCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} exits", self.total())?;
        for (index, (name, count)) in self.iter().enumerate() {
            write!(f, "{} {count} {name}", if index == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

/// One exit as evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitRecord {
    /// What it was.
    pub exit: Exit,
    /// Guest instruction pointer.
    pub rip: u64,
    /// The register that says most: ECX for MSRs, EAX else.
    pub register: u64,
}

impl fmt::Display for ExitRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rip {:#x} {}", self.rip, self.exit.kind().name())?;
        match &self.exit {
            Exit::ReadMsr | Exit::WriteMsr => write!(f, " {:#x}", self.register),
            Exit::Cpuid | Exit::Hypercall => write!(f, " eax {:#x}", self.register),
            Exit::Port(access) => write!(
                f,
                " {:#x} width {} rax {:#x}",
                access.port, access.width, self.register
            ),
            Exit::Memory(access) => write!(f, " at {:#x}", access.address),
            Exit::Exception(vector, code) => write!(f, " {vector} code {:#x}", code.unwrap_or(0)),
            Exit::BadState(rule) => write!(f, ": {rule}"),
            Exit::Unknown([code, one, two]) => {
                write!(f, " code {code:#x} details {one:#x} {two:#x}")
            }
            _ => Ok(()),
        }
    }
}

/// How many of the last exits are kept.
const RECORDS: usize = 16;

/// The last exits.
#[derive(Clone, Debug)]
pub struct ExitRing {
    records: [Option<ExitRecord>; RECORDS],
    next: usize,
}

impl Default for ExitRing {
    fn default() -> Self {
        Self {
            records: [None; RECORDS],
            next: 0,
        }
    }
}

impl ExitRing {
    /// Keeps one; the oldest goes.
    pub fn push(&mut self, record: ExitRecord) {
        if let Some(slot) = self.records.get_mut(self.next) {
            *slot = Some(record);
        }
        self.next = (self.next + 1) % RECORDS;
    }

    /// From the oldest to the last.
    pub fn iter(&self) -> impl Iterator<Item = &ExitRecord> {
        let (newer, older) = self.records.split_at(self.next);
        older.iter().chain(newer).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    #[test]
    fn counts_show_what_happened() {
        let counters = ExitCounters::default();
        for exit in [Exit::Halt, Exit::Cpuid, Exit::Halt, Exit::Unknown([0; 3])] {
            counters.count(exit.kind());
        }
        let counts = counters.snapshot();
        assert_eq!(counts.of(ExitKind::Halt), 2);
        assert_eq!(counts.to_string(), "4 exits: 2 halt, 1 cpuid, 1 unknown");
        assert_eq!(ExitKind::Unknown as usize + 1, EXIT_NAMES.len());
        assert_eq!(ExitKind::MachineCheck.name(), "machine-check");
    }

    #[test]
    fn the_ring_keeps_the_last_in_order() {
        let mut ring = ExitRing::default();
        for rip in 0..20 {
            ring.push(ExitRecord {
                exit: Exit::Halt,
                rip,
                register: 0,
            });
        }
        let kept: Vec<u64> = ring.iter().map(|record| record.rip).collect();
        assert_eq!(kept, (4..20).collect::<Vec<u64>>());
    }
}
