//! Anchors: where in the log a window of 32 bytes was seen last, for a sample of all windows. A hit is a hint: whoever
//! uses it compares the bytes, so neither a collision nor a stale entry can do more than waste a comparison.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};

/// Bytes that a fingerprint covers.
pub const WINDOW: usize = 32;

/// The least distance of two anchors.
const SPACING: usize = 8;

/// Entries of one bucket: the newest place of a fingerprint may be one that its flow may not refer to yet.
const WAYS: usize = 4;

/// The keyed rolling hash: each byte shifts the hash by two bits, so that after 32 bytes nothing of the oldest is left,
/// and the top bits depend on the whole window.
#[derive(Clone)]
pub struct Roller {
    gear: Box<[u64; 256]>,
    sample_below: u64,
}

/// A rolling hash on its way through some bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rolling {
    hash: u64,
    /// Bytes taken in since the start, at most [`WINDOW`].
    filled: usize,
}

/// Pieces that are rolled over side by side.
const LANES: usize = 4;

/// A sampled window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The index after the window's last byte.
    pub at: usize,
    /// The window's hash.
    pub fingerprint: u64,
}

impl Roller {
    /// A hash keyed with `seed` that samples one window in `one_in` on average.
    pub fn new(seed: [u8; 32], one_in: u64) -> Self {
        let mut random = ChaCha20Rng::from_seed(seed);
        let mut gear = Box::new([0; 256]);
        for word in gear.iter_mut() {
            *word = random.next_u64();
        }
        Roller {
            gear,
            sample_below: u64::MAX / one_in.max(1),
        }
    }

    /// The fingerprint of the first [`WINDOW`] bytes of `bytes`, if there are as many.
    pub fn fingerprint(&self, bytes: &[u8]) -> Option<u64> {
        let window = bytes.get(..WINDOW)?;
        Some(window.iter().fold(0, |hash, byte| self.rolled(hash, *byte)))
    }

    #[inline(always)]
    fn rolled(&self, hash: u64, byte: u8) -> u64 {
        (hash << 2).wrapping_add(self.gear[usize::from(byte)])
    }

    /// Rolls on over `bytes`, the first of which has the index `base`, and appends the sampled windows to `anchors`. Of
    /// windows closer together than [`SPACING`], as runs of one byte have them, only the first is taken.
    pub fn sample(
        &self,
        rolling: &mut Rolling,
        bytes: &[u8],
        base: usize,
        anchors: &mut Vec<Anchor>,
    ) {
        let start = (WINDOW - rolling.filled.min(WINDOW)).min(bytes.len());
        let (first, rest) = bytes.split_at(start);
        let mut hash = first
            .iter()
            .fold(rolling.hash, |hash, byte| self.rolled(hash, *byte));
        rolling.filled += start;
        let mut free = anchors.last().map_or(0, |last| last.at + SPACING);
        if start > 0 && rolling.filled == WINDOW && hash < self.sample_below && base + start >= free
        {
            anchors.push(Anchor {
                at: base + start,
                fingerprint: hash,
            });
            free = base + start + SPACING;
        }
        let base = base + start;
        // A hash depends on its window only: four quarters are rolled over side by side, for one alone would wait for each
        // sum before the next.
        let quarter = rest.len() / LANES;
        let mut done = 0;
        if quarter >= 4 * WINDOW {
            done = quarter * LANES;
            let new = anchors.len();
            hash = self.sample_lanes(hash, &rest[..done], base, anchors);
            let hits = &mut anchors[new..];
            hits.sort_unstable_by_key(|anchor| anchor.at);
            let mut kept = new;
            for index in new..anchors.len() {
                let anchor = anchors[index];
                if anchor.at >= free {
                    anchors[kept] = anchor;
                    kept += 1;
                    free = anchor.at + SPACING;
                }
            }
            anchors.truncate(kept);
        }
        for (offset, byte) in rest[done..].iter().enumerate() {
            hash = self.rolled(hash, *byte);
            if hash < self.sample_below {
                let at = base + done + offset + 1;
                if at >= free {
                    anchors.push(Anchor {
                        at,
                        fingerprint: hash,
                    });
                    free = at + SPACING;
                }
            }
        }
        rolling.hash = hash;
    }

    /// Rolls over `bytes`, whose length is a multiple of [`LANES`] and several windows for each, and appends every sampled window,
    /// in any order. Gives the hash at the end.
    fn sample_lanes(&self, hash: u64, bytes: &[u8], base: usize, anchors: &mut Vec<Anchor>) -> u64 {
        let quarter = bytes.len() / LANES;
        let (a, rest) = bytes.split_at(quarter);
        let (b, rest) = rest.split_at(quarter);
        let (c, d) = rest.split_at(quarter);
        let before = |lane: &[u8]| {
            let window = &lane[lane.len() - WINDOW..];
            window.iter().fold(0, |hash, byte| self.rolled(hash, *byte))
        };
        let mut hashes: [u64; LANES] = [hash, before(a), before(b), before(c)];
        let below = self.sample_below;
        for (offset, (((a, b), c), d)) in a.iter().zip(b).zip(c).zip(d).enumerate() {
            hashes[0] = self.rolled(hashes[0], *a);
            hashes[1] = self.rolled(hashes[1], *b);
            hashes[2] = self.rolled(hashes[2], *c);
            hashes[3] = self.rolled(hashes[3], *d);
            let least = hashes[0].min(hashes[1]).min(hashes[2].min(hashes[3]));
            if least < below {
                for (lane, fingerprint) in hashes.into_iter().enumerate() {
                    if fingerprint < below {
                        anchors.push(Anchor {
                            at: base + lane * quarter + offset + 1,
                            fingerprint,
                        });
                    }
                }
            }
        }
        hashes[LANES - 1]
    }
}

/// Bits of a fingerprint that the index goes by.
pub const HASH_BITS: u32 = 44;
/// Bits of a position that an entry keeps beyond 32: places within 32 GiB are told apart.
const HIGH_BITS: u32 = 3;

#[derive(Clone, Copy, Default)]
struct Bucket {
    /// The low halves of the positions after the windows, newest first.
    positions: [u32; WAYS],
    /// Three more bits of each position, and thirteen of its fingerprint; a zero is an empty entry.
    rest: [u16; WAYS],
}

/// The index: a table of fixed size from fingerprints to positions.
pub struct AnchorIndex {
    buckets: Vec<Bucket>,
    multiplier: u64,
    #[cfg(test)]
    pub(crate) weak: bool,
}

impl AnchorIndex {
    /// An index of about `bytes` bytes.
    pub fn new(bytes: usize, key: u64) -> Self {
        let buckets = (bytes / size_of::<Bucket>()).max(1);
        AnchorIndex {
            buckets: vec![Bucket::default(); buckets],
            multiplier: key | 1,
            #[cfg(test)]
            weak: false,
        }
    }

    /// Entries that fit.
    pub fn entries(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// Bytes that the table takes.
    pub fn memory(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }

    /// What the index goes by: [`HASH_BITS`] bits, the same for an index of any size with the same key.
    pub fn hash(&self, fingerprint: u64) -> u64 {
        // The top bits of a sampled fingerprint are all alike: the product spreads the others.
        let mixed = fingerprint.wrapping_mul(self.multiplier);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(self.multiplier);
        mixed >> (u64::BITS - HASH_BITS)
    }

    /// Bucket and tag for a hash.
    fn place(&self, hash: u64) -> (usize, u16) {
        #[cfg(test)]
        if self.weak {
            return (0, 1);
        }
        let bucket = (u128::from(hash) * self.buckets.len() as u128) >> HASH_BITS;
        let tag = (hash as u16 & (u16::MAX >> HIGH_BITS)).max(1);
        (bucket as usize, tag)
    }

    /// Notes that a window whose fingerprint has `hash` ends before `position`.
    pub fn insert(&mut self, hash: u64, position: u64) {
        let (bucket, tag) = self.place(hash);
        let Some(bucket) = self.buckets.get_mut(bucket) else {
            return;
        };
        let ([a, b, c, _], [d, e, f, _]) = (bucket.positions, bucket.rest);
        let high = (position >> 32) as u16 & ((1 << HIGH_BITS) - 1);
        bucket.positions = [position as u32, a, b, c];
        bucket.rest = [tag << HIGH_BITS | high, d, e, f];
    }

    /// Notes many at once, as position and hash.
    pub fn fill(&mut self, anchors: &[(u64, u64)]) {
        for some in anchors.chunks(64) {
            self.read_ahead(some.iter().map(|(_, hash)| *hash));
            for (position, hash) in some {
                self.insert(*hash, *position);
            }
        }
    }

    /// Reads what lookups of `anchors` will need, so that they do not wait for memory one after the other.
    pub fn touch(&self, anchors: &[Anchor]) {
        self.read_ahead(anchors.iter().map(|anchor| self.hash(anchor.fingerprint)));
    }

    fn read_ahead(&self, hashes: impl Iterator<Item = u64>) {
        let mut read = 0u32;
        for hash in hashes {
            let (bucket, _) = self.place(hash);
            read ^= self.buckets.get(bucket).map_or(0, |it| it.positions[0]);
        }
        core::hint::black_box(read);
    }

    /// Places where a window with `fingerprint` may have ended, newest first. `head` is the end of the log; places older
    /// than 32 GiB are not told from newer ones.
    pub fn candidates(&self, fingerprint: u64, head: u64) -> impl Iterator<Item = u64> + use<> {
        let (bucket, tag) = self.place(self.hash(fingerprint));
        let bucket = self.buckets.get(bucket).copied().unwrap_or_default();
        (0..WAYS)
            .filter(move |way| bucket.rest[*way] >> HIGH_BITS == tag)
            .filter_map(move |way| {
                let high = u64::from(bucket.rest[way]) & ((1 << HIGH_BITS) - 1);
                let low = high << 32 | u64::from(bucket.positions[way]);
                let back = head.wrapping_sub(low) & ((1 << (32 + HIGH_BITS)) - 1);
                head.checked_sub(back)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u8) -> Vec<u8> {
        let mut bytes = vec![0; len];
        ChaCha20Rng::from_seed([seed; 32]).fill_bytes(&mut bytes);
        bytes
    }

    fn samples(roller: &Roller, bytes: &[u8]) -> Vec<Anchor> {
        let mut all = Vec::new();
        roller.sample(&mut Rolling::default(), bytes, 0, &mut all);
        all
    }

    #[test]
    fn a_fingerprint_depends_on_its_window_only() {
        let roller = Roller::new([7; 32], 16);
        let bytes = noise(20_000, 1);
        let all = samples(&roller, &bytes);
        assert!(
            (600..1400).contains(&all.len()),
            "{} samples of 20000, one in 16 wanted",
            all.len()
        );
        for anchor in &all {
            let window = &bytes[anchor.at - WINDOW..anchor.at];
            assert_eq!(roller.fingerprint(window), Some(anchor.fingerprint));
        }
        let shifted = samples(&roller, &bytes[777..]);
        let same = all.iter().filter(|anchor| {
            anchor.at > 777 + WINDOW
                && shifted.iter().any(|other| {
                    other.at + 777 == anchor.at && other.fingerprint == anchor.fingerprint
                })
        });
        assert!(same.count() + 3 >= shifted.len());
    }

    #[test]
    fn splitting_the_input_changes_nothing() {
        let roller = Roller::new([7; 32], 16);
        let bytes = noise(5000, 2);
        let whole = samples(&roller, &bytes);
        let (mut rolling, mut pieces, mut end) = (Rolling::default(), Vec::new(), 0);
        for len in (1..90).cycle() {
            let upto = (end + len).min(bytes.len());
            roller.sample(&mut rolling, &bytes[end..upto], end, &mut pieces);
            end = upto;
            if end == bytes.len() {
                break;
            }
        }
        assert_eq!(whole, pieces);
    }

    #[test]
    fn a_run_of_one_byte_has_few_anchors() {
        for byte in 0..=255 {
            let roller = Roller::new([8; 32], 16);
            assert!(samples(&roller, &[byte; 1000]).len() <= 1000 / SPACING);
        }
    }

    #[test]
    fn the_newest_places_are_kept() {
        let mut index = AnchorIndex::new(2000, 99);
        for position in [10u64, 20, 30, 40, 50] {
            index.insert(index.hash(1234), position);
        }
        assert_eq!(
            index.candidates(1234, 60).collect::<Vec<_>>(),
            [50, 40, 30, 20]
        );
        // The window may span a boundary of 32 bits, and of the 35 that are kept.
        for far in [(8u64 << 32) + 5, (9 << 32) + 5, (37 << 32) + 5] {
            for back in [1000, 5 << 30, 31 << 30] {
                index.insert(index.hash(77), far - back);
                assert_eq!(index.candidates(77, far).next(), Some(far - back));
            }
        }
        assert_eq!(index.candidates(4321, 60).count(), 0);
    }
}
