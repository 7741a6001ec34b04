//! Which flow has which 4-tuple and which stream, which have work, and whose timers run. Every look-up costs the same
//! however many flows there are.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::flow::Flow;
use crate::dedup::{LEAST_BLOCK, MAX_BLOCK};
use crate::hash::Keyed;
use crate::time::Instant;
use crate::tunnel::StreamId;
use crate::wire::FlowKey;

/// A flow's place in the table.
pub type Slot = u32;

#[derive(Default)]
struct Place {
    /// Absent while the place is free or the flow has its turn.
    flow: Option<Box<Flow>>,
    queued: bool,
    timer: Option<Instant>,
    /// When the flow may give way to another.
    gives_way: Option<Instant>,
}

/// The flows of a box.
pub struct FlowTable {
    places: Vec<Place>,
    free: Vec<Slot>,
    by_key: HashMap<FlowKey, Slot, Keyed>,
    by_stream: HashMap<StreamId, Slot, Keyed>,
    ready: VecDeque<Slot>,
    timers: BTreeSet<(Instant, Slot)>,
    /// Flows without buffers, by when they may give way to another.
    giving_way: BTreeSet<(Instant, Slot)>,
    /// How many flows have no buffers.
    small: usize,
    /// How many of them each client has.
    small_of: HashMap<Ipv4Addr, u32, Keyed>,
    memory: usize,
    memory_limit: usize,
    /// The last [`FlowTable::block_limit`].
    block_limit: usize,
}

/// Sizes of a flow's buffers (each way) in bytes, by how much of the memory for flows is used: roomy while there is
/// plenty, small when many connections share it.
const BUFFERS: [(usize, usize); 3] = [(50, 256 * 1024), (80, 64 * 1024), (100, 16 * 1024)];
/// What a flow takes beside its buffers, in bytes: sockets, and coders while they are not in the middle of a large block.
const OVERHEAD: usize = 32 * 1024;
/// What a flow takes before it has its buffers, in bytes.
const SMALL: usize = 8 * 1024;
/// The buffers that every flow can have, in bytes.
const LEAST_BUFFER: usize = 16 * 1024;
/// The least that a flow takes when it has its buffers, in bytes.
const LEAST: usize = 2 * LEAST_BUFFER + OVERHEAD;

/// Blocks that a flow holds in its coders when all of them are at work: what is collected, what the tunnel has not taken, what has come of the next, and what its
/// host has not taken.
const HELD_BLOCKS: usize = 4;

/// One client may have one in so many of the flows without buffers that there is room for…
const CLIENT_SHARE: usize = 8;
/// …but always so many.
const CLIENT_LEAST: usize = 32;

/// Why there is no room for one more flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The memory is in use.
    InUse,
    /// The memory is used by or set aside for flows that have carried nothing yet.
    SetAside,
    /// The client has its share of flows that have carried nothing yet.
    Client,
}

impl FlowTable {
    /// A table whose flows hold at most `memory_limit` bytes together.
    pub fn new(memory_limit: usize, hash: &Keyed) -> FlowTable {
        FlowTable {
            places: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::with_hasher(hash.clone()),
            by_stream: HashMap::with_hasher(hash.clone()),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            giving_way: BTreeSet::new(),
            small: 0,
            small_of: HashMap::with_hasher(hash.clone()),
            memory: 0,
            memory_limit,
            block_limit: MAX_BLOCK,
        }
    }

    /// How large the blocks of flows may be, in bytes, down to the least: what is held of a flow in coders is a few blocks, which for all flows together shall be no more than the
    /// memory for flows. A power of two, which does not change to and fro with one flow more and less.
    pub fn block_limit(&mut self) -> usize {
        let flows = (self.len() - self.small).max(1);
        let at_most = |bytes: usize| 1 << bytes.clamp(LEAST_BLOCK, MAX_BLOCK).ilog2();
        let fair = self.memory_limit / HELD_BLOCKS / flows;
        let (now, with_some_to_spare) = (at_most(fair), at_most(fair / 5 * 4));
        self.block_limit = self.block_limit.clamp(with_some_to_spare, now);
        self.block_limit
    }

    /// Whether one more flow of `client`, without buffers at first, finds room. So that such flows get their buffers when
    /// they need them, the least that they take is set aside for each, up to a quarter of the memory.
    ///
    /// # Errors
    /// There is no room, and why.
    pub fn admit(&self, client: Ipv4Addr) -> Result<(), Full> {
        let quarter = self.memory_limit / 4;
        let most = (self.memory_limit - quarter) / SMALL / CLIENT_SHARE;
        let of_client = self.small_of.get(&client).copied().unwrap_or(0);
        if of_client as usize >= most.max(CLIENT_LEAST) {
            return Err(Full::Client);
        }
        let set_aside = (self.small * (LEAST - SMALL)).min(quarter);
        if self.memory + set_aside + LEAST <= self.memory_limit {
            Ok(())
        } else if self.memory - self.small * SMALL + LEAST <= self.memory_limit {
            Err(Full::SetAside)
        } else {
            Err(Full::InUse)
        }
    }

    /// Accounts for the buffers of a flow that has none, and gives their size in bytes; `None`: it has to wait for them.
    pub fn grant(&mut self, flow: &mut Flow) -> Option<usize> {
        let others = self.small.saturating_sub(1) * (LEAST - SMALL);
        let set_aside = others.min(self.memory_limit / 4);
        let base = self.memory.saturating_sub(flow.memory);
        let (buffer, cost) = BUFFERS
            .iter()
            .map(|&(percent, buffer)| (percent, buffer, 2 * buffer + OVERHEAD))
            .find(|&(percent, _, cost)| {
                base + set_aside + cost <= self.memory_limit / 100 * percent
            })
            .map_or((LEAST_BUFFER, LEAST), |(_, buffer, cost)| (buffer, cost));
        if base + cost > self.memory_limit {
            return None;
        }
        self.memory = base + cost;
        self.forget_small(flow);
        flow.memory = cost;
        Some(buffer)
    }

    /// A flow is gone or gets its buffers.
    fn forget_small(&mut self, flow: &Flow) {
        if flow.memory != SMALL {
            return;
        }
        self.small = self.small.saturating_sub(1);
        if let Entry::Occupied(mut of_client) = self.small_of.entry(*flow.key.client.ip()) {
            *of_client.get_mut() -= 1;
            if *of_client.get() == 0 {
                of_client.remove();
            }
        }
    }

    /// Gives a flow in the table its buffers, if there is room.
    pub fn grow(&mut self, slot: Slot) {
        let place = self.places.get_mut(slot as usize);
        if let Some(mut flow) = place.and_then(|place| place.flow.take()) {
            if flow.tcp.is_small()
                && let Some(buffer) = self.grant(&mut flow)
            {
                flow.tcp.grow(buffer);
            }
            let gives_way = flow.gives_way_at();
            if let Some(place) = self.places.get_mut(slot as usize) {
                place.flow = Some(flow);
            }
            self.set_giving_way(slot, gives_way);
        }
    }

    /// The flow that has gone longest without carrying anything, if it has had its time.
    pub fn idlest(&self, now: Instant) -> Option<Slot> {
        let &(at, slot) = self.giving_way.first()?;
        (at <= now).then_some(slot)
    }

    /// A flow is not to give way after all.
    pub fn forget_idlest(&mut self, slot: Slot) {
        self.set_giving_way(slot, None);
    }

    /// Adds a flow without buffers, ready for its first turn. Its 4-tuple and stream are not in the table.
    pub fn insert(&mut self, mut flow: Flow) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as Slot
        });
        flow.memory = SMALL;
        self.memory += SMALL;
        self.small += 1;
        *self.small_of.entry(*flow.key.client.ip()).or_default() += 1;
        let gives_way = flow.gives_way_at();
        self.by_key.insert(flow.key, slot);
        self.by_stream.insert(flow.stream, slot);
        if let Some(place) = self.places.get_mut(slot as usize) {
            place.flow = Some(Box::new(flow));
        }
        self.set_giving_way(slot, gives_way);
        self.wake(slot);
        slot
    }

    /// The flow with a 4-tuple.
    pub fn by_key(&self, key: &FlowKey) -> Option<Slot> {
        self.by_key.get(key).copied()
    }

    /// The flow with a stream.
    pub fn by_stream(&self, stream: StreamId) -> Option<Slot> {
        self.by_stream.get(&stream).copied()
    }

    /// Whether a flow's stream is there: the tunnel that it was opened on has not gone.
    pub fn has_stream(&self, slot: Slot) -> bool {
        let place = self.places.get(slot as usize);
        place
            .and_then(|place| place.flow.as_ref())
            .is_some_and(|flow| self.by_stream(flow.stream) == Some(slot))
    }

    /// The tunnel is gone and all its streams are.
    pub fn forget_streams(&mut self) {
        self.by_stream.clear();
    }

    /// A flow.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Flow> {
        self.places.get_mut(slot as usize)?.flow.as_deref_mut()
    }

    /// Puts a flow in the queue for its turn, if it is not there.
    pub fn wake(&mut self, slot: Slot) {
        if let Some(place) = self.places.get_mut(slot as usize)
            && !place.queued
        {
            place.queued = true;
            self.ready.push_back(slot);
        }
    }

    /// Puts every flow in the queue whose timer has run out.
    pub fn wake_due(&mut self, now: Instant) {
        while let Some(&(at, slot)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            if let Some(place) = self.places.get_mut(slot as usize) {
                place.timer = None;
            }
            self.wake(slot);
        }
    }

    /// Whether some flow is in the queue.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// How many flows are in the queue.
    pub fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// Takes the next flow out for its turn; [`FlowTable::put_back`] or [`FlowTable::remove`] follows.
    pub fn take_ready(&mut self) -> Option<(Slot, Box<Flow>)> {
        while let Some(slot) = self.ready.pop_front() {
            if let Some(place) = self.places.get_mut(slot as usize) {
                place.queued = false;
                if let Some(flow) = place.flow.take() {
                    return Some((slot, flow));
                }
            }
        }
        None
    }

    /// Puts a flow back after its turn, and sets its timer.
    pub fn put_back(&mut self, slot: Slot, flow: Box<Flow>, timer: Option<Instant>) {
        self.set_giving_way(slot, flow.gives_way_at());
        if let Some(place) = self.places.get_mut(slot as usize) {
            place.flow = Some(flow);
        }
        self.set_timer(slot, timer);
    }

    fn set_timer(&mut self, slot: Slot, timer: Option<Instant>) {
        if let Some(place) = self.places.get_mut(slot as usize)
            && place.timer != timer
        {
            if let Some(at) = place.timer.take() {
                self.timers.remove(&(at, slot));
            }
            if let Some(at) = timer {
                self.timers.insert((at, slot));
            }
            place.timer = timer;
        }
    }

    fn set_giving_way(&mut self, slot: Slot, at: Option<Instant>) {
        if let Some(place) = self.places.get_mut(slot as usize)
            && place.gives_way != at
        {
            if let Some(at) = place.gives_way.take() {
                self.giving_way.remove(&(at, slot));
            }
            if let Some(at) = at {
                self.giving_way.insert((at, slot));
            }
            place.gives_way = at;
        }
    }

    /// Forgets a flow that [`FlowTable::take_ready`] gave or that is in the table.
    pub fn remove(&mut self, slot: Slot, flow: &Flow) {
        self.set_timer(slot, None);
        self.set_giving_way(slot, None);
        // Another flow may have the 4-tuple or (over a new tunnel) the stream by now.
        if self.by_key(&flow.key) == Some(slot) {
            self.by_key.remove(&flow.key);
        }
        if self.by_stream(flow.stream) == Some(slot) {
            self.by_stream.remove(&flow.stream);
        }
        self.memory -= flow.memory.min(self.memory);
        self.forget_small(flow);
        // A slot that is still queued is used again only after it has left the queue, else the next flow would seem
        // to be queued already: it is, and simply has its turn.
        if let Some(place) = self.places.get_mut(slot as usize) {
            place.flow = None;
            self.free.push(slot);
        }
    }

    /// Takes a flow out of the table wherever it is.
    pub fn take(&mut self, slot: Slot) -> Option<Box<Flow>> {
        let flow = self.places.get_mut(slot as usize)?.flow.take()?;
        self.remove(slot, &flow);
        Some(flow)
    }

    /// The places of all flows.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.places
            .iter()
            .enumerate()
            .filter(|(_, place)| place.flow.is_some())
            .map(|(slot, _)| slot as Slot)
    }

    /// All flows.
    pub fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.places.iter().filter_map(|place| place.flow.as_deref())
    }

    /// When the next timer runs out.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Bytes that the flows hold.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// How many flows have carried nothing yet, and so have no buffers.
    pub fn small(&self) -> usize {
        self.small
    }
}
