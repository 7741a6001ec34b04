//! Brings pages into memory, and lets none pass that does not have its checksum.

use super::BLOCK;
use super::layout::{
    Header, PAGE, PAGES, SEGMENT_BITS, checksum, description_at, page_at, page_range,
};
use super::log::DiskLog;
use crate::dedup::ranges::RangeSet;

/// Pages read at once, at most, when those before, or after, are in memory: as many as are, for the longer somebody has been
/// following, the longer it will go on.
const AHEAD: usize = 8;

impl DiskLog {
    /// Makes the page at `position` readable, with some of the pages around when they seem to be wanted next. Positions of it
    /// that are not there, or no longer, are added to `lost`.
    pub(super) fn fetch(&mut self, position: u64, lost: &mut RangeSet) {
        if position >= self.head || position < self.tail {
            return;
        }
        let number = position >> SEGMENT_BITS;
        let page = (position - (number << SEGMENT_BITS)) as usize / PAGE;
        let is_there = |log: &DiskLog, page: usize| {
            let segment = log.segments.get(number);
            segment.is_some_and(|it| it.ranges.touches(page_range(number, page)))
        };
        if !is_there(self, page) {
            lost.insert(page_range(number, page));
            return;
        }
        let before = self.run_before(number, page).min(AHEAD);
        let after = self.run_after(number, page).min(AHEAD);
        let index = self.take_frame(number);
        let valid = self.frames.get(index).map_or(0, |frame| frame.valid);
        if valid >> page & 1 == 1 {
            return;
        }
        let wanted = |at: usize| valid >> at & 1 == 0 && is_there(self, at);
        let (mut first, mut end) = (page, page + 1);
        if before > 0 {
            while end < PAGES && end - first < before && wanted(end) {
                end += 1;
            }
        } else {
            while first > 0 && end - first < after && wanted(first - 1) {
                first -= 1;
            }
        }
        if !self.load_pages(index, first, end) {
            // One of the others may be to blame.
            (first, end) = (page, page + 1);
            if !self.load_pages(index, first, end) {
                self.give_up_page(number, page, lost);
                return;
            }
        }
        for at in first..end {
            self.check(index, number, at, lost);
        }
    }

    /// Which pages of a segment are in memory.
    fn valid_pages(&self, number: u64) -> u32 {
        let frame = self.frame_of(number).and_then(|it| self.frames.get(it));
        frame.map_or(0, |frame| frame.valid)
    }

    /// Pages in memory right before this one, of one segment.
    fn run_before(&self, number: u64, page: usize) -> usize {
        let pages = match page {
            0 => number.checked_sub(1).map_or(0, |it| self.valid_pages(it)),
            page => self.valid_pages(number) << (PAGES - page),
        };
        pages.leading_ones() as usize
    }

    /// Pages in memory right after this one, of one segment.
    fn run_after(&self, number: u64, page: usize) -> usize {
        let pages = match page + 1 {
            PAGES => self.valid_pages(number + 1),
            next => self.valid_pages(number) >> next,
        };
        pages.trailing_ones() as usize
    }

    fn load_pages(&mut self, index: usize, first: usize, end: usize) -> bool {
        let Some(frame) = self.frames.get_mut(index) else {
            return false;
        };
        let Some(segment) = self.segments.get(frame.segment) else {
            return false;
        };
        let Some(bytes) = frame.bytes.get_mut(first * PAGE..end * PAGE) else {
            return false;
        };
        match self.device.read(page_at(segment.slot, first), bytes) {
            Ok(()) => {
                self.statistics.store_read_bytes += bytes.len() as u64;
                true
            }
            Err(_) => {
                self.statistics.store_read_errors += 1;
                false
            }
        }
    }

    /// A page has been read: it becomes readable if it is what was written.
    fn check(&mut self, index: usize, number: u64, page: usize, lost: &mut RangeSet) {
        let (Some(frame), Some(segment)) =
            (self.frames.get_mut(index), self.segments.get_mut(number))
        else {
            return;
        };
        let bytes = frame.bytes.get(page * PAGE..(page + 1) * PAGE);
        let Some((bytes, wanted)) = bytes.zip(segment.pages.get(page).copied()) else {
            return;
        };
        if checksum(&segment.ranges, page_range(number, page), bytes) == wanted {
            frame.valid |= 1 << page;
            return;
        }
        if self.recall(index, number, page, lost) {
            return;
        }
        self.statistics.store_bad_pages += 1;
        self.give_up_page(number, page, lost);
    }

    /// The page may be as an older description has it: then what was added later is lost, and no more.
    fn recall(&mut self, index: usize, number: u64, page: usize, lost: &mut RangeSet) -> bool {
        let (Some(frame), Some(segment)) =
            (self.frames.get_mut(index), self.segments.get_mut(number))
        else {
            return false;
        };
        let older = match segment.copies {
            [a, b] if a < b => 0,
            _ => 1,
        };
        let mut block = alloc::vec![0; BLOCK];
        let at = description_at(segment.slot, older);
        if self.device.read(at, &mut block).is_err() {
            return false;
        }
        let header = Header::parse(&block).filter(|header| {
            header.segment == number
                && (header.store, header.log) == (self.store, self.log)
                && header.direction == self.direction
        });
        let read = &mut self.statistics.store_read_bytes;
        let description =
            header.and_then(|header| header.body(&*self.device, segment.slot, older, read));
        let Some(description) = description else {
            return false;
        };
        let whole = page_range(number, page);
        let bytes = frame.bytes.get(page * PAGE..(page + 1) * PAGE);
        let sums = bytes.zip(description.header.pages.get(page));
        let fits = sums.is_some_and(|(bytes, sum)| {
            description.ranges.touches(whole.clone())
                && checksum(&description.ranges, whole.clone(), bytes) == *sum
        });
        if !fits {
            return false;
        }
        for range in segment.ranges.within(whole.clone()) {
            lost.insert(range);
        }
        segment.ranges.remove(whole.clone());
        for range in description.ranges.within(whole) {
            lost.remove(range.clone());
            segment.ranges.insert(range);
        }
        let sum = description.header.pages.get(page);
        if let Some((place, sum)) = segment.pages.get_mut(page).zip(sum) {
            *place = *sum;
        }
        frame.valid |= 1 << page;
        self.changed.insert(number);
        true
    }

    /// Nothing of a page is there any more.
    pub(super) fn give_up_page(&mut self, number: u64, page: usize, lost: &mut RangeSet) {
        let whole = page_range(number, page);
        if let Some(segment) = self.segments.get_mut(number) {
            segment.ranges.remove(whole.clone());
            self.changed.insert(number);
        }
        lost.insert(whole);
    }
}
