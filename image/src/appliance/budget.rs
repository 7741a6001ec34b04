//! Sharing out memory: the guest's runs first, all the rest to the heap. Prints who has how much.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use outpost::heap::Place;
use outpost::memory::{self, BudgetLine, NotEnough, Run};
use outpost_net::dedup::StoreMemory;
use outpost_net::engine::working_memory;
use serde::{Serialize, Serializer};

use crate::firmware::Findings;
use crate::machine::cpu::Path;
use crate::machine::{heap, paging};
use crate::output;

/// What is kept of the heap, with what it has from the firmware phase, for what is neither dictionary nor guest: packet buffers, flows, tunnel, consoles. With the parts of a small dictionary in
/// memory, and this binary, the box does with 48 MiB beside guest and index.
const BOX_BYTES: u64 = 38 << 20;
/// Flows get this part of what is left, for they take up to three times as much with all that belongs to them ([`working_memory`]), within these.
const FLOWS_PART: u64 = 3;
const LEAST_FLOWS: u64 = 6 << 20;
const MOST_FLOWS: u64 = 512 << 20;
/// What of the heap is not set aside for connections: for the guest's virtual machine, above all, which is made after that.
const AFTER_START: u64 = 4 << 20;
const MIB: u64 = 1 << 20;

/// What the box itself takes, guest apart, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Use {
    /// The dictionary's index.
    pub index: u64,
    /// Everything else in use: heap, with what of the dictionary is in memory, and this binary with its stacks and page tables. Not what has been taken, or set aside,
    /// and never been needed.
    pub rest: u64,
    /// What of it has begun and will end, connections above all.
    pub pool: Pool,
    allocations: Taken,
    #[serde(skip)]
    parts: u64,
}

/// What is set aside for connections, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pool {
    /// All of it.
    pub bytes: u64,
    /// What they have of it.
    pub used: u64,
    /// How often something has been taken from it.
    pub taken: Taken,
}

/// How often something has been taken from the heap, or from what is set aside, by what the CPU was doing.
#[derive(Clone, Copy, Debug)]
pub struct Taken(pub Place);

impl Taken {
    /// Until now, with the name of each [`Path`].
    pub fn by_path(self) -> impl Iterator<Item = (&'static str, u64)> {
        Path::ALL
            .into_iter()
            .map(move |path| (path.name(), heap::taken(self.0, path)))
    }
}

impl Serialize for Taken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.by_path())
    }
}

impl Use {
    /// Now, with what the dictionary has taken.
    pub fn now(dictionary: StoreMemory) -> Use {
        let index = dictionary.index as u64;
        let not_rest = index + dictionary.untouched as u64;
        let binary = BINARY.load(Ordering::Relaxed);
        let pool = heap::pool();
        Use {
            index,
            rest: (heap::used() + binary).saturating_sub(not_rest),
            pool: Pool {
                bytes: pool.bytes,
                used: pool.used,
                taken: Taken(Place::Pool),
            },
            allocations: Taken(Place::Heap),
            parts: dictionary.parts as u64,
        }
    }

    /// Prints the end of the budget, once the WAN stack has what it needs.
    pub fn announce(&self) {
        print(&[
            ("dictionary's index", self.index),
            ("dictionary's parts in memory", self.parts),
            ("set aside for connections", self.pool.bytes),
            ("the box but guest and index", self.rest),
        ]);
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "memory {} KiB, {} of the {} KiB set aside for connections among them, and {} KiB of dictionary index; allocations",
            self.rest >> 10,
            self.pool.used >> 10,
            self.pool.bytes >> 10,
            self.index >> 10
        )?;
        let mut by_path = self.allocations.by_path();
        by_path.try_for_each(|(path, count)| write!(f, " {path} {count}"))
    }
}

static BINARY: AtomicU64 = AtomicU64::new(0);

/// Sets aside what connections may take, whose buffers have `flows` bytes.
pub fn set_aside(flows: u64) {
    let wanted = usize::try_from(flows).map_or(u64::MAX, |flows| working_memory(flows) as u64);
    let bytes = heap::set_aside(wanted, AFTER_START);
    if bytes < wanted {
        log::info!(
            "memory: {} MiB are set aside for connections, {} MiB may be wanted: where they need more, they take what is left",
            bytes / MIB,
            wanted.div_ceil(MIB)
        );
    }
}

/// Who has what.
pub struct Shares {
    /// The guest's memory; none if no guest is wanted; else why it has none.
    pub guest: Option<Result<Vec<Run>, NotEnough>>,
    /// Bytes for the dictionaries.
    pub dictionary: u64,
    /// Bytes for flows.
    pub flows: u64,
}

/// Shares out what the firmware left and prints the budget.
pub fn share_out(findings: &Findings) -> Shares {
    BINARY.store(findings.image_bytes, Ordering::Relaxed);
    let mut free = findings.free.clone();
    let total: u64 = findings.memory.iter().map(|run| run.bytes()).sum();
    let free_bytes: u64 = free.iter().map(|run| run.bytes()).sum();
    let config = findings.config.as_ref().ok();
    let reserve = BOX_BYTES.saturating_sub(heap::claimed());
    let largest = free_bytes.saturating_sub(reserve);
    let guest = config.and_then(|config| config.guest.as_ref());
    let guest_bytes = guest.map_or(0, |guest| guest.memory.bytes());
    let wanted = config.map_or(0, |config| match config.store.memory {
        Some(memory) => memory.bytes(),
        None => memory::dictionary_by_default(total, largest, guest_bytes),
    });
    let dictionary = wanted.min(largest);
    if dictionary < wanted {
        output::problem(format_args!(
            "the dictionary gets {} MiB of the {} MiB it should have: lower [store] memory in outpost.toml, or add memory",
            dictionary / MIB,
            wanted / MIB
        ));
    }
    let guest = guest
        .map(|guest| memory::take_guest(&mut free, guest.memory.bytes(), reserve + dictionary));
    let guest_bytes = match &guest {
        Some(Ok(runs)) => runs.iter().map(|run| run.bytes()).sum(),
        _ => 0,
    };
    for run in free {
        // SAFETY: the runs are free memory of the firmware's map, mapped, not the guest's, and handed out nowhere else. The
        // stacks, tables and files in use lie in memory of other types.
        unsafe { heap::claim(run.start, run.bytes()) };
    }
    let files = match &findings.guest {
        Some(Ok(files)) => files.bytes(),
        _ => 0,
    };
    let heap = heap::claimed();
    print(&[
        ("guest memory", guest_bytes),
        ("guest kernel and initial ramdisk", files),
        ("dictionary", dictionary),
        ("rest of the heap", heap.saturating_sub(dictionary)),
        ("this binary", findings.image_bytes),
        (
            "firmware and tables",
            total.saturating_sub(guest_bytes + files + heap + findings.image_bytes),
        ),
        ("all memory", total),
    ]);
    log::info!("memory: {} pages of page tables", paging::table_pages());
    let dictionary = fitting(dictionary);
    let left = heap.saturating_sub(dictionary + BOX_BYTES / 2);
    let flows = (left / FLOWS_PART).clamp(LEAST_FLOWS, MOST_FLOWS);
    Shares {
        guest,
        dictionary,
        flows,
    }
}

/// As much of `wanted` bytes as the heap has in one piece: the dictionary is made of few large allocations.
fn fitting(wanted: u64) -> u64 {
    let mut bytes = wanted;
    while bytes > MIB {
        // One direction's share is the largest of them.
        let mut probe: Vec<u8> = Vec::new();
        if probe.try_reserve_exact(bytes as usize / 2).is_ok() {
            break;
        }
        bytes -= bytes / 8;
    }
    if bytes < wanted {
        output::problem(format_args!(
            "memory is in pieces: the dictionary gets {} MiB instead of {} MiB; lower [store] memory in outpost.toml",
            bytes / MIB,
            wanted / MIB
        ));
    }
    bytes
}

fn print(lines: &[(&'static str, u64)]) {
    for &(purpose, bytes) in lines {
        log::info!("memory: {}", BudgetLine { purpose, bytes });
    }
}
