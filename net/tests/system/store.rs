//! Boxes whose dictionaries are on a disk: restarts, power cuts, a disk that is swapped.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use outpost_net::store::{BLOCK, BlockDevice, DeviceError};

use crate::host::{Close, Outcome, Script};
use crate::line::{LineConfig, Random};
use crate::world::{Site, World};

const FILE: usize = 2_000_000;

/// A disk in memory: blocks that were never written are zero.
#[derive(Default)]
struct Ram(RefCell<BTreeMap<u64, Vec<u8>>>);

impl BlockDevice for Ram {
    fn size(&self) -> u64 {
        64 << 20
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        for (at, piece) in (offset / BLOCK as u64..).zip(bytes.chunks_mut(BLOCK)) {
            match self.0.borrow().get(&at) {
                Some(block) => piece.copy_from_slice(block),
                None => piece.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        for (at, piece) in (offset / BLOCK as u64..).zip(bytes.chunks(BLOCK)) {
            self.0.borrow_mut().insert(at, piece.to_vec());
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Two boxes with new disks.
fn world(seed: u64) -> World {
    let mut world = World::new(seed, LineConfig::CLEAN);
    world.disks = [Some(Rc::new(Ram::default())), Some(Rc::new(Ram::default()))];
    restart(&mut world, [Site::Branch, Site::Core]);
    world
}

/// Cuts the power and switches on again.
fn restart<const N: usize>(world: &mut World, sites: [Site; N]) {
    for site in sites {
        world.power_off(site);
        world.power_on(site);
    }
}

/// The bytes that the line carries for a file that the client fetches.
fn fetch(world: &mut World, port: u16, file: &[u8]) -> u64 {
    world.wait_up();
    let before = world.line_bytes();
    let pair = world.connect(
        port,
        Script::send(b"GET".to_vec()).close(Close::AfterPeer),
        Script::send(file.to_vec()).close(Close::AfterSending),
    );
    let ended = world.finish(pair, Duration::from_secs(60));
    assert_eq!(ended, (Some(Outcome::Finished), Some(Outcome::Finished)));
    assert!(
        world.client_connection(pair).received == file,
        "WRONG BYTES"
    );
    world.line_bytes() - before
}

#[test]
fn what_was_carried_costs_next_to_nothing_after_both_were_restarted() {
    let mut world = world(30);
    let file = Random::new(30).bytes(FILE);
    let cold = fetch(&mut world, 80, &file);
    assert!(cold > FILE as u64, "{cold}");
    world.run_for(Duration::from_secs(5));
    restart(&mut world, [Site::Branch, Site::Core]);
    for site in [Site::Branch, Site::Core] {
        let store = world.statistics(site).store;
        assert!(store.store_warm_bytes >= FILE as u64, "{store:?}");
        assert_eq!(store.store_started_anew, 0);
    }
    let again = fetch(&mut world, 81, &file);
    assert!(again < FILE as u64 / 100, "{again} of {cold}");
    assert_eq!(world.statistics(Site::Branch).received.refetches, 0);
}

#[test]
fn what_was_not_written_before_a_power_cut_is_carried_again_and_right() {
    let mut world = world(31);
    let file = Random::new(31).bytes(FILE);
    fetch(&mut world, 80, &file);
    // Less than the pause after which everything is written.
    restart(&mut world, [Site::Branch]);
    let warm = world.statistics(Site::Branch).store.store_warm_bytes;
    assert!(warm < FILE as u64, "nothing was lost: {warm}");
    let again = fetch(&mut world, 81, &file);
    assert!(again < cold_at_most(FILE as u64), "{again}");
    let third = fetch(&mut world, 82, &file);
    assert!(third < FILE as u64 / 100, "{third}");
}

/// Noise, whole IP packets.
fn cold_at_most(bytes: u64) -> u64 {
    bytes + bytes / 10
}

#[test]
fn a_side_with_a_new_disk_is_filled_again() {
    let mut world = world(32);
    let file = Random::new(32).bytes(FILE);
    fetch(&mut world, 80, &file);
    world.run_for(Duration::from_secs(5));
    world.disks[0] = Some(Rc::new(Ram::default()));
    restart(&mut world, [Site::Branch]);
    assert_eq!(world.statistics(Site::Branch).store.store_started_anew, 1);
    let again = fetch(&mut world, 81, &file);
    assert!(
        again > FILE as u64 && again < cold_at_most(FILE as u64),
        "{again}"
    );
    let third = fetch(&mut world, 82, &file);
    assert!(third < FILE as u64 / 100, "{third}");
}
