//! Sender and receiver on devices: restarts, power cuts, rot, and stores that disagree. Every byte that comes out is checked
//! by the simulated line; what is checked here is that it gets cheap again by itself.

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::device::{Cut, Fault, Memory, Step, cut};
use super::*;
use crate::dedup::tests::simulation::{self, Rng, World};
use crate::dedup::{Effort, Receiver, Sender};

/// A window of 15 MiB in each direction, of which 4 MiB are in memory.
const SIZE: u64 = 4 * Disk::LEAST_BYTES;
const SENDER: [u8; 32] = [1; 32];
const RECEIVER: [u8; 32] = [2; 32];

struct Ends {
    world: World,
    sender: Rc<Memory>,
    receiver: Rc<Memory>,
    starts: u8,
}

fn disk(device: &Rc<Memory>, owner: [u8; 32], seed: u8) -> Disk {
    Disk::open(device.clone(), owner, [seed; 48]).expect("a device that works")
}

impl Ends {
    fn new(seed: u64) -> Ends {
        let mut ends = Ends {
            world: World::new(1 << 20, 1 << 20, seed),
            sender: Memory::new(SIZE),
            receiver: Memory::new(SIZE),
            // Names and keys differ from one pair to the next.
            starts: seed as u8 * 16,
        };
        ends.restart_sender();
        ends.restart_receiver();
        ends
    }

    fn restart_sender(&mut self) {
        self.starts += 1;
        let disk = disk(&self.sender, SENDER, self.starts);
        self.world.sender = Sender::on_disk(&disk, 0, [self.starts; 32]);
        self.world.reconnect();
    }

    fn restart_receiver(&mut self) {
        self.starts += 1;
        let disk = disk(&self.receiver, RECEIVER, self.starts);
        self.world.receiver = Receiver::on_disk(&disk, 0);
        self.world.reconnect();
    }

    fn sync(&mut self) {
        let ticket = self.world.sender.place().sync();
        if let (Some(log), Some(ticket)) = (self.world.sender.place().disk(), ticket) {
            self.sender.flush().expect("a device that works");
            log.flushed(ticket);
        }
        let ticket = self.world.receiver.place().sync();
        if let (Some(log), Some(ticket)) = (self.world.receiver.place().disk(), ticket) {
            self.receiver.flush().expect("a device that works");
            log.flushed(ticket);
        }
    }

    /// Sends `bytes`, after greetings have been exchanged, and returns the bytes on the line: blocks and what was fetched again.
    fn transfer(&mut self, rng: &mut Rng, bytes: &[u8]) -> u64 {
        self.world.finish(rng);
        let before = self.world.sender.statistics().refetched_bytes;
        let wire = self.world.transfer(rng, bytes.to_vec());
        wire + self.world.sender.statistics().refetched_bytes - before
    }

    /// After at most one pass, the same bytes cost next to nothing.
    fn converges(&mut self, rng: &mut Rng, bytes: &[u8], what: &str) -> u64 {
        let first = self.transfer(rng, bytes);
        assert!(
            first < bytes.len() as u64 * 11 / 10,
            "{what}: {first} bytes at first"
        );
        let second = self.transfer(rng, bytes);
        assert!(
            second * 1000 <= bytes.len() as u64,
            "{what}: {second} bytes for the second time"
        );
        first
    }
}

fn cheap(wire: u64, bytes: &[u8]) -> bool {
    wire * 1000 <= bytes.len() as u64
}

#[test]
fn both_ends_are_warm_after_a_restart() {
    let (mut rng, mut ends) = (Rng::new(1), Ends::new(1));
    let one = simulation::noise(&mut rng, 5 << 20);
    let two = simulation::text(&mut rng, 3 << 20);
    ends.transfer(&mut rng, &one);
    ends.transfer(&mut rng, &two);
    for round in 0..3 {
        ends.sync();
        ends.restart_sender();
        ends.restart_receiver();
        for bytes in [&one, &two] {
            let wire = ends.transfer(&mut rng, bytes);
            assert!(cheap(wire, bytes), "{wire} bytes in round {round}");
        }
    }
    let shifted = [&b"!"[..], &one].concat();
    let wire = ends.transfer(&mut rng, &shifted);
    assert!(cheap(wire, &shifted));
    assert_eq!(ends.world.sender.statistics().refetches, 0);
    assert!(ends.world.sender.store_statistics().store_read_bytes > 4 << 20);
    assert!(ends.world.receiver.store_statistics().store_read_bytes > 4 << 20);
}

#[test]
fn an_edited_version_is_as_cheap_after_a_restart() {
    let (mut rng, mut ends) = (Rng::new(2), Ends::new(2));
    let one = simulation::text(&mut rng, 6 << 20);
    ends.transfer(&mut rng, &one);
    ends.sync();
    ends.restart_sender();
    ends.restart_receiver();
    let two = simulation::edited(&mut rng, one, 512);
    let wire = ends.transfer(&mut rng, &two);
    assert!(wire < 512 * 70, "{wire} bytes");
}

#[test]
fn with_less_effort_edits_cost_as_little_on_a_device_as_in_memory() {
    let version = |seed| {
        let mut rng = Rng::new(seed);
        let one = simulation::text(&mut rng, 3 << 20);
        let mut two = one.clone();
        // So near to each other that most places in between have no anchor.
        for at in (0..two.len()).step_by(100) {
            two[at] ^= 0x80;
        }
        (rng, one, two)
    };
    let (mut rng, one, two) = version(14);
    let mut ends = Ends::new(14);
    let disk = disk(&ends.sender, SENDER, 14);
    ends.world.sender = Sender::on_disk(&disk, 16 << 20, [14; 32]);
    ends.world.sender.set_effort(Effort::Fast);
    ends.world.reconnect();
    ends.transfer(&mut rng, &one);
    let on_device = ends.transfer(&mut rng, &two);
    let (mut rng, one, two) = version(14);
    let mut world = World::new(16 << 20, 16 << 20, 14);
    world.sender.set_effort(Effort::Fast);
    world.transfer(&mut rng, one);
    let in_memory = world.transfer(&mut rng, two);
    assert!(
        on_device * 10 <= in_memory * 12,
        "{on_device} bytes, {in_memory} in memory"
    );
}

#[test]
fn one_end_wiped() {
    let (mut rng, mut ends) = (Rng::new(3), Ends::new(3));
    let bytes = simulation::noise(&mut rng, 4 << 20);
    ends.transfer(&mut rng, &bytes);
    ends.sync();
    ends.receiver = Memory::new(SIZE);
    ends.restart_receiver();
    ends.converges(&mut rng, &bytes, "receiver wiped");
    assert_eq!(ends.world.sender.statistics().refetches, 0);
    ends.sender = Memory::new(SIZE);
    ends.restart_sender();
    ends.converges(&mut rng, &bytes, "sender wiped");
    assert_eq!(ends.world.receiver.statistics().cleared, 1);
}

#[test]
fn a_sender_rolled_back_keeps_what_both_have() {
    let (mut rng, mut ends) = (Rng::new(4), Ends::new(4));
    let old = simulation::noise(&mut rng, 3 << 20);
    let new = simulation::noise(&mut rng, 3 << 20);
    ends.transfer(&mut rng, &old);
    ends.sync();
    let backup = ends.sender.copy();
    ends.transfer(&mut rng, &new);
    ends.sync();
    ends.sender = backup.copy();
    ends.restart_sender();
    let wire = ends.transfer(&mut rng, &old);
    assert!(cheap(wire, &old), "{wire} bytes");
    let statistics = ends.world.receiver.statistics();
    assert_eq!((statistics.cut_back, statistics.cleared), (1, 0));
    ends.converges(&mut rng, &new, "rolled back");
    assert_eq!(ends.world.receiver.statistics().mismatches, 0);
    // And what the receiver dropped does not come back with a restart.
    ends.sync();
    ends.restart_receiver();
    for bytes in [&old, &new] {
        assert!(cheap(ends.transfer(&mut rng, bytes), bytes));
    }
    assert_eq!(ends.world.receiver.statistics().mismatches, 0);
}

#[test]
fn a_receiver_rolled_back_fetches_what_it_lacks() {
    let (mut rng, mut ends) = (Rng::new(5), Ends::new(5));
    let old = simulation::noise(&mut rng, 3 << 20);
    let new = simulation::noise(&mut rng, 3 << 20);
    ends.transfer(&mut rng, &old);
    ends.sync();
    let backup = ends.receiver.copy();
    ends.transfer(&mut rng, &new);
    ends.receiver = backup;
    ends.restart_receiver();
    assert!(cheap(ends.transfer(&mut rng, &old), &old));
    ends.converges(&mut rng, &new, "receiver rolled back");
}

#[test]
fn both_rolled_back_to_different_pasts() {
    let (mut rng, mut ends) = (Rng::new(6), Ends::new(6));
    let old = simulation::noise(&mut rng, 2 << 20);
    ends.transfer(&mut rng, &old);
    ends.sync();
    let backup = ends.sender.copy();
    let lost = simulation::noise(&mut rng, 3 << 20);
    ends.transfer(&mut rng, &lost);
    ends.sync();
    let receiver = ends.receiver.copy();
    // The sender goes back, and uses the same positions for something else…
    ends.sender = backup;
    ends.restart_sender();
    let new = simulation::noise(&mut rng, 4 << 20);
    ends.transfer(&mut rng, &new);
    ends.sync();
    // …and then the receiver goes back to when it had the other bytes there.
    ends.receiver = receiver;
    ends.restart_receiver();
    let first = ends.transfer(&mut rng, &new);
    assert!(ends.world.receiver.statistics().mismatches > 0);
    assert!(first < 5 << 20, "{first} bytes at first");
    let second = ends.transfer(&mut rng, &new);
    assert!(cheap(second, &new), "{second} bytes for the second time");
    assert!(cheap(ends.transfer(&mut rng, &old), &old));
    // What was mended stays so.
    ends.sync();
    ends.restart_receiver();
    let mismatches = ends.world.receiver.statistics().mismatches;
    assert!(cheap(ends.transfer(&mut rng, &new), &new));
    assert_eq!(ends.world.receiver.statistics().mismatches, mismatches);
}

#[test]
fn a_peer_swapped_for_another() {
    let (mut rng, mut ends) = (Rng::new(7), Ends::new(7));
    let bytes = simulation::noise(&mut rng, 3 << 20);
    ends.transfer(&mut rng, &bytes);
    ends.sync();
    // The receiver gets the store of a receiver of somebody else, in the same file.
    let mut other = Ends::new(8);
    other.transfer(&mut rng, &bytes);
    other.sync();
    ends.receiver = other.receiver.copy();
    ends.restart_receiver();
    ends.converges(&mut rng, &bytes, "receiver swapped");
    assert_eq!(ends.world.receiver.statistics().cleared, 1);
    // The store of the other direction is none of ours.
    ends.sync();
    ends.receiver = ends.sender.copy();
    ends.restart_receiver();
    let store = ends.world.receiver.store_statistics();
    assert_eq!((store.store_started_anew, store.store_warm_bytes), (1, 0));
    ends.converges(&mut rng, &bytes, "store of another owner");
}

#[test]
fn rot_at_either_end_is_mended_by_use() {
    let (mut rng, mut ends) = (Rng::new(9), Ends::new(9));
    let bytes = simulation::noise(&mut rng, 6 << 20);
    ends.transfer(&mut rng, &bytes);
    for round in 0..8 {
        ends.sync();
        for _ in 0..6 {
            ends.receiver.rot(&mut rng);
            if round % 2 == 1 {
                ends.sender.rot(&mut rng);
            }
        }
        ends.restart_sender();
        ends.restart_receiver();
        // A rotten description at the sender takes a segment, and with it what is around.
        let first = ends.transfer(&mut rng, &bytes);
        assert!(first < 7 << 20, "{first} bytes in round {round}");
        ends.transfer(&mut rng, &bytes);
        let third = ends.transfer(&mut rng, &bytes);
        assert!(cheap(third, &bytes), "{third} bytes in round {round}");
    }
}

#[test]
fn a_store_of_another_size() {
    let (mut rng, mut ends) = (Rng::new(10), Ends::new(10));
    let bytes = simulation::noise(&mut rng, 2 << 20);
    ends.transfer(&mut rng, &bytes);
    for size in [SIZE / 2, 2 * SIZE, SIZE / 3] {
        ends.sync();
        ends.receiver = ends.receiver.resized(size);
        ends.restart_receiver();
        ends.converges(&mut rng, &bytes, "receiver resized");
        ends.sync();
        ends.sender = ends.sender.resized(size);
        ends.restart_sender();
        ends.converges(&mut rng, &bytes, "sender resized");
    }
}

#[test]
fn trouble_with_a_device_stops_no_flow() {
    for fault in [
        Fault::Read,
        Fault::Write,
        Fault::Full,
        Fault::Liar,
        Fault::Garbage,
    ] {
        for receiver in [true, false] {
            let (mut rng, mut ends) = (Rng::new(11), Ends::new(11));
            let old = simulation::noise(&mut rng, 6 << 20);
            ends.transfer(&mut rng, &old);
            let device = if receiver {
                &ends.receiver
            } else {
                &ends.sender
            };
            device.fault.set(fault);
            for _ in 0..2 {
                let new = simulation::noise(&mut rng, 5 << 20);
                let wire = ends.transfer(&mut rng, &new);
                assert!(wire < 6 << 20);
                let wire = ends.transfer(&mut rng, &old);
                assert!(wire < 13 << 20);
            }
            let mut store = ends.world.sender.store_statistics();
            store += ends.world.receiver.store_statistics();
            let said = store.store_read_errors + store.store_write_errors + store.store_bad_pages;
            assert!(said > 0, "nothing was counted");
        }
    }
}

#[test]
fn power_cuts_at_one_end_leave_the_other_as_it_is() {
    let mut rng = Rng::new(12);
    let mut ends = Ends::new(12);
    let mut contents: Vec<Vec<u8>> = Vec::new();
    for round in 0..24 {
        let before = [ends.sender.copy(), ends.receiver.copy()];
        ends.sender.record();
        ends.receiver.record();
        for _ in 0..3 {
            let bytes = match contents.last() {
                Some(last) if rng.below(2) == 0 => simulation::edited(&mut rng, last.clone(), 9),
                _ => simulation::noise(&mut rng, 1_500_000),
            };
            ends.transfer(&mut rng, &bytes);
            contents.push(bytes);
            if rng.below(2) == 0 {
                ends.sync();
            }
        }
        let how = [Cut::Lost, Cut::Kept, Cut::Torn, Cut::Reordered][rng.below(4)];
        let is_sender = round % 2 == 0;
        let (device, before) = match is_sender {
            true => (&mut ends.sender, &before[0]),
            false => (&mut ends.receiver, &before[1]),
        };
        let steps: Vec<Step> = device.steps();
        let at = rng.below(steps.len() + 1);
        *device = cut(before, &steps, at, how, &mut rng);
        match is_sender {
            true => ends.restart_sender(),
            false => ends.restart_receiver(),
        }
        let last = contents.last().cloned().unwrap_or_default();
        ends.converges(
            &mut rng,
            &last,
            &alloc::format!("round {round}, {how:?} at {at}"),
        );
        for bytes in contents.iter().rev().take(3) {
            ends.transfer(&mut rng, bytes);
        }
    }
}
