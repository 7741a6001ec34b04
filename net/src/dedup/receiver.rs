//! The receiving side's dictionary: what has arrived, by the sender's log positions, and the control channel that tells
//! the sender so. Decoders, one for each flow, work against it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use super::ControlError;
use super::codec::{self, Workspace};
use super::digest::DigestKey;
use super::ranges::RangeSet;
use super::statistics::ReceiverStatistics;
use super::store::{Log, RingStore, Store, StoreMemory};
use super::wire::{FlowId, Inbox, LEAST_BLOCK, MAX_BLOCK, MAX_RANGES, Message};
use crate::spare::Spares;
use crate::store::{Direction, Disk, DiskLog, StoreStatistics};

/// Confirmations wait until they stand for so many bytes, or somebody asks.
const LAZY_BYTES: u64 = 64 * 1024;
/// Ranges that the record of a store keeps; of more, the oldest are given up.
const MOST_PRESENT: usize = 16 * 1024;

/// Bytes of buffers that are kept to be used again.
const SPARE_BYTES: usize = 2 << 20;

/// Whether confirmations may wait for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Only what cannot wait, or has grown to be worth a packet.
    Lazy,
    /// Everything.
    Now,
}

/// Sizes of a receiving side.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverConfig {
    /// Bytes of the store in memory. At least 1 MiB is used. Best the size of the peer's log.
    pub memory: usize,
}

/// The receiving side of one direction. `S` is where the bytes lie.
pub struct Receiver<S: Store = Log> {
    store: S,
    present: RangeSet,
    /// The log that `present` speaks of.
    log: Option<[u8; 16]>,
    /// The session's digest key, once the sender has greeted.
    pub(super) digest: Option<DigestKey>,
    pub(super) statistics: ReceiverStatistics,
    /// Changes with every session: decoders of an earlier one are void.
    pub(super) session: u64,
    /// Blocks to be confirmed, by flow, in order.
    confirms: Vec<(FlowId, u32)>,
    unconfirmed: u64,
    urgent: Vec<u8>,
    answers: BTreeMap<(FlowId, u32), Option<Vec<u8>>>,
    inbox: Inbox,
    pub(super) workspace: Workspace,
    /// Buffers of decoders that hold nothing now.
    pub(super) spares: Spares<Vec<u8>>,
    /// The most raw bytes of a block that are liked.
    pub(super) block_limit: usize,
}

impl Receiver<Log> {
    /// A receiving side with an empty store in memory.
    pub fn new(config: ReceiverConfig) -> Self {
        Receiver::with_store(Log::Memory(RingStore::new(config.memory.max(1 << 20))))
    }

    /// A receiving side whose store lies on `disk`, with what was there before. `memory` bytes are for the parts of it in use.
    pub fn on_disk(disk: &Disk, memory: usize) -> Self {
        let log = DiskLog::open(disk, Direction::Receiving, memory, &mut |_| {});
        let present = log.present();
        let name = (!present.is_empty()).then(|| log.log());
        let mut receiver = Receiver::empty(Log::Disk(alloc::boxed::Box::new(log)));
        receiver.present = present;
        receiver.log = name;
        receiver
    }

    /// Where the store lies.
    pub fn place(&mut self) -> &mut Log {
        &mut self.store
    }

    /// What the store on a device did.
    pub fn store_statistics(&self) -> StoreStatistics {
        self.store.statistics()
    }

    /// What the store has taken.
    pub fn store_memory(&self) -> StoreMemory {
        self.store.memory()
    }
}

impl<S: Store> Receiver<S> {
    /// A receiving side whose bytes lie in `store`, which is emptied.
    pub fn with_store(mut store: S) -> Self {
        store.clear(0);
        Receiver::empty(store)
    }

    fn empty(store: S) -> Self {
        Receiver {
            store,
            present: RangeSet::default(),
            log: None,
            digest: None,
            statistics: ReceiverStatistics::default(),
            session: 0,
            confirms: Vec::new(),
            unconfirmed: 0,
            urgent: Vec::new(),
            answers: BTreeMap::new(),
            inbox: Inbox::default(),
            workspace: Workspace::default(),
            spares: Spares::new(SPARE_BYTES),
            block_limit: MAX_BLOCK,
        }
    }

    /// A new session with the peer begins (the tunnel came up): all flows are gone; the store stays, for the sender's
    /// greeting tells whether it is still of use.
    pub fn reset_peer(&mut self) {
        self.digest = None;
        self.session += 1;
        self.confirms.clear();
        self.unconfirmed = 0;
        self.urgent = Vec::new();
        self.answers.clear();
        self.inbox.clear();
    }

    /// Counts since the start.
    pub fn statistics(&self) -> ReceiverStatistics {
        let mut statistics = self.statistics;
        statistics.present_bytes = self.present.total();
        statistics
    }

    /// Whether [`Receiver::take_control`] has something to give with [`Urgency::Now`].
    pub fn control_pending(&self) -> bool {
        !self.urgent.is_empty() || !self.confirms.is_empty()
    }

    /// Appends control messages for the peer's [`Sender`](super::Sender) to `out`. Ask lazily whenever convenient; within some
    /// tens of milliseconds after [`Receiver::control_pending`] became true, ask for everything.
    pub fn take_control(&mut self, out: &mut Vec<u8>, urgency: Urgency) {
        let start = out.len();
        let now =
            urgency == Urgency::Now || !self.urgent.is_empty() || self.unconfirmed >= LAZY_BYTES;
        if now {
            // Confirmations first: a request names a block that is not among them.
            self.emit_confirms();
            self.unconfirmed = 0;
            out.append(&mut self.urgent);
        }
        self.statistics.control_bytes += (out.len() - start) as u64;
    }

    fn emit_confirms(&mut self) {
        for (flow, blocks) in self.confirms.drain(..) {
            Message::Confirm { flow, blocks }.emit(&mut self.urgent);
        }
    }

    /// Takes in control bytes of the peer's [`Sender`](super::Sender), cut anywhere. Decoders that wait
    /// ([`Decoder::is_waiting`](super::Decoder::is_waiting)) may go on afterwards: push nothing into them.
    ///
    /// # Errors
    ///
    /// A message that no honest peer sends; the session should end.
    pub fn on_control(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        self.inbox.push(bytes);
        while let Some(message) = self.inbox.next().map_err(|_| ControlError::Malformed)? {
            match message {
                Message::SenderHello { log, head, key } => self.greeted(log, head, key)?,
                Message::Answer { flow, block, bytes } => {
                    match self.answers.get_mut(&(flow, block)) {
                        Some(slot) => *slot = Some(bytes),
                        None => self.statistics.stray_answers += 1,
                    }
                }
                Message::CodedAnswer {
                    flow,
                    block,
                    raw,
                    body,
                } => match self.answers.get_mut(&(flow, block)) {
                    Some(slot) => {
                        let bytes = codec::decode_alone(&mut self.workspace, &body, raw);
                        *slot = Some(bytes.ok_or(ControlError::Malformed)?);
                    }
                    None => self.statistics.stray_answers += 1,
                },
                _ => return Err(ControlError::OutOfPlace),
            }
        }
        Ok(())
    }

    fn greeted(&mut self, log: [u8; 16], head: u64, key: [u8; 32]) -> Result<(), ControlError> {
        if self.digest.is_some() {
            return Err(ControlError::OutOfPlace);
        }
        if self.log != Some(log) {
            // Positions of another log say nothing about what is meant now.
            if self.log.is_some() {
                self.statistics.cleared += 1;
            }
            self.log = Some(log);
            self.present.clear();
            self.store.set_log(log);
            self.store.clear(head);
        } else if self.store.head() > head {
            // The sender has lost its newest part, and will use those positions for something else.
            self.statistics.cut_back += 1;
            self.present.remove(head..u64::MAX);
            self.store.truncate(head);
        }
        self.digest = Some(DigestKey::new(key));
        self.present.keep_newest(MAX_RANGES);
        let ranges = self.present.iter().cloned().collect();
        Message::ReceiverHello {
            log,
            capacity: self.store.capacity(),
            ranges,
        }
        .emit(&mut self.urgent);
        if self.block_limit < MAX_BLOCK {
            self.ask_for_limit();
        }
        Ok(())
    }

    /// Keeps no more than that of buffers that decoders do not need now, in bytes.
    pub fn keep_spares(&mut self, bytes: usize) {
        self.spares.keep(bytes);
    }

    /// Asks the peer for blocks that stand for no more bytes than that, and has decoders hold no more than that before they wait.
    pub fn set_block_limit(&mut self, bytes: usize) {
        let bytes = bytes.clamp(LEAST_BLOCK, MAX_BLOCK);
        if core::mem::replace(&mut self.block_limit, bytes) != bytes && self.digest.is_some() {
            self.ask_for_limit();
        }
    }

    fn ask_for_limit(&mut self) {
        let bytes = u32::try_from(self.block_limit).unwrap_or(u32::MAX);
        Message::BlockLimit { bytes }.emit(&mut self.urgent);
    }

    /// Stores a verified block.
    pub(super) fn put(&mut self, position: u64, bytes: &[u8]) {
        let end = position.saturating_add(bytes.len() as u64);
        if position < self.store.tail() {
            self.statistics.late_bytes += bytes.len() as u64;
            return;
        }
        self.store.write(position, bytes);
        self.present.insert(position..end);
        self.present.trim_below(self.store.tail());
        self.bound_record();
        self.statistics.stored_bytes += bytes.len() as u64;
    }

    /// Keeps the record of what is stored from growing with what a peer punches holes into.
    fn bound_record(&mut self) {
        if self.present.iter().len() > MOST_PRESENT {
            self.present.keep_newest(MOST_PRESENT / 2);
        }
    }

    /// The range around `position` that is stored.
    pub(super) fn present(&self, position: u64) -> Option<Range<u64>> {
        self.present.find(position)
    }

    /// The stored bytes from `position` on that lie in one piece.
    #[inline]
    pub(super) fn stored(&self, position: u64) -> &[u8] {
        self.store.forward(position)
    }

    /// Makes the stored bytes around `position` readable. What turns out not to be there is given up, and added to `lost`.
    #[cold]
    pub(super) fn bring(&mut self, position: u64, lost: &mut RangeSet) {
        let mut gone = RangeSet::default();
        self.store.bring(position, &mut gone);
        for range in gone.iter() {
            self.present.remove(range.clone());
            lost.insert(range.clone());
        }
    }

    /// A block of a flow is verified.
    pub(super) fn verified(&mut self, flow: FlowId, raw: usize) {
        match self.confirms.binary_search_by_key(&flow, |(flow, _)| *flow) {
            Ok(at) => {
                if let Some((_, blocks)) = self.confirms.get_mut(at) {
                    *blocks += 1;
                }
            }
            Err(at) => self.confirms.insert(at, (flow, 1)),
        }
        self.unconfirmed += raw as u64;
        self.statistics.blocks += 1;
        self.statistics.raw_bytes += raw as u64;
    }

    /// Asks for a block's bytes, and gives up what turned out not to be there or not to be right.
    pub(super) fn ask(&mut self, flow: FlowId, block: u32, mut lost: RangeSet) {
        for range in lost.iter() {
            self.present.remove(range.clone());
            self.store.forget(range.clone());
        }
        self.bound_record();
        lost.keep_newest(MAX_RANGES);
        self.statistics.refetches += 1;
        self.answers.insert((flow, block), None);
        self.emit_confirms();
        let lost = lost.iter().cloned().collect();
        Message::Refetch { flow, block, lost }.emit(&mut self.urgent);
    }

    /// The answer to [`Receiver::ask`], if it is there.
    pub(super) fn answer(&mut self, flow: FlowId, block: u32) -> Option<Vec<u8>> {
        if self.answers.get(&(flow, block))?.is_none() {
            return None;
        }
        self.answers.remove(&(flow, block))?
    }

    /// The flow is gone: nobody waits for its answers.
    pub(super) fn close(&mut self, flow: FlowId) {
        let gone: Vec<_> = self
            .answers
            .range((flow, 0)..=(flow, u32::MAX))
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.answers.remove(&key);
        }
    }

    /// Damages stored bytes, or forgets them while the record says that they are there: for tests.
    #[cfg(test)]
    pub(crate) fn tamper(&mut self, range: Range<u64>, how: impl Fn(u8) -> u8) {
        let Some(bytes) = super::sender::read(&mut self.store, range.clone()) else {
            return;
        };
        let bytes: Vec<u8> = bytes.into_iter().map(how).collect();
        self.store.write(range.start, &bytes);
    }

    /// Loses a range: for tests.
    #[cfg(test)]
    pub(crate) fn lose(&mut self, range: Range<u64>) {
        self.present.remove(range);
    }
}
