//! Finds matches in a block as `parse` does, but in a third of the time: one small table of its own, and only in what
//! precedes the block in one piece or two. Of what surrounds the anchors' matches on the other side only what follows each is
//! looked at, at its distance.

use alloc::boxed::Box;

use super::super::store::Store;
use super::parse::{Input, MIN_MATCH, MIN_REPEAT, Parsed, Sequence, boxed, least};
use super::{FarMatch, common_prefix, common_suffix, word};

/// Places in the table: it stays in the second cache from the CPU.
const SLOTS: usize = 1 << 16;
/// Without a match for so many bytes, in powers of two, the steps get longer by one.
const PATIENCE: u32 = 6;
/// How far back matches may be: positions are kept as 32 bits.
const MOST_BACK: usize = 1 << 30;

/// Where strings of six bytes were seen last: log positions, low halves.
pub struct Recent(Box<[u32; SLOTS]>);

impl Recent {
    pub fn new() -> Self {
        Recent(boxed())
    }

    /// The place for the first six bytes of a word.
    #[inline(always)]
    fn place(&mut self, word: u64) -> &mut u32 {
        let hash = (word << 16).wrapping_mul(0xcf1b_bcdc_b7a5_6463);
        &mut self.0[(hash >> (64 - SLOTS.ilog2())) as usize & (SLOTS - 1)]
    }
}

/// What matches are looked for in. Indices count from the window's start; `distance` is from there to an earlier byte.
struct Seen<'a> {
    /// The block with what precedes it in one piece and may be referred to.
    window: &'a [u8],
    /// Where in the window the block begins.
    first: usize,
    /// The piece before the window, up to it.
    older: &'a [u8],
    /// What followed an anchors' match last time, and which index would be its first byte.
    aside: &'a [u8],
    aside_at: usize,
    aside_distance: usize,
}

impl<'a> Seen<'a> {
    fn new<S: Store>(input: &Input<'a, S>) -> Self {
        let Input {
            store,
            position,
            block,
            span,
        } = *input;
        let piece = store.backward(position + block.len() as u64);
        let before = position
            .checked_sub(1)
            .and_then(span)
            .map_or(0, |span| position.saturating_sub(span.start));
        let before = usize::try_from(before).unwrap_or(MOST_BACK).min(MOST_BACK);
        let near = before.min(piece.len().saturating_sub(block.len()));
        let (window, first) = match piece.get(piece.len().saturating_sub(near + block.len())..) {
            Some(window) if window.len() == near + block.len() => (window, near),
            _ => (block, 0),
        };
        let older = store.backward(position.saturating_sub(first as u64));
        let farther = (before - near).min(older.len());
        Seen {
            window,
            first,
            older: older.get(older.len() - farther..).unwrap_or(&[]),
            aside: &[],
            aside_at: 0,
            aside_distance: 0,
        }
    }

    /// The bytes from `distance` before `at` on, as far as they lie in one piece; nothing if they are not at hand.
    #[inline(always)]
    fn before(&self, at: usize, distance: usize) -> &'a [u8] {
        if distance.wrapping_sub(1) < at {
            return &self.window[at - distance..];
        }
        self.elsewhere(at, distance)
    }

    #[inline]
    fn elsewhere(&self, at: usize, distance: usize) -> &'a [u8] {
        let beyond = distance.wrapping_sub(at);
        if beyond.wrapping_sub(1) < self.older.len() {
            return &self.older[self.older.len() - beyond..];
        }
        if distance == self.aside_distance && at >= self.aside_at {
            return self.aside.get(at - self.aside_at..).unwrap_or(&[]);
        }
        &[]
    }

    /// The bytes that end `distance` before `at`.
    #[inline(always)]
    fn until(&self, at: usize, distance: usize) -> &'a [u8] {
        match distance.wrapping_sub(1) < at {
            true => &self.window[..at - distance],
            false => self
                .older
                .get(..self.older.len().wrapping_sub(distance.wrapping_sub(at)))
                .unwrap_or(&[]),
        }
    }

    /// An anchors' match with this source has ended before `at`: what followed it may go on here.
    fn look_aside<S: Store>(
        &mut self,
        input: &Input<'a, S>,
        at: usize,
        source: u64,
        distance: u64,
    ) {
        let Some(span) = (input.span)(source) else {
            self.aside_distance = 0;
            return;
        };
        let most = usize::try_from(span.end.saturating_sub(source)).unwrap_or(usize::MAX);
        let following = input.store.forward(source);
        self.aside = following.get(..most).unwrap_or(following);
        self.aside_at = at;
        self.aside_distance = usize::try_from(distance).unwrap_or(0);
    }
}

#[inline(always)]
fn four(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        Some(four) => u32::from_le_bytes(*four),
        None => 0,
    }
}

pub fn parse<S: Store>(
    recent: &mut Recent,
    input: &Input<'_, S>,
    far: &[FarMatch],
    out: &mut Parsed,
) {
    out.sequences.clear();
    out.literals.clear();
    out.copied = 0;
    let mut seen = Seen::new(input);
    let (window, first) = (seen.window, seen.first);
    let base = input.position.wrapping_sub(first as u64);
    let len = window.len();
    let (mut anchor, mut i, mut repeat) = (first, first, 0usize);
    let end = FarMatch {
        start: len - first,
        len: 0,
        source: 0,
    };
    let emit = |out: &mut Parsed, anchor: usize, start: usize, len: usize, distance: u64| {
        out.literals.extend_from_slice(&window[anchor..start]);
        out.sequences.push(Sequence {
            literals: (start - anchor) as u32,
            len: len as u32,
            distance,
        });
    };
    for found in far.iter().chain([&end]) {
        let far_start = first + found.start;
        let last = far_start.min(len.saturating_sub(8));
        while i < last {
            let here = word(&window[i..i + 8]);
            let at = base.wrapping_add(i as u64) as u32;
            let place = recent.place(here);
            let back = at.wrapping_sub(*place) as usize;
            *place = at;
            let (mut start, mut length, mut distance) = (i, 0, repeat);
            let next = (here >> 8) as u32;
            let again = seen.before(i + 1, repeat);
            let earlier = seen.before(i, back);
            if again.len() >= 4 && four(again, 0) == next {
                start = i + 1;
                length = common_prefix(again, &window[start..]);
            } else if earlier.len() >= 4 && four(earlier, 0) == here as u32 {
                length = common_prefix(earlier, &window[i..]);
                distance = back;
                let more = common_suffix(seen.until(i, back), &window[anchor..i]);
                start -= more;
                length += more;
                if length < 2 + least(back as u64) {
                    length = 0;
                }
            }
            if length < MIN_REPEAT {
                i += 1 + ((i - anchor) >> PATIENCE);
                continue;
            }
            emit(out, anchor, start, length, distance as u64);
            repeat = distance;
            i = start + length;
            anchor = i;
            if let Some(inside) = window.get(i - 2..i + 6) {
                *recent.place(word(inside)) = base.wrapping_add(i as u64 - 2) as u32;
            }
        }
        if found.len > 0 && i < far_start + found.len {
            let start = far_start.max(i);
            let skip = start - far_start;
            let left = found.len - skip;
            if left >= MIN_MATCH {
                let source = found.source + skip as u64;
                let distance = base.wrapping_add(start as u64) - source;
                emit(out, anchor, start, left, distance);
                out.copied += left;
                repeat = usize::try_from(distance).unwrap_or(0);
                i = start + left;
                anchor = i;
                seen.look_aside(input, i, source + left as u64, distance);
            }
        }
    }
    out.literals.extend_from_slice(&window[anchor..]);
}
