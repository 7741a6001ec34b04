//! Finds matches in a block as `parse` does, but in a third of the time: one small table of its own, and only in what
//! precedes the block in one piece or two. Of what surrounds the anchors' matches on the other side only what follows each is
//! looked at, at its distance.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::super::store::Store;
use super::parse::{Input, MIN_MATCH, MIN_REPEAT, Parsed, Sequence, boxed, least};
use super::{FarMatch, common_prefix, common_suffix, word};

/// Places in the table: it stays in the second cache from the CPU.
const SLOTS: usize = 1 << 16;
/// Without a match for so many bytes, in powers of two, the steps get longer by one.
const PATIENCE: u32 = 6;
/// How far back matches may be: of positions the lowest 24 bits are kept.
const MOST_BACK: usize = 1 << POSITION_BITS;
const POSITION_BITS: u32 = 24;

/// Where strings of seven bytes were seen last: the low bits of log positions, and above them eight more bits of the string's
/// hash, which tell nearly always whether it is worth going there.
pub struct Recent(Box<[u32; SLOTS]>);

impl Recent {
    pub fn new() -> Self {
        Recent(boxed())
    }

    /// Puts `position` in for the first seven bytes of `word`. Gives how far back from there they were last, if it seems so.
    #[inline(always)]
    fn exchange(&mut self, word: u64, position: u32) -> Option<usize> {
        let hash = (word << 8).wrapping_mul(0xcf1b_bcdc_b7a5_6463);
        let place = &mut self.0[(hash >> (64 - SLOTS.ilog2())) as usize & (SLOTS - 1)];
        let tag = (hash >> 16) as u32 & (u32::MAX << POSITION_BITS);
        let entry = tag | position & (MOST_BACK as u32 - 1);
        let before = core::mem::replace(place, entry);
        let back = position.wrapping_sub(before) & (MOST_BACK as u32 - 1);
        ((before ^ entry) >> POSITION_BITS == 0).then_some(back as usize)
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

    /// The bytes from `distance` before `at` on, as far as they lie in one piece; nothing if they are not at hand, or it is 0.
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
        if distance == self.aside_distance && distance > 0 && at >= self.aside_at {
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

/// As `common_prefix`, without a branch on what is up to 32 bytes long.
#[inline(always)]
fn prefix(a: &[u8], b: &[u8]) -> usize {
    let (Some(x), Some(y)) = (a.first_chunk::<32>(), b.first_chunk::<32>()) else {
        return common_prefix(a, b);
    };
    let differ = |at: usize| word(&x[at..at + 8]) ^ word(&y[at..at + 8]);
    let (mut differing, mut base) = (differ(24), 24);
    for at in [16, 8, 0] {
        let here = differ(at);
        (differing, base) =
            core::hint::select_unpredictable(here != 0, (here, at), (differing, base));
    }
    if differing == 0 {
        return 32 + common_prefix(&a[32..], &b[32..]);
    }
    base + (differing.trailing_zeros() / 8) as usize
}

/// Appends the first `len` of `from`: nearly always few.
#[inline(always)]
fn push_short(to: &mut Vec<u8>, from: &[u8], len: usize) {
    match from.first_chunk::<16>() {
        Some(some) if len <= 16 => {
            let end = to.len() + len;
            to.extend_from_slice(some);
            to.truncate(end);
        }
        _ => to.extend_from_slice(&from[..len]),
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
        push_short(&mut out.literals, &window[anchor..], start - anchor);
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
            let back = recent.exchange(here, at);
            let (mut start, mut length, mut distance) = (i, 0, repeat);
            let again = seen.before(i + 1, repeat);
            if again.len() >= 4 && four(again, 0) == (here >> 8) as u32 {
                start = i + 1;
                length = prefix(again, &window[start..]);
            } else if let Some(back) = back {
                length = prefix(seen.before(i, back), &window[i..]);
                distance = back;
                let (before, literals) = (seen.until(i, back), &window[anchor..i]);
                if before.last() == literals.last() {
                    let more = common_suffix(before, literals);
                    start -= more;
                    length += more;
                }
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
                recent.exchange(word(inside), base.wrapping_add(i as u64 - 2) as u32);
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

#[cfg(test)]
mod tests {
    use super::super::super::store::RingStore;
    use super::*;
    use crate::dedup::tests::simulation::{self, Rng};

    /// What the sequences and literals stand for, after `before`.
    fn carried_out(parsed: &Parsed, before: &[u8]) -> Vec<u8> {
        let (mut bytes, mut literals) = (before.to_vec(), &parsed.literals[..]);
        for sequence in &parsed.sequences {
            let (now, rest) = literals.split_at(sequence.literals as usize);
            bytes.extend_from_slice(now);
            literals = rest;
            assert!(sequence.distance > 0);
            for _ in 0..sequence.len {
                bytes.push(bytes[bytes.len() - sequence.distance as usize]);
            }
        }
        bytes.extend_from_slice(literals);
        bytes.split_off(before.len())
    }

    /// Parses `block` at `position` of a log of which nothing else is there.
    fn parsed_alone(recent: &mut Recent, block: &[u8], position: u64) -> Parsed {
        let mut store = RingStore::new(1 << 20);
        store.clear(position);
        store.write(position, block);
        let input = Input {
            store: &store,
            position,
            block,
            span: &|_| None,
        };
        let mut parsed = Parsed::default();
        parse(recent, &input, &[], &mut parsed);
        parsed
    }

    #[test]
    fn what_is_in_the_table_from_elsewhere_does_no_harm() {
        let (mut rng, mut recent) = (Rng::new(1), Recent::new());
        let text = simulation::text(&mut rng, 100_000);
        // The same places by their low bits: as if everything had been seen right here, or a little further on.
        for position in [0, 1 << POSITION_BITS, (5 << POSITION_BITS) - 40, 1 << 40] {
            let parsed = parsed_alone(&mut recent, &text, position);
            assert!(parsed.literals.len() < text.len() / 2);
            assert_eq!(carried_out(&parsed, &[]), text);
        }
    }

    #[test]
    fn prefixes_are_those_of_the_simple_function() {
        let mut rng = Rng::new(2);
        for _ in 0..5000 {
            let (len, same) = (rng.below(70), rng.below(70));
            let a = simulation::noise(&mut rng, len);
            let mut b = a.clone();
            if let Some(byte) = b.get_mut(same) {
                *byte ^= 0x80;
            }
            b.extend_from_slice(&a[..len / 3]);
            assert_eq!(prefix(&a, &b), common_prefix(&a, &b));
            assert_eq!(prefix(&b, &a), common_prefix(&a, &b));
        }
    }
}
