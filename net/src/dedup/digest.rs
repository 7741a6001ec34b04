//! The keyed digest that every block carries: an almost-universal hash (NH, a polynomial over it, a multiply-shift to 64
//! bits; the construction of VMAC, draft-krovetz-vmac-01). It is no cryptographic hash: keys and digests never leave
//! the encrypted tunnel, so whoever chooses the bytes knows neither, and two different blocks agree with
//! probability about 2^-63.

use alloc::boxed::Box;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};

/// Bytes of a digest on the wire.
pub const DIGEST_BYTES: usize = 8;

/// Words of the NH key; a chunk is as long.
const WORDS: usize = 64;
const CHUNK: usize = WORDS * 8;
const MASK_127: u128 = (1 << 127) - 1;
const MASK_63: u128 = (1 << 63) - 1;

/// The expanded key of one session's digests.
#[derive(Clone)]
pub struct DigestKey(Box<Expanded>);

#[derive(Clone)]
struct Expanded {
    nh: [u64; WORDS],
    polynomial: u128,
    fold: [u128; 3],
}

impl core::fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("DigestKey(..)")
    }
}

/// x modulo 2^127 - 1, not fully reduced: below 2^127 + 2.
fn partly_reduced(x: u128) -> u128 {
    (x & MASK_127) + (x >> 127)
}

/// a * b modulo 2^127 - 1, below 2^127; both factors below 2^127.
fn multiply_127(a: u128, b: u128) -> u128 {
    let (a1, a0) = (a >> 64, a & u128::from(u64::MAX));
    let (b1, b0) = (b >> 64, b & u128::from(u64::MAX));
    // a1, b1 < 2^63, so no product of halves overflows; 2^128 is 2 and 2^127 is 1 in this field.
    let middle = a1 * b0 + a0 * b1;
    let high = partly_reduced(2 * (a1 * b1) + (middle >> 63));
    let low = partly_reduced((middle & MASK_63) << 64) + partly_reduced(a0 * b0);
    partly_reduced(partly_reduced(low) + partly_reduced(high)) & MASK_127
}

impl DigestKey {
    /// The key that both ends derive from a session's 32 secret bytes.
    pub fn new(seed: [u8; 32]) -> Self {
        let mut random = ChaCha20Rng::from_seed(seed);
        let mut wide = || (u128::from(random.next_u64()) << 64) | u128::from(random.next_u64());
        let (polynomial, fold) = (wide() & MASK_127, [wide(), wide(), wide()]);
        let mut nh = [0; WORDS];
        for word in &mut nh {
            *word = random.next_u64();
        }
        DigestKey(Box::new(Expanded {
            nh,
            polynomial,
            fold,
        }))
    }

    /// The digest of `bytes`.
    pub fn digest(&self, bytes: &[u8]) -> [u8; DIGEST_BYTES] {
        let key = &*self.0;
        let mut accumulated: u128 = 1;
        let mut chunks = bytes.chunks_exact(CHUNK);
        for chunk in &mut chunks {
            accumulated = step(accumulated, nh(&key.nh, chunk), key.polynomial);
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut padded = [0; CHUNK];
            padded[..rest.len()].copy_from_slice(rest);
            let whole = rest.len().next_multiple_of(16);
            accumulated = step(accumulated, nh(&key.nh, &padded[..whole]), key.polynomial);
        }
        // The length tells a block from the same block with zeros after it.
        accumulated = step(accumulated, bytes.len() as u128, key.polynomial);
        let high = accumulated >> 64;
        let low = accumulated & u128::from(u64::MAX);
        let folded = key.fold[0]
            .wrapping_add(key.fold[1].wrapping_mul(high))
            .wrapping_add(key.fold[2].wrapping_mul(low));
        ((folded >> 64) as u64).to_le_bytes()
    }
}

fn step(accumulated: u128, chunk: u128, key: u128) -> u128 {
    // Both below 2^127: the sum fits, and is brought below 2^127 again by the product.
    multiply_127(accumulated, key).wrapping_add(chunk & (MASK_127 >> 1)) & MASK_127
}

/// NH over whole pairs of words.
fn nh(key: &[u64; WORDS], bytes: &[u8]) -> u128 {
    let mut sum: u128 = 0;
    for (pair, keys) in bytes.chunks_exact(16).zip(key.chunks_exact(2)) {
        let a = u64::from_le_bytes([
            pair[0], pair[1], pair[2], pair[3], pair[4], pair[5], pair[6], pair[7],
        ]);
        let b = u64::from_le_bytes([
            pair[8], pair[9], pair[10], pair[11], pair[12], pair[13], pair[14], pair[15],
        ]);
        let product = u128::from(a.wrapping_add(keys[0])) * u128::from(b.wrapping_add(keys[1]));
        sum = sum.wrapping_add(product);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// The field's product by schoolbook shifts, to hold the fast one against.
    fn slow_multiply(a: u128, b: u128) -> u128 {
        let modulus = MASK_127;
        let mut sum = 0;
        let mut shifted = a % modulus;
        for bit in 0..127 {
            if b >> bit & 1 == 1 {
                sum = (sum + shifted) % modulus;
            }
            shifted = shifted * 2 % modulus;
        }
        sum
    }

    #[test]
    fn products_are_those_of_the_field() {
        let mut random = ChaCha20Rng::from_seed([5; 32]);
        let edges = [
            0,
            1,
            2,
            MASK_127 - 1,
            MASK_127 >> 1,
            u128::from(u64::MAX),
            1 << 64,
            MASK_127 - (1 << 64),
        ];
        let mut cases: Vec<(u128, u128)> = edges
            .iter()
            .flat_map(|a| edges.iter().map(move |b| (*a, *b)))
            .collect();
        for _ in 0..200 {
            let mut wide =
                || (u128::from(random.next_u64()) << 64 | u128::from(random.next_u64())) & MASK_127;
            cases.push((wide(), wide()));
        }
        for (a, b) in cases {
            assert_eq!(
                multiply_127(a, b) % MASK_127,
                slow_multiply(a, b),
                "{a:#x} * {b:#x}"
            );
        }
    }

    #[test]
    fn any_change_and_any_length_changes_it() {
        let key = DigestKey::new([1; 32]);
        let bytes: Vec<u8> = (0..3000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        let whole = key.digest(&bytes);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            assert_ne!(key.digest(&changed), whole, "a bit changed at {at}");
        }
        let zeros = vec![0; 2048];
        let mut seen = alloc::collections::BTreeSet::new();
        for len in 0..zeros.len() {
            assert!(
                seen.insert(key.digest(&zeros[..len])),
                "zeros of length {len}"
            );
        }
        assert_ne!(DigestKey::new([2; 32]).digest(&bytes), whole);
    }

    #[test]
    fn words_may_not_trade_places() {
        let key = DigestKey::new([3; 32]);
        let mut bytes: Vec<u8> = (0..2048u32).map(|i| (i % 255) as u8).collect();
        let before = key.digest(&bytes);
        bytes.swap(0, 8);
        assert_ne!(key.digest(&bytes), before);
        bytes.swap(0, 8);
        bytes.rotate_left(CHUNK);
        assert_ne!(key.digest(&bytes), before);
    }
}
