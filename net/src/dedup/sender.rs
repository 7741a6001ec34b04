//! The sending side's dictionary: the log of what was sent, the anchor index over it, and the record of what the peer
//! has confirmed. Encoders, one for each flow, work against it.

mod memory;
mod pins;
mod start;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::ops::Range;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::Rng;

use self::memory::BlockLimit;
use self::pins::Pins;
use super::ControlError;
use super::anchor::{AnchorIndex, Roller};
use super::codec::{Coder, Effort, FarMatch, Input, Parts, Tables};
use super::digest::DigestKey;
use super::encoder::Room;
use super::ranges::RangeSet;
use super::statistics::SenderStatistics;
use super::store::{Log, Store};
use super::wire::{FlowId, Inbox, MAX_BLOCK, Message};
use crate::store::StoreStatistics;

/// How many flows are remembered that were closed before the peer confirmed their last blocks.
const MOST_CLOSED: usize = 1024;

/// Ranges that the record of what the peer has is kept in; of more, the oldest are given up.
const MOST_RANGES: usize = 16 * 1024;

/// Sizes of a sending side.
#[derive(Clone, Copy, Debug)]
pub struct SenderConfig {
    /// Bytes of the log in memory. At least 1 MiB is used.
    pub memory: usize,
    /// Bytes of the anchor index; its sampling follows from it and `memory`.
    pub index_memory: usize,
    /// The most raw bytes of one flow that wait for the peer's confirmation.
    pub flow_credit: usize,
    /// The most raw bytes of all flows together that wait for it (each flow has a block beyond that, so that one
    /// that stands still does not stop the others).
    pub total_credit: usize,
}

impl SenderConfig {
    /// The usual sizes for a log of `memory` bytes.
    pub fn with_memory(memory: usize) -> Self {
        SenderConfig {
            memory,
            index_memory: memory / 32,
            flow_credit: 4 << 20,
            total_credit: (memory / 4).max(1 << 20),
        }
    }
}

/// What a block costs here until the peer confirms it, in bytes at least: its record, its pin and their places.
const LEAST_CHARGE: u64 = 128;

/// What a block for the bytes at `range` takes of the credit.
fn charge(range: &Range<u64>) -> u64 {
    (range.end - range.start).max(LEAST_CHARGE)
}

/// A block that the peer has not confirmed yet.
struct Sent {
    /// Where its bytes lie in the log.
    range: Range<u64>,
    /// Whether the peer stores them there, or has them there already.
    stores: bool,
    /// The bytes themselves, once the log has run over them.
    aside: Option<Vec<u8>>,
    /// The peer has asked for it and not yet been answered.
    wanted: bool,
}

#[derive(Default)]
struct Flow {
    /// Unconfirmed blocks; the first has the number `first`.
    blocks: VecDeque<Sent>,
    first: u32,
    unconfirmed: usize,
    /// What this flow itself has stored and the peer not yet confirmed: the flow may refer to it, others may not.
    own: RangeSet,
    closed: bool,
}

/// The sending side of one direction. `S` is where the log lies.
pub struct Sender<S: Store = Log> {
    pub(super) store: S,
    pub(super) config: SenderConfig,
    pub(super) roller: Roller,
    pub(super) anchors: AnchorIndex,
    coder: Coder,
    effort: Effort,
    pub(super) room: Room,
    block_limit: BlockLimit,
    pub(super) digest: DigestKey,
    pub(super) statistics: SenderStatistics,
    log: [u8; 16],
    random: ChaCha20Rng,
    /// The size of the peer's window, once it has answered the greeting.
    peer: Option<u64>,
    confirmed: RangeSet,
    flows: BTreeMap<FlowId, Flow>,
    next_flow: FlowId,
    closed: VecDeque<FlowId>,
    pins: Pins,
    wanted: VecDeque<(FlowId, u32)>,
    greeting: Option<Vec<u8>>,
    inbox: Inbox,
    /// How many places may still be read from a device to see whether they are alike.
    reads: u32,
}

impl Sender<Log> {
    /// Where the log lies.
    pub fn place(&mut self) -> &mut Log {
        &mut self.store
    }

    /// What the log on a device did.
    pub fn store_statistics(&self) -> StoreStatistics {
        self.store.statistics()
    }
}

impl<S: Store> Sender<S> {
    /// A new session with the peer begins (the tunnel came up): all flows are gone, nothing counts as confirmed until
    /// the peer has said what it holds, and a greeting waits in [`Sender::take_control`].
    pub fn reset_peer(&mut self) {
        let mut key = [0; 32];
        self.random.fill_bytes(&mut key);
        self.digest = DigestKey::new(key);
        self.peer = None;
        self.block_limit.reset_peer();
        self.confirmed.clear();
        self.flows.clear();
        self.closed.clear();
        self.pins.clear();
        self.wanted.clear();
        self.inbox.clear();
        self.statistics.unconfirmed_bytes = 0;
        let mut greeting = Vec::new();
        Message::SenderHello {
            log: self.log,
            head: self.store.head(),
            key,
        }
        .emit(&mut greeting);
        self.greeting = Some(greeting);
    }

    /// How hard blocks are searched for matches from now on.
    pub fn set_effort(&mut self, effort: Effort) {
        self.effort = effort;
    }

    /// Counts since the start.
    pub fn statistics(&self) -> SenderStatistics {
        let mut statistics = self.statistics;
        statistics.confirmed_bytes = self.confirmed.total();
        statistics.flows = self.flows.len() as u64;
        statistics
    }

    /// Whether [`Sender::take_control`] has something to give.
    pub fn control_pending(&self) -> bool {
        self.greeting.is_some() || !self.wanted.is_empty()
    }

    /// Appends control messages for the peer's [`Receiver`](super::Receiver) to `out`: stops after the message that
    /// passes `room` bytes, so at most [`MAX_BLOCK`] and some more than that come out.
    pub fn take_control(&mut self, out: &mut Vec<u8>, room: usize) {
        let start = out.len();
        if let Some(greeting) = self.greeting.take() {
            out.extend_from_slice(&greeting);
        }
        while out.len() - start < room {
            let Some((flow, block)) = self.wanted.pop_front() else {
                break;
            };
            let bytes = self.bytes_again(flow, block);
            match bytes.len() {
                0 => self.statistics.refetches_gone += 1,
                len => self.statistics.refetched_bytes += len as u64,
            }
            let raw = bytes.len();
            match self.coder.encode_alone(&bytes) {
                Some(body) => Message::CodedAnswer {
                    flow,
                    block,
                    raw,
                    body,
                },
                None => Message::Answer { flow, block, bytes },
            }
            .emit(out);
        }
        self.statistics.control_bytes += (out.len() - start) as u64;
    }

    /// The raw bytes of an unconfirmed block; none if they are gone.
    fn bytes_again(&mut self, flow: FlowId, block: u32) -> Vec<u8> {
        let sent = self
            .flows
            .get_mut(&flow)
            .and_then(|flow| flow.blocks.get_mut(block.checked_sub(flow.first)? as usize));
        let Some(sent) = sent else { return Vec::new() };
        sent.wanted = false;
        if let Some(aside) = &sent.aside {
            return aside.clone();
        }
        read(&mut self.store, sent.range.clone()).unwrap_or_default()
    }

    /// Takes in control bytes of the peer's [`Receiver`](super::Receiver), cut anywhere.
    ///
    /// # Errors
    ///
    /// A message that no honest peer sends; the session should end.
    pub fn on_control(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        self.inbox.push(bytes);
        while let Some(message) = self.inbox.next().map_err(|_| ControlError::Malformed)? {
            match message {
                Message::ReceiverHello {
                    log,
                    capacity,
                    ranges,
                } => self.greeted(log, capacity, ranges)?,
                Message::Confirm { flow, blocks } => self.confirm(flow, blocks)?,
                Message::Refetch { flow, block, lost } => self.refetch(flow, block, &lost)?,
                Message::BlockLimit { bytes } => self.block_limit.set_theirs(bytes),
                Message::SenderHello { .. }
                | Message::Answer { .. }
                | Message::CodedAnswer { .. } => {
                    return Err(ControlError::OutOfPlace);
                }
            }
        }
        Ok(())
    }

    fn greeted(
        &mut self,
        log: [u8; 16],
        capacity: u64,
        ranges: Vec<Range<u64>>,
    ) -> Result<(), ControlError> {
        if self.peer.is_some() || log != self.log {
            return Err(ControlError::OutOfPlace);
        }
        self.peer = Some(capacity);
        for range in ranges {
            let held = range.start.max(self.store.tail())..range.end.min(self.store.head());
            self.confirmed.insert(held);
        }
        if let Some(held) = self.store.held() {
            self.confirmed.intersect(&held);
        }
        // What has been sent in this session is confirmed by the block, not by the greeting.
        for flow in self.flows.values() {
            for sent in flow.blocks.iter().filter(|sent| sent.stores) {
                self.confirmed.remove(sent.range.clone());
            }
        }
        Ok(())
    }

    fn confirm(&mut self, id: FlowId, blocks: u32) -> Result<(), ControlError> {
        let Some(flow) = self.flows.get_mut(&id) else {
            if id >= self.next_flow {
                return Err(ControlError::NeverSent);
            }
            self.statistics.stale_messages += 1;
            return Ok(());
        };
        if blocks as usize > flow.blocks.len() {
            return Err(ControlError::NeverSent);
        }
        for sent in flow.blocks.drain(..blocks as usize) {
            let charge = charge(&sent.range);
            self.pins.remove(&(sent.range.start, id, flow.first));
            flow.first = flow.first.wrapping_add(1);
            if !flow.closed {
                flow.unconfirmed = flow.unconfirmed.saturating_sub(charge as usize);
                self.statistics.unconfirmed_bytes =
                    self.statistics.unconfirmed_bytes.saturating_sub(charge);
            }
            if sent.stores {
                flow.own.remove(sent.range.clone());
            }
            // A copy that was fetched again has mended the peer's store.
            self.confirmed.insert(sent.range);
        }
        self.confirmed.trim_below(self.store.tail());
        if flow.closed && flow.blocks.is_empty() {
            self.flows.remove(&id);
            self.closed.retain(|closed| *closed != id);
        }
        Ok(())
    }

    fn refetch(&mut self, id: FlowId, block: u32, lost: &[Range<u64>]) -> Result<(), ControlError> {
        for range in lost {
            self.confirmed.remove(range.clone());
        }
        self.confirmed.keep_newest(MOST_RANGES);
        let Some(flow) = self.flows.get_mut(&id) else {
            if id >= self.next_flow {
                return Err(ControlError::NeverSent);
            }
            // The decoder must hear that nothing will come.
            self.statistics.stale_messages += 1;
            if !self.wanted.contains(&(id, block)) {
                if self.wanted.len() < MOST_CLOSED {
                    self.wanted.push_back((id, block));
                } else {
                    self.statistics.refetches_dropped += 1;
                }
            }
            return Ok(());
        };
        let index = block.checked_sub(flow.first).map(|index| index as usize);
        let Some(sent) = index.and_then(|index| flow.blocks.get_mut(index)) else {
            return Err(ControlError::NeverSent);
        };
        for range in lost {
            flow.own.remove(range.clone());
        }
        flow.own.keep_newest(MOST_RANGES);
        self.statistics.refetches += 1;
        if !core::mem::replace(&mut sent.wanted, true) {
            self.wanted.push_back((id, block));
        }
        Ok(())
    }

    /// A number for a new flow.
    pub(super) fn open_flow(&mut self) -> FlowId {
        let id = self.next_flow;
        self.next_flow = self.next_flow.wrapping_add(1);
        self.flows.insert(id, Flow::default());
        id
    }

    /// The flow sends no more; what is unconfirmed stays answerable for a while.
    pub(super) fn close_flow(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        // What a closed flow has under way takes no credit from the others.
        let unconfirmed = core::mem::take(&mut flow.unconfirmed) as u64;
        self.statistics.unconfirmed_bytes = self
            .statistics
            .unconfirmed_bytes
            .saturating_sub(unconfirmed);
        if flow.blocks.is_empty() {
            self.flows.remove(&id);
            return;
        }
        flow.closed = true;
        self.closed.push_back(id);
        if self.closed.len() > MOST_CLOSED
            && let Some(oldest) = self.closed.pop_front()
        {
            self.forget_flow(oldest);
        }
    }

    /// Drops what is left of a closed flow.
    fn forget_flow(&mut self, id: FlowId) {
        let Some(flow) = self.flows.remove(&id) else {
            return;
        };
        for (number, sent) in (flow.first..).zip(&flow.blocks) {
            self.pins.remove(&(sent.range.start, id, number));
        }
    }

    /// Whether the flow belongs to this session.
    pub(super) fn knows(&self, id: FlowId) -> bool {
        self.flows.contains_key(&id)
    }

    /// Raw bytes that the flow may still take in before the peer confirms some.
    pub(super) fn credit(&self, id: FlowId) -> usize {
        let Some(flow) = self.flows.get(&id) else {
            return 0;
        };
        let free = self
            .config
            .total_credit
            .saturating_sub(self.statistics.unconfirmed_bytes as usize);
        // A flow's share shrinks as the whole fills up, and never falls below one block.
        let share = self
            .config
            .flow_credit
            .min(flow.unconfirmed + free / 2)
            .max(self.block_limit());
        share.saturating_sub(flow.unconfirmed)
    }

    /// The oldest position that may be referred to: there here, and there at the peer when the reference arrives.
    pub(super) fn floor(&self) -> u64 {
        let ours = self.store.capacity();
        let window = self.peer.map_or(ours, |peer| peer.min(ours));
        // While a reference travels, other flows may move the peer's window on.
        let margin = (self.config.total_credit as u64)
            .min(window / 8)
            .max(MAX_BLOCK as u64 / 2);
        (self.store.head() + margin).saturating_sub(window)
    }

    /// Positions below this are used, and stored anew when they are.
    pub(super) fn refresh_below(&self) -> u64 {
        let window = self.peer.map_or(self.store.capacity(), |peer| {
            peer.min(self.store.capacity())
        });
        self.store.head().saturating_sub(window / 8 * 5)
    }

    /// The positions around `position` that the flow may refer to.
    pub(super) fn span(&self, id: FlowId, position: u64) -> Option<Range<u64>> {
        let own = self.flows.get(&id).map(|flow| &flow.own);
        span(&self.confirmed, own, self.floor(), position)
    }

    /// Notes that the window with `fingerprint` ends before `position` of the log.
    pub(super) fn note_anchor(&mut self, fingerprint: u64, position: u64) {
        let hash = self.anchors.hash(fingerprint);
        self.anchors.insert(hash, position);
        self.store.anchor(position, hash);
    }

    /// Up to `most` places may be read from a device only to see whether they are alike.
    pub(super) fn allow_reads(&mut self, most: u32) {
        self.reads = most;
    }

    /// How many of them are left.
    pub(super) fn reads_left(&self) -> u32 {
        self.reads
    }

    /// Makes the bytes around `position` readable, if they are in the log. If it is not `known` that they are wanted, only so
    /// many times.
    #[cold]
    pub(super) fn bring(&mut self, position: u64, known: bool) {
        if !known {
            if self.reads == 0 {
                return;
            }
            self.reads -= 1;
        }
        let mut lost = RangeSet::default();
        self.store.bring(position, &mut lost);
        for range in lost.iter() {
            self.confirmed.remove(range.clone());
        }
    }

    /// Encodes the flow's `len` bytes at `position`, where they lie in one piece; `None` if they do not shrink.
    pub(super) fn encode(
        &mut self,
        id: FlowId,
        position: u64,
        len: usize,
        far: &[FarMatch],
        tables: &mut Tables,
        out: &mut Vec<u8>,
    ) -> Option<Parts> {
        let own = self.flows.get(&id).map(|flow| &flow.own);
        let (confirmed, floor) = (&self.confirmed, self.floor());
        let input = Input {
            store: &self.store,
            position,
            block: self.store.forward(position).get(..len)?,
            span: &|position| span(confirmed, own, floor, position),
        };
        self.coder.encode(&input, far, self.effort, tables, out)
    }

    /// Appends a block's bytes to the log, which must have room for them in one piece, and returns their position.
    pub(super) fn append(&mut self, bytes: &[u8]) -> u64 {
        let position = self.store.head();
        let tail = (position + bytes.len() as u64).saturating_sub(self.store.capacity());
        while let Some(&(start, id, block)) = self.pins.first() {
            if start >= tail {
                break;
            }
            self.pins.pop_first();
            self.keep_aside(id, block);
        }
        self.store.write(position, bytes);
        self.statistics.stored_bytes += bytes.len() as u64;
        self.confirmed.trim_below(self.store.tail());
        position
    }

    /// The log is about to run over an unconfirmed block. An open flow must be able to send it again.
    fn keep_aside(&mut self, id: FlowId, block: u32) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.closed {
            // It was closed so long ago that nobody will ask.
            self.closed.retain(|closed| *closed != id);
            self.forget_flow(id);
            return;
        }
        let Some(index) = block.checked_sub(flow.first) else {
            return;
        };
        let Some(sent) = flow.blocks.get_mut(index as usize) else {
            return;
        };
        if sent.stores {
            flow.own.remove(sent.range.clone());
        }
        sent.aside = read(&mut self.store, sent.range.clone());
        self.statistics.kept_aside += 1;
    }

    /// How many bytes may be appended in one piece.
    pub(super) fn contiguous(&self) -> usize {
        usize::try_from(self.store.contiguous(self.store.head())).unwrap_or(usize::MAX)
    }

    /// Notes that the flow has sent a block for the bytes at `range` of the log.
    pub(super) fn sent(&mut self, id: FlowId, range: Range<u64>, stores: bool) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let block = flow.first.wrapping_add(flow.blocks.len() as u32);
        self.pins.insert((range.start, id, block));
        let charge = charge(&range);
        flow.unconfirmed += charge as usize;
        self.statistics.unconfirmed_bytes += charge;
        if stores {
            flow.own.insert(range.clone());
        }
        flow.blocks.push_back(Sent {
            range,
            stores,
            aside: None,
            wanted: false,
        });
    }
}

/// The positions around `position` that are confirmed or the flow's own, and not below `floor`.
fn span(
    confirmed: &RangeSet,
    own: Option<&RangeSet>,
    floor: u64,
    position: u64,
) -> Option<Range<u64>> {
    let mut span = match confirmed.find(position) {
        Some(span) => span,
        None => own?.find(position)?,
    };
    if let Some(after) = own.and_then(|own| own.find(span.end)) {
        span.end = after.end;
    }
    let last = span.start.checked_sub(1);
    if let Some(before) = last.and_then(|last| confirmed.find(last)) {
        span.start = before.start;
    }
    span.start = span.start.max(floor);
    (span.start <= position && position < span.end).then_some(span)
}

/// The bytes of `range`, if all are in the store.
pub fn read<S: Store>(store: &mut S, range: Range<u64>) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(range.end.checked_sub(range.start)?).ok()?);
    let mut at = range.start;
    while at < range.end {
        if store.forward(at).is_empty() {
            let mut lost = RangeSet::default();
            store.bring(at, &mut lost);
            if lost.touches(range.clone()) {
                return None;
            }
        }
        let piece = store.forward(at);
        let len = usize::try_from(range.end - at)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        if len == 0 {
            return None;
        }
        bytes.extend_from_slice(piece.get(..len)?);
        at += len as u64;
    }
    Some(bytes)
}
