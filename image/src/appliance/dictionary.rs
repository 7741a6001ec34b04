//! The dictionary's place on the disk: found at the start, written while the box runs, closed before a reset.

use alloc::boxed::Box;
use alloc::rc::Rc;

use outpost::dictionary::{Flushes, Partition, Plan};
use outpost_net::Engine;
use outpost_net::dedup::StoreMemory;
use outpost_net::flow::StoreTicket;
use outpost_net::store::{BlockDevice, Disk as Store};
use outpost_net::time::Instant;

use super::budget::Shares;
use super::disk::BoxDisk;
use crate::device::disk::Disk;
use crate::firmware::Findings;
use crate::machine::clock;
use crate::output;

const MIB: f64 = 1_048_576.0;

/// The partition `store`, and what is under way there.
pub struct Dictionary {
    partition: Rc<Partition<Disk>>,
    /// What the flush that is under way makes safe.
    flushing: Option<StoreTicket>,
    /// Bytes of memory for the parts of the dictionary in use.
    parts: u64,
}

/// Takes the partition of the disk, if there is a peer and so a dictionary.
pub fn find(
    findings: &Findings,
    disk: Result<Option<&BoxDisk>, &str>,
    shares: &Shares,
) -> Option<Dictionary> {
    let config = findings.config.as_ref().ok()?;
    if config.peers.is_empty() {
        return None;
    }
    match disk {
        // Without a partition the firmware phase has said why.
        Ok(disk) => disk.map(|disk| Dictionary::new(disk, shares)),
        Err(why) => {
            output::problem(format_args!(
                "the dictionary is in memory only, for the disk cannot be used: {why}"
            ));
            None
        }
    }
}

impl Dictionary {
    fn new(disk: &BoxDisk, shares: &Shares) -> Dictionary {
        let store = disk.store;
        let plan = Plan::new(store.bytes, shares.dictionary);
        if plan.used < store.bytes {
            log::info!(
                "dictionary: {} MiB of the {} MiB on the disk are used: for more, raise [store] memory in outpost.toml",
                plan.used >> 20,
                store.bytes >> 20
            );
        }
        Dictionary {
            partition: Rc::new(Partition::new(disk.disk.clone(), store, plan.used)),
            flushing: None,
            parts: plan.parts,
        }
    }

    /// The partition as the engine wants it; none if it is too small.
    pub fn device(&self) -> Option<Rc<dyn BlockDevice>> {
        let size = self.partition.size();
        if size < Store::LEAST_BYTES {
            log::warn!(
                "dictionary: {size} bytes of the disk are too little: it is in memory only; raise [store] memory, or use a larger disk"
            );
            return None;
        }
        Some(self.partition.clone())
    }

    /// Has something done while the disk is waited for (see [`Disk::set_meanwhile`]).
    pub fn set_meanwhile(&self, meanwhile: Option<Box<dyn FnMut()>>) {
        self.partition
            .with_disk(|disk| disk.set_meanwhile(meanwhile));
    }

    /// Bytes of memory for the parts of the dictionary in use.
    pub fn parts(&self) -> u64 {
        self.parts
    }

    /// Writes what is only in memory when it is time to, without waiting for the flush. Call it often.
    pub fn tend(&mut self, engine: &mut Engine, now: Instant) {
        if let Some(ticket) = self.flushing {
            match self.partition.with_disk(Flushes::end_flush).flatten() {
                None => return,
                Some(Ok(())) => engine.store_flushed(ticket),
                Some(Err(error)) => {
                    log::warn!("dictionary: it may not be safe from a power cut: {error:?}")
                }
            }
            self.flushing = None;
        }
        if let Some(ticket) = engine.keep_store(now) {
            let begun = self.partition.with_disk(Flushes::begin_flush);
            self.flushing = matches!(begun, Some(Ok(()))).then_some(ticket);
        }
    }
}

/// Says where the dictionary is and what was found there. `since_ns` is when opening it began.
pub fn announce(engine: &Engine, since_ns: u64) {
    let store = engine.statistics().store;
    let StoreMemory { index, parts, .. } = engine.store_memory();
    if parts == 0 {
        return;
    }
    let mib = |bytes: u64| bytes as f64 / MIB;
    if store.store_capacity_bytes == 0 {
        log::info!("dictionary: {:.1} MiB in memory", mib(parts as u64));
        return;
    }
    log::info!(
        "dictionary: {:.1} MiB on disk, {:.1} MiB warm after {} ms, index {:.1} MiB, parts in memory {:.1} MiB",
        mib(store.store_capacity_bytes),
        mib(store.store_warm_bytes),
        (clock::now_ns() - since_ns) / 1_000_000,
        mib(index as u64),
        mib(parts as u64)
    );
}
