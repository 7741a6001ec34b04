//! How literals and matches are written: five arrays of bytes (literals; tokens; codes of distances; codes of long runs of
//! literals; codes of long matches), each compressed by itself, and one stream of the bits that the codes leave open.
//!
//! A token is `kind | literals << 2 | length << 4`. Kinds 0 to 2 repeat one of the last three distances; kind 3 takes a new
//! one. Up to two literals and lengths of 3 to 17 fit in; a full field has the rest in its own array.

use alloc::vec::Vec;

use super::super::wire::{Malformed, Reader, put_number};
use super::bits::{BitReader, BitWriter};
use super::huffman::{self, Lengths};
use super::parse::{MIN_MATCH, Sequence};
use super::standard;

const NEW_DISTANCE: u8 = 3;
const MANY_LITERALS: u32 = 3;
const LONG_MATCH: u32 = 15;
/// Logarithms of differences from the last far distance that have codes, each with a sign.
const NEAR_BITS: u32 = 12;
const FAR_CODES: u8 = 2 * NEAR_BITS as u8;
/// The most bits that the codes of one sequence leave open: those of two 32-bit numbers and of a distance.
const MOST_OPEN: usize = 2 * 30 + 62;
/// A distance that is kept as the far one: the match is no accident, and not from right here.
const FAR_LENGTH: u32 = 32;
const FAR_DISTANCE: u64 = 1 << 12;

/// The tables of the flow's last block, one for each array.
#[derive(Clone)]
pub struct Tables {
    literals: Lengths,
    tokens: Lengths,
    distances: Lengths,
    runs: Lengths,
    lengths: Lengths,
}

impl Tables {
    pub fn new() -> Self {
        Tables {
            literals: standard::LITERALS,
            tokens: standard::TOKENS,
            distances: standard::DISTANCES,
            runs: standard::RUNS,
            lengths: standard::LENGTHS,
        }
    }
}

/// The distances that a match may repeat.
struct Distances {
    last: [u64; 3],
    far: u64,
}

impl Distances {
    fn new() -> Self {
        Distances {
            last: [1, 4, 8],
            far: 0,
        }
    }

    /// The token's kind for a distance.
    #[inline(always)]
    fn kind(&self, distance: u64) -> u8 {
        let [a, b, c] = self.last.map(|last| last == distance);
        let later = if b { 1 } else { NEW_DISTANCE - u8::from(c) };
        if a { 0 } else { later }
    }

    /// A new distance as a code and the bits that the code leaves open.
    #[inline(always)]
    fn coded(&self, distance: u64) -> (u8, u64, u32) {
        let difference = distance.abs_diff(self.far);
        if difference > 0 && difference < 1 << NEAR_BITS && difference < distance >> 2 {
            let log = 63 - difference.leading_zeros();
            let code = (2 * log) as u8 | u8::from(distance > self.far);
            return (code, difference - (1 << log), log);
        }
        let log = 63 - (distance | 1).leading_zeros();
        let open = log.saturating_sub(1);
        let half = if log > 0 { distance >> open & 1 } else { 0 };
        let code = FAR_CODES + (2 * log) as u8 + half as u8;
        (code, distance & ((1 << open) - 1), open)
    }

    fn after(&mut self, kind: u8, distance: u64, len: u32) {
        let [a, b, c] = self.last;
        self.last = [
            distance,
            if kind == 0 { b } else { a },
            if kind <= 1 { c } else { b },
        ];
        if len >= FAR_LENGTH && distance >= FAR_DISTANCE {
            self.far = distance;
        }
    }
}

#[inline(always)]
fn put_at(array: &mut [u8], at: usize, code: u8) {
    if let Some(place) = array.get_mut(at) {
        *place = code;
    }
}

/// A number as a code and the bits that the code leaves open.
#[inline]
fn coded(value: u32) -> (u8, u64, u32) {
    if value < 16 {
        return (value as u8, 0, 0);
    }
    let log = 31 - value.leading_zeros();
    let open = log - 1;
    let code = 16 + 2 * (log - 4) + (value >> open & 1);
    (code as u8, u64::from(value & ((1 << open) - 1)), open)
}

/// The number for a code; the reader has at least 31 bits.
#[inline]
fn uncoded(code: u8, bits: &mut BitReader<'_>) -> Result<u32, Malformed> {
    if code < 16 {
        return Ok(u32::from(code));
    }
    let log = 4 + u32::from(code - 16) / 2;
    if log > 20 {
        return Err(Malformed);
    }
    let open = log - 1;
    Ok((2 | u32::from(code & 1)) << open | bits.take(open) as u32)
}

/// The arrays of one block, kept to be used again.
#[derive(Default)]
pub struct Arrays {
    tokens: Vec<u8>,
    distances: Vec<u8>,
    runs: Vec<u8>,
    lengths: Vec<u8>,
    literals: Vec<u8>,
    /// Room for the bit stream, and for making the arrays' streams.
    bits: Vec<u8>,
    room: huffman::Room,
    table: huffman::Table,
}

impl Arrays {
    fn clear(&mut self) {
        for array in [
            &mut self.tokens,
            &mut self.distances,
            &mut self.runs,
            &mut self.lengths,
            &mut self.literals,
        ] {
            array.clear();
        }
    }
}

/// Appends a body for the sequences and literals.
pub fn write(
    sequences: &[Sequence],
    literals: &[u8],
    tables: &mut Tables,
    arrays: &mut Arrays,
    out: &mut Vec<u8>,
) {
    arrays.clear();
    let Arrays {
        tokens,
        distances,
        runs,
        lengths,
        bits,
        room,
        ..
    } = arrays;
    // Each array has room for an entry of every sequence. An entry is written whether a sequence has one or not, and counts only
    // if it has: that cannot be foreseen, and need not.
    for array in [&mut *tokens, distances, runs, lengths] {
        array.resize(sequences.len(), 0);
    }
    let (mut new, mut many, mut long) = (0, 0, 0);
    let mut bits = BitWriter::new(bits, sequences.len() * MOST_OPEN);
    let mut last = Distances::new();
    for (sequence, token) in sequences.iter().zip(tokens.iter_mut()) {
        let Sequence {
            literals,
            len,
            distance,
        } = *sequence;
        let kind = last.kind(distance);
        let len_field = len.saturating_sub(MIN_MATCH as u32);
        *token = kind
            | (literals.min(MANY_LITERALS) as u8) << 2
            | (len_field.min(LONG_MATCH) as u8) << 4;
        let run = literals.saturating_sub(MANY_LITERALS);
        let rest = len_field.saturating_sub(LONG_MATCH);
        let (mut run_code, mut rest_code) = (run as u8, rest as u8);
        if (run | rest) >= 16 {
            let (run, rest) = (coded(run), coded(rest));
            bits.put(run.1 | rest.1 << run.2, run.2 + rest.2);
            (run_code, rest_code) = (run.0, rest.0);
        }
        put_at(runs, many, run_code);
        many += usize::from(literals >= MANY_LITERALS);
        put_at(lengths, long, rest_code);
        long += usize::from(len_field >= LONG_MATCH);
        let is_new = kind == NEW_DISTANCE;
        let (code, open, count) = last.coded(distance);
        put_at(distances, new, code);
        new += usize::from(is_new);
        let (open, count) = if is_new { (open, count) } else { (0, 0) };
        bits.put_wide(open, count);
        last.after(kind, distance, len);
    }
    distances.truncate(new);
    runs.truncate(many);
    lengths.truncate(long);
    put_number(out, sequences.len() as u64);
    put_number(out, literals.len() as u64);
    for (array, table, standard) in [
        (literals, &mut tables.literals, &standard::LITERALS),
        (tokens, &mut tables.tokens, &standard::TOKENS),
        (distances, &mut tables.distances, &standard::DISTANCES),
        (runs, &mut tables.runs, &standard::RUNS),
        (lengths, &mut tables.lengths, &standard::LENGTHS),
    ] {
        huffman::encode(array, table, standard, room, out);
    }
    out.extend_from_slice(bits.finish());
}

/// Reads a body that stands for `raw` bytes: the literals come in one piece, the sequences one by one.
pub fn read(
    body: &[u8],
    raw: usize,
    tables: &mut Tables,
    arrays: &mut Arrays,
    sequences: &mut Vec<Sequence>,
) -> Result<(), Malformed> {
    arrays.clear();
    sequences.clear();
    let mut reader = Reader(body);
    let mut count = |most: usize| -> Result<usize, Malformed> {
        let count = reader
            .number()?
            .and_then(|count| usize::try_from(count).ok())
            .ok_or(Malformed)?;
        if count > most {
            Err(Malformed)
        } else {
            Ok(count)
        }
    };
    let tokens = count(raw / MIN_MATCH)?;
    let literals = count(raw)?;
    huffman::decode(
        &mut reader,
        literals,
        &mut tables.literals,
        &standard::LITERALS,
        &mut arrays.table,
        &mut arrays.literals,
    )?;
    huffman::decode(
        &mut reader,
        tokens,
        &mut tables.tokens,
        &standard::TOKENS,
        &mut arrays.table,
        &mut arrays.tokens,
    )?;
    let (mut new, mut many, mut long) = (0, 0, 0);
    for token in &arrays.tokens {
        new += usize::from(token & 3 == NEW_DISTANCE);
        many += usize::from(u32::from(token >> 2 & 3) == MANY_LITERALS);
        long += usize::from(u32::from(token >> 4) == LONG_MATCH);
    }
    huffman::decode(
        &mut reader,
        new,
        &mut tables.distances,
        &standard::DISTANCES,
        &mut arrays.table,
        &mut arrays.distances,
    )?;
    huffman::decode(
        &mut reader,
        many,
        &mut tables.runs,
        &standard::RUNS,
        &mut arrays.table,
        &mut arrays.runs,
    )?;
    huffman::decode(
        &mut reader,
        long,
        &mut tables.lengths,
        &standard::LENGTHS,
        &mut arrays.table,
        &mut arrays.lengths,
    )?;
    let mut bits = BitReader::new(reader.0);
    let mut distances = Distances::new();
    let (mut new, mut many, mut long) = (
        arrays.distances.iter(),
        arrays.runs.iter(),
        arrays.lengths.iter(),
    );
    sequences.reserve(tokens);
    for token in &arrays.tokens {
        bits.refill();
        let mut literals = u32::from(token >> 2 & 3);
        if literals == MANY_LITERALS {
            literals += uncoded(*many.next().ok_or(Malformed)?, &mut bits)?;
        }
        let mut len = u32::from(token >> 4);
        if len == LONG_MATCH {
            len += uncoded(*long.next().ok_or(Malformed)?, &mut bits)?;
        }
        len += MIN_MATCH as u32;
        let kind = token & 3;
        let distance = match distances.last.get(usize::from(kind)) {
            Some(last) => *last,
            None => {
                let code = *new.next().ok_or(Malformed)?;
                bits.refill();
                match code.checked_sub(FAR_CODES) {
                    None => {
                        let log = u32::from(code >> 1);
                        let difference = 1 << log | bits.take(log);
                        match code & 1 {
                            0 => distances.far.wrapping_sub(difference),
                            _ => distances.far.wrapping_add(difference),
                        }
                    }
                    Some(0 | 1) => 1,
                    Some(code) => {
                        let open = u32::from(code / 2) - 1;
                        if open > 55 {
                            return Err(Malformed);
                        }
                        (2 | u64::from(code & 1)) << open | bits.take(open)
                    }
                }
            }
        };
        distances.after(kind, distance, len);
        sequences.push(Sequence {
            literals,
            len,
            distance,
        });
    }
    Ok(())
}

/// The literals of the body that was read last.
pub fn literals(arrays: &Arrays) -> &[u8] {
    &arrays.literals
}
