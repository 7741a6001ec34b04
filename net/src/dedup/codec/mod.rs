//! The body of a coded block: matches of what the peer has and literals, compressed by Huffman codes. It knows bytes,
//! positions and tables; which positions may be referred to is handed in.

mod bits;
mod fast;
mod huffman;
mod parse;
mod sequences;
mod standard;

use alloc::vec::Vec;

use super::store::{Log, RingStore, Store};
use super::wire::Malformed;
pub use parse::Input;
use parse::{Dense, Parsed, Sequence};
pub use sequences::Tables;

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

/// How hard to look for matches. What is written is decoded alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// The fewest bytes: the line is the bottleneck.
    #[default]
    Full,
    /// About twice as fast, for some more bytes: the CPU is the bottleneck.
    Fast,
}

/// What a body consists of, in raw bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// Matches of the anchors.
    pub copied: usize,
    /// Other matches.
    pub matched: usize,
    /// Literals.
    pub literal: usize,
    /// Whether it was made with less than full effort.
    pub fast: bool,
}

/// What all encoders of a sending side share: where short strings were seen lately, and room to work in.
pub struct Coder {
    dense: Dense,
    recent: fast::Recent,
    parsed: Parsed,
    arrays: sequences::Arrays,
}

impl Coder {
    pub fn new() -> Self {
        Coder {
            dense: Dense::new(),
            recent: fast::Recent::new(),
            parsed: Parsed::default(),
            arrays: sequences::Arrays::default(),
        }
    }

    /// Encodes a block; `None` when it does not shrink. The matches are in order and disjoint, and may be referred to.
    pub fn encode<S: Store>(
        &mut self,
        input: &Input<'_, S>,
        far: &[FarMatch],
        effort: Effort,
        tables: &mut Tables,
        out: &mut Vec<u8>,
    ) -> Option<Parts> {
        let len = input.block.len();
        let known: usize = far.iter().map(|found| found.len).sum();
        if known <= len / 32 && looks_random(input.block) {
            return None;
        }
        // Where nearly all is known, little is left to look at, and looking well is worth it.
        let fast = effort == Effort::Fast && known <= len - len / 4;
        if fast {
            fast::parse(&mut self.recent, input, far, &mut self.parsed);
        } else {
            parse::parse(&mut self.dense, input, far, &mut self.parsed);
        }
        let start = out.len();
        let mut changed = tables.clone();
        sequences::write(
            &self.parsed.sequences,
            &self.parsed.literals,
            &mut changed,
            &mut self.arrays,
            out,
        );
        if out.len() - start >= len {
            out.truncate(start);
            return None;
        }
        *tables = changed;
        let literal = self.parsed.literals.len();
        let copied = self.parsed.copied.min(len - literal);
        Some(Parts {
            copied,
            matched: len - literal - copied,
            literal,
            fast,
        })
    }
}

impl Coder {
    /// Encodes a block that is not in the log and refers to nothing outside it; `None` when it does not shrink.
    pub fn encode_alone(&mut self, block: &[u8]) -> Option<Vec<u8>> {
        let mut store = RingStore::new(block.len());
        store.write(0, block);
        let input = Input {
            store: &Log::Memory(store),
            position: 0,
            block,
            span: &|_| None,
        };
        let mut body = Vec::new();
        let mut tables = Tables::new();
        self.encode(&input, &[], Effort::Full, &mut tables, &mut body)
            .map(|_| body)
    }
}

/// Whether a sample of the block has no byte more often than chance has it: encrypted or compressed already.
fn looks_random(block: &[u8]) -> bool {
    const PIECES: usize = 16;
    const PIECE: usize = 128;
    if block.len() < 2 * PIECES * PIECE {
        return false;
    }
    let mut counts = [0u32; 256];
    for piece in block.chunks(block.len() / PIECES).take(PIECES) {
        for byte in piece.iter().take(PIECE) {
            counts[usize::from(*byte)] += 1;
        }
    }
    // Pairs of equal bytes: 1 in 256 by chance. A tenth more is left to the Huffman codes to judge.
    let pairs: u32 = counts
        .iter()
        .map(|count| count * count.saturating_sub(1))
        .sum();
    let sampled = (PIECES * PIECE) as u32;
    pairs < sampled * (sampled - 1) / 256 / 10 * 11
}

/// Where a decoder finds stored bytes.
pub trait Source {
    /// The first of the `len` bytes at `position`: at least one of them, if they are all there.
    fn bytes(&mut self, position: u64, len: usize) -> Option<&[u8]>;
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

/// Room for decoders to work in.
#[derive(Default)]
pub struct Workspace {
    arrays: sequences::Arrays,
    sequences: Vec<Sequence>,
}

/// Bytes beyond the end of what is decoded that short copies may touch.
const SLACK: usize = 16;

/// Decodes `body` to exactly `raw` bytes, appended to `out`.
///
/// # Errors
///
/// With [`BodyError::Lost`] the tables are those after the block, and `source` was asked for all its references; `out` is
/// as before with any error.
pub fn decode<T: Source>(
    workspace: &mut Workspace,
    body: &[u8],
    position: u64,
    raw: usize,
    tables: &mut Tables,
    source: &mut T,
    out: &mut Vec<u8>,
) -> Result<(), BodyError> {
    let Workspace { arrays, sequences } = workspace;
    sequences::read(body, raw, tables, arrays, sequences)?;
    let literals = sequences::literals(arrays);
    let start = out.len();
    out.resize(start + raw + SLACK, 0);
    let block = out.get_mut(start..).unwrap_or(&mut []);
    let result = execute(sequences, literals, position, raw, source, block);
    out.truncate(if result.is_ok() { start + raw } else { start });
    result
}

/// Decodes what [`Coder::encode_alone`] made of `raw` bytes; `None` for anything else.
pub fn decode_alone(workspace: &mut Workspace, body: &[u8], raw: usize) -> Option<Vec<u8>> {
    struct Nothing;
    impl Source for Nothing {
        fn bytes(&mut self, _position: u64, _len: usize) -> Option<&[u8]> {
            None
        }
    }
    let mut bytes = Vec::new();
    let mut tables = Tables::new();
    decode(
        workspace,
        body,
        0,
        raw,
        &mut tables,
        &mut Nothing,
        &mut bytes,
    )
    .ok()?;
    Some(bytes)
}

/// Carries the sequences out in `block`, which is [`SLACK`] longer than `raw`.
fn execute<T: Source>(
    sequences: &[Sequence],
    mut literals: &[u8],
    position: u64,
    raw: usize,
    source: &mut T,
    block: &mut [u8],
) -> Result<(), BodyError> {
    let (mut at, mut lost) = (0usize, false);
    for sequence in sequences {
        let run = sequence.literals as usize;
        let len = sequence.len as usize;
        if at + run + len > raw || run > literals.len() || sequence.distance == 0 {
            return Err(BodyError::Malformed);
        }
        copy_short(literals, block, at, run);
        literals = &literals[run..];
        at += run;
        let (mut len, mut from) = (len, at);
        if sequence.distance > at as u64 {
            // From before this block, and perhaps on into it.
            let stored = position
                .checked_add(at as u64)
                .and_then(|here| here.checked_sub(sequence.distance));
            let mut stored = stored.ok_or(BodyError::Malformed)?;
            let outside = usize::try_from(sequence.distance - at as u64)
                .unwrap_or(usize::MAX)
                .min(len);
            let end = at + outside;
            while at < end {
                let Some(bytes) = source.bytes(stored, end - at) else {
                    lost = true;
                    at = end;
                    break;
                };
                let now = bytes.len().min(end - at);
                copy_short(bytes, block, at, now);
                at += now;
                stored += now as u64;
            }
            len -= outside;
            from = 0;
        } else {
            from -= sequence.distance as usize;
        }
        copy_within(block, from, at, len);
        at += len;
    }
    if at + literals.len() != raw {
        return Err(BodyError::Malformed);
    }
    copy_short(literals, block, at, literals.len());
    if lost { Err(BodyError::Lost) } else { Ok(()) }
}

/// Copies the first `len` of `from` to `block[at..]`; may write up to [`SLACK`] bytes where nothing is yet.
#[inline(always)]
fn copy_short(from: &[u8], block: &mut [u8], at: usize, len: usize) {
    if len <= 16
        && let (Some(from), Some(to)) = (from.first_chunk::<16>(), block.get_mut(at..at + 16))
    {
        to.copy_from_slice(from);
        return;
    }
    if let (Some(from), Some(to)) = (from.get(..len), block.get_mut(at..at + len)) {
        to.copy_from_slice(from);
    }
}

/// Repeats `len` bytes from `from` at `at`, which may overlap.
#[inline(always)]
fn copy_within(block: &mut [u8], from: usize, at: usize, len: usize) {
    let distance = at - from;
    if distance >= 16 && len <= 16 && at + 16 <= block.len() {
        block.copy_within(from..from + 16, at);
        return;
    }
    if at + len > block.len() {
        return;
    }
    if distance >= len {
        block.copy_within(from..from + len, at);
        return;
    }
    // What has been repeated is repeated with it.
    let mut done = 0;
    while done < len {
        let now = (distance + done).min(len - done);
        block.copy_within(from..from + now, at + done);
        done += now;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dedup::tests::simulation::{self, Rng};

    #[test]
    fn only_what_cannot_shrink_looks_random() {
        let mut rng = Rng::new(1);
        let noise = simulation::noise(&mut rng, MAX);
        let text = simulation::text(&mut rng, MAX);
        assert!(looks_random(&noise));
        assert!(!looks_random(&text));
        assert!(!looks_random(&noise[..1000]), "too little to tell");
        // One byte in eight is a zero: that is worth a try.
        let holed: Vec<u8> = noise
            .iter()
            .enumerate()
            .map(|(at, byte)| if at % 8 == 0 { 0 } else { *byte })
            .collect();
        assert!(!looks_random(&holed));
        let digits: Vec<u8> = noise.iter().map(|byte| b'A' + byte % 64).collect();
        assert!(!looks_random(&digits));
    }

    const MAX: usize = 256 * 1024;

    #[test]
    fn prefixes_and_suffixes_are_counted_to_the_byte() {
        let mut rng = Rng::new(2);
        for _ in 0..2000 {
            let len = rng.below(40);
            let (a, same) = (simulation::noise(&mut rng, len), rng.below(len + 1));
            let mut b = a.clone();
            if same < len {
                b[same] ^= 1;
            }
            assert_eq!(common_prefix(&a, &b), same);
            let (a, b): (Vec<u8>, Vec<u8>) =
                (a.into_iter().rev().collect(), b.into_iter().rev().collect());
            assert_eq!(common_suffix(&a, &b), same);
            let longer = [&b"xyz"[..], &a].concat();
            assert_eq!(common_suffix(&longer, &b), same);
        }
    }
}
