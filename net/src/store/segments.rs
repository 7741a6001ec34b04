//! What is known of the segments of a log, by their numbers. The table is made at the start, one entry for each slot: segments come and go without taking memory or
//! giving it back. It does not know which of them the log's window holds.

use alloc::vec::Vec;

use super::layout::PAGES;
use crate::dedup::ranges::RangeSet;

/// Ranges for which an entry has room from the start: a segment that is not whole mostly has one or two.
const RANGES: usize = 4;

/// A segment that has a slot.
pub(super) struct Segment {
    pub slot: u32,
    /// What is there. Pages that are not dirty have on the device what this says.
    pub ranges: RangeSet,
    /// Checksums of the pages as they are on the device.
    pub pages: [u32; PAGES],
    /// Generations of the two descriptions on the device; 0: none of this segment.
    pub copies: [u64; 2],
    /// The newest description that is known to be safe from a power cut; it is not written over.
    pub flushed: Option<usize>,
    /// There is an older description, too, which may be right where this one is not: see `DiskLog::verify`.
    pub is_doubtful: bool,
}

struct Entry {
    /// None for an entry that is free.
    number: Option<u64>,
    segment: Segment,
}

/// Segments by number. The number modulo the count of slots is the place: two that are as far apart as there are slots are never in one window.
pub(super) struct Segments(Vec<Entry>);

impl Segments {
    /// A table for as many segments as there are slots, at least one.
    pub fn new(slots: usize) -> Segments {
        let entry = || Entry {
            number: None,
            segment: Segment {
                slot: 0,
                ranges: RangeSet::with_room(RANGES),
                pages: [0; PAGES],
                copies: [0; 2],
                flushed: None,
                is_doubtful: false,
            },
        };
        Segments((0..slots.max(1)).map(|_| entry()).collect())
    }

    /// How many there is room for.
    pub fn room(&self) -> u64 {
        self.0.len() as u64
    }

    fn place(&self, number: u64) -> usize {
        (number % self.room()) as usize
    }

    /// What is known of a segment, if it has a slot.
    pub fn get(&self, number: u64) -> Option<&Segment> {
        let entry = self.0.get(self.place(number))?;
        (entry.number == Some(number)).then_some(&entry.segment)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Segment> {
        let place = self.place(number);
        let entry = self.0.get_mut(place)?;
        (entry.number == Some(number)).then_some(&mut entry.segment)
    }

    /// Whether it has a slot.
    pub fn contains(&self, number: u64) -> bool {
        self.get(number).is_some()
    }

    /// Gives a segment a slot. Of it nothing is there yet. Whatever was at its place is forgotten.
    pub fn insert(&mut self, number: u64, slot: u32) -> Option<&mut Segment> {
        let place = self.place(number);
        let before = self.0.get(place)?.number;
        before.and_then(|before| self.remove(before));
        let entry = self.0.get_mut(place)?;
        entry.number = Some(number);
        let segment = &mut entry.segment;
        let ranges = core::mem::take(&mut segment.ranges);
        *segment = Segment {
            slot,
            ranges,
            pages: [0; PAGES],
            copies: [0; 2],
            flushed: None,
            is_doubtful: false,
        };
        Some(segment)
    }

    /// Forgets a segment, and gives its slot back.
    pub fn remove(&mut self, number: u64) -> Option<u32> {
        let place = self.place(number);
        let entry = self.0.get_mut(place)?;
        if entry.number != Some(number) {
            return None;
        }
        entry.number = None;
        entry.segment.ranges.clear();
        entry.segment.ranges.shrink_to(RANGES);
        Some(entry.segment.slot)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Segment)> {
        let entries = self.0.iter();
        entries.filter_map(|entry| Some((entry.number?, &entry.segment)))
    }

    /// All of them, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Segment> {
        let entries = self.0.iter_mut();
        entries.filter_map(|entry| entry.number.map(|_| &mut entry.segment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_come_and_go() {
        let mut segments = Segments::new(3);
        for number in 10..13 {
            let segment = segments.insert(number, number as u32).unwrap();
            segment.ranges.insert(number << 20..(number << 20) + 5);
            segment.flushed = Some(1);
        }
        assert!(!segments.contains(13) && segments.get_mut(13).is_none());
        assert_eq!(segments.remove(13), None);
        assert_eq!(segments.remove(10), Some(10));
        assert_eq!(segments.remove(10), None);
        // Nothing of what was there before is left.
        let segment = segments.insert(13, 7).unwrap();
        assert!(segment.ranges.is_empty() && segment.flushed.is_none());
        let all: Vec<(u64, u32)> = segments.iter().map(|(at, it)| (at, it.slot)).collect();
        assert_eq!(all, [(12, 12), (13, 7), (11, 11)]);
        assert_eq!(segments.iter_mut().count(), 3);
    }

    #[test]
    fn only_a_segment_in_many_pieces_takes_memory_and_it_is_given_back() {
        let mut segments = Segments::new(2);
        let fill = |segments: &mut Segments, number: u64, pieces: u64| {
            let segment = segments.insert(number, 0).unwrap();
            for piece in 0..pieces {
                segment.ranges.insert(2 * piece..2 * piece + 1);
            }
        };
        let whole = allocation_counter::measure(|| {
            (0..100).for_each(|number| fill(&mut segments, number, 4))
        });
        assert_eq!(whole.count_total, 0);
        let crumbs = allocation_counter::measure(|| {
            (0..100).for_each(|number| fill(&mut segments, number, 100));
            (98..100).for_each(|number| assert!(segments.remove(number).is_some()));
        });
        assert!(crumbs.count_total > 0);
        assert_eq!(crumbs.bytes_current, 0);
    }
}
