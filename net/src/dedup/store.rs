//! The log-structured store of one direction's bytes: a ring in memory, or a log on a block device. It knows positions
//! and bytes; who may refer to what is for the sender and the receiver to know.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use super::ranges::RangeSet;
use crate::store::{DiskLog, StoreStatistics, Ticket};

/// Bytes by log position. Of a store on a device, reading gives only what is in memory: [`Store::bring`] the rest first.
///
/// A position is in the store's window when `tail() <= position < head()`. Bytes in the window that were never written
/// read as anything or as nothing: callers keep their own record of what was.
pub trait Store {
    /// The most bytes the window can hold.
    fn capacity(&self) -> u64;
    /// One past the newest position written.
    fn head(&self) -> u64;
    /// The oldest position that is still held.
    fn tail(&self) -> u64 {
        self.head().saturating_sub(self.capacity())
    }
    /// The bytes from `position` on that lie in memory in one piece; empty outside the window.
    fn forward(&self, position: u64) -> &[u8];
    /// The bytes that end just before `position` and lie in memory in one piece; empty outside the window.
    fn backward(&self, position: u64) -> &[u8];
    /// How many bytes written from `position` on would lie in one piece.
    fn contiguous(&self, position: u64) -> u64;
    /// Writes `bytes` at `position`, moving the head (and with it the tail) when they end beyond it. What lies below the
    /// tail then is dropped.
    fn write(&mut self, position: u64, bytes: &[u8]);
    /// Forgets everything, and starts again with an empty window at `head`.
    fn clear(&mut self, head: u64);
    /// The log ends at `head` now, if that is before its head: forgets what lies beyond.
    fn truncate(&mut self, head: u64);
    /// Makes the byte at `position`, with some around it, readable. What turns out not to be there is added to `lost`.
    fn bring(&mut self, _position: u64, _lost: &mut RangeSet) {}
    /// The bytes at `range` are not to be trusted: a store that survives a restart must not bring them back.
    fn forget(&mut self, _range: Range<u64>) {}
    /// What there is, if the store knows better than its callers.
    fn held(&self) -> Option<RangeSet> {
        None
    }
    /// Whatever is written from now on belongs to another log.
    fn set_log(&mut self, _log: [u8; 16]) {}
    /// Notes that an anchor with `hash` (44 bits) ends before `position`, for a start with a warm index.
    fn anchor(&mut self, _position: u64, _hash: u64) {}
}

/// Memory that has been taken for dictionaries, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreMemory {
    /// The anchors' index.
    pub index: usize,
    /// The parts in use; all of them, if they are in memory only.
    pub parts: usize,
    /// What of the parts has not been needed yet.
    pub untouched: usize,
}

impl core::ops::Add for StoreMemory {
    type Output = StoreMemory;

    fn add(self, other: StoreMemory) -> StoreMemory {
        StoreMemory {
            index: self.index + other.index,
            parts: self.parts + other.parts,
            untouched: self.untouched + other.untouched,
        }
    }
}

/// Where a log lies.
pub enum Log {
    /// In memory, and gone with it.
    Memory(RingStore),
    /// On a block device.
    Disk(Box<DiskLog>),
}

impl Log {
    /// The log on a device, if it is on one.
    pub fn disk(&mut self) -> Option<&mut DiskLog> {
        match self {
            Log::Memory(_) => None,
            Log::Disk(log) => Some(log),
        }
    }

    /// What the log on a device did; all zeros in memory.
    pub fn statistics(&self) -> StoreStatistics {
        match self {
            Log::Memory(_) => StoreStatistics::default(),
            Log::Disk(log) => log.statistics(),
        }
    }

    /// What it has taken for what it holds, or for the parts of that in use.
    pub fn memory(&self) -> StoreMemory {
        let (parts, untouched) = match self {
            Log::Memory(ring) => (ring.capacity, ring.capacity - ring.bytes.len()),
            Log::Disk(log) => (log.memory(), log.untouched_memory()),
        };
        StoreMemory {
            index: 0,
            parts,
            untouched,
        }
    }

    /// Writes what is only in memory; see [`DiskLog::sync`].
    pub fn sync(&mut self) -> Option<Ticket> {
        self.disk().map(DiskLog::sync)
    }
}

/// Does the same to either.
macro_rules! either {
    ($log:expr, $store:ident => $what:expr) => {
        match $log {
            Log::Memory($store) => $what,
            Log::Disk($store) => $what,
        }
    };
}

impl Store for Log {
    fn capacity(&self) -> u64 {
        either!(self, store => store.capacity())
    }

    fn head(&self) -> u64 {
        either!(self, store => store.head())
    }

    fn tail(&self) -> u64 {
        either!(self, store => store.tail())
    }

    #[inline(always)]
    fn forward(&self, position: u64) -> &[u8] {
        either!(self, store => store.forward(position))
    }

    #[inline]
    fn backward(&self, position: u64) -> &[u8] {
        either!(self, store => store.backward(position))
    }

    fn contiguous(&self, position: u64) -> u64 {
        either!(self, store => store.contiguous(position))
    }

    fn write(&mut self, position: u64, bytes: &[u8]) {
        either!(self, store => store.write(position, bytes));
    }

    fn clear(&mut self, head: u64) {
        either!(self, store => store.clear(head));
    }

    fn truncate(&mut self, head: u64) {
        either!(self, store => store.truncate(head));
    }

    #[inline]
    fn bring(&mut self, position: u64, lost: &mut RangeSet) {
        either!(self, store => store.bring(position, lost));
    }

    fn forget(&mut self, range: Range<u64>) {
        either!(self, store => store.forget(range));
    }

    fn held(&self) -> Option<RangeSet> {
        either!(self, store => store.held())
    }

    fn set_log(&mut self, log: [u8; 16]) {
        either!(self, store => store.set_log(log));
    }

    fn anchor(&mut self, position: u64, hash: u64) {
        either!(self, store => store.anchor(position, hash));
    }
}

/// A store in memory: a ring of fixed size.
pub struct RingStore {
    /// As long as the highest place ever written. The rest is not touched, so that a large ring is made in no time.
    bytes: Vec<u8>,
    capacity: usize,
    head: u64,
    /// The position that lies at index 0 in the newest round.
    lap: u64,
}

impl RingStore {
    /// A ring of `capacity` bytes (at least one), allocated here and never again.
    pub fn new(capacity: usize) -> Self {
        RingStore {
            bytes: Vec::with_capacity(capacity.max(1)),
            capacity: capacity.max(1),
            head: 0,
            lap: 0,
        }
    }

    /// The index of `position`, if it is in the window.
    #[inline(always)]
    fn index(&self, position: u64) -> Option<usize> {
        if position >= self.head || position < self.tail() {
            return None;
        }
        let index = match position.checked_sub(self.lap) {
            Some(index) => index,
            None => position
                .checked_add(self.capacity())?
                .checked_sub(self.lap)?,
        };
        usize::try_from(index).ok()
    }

    fn move_head(&mut self, head: u64) {
        self.head = head;
        let capacity = self.capacity();
        if head - self.lap > capacity {
            // The head stays above index 0: it may be `capacity` itself, so that the last piece ends in one piece.
            self.lap += (head - self.lap - 1) / capacity * capacity;
        }
    }
}

impl Store for RingStore {
    fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    fn head(&self) -> u64 {
        self.head
    }

    #[inline(always)]
    fn forward(&self, position: u64) -> &[u8] {
        let Some(index) = self.index(position) else {
            return &[];
        };
        let until = usize::try_from(self.head - position).unwrap_or(usize::MAX);
        let end = index.saturating_add(until).min(self.bytes.len());
        self.bytes.get(index..end).unwrap_or(&[])
    }

    #[inline]
    fn backward(&self, position: u64) -> &[u8] {
        let Some(last) = position.checked_sub(1).and_then(|last| self.index(last)) else {
            return &[];
        };
        let since = usize::try_from(position - self.tail()).unwrap_or(usize::MAX);
        let end = last + 1;
        self.bytes
            .get(end.saturating_sub(since)..end)
            .unwrap_or(&[])
    }

    fn contiguous(&self, position: u64) -> u64 {
        let capacity = self.capacity();
        capacity - position % capacity
    }

    fn write(&mut self, position: u64, bytes: &[u8]) {
        let Some(end) = position.checked_add(bytes.len() as u64) else {
            return;
        };
        if end > self.head {
            self.move_head(end);
        }
        // Of more than a ringful only the newest part is kept.
        let skip = self.tail().saturating_sub(position).min(bytes.len() as u64);
        let (mut position, mut rest) = (position + skip, bytes.get(skip as usize..).unwrap_or(&[]));
        while !rest.is_empty() {
            let Some(index) = self.index(position) else {
                return;
            };
            let now = self.capacity.saturating_sub(index).min(rest.len());
            let (head, tail) = rest.split_at(now);
            if index == self.bytes.len() {
                self.bytes.extend_from_slice(head);
            } else {
                if self.bytes.len() < index + now {
                    self.bytes.resize(index + now, 0);
                }
                let Some(room) = self.bytes.get_mut(index..index + now) else {
                    return;
                };
                room.copy_from_slice(head);
            }
            position += now as u64;
            rest = tail;
        }
    }

    fn clear(&mut self, head: u64) {
        self.head = head;
        self.lap = head - head % self.capacity();
    }

    fn truncate(&mut self, head: u64) {
        if head < self.head {
            // What the tail now takes back in has been written over: the callers know that they do not have it.
            self.clear(head);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn byte(position: u64) -> u8 {
        (position ^ (position >> 8)).wrapping_mul(31) as u8
    }

    fn check(ring: &RingStore, low: u64) {
        for position in low.max(ring.tail()).saturating_sub(3)..ring.head() + 3 {
            let inside = (ring.tail()..ring.head()).contains(&position);
            let forward = ring.forward(position);
            if position >= low || !inside {
                assert_eq!(!forward.is_empty(), inside);
            }
            if position >= low {
                for (offset, have) in forward.iter().enumerate() {
                    assert_eq!(*have, byte(position + offset as u64));
                }
            }
            let backward = ring.backward(position);
            for (offset, have) in backward.iter().rev().enumerate() {
                let at = position - 1 - offset as u64;
                if at >= low {
                    assert_eq!(*have, byte(at));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_byte_of_the_window_is_found_both_ways(
            capacity in 1usize..50, start in 0u64..1000, lengths in prop::collection::vec(0u64..70, 1..20)
        ) {
            let mut ring = RingStore::new(capacity);
            ring.clear(start);
            let mut position = start;
            for len in lengths {
                let bytes: Vec<u8> = (position..position + len).map(byte).collect();
                ring.write(position, &bytes);
                position += len;
                prop_assert_eq!(ring.head(), position);
                check(&ring, start);
            }
        }

        #[test]
        fn writes_may_come_in_any_order(capacity in 8usize..60, order in prop::collection::vec(0u64..30, 1..30)) {
            let mut ring = RingStore::new(capacity);
            ring.clear(0);
            let mut present = crate::dedup::ranges::RangeSet::default();
            for slot in order {
                let bytes: Vec<u8> = (slot * 5..slot * 5 + 5).map(byte).collect();
                ring.write(slot * 5, &bytes);
                present.insert(slot * 5..slot * 5 + 5);
                present.trim_below(ring.tail());
                for range in present.iter() {
                    for position in range.clone() {
                        prop_assert_eq!(ring.forward(position).first().copied(), Some(byte(position)));
                        prop_assert_eq!(ring.backward(position + 1).last().copied(), Some(byte(position)));
                    }
                }
            }
        }
    }
}
