//! One direction's log on a device: its window, which segments lie where, and which are in memory. Reading is in
//! `read.rs`, writing in `write.rs`.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Range;

use super::disk::{Disk, Opened};
use super::layout::{DESCRIPTION, Header, PAGE, PAGES, SEGMENT, SEGMENT_BITS, description_at};
use super::{Anchors, BLOCK, BlockDevice, StoreStatistics};
use crate::dedup::Store;
use crate::dedup::ranges::RangeSet;

/// The fewest segments in memory.
const LEAST_FRAMES: usize = 4;
/// A frame that holds no segment.
pub(super) const NONE: u64 = u64::MAX;

/// What takes the anchors of a log that is opened: position and hash of each.
pub type Refill<'a> = &'a mut dyn FnMut(&[(u64, u64)]);

/// Which of a store's two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What goes to the peer.
    Sending,
    /// What comes from it.
    Receiving,
}

impl Direction {
    pub(super) fn number(self) -> u8 {
        match self {
            Direction::Sending => 0,
            Direction::Receiving => 1,
        }
    }

    pub(super) fn from_number(number: u32) -> Option<Direction> {
        match number {
            0 => Some(Direction::Sending),
            1 => Some(Direction::Receiving),
            _ => None,
        }
    }
}

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
    /// There is an older description, too, which may be right where this one is not: see [`DiskLog::verify`].
    pub is_doubtful: bool,
}

/// A segment in memory, or some of its pages.
pub(super) struct Frame {
    pub segment: u64,
    pub bytes: Vec<u8>,
    /// Pages that are here.
    pub valid: u32,
    /// Pages that are newer here than on the device.
    pub dirty: u32,
    /// When it was used last.
    pub used: Cell<u64>,
}

/// One direction's log. It reads and writes the device when it is asked to, and never waits for anything else.
pub struct DiskLog {
    pub(super) device: Rc<dyn BlockDevice>,
    pub(super) direction: Direction,
    pub(super) store: [u8; 16],
    pub(super) log: [u8; 16],
    pub(super) capacity: u64,
    pub(super) head: u64,
    pub(super) tail: u64,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) free: VecDeque<u32>,
    /// By the low bits of a segment's number: the index of its frame, and one more.
    pub(super) table: Vec<u32>,
    pub(super) frames: Vec<Frame>,
    most_frames: usize,
    /// Segments whose description has changed.
    pub(super) changed: BTreeSet<u64>,
    /// Anchors of segments that are not wholly written.
    pub(super) anchors: Anchors,
    /// Where a description is put together.
    pub(super) description: Vec<u8>,
    /// Of the newest description.
    pub(super) generation: u64,
    pub(super) clock: u64,
    /// Writes that failed one after the other.
    pub(super) failures: u32,
    pub(super) statistics: StoreStatistics,
}

/// A header that was found, and where.
struct Candidate {
    header: Header,
    slot: u32,
    copy: usize,
}

impl DiskLog {
    /// Reads what `disk` has of one direction. `memory` is for segments in memory, in bytes; at least four are kept. The
    /// anchors of the log go to `anchors` as position and hash, oldest first.
    pub fn open(disk: &Disk, direction: Direction, memory: usize, anchors: Refill<'_>) -> DiskLog {
        let slots = disk.slots(direction).count().max(1);
        let mut log = DiskLog {
            device: disk.device.clone(),
            direction,
            store: disk.store,
            log: disk.store,
            capacity: disk.capacity(),
            head: 0,
            tail: 0,
            segments: BTreeMap::new(),
            free: VecDeque::new(),
            table: vec![0; slots.next_power_of_two()],
            frames: Vec::new(),
            most_frames: (memory / SEGMENT).clamp(LEAST_FRAMES, slots.max(LEAST_FRAMES)),
            changed: BTreeSet::new(),
            anchors: BTreeMap::new(),
            description: Vec::with_capacity(DESCRIPTION),
            generation: 0,
            clock: 0,
            failures: 0,
            statistics: StoreStatistics {
                store_capacity_bytes: disk.capacity(),
                store_started_anew: u64::from(disk.opened != Opened::Own),
                ..StoreStatistics::default()
            },
        };
        log.load(disk, anchors);
        log.statistics.store_warm_bytes = log.present().total();
        log
    }

    fn load(&mut self, disk: &Disk, anchors: Refill<'_>) {
        let mut found = Vec::new();
        let mut block = vec![0; BLOCK];
        for slot in disk.slots(self.direction) {
            for copy in 0..2 {
                match self.device.read(description_at(slot, copy), &mut block) {
                    Ok(()) => self.statistics.store_read_bytes += BLOCK as u64,
                    Err(_) => {
                        self.statistics.store_read_errors += 1;
                        continue;
                    }
                }
                let Some(header) = Header::parse(&block) else {
                    continue;
                };
                self.generation = self.generation.max(header.generation);
                if header.store == self.store && header.direction == self.direction {
                    found.push(Candidate { header, slot, copy });
                }
            }
        }
        let newest = found.iter().max_by_key(|it| it.header.generation);
        if let (Direction::Receiving, Some(newest)) = (self.direction, newest) {
            self.log = newest.header.log;
        }
        let log = self.log;
        found.retain(|it| it.header.log == log);
        // A slot counts for what was written to it last: the older description is of use only if it is of the same segment.
        let mut last: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for it in &found {
            let entry = last.entry(it.slot).or_insert((0, 0));
            *entry = (*entry).max((it.header.generation, it.header.segment));
        }
        found.retain(|it| last.get(&it.slot).map(|last| last.1) == Some(it.header.segment));
        found.sort_by_key(|it| (it.header.segment, u64::MAX - it.header.generation));
        let highest = found.last().map(|it| it.header.segment);
        let (mut taken, mut some) = (BTreeSet::new(), Vec::new());
        for it in found {
            let number = it.header.segment;
            if self.segments.contains_key(&number) {
                let segment = self.segments.get_mut(&number);
                if let Some(segment) = segment.filter(|segment| segment.slot == it.slot)
                    && let Some(generation) = segment.copies.get_mut(it.copy)
                {
                    *generation = it.header.generation;
                    segment.is_doubtful = true;
                }
                continue;
            }
            let read = &mut self.statistics.store_read_bytes;
            let Some(description) = it.header.body(&*self.device, it.slot, it.copy, read) else {
                self.statistics.store_bad_segments += 1;
                continue;
            };
            let base = number << SEGMENT_BITS;
            some.clear();
            some.extend(description.anchors.iter().map(|entry| {
                let last = base + (entry & (SEGMENT as u64 - 1));
                (last + 1, entry >> SEGMENT_BITS)
            }));
            anchors(&some);
            let mut copies = [0; 2];
            if let Some(generation) = copies.get_mut(it.copy) {
                *generation = it.header.generation;
            }
            if Some(number) == highest {
                self.anchors.insert(number, description.anchors);
            }
            taken.insert(it.slot);
            let end = description.ranges.iter().next_back().map_or(0, |it| it.end);
            self.head = self.head.max(end);
            self.segments.insert(
                number,
                Segment {
                    slot: it.slot,
                    ranges: description.ranges,
                    pages: it.header.pages,
                    copies,
                    flushed: Some(it.copy),
                    is_doubtful: false,
                },
            );
        }
        let free = disk.slots(self.direction).filter(|it| !taken.contains(it));
        self.free = free.collect();
        self.trim();
    }

    /// The name of the log that the segments belong to.
    pub fn log(&self) -> [u8; 16] {
        self.log
    }

    /// Counts since the start.
    pub fn statistics(&self) -> StoreStatistics {
        self.statistics
    }

    /// Bytes that segments in memory may take.
    pub fn memory(&self) -> usize {
        self.most_frames * SEGMENT
    }

    /// What is there.
    pub fn present(&self) -> RangeSet {
        let mut present = RangeSet::default();
        for segment in self.segments.values() {
            for range in segment.ranges.iter() {
                present.insert(range.clone());
            }
        }
        present.trim_below(self.tail);
        present
    }

    /// Drops the segments that the window has left behind.
    pub(super) fn trim(&mut self) {
        self.tail = self.head.saturating_sub(self.capacity);
        while let Some((&number, _)) = self.segments.first_key_value() {
            if (number + 1) << SEGMENT_BITS > self.tail {
                break;
            }
            self.drop_segment(number);
        }
    }

    /// Forgets a segment; its slot is free.
    pub(super) fn drop_segment(&mut self, number: u64) {
        if let Some(frame) = self.frame_of(number) {
            self.vacate(frame);
        }
        self.anchors.remove(&number);
        self.changed.remove(&number);
        if let Some(segment) = self.segments.remove(&number) {
            self.free.push_back(segment.slot);
        }
    }

    fn place(&self, number: u64) -> usize {
        (number as usize) & (self.table.len() - 1)
    }

    /// The frame in which a segment lies.
    #[inline(always)]
    pub(super) fn frame_of(&self, number: u64) -> Option<usize> {
        let frame = (*self.table.get(self.place(number))? as usize).checked_sub(1)?;
        (self.frames.get(frame)?.segment == number).then_some(frame)
    }

    /// The frame holds nothing any more.
    pub(super) fn vacate(&mut self, index: usize) {
        let Some(frame) = self.frames.get_mut(index) else {
            return;
        };
        let number = core::mem::replace(&mut frame.segment, NONE);
        (frame.valid, frame.dirty) = (0, 0);
        frame.used.set(0);
        let place = self.place(number);
        if let Some(entry) = self.table.get_mut(place)
            && *entry as usize == index + 1
        {
            *entry = 0;
        }
    }

    /// The frame for a segment: the one that it lies in, or that which was used longest ago, emptied.
    pub(super) fn take_frame(&mut self, number: u64) -> usize {
        self.clock += 1;
        let index = match self.frame_of(number) {
            Some(index) => index,
            None => {
                let index = self.empty_frame();
                let place = self.place(number);
                if let Some(entry) = self.table.get_mut(place) {
                    *entry = index as u32 + 1;
                }
                if let Some(frame) = self.frames.get_mut(index) {
                    frame.segment = number;
                }
                index
            }
        };
        if let Some(frame) = self.frames.get_mut(index) {
            frame.used.set(self.clock);
        }
        index
    }

    fn empty_frame(&mut self) -> usize {
        if self.frames.len() < self.most_frames {
            self.frames.push(Frame {
                segment: NONE,
                bytes: vec![0; SEGMENT],
                valid: 0,
                dirty: 0,
                used: Cell::new(0),
            });
            return self.frames.len() - 1;
        }
        // The newest segment stays: what is under way lies there.
        let newest = self.head.saturating_sub(1) >> SEGMENT_BITS;
        let oldest = self.frames.iter().enumerate();
        let oldest = oldest.filter(|(_, frame)| frame.segment != newest);
        let index = oldest
            .min_by_key(|(_, it)| it.used.get())
            .map_or(0, |(at, _)| at);
        self.write_out(index);
        self.give_up_dirty(index);
        self.vacate(index);
        index
    }

    #[inline(always)]
    fn offset(position: u64) -> usize {
        (position & (SEGMENT as u64 - 1)) as usize
    }
}

impl Store for DiskLog {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn head(&self) -> u64 {
        self.head
    }

    fn tail(&self) -> u64 {
        self.tail
    }

    #[inline]
    fn forward(&self, position: u64) -> &[u8] {
        if position >= self.head || position < self.tail {
            return &[];
        }
        let number = position >> SEGMENT_BITS;
        let Some(frame) = self.frame_of(number).and_then(|it| self.frames.get(it)) else {
            return &[];
        };
        frame.used.set(self.clock);
        let start = Self::offset(position);
        let page = start / PAGE;
        let run = (frame.valid >> page).trailing_ones() as usize;
        let until = (self.head - (number << SEGMENT_BITS)).min(SEGMENT as u64) as usize;
        let end = ((page + run) * PAGE).min(until);
        frame.bytes.get(start..end).unwrap_or(&[])
    }

    #[inline]
    fn backward(&self, position: u64) -> &[u8] {
        if position > self.head || position <= self.tail {
            return &[];
        }
        let last = position - 1;
        let number = last >> SEGMENT_BITS;
        let Some(frame) = self.frame_of(number).and_then(|it| self.frames.get(it)) else {
            return &[];
        };
        frame.used.set(self.clock);
        let end = Self::offset(last) + 1;
        let page = (end - 1) / PAGE;
        let run = (frame.valid << (PAGES - 1 - page)).leading_ones() as usize;
        let from = self.tail.saturating_sub(number << SEGMENT_BITS) as usize;
        let start = ((page + 1 - run.min(page + 1)) * PAGE).max(from);
        // A page that is not here has no run.
        frame.bytes.get(start..end).unwrap_or(&[])
    }

    fn contiguous(&self, position: u64) -> u64 {
        (SEGMENT - Self::offset(position)) as u64
    }

    fn write(&mut self, position: u64, bytes: &[u8]) {
        self.put(position, bytes);
    }

    fn clear(&mut self, head: u64) {
        let all: Vec<u64> = self.segments.keys().copied().collect();
        for number in all {
            self.drop_segment(number);
        }
        self.head = head;
        self.trim();
    }

    fn truncate(&mut self, head: u64) {
        self.cut(head);
    }

    fn bring(&mut self, position: u64, lost: &mut RangeSet) {
        self.fetch(position, lost);
    }

    fn forget(&mut self, range: Range<u64>) {
        self.lose(range);
    }

    fn held(&self) -> Option<RangeSet> {
        Some(self.present())
    }

    fn set_log(&mut self, log: [u8; 16]) {
        self.log = log;
    }

    fn anchor(&mut self, position: u64, hash: u64) {
        self.note(position, hash);
    }
}
