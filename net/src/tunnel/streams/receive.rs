//! The receiving half of a stream: puts bytes in order, within a window that grows with the reader's speed.

use alloc::collections::VecDeque;
use core::time::Duration;

use crate::spare::Spares;
use crate::time::Instant;
use crate::tunnel::ranges::RangeSet;
use crate::tunnel::types::Violation;

/// Separate pieces of one stream held at once; even a line that loses every second packet needs fewer.
const MAX_PIECES: usize = 4096;
const KEEP_CAPACITY: usize = 16 << 10;

pub(super) struct ReceiveHalf {
    /// Bytes from offset `base` on, those not yet received being zero; all below it are read.
    buffer: VecDeque<u8>,
    base: u64,
    /// Received from `base` on.
    have: RangeSet,
    highest: u64,
    /// Where the stream ends, once known.
    size: Option<u64>,
    /// The window granted to the peer.
    limit: u64,
    /// Reset: nothing more is kept.
    aborted: bool,
    window: u64,
    epoch_at: Instant,
    epoch_base: u64,
}

/// What a frame brought.
pub(super) struct Arrival {
    /// Bytes by which the stream's highest offset grew: what it takes of the connection's window.
    pub(super) advanced: u64,
    /// Bytes that were not there before.
    pub(super) fresh: u64,
    /// There is something new to read, perhaps the end.
    pub(super) readable: bool,
}

impl ReceiveHalf {
    pub(super) fn new(window: u64) -> Self {
        ReceiveHalf {
            buffer: VecDeque::new(),
            base: 0,
            have: RangeSet::default(),
            highest: 0,
            size: None,
            limit: window,
            aborted: false,
            window,
            epoch_at: Instant::ZERO,
            epoch_base: 0,
        }
    }

    /// A larger window than a new stream has.
    pub(super) fn widen(&mut self, window: u64) {
        self.window = self.window.max(window);
        self.limit = self.limit.max(self.base + self.window);
    }

    /// Bytes that the peer may make us hold: those that it has sent and those that it still may send.
    pub(super) fn granted(&self) -> u64 {
        if self.aborted {
            return 0;
        }
        self.size.unwrap_or(self.limit).saturating_sub(self.base)
    }

    /// Bytes up to the highest received that are not read: what the stream takes of the connection's window.
    pub(super) fn unread(&self) -> u64 {
        self.highest - self.base
    }

    pub(super) fn size_is_known(&self) -> bool {
        self.size.is_some()
    }

    /// Everything up to the end has been read.
    pub(super) fn is_finished(&self) -> bool {
        self.size == Some(self.base)
    }

    fn check(&mut self, end: u64, finished: bool) -> Result<u64, Violation> {
        match self.size {
            Some(size) if end > size || (finished && end != size) => {
                return Err(Violation::FinalSize);
            }
            None if finished && end < self.highest => return Err(Violation::FinalSize),
            _ => {}
        }
        if end > self.limit {
            return Err(Violation::FlowControl);
        }
        if finished {
            self.size = Some(end);
        }
        let advanced = end.saturating_sub(self.highest);
        self.highest += advanced;
        Ok(advanced)
    }

    pub(super) fn receive(
        &mut self,
        offset: u64,
        data: &[u8],
        finished: bool,
        spares: &mut Spares<VecDeque<u8>>,
    ) -> Result<Arrival, Violation> {
        let end = offset + data.len() as u64;
        let size_was_known = self.size.is_some();
        let advanced = self.check(end, finished)?;
        let start = offset.max(self.base);
        let mut fresh = 0;
        let mut readable = false;
        if start < end {
            let in_order = self
                .have
                .first()
                .filter(|r| r.0 == self.base)
                .map_or(self.base, |r| r.1);
            fresh = self.have.insert(start, end);
            if self.have.count() > MAX_PIECES {
                return Err(Violation::Fragmentation);
            }
            if fresh > 0 {
                // Within `limit`, hence within the window, so that both fit.
                let at = usize::try_from(start - self.base).unwrap_or(usize::MAX);
                let data = usize::try_from(start - offset)
                    .ok()
                    .and_then(|s| data.get(s..))
                    .unwrap_or_default();
                spares.lend(&mut self.buffer);
                self.store(at, data);
            }
            readable = self
                .have
                .first()
                .is_some_and(|r| r.0 == self.base && r.1 > in_order);
        }
        readable |= finished && !size_was_known && (self.have.is_empty() || self.have.count() == 1);
        Ok(Arrival {
            advanced,
            fresh,
            readable,
        })
    }

    fn store(&mut self, at: usize, data: &[u8]) {
        let old = self.buffer.len();
        if at >= old {
            self.buffer.resize(at, 0);
            self.buffer.extend(data);
            return;
        }
        let overlap = data.len().min(old - at);
        let (inside, beyond) = data.split_at(overlap);
        let (front, back) = self.buffer.as_mut_slices();
        let split = front.len();
        let in_front = split.saturating_sub(at).min(inside.len());
        let (first, second) = inside.split_at(in_front);
        if let Some(target) = front.get_mut(at.min(split)..at.min(split) + first.len()) {
            target.copy_from_slice(first);
        }
        let from = at.saturating_sub(split);
        if let Some(target) = back.get_mut(from..from + second.len()) {
            target.copy_from_slice(second);
        }
        self.buffer.extend(beyond);
    }

    /// Bytes that [`read`](Self::read) can give now.
    pub(super) fn readable(&self) -> usize {
        let ready = self
            .have
            .first()
            .filter(|r| r.0 == self.base)
            .map_or(0, |r| r.1 - r.0);
        usize::try_from(ready)
            .unwrap_or(usize::MAX)
            .min(self.buffer.len())
    }

    /// Moves what is in order to the front of `out`; gives how much.
    pub(super) fn read(&mut self, out: &mut [u8], spares: &mut Spares<VecDeque<u8>>) -> usize {
        let length = self.readable().min(out.len());
        let (front, back) = self.buffer.as_slices();
        let in_front = length.min(front.len());
        let (first, second) = out.split_at_mut(in_front);
        if let (Some(source), Some(target)) = (front.get(..in_front), first.get_mut(..in_front)) {
            target.copy_from_slice(source);
        }
        let rest = length - in_front;
        if let (Some(source), Some(target)) = (back.get(..rest), second.get_mut(..rest)) {
            target.copy_from_slice(source);
        }
        self.buffer.drain(..length);
        self.base += length as u64;
        self.have.remove_below(self.base);
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP_CAPACITY {
            spares.take_back(&mut self.buffer);
        }
        length
    }

    /// Whether a larger window should be told: a quarter of it has been read.
    pub(super) fn wants_update(&self) -> bool {
        self.size.is_none() && self.base + self.window >= self.limit + self.window / 4
    }

    /// The window to tell now; at most `max` bytes beyond what is read. It doubles when the reader empties half of it
    /// within two round trips.
    pub(super) fn update(&mut self, now: Instant, rtt: Duration, max: u64) -> u64 {
        let read = self.base - self.epoch_base;
        if read >= self.window / 2 {
            if now.since(self.epoch_at) < rtt * 2 {
                self.window *= 2;
            }
            self.epoch_at = now;
            self.epoch_base = self.base;
        }
        self.window = self.window.min(max.max(super::MIN_STREAM_WINDOW));
        self.limit = self.limit.max(self.base + self.window);
        self.limit
    }

    /// Data of a stream that was reset here: counted, not kept.
    pub(super) fn discard(&mut self, end: u64, finished: bool) -> Result<u64, Violation> {
        let advanced = self.check(end, finished)?;
        self.base = self.highest;
        Ok(advanced)
    }

    /// The stream is reset: nothing is kept. Gives how many bytes of the connection's memory are free again.
    pub(super) fn abort(&mut self) -> u64 {
        let unread = self.unread();
        self.aborted = true;
        self.buffer = VecDeque::new();
        self.have.clear();
        self.base = self.highest;
        unread
    }
}
