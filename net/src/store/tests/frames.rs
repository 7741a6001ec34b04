//! What stays in memory, and how much is read for what.

use alloc::vec::Vec;

use super::device::{Fault, Memory};
use super::*;
use crate::dedup::tests::simulation::{Rng, World, noise};
use crate::dedup::{Encoder, Flush, Receiver, Sender};
use crate::store::layout::SEGMENT;

/// A window of 15 MiB in each direction, of which 4 MiB are in memory.
const SIZE: u64 = 4 * Disk::LEAST_BYTES;

fn write_segments(log: &mut DiskLog, count: usize) {
    for _ in 0..count {
        let at = log.head();
        log.write(at, &bytes(1, at..at + SEGMENT as u64));
    }
}

#[test]
fn a_segment_in_use_outlives_newer_ones() {
    let mut log = open_log(&Memory::new(SIZE), Direction::Sending);
    write_segments(&mut log, 2);
    for _ in 0..6 {
        assert!(!log.forward(100).is_empty(), "somebody uses the first one");
        write_segments(&mut log, 1);
    }
    assert!(!log.forward(100).is_empty());
    assert!(log.forward(SEGMENT as u64 + 100).is_empty());
}

#[test]
fn writing_allocates_nothing() {
    for direction in [Direction::Sending, Direction::Receiving] {
        let device = Memory::new(SIZE);
        let mut log = open_log(&device, direction);
        log.write(0, &bytes(1, 0..SEGMENT as u64 / 2));
        log.note(1000, 7);
        // What the device would keep does not count.
        device.fault.set(Fault::Liar);
        let before = log.statistics();
        let allocated = allocation_counter::measure(|| {
            log.sync();
        });
        let after = log.statistics();
        assert!(after.store_segment_writes > before.store_segment_writes);
        assert_eq!(allocated.count_total, 0, "{direction:?}");
    }
}

/// However many segments come, all that is known of them lies where it was taken at the start, and so do the bytes of those in memory.
#[test]
fn segments_that_come_and_go_allocate_nothing() {
    for direction in [Direction::Sending, Direction::Receiving] {
        let device = Memory::new(SIZE);
        let mut log = open_log(&device, direction);
        device.fault.set(Fault::Liar);
        let piece = bytes(1, 0..SEGMENT as u64);
        let allocated = allocation_counter::measure(|| {
            for number in 0..40 {
                log.write(number << SEGMENT.trailing_zeros(), &piece);
            }
        });
        assert!(log.tail() > 20 << 20, "the window has gone on");
        assert!(log.statistics().store_segment_writes > 30);
        assert_eq!(allocated.count_total, 0, "{direction:?}");
    }
}

/// What the box's budget counts for it (`image/src/dictionary.rs`).
#[test]
fn what_is_known_of_a_segment_takes_less_than_half_a_kibibyte() {
    let opened = |size: u64| {
        let (device, mut slots) = (Memory::new(size), 0);
        let disk = open_disk(&device, 1);
        let taken = allocation_counter::measure(|| {
            let log = DiskLog::open(&disk, Direction::Receiving, 0, &mut |_| {});
            slots = disk.slots(Direction::Receiving).count() as i64;
            core::mem::forget(log);
        });
        (taken.bytes_current, slots)
    };
    let (small, large) = (opened(64 * SIZE), opened(512 * SIZE));
    let each = (large.0 - small.0) / (large.1 - small.1);
    assert!((200..512).contains(&each), "{each} bytes");
}

#[test]
fn reading_ahead_grows_while_somebody_follows() {
    let mut log = open_log(&Memory::new(SIZE), Direction::Sending);
    write_segments(&mut log, 8);
    let mut lost = RangeSet::default();
    let mut pages_for = |page: usize| {
        let before = log.statistics().store_read_bytes;
        log.bring((page * PAGE) as u64, &mut lost);
        (log.statistics().store_read_bytes - before) as usize / PAGE
    };
    let forward: Vec<usize> = [0, 1, 2, 4, 8, 16].map(&mut pages_for).into();
    assert_eq!(forward, [1, 1, 2, 4, 8, 8]);
    // Towards the start of the next segment as well.
    let pages = SEGMENT / PAGE;
    let backward: Vec<usize> = [1, 2, 3, 5, 9]
        .map(|back| pages_for(2 * pages - back))
        .into();
    assert_eq!(backward, [1, 1, 2, 4, 8]);
    assert!(lost.is_empty());
}

/// Pages read for 512 pieces of 2 KiB of which so many bytes are alike those at some place on the device.
fn pages_read_where(alike: usize) -> u64 {
    let mut rng = Rng::new(5);
    let mut world = World::new(1 << 20, 1 << 20, 5);
    let disk = |owner| Disk::open(Memory::new(SIZE), [owner; 32], [owner; 48]).expect("it works");
    world.sender = Sender::on_disk(&disk(1), 0, [1; 32]);
    world.receiver = Receiver::on_disk(&disk(2), 0);
    world.reconnect();
    let old = noise(&mut rng, 12 << 20);
    world.transfer(&mut rng, old.clone());
    let mut new = Vec::new();
    for number in 0..512 {
        // From all of it but what is in memory still.
        let at = number * 1_234_577 % (8 << 20);
        new.extend_from_slice(&old[at..at + alike]);
        new.extend(noise(&mut rng, 2048 - alike));
    }
    let read = |world: &mut World| {
        let log = world.sender.place().disk().expect("it is on a disk");
        log.statistics().store_read_bytes
    };
    let before = read(&mut world);
    let mut encoder = Encoder::new(&mut world.sender);
    let mut out = Vec::new();
    for piece in new.chunks(64 * 1024) {
        encoder.encode(&mut world.sender, piece, Flush::No, &mut out);
    }
    (read(&mut world) - before) / PAGE as u64
}

#[test]
fn places_that_give_little_are_hardly_read_and_those_that_give_something_are() {
    let (little, something) = (pages_read_where(400), pages_read_where(1024));
    assert!((1..=64).contains(&little), "{little} pages");
    assert!(something > 200, "{something} pages");
}
