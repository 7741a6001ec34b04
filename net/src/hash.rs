//! Hashing and randomness keyed by the box's seed, so that no one on the wire can choose what collides.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use hashbrown::HashMap;

/// A hasher with a key of its own: `Keyed::with_seed(key)`.
pub type Keyed = foldhash::fast::FixedState;

/// A table with all the memory that it will ever need, as long as it holds no more than `most` entries.
///
/// Twice the room: a table of which at most half is in use clears the traces of what was removed in place, one that is fuller moves.
pub fn bounded<K, V>(most: usize, hash: Keyed) -> HashMap<K, V, Keyed> {
    HashMap::with_capacity_and_hasher(2 * most, hash)
}

/// Random numbers from the box's seed: unpredictable for whoever does not know it, whatever else of them he has seen.
pub struct Random(ChaCha20Rng);

impl Random {
    /// The numbers of `seed`.
    pub fn new(seed: [u8; 32]) -> Random {
        Random(ChaCha20Rng::from_seed(seed))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A seed for something else.
    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.0.fill_bytes(&mut seed);
        seed
    }
}
