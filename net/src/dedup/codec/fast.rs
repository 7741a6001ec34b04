//! Finds matches in a block as `parse` does, with one look into one table where that takes three: less than half the time. What
//! surrounds the anchors' matches on the other side is not looked at.

use super::super::store::Store;
use super::parse::{
    Dense, Input, MIN_MATCH, MIN_REPEAT, Parsed, Parser, Sequence, Short, five, least,
};
use super::{FarMatch, word};

/// Without a match for so many bytes, in powers of two, the steps get longer by one.
const PATIENCE: u32 = 6;

pub fn parse<S: Store>(
    dense: &mut Dense,
    input: &Input<'_, S>,
    far: &[FarMatch],
    out: &mut Parsed,
) {
    out.sequences.clear();
    out.literals.clear();
    out.copied = 0;
    let (block, position) = (input.block, input.position);
    let mut parser = Parser::new(input);
    let (mut anchor, mut i, mut repeat) = (0usize, 0usize, 0u64);
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
    for found in far.iter().chain([&end]) {
        let last = found.start.min(block.len().saturating_sub(8));
        while i < last {
            let at = position + i as u64;
            let slot = Short::slot(five(word(&block[i..i + 8])));
            let back = dense.short.back(slot, at);
            dense.short.set(slot, at);
            let (mut start, mut len, mut distance) = (i, 0, repeat);
            if repeat != 0 && i + 1 < last {
                let length = parser.length(i + 1, repeat);
                if length >= MIN_REPEAT {
                    (start, len) = (i + 1, length);
                }
            }
            if len == 0 && back != 0 {
                let length = parser.length(i, back);
                if length >= least(back) {
                    (len, distance) = (length, back);
                    let more = parser.back(at - back, anchor, start);
                    start -= more;
                    len += more;
                }
            }
            if len == 0 {
                i += 1 + ((i - anchor) >> PATIENCE);
                continue;
            }
            emit(out, anchor, start, len, distance);
            repeat = distance;
            i = start + len;
            anchor = i;
            if i + 6 <= block.len() {
                let inside = i - 2;
                let slot = Short::slot(five(word(&block[inside..inside + 8])));
                dense.short.set(slot, position + inside as u64);
            }
        }
        if found.len > 0 && i < found.start + found.len {
            let start = found.start.max(i);
            let skip = start - found.start;
            let len = found.len - skip;
            let source = found.source + skip as u64;
            if len >= MIN_MATCH {
                repeat = position + start as u64 - source;
                emit(out, anchor, start, len, repeat);
                out.copied += len;
                i = start + len;
                anchor = i;
            }
        }
    }
    out.literals.extend_from_slice(&block[anchor..]);
}
