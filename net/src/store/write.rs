//! Takes bytes in and writes them out: a segment's pages first, then its description over the older of the two. No flush
//! is needed for what is read back to be right; a flush only says what a power cut cannot take any more.

use core::ops::Range;

use super::layout::{
    DESCRIPTION, Header, MOST_ENTRIES, PAGE, PAGES, SEGMENT, SEGMENT_BITS, checksum,
    description_at, page_at, page_range,
};
use super::log::{Direction, DiskLog};
use super::{BLOCK, DeviceError, Ticket};
use crate::dedup::ranges::RangeSet;

/// Ranges in a segment from which on it is given up: no honest peer makes so many, and a description must hold them.
const MOST_SEGMENT_RANGES: usize = MOST_ENTRIES / 2;

/// After so many failed writes one after the other nothing more is written.
const MOST_FAILURES: u32 = 8;

impl DiskLog {
    /// Takes bytes in at `position`; the head moves if they end beyond it.
    pub(super) fn put(&mut self, position: u64, bytes: &[u8]) {
        let Some(end) = position.checked_add(bytes.len() as u64) else {
            return;
        };
        // The last segment of all has no end that is a position.
        if end > (u64::MAX >> SEGMENT_BITS) << SEGMENT_BITS {
            return;
        }
        if end > self.head {
            let newest = self.head.saturating_sub(1) >> SEGMENT_BITS;
            self.head = end;
            self.trim();
            if (end - 1) >> SEGMENT_BITS != newest {
                self.seal();
            }
        }
        let skip = self.tail.saturating_sub(position).min(bytes.len() as u64);
        let (mut position, mut rest) = (position + skip, bytes.get(skip as usize..).unwrap_or(&[]));
        while !rest.is_empty() {
            let number = position >> SEGMENT_BITS;
            let offset = (position - (number << SEGMENT_BITS)) as usize;
            let (piece, after) = rest.split_at((SEGMENT - offset).min(rest.len()));
            if !self.put_piece(number, offset, piece) {
                return;
            }
            position += piece.len() as u64;
            rest = after;
        }
    }

    fn put_piece(&mut self, number: u64, offset: usize, piece: &[u8]) -> bool {
        if !self.segments.contains(number) {
            let Some(slot) = self.free.pop_front() else {
                self.statistics.store_dropped_bytes += piece.len() as u64;
                return false;
            };
            self.segments.insert(number, slot);
        }
        self.verify(number);
        let end = offset + piece.len();
        let pages = offset / PAGE..(end - 1) / PAGE + 1;
        let index = self.take_frame(number);
        for page in pages.clone() {
            self.make_writable(index, number, page, offset..end);
        }
        let (Some(frame), Some(segment)) =
            (self.frames.get_mut(index), self.segments.get_mut(number))
        else {
            return false;
        };
        let Some(room) = frame.bytes.get_mut(offset..end) else {
            return false;
        };
        room.copy_from_slice(piece);
        let base = number << SEGMENT_BITS;
        segment
            .ranges
            .insert(base + offset as u64..base + end as u64);
        for page in pages {
            frame.dirty |= 1 << page;
        }
        self.bound_ranges(number);
        true
    }

    /// A segment in crumbs costs more than it is worth: it is given up.
    fn bound_ranges(&mut self, number: u64) {
        let segment = self.segments.get(number);
        if segment.is_some_and(|it| it.ranges.iter().len() > MOST_SEGMENT_RANGES) {
            self.statistics.store_dropped_bytes += segment.map_or(0, |it| it.ranges.total());
            self.erase(number);
        }
    }

    /// Before the older of two descriptions is written over, every page is looked at: a power cut may have kept the newer one
    /// and lost its pages. This is done once for a segment after a start, and only if the segment is changed.
    fn verify(&mut self, number: u64) {
        let Some(segment) = self.segments.get_mut(number) else {
            return;
        };
        if !core::mem::take(&mut segment.is_doubtful) {
            return;
        }
        for page in 0..PAGES {
            let position = page_range(number, page).start;
            let position = position.max(self.tail);
            let is_there = self
                .segments
                .get(number)
                .is_some_and(|it| it.ranges.touches(page_range(number, page)));
            if is_there {
                self.fetch(position, &mut RangeSet::default());
            }
        }
    }

    /// Makes a page valid before the bytes at `written` (offsets in the segment) come into it.
    fn make_writable(&mut self, index: usize, number: u64, page: usize, written: Range<usize>) {
        let is_valid = |log: &DiskLog| {
            let frame = log.frames.get(index);
            frame.is_some_and(|frame| frame.valid >> page & 1 == 1)
        };
        if is_valid(self) {
            return;
        }
        let whole = page_range(number, page);
        let covered = written.start <= page * PAGE && (page + 1) * PAGE <= written.end;
        let segment = self.segments.get(number);
        if !covered && segment.is_some_and(|it| it.ranges.touches(whole.clone())) {
            self.fetch(whole.start.max(self.tail), &mut RangeSet::default());
            if is_valid(self) {
                return;
            }
        }
        if let Some(segment) = self.segments.get_mut(number) {
            segment.ranges.remove(whole);
        }
        if let Some(frame) = self.frames.get_mut(index) {
            frame.valid |= 1 << page;
            if let Some(bytes) = frame.bytes.get_mut(page * PAGE..(page + 1) * PAGE) {
                bytes.fill(0);
            }
        }
    }

    /// Notes an anchor of the sending side that ends before `position`, for the next start.
    pub(super) fn note(&mut self, position: u64, hash: u64) {
        let Some(last) = position.checked_sub(1) else {
            return;
        };
        let number = last >> SEGMENT_BITS;
        if self.segments.contains(number) {
            let anchors = self.anchors.entry(number).or_default();
            if anchors.len() < MOST_ENTRIES {
                anchors.push(hash << SEGMENT_BITS | (last & (SEGMENT as u64 - 1)));
            }
        }
    }

    /// Writes whatever lies before the newest segment.
    fn seal(&mut self) {
        let newest = self.head.saturating_sub(1) >> SEGMENT_BITS;
        for index in 0..self.frames.len() {
            let frame = self.frames.get(index);
            if frame.is_some_and(|frame| frame.dirty != 0 && frame.segment < newest) {
                self.write_out(index);
            }
        }
        // What was written whole needs its anchors no more.
        let dirty = |log: &DiskLog, number: u64| {
            let frame = log.frame_of(number).and_then(|it| log.frames.get(it));
            frame.is_some_and(|frame| frame.dirty != 0)
        };
        let done = self.anchors.range(..newest).map(|(number, _)| *number);
        let done: alloc::vec::Vec<u64> = done.filter(|number| !dirty(self, *number)).collect();
        for number in done {
            self.anchors.remove(&number);
        }
    }

    /// Writes what is dirty of a frame, and the segment's description.
    pub(super) fn write_out(&mut self, index: usize) {
        let Some(frame) = self.frames.get(index) else {
            return;
        };
        let (number, dirty) = (frame.segment, frame.dirty);
        if dirty == 0 || self.failures >= MOST_FAILURES {
            return;
        }
        let result = self
            .write_pages(index, number, dirty)
            .and_then(|()| self.write_description(number));
        if self.wrote(result)
            && let Some(frame) = self.frames.get_mut(index)
        {
            frame.dirty = 0;
        }
    }

    fn write_pages(&mut self, index: usize, number: u64, dirty: u32) -> Result<(), DeviceError> {
        let (Some(frame), Some(segment)) = (self.frames.get(index), self.segments.get_mut(number))
        else {
            return Ok(());
        };
        let mut page = 0;
        while page < PAGES {
            let run = (dirty >> page).trailing_ones() as usize;
            if run == 0 {
                page += 1;
                continue;
            }
            let end = page + run;
            let bytes = frame.bytes.get(page * PAGE..end * PAGE).unwrap_or(&[]);
            self.device.write(page_at(segment.slot, page), bytes)?;
            self.statistics.store_written_bytes += bytes.len() as u64;
            for (at, bytes) in (page..end).zip(bytes.chunks(PAGE)) {
                if let Some(sum) = segment.pages.get_mut(at) {
                    *sum = checksum(&segment.ranges, page_range(number, at), bytes);
                }
            }
            page = end;
        }
        Ok(())
    }

    fn write_description(&mut self, number: u64) -> Result<(), DeviceError> {
        let Some(segment) = self.segments.get_mut(number) else {
            return Ok(());
        };
        // Never over what a flush has made safe; else in turns.
        let copy = match (segment.flushed, segment.copies) {
            (Some(flushed), _) => 1 - flushed,
            (None, [a, b]) if a > b => 1,
            _ => 0,
        };
        self.generation += 1;
        let names = (self.store, self.log);
        let header = Header::new(
            self.generation,
            number,
            names,
            self.direction,
            segment.pages,
        );
        let anchors = self.anchors.get(&number).map_or(&[][..], |it| it);
        let bytes = &mut self.description;
        header.encode(&segment.ranges, anchors, bytes);
        debug_assert!(bytes.len() <= DESCRIPTION);
        // While it is being written neither the old one nor the new one is there.
        if let Some(generation) = segment.copies.get_mut(copy) {
            *generation = 0;
        }
        self.device
            .write(description_at(segment.slot, copy), bytes)?;
        if let Some(generation) = segment.copies.get_mut(copy) {
            *generation = self.generation;
        }
        self.changed.remove(&number);
        self.statistics.store_written_bytes += bytes.len() as u64;
        self.statistics.store_segment_writes += 1;
        Ok(())
    }

    fn wrote(&mut self, result: Result<(), DeviceError>) -> bool {
        let Err(error) = result else {
            self.failures = 0;
            return true;
        };
        self.statistics.store_write_errors += 1;
        self.failures += 1;
        if self.failures == 1 {
            log::warn!("the store cannot be written: {error}");
        }
        if self.failures == MOST_FAILURES {
            self.statistics.store_memory_only = 1;
            log::error!(
                "the store cannot be written: from now on the dictionary is in memory only"
            );
        }
        false
    }

    /// What could not be written is lost with the frame.
    pub(super) fn give_up_dirty(&mut self, index: usize) {
        let Some(frame) = self.frames.get(index).filter(|frame| frame.dirty != 0) else {
            return;
        };
        let (number, dirty) = (frame.segment, frame.dirty);
        for page in (0..PAGES).filter(|page| dirty >> page & 1 == 1) {
            self.statistics.store_dropped_bytes += PAGE as u64;
            self.give_up_page(number, page, &mut RangeSet::default());
        }
        let segment = self.segments.get(number);
        if segment.is_some_and(|segment| segment.ranges.is_empty()) {
            self.drop_segment(number);
        }
    }

    /// Writes everything that is only in memory. When the device has been flushed after that, hand the ticket to
    /// [`DiskLog::flushed`].
    pub fn sync(&mut self) -> Ticket {
        for index in 0..self.frames.len() {
            self.write_out(index);
        }
        // Descriptions of the sending side hold anchors that are not in memory any more: what is lost there is found lost again.
        if self.direction == Direction::Receiving {
            while let Some(number) = self.changed.pop_first() {
                if self.failures >= MOST_FAILURES {
                    break;
                }
                self.verify(number);
                let result = self.write_description(number);
                if !self.wrote(result) {
                    break;
                }
            }
        }
        Ticket(self.generation)
    }

    /// Whether [`DiskLog::sync`] has something to write.
    pub fn is_dirty(&self) -> bool {
        let changed = self.direction == Direction::Receiving && !self.changed.is_empty();
        self.failures < MOST_FAILURES && (changed || self.frames.iter().any(|it| it.dirty != 0))
    }

    /// The device has been flushed since `ticket` was given.
    pub fn flushed(&mut self, ticket: Ticket) {
        for segment in self.segments.iter_mut() {
            let safe = (0..2).filter(|copy| {
                let generation = segment.copies.get(*copy).copied().unwrap_or(0);
                generation != 0 && generation <= ticket.0
            });
            let newest = safe.max_by_key(|copy| segment.copies.get(*copy).copied());
            segment.flushed = newest.or(segment.flushed);
        }
    }

    /// The device has refused a flush: what was written since the last one may not be safe from a power cut.
    pub fn flush_failed(&mut self, error: DeviceError) {
        if self.statistics.store_write_errors == 0 {
            log::warn!("the store cannot be flushed: {error}");
        }
        self.statistics.store_write_errors += 1;
    }

    /// The log ends at `head` now: what lies beyond is of no use.
    pub(super) fn cut(&mut self, head: u64) {
        if head >= self.head {
            return;
        }
        let first = head.div_ceil(SEGMENT as u64);
        let window = self.window();
        for number in window.start.max(first)..window.end {
            self.erase(number);
        }
        self.lose(head..self.head);
        self.head = head;
        self.tail = head.saturating_sub(self.capacity);
    }

    /// Drops a segment for good, if it is there: it must not be found at the next start.
    fn erase(&mut self, number: u64) {
        if let Some(segment) = self.segments.get(number) {
            for (copy, generation) in segment.copies.into_iter().enumerate() {
                if generation != 0 && self.failures < MOST_FAILURES {
                    let at = description_at(segment.slot, copy);
                    if self.device.write(at, &[0; BLOCK]).is_err() {
                        self.statistics.store_write_errors += 1;
                    }
                }
            }
        }
        self.drop_segment(number);
    }

    /// A range is not to be trusted.
    pub(super) fn lose(&mut self, range: Range<u64>) {
        let range = range.start.max(self.tail)..range.end.min(self.head);
        if range.start >= range.end {
            return;
        }
        for number in range.start >> SEGMENT_BITS..range.end.div_ceil(SEGMENT as u64) {
            if !self.segments.contains(number) {
                continue;
            }
            self.verify(number);
            for page in 0..PAGES {
                let whole = page_range(number, page);
                let part = whole.start.max(range.start)..whole.end.min(range.end);
                if part.start >= part.end {
                    continue;
                }
                self.lose_part(number, page, part);
            }
            self.changed.insert(number);
            self.bound_ranges(number);
        }
    }

    fn lose_part(&mut self, number: u64, page: usize, part: Range<u64>) {
        let whole = page_range(number, page);
        let Some(segment) = self.segments.get_mut(number) else {
            return;
        };
        let mut rest = segment.ranges.clone();
        rest.remove(part.clone());
        if !rest.touches(whole.clone()) {
            segment.ranges.remove(part);
            return;
        }
        if !segment.ranges.touches(part.clone()) {
            return;
        }
        // The checksum must become that of the rest: for that the page has to be here.
        self.fetch(whole.start.max(self.tail), &mut RangeSet::default());
        let frame = self.frame_of(number);
        let frame = frame.and_then(|index| self.frames.get_mut(index));
        let frame = frame.filter(|frame| frame.valid >> page & 1 == 1);
        let Some(segment) = self.segments.get_mut(number) else {
            return;
        };
        match frame {
            Some(frame) => {
                frame.dirty |= 1 << page;
                segment.ranges.remove(part);
            }
            None => segment.ranges.remove(whole),
        }
    }
}
