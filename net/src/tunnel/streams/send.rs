//! The sending half of a stream: bytes from written to acknowledged, and what of them has to go again.

use alloc::collections::VecDeque;

use crate::spare::Spares;
use crate::tunnel::ranges::RangeSet;

/// Buffers larger than this are given back when they are empty.
const KEEP_CAPACITY: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    /// More may be written.
    Open,
    /// The end is known, and has to be told (again).
    Queued,
    Sent,
    Acknowledged,
}

pub(super) struct SendHalf {
    /// Bytes from offset `base` on; all below it are acknowledged.
    buffer: VecDeque<u8>,
    base: u64,
    /// First byte that was never sent.
    next: u64,
    fin: Fin,
    /// The peer's window: no byte from here on may be sent.
    limit: u64,
    /// Acknowledged above `base`.
    acked: RangeSet,
    /// To be sent again.
    lost: RangeSet,
}

/// What to put into the next frame.
pub(super) struct Chunk {
    pub(super) offset: u64,
    /// Bytes from `offset` that can go, before what the packet and the connection's window allow.
    pub(super) available: usize,
    /// They were sent before.
    pub(super) again: bool,
}

impl SendHalf {
    pub(super) fn new(limit: u64) -> Self {
        SendHalf {
            buffer: VecDeque::new(),
            base: 0,
            next: 0,
            fin: Fin::Open,
            limit,
            acked: RangeSet::default(),
            lost: RangeSet::default(),
        }
    }

    fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// Bytes held: written and not acknowledged.
    pub(super) fn held(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes sent for the first time so far: the stream's size if it is reset now.
    pub(super) fn sent(&self) -> u64 {
        self.next
    }

    /// Bytes that may be written before what is written could not be sent for want of the peer's window.
    pub(super) fn window(&self) -> usize {
        clamp(self.limit.saturating_sub(self.end()))
    }

    pub(super) fn is_open(&self) -> bool {
        self.fin == Fin::Open
    }

    pub(super) fn write(&mut self, data: &[u8], spares: &mut Spares<VecDeque<u8>>) {
        spares.lend(&mut self.buffer);
        self.buffer.extend(data);
    }

    pub(super) fn finish(&mut self) {
        if self.fin == Fin::Open {
            self.fin = Fin::Queued;
        }
    }

    /// All bytes and the end are acknowledged.
    pub(super) fn is_done(&self) -> bool {
        self.fin == Fin::Acknowledged && self.buffer.is_empty()
    }

    /// True if the window grew.
    pub(super) fn raise_limit(&mut self, limit: u64) -> bool {
        let grown = limit > self.limit;
        self.limit = self.limit.max(limit);
        grown
    }

    pub(super) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Whether there is something that this stream's window allows to send.
    pub(super) fn is_sendable(&self) -> bool {
        self.chunk().is_some()
    }

    /// What goes next: lost bytes first.
    pub(super) fn chunk(&self) -> Option<Chunk> {
        if let Some((start, end)) = self.lost.first() {
            return Some(Chunk {
                offset: start,
                available: clamp(end - start),
                again: true,
            });
        }
        let new = self.end().min(self.limit).saturating_sub(self.next);
        (new > 0 || (self.fin == Fin::Queued && self.next == self.end())).then_some(Chunk {
            offset: self.next,
            available: clamp(new),
            again: false,
        })
    }

    /// Appends `length` bytes from `offset` to `out`.
    pub(super) fn copy(&self, offset: u64, length: usize, out: &mut alloc::vec::Vec<u8>) {
        let from = clamp(offset.saturating_sub(self.base)).min(self.buffer.len());
        let to = (from + length).min(self.buffer.len());
        let (front, back) = self.buffer.as_slices();
        let split = front.len();
        out.extend_from_slice(
            front
                .get(from.min(split)..to.min(split))
                .unwrap_or_default(),
        );
        out.extend_from_slice(
            back.get(from.saturating_sub(split)..to.saturating_sub(split))
                .unwrap_or_default(),
        );
    }

    /// Whether a frame that ends at `end` carries the end of the stream.
    pub(super) fn finishes_at(&self, end: u64) -> bool {
        self.fin != Fin::Open && end == self.end()
    }

    /// A chunk was sent.
    pub(super) fn note_sent(&mut self, offset: u64, length: usize, again: bool, finished: bool) {
        let end = offset + length as u64;
        if again {
            self.lost.remove(offset, end);
        } else {
            self.next = self.next.max(end);
        }
        if finished && self.fin == Fin::Queued {
            self.fin = Fin::Sent;
        }
    }

    /// A frame arrived; gives how many bytes need not be held any more.
    pub(super) fn acknowledged(
        &mut self,
        (start, length): (u64, u32),
        finished: bool,
        spares: &mut Spares<VecDeque<u8>>,
    ) -> usize {
        let end = start + u64::from(length);
        if finished {
            self.fin = Fin::Acknowledged;
        }
        self.lost.remove(start, end);
        self.acked.insert(start.max(self.base), end);
        let Some((low, high)) = self.acked.first() else {
            return 0;
        };
        if low > self.base {
            return 0;
        }
        let freed = clamp(high - self.base).min(self.buffer.len());
        self.buffer.drain(..freed);
        self.base = high;
        self.acked.drop_first();
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP_CAPACITY {
            spares.take_back(&mut self.buffer);
        }
        freed
    }

    /// A frame was lost, or is to be sent once more to find out.
    pub(super) fn lost(&mut self, start: u64, length: u32, finished: bool) {
        let end = start + u64::from(length);
        let start = start.max(self.base);
        if start < end {
            self.lost.insert(start, end);
            for (low, high) in self.acked.iter() {
                if low >= end {
                    break;
                }
                self.lost.remove(low, high);
            }
        }
        if finished && self.fin == Fin::Sent {
            self.fin = Fin::Queued;
        }
    }

    /// The stream is reset: nothing is kept; gives how many bytes were held.
    pub(super) fn abort(&mut self) -> usize {
        let held = self.buffer.len();
        self.base = self.next;
        self.buffer = VecDeque::new();
        self.lost.clear();
        self.acked.clear();
        held
    }
}

fn clamp(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
