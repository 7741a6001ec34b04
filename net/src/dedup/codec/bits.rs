//! Bit streams, lowest bit first. Reading past the end yields zeros: a body that lies is found out by its digest.

use alloc::vec::Vec;

/// Writes bits to the end of a byte vector.
pub struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    bits: u64,
    count: u32,
}

impl<'a> BitWriter<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        BitWriter {
            out,
            bits: 0,
            count: 0,
        }
    }

    /// Writes the lowest `count` bits of `value`, at most 32; the others are zero.
    #[inline]
    pub fn put(&mut self, value: u64, count: u32) {
        self.bits |= value << self.count;
        self.count += count;
        if self.count >= 32 {
            self.out
                .extend_from_slice(&(self.bits as u32).to_le_bytes());
            self.bits >>= 32;
            self.count -= 32;
        }
    }

    /// Writes the lowest `count` bits of `value`, at most 64.
    #[inline]
    pub fn put_wide(&mut self, value: u64, count: u32) {
        if count > 31 {
            self.put(value & 0x7fff_ffff, 31);
            self.put_wide(value >> 31, count - 31);
        } else {
            self.put(value, count);
        }
    }

    /// Pads to whole bytes.
    pub fn finish(mut self) {
        while self.count > 0 {
            self.out.push(self.bits as u8);
            self.bits >>= 8;
            self.count = self.count.saturating_sub(8);
        }
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
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(items in prop::collection::vec((any::<u64>(), 0u32..=56), 0..200)) {
            let mut bytes = Vec::new();
            let mut writer = BitWriter::new(&mut bytes);
            for (value, count) in &items {
                writer.put_wide(value & ((1 << count) - 1), *count);
            }
            writer.finish();
            let mut reader = BitReader::new(&bytes);
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
