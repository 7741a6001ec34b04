//! Makes sending sides: with an empty log, or with what a device has kept of one.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use super::super::anchor::{AnchorIndex, Roller};
use super::super::codec::{Coder, Effort};
use super::super::digest::DigestKey;
use super::super::encoder::Room;
use super::super::ranges::RangeSet;
use super::super::statistics::SenderStatistics;
use super::super::store::{Log, RingStore, Store};
use super::super::wire::Inbox;
use super::memory::BlockLimit;
use super::pins::Pins;
use super::{Sender, SenderConfig};
use crate::store::{Direction, Disk, DiskLog};

impl Sender<Log> {
    /// A sending side with an empty log in memory; `seed` is secret and random, and makes the log's name and keys.
    pub fn new(config: SenderConfig, seed: [u8; 32]) -> Self {
        let store = RingStore::new(config.memory.max(1 << 20));
        Sender::with_store(Log::Memory(store), config, seed)
    }

    /// A sending side whose log lies on `disk`, with what was there before. `memory` bytes are for the parts of it in use;
    /// `seed` is secret, random and never the same twice.
    pub fn on_disk(disk: &Disk, memory: usize, seed: [u8; 32]) -> Self {
        let config =
            SenderConfig::with_memory(usize::try_from(disk.capacity()).unwrap_or(usize::MAX));
        let (name, keys) = disk.sending();
        let (mut anchors, roller) = keyed(disk.capacity(), config.index_memory, keys);
        let log = DiskLog::open(disk, Direction::Sending, memory, &mut |some| {
            anchors.fill(some);
        });
        let mut random = ChaCha20Rng::from_seed(seed);
        let digest = DigestKey::new(drawn(&mut random));
        let store = Log::Disk(Box::new(log));
        Sender::assembled(store, config, (roller, anchors), name, digest, random)
    }
}

impl<S: Store> Sender<S> {
    /// A sending side whose log lies in `store`, which is emptied.
    pub fn with_store(mut store: S, config: SenderConfig, seed: [u8; 32]) -> Self {
        store.clear(0);
        let mut random = ChaCha20Rng::from_seed(seed);
        let log = drawn(&mut random);
        let (anchors, roller) = keyed(store.capacity(), config.index_memory, drawn(&mut random));
        let digest = DigestKey::new(drawn(&mut random));
        Sender::assembled(store, config, (roller, anchors), log, digest, random)
    }

    fn assembled(
        store: S,
        config: SenderConfig,
        (roller, anchors): (Roller, AnchorIndex),
        log: [u8; 16],
        digest: DigestKey,
        random: ChaCha20Rng,
    ) -> Self {
        let mut sender = Sender {
            store,
            config,
            roller,
            anchors,
            coder: Coder::new(),
            effort: Effort::Full,
            room: Room::new(),
            block_limit: BlockLimit::new(),
            digest,
            statistics: SenderStatistics::default(),
            log,
            random,
            peer: None,
            confirmed: RangeSet::default(),
            flows: BTreeMap::new(),
            next_flow: 0,
            closed: VecDeque::new(),
            pins: Pins::default(),
            wanted: VecDeque::new(),
            greeting: None,
            inbox: Inbox::default(),
            reads: 0,
        };
        sender.reset_peer();
        sender
    }
}

fn drawn<const N: usize>(random: &mut ChaCha20Rng) -> [u8; N] {
    let mut bytes = [0; N];
    random.fill_bytes(&mut bytes);
    bytes
}

/// The index of a log of `capacity` bytes, and the hash that samples as many anchors as fit into it.
fn keyed(capacity: u64, memory: usize, keys: [u8; 32]) -> (AnchorIndex, Roller) {
    let mut random = ChaCha20Rng::from_seed(keys);
    let key = drawn(&mut random);
    let anchors = AnchorIndex::new(memory, random.next_u64());
    // Buckets fill unevenly: with a fifth of the entries to spare, few places are lost before their bytes are.
    let one_in = capacity / (anchors.entries() as u64 * 4 / 5).max(1);
    (anchors, Roller::new(key, one_in.max(8)))
}
