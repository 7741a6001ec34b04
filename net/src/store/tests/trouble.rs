//! Bit rot, other sizes, other owners, other formats, and devices that fail or lie.

use super::device::{Fault, Memory};
use super::*;
use crate::dedup::tests::simulation::Rng;
use crate::store::layout;

/// A store with `len` bytes in each direction, orderly closed.
fn filled(size: u64, len: u64) -> Rc<Memory> {
    let device = Memory::new(size);
    for (index, direction) in [Direction::Sending, Direction::Receiving]
        .into_iter()
        .enumerate()
    {
        let mut log = open_log(&device, direction);
        let mut at = 0;
        while at < len {
            let end = len.min(at + log.contiguous(at).min(200_000));
            log.write(at, &bytes(index as u64, at..end));
            at = end;
        }
        let ticket = log.sync();
        log.flushed(ticket);
        assert!(!log.is_dirty());
    }
    device
}

/// Reads a direction of a store and checks every byte that comes.
fn readable(device: &Rc<Memory>, direction: Direction) -> (u64, StoreStatistics) {
    let life = direction as u64;
    let mut log = open_log(device, direction);
    let there = read_all(&mut log, |position, stored| {
        let wanted = bytes(life, position..position + stored.len() as u64);
        assert!(stored == wanted, "a wrong byte");
    });
    (there.total(), log.statistics())
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let device = filled(SMALL, 2_500_000);
    for direction in [Direction::Sending, Direction::Receiving] {
        let (there, statistics) = readable(&device, direction);
        assert_eq!(there, 2_500_000);
        assert_eq!(statistics.store_warm_bytes, 2_500_000);
        assert_eq!(statistics.store_bad_pages, 0);
    }
}

#[test]
fn anchors_come_back_with_their_positions() {
    let device = Memory::new(SMALL);
    let mut log = open_log(&device, Direction::Sending);
    let mut noted = Vec::new();
    for at in (0..5 << 20).step_by(1 << 18) {
        log.write(at, &bytes(0, at..at + (1 << 18)));
        for end in [at + 1, at + 77, at + (1 << 18)] {
            let hash = end.wrapping_mul(0x1234_5678_9abc_def1) >> 20;
            log.anchor(end, hash);
            noted.push((end, hash));
        }
    }
    log.sync();
    let tail = log.tail();
    let mut found = Vec::new();
    DiskLog::open(&open_disk(&device, 1), Direction::Sending, 0, &mut |some| {
        found.extend_from_slice(some);
    });
    noted.retain(|(end, _)| *end > tail);
    found.retain(|(end, _)| *end > tail);
    assert_eq!(found, noted, "in order, and none lost");
    // The newest segment goes on with the anchors that it had.
    let mut log = open_log(&device, Direction::Sending);
    let head = log.head();
    log.write(head, &[1; 100]);
    log.anchor(head + 100, 99);
    log.sync();
    let mut again = Vec::new();
    DiskLog::open(&open_disk(&device, 1), Direction::Sending, 0, &mut |some| {
        again.extend_from_slice(some);
    });
    assert_eq!(again.last(), Some(&(head + 100, 99)));
    assert!(again.len() > found.len() / 2);
}

#[test]
fn bit_rot_is_found_and_never_served() {
    let clean = filled(SMALL, 2_500_000);
    let (mut bad, mut rng) = (0, Rng::new(5));
    for _ in 0..60 {
        let device = clean.copy();
        for _ in 0..1 + rng.below(2) {
            device.rot(&mut rng);
        }
        for direction in [Direction::Sending, Direction::Receiving] {
            let (there, statistics) = readable(&device, direction);
            bad += statistics.store_bad_pages + statistics.store_bad_segments;
            assert!(there >= 2_500_000 - 2 * (1 << 20));
        }
    }
    assert!(bad > 60, "{bad} found");
}

#[test]
fn a_device_of_another_size_keeps_what_fits() {
    let device = filled(3 * SMALL, 6_000_000);
    // Larger: everything is there, and there is room for more.
    let larger = device.resized(5 * SMALL);
    assert_eq!(readable(&larger, Direction::Sending).0, 6_000_000);
    let mut log = open_log(&larger, Direction::Sending);
    log.write(6_000_000, &bytes(0, 6_000_000..8_000_000));
    log.sync();
    assert_eq!(readable(&larger, Direction::Sending).0, 8_000_000);
    // Smaller, or cut short: the newest of what is left, and it works.
    for size in [2 * SMALL, SMALL] {
        let smaller = device.resized(size);
        let (there, _) = readable(&smaller, Direction::Receiving);
        assert!(there > 0 && there <= size / 2);
        let mut log = open_log(&smaller, Direction::Receiving);
        let head = log.head();
        log.write(head, &bytes(1, head..head + 3_000_000));
        log.sync();
        assert!(readable(&smaller, Direction::Receiving).0 >= 2_900_000);
    }
    let tiny = Disk::open(device.resized(SMALL - 1), OWNER, [1; 48]);
    assert_eq!(tiny.err(), Some(OpenError::TooSmall(SMALL)));
}

#[test]
fn the_store_of_another_pair_is_started_anew() {
    let device = filled(SMALL, 2_500_000);
    let disk = Disk::open(device.clone(), [8; 32], [9; 48]).expect("a device that works");
    assert_eq!(disk.opened(), Opened::Foreign);
    for direction in [Direction::Sending, Direction::Receiving] {
        let log = DiskLog::open(&disk, direction, 0, &mut |_| panic!("no anchor is ours"));
        assert_eq!((log.head(), log.present().total()), (0, 0));
        assert_eq!(log.statistics().store_started_anew, 1);
    }
    let disk = Disk::open(device, [8; 32], [3; 48]).expect("a device that works");
    assert_eq!((disk.opened(), disk.store), (Opened::Own, [9; 16]));
}

#[test]
fn one_copy_of_the_superblock_is_enough_and_is_mended() {
    for damaged in layout::Superblock::AT {
        let device = filled(SMALL, 100_000);
        device.zero(damaged);
        assert_eq!(open_disk(&device, 2).opened(), Opened::Own);
        device.zero(layout::Superblock::AT[0] + layout::Superblock::AT[1] - damaged);
        assert_eq!(open_disk(&device, 2).opened(), Opened::Own);
        assert_eq!(readable(&device, Direction::Sending).0, 100_000);
    }
    let device = filled(SMALL, 100_000);
    for at in layout::Superblock::AT {
        device.zero(at);
    }
    assert_eq!(open_disk(&device, 2).opened(), Opened::Blank);
}

#[test]
fn a_newer_format_is_left_untouched() {
    let device = filled(SMALL, 100_000);
    for at in layout::Superblock::AT {
        let mut block = [0; BLOCK];
        device.read(at, &mut block).expect("a device that works");
        block[8] += 1;
        device.write(at, &block).expect("a device that works");
    }
    device.record();
    let opened = Disk::open(device.clone(), OWNER, [1; 48]);
    assert_eq!(opened.err(), Some(OpenError::OtherVersion(2)));
    assert_eq!(device.count(), 0, "nothing was written");
}

#[test]
fn a_device_that_cannot_be_written_leaves_the_newest_in_memory() {
    for fault in [Fault::Write, Fault::Full] {
        let device = filled(2 * SMALL, 1_000_000);
        let mut log = open_log(&device, Direction::Receiving);
        device.fault.set(fault);
        for at in (1_000_000..16_000_000).step_by(100_000) {
            log.write(at, &bytes(1, at..at + 100_000));
            log.sync();
        }
        let statistics = log.statistics();
        assert_eq!(statistics.store_write_errors, 8, "then it gives up");
        assert_eq!(statistics.store_memory_only, 1);
        assert!(statistics.store_dropped_bytes > 1 << 20);
        let there = read_all(&mut log, |position, stored| {
            assert!(stored == bytes(1, position..position + stored.len() as u64));
        });
        // What fits into the four parts in memory.
        assert!(there.find(15_999_999).is_some() && there.total() > 3 << 20);
    }
}

#[test]
fn a_device_that_cannot_be_read_or_lies_gives_nothing_wrong() {
    for fault in [Fault::Read, Fault::Garbage] {
        let device = filled(SMALL, 2_500_000);
        let mut log = open_log(&device, Direction::Sending);
        device.fault.set(fault);
        assert_eq!(read_all(&mut log, |_, _| {}).total(), 0);
        let statistics = log.statistics();
        assert!(statistics.store_read_errors + statistics.store_bad_pages > 70);
        // It opens, too, and has nothing.
        if let Ok(disk) = Disk::open(device.clone(), OWNER, [1; 48]) {
            let log = DiskLog::open(&disk, Direction::Sending, 0, &mut |_| {});
            assert_eq!(log.present().total(), 0);
        }
    }
    // Writes that never happened: what has left the memory is found to be lost.
    let device = Memory::new(2 * SMALL);
    let mut log = open_log(&device, Direction::Sending);
    device.fault.set(Fault::Liar);
    for at in (0..7 << 20).step_by(1 << 18) {
        log.write(at, &bytes(0, at..at + (1 << 18)));
    }
    let there = read_all(&mut log, |position, stored| {
        assert!(stored == bytes(0, position..position + stored.len() as u64));
    });
    assert!(there.total() <= 4 << 20);
    assert!(log.statistics().store_bad_pages > 0);
}

#[test]
fn positions_that_no_honest_peer_sends_do_no_harm() {
    let device = filled(SMALL, 2_500_000);
    let mut log = open_log(&device, Direction::Receiving);
    for at in [u64::MAX - 10, u64::MAX >> 1, 1 << 43, (1 << 43) - 5, 0] {
        log.write(at, &[3; 100]);
        log.forget(at.saturating_sub(9)..at.saturating_add(9));
        log.bring(at, &mut RangeSet::default());
        log.truncate(at);
    }
    log.sync();
    open_log(&device, Direction::Receiving);
}

/// The newest segment may have nothing that can be trusted: it is not beyond the head at the next start, where it would have a slot that no other gets.
#[test]
fn a_newest_segment_of_which_nothing_is_left_takes_no_slot() {
    const MIB: u64 = 1 << 20;
    let device = filled(SMALL, 0);
    let mut log = open_log(&device, Direction::Receiving);
    log.write(10 * MIB, &bytes(0, 10 * MIB..11 * MIB));
    let _ = log.sync();
    log.forget(0..11 * MIB);
    let _ = log.sync();
    let mut log = open_log(&device, Direction::Receiving);
    assert_eq!(log.head(), 0);
    for lap in 0..8 {
        let at = log.head();
        log.write(at, &bytes(lap, at..at + MIB + 1));
        assert_eq!(log.statistics().store_dropped_bytes, 0, "lap {lap}");
    }
    let there = log.present().total();
    assert_eq!(there, log.capacity());
}

/// A peer may store a byte here and a byte there; the record of that must not grow with it.
#[test]
fn a_segment_in_crumbs_is_given_up() {
    let device = Memory::new(SMALL);
    let mut log = open_log(&device, Direction::Receiving);
    log.write(0, &bytes(0, 0..1 << 20));
    for at in (0..1u64 << 19).rev().map(|at| (1 << 20) + 2 * at) {
        log.write(at, &[byte(0, at)]);
        let most = log
            .segments
            .iter()
            .map(|(_, it)| it.ranges.iter().len())
            .max();
        assert!(most.unwrap_or(0) <= layout::MOST_ENTRIES / 2);
    }
    assert!(log.statistics().store_dropped_bytes > 500_000);
    // Holes in what was whole do the same.
    for at in (1..1 << 20).step_by(2) {
        log.forget(at..at + 1);
        let most = log
            .segments
            .iter()
            .map(|(_, it)| it.ranges.iter().len())
            .max();
        assert!(most.unwrap_or(0) <= layout::MOST_ENTRIES / 2);
    }
    // Whole segments are stored as ever.
    log.write(1 << 20, &bytes(0, 1 << 20..1 << 21));
    let _ = log.sync();
    let mut again = open_log(&device, Direction::Receiving);
    let there = read_all(&mut again, |position, stored| {
        assert!(stored == bytes(0, position..position + stored.len() as u64));
    });
    assert!(there.total() >= 1 << 20);
}
