//! Frames that wait to leave. Their number is bounded, and so is what is allocated for them: all at the start, in a box; buffers are used again.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::switch::Ports;

/// The most frames that wait. One more is dropped, as a switch with full queues does.
const CAPACITY: usize = 1024;
/// Above so many frames, flows wait rather than add theirs, so that bridged frames find room.
const FLOWS_STOP_AT: usize = 512;
/// The length of the buffers made at the start: a frame of 1,500 bytes and its Ethernet header, with a VLAN tag or two. One for a longer frame grows.
const BUFFER_BYTES: usize = 1536;

/// Frames that wait to leave, in order.
#[derive(Default)]
pub struct Outbox {
    waiting: VecDeque<(Ports, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
    dropped: u64,
}

impl Outbox {
    /// An empty one that has all its buffers.
    pub fn with_buffers() -> Outbox {
        // One more than can wait: the one that is being sent, or that finds no room.
        const BUFFERS: usize = CAPACITY + 1;
        let buffer = |_| Vec::with_capacity(BUFFER_BYTES);
        Outbox {
            waiting: VecDeque::with_capacity(CAPACITY),
            spare: (0..BUFFERS).map(buffer).collect(),
            dropped: 0,
        }
    }

    /// Adds a frame of `len` zeroed bytes for `ports`, which `write` fills. Gives what `write` gives; the frame is dropped
    /// and counted when too many wait, and silently when it has no port to go to.
    pub fn push<R>(&mut self, ports: Ports, len: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.clear();
        frame.resize(len, 0);
        let result = write(&mut frame);
        if ports.is_empty() {
            self.spare.push(frame);
        } else if self.waiting.len() >= CAPACITY {
            self.dropped += 1;
            self.spare.push(frame);
        } else {
            self.waiting.push_back((ports, frame));
        }
        result
    }

    /// Adds a copy of `frame`.
    pub fn push_copy(&mut self, ports: Ports, frame: &[u8]) {
        if ports.is_empty() {
            return;
        }
        if self.waiting.len() >= CAPACITY {
            self.dropped += 1;
            return;
        }
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(frame);
        self.waiting.push_back((ports, copy));
    }

    /// Takes the oldest frame; hand it back with [`Outbox::recycle`].
    pub fn pop(&mut self) -> Option<(Ports, Vec<u8>)> {
        self.waiting.pop_front()
    }

    /// Takes back the buffer of a frame that has left.
    pub fn recycle(&mut self, frame: Vec<u8>) {
        self.spare.push(frame);
    }

    /// Whether a flow may add a frame.
    pub fn has_room_for_flows(&self) -> bool {
        self.waiting.len() < FLOWS_STOP_AT
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many frames were dropped for want of room.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::Port;

    #[test]
    fn keeps_the_order_and_drops_the_newest_when_full() {
        let mut outbox = Outbox::default();
        for number in 0..CAPACITY + 5 {
            outbox.push_copy(Ports::only(Port::Lan), &number.to_be_bytes());
        }
        assert_eq!(outbox.dropped(), 5);
        assert!(!outbox.has_room_for_flows());
        for number in 0..CAPACITY {
            let (_, frame) = outbox.pop().expect("a frame");
            assert_eq!(frame, number.to_be_bytes());
            outbox.recycle(frame);
        }
        assert!(outbox.pop().is_none());
    }

    #[test]
    fn a_used_buffer_comes_back_clean() {
        let mut outbox = Outbox::default();
        outbox.recycle(alloc::vec![7; 100]);
        outbox.push(Ports::only(Port::Wan), 60, |frame| {
            assert_eq!(frame, [0; 60])
        });
    }
}
