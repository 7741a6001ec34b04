//! A seeded mutator: the changes that find most bugs in parsers, on stable Rust.

/// SplitMix64 (Steele, Lea and Flood): small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of that seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound.max(1) as u64) as usize
    }

    /// `len` bytes of noise.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }

    /// `len` bytes like source code: words of a vocabulary, numbers, lines.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let words: Vec<Vec<u8>> = (0..200)
            .map(|_| {
                (0..2 + self.below(9))
                    .map(|_| b"etaoinshrdlucmfwypvbgkjqxz"[self.below(26).min(self.below(26))])
                    .collect()
            })
            .collect();
        let mut out = Vec::with_capacity(len + 32);
        while out.len() < len {
            match self.below(12) {
                0 => out.extend_from_slice(b"();\n    "),
                1 => out.extend_from_slice(self.below(1000).to_string().as_bytes()),
                _ => {
                    let word = self.below(words.len()).min(self.below(words.len()));
                    out.extend_from_slice(&words[word]);
                    out.push(b' ');
                }
            }
        }
        out.truncate(len);
        out
    }

    /// `bytes` with `edits` places replaced, inserted or removed.
    pub fn edited(&mut self, mut bytes: Vec<u8>, edits: usize) -> Vec<u8> {
        for _ in 0..edits {
            let at = self.below(bytes.len());
            let end = (at + self.below(40)).min(bytes.len());
            let len = self.below(40);
            let new = self.noise(len);
            match self.below(3) {
                0 => bytes.splice(at..end, new).for_each(drop),
                1 => bytes.splice(at..at, new).for_each(drop),
                _ => bytes.drain(at..end).for_each(drop),
            }
        }
        bytes
    }
}

/// Numbers at which something usually changes.
const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x3fff,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x3_ffff,
    0x4_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    (1 << 62) - 1,
    i64::MAX as u64,
    u64::MAX,
];

/// Inputs never become longer than this, in bytes.
pub const MAX_INPUT: usize = 64 * 1024;

/// One input made of `input`: one to five changes. `other` is where splices come from.
pub fn mutate(random: &mut Random, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + random.below(3) + random.below(3) {
        change(random, &mut bytes, other);
    }
    bytes.truncate(MAX_INPUT);
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(bytes.len());
    // Short stretches more often than long ones.
    let most = [1, 4, 16, 64, 1024, MAX_INPUT][random.below(6)];
    let len = 1 + random.below(most);
    let end = (at + len).min(bytes.len());
    match random.below(11) {
        0..3 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        3 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = NUMBERS[random.below(NUMBERS.len())] as u8;
            }
        }
        4 => overwrite_number(random, bytes, at),
        5 => bytes.truncate(at),
        6 => bytes.drain(at..end).for_each(drop),
        7 => {
            let new = random.noise(len.min(64));
            bytes.splice(at..at, new).for_each(drop);
        }
        8 => {
            let again = bytes[at..end].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, again).for_each(drop);
        }
        9 => {
            let from = random.below(other.len());
            let piece = other[from..(from + len).min(other.len())].to_vec();
            bytes.splice(at..at, piece).for_each(drop);
        }
        _ => {
            let from = random.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

/// Puts a number in one of the forms that the formats use.
fn overwrite_number(random: &mut Random, bytes: &mut Vec<u8>, at: usize) {
    let number = NUMBERS[random.below(NUMBERS.len())].wrapping_add(random.below(3) as u64);
    let width = 1 << random.below(4);
    let form = match random.below(3) {
        0 => number.to_le_bytes()[..width].to_vec(),
        1 => number.to_be_bytes()[8 - width..].to_vec(),
        _ => leb128(number),
    };
    let replaced = if random.below(2) == 0 { form.len() } else { 1 };
    let end = (at + replaced).min(bytes.len());
    bytes.splice(at..end, form).for_each(drop);
}

/// A number in groups of seven bits, lowest first.
pub fn leb128(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_changes_again_and_another_seed_others() {
        let input: Vec<u8> = (0..200).collect();
        let make = |seed| {
            let mut random = Random::new(seed);
            (0..50)
                .map(|_| mutate(&mut random, &input, b"another one"))
                .collect::<Vec<_>>()
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        assert!(make(1).iter().filter(|made| **made != input).count() > 45);
    }

    #[test]
    fn nothing_can_be_mutated_too() {
        let mut random = Random::new(3);
        for _ in 0..2000 {
            mutate(&mut random, b"", b"");
            assert!(mutate(&mut random, b"x", b"").len() <= MAX_INPUT);
        }
    }
}
