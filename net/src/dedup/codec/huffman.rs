//! Arrays of bytes by Huffman codes of at most eleven bits. A table is sent along, or is the one of the flow's last block,
//! or one that both ends have from the start, whichever is smallest.

use alloc::vec::Vec;

use super::super::wire::{Malformed, Reader, put_number};
use super::bits::{BitReader, BitWriter};

/// The longest code.
const MAX_BITS: u32 = 11;
const TABLE: usize = 1 << MAX_BITS;
/// From this length on, an array is cut into four streams that are decoded side by side.
const FOUR_STREAMS: usize = 1024;

const MODE_RAW: u8 = 0;
const MODE_SAME: u8 = 1;
const MODE_NEW: u8 = 2;
const MODE_LAST: u8 = 3;
const MODE_STANDARD: u8 = 4;

/// The length of each symbol's code; 0 for a symbol that does not occur.
pub type Lengths = [u8; 256];

/// Room for an encoder to work in.
#[derive(Default)]
pub struct Room {
    stream: Vec<u8>,
    streams: Vec<u8>,
    /// A table as it is sent along.
    table: Vec<u8>,
    nibbles: Vec<u8>,
    tree: Tree,
}

/// Room to make a code in.
#[derive(Default)]
struct Tree {
    symbols: Vec<(u32, u8)>,
    weights: Vec<u64>,
    parents: Vec<usize>,
    depths: Vec<u32>,
}

/// How often each byte occurs.
pub fn histogram(bytes: &[u8]) -> [u32; 256] {
    // Four tables, so that runs of one byte do not wait for each other.
    let mut counts = [[0u32; 256]; 4];
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        for (table, byte) in counts.iter_mut().zip(chunk) {
            table[usize::from(*byte)] += 1;
        }
    }
    let [mut sum, b, c, d] = counts;
    for byte in chunks.remainder() {
        sum[usize::from(*byte)] += 1;
    }
    for (symbol, count) in sum.iter_mut().enumerate() {
        *count += b[symbol] + c[symbol] + d[symbol];
    }
    sum
}

/// Optimal code lengths, then cut to [`MAX_BITS`].
fn lengths(counts: &[u32; 256], tree: &mut Tree) -> Lengths {
    let Tree {
        symbols,
        weights,
        parents,
        depths,
    } = tree;
    symbols.clear();
    let used = counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(symbol, count)| (*count, symbol as u8));
    symbols.extend(used);
    let mut lengths = [0; 256];
    match symbols.len() {
        0 => return lengths,
        1 => {
            lengths[usize::from(symbols[0].1)] = 1;
            return lengths;
        }
        _ => {}
    }
    symbols.sort_unstable();
    // Two queues: leaves in order, and inner nodes, which are made in order.
    let leaves = symbols.len();
    weights.clear();
    weights.extend(symbols.iter().map(|(count, _)| u64::from(*count)));
    parents.clear();
    parents.resize(2 * leaves - 1, 0);
    let (mut leaf, mut inner) = (0, leaves);
    for node in leaves..2 * leaves - 1 {
        let mut weight = 0;
        for _ in 0..2 {
            let least = if leaf < leaves && (inner >= node || weights[leaf] <= weights[inner]) {
                leaf += 1;
                leaf - 1
            } else {
                inner += 1;
                inner - 1
            };
            weight += weights[least];
            parents[least] = node;
        }
        weights.push(weight);
    }
    depths.clear();
    depths.resize(2 * leaves - 1, 0);
    for node in (0..2 * leaves - 2).rev() {
        depths[node] = depths[parents[node]] + 1;
    }
    // Kraft's sum in units of the longest code: what is too long is cut, which overdraws the sum; codes that can be made
    // longer at the least cost pay it back.
    let mut sum = 0u64;
    for depth in &mut depths[..leaves] {
        *depth = (*depth).min(MAX_BITS);
        sum += 1 << (MAX_BITS - *depth);
    }
    let full = 1u64 << MAX_BITS;
    while sum > full {
        // The rarest symbol among those with the longest code that is not the longest possible.
        let Some(index) = (0..leaves)
            .filter(|leaf| depths[*leaf] < MAX_BITS)
            .max_by_key(|leaf| (depths[*leaf], leaves - leaf))
        else {
            break;
        };
        sum -= 1 << (MAX_BITS - depths[index] - 1);
        depths[index] += 1;
    }
    // What is left over goes to the most frequent ones that fit.
    for leaf in (0..leaves).rev() {
        while depths[leaf] > 1 && sum + (1 << (MAX_BITS - depths[leaf])) <= full {
            sum += 1 << (MAX_BITS - depths[leaf]);
            depths[leaf] -= 1;
        }
    }
    for ((_, symbol), depth) in symbols.iter().zip(depths.iter()) {
        lengths[usize::from(*symbol)] = *depth as u8;
    }
    lengths
}

/// The codes that the lengths stand for, first bit lowest.
fn codes(lengths: &Lengths) -> [u16; 256] {
    let mut next = [0u32; MAX_BITS as usize + 2];
    for length in lengths.iter().filter(|length| **length > 0) {
        next[usize::from(*length) + 1] += 1;
    }
    for bits in 1..next.len() {
        next[bits] = (next[bits] + next[bits - 1]) << 1;
    }
    // next[n] is the next code of n bits by now.
    let mut codes = [0; 256];
    for (symbol, length) in lengths
        .iter()
        .enumerate()
        .filter(|(_, length)| **length > 0)
    {
        let code = &mut next[usize::from(*length)];
        codes[symbol] = (code.reverse_bits() >> (32 - u32::from(*length))) as u16;
        *code += 1;
    }
    codes
}

/// Bits that the array takes with these codes; `None` if a symbol has none.
fn cost(counts: &[u32; 256], lengths: &Lengths) -> Option<u64> {
    let mut bits = 0;
    for (count, length) in counts.iter().zip(lengths) {
        if *count > 0 && *length == 0 {
            return None;
        }
        bits += u64::from(*count) * u64::from(*length);
    }
    Some(bits)
}

/// Code lengths as nibbles: a length, or 12 and a count less 3 of zeros, or 13 and a byte for more of them, or 14 and a count less 3
/// of repeats of the last length, or 15 for zeros to the end.
fn put_lengths(lengths: &Lengths, nibbles: &mut Vec<u8>, out: &mut Vec<u8>) {
    nibbles.clear();
    let end = lengths
        .iter()
        .rposition(|length| *length > 0)
        .map_or(0, |last| last + 1);
    let mut at = 0;
    while at < end {
        let length = lengths[at];
        let run = lengths[at..end]
            .iter()
            .take_while(|next| **next == length)
            .count();
        at += 1;
        if length == 0 && run >= 3 {
            let run = run.min(19 + 255);
            match run.checked_sub(19) {
                None => nibbles.extend([12, (run - 3) as u8]),
                Some(rest) => nibbles.extend([13, rest as u8 & 15, rest as u8 >> 4]),
            }
            at += run - 1;
            continue;
        }
        nibbles.push(length);
        let repeats = (run - 1).min(18);
        if length > 0 && repeats >= 3 {
            nibbles.extend([14, (repeats - 3) as u8]);
            at += repeats;
        }
    }
    nibbles.push(15);
    for pair in nibbles.chunks(2) {
        out.push(pair[0] | pair.get(1).map_or(0, |high| high << 4));
    }
}

fn read_lengths(reader: &mut Reader<'_>) -> Result<Lengths, Malformed> {
    let (mut lengths, mut at, mut high, mut last) = ([0; 256], 0usize, None, 0u8);
    let mut nibble = || -> Result<u8, Malformed> {
        if let Some(nibble) = high.take() {
            return Ok(nibble);
        }
        let byte = reader.byte().ok_or(Malformed)?;
        high = Some(byte >> 4);
        Ok(byte & 15)
    };
    loop {
        let (value, run) = match nibble()? {
            15 => break,
            12 => (0, usize::from(nibble()?) + 3),
            13 => (0, usize::from(nibble()? | nibble()? << 4) + 19),
            14 => (last, usize::from(nibble()?) + 3),
            length => (length, 1),
        };
        lengths.get_mut(at..at + run).ok_or(Malformed)?.fill(value);
        at += run;
        last = value;
    }
    Ok(lengths)
}

/// A decoding table: for the next eleven bits, a symbol and the length of its code.
#[derive(Default)]
pub struct Table(Vec<u16>);

impl Table {
    fn fill(&mut self, lengths: &Lengths) -> Result<&[u16; TABLE], Malformed> {
        let mut sum = 0u64;
        for length in lengths.iter().filter(|length| **length > 0) {
            if u32::from(*length) > MAX_BITS {
                return Err(Malformed);
            }
            sum += 1 << (MAX_BITS - u32::from(*length));
        }
        if sum > TABLE as u64 {
            return Err(Malformed);
        }
        // Bits that are no code read as a symbol of eleven bits: the digest tells.
        self.0.clear();
        self.0.resize(TABLE, (MAX_BITS as u16) << 8);
        let table: &mut [u16; TABLE] = self.0.as_mut_slice().try_into().map_err(|_| Malformed)?;
        let codes = codes(lengths);
        for (symbol, length) in lengths
            .iter()
            .enumerate()
            .filter(|(_, length)| **length > 0)
        {
            let step = 1usize << length;
            let mut slot = usize::from(codes[symbol]);
            while slot < TABLE {
                table[slot] = u16::from(*length) << 8 | symbol as u16;
                slot += step;
            }
        }
        Ok(table)
    }
}

/// The stream is made in `room`.
fn write_stream<'a>(bytes: &[u8], codes: &[(u16, u8); 256], room: &'a mut Vec<u8>) -> &'a [u8] {
    let mut writer = BitWriter::new(room, bytes.len() * MAX_BITS as usize);
    let code = |byte: u8| {
        let (code, length) = codes[usize::from(byte)];
        (u64::from(code), u32::from(length))
    };
    let mut fours = bytes.chunks_exact(4);
    for four in &mut fours {
        let [a, b, c, d] = [code(four[0]), code(four[1]), code(four[2]), code(four[3])];
        let (ab, cd) = (a.0 | b.0 << a.1, c.0 | d.0 << c.1);
        writer.put(ab | cd << (a.1 + b.1), a.1 + b.1 + c.1 + d.1);
    }
    for byte in fours.remainder() {
        let (code, length) = code(*byte);
        writer.put(code, length);
    }
    writer.finish()
}

fn quarter(len: usize) -> usize {
    len.div_ceil(4)
}

/// Appends `bytes`, working in `room`; `last` is the table of the flow's last block for arrays of this sort, and becomes that of this one.
pub fn encode(
    bytes: &[u8],
    last: &mut Lengths,
    standard: &Lengths,
    room: &mut Room,
    out: &mut Vec<u8>,
) {
    let Some(first) = bytes.first() else { return };
    let counts = histogram(bytes);
    if counts[usize::from(*first)] as usize == bytes.len() {
        out.extend([MODE_SAME, *first]);
        return;
    }
    let fresh = lengths(&counts, &mut room.tree);
    room.table.clear();
    put_lengths(&fresh, &mut room.nibbles, &mut room.table);
    let bits = |cost: Option<u64>, table: usize| cost.map(|bits| bits.div_ceil(8) + table as u64);
    let choices = [
        (MODE_STANDARD, bits(cost(&counts, standard), 0)),
        (MODE_LAST, bits(cost(&counts, last), 0)),
        (MODE_NEW, bits(cost(&counts, &fresh), room.table.len())),
        (MODE_RAW, Some(bytes.len() as u64)),
    ];
    let best = choices
        .iter()
        .filter_map(|(mode, bytes)| Some(((*bytes)?, *mode)))
        .min_by_key(|(bytes, _)| *bytes);
    let mode = best.map_or(MODE_RAW, |(_, mode)| mode);
    out.push(mode);
    match mode {
        MODE_STANDARD => *last = *standard,
        MODE_LAST => {}
        MODE_NEW => {
            *last = fresh;
            out.extend_from_slice(&room.table);
        }
        _ => {
            out.extend_from_slice(bytes);
            return;
        }
    }
    let plain = codes(last);
    let mut codes = [(0, 0); 256];
    for (symbol, code) in codes.iter_mut().enumerate() {
        *code = (plain[symbol], last[symbol]);
    }
    let piece = if bytes.len() >= FOUR_STREAMS {
        quarter(bytes.len())
    } else {
        bytes.len()
    };
    room.streams.clear();
    for piece in bytes.chunks(piece) {
        let stream = write_stream(piece, &codes, &mut room.stream);
        put_number(out, stream.len() as u64);
        room.streams.extend_from_slice(stream);
    }
    out.extend_from_slice(&room.streams);
}

/// Appends `len` decoded bytes to `out`, working in `table`.
pub fn decode(
    reader: &mut Reader<'_>,
    len: usize,
    last: &mut Lengths,
    standard: &Lengths,
    table: &mut Table,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    if len == 0 {
        return Ok(());
    }
    let start = out.len();
    match reader.byte().ok_or(Malformed)? {
        MODE_RAW => {
            out.extend_from_slice(reader.take(len).ok_or(Malformed)?);
            return Ok(());
        }
        MODE_SAME => {
            let byte = reader.byte().ok_or(Malformed)?;
            out.resize(start + len, byte);
            return Ok(());
        }
        MODE_NEW => *last = read_lengths(reader)?,
        MODE_LAST => {}
        MODE_STANDARD => *last = *standard,
        _ => return Err(Malformed),
    }
    let table: &[u16; TABLE] = table.fill(last)?;
    out.resize(start + len, 0);
    let out = out.get_mut(start..).ok_or(Malformed)?;
    if len < FOUR_STREAMS {
        let size = reader
            .number()?
            .and_then(|size| usize::try_from(size).ok())
            .ok_or(Malformed)?;
        let mut stream = BitReader::new(reader.take(size).ok_or(Malformed)?);
        decode_stream(&mut stream, table, out);
        return Ok(());
    }
    let mut sizes = [0; 4];
    for size in &mut sizes {
        *size = reader
            .number()?
            .and_then(|size| usize::try_from(size).ok())
            .ok_or(Malformed)?;
    }
    let mut streams = [BitReader::new(&[]); 4];
    for (stream, size) in streams.iter_mut().zip(sizes) {
        *stream = BitReader::new(reader.take(size).ok_or(Malformed)?);
    }
    let piece = quarter(len);
    let (a, rest) = out.split_at_mut(piece);
    let (b, rest) = rest.split_at_mut(piece);
    let (c, d) = rest.split_at_mut(piece);
    // Side by side as far as the shortest piece goes, then each to its end.
    let whole = d.len() / 5 * 5;
    let [mut sa, mut sb, mut sc, mut sd] = streams;
    let fives = a
        .chunks_exact_mut(5)
        .zip(b.chunks_exact_mut(5))
        .zip(c.chunks_exact_mut(5).zip(d.chunks_exact_mut(5)));
    for ((a, b), (c, d)) in fives {
        sa.refill();
        sb.refill();
        sc.refill();
        sd.refill();
        for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
            *a = symbol(&mut sa, table);
            *b = symbol(&mut sb, table);
            *c = symbol(&mut sc, table);
            *d = symbol(&mut sd, table);
        }
    }
    for (stream, piece) in [(&mut sa, a), (&mut sb, b), (&mut sc, c), (&mut sd, d)] {
        decode_stream(stream, table, piece.get_mut(whole..).unwrap_or(&mut []));
    }
    Ok(())
}

#[inline(always)]
fn symbol(stream: &mut BitReader<'_>, table: &[u16; TABLE]) -> u8 {
    let entry = table[stream.peek() as usize & (TABLE - 1)];
    stream.skip(u32::from(entry >> 8));
    entry as u8
}

fn decode_stream(stream: &mut BitReader<'_>, table: &[u16; TABLE], out: &mut [u8]) {
    for five in out.chunks_mut(5) {
        stream.refill();
        for byte in five {
            *byte = symbol(stream, table);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kraft(lengths: &Lengths) -> u64 {
        lengths
            .iter()
            .filter(|length| **length > 0)
            .map(|length| 1 << (MAX_BITS - u32::from(*length)))
            .sum()
    }

    proptest! {
        #[test]
        fn lengths_make_a_code_and_survive_the_line(counts in prop::collection::vec(0u32..40, 256), scale in 0u32..12) {
            let counts: [u32; 256] = core::array::from_fn(|symbol| counts[symbol].saturating_sub(8).pow(1 + scale % 5));
            let lengths = lengths(&counts, &mut Tree::default());
            prop_assert!(kraft(&lengths) <= TABLE as u64);
            for (count, length) in counts.iter().zip(&lengths) {
                prop_assert_eq!(*count > 0, *length > 0);
                prop_assert!(u32::from(*length) <= MAX_BITS);
            }
            let mut bytes = Vec::new();
            put_lengths(&lengths, &mut Vec::new(), &mut bytes);
            let mut reader = Reader(&bytes);
            prop_assert_eq!(read_lengths(&mut reader), Ok(lengths));
            prop_assert!(reader.0.is_empty());
        }

        #[test]
        fn arrays_survive(skew in 1u32..9, len in 0usize..5000, seed: u64, other: bool) {
            let mut rng = crate::dedup::tests::simulation::Rng::new(seed);
            let bytes: Vec<u8> = (0..len).map(|_| (0..skew).map(|_| rng.below(256)).min().unwrap_or(0) as u8).collect();
            let mut standard = [8; 256];
            if other { standard = lengths(&histogram(&bytes), &mut Tree::default()); }
            let (mut ours, mut theirs) = ([0; 256], [0; 256]);
            for _ in 0..2 {
                let mut wire = Vec::new();
                encode(&bytes, &mut ours, &standard, &mut Room::default(), &mut wire);
                let (mut reader, mut out) = (Reader(&wire), alloc::vec![7]);
                prop_assert_eq!(decode(&mut reader, len, &mut theirs, &standard, &mut Table::default(), &mut out), Ok(()));
                prop_assert!(reader.0.is_empty());
                prop_assert_eq!(&out[1..], &bytes[..]);
                prop_assert_eq!(ours, theirs);
                prop_assert!(wire.len() <= len + 1 + 12);
            }
        }

        #[test]
        fn garbage_is_survived(wire in prop::collection::vec(any::<u8>(), 0..400), len in 0usize..3000) {
            let mut last = [8; 256];
            let _ = decode(&mut Reader(&wire), len, &mut last, &[8; 256], &mut Table::default(), &mut Vec::new());
        }
    }

    #[test]
    fn a_skewed_array_comes_close_to_its_entropy() {
        let bytes: Vec<u8> = (0..60_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 7).trailing_zeros() as u8)
            .collect();
        let (mut last, mut wire) = ([0; 256], Vec::new());
        encode(
            &bytes,
            &mut last,
            &[8; 256],
            &mut Room::default(),
            &mut wire,
        );
        // One bit for half of the symbols, two for a quarter, and so on: two bits on average.
        assert!(
            wire.len() < bytes.len() * 2 / 8 + 60,
            "{} bytes",
            wire.len()
        );
    }
}
