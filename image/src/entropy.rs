//! Random bytes from whatever entropy could be gathered: a hash-based generator in the manner of NIST SP 800-90A's Hash_DRBG,
//! with the key replaced at every request. It gathers nothing itself.

use sha2::{Digest, Sha256};

/// The generator. What it has given out cannot be found from its present state.
pub struct Generator {
    key: [u8; 32],
}

fn hash(kind: u8, key: &[u8; 32], data: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update([kind]);
    hasher.update(key);
    hasher.update(data);
    hasher.finalize().into()
}

impl Generator {
    /// A generator that knows nothing yet; it is as good as what [`Generator::mix`] is given.
    pub const fn new() -> Self {
        Generator { key: [0; 32] }
    }

    /// Adds entropy. However bad `data` is, the state gets no worse.
    pub fn mix(&mut self, data: &[u8]) {
        self.key = hash(0, &self.key, data);
    }

    /// Fills `out` with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for (number, chunk) in (0_u64..).zip(out.chunks_mut(32)) {
            let block = hash(1, &self.key, &number.to_le_bytes());
            for (byte, random) in chunk.iter_mut().zip(block) {
                *byte = random;
            }
        }
        self.key = hash(2, &self.key, &[]);
    }
}

impl Default for Generator {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(generator: &mut Generator, count: usize) -> Vec<u8> {
        let mut out = vec![0; count];
        generator.fill(&mut out);
        out
    }

    #[test]
    fn never_repeats_itself() {
        let mut generator = Generator::new();
        generator.mix(b"seed");
        let first = bytes(&mut generator, 100);
        let second = bytes(&mut generator, 100);
        assert_ne!(first, second);
        assert_ne!(first[..32], first[32..64]);
    }

    #[test]
    fn depends_on_everything_mixed_in() {
        let mut one = Generator::new();
        let mut other = Generator::new();
        for generator in [&mut one, &mut other] {
            generator.mix(b"same");
        }
        other.mix(b"");
        assert_ne!(bytes(&mut one, 32), bytes(&mut other, 32));
    }
}
