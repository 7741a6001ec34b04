//! Two versions of something, made up: prose and records, and the same edited. The same seed gives the same bytes.

/// Numbers from a seed (SplitMix64, Steele, Lea, Flood 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// OLD of `bytes` bytes, half prose and half records, and NEW: OLD with an edit every 32 KiB or so and a piece moved.
pub fn generated(seed: u64, bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let mut numbers = Numbers(seed);
    let words = words(&mut numbers);
    let mut old = prose(&mut numbers, &words, bytes / 2);
    records(&mut numbers, bytes, &mut old);
    let mut new = Vec::with_capacity(bytes);
    // An eighth goes from the end to the front.
    let (most, last) = old.split_at(bytes - bytes / 8);
    let moved = [last, most].concat();
    let mut rest = &moved[..];
    while !rest.is_empty() {
        let (same, more) = rest.split_at(rest.len().min(1 + numbers.below(64 * 1024)));
        new.extend_from_slice(same);
        let gone = more.len().min(numbers.below(200));
        rest = more.get(gone..).unwrap_or_default();
        let length = numbers.below(400);
        new.extend(prose(&mut numbers, &words, length));
    }
    (old, new)
}

fn words(numbers: &mut Numbers) -> Vec<Vec<u8>> {
    (0..4096)
        .map(|_| {
            let syllables = 1 + numbers.below(4);
            (0..syllables)
                .flat_map(|_| {
                    let consonant = b"bcdfghjklmnprstvwz"[numbers.below(18)];
                    [consonant, b"aeiou"[numbers.below(5)]]
                })
                .collect()
        })
        .collect()
}

/// Words of which the first are the most frequent, in lines.
fn prose(numbers: &mut Numbers, words: &[Vec<u8>], bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 16);
    let mut line = 0;
    while text.len() < bytes {
        // About 1/n for the n-th.
        let most = 1 << numbers.below(13);
        if let Some(word) = words.get(numbers.below(most)) {
            text.extend_from_slice(word);
        }
        let ends = text.len() - line > 70;
        text.push(if ends { b'\n' } else { b' ' });
        if ends {
            line = text.len();
        }
    }
    text.truncate(bytes);
    text
}

/// Fills up `out` to `bytes` bytes with records of 32 bytes: a number that grows, a kind, a small value, a checksum's noise.
fn records(numbers: &mut Numbers, bytes: usize, out: &mut Vec<u8>) {
    let mut number = 0u64;
    while out.len() < bytes {
        number += 1 + numbers.below(8) as u64;
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&(numbers.below(6) as u32).to_le_bytes());
        out.extend_from_slice(&(numbers.below(1000) as u64).to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&(numbers.next() as u32).to_le_bytes());
    }
    out.truncate(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_pair_and_another_another() {
        let (old, new) = generated(1, 100_000);
        assert_eq!((old.clone(), new.clone()), generated(1, 100_000));
        assert_ne!(old, generated(2, 100_000).0);
        assert_eq!(old.len(), 100_000);
        assert!(old != new && new.len().abs_diff(100_000) < 10_000);
        assert_eq!(generated(1, 0), (Vec::new(), Vec::new()));
    }
}
