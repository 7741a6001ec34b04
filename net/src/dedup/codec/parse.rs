//! Finds matches in a block: those of the anchors are given, the rest comes from two hash tables over what was sent or
//! matched lately. It decides what is a match; how it is written is not known here.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::super::store::Store;
use super::{FarMatch, common_prefix, common_suffix, word};

/// Slots for strings of eight bytes, and of five. With their tags they fit into a second-level cache.
const LONG_SLOTS: usize = 1 << 17;
const SHORT_SLOTS: usize = 1 << 16;
/// The shortest match.
pub const MIN_MATCH: usize = 3;
/// The shortest match at the distance of the last one.
pub const MIN_REPEAT: usize = 4;

/// The shortest gap between two matches of the anchors around which the log is put into the tables.
const MIN_GAP: usize = 5;
/// How much of it beyond the gap's own length.
const AROUND: u64 = 128;

/// The shortest match found by hash that is worth writing down so large a distance.
#[inline(always)]
pub fn least(distance: u64) -> usize {
    5 + usize::from(distance >= 1 << 17) + usize::from(distance >= 1 << 21)
}

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

/// Where strings of one length were seen last. What the memory holds there is far away; eight bits of each string's hash
/// are close by, and tell nearly always whether it is worth going there.
struct Table<const SLOTS: usize> {
    /// Log positions, low halves.
    positions: Box<[u32; SLOTS]>,
    tags: Box<[u8; SLOTS]>,
}

/// Where in a table a string belongs, and its tag there.
#[derive(Clone, Copy)]
struct Slot {
    index: usize,
    tag: u8,
}

impl<const SLOTS: usize> Table<SLOTS> {
    fn new() -> Self {
        Table {
            positions: boxed(),
            tags: boxed(),
        }
    }

    /// The slot for a string that fills the top bytes of `string`.
    #[inline(always)]
    fn slot(string: u64) -> Slot {
        let hash = string.wrapping_mul(0xcf1b_bcdc_b7a5_6463);
        Slot {
            index: (hash >> (64 - SLOTS.ilog2())) as usize & (SLOTS - 1),
            // Never the tag of an empty slot.
            tag: (hash >> 32) as u8 | 1,
        }
    }

    /// How far back from `position` the slot's string was, if it seems to be the same; 0 if not.
    #[inline(always)]
    fn back(&self, slot: Slot, position: u64) -> u64 {
        if self.tags[slot.index & (SLOTS - 1)] != slot.tag {
            return 0;
        }
        let seen = self.positions[slot.index & (SLOTS - 1)];
        u64::from((position as u32).wrapping_sub(seen))
    }

    #[inline(always)]
    fn set(&mut self, slot: Slot, position: u64) {
        self.tags[slot.index & (SLOTS - 1)] = slot.tag;
        self.positions[slot.index & (SLOTS - 1)] = position as u32;
    }
}

/// An array on the heap that was never on the stack.
pub fn boxed<T: Clone + Default, const N: usize>() -> Box<[T; N]> {
    match vec![T::default(); N].into_boxed_slice().try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("a vector of N is a box of N"),
    }
}

type Long = Table<LONG_SLOTS>;
type Short = Table<SHORT_SLOTS>;

/// Where strings of eight and of five bytes were seen last.
pub struct Dense {
    long: Long,
    short: Short,
    /// What was put in last because of a hit.
    loaded: Range<u64>,
}

impl Dense {
    pub fn new() -> Self {
        Dense {
            long: Table::new(),
            short: Table::new(),
            loaded: 0..0,
        }
    }

    #[inline(always)]
    fn insert(&mut self, word: u64, position: u64) {
        self.long.set(Long::slot(word), position);
        self.short.set(Short::slot(five(word)), position);
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

/// The first five bytes of a word, at its top.
#[inline(always)]
fn five(word: u64) -> u64 {
    word << 24
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

/// Where matches begin: what may be referred to, and lies in memory in one piece.
struct Parser<'a, S: Store> {
    input: &'a Input<'a, S>,
    /// Where `piece` begins in the log.
    start: u64,
    piece: &'a [u8],
}

impl<'a, S: Store> Parser<'a, S> {
    fn new(input: &'a Input<'a, S>) -> Self {
        Parser {
            input,
            start: 0,
            piece: &[],
        }
    }

    /// The bytes from `at` on, as far as they may be referred to and lie in one piece.
    #[inline(always)]
    fn source(&mut self, at: u64) -> &'a [u8] {
        let offset = at.wrapping_sub(self.start);
        if offset >= self.piece.len() as u64 {
            return self.look_up(at);
        }
        &self.piece[offset as usize..]
    }

    #[cold]
    #[inline(never)]
    fn look_up(&mut self, at: u64) -> &'a [u8] {
        let Input {
            store,
            position,
            block,
            span,
        } = *self.input;
        let end = position + block.len() as u64;
        let allowed = if at >= position {
            position..end
        } else if let Some(mut span) = span(at) {
            if span.end >= position {
                span.end = end;
            }
            span
        } else {
            return &[];
        };
        if !allowed.contains(&at) {
            return &[];
        }
        let limit = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
        let forward = store.forward(at);
        let forward = &forward[..forward.len().min(limit(allowed.end - at))];
        let end = at + forward.len() as u64;
        // In one piece with what precedes it, as far as that goes.
        let piece = store.backward(end);
        let piece = &piece[piece.len() - piece.len().min(limit(end - allowed.start))..];
        if piece.len() < forward.len() {
            return forward;
        }
        self.piece = piece;
        self.start = end - piece.len() as u64;
        forward
    }

    /// The length of the match at `i`, `distance` back; 0 if it is shorter than four bytes.
    #[inline(always)]
    fn length(&mut self, i: usize, distance: u64) -> usize {
        let at = self.input.position + i as u64;
        let Some(at) = at.checked_sub(distance) else {
            return 0;
        };
        let (source, here) = (self.source(at), &self.input.block[i..]);
        match (source.first_chunk::<4>(), here.first_chunk::<4>()) {
            (Some(a), Some(b)) if a == b => common_prefix(source, here),
            _ => 0,
        }
    }

    /// How far the match of `start` with `source` goes on to the left, down to `least`.
    #[inline]
    fn back(&mut self, source: u64, least: usize, start: usize) -> usize {
        self.source(source);
        let end = source.wrapping_sub(self.start);
        let before = usize::try_from(end)
            .ok()
            .and_then(|end| self.piece.get(..end))
            .unwrap_or(&[]);
        common_suffix(before, &self.input.block[least..start])
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
    let mut parser = Parser::new(input);
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
            let (long, short) = (Long::slot(here), Short::slot(five(here)));
            let (long_back, short_back) = (dense.long.back(long, at), dense.short.back(short, at));
            dense.long.set(long, at);
            dense.short.set(short, at);
            let (mut start, mut len, mut distance) = (i, 0, 0);
            if repeat[0] != 0 && i + 1 < last {
                let length = parser.length(i + 1, repeat[0]);
                if length >= MIN_REPEAT {
                    (start, len, distance) = (i + 1, length, repeat[0]);
                }
            }
            if len == 0 && long_back != 0 {
                let length = parser.length(i, long_back);
                if length >= 8 {
                    (len, distance) = (length, long_back);
                }
            }
            if len == 0 && short_back != 0 {
                let length = parser.length(i, short_back);
                if length >= least(short_back) {
                    (len, distance) = (length, short_back);
                    // Perhaps the next byte starts something longer.
                    if i + 1 < last {
                        let slot = Long::slot(word(&block[i + 1..i + 9]));
                        let back = dense.long.back(slot, at + 1);
                        dense.long.set(slot, at + 1);
                        if back != 0 {
                            let longer = parser.length(i + 1, back);
                            if longer > len {
                                (start, len, distance) = (i + 1, longer, back);
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
                let back = parser.back(source, anchor, start);
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
