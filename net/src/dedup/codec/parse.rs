//! Finds matches in a block: those of the anchors are given, the rest comes from two hash tables over what was sent or
//! matched lately. It decides what is a match; how it is written is not known here.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::super::store::Store;
use super::{FarMatch, common_prefix, common_suffix, word};

/// Logarithms of the tables' sizes: places of eight bytes, and of five.
const LONG_BITS: u32 = 17;
const SHORT_BITS: u32 = 16;
/// The shortest match.
pub const MIN_MATCH: usize = 3;
/// The shortest match at the distance of the last one.
const MIN_REPEAT: usize = 4;
/// The shortest match found by hash.
const MIN_NEAR: usize = 5;

/// The shortest gap between two matches of the anchors around which the log is put into the tables.
const MIN_GAP: usize = 5;
/// How much of it beyond the gap's own length.
const AROUND: u64 = 128;

/// Literals, then a match.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sequence {
    /// Literals before the match.
    pub literals: u32,
    /// Bytes of the match.
    pub len: u32,
    /// How far back it begins, in log positions.
    pub distance: u64,
}

/// What the parser made of a block.
#[derive(Default)]
pub struct Parsed {
    /// All sequences; literals after the last match are in `literals` only.
    pub sequences: Vec<Sequence>,
    /// All literals.
    pub literals: Vec<u8>,
    /// Bytes in matches of the anchors.
    pub copied: usize,
}

/// Where short strings were seen last: log positions, low halves.
#[derive(Default)]
pub struct Dense {
    long: Vec<u32>,
    short: Vec<u32>,
    /// What was put in last because of a hit.
    loaded: Range<u64>,
}

impl Dense {
    pub fn new() -> Self {
        Dense {
            long: vec![0; 1 << LONG_BITS],
            short: vec![0; 1 << SHORT_BITS],
            loaded: 0..0,
        }
    }

    #[inline]
    fn long_slot(word: u64) -> usize {
        (word.wrapping_mul(0xcf1b_bcdc_b7a5_6463) >> (64 - LONG_BITS)) as usize
    }

    #[inline]
    fn short_slot(word: u64) -> usize {
        ((word << 24).wrapping_mul(0xcf1b_bcdc_bfa5_6463) >> (64 - SHORT_BITS)) as usize
    }

    #[inline]
    fn insert(&mut self, word: u64, position: u64) {
        self.long[Self::long_slot(word)] = position as u32;
        self.short[Self::short_slot(word)] = position as u32;
    }

    /// Puts stored bytes in, as far as they have not just been.
    fn load<S: Store>(&mut self, store: &S, wanted: Range<u64>) {
        let from = if self.loaded.contains(&wanted.start) {
            self.loaded.end
        } else {
            wanted.start
        };
        if from >= wanted.end {
            return;
        }
        self.loaded = if from == wanted.start {
            wanted.clone()
        } else {
            self.loaded.start..wanted.end
        };
        let bytes = store.forward(from);
        let len = bytes.len().min((wanted.end - from) as usize);
        // Every other place: a match found one byte late is extended backwards.
        for (offset, window) in bytes[..len].windows(8).enumerate().step_by(2) {
            self.insert(word(window), from + offset as u64);
        }
    }
}

/// The block and what it may refer to.
pub struct Input<'a, S: Store> {
    /// The log, with the block in it.
    pub store: &'a S,
    /// Where the block begins in the log.
    pub position: u64,
    /// The block's bytes.
    pub block: &'a [u8],
    /// The span around a position that may be referred to.
    pub span: &'a dyn Fn(u64) -> Option<Range<u64>>,
}

struct Parser<'a, S: Store> {
    input: &'a Input<'a, S>,
    allowed: Range<u64>,
}

impl<'a, S: Store> Parser<'a, S> {
    /// The bytes from `at` on, as far as they may be referred to.
    #[inline]
    fn source(&mut self, at: u64) -> &'a [u8] {
        if !(self.allowed.start <= at && at < self.allowed.end) {
            self.look_up(at);
            if !(self.allowed.start <= at && at < self.allowed.end) {
                return &[];
            }
        }
        let bytes = self.input.store.forward(at);
        let most = usize::try_from(self.allowed.end - at).unwrap_or(usize::MAX);
        if bytes.len() > most {
            &bytes[..most]
        } else {
            bytes
        }
    }

    #[cold]
    fn look_up(&mut self, at: u64) {
        let end = self.input.position + self.input.block.len() as u64;
        if at >= self.input.position {
            self.allowed = self.input.position..end;
        } else if let Some(mut span) = (self.input.span)(at) {
            if span.end >= self.input.position {
                span.end = end;
            }
            self.allowed = span;
        }
    }

    /// The length of the match at `i`, `distance` back.
    #[inline]
    fn length(&mut self, i: usize, distance: u64) -> usize {
        let at = self.input.position + i as u64;
        let Some(at) = at.checked_sub(distance) else {
            return 0;
        };
        common_prefix(self.source(at), &self.input.block[i..])
    }
}

pub fn parse<S: Store>(
    dense: &mut Dense,
    input: &Input<'_, S>,
    far: &[FarMatch],
    out: &mut Parsed,
) {
    out.sequences.clear();
    out.literals.clear();
    out.copied = 0;
    let block = input.block;
    let position = input.position;
    let mut parser = Parser {
        input,
        allowed: 0..0,
    };
    let (mut anchor, mut i) = (0usize, 0usize);
    let mut repeat: [u64; 2] = [0, 0];
    let end = FarMatch {
        start: block.len(),
        len: 0,
        source: 0,
    };
    let emit = |out: &mut Parsed, anchor: usize, start: usize, len: usize, distance: u64| {
        out.literals.extend_from_slice(&block[anchor..start]);
        out.sequences.push(Sequence {
            literals: (start - anchor) as u32,
            len: len as u32,
            distance,
        });
    };
    let mut after = 0u64;
    for found in far.iter().chain([&end]) {
        // What surrounds the gap on the other side.
        let gap = found.start.saturating_sub(i);
        if gap >= MIN_GAP {
            let following = after..after + 2 * gap as u64 + AROUND;
            if after > 0 {
                dense.load(input.store, following.clone());
            }
            let preceding = found.source.saturating_sub(gap as u64 + AROUND / 2)..found.source;
            if found.len > 0 && (preceding.start < after || preceding.end > following.end) {
                let start = preceding.start.max(input.store.tail());
                dense.load(input.store, start..preceding.end);
            }
        }
        let last = found.start.min(block.len().saturating_sub(8));
        while i < last {
            let at = position + i as u64;
            let here = word(&block[i..i + 8]);
            let (long, short) = (Dense::long_slot(here), Dense::short_slot(here));
            let long_back = (at as u32).wrapping_sub(dense.long[long]);
            let short_back = (at as u32).wrapping_sub(dense.short[short]);
            dense.long[long] = at as u32;
            dense.short[short] = at as u32;
            let (mut start, mut len, mut distance) = (i, 0, 0);
            if repeat[0] != 0 && i + 1 < last {
                let length = parser.length(i + 1, repeat[0]);
                if length >= MIN_REPEAT {
                    (start, len, distance) = (i + 1, length, repeat[0]);
                }
            }
            if len == 0 && long_back != 0 {
                let length = parser.length(i, u64::from(long_back));
                if length >= 8 {
                    (len, distance) = (length, u64::from(long_back));
                }
            }
            if len == 0 && short_back != 0 {
                let length = parser.length(i, u64::from(short_back));
                if length >= MIN_NEAR {
                    (len, distance) = (length, u64::from(short_back));
                    // Perhaps the next byte starts something longer.
                    if i + 1 < last {
                        let next = word(&block[i + 1..i + 9]);
                        let slot = Dense::long_slot(next);
                        let back = (at as u32).wrapping_add(1).wrapping_sub(dense.long[slot]);
                        dense.long[slot] = at as u32 + 1;
                        if back != 0 {
                            let longer = parser.length(i + 1, u64::from(back));
                            if longer > len {
                                (start, len, distance) = (i + 1, longer, u64::from(back));
                            }
                        }
                    }
                }
            }
            if len == 0 {
                i += 1 + ((i - anchor) >> 8);
                continue;
            }
            // Backwards into the literals.
            let source = position + start as u64 - distance;
            if start > anchor && distance != repeat[0] {
                parser.source(source);
                let low = source.saturating_sub(parser.allowed.start);
                let before = input.store.backward(source);
                let before = &before[before.len() - before.len().min(low as usize)..];
                let back = common_suffix(before, &block[anchor..start]);
                start -= back;
                len += back;
            }
            emit(out, anchor, start, len, distance);
            if distance != repeat[0] {
                repeat = [distance, repeat[0]];
            }
            i = start + len;
            anchor = i;
            if i + 8 <= block.len() {
                for inside in [start + 2, i - 2] {
                    if inside + 8 <= block.len() {
                        dense.insert(word(&block[inside..inside + 8]), position + inside as u64);
                    }
                }
                // The distance before last often comes back at once.
                while repeat[1] != 0 && i < last {
                    let length = parser.length(i, repeat[1]);
                    if length < MIN_REPEAT {
                        break;
                    }
                    repeat.swap(0, 1);
                    emit(out, anchor, i, length, repeat[0]);
                    dense.insert(word(&block[i..i + 8]), position + i as u64);
                    i += length;
                    anchor = i;
                }
            }
        }
        if found.len > 0 && i < found.start + found.len {
            let start = found.start.max(i);
            let skip = start - found.start;
            let len = found.len - skip;
            let source = found.source + skip as u64;
            if len >= MIN_MATCH {
                let distance = position + start as u64 - source;
                emit(out, anchor, start, len, distance);
                out.copied += len;
                if distance != repeat[0] {
                    repeat = [distance, repeat[0]];
                }
                i = start + len;
                anchor = i;
                after = source + len as u64;
            }
        }
    }
    out.literals.extend_from_slice(&block[anchor..]);
}
