//! The dictionary's place on the disk: found at the start, written while the box runs, closed before a reset.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};

use outpost::dictionary::{Flushes, Partition, Plan};
use outpost::disk::{Extent, Table};
use outpost_net::Engine;
use outpost_net::flow::StoreTicket;
use outpost_net::store::{BlockDevice, Disk as Store};
use outpost_net::time::Instant;

use super::budget::Shares;
use crate::device::disk::{Counters, Disk};
use crate::device::pci::{Function, Pci};
use crate::firmware::{BootDisk, Findings};
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

/// Finds the partition on the disk that the box was started from, if there is a peer and so a dictionary.
pub fn find(
    findings: &Findings,
    pci: &Pci,
    functions: &[Function],
    shares: &Shares,
) -> Option<Dictionary> {
    let config = findings.config.as_ref().ok()?;
    if config.peers.is_empty() {
        return None;
    }
    // Without a partition the firmware phase has said why.
    let disk = findings.disk?;
    match start(&disk, pci, functions) {
        Ok(started) => Some(Dictionary::new(started, disk.store, shares)),
        Err(why) => {
            output::problem(&format!(
                "the dictionary is in memory only, for the disk cannot be used: {why}"
            ));
            None
        }
    }
}

/// Starts the driver of the disk that the firmware knew.
fn start(boot: &BootDisk, pci: &Pci, functions: &[Function]) -> Result<Disk, String> {
    let (device, number) = boot
        .controller
        .ok_or("it does not hang on PCI; use a virtio disk")?;
    let mut trouble = String::from("its controller is gone from PCI; check the disk");
    // The firmware told device and function, not the bus: with several buses there may be more than one.
    for function in functions {
        if (function.place.device, function.place.function) != (device, number) {
            continue;
        }
        let started = Disk::start(pci, function, boot.block_bytes).and_then(|mut disk| {
            is_same(&mut disk, boot)?;
            Ok(disk)
        });
        match started {
            Ok(disk) => return Ok(disk),
            Err(why) => trouble = why,
        }
    }
    Err(trouble)
}

/// Nothing is written before the driver has read from this disk what the firmware has.
fn is_same(disk: &mut Disk, boot: &BootDisk) -> Result<(), String> {
    if disk.is_read_only() {
        return Err("it is write-protected; use one that can be written".into());
    }
    let table = Table::load(disk).map_err(|error| error.to_string())?;
    match table.find(outpost_image_format::Partition::Store) {
        Ok(Some(extent)) if extent == boot.store => Ok(()),
        _ => Err("the driver does not find on it what the firmware found; check the disk".into()),
    }
}

impl Dictionary {
    fn new(disk: Disk, store: Extent, shares: &Shares) -> Dictionary {
        let plan = Plan::new(store.bytes, shares.dictionary);
        if plan.used < store.bytes {
            log::info!(
                "dictionary: {} MiB of the {} MiB on the disk are used: for more, raise [store] memory in outpost.toml",
                plan.used >> 20,
                store.bytes >> 20
            );
        }
        Dictionary {
            partition: Rc::new(Partition::new(disk, store, plan.used)),
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

    /// What went through the disk's driver.
    pub fn counters(&self) -> Counters {
        self.partition
            .with_disk(|disk| disk.counters)
            .unwrap_or_default()
    }
}

/// Says where the dictionary is and what was found there. `since_ns` is when opening it began.
pub fn announce(engine: &Engine, since_ns: u64) {
    let store = engine.statistics().store;
    let (index, parts) = engine.store_memory();
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
