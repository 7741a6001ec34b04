//! Who gets which memory: the guest in large aligned runs, the box what is left. Plans only; it touches no memory.

use alloc::vec::Vec;
use core::fmt;

/// The guest's memory is handed out in pieces of this size and alignment, so that large nested pages map it.
pub const GUEST_ALIGN: u64 = 2 << 20;

/// Where the guest's memory begins at a multiple of this, and is as long, nested pages of this size map it.
const GIGABYTE_PAGE: u64 = 1 << 30;

/// Nothing below this is planned: firmware data, the start-up code of the other CPUs.
pub const LOW_MEMORY_END: u64 = 1 << 20;

/// A run of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Run {
    /// Bytes in it.
    pub const fn bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// Sorts `runs`, joins those that touch, and cuts off what lies below [`LOW_MEMORY_END`].
pub fn tidy(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for mut run in runs {
        run.start = run.start.max(LOW_MEMORY_END);
        if run.bytes() == 0 {
            continue;
        }
        match joined.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => joined.push(run),
        }
    }
    joined
}

/// The guest did not get its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotEnough {
    /// Bytes the guest wants.
    pub wanted: u64,
    /// Bytes that could be had in aligned runs after the box's own share.
    pub available: u64,
}

impl fmt::Display for NotEnough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the guest wants {} MiB of memory, the box has {} MiB to give: lower [guest] memory in outpost.toml, or add memory",
            self.wanted >> 20,
            self.available >> 20
        )
    }
}

/// The least dictionary that is worth its work, in bytes.
const LEAST_DICTIONARY: u64 = 4 << 20;

/// Bytes for the dictionary where the configuration does not say: a quarter of the box's memory (`all`), but no more than the guest leaves of the `free`
/// bytes, for a box without its guest is worse than one with a small dictionary. At least 4 MiB.
pub fn dictionary_by_default(all: u64, free: u64, guest: u64) -> u64 {
    let left = free.saturating_sub(guest.next_multiple_of(GUEST_ALIGN));
    (all / 4).min(left).max(LEAST_DICTIONARY)
}

/// Takes `wanted` bytes (rounded up to [`GUEST_ALIGN`]) for the guest out of `free`: from the top of the smallest run that
/// holds it whole, else piecewise from the largest runs down. A guest of 1 GiB or more that is whole begins at a multiple of 1 GiB, if the
/// run has room for that. `reserve` bytes stay for the box.
///
/// # Errors
/// [`NotEnough`]; `free` is then unchanged.
pub fn take_guest(free: &mut Vec<Run>, wanted: u64, reserve: u64) -> Result<Vec<Run>, NotEnough> {
    let wanted = wanted.next_multiple_of(GUEST_ALIGN);
    let aligned = |run: &Run| {
        let start = run.start.next_multiple_of(GUEST_ALIGN);
        let end = run.end & !(GUEST_ALIGN - 1);
        end.saturating_sub(start)
    };
    let total: u64 = free.iter().map(|run| run.bytes()).sum();
    let in_runs: u64 = free.iter().map(aligned).sum();
    let available = in_runs.min(total.saturating_sub(reserve)) & !(GUEST_ALIGN - 1);
    if wanted > available {
        return Err(NotEnough { wanted, available });
    }
    let mut taken = Vec::new();
    let mut missing = wanted;
    while missing > 0 {
        let whole = free
            .iter()
            .enumerate()
            .filter(|(_, run)| aligned(run) >= missing)
            .min_by_key(|(_, run)| aligned(run));
        let Some((index, _)) =
            whole.or_else(|| free.iter().enumerate().max_by_key(|(_, run)| aligned(run)))
        else {
            break;
        };
        let Some(run) = free.get(index).copied() else {
            break;
        };
        let piece = aligned(&run).min(missing);
        if piece == 0 {
            break;
        }
        let mut start = (run.end & !(GUEST_ALIGN - 1)) - piece;
        let large = start & !(GIGABYTE_PAGE - 1);
        if piece == wanted && piece >= GIGABYTE_PAGE && large >= run.start {
            start = large;
        }
        let end = start + piece;
        taken.push(Run { start, end });
        missing -= piece;
        free.remove(index);
        for rest in [
            Run {
                start: run.start,
                end: start,
            },
            Run {
                start: end,
                end: run.end,
            },
        ] {
            if rest.bytes() > 0 {
                free.push(rest);
            }
        }
    }
    free.sort_unstable_by_key(|run| run.start);
    taken.sort_unstable_by_key(|run| run.start);
    Ok(taken)
}

/// One line of the budget table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetLine {
    /// What the memory is for.
    pub purpose: &'static str,
    /// How much.
    pub bytes: u64,
}

impl fmt::Display for BudgetLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.bytes >> 10;
        write!(
            f,
            "{:<34} {:>6}.{} MiB",
            self.purpose,
            kib >> 10,
            (kib & 1023) * 10 / 1024
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn run(start_mib: u64, end_mib: u64) -> Run {
        Run {
            start: start_mib * MIB,
            end: end_mib * MIB,
        }
    }

    #[test]
    fn tidies_a_firmware_map() {
        let runs = tidy(vec![
            run(8, 16),
            run(4, 8),
            run(0, 2),
            run(32, 32),
            run(20, 30),
        ]);
        assert_eq!(runs, [run(1, 2), run(4, 16), run(20, 30)]);
    }

    #[test]
    fn the_dictionary_takes_a_quarter_unless_the_guest_needs_it() {
        let by_default =
            |all, free, guest| dictionary_by_default(all * MIB, free * MIB, guest * MIB) / MIB;
        assert_eq!(by_default(768, 680, 256), 192);
        assert_eq!(by_default(768, 680, 0), 192);
        assert_eq!(by_default(344, 272, 256), 16);
        // Rounded up as the guest's memory is.
        assert_eq!(by_default(344, 272, 255), 16);
        assert_eq!(by_default(344, 257, 256), 4);
        // Not even the guest fits: it is told so, and the dictionary has its least.
        assert_eq!(by_default(344, 272, 512), 4);
    }

    #[test]
    fn takes_the_top_of_the_smallest_run_that_fits() {
        let mut free = vec![run(1, 500), run(1024, 1324)];
        let taken = take_guest(&mut free, 256 * MIB, 48 * MIB).unwrap();
        assert_eq!(taken, [run(1068, 1324)]);
        assert_eq!(free, [run(1, 500), run(1024, 1068)]);
    }

    #[test]
    fn a_large_guest_begins_where_large_pages_can() {
        for (room, wanted, begins) in [
            // From the top there would be a GiB at 1200.
            (run(1, 2224), 1024, 1024),
            (run(1, 3100), 1024, 2048),
            (run(1024, 3100), 2048, 1024),
            // No room for that: from the top.
            (run(1100, 2300), 1024, 1276),
            // Too small for a large page.
            (run(1, 2224), 1022, 1202),
        ] {
            let mut free = vec![room];
            let taken = take_guest(&mut free, wanted * MIB, 0).unwrap();
            assert_eq!(taken, [run(begins, begins + wanted)], "{room:?} {wanted}");
            let left: u64 = free.iter().map(|run| run.bytes()).sum();
            assert_eq!(left, room.bytes() - wanted * MIB);
            assert!(
                free.iter()
                    .all(|run| run.end <= taken[0].start || taken[0].end <= run.start)
            );
        }
    }

    #[test]
    fn splits_when_no_run_holds_it_whole() {
        let mut free = vec![run(1, 100), run(201, 301)];
        let taken = take_guest(&mut free, 120 * MIB, 10 * MIB).unwrap();
        assert_eq!(taken.iter().map(|run| run.bytes()).sum::<u64>(), 120 * MIB);
        for piece in &taken {
            assert_eq!(piece.start % GUEST_ALIGN, 0);
            assert_eq!(piece.end % GUEST_ALIGN, 0);
        }
        let left: u64 = free.iter().map(|run| run.bytes()).sum();
        assert_eq!(left, 199 * MIB - 120 * MIB);
    }

    #[test]
    fn keeps_the_boxs_share() {
        let mut free = vec![run(2, 302)];
        let error = take_guest(&mut free, 256 * MIB, 64 * MIB).unwrap_err();
        assert_eq!(
            error,
            NotEnough {
                wanted: 256 * MIB,
                available: 236 * MIB
            }
        );
        assert_eq!(free, [run(2, 302)]);
        assert!(error.to_string().contains("wants 256 MiB"));
    }

    #[test]
    fn rounds_up_to_whole_pages() {
        let mut free = vec![run(2, 302)];
        let taken = take_guest(&mut free, 3 * MIB, 0).unwrap();
        assert_eq!(taken, [run(298, 302)]);
    }

    #[test]
    fn prints_tenths() {
        let line = BudgetLine {
            purpose: "guest",
            bytes: 3 * MIB / 2,
        };
        assert!(line.to_string().ends_with(" 1.5 MiB"), "{line}");
    }
}
