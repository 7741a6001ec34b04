//! The log ring: the last lines of text, for readers that each keep their own place. It formats nothing and writes nowhere.

use alloc::boxed::Box;
use alloc::vec;

/// A ring of bytes that forgets the oldest. Readers hold a [`Cursor`]; one that fell behind is told how much it missed.
pub struct LineRing {
    bytes: Box<[u8]>,
    /// Bytes ever written; the newest is at `written - 1`.
    written: u64,
}

/// A reader's place in a [`LineRing`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u64);

impl LineRing {
    /// A ring that remembers the last `capacity` bytes (at least one).
    pub fn new(capacity: usize) -> Self {
        LineRing {
            bytes: vec![0; capacity.max(1)].into_boxed_slice(),
            written: 0,
        }
    }

    /// Appends `text`.
    pub fn push(&mut self, text: &[u8]) {
        let capacity = self.bytes.len() as u64;
        for &byte in text {
            let place = (self.written % capacity) as usize;
            if let Some(slot) = self.bytes.get_mut(place) {
                *slot = byte;
            }
            self.written += 1;
        }
    }

    /// The place just after the newest byte.
    pub fn end(&self) -> Cursor {
        Cursor(self.written)
    }

    /// True if nothing is left to read from `cursor`.
    pub fn is_drained(&self, cursor: Cursor) -> bool {
        cursor.0 >= self.written
    }

    /// Moves a cursor that points at forgotten bytes to the first whole line that is still there. Returns the bytes skipped.
    pub fn catch_up(&self, cursor: &mut Cursor) -> u64 {
        let oldest = self.written.saturating_sub(self.bytes.len() as u64);
        if cursor.0 >= oldest {
            return 0;
        }
        let from = cursor.0;
        let mut place = oldest;
        while place < self.written {
            place += 1;
            if self.at(place - 1) == b'\n' {
                break;
            }
        }
        cursor.0 = place;
        place - from
    }

    /// Copies what follows `cursor` to `out`, up to its length, and moves the cursor on. Returns the bytes copied.
    pub fn read(&self, cursor: &mut Cursor, out: &mut [u8]) -> usize {
        self.catch_up(cursor);
        let mut count = 0;
        for slot in out.iter_mut() {
            if cursor.0 >= self.written {
                break;
            }
            *slot = self.at(cursor.0);
            cursor.0 += 1;
            count += 1;
        }
        count
    }

    /// Like [`LineRing::read`], but stops after a line's end.
    pub fn read_line(&self, cursor: &mut Cursor, out: &mut [u8]) -> usize {
        self.catch_up(cursor);
        let mut count = 0;
        for slot in out.iter_mut() {
            if cursor.0 >= self.written {
                break;
            }
            *slot = self.at(cursor.0);
            cursor.0 += 1;
            count += 1;
            if *slot == b'\n' {
                break;
            }
        }
        count
    }

    /// The place `bytes` bytes before the end, or the oldest that is still there.
    pub fn before_end(&self, bytes: u64) -> Cursor {
        let oldest = self.written.saturating_sub(self.bytes.len() as u64);
        Cursor(self.written.saturating_sub(bytes).max(oldest))
    }

    fn at(&self, place: u64) -> u8 {
        let index = (place % self.bytes.len() as u64) as usize;
        self.bytes.get(index).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(ring: &LineRing, cursor: &mut Cursor) -> Vec<u8> {
        let mut out = [0; 64];
        let count = ring.read(cursor, &mut out);
        out[..count].to_vec()
    }

    #[test]
    fn every_reader_sees_every_line() {
        let mut ring = LineRing::new(32);
        let (mut first, mut second) = (ring.end(), ring.end());
        ring.push(b"one\n");
        assert_eq!(read_all(&ring, &mut first), b"one\n");
        ring.push(b"two\n");
        assert_eq!(read_all(&ring, &mut first), b"two\n");
        assert_eq!(read_all(&ring, &mut second), b"one\ntwo\n");
        assert!(ring.is_drained(first));
    }

    #[test]
    fn a_late_reader_starts_at_a_whole_line() {
        let mut ring = LineRing::new(8);
        let mut cursor = ring.end();
        ring.push(b"abcdef\nghi\njkl\n");
        // Bytes 0..7 are forgotten; the oldest kept is 'g', and its line is skipped too because its start may be gone.
        assert_eq!(ring.catch_up(&mut cursor), 11);
        assert_eq!(read_all(&ring, &mut cursor), b"jkl\n");
    }

    #[test]
    fn reads_line_by_line() {
        let mut ring = LineRing::new(64);
        let mut cursor = ring.end();
        ring.push(b"one\ntwo\nthr");
        let mut out = [0; 8];
        assert_eq!(ring.read_line(&mut cursor, &mut out), 4);
        assert_eq!(&out[..4], b"one\n");
        assert_eq!(ring.read_line(&mut cursor, &mut out[..2]), 2);
        assert_eq!(ring.read_line(&mut cursor, &mut out), 2);
        assert_eq!(&out[..2], b"o\n");
        let mut tail = ring.before_end(3);
        assert_eq!(read_all(&ring, &mut tail), b"thr");
    }

    #[test]
    fn reads_in_pieces() {
        let mut ring = LineRing::new(16);
        let mut cursor = ring.end();
        ring.push(b"abcdef");
        let mut two = [0; 2];
        assert_eq!(ring.read(&mut cursor, &mut two), 2);
        assert_eq!(&two, b"ab");
        assert_eq!(read_all(&ring, &mut cursor), b"cdef");
        assert_eq!(ring.read(&mut cursor, &mut two), 0);
    }
}
