//! Buffers that nobody uses now. What one flow is done with, the next takes: so bytes that flow allocate nothing, and a flow
//! that stands still holds nothing.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// The most buffers that are kept.
const MOST: usize = 4;

/// Something that bytes are collected in.
pub trait Buffer: Default {
    /// Bytes of memory that it holds.
    fn capacity(&self) -> usize;
    /// Empties it; it holds as much as before.
    fn clear(&mut self);
}

impl Buffer for Vec<u8> {
    fn capacity(&self) -> usize {
        self.capacity()
    }

    fn clear(&mut self) {
        self.clear();
    }
}

impl Buffer for VecDeque<u8> {
    fn capacity(&self) -> usize {
        self.capacity()
    }

    fn clear(&mut self) {
        self.clear();
    }
}

/// A few buffers to be used again. The default keeps none.
#[derive(Default)]
pub struct Spares<B> {
    free: Vec<B>,
    /// Bytes that they hold together, and may hold.
    held: usize,
    most: usize,
}

impl<B: Buffer> Spares<B> {
    /// No buffers yet; those kept hold at most `most` bytes together.
    pub fn new(most: usize) -> Self {
        Spares {
            free: Vec::with_capacity(MOST),
            held: 0,
            most,
        }
    }

    /// Keeps buffers of no more than so many bytes together from now on, and of no more than before.
    pub fn keep(&mut self, most: usize) {
        self.most = self.most.min(most);
        while self.held > self.most
            && let Some(spare) = self.free.pop()
        {
            self.held -= spare.capacity();
        }
    }

    /// Gives `buffer` room, if it has none and there is some.
    pub fn lend(&mut self, buffer: &mut B) {
        if buffer.capacity() == 0
            && let Some(spare) = self.free.pop()
        {
            self.held -= spare.capacity();
            *buffer = spare;
        }
    }

    /// Takes the room of `buffer`, which is emptied.
    pub fn take_back(&mut self, buffer: &mut B) {
        let mut spare = core::mem::take(buffer);
        let held = self.held.saturating_add(spare.capacity());
        if self.free.len() < MOST && held <= self.most {
            spare.clear();
            self.held = held;
            self.free.push(spare);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_may_be_and_each_buffer_is_lent_once() {
        let mut spares = Spares::new(1000);
        for _ in 0..10 {
            let mut buffer = Vec::with_capacity(400);
            buffer.push(1);
            spares.take_back(&mut buffer);
            assert_eq!(buffer.capacity(), 0);
        }
        assert_eq!((spares.free.len(), spares.held), (2, 800));
        let (mut one, mut two, mut three) = (Vec::new(), Vec::new(), Vec::new());
        for buffer in [&mut one, &mut two, &mut three] {
            spares.lend(buffer);
            assert!(buffer.is_empty());
        }
        assert_eq!(
            [one.capacity(), two.capacity(), three.capacity()],
            [400, 400, 0]
        );
        assert_eq!(spares.held, 0);
        for buffer in [&mut one, &mut two] {
            spares.take_back(buffer);
        }
        spares.keep(500);
        assert_eq!((spares.free.len(), spares.held), (1, 400));
        spares.keep(5000);
        spares.take_back(&mut Vec::with_capacity(400));
        assert_eq!(spares.held, 400);
    }
}
