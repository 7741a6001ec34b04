//! Frames that wait in line within one CPU, each with a tag. Allocates when it is made, never after.

use alloc::boxed::Box;

use crate::ring::MAX_FRAME;

struct Slot<T> {
    tag: T,
    length: usize,
    bytes: [u8; MAX_FRAME],
}

/// A line of frames.
pub struct FrameFifo<T> {
    slots: Box<[Slot<T>]>,
    head: usize,
    count: usize,
}

impl<T: Copy> FrameFifo<T> {
    /// A line with room for `slots` frames (at least one). `tag` is any tag.
    pub fn new(slots: usize, tag: T) -> Self {
        let empty = |_| Slot {
            tag,
            length: 0,
            bytes: [0; MAX_FRAME],
        };
        FrameFifo {
            slots: (0..slots.max(1)).map(empty).collect(),
            head: 0,
            count: 0,
        }
    }

    /// A line without room, which allocates nothing.
    pub fn none() -> Self {
        FrameFifo {
            slots: Box::default(),
            head: 0,
            count: 0,
        }
    }

    /// Frames that wait.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if none waits.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Appends a frame. False if the line is full or the frame longer than [`MAX_FRAME`].
    pub fn push(&mut self, tag: T, frame: &[u8]) -> bool {
        if self.count >= self.slots.len() {
            return false;
        }
        let place = (self.head + self.count) % self.slots.len();
        let Some(slot) = self.slots.get_mut(place) else {
            return false;
        };
        let Some(room) = slot.bytes.get_mut(..frame.len()) else {
            return false;
        };
        room.copy_from_slice(frame);
        slot.length = frame.len();
        slot.tag = tag;
        self.count += 1;
        true
    }

    /// Hands the oldest frame to `take`; it leaves the line if `take` says true. True if it left.
    pub fn pop_if(&mut self, take: impl FnOnce(T, &[u8]) -> bool) -> bool {
        if self.count == 0 {
            return false;
        }
        let Some(slot) = self.slots.get(self.head) else {
            return false;
        };
        let taken = take(slot.tag, slot.bytes.get(..slot.length).unwrap_or_default());
        if taken {
            self.head = (self.head + 1) % self.slots.len();
            self.count -= 1;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_round_the_end() {
        let mut fifo = FrameFifo::new(3, 0);
        let mut out = Vec::new();
        for number in 0..10_u8 {
            assert!(fifo.push(number, &[number; 5]));
            if number >= 2 {
                assert!(fifo.pop_if(|tag, frame| {
                    out.push((tag, frame.to_vec()));
                    true
                }));
            }
        }
        let expected: Vec<_> = (0..8).map(|number| (number, vec![number; 5])).collect();
        assert_eq!(out, expected);
        assert_eq!(fifo.len(), 2);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut fifo = FrameFifo::new(1, ());
        assert!(!fifo.push((), &[0; MAX_FRAME + 1]));
        assert!(fifo.push((), b"a"));
        assert!(!fifo.push((), b"b"));
    }

    #[test]
    fn a_frame_that_is_not_taken_stays() {
        let mut fifo = FrameFifo::new(2, ());
        fifo.push((), b"a");
        assert!(!fifo.pop_if(|(), _| false));
        assert!(fifo.pop_if(|(), frame| frame == b"a"));
        assert!(!fifo.pop_if(|(), _| true));
    }
}
