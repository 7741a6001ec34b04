//! The store on a device that loses, tears, corrupts and refuses.

mod crash;
mod device;
mod ends;
mod frames;
mod trouble;

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;

use super::layout::PAGE;
use super::*;
use crate::dedup::Store;
use crate::dedup::ranges::RangeSet;
use device::Memory;

pub const OWNER: [u8; 32] = [7; 32];
/// Four slots for each direction: a window of 3 MiB.
pub const SMALL: u64 = Disk::LEAST_BYTES;

pub fn open_disk(device: &Rc<Memory>, seed: u8) -> Disk {
    Disk::open(device.clone(), OWNER, [seed; 48]).expect("a device that works")
}

pub fn open_log(device: &Rc<Memory>, direction: Direction) -> DiskLog {
    DiskLog::open(&open_disk(device, 1), direction, 0, &mut |_| {})
}

/// What a log has at a position in a life of its owner.
pub fn byte(life: u64, position: u64) -> u8 {
    let mixed = (position ^ (life << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

pub fn bytes(life: u64, range: Range<u64>) -> Vec<u8> {
    range.map(|position| byte(life, position)).collect()
}

/// Reads everything that a log says it has, page by page; `check` gets each position and byte. Returns what could be read.
pub fn read_all(log: &mut DiskLog, mut check: impl FnMut(u64, &[u8])) -> RangeSet {
    let (mut readable, mut lost) = <(RangeSet, RangeSet)>::default();
    for range in log.present().iter() {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / PAGE as u64 + 1) * PAGE as u64);
            // More pages than this one may be read, and found to be bad.
            log.bring(at, &mut lost);
            let mut rest = RangeSet::default();
            rest.insert(at..end);
            for range in lost.iter() {
                rest.remove(range.clone());
            }
            for part in rest.iter() {
                let stored = log.forward(part.start);
                let len = (part.end - part.start) as usize;
                assert!(stored.len() >= len, "{part:?} is said to be there");
                check(part.start, &stored[..len]);
                let back = log.backward(part.end);
                assert_eq!(back[back.len() - len..], stored[..len]);
                readable.insert(part.clone());
            }
            at = end;
        }
    }
    readable
}
