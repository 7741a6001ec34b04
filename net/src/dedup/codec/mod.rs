//! The body of a coded block: matches and literals. This first form lists the anchors' matches and compresses the rest
//! with LZ4.

use alloc::vec::Vec;

use super::store::Store;
use super::wire::{Malformed, Reader, put_number};

/// A match that the anchors found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FarMatch {
    /// Where in the block.
    pub start: usize,
    /// How long, in bytes.
    pub len: usize,
    /// Where in the log.
    pub source: u64,
}

/// What an encoded body consists of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    pub copied: usize,
    pub matched: usize,
    pub literal: usize,
}

/// Encodes the `len` bytes at `position` of the log; `None` when they do not shrink.
pub fn encode<S: Store>(
    store: &S,
    position: u64,
    len: usize,
    far: &[FarMatch],
    out: &mut Vec<u8>,
) -> Option<Parts> {
    let block = store.forward(position).get(..len)?;
    let start = out.len();
    let (mut literals, mut at, mut parts) = (Vec::new(), 0, Parts::default());
    put_number(out, far.len() as u64);
    for found in far {
        literals.extend_from_slice(block.get(at..found.start)?);
        put_number(out, (found.start - at) as u64);
        put_number(out, found.len as u64);
        put_number(out, position - found.source);
        at = found.start + found.len;
        parts.copied += found.len;
    }
    literals.extend_from_slice(block.get(at..)?);
    parts.literal = literals.len();
    put_number(out, literals.len() as u64);
    out.extend_from_slice(&lz4_flex::block::compress(&literals));
    (out.len() - start < len).then_some(parts)
}

/// Why a body could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// It is not a body.
    Malformed,
    /// A reference could not be resolved.
    Lost,
}

impl From<Malformed> for BodyError {
    fn from(_: Malformed) -> Self {
        BodyError::Malformed
    }
}

/// Decodes `body` to exactly `raw` bytes, appended to `out`. `copy(position, len, out)` appends stored bytes, or says false.
pub fn decode(
    body: &[u8],
    position: u64,
    raw: usize,
    copy: &mut dyn FnMut(u64, usize, &mut Vec<u8>) -> bool,
    out: &mut Vec<u8>,
) -> Result<(), BodyError> {
    let mut reader = Reader(body);
    let mut number = || reader.number()?.ok_or(Malformed);
    let count = number()?;
    let (mut commands, mut total) = (Vec::new(), 0u64);
    for _ in 0..count {
        let (literals, len, distance) = (number()?, number()?, number()?);
        total = total
            .checked_add(literals)
            .and_then(|t| t.checked_add(len))
            .ok_or(Malformed)?;
        if total > raw as u64 {
            return Err(BodyError::Malformed);
        }
        commands.push((literals as usize, len as usize, distance));
    }
    let literals = number()?;
    if literals > raw as u64 {
        return Err(BodyError::Malformed);
    }
    let literals =
        lz4_flex::block::decompress(reader.0, literals as usize).map_err(|_| Malformed)?;
    let (mut rest, start, mut lost) = (&literals[..], out.len(), false);
    for (before, len, distance) in commands {
        let (now, after) = rest.split_at_checked(before).ok_or(Malformed)?;
        out.extend_from_slice(now);
        rest = after;
        let source = position.checked_sub(distance).ok_or(Malformed)?;
        if !copy(source, len, out) {
            lost = true;
        }
    }
    out.extend_from_slice(rest);
    if lost {
        return Err(BodyError::Lost);
    }
    if out.len() - start != raw {
        Err(BodyError::Malformed)
    } else {
        Ok(())
    }
}

/// How many bytes `a` and `b` have in common at their start.
#[inline]
pub fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len());
    let (a, b) = (&a[..most], &b[..most]);
    let mut len = 0;
    for (x, y) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        let difference = word(x) ^ word(y);
        if difference != 0 {
            return len + (difference.trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    len + a[len..]
        .iter()
        .zip(&b[len..])
        .take_while(|(x, y)| x == y)
        .count()
}

/// How many bytes `a` and `b` have in common at their end.
#[inline]
pub fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len());
    let (a, b) = (&a[a.len() - most..], &b[b.len() - most..]);
    let mut len = 0;
    for (x, y) in a.rchunks_exact(8).zip(b.rchunks_exact(8)) {
        let difference = word(x) ^ word(y);
        if difference != 0 {
            return len + (difference.leading_zeros() / 8) as usize;
        }
        len += 8;
    }
    len + a[..most - len]
        .iter()
        .rev()
        .zip(b[..most - len].iter().rev())
        .take_while(|(x, y)| x == y)
        .count()
}

/// Eight bytes, lowest first.
#[inline]
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}
