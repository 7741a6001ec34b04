//! Bit streams, lowest bit first. Reading past the end yields zeros: a body that lies is found out by its digest.

use alloc::vec::Vec;

/// Writes bits into room for them.
pub struct BitWriter<'a> {
    room: &'a mut [u8],
    /// Whole bytes written.
    at: usize,
    /// Bits that do not make a byte yet, fewer than eight.
    bits: u64,
    count: u32,
}

impl<'a> BitWriter<'a> {
    /// A writer to the start of `room`, which is made to hold `most` bits in all and otherwise left as it is: what goes
    /// beyond is lost.
    pub fn new(room: &'a mut Vec<u8>, most: usize) -> Self {
        let least = most.div_ceil(8) + 8;
        if room.len() < least {
            room.resize(least, 0);
        }
        BitWriter {
            room,
            at: 0,
            bits: 0,
            count: 0,
        }
    }

    /// Writes the lowest `count` bits of `value`, at most 56; the others are zero.
    #[inline(always)]
    pub fn put(&mut self, value: u64, count: u32) {
        self.bits |= value << self.count;
        self.count += count;
        // A word each time, without asking how much of it is whole bytes: that could not be foreseen.
        if let Some(room) = self.room.get_mut(self.at..self.at + 8) {
            room.copy_from_slice(&self.bits.to_le_bytes());
        }
        self.at += (self.count >> 3) as usize;
        self.bits >>= self.count & !7;
        self.count &= 7;
    }

    /// Writes the lowest `count` bits of `value`, at most 64; the others are zero.
    #[inline(always)]
    pub fn put_wide(&mut self, value: u64, count: u32) {
        if count > 56 {
            self.put(value & 0xffff_ffff, 32);
            self.put(value >> 32, count - 32);
        } else {
            self.put(value, count);
        }
    }

    /// Pads to whole bytes, and gives all that were written.
    pub fn finish(self) -> &'a [u8] {
        let end = self.at + usize::from(self.count > 0);
        self.room.get(..end).unwrap_or(&[])
    }
}

/// Reads bits from the start of a byte slice.
#[derive(Clone, Copy)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
    bits: u64,
    count: u32,
}

impl<'a> BitReader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        BitReader {
            bytes,
            at: 0,
            bits: 0,
            count: 0,
        }
    }

    /// Makes at least 56 bits available.
    #[inline(always)]
    pub fn refill(&mut self) {
        let word = match self.bytes.get(self.at..self.at + 8) {
            Some(bytes) => super::word(bytes),
            None => self.last_word(),
        };
        self.bits |= word << self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    #[cold]
    fn last_word(&self) -> u64 {
        let mut word = [0; 8];
        for (to, from) in word
            .iter_mut()
            .zip(self.bytes.get(self.at..).unwrap_or(&[]))
        {
            *to = *from;
        }
        u64::from_le_bytes(word)
    }

    /// The next bits, lowest first; as many as [`BitReader::refill`] made available are right.
    #[inline(always)]
    pub fn peek(&self) -> u64 {
        self.bits
    }

    /// Passes over `count` bits, at most what is available.
    #[inline(always)]
    pub fn skip(&mut self, count: u32) {
        self.bits >>= count;
        self.count -= count;
    }

    /// The next `count` bits, at most 56, of which so many must be available.
    #[inline(always)]
    pub fn take(&mut self, count: u32) -> u64 {
        let value = self.bits & ((1 << count) - 1);
        self.skip(count);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(items in prop::collection::vec((any::<u64>(), 0u32..=56), 0..200)) {
            // What is in the room already does no harm.
            let mut room = vec![0xff; items.len()];
            let mut writer = BitWriter::new(&mut room, items.iter().map(|(_, count)| *count as usize).sum());
            for (value, count) in &items {
                writer.put_wide(value & ((1 << count) - 1), *count);
            }
            let mut reader = BitReader::new(writer.finish());
            for (value, count) in &items {
                reader.refill();
                prop_assert_eq!(reader.take(*count), value & ((1 << count) - 1));
            }
            for _ in 0..20 {
                reader.refill();
                reader.take(56);
            }
        }
    }
}
