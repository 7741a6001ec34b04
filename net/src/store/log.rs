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
use super::segments::Segments;
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
    pub(super) segments: Segments,
    pub(super) free: VecDeque<u32>,
    /// By the low bits of a segment's number: the index of its frame, and one more.
    pub(super) table: Vec<u32>,
    pub(super) frames: Vec<Frame>,
    /// Room for more of them, taken when the log is opened.
    spare: Vec<Vec<u8>>,
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
        let frames = (memory / SEGMENT).clamp(LEAST_FRAMES, slots.max(LEAST_FRAMES));
        let mut log = DiskLog {
            device: disk.device.clone(),
            direction,
            store: disk.store,
            log: disk.store,
            capacity: disk.capacity(),
            head: 0,
            tail: 0,
            segments: Segments::new(slots),
            free: VecDeque::with_capacity(slots),
            table: vec![0; slots.next_power_of_two()],
            frames: Vec::with_capacity(frames),
            spare: rooms(frames),
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
        let (mut some, mut emptied) = (Vec::new(), BTreeSet::new());
        for it in found {
            let number = it.header.segment;
            if emptied.contains(&number) {
                continue;
            }
            if let Some(segment) = self.segments.get_mut(number) {
                if segment.slot == it.slot
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
            // Nothing of it is to be trusted, whatever an older description says.
            let Some(last) = description.ranges.iter().next_back() else {
                emptied.insert(number);
                continue;
            };
            self.head = self.head.max(last.end);
            let base = number << SEGMENT_BITS;
            some.clear();
            some.extend(description.anchors.iter().map(|entry| {
                let last = base + (entry & (SEGMENT as u64 - 1));
                (last + 1, entry >> SEGMENT_BITS)
            }));
            anchors(&some);
            if Some(number) == highest {
                self.anchors.insert(number, description.anchors);
            }
            // One that lies there is too old for the window.
            if let Some(segment) = self.segments.insert(number, it.slot) {
                for range in description.ranges.iter() {
                    segment.ranges.insert(range.clone());
                }
                segment.pages = it.header.pages;
                if let Some(generation) = segment.copies.get_mut(it.copy) {
                    *generation = it.header.generation;
                }
                segment.flushed = Some(it.copy);
            }
        }
        self.tail = self.head.saturating_sub(self.capacity);
        let window = self.window();
        let all = self.segments.iter().map(|(number, _)| number);
        let outside: Vec<u64> = all.filter(|number| !window.contains(number)).collect();
        for number in outside {
            self.segments.remove(number);
        }
        let taken: BTreeSet<u32> = self.segments.iter().map(|(_, it)| it.slot).collect();
        let free = disk.slots(self.direction).filter(|it| !taken.contains(it));
        self.free.extend(free);
    }

    /// The name of the log that the segments belong to.
    pub fn log(&self) -> [u8; 16] {
        self.log
    }

    /// Counts since the start.
    pub fn statistics(&self) -> StoreStatistics {
        self.statistics
    }

    /// Bytes that were taken for segments in memory.
    pub fn memory(&self) -> usize {
        (self.frames.len() + self.spare.len()) * SEGMENT
    }

    /// Bytes of them that have not been needed yet.
    pub fn untouched_memory(&self) -> usize {
        self.spare.len() * SEGMENT
    }

    /// What is there.
    pub fn present(&self) -> RangeSet {
        let mut present = RangeSet::default();
        for number in self.window() {
            let segment = self.segments.get(number);
            for range in segment.iter().flat_map(|it| it.ranges.iter()) {
                present.insert(range.clone());
            }
        }
        present.trim_below(self.tail);
        present
    }

    /// The numbers of the segments that have something of the window: no more than there are slots.
    pub(super) fn window(&self) -> Range<u64> {
        self.tail >> SEGMENT_BITS..self.head.div_ceil(SEGMENT as u64)
    }

    /// Drops the segments that the window has left behind.
    pub(super) fn trim(&mut self) {
        let first = self.tail >> SEGMENT_BITS;
        self.tail = self.head.saturating_sub(self.capacity);
        let end = (self.tail >> SEGMENT_BITS).min(first + self.segments.room());
        for number in first..end {
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
        if let Some(slot) = self.segments.remove(number) {
            self.free.push_back(slot);
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
        if let Some(mut bytes) = self.spare.pop() {
            bytes.resize(SEGMENT, 0);
            self.frames.push(Frame {
                segment: NONE,
                bytes,
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

/// Room for so many segments, not touched yet. Where memory is in pieces it may be less, but for [`LEAST_FRAMES`].
fn rooms(frames: usize) -> Vec<Vec<u8>> {
    let mut rooms = Vec::with_capacity(frames);
    while rooms.len() < frames {
        let mut room = Vec::new();
        if rooms.len() < LEAST_FRAMES {
            room.reserve_exact(SEGMENT);
        } else if room.try_reserve_exact(SEGMENT).is_err() {
            break;
        }
        rooms.push(room);
    }
    rooms
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
        for number in self.window() {
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
