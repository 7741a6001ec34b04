//! Streams: flow control for each and for the whole, and who sends next.
//!
//! No packets, no time-outs: frames come in, frames go out, and the connection tells which frames arrived.

mod receive;
mod send;
mod transmit;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};

use crate::spare::Spares;

use super::types::{Event, Read, StreamId, TunnelConfig, Violation};
use receive::ReceiveHalf;
use send::SendHalf;

/// What either side may send on a stream before it hears of a larger window: small, because as much is set aside for
/// every stream, whether its reader reads or not.
const INITIAL_STREAM_WINDOW: u64 = 32 << 10;
/// What a new stream's window is made at once, which the other side hears with the stream's first bytes or the first answer: a
/// whole block of the dictionary's coders, which would otherwise wait for a round trip in its middle…
const EARLY_STREAM_WINDOW: u64 = 128 << 10;
/// …while so small a part of the memory that all streams share is promised: many readers that have stopped must not fill it.
const EARLY_PART: u64 = 4;
/// The window of a stream grows to this at most: 100 Mbit/s × 300 ms is 3.75 MB, as much may queue, and twice that is
/// held while something lost is on its way again.
const MAX_STREAM_WINDOW: u64 = 16 << 20;
/// A stream keeps this window however full the connection's memory is.
const MIN_STREAM_WINDOW: u64 = 16 << 10;
/// What either side may send over all streams before it hears of a larger window.
const INITIAL_WINDOW: u64 = 1 << 20;
/// The first stream of each side, on which the two ends agree about the others, is not held up when those fill the
/// connection's window: its own window alone bounds it.
const UNCOUNTED_STREAMS: u64 = 2;
/// Streams that either side may open before it hears of more.
const INITIAL_STREAMS: u64 = 256;
/// Bytes that each stream may hold for sending however much the others hold.
const MIN_SEND_BUFFER: usize = 2 << 10;
/// After a short write, room of so much is worth an event.
const WORTHWHILE_ROOM: usize = 8 << 10;
/// Bytes of buffers of either direction that are kept to be used again.
const SPARE_BYTES: usize = 2 << 20;
/// One that is full of what a flow may have under way at least.
const LEAST_SPARE_BYTES: usize = 256 << 10;

/// Of so much memory for buffers.
fn spare_bytes(memory: u32) -> usize {
    let eighth = usize::try_from(memory / 8).unwrap_or(usize::MAX);
    eighth.clamp(LEAST_SPARE_BYTES, SPARE_BYTES)
}

/// Which queue a stream waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    None,
    /// Has sent little of late, or has something to send again: goes before the others.
    Fresh,
    /// Takes its turn.
    Ready,
    /// Waits for the connection's window.
    Blocked,
}

struct Stream {
    send: SendHalf,
    receive: ReceiveHalf,
    queue: Queue,
    /// Entries in queues with another ticket are void.
    ticket: u32,
    /// Bytes it may still send from the fresh queue.
    credit: usize,
    /// We reset it with this code.
    reset: Option<u32>,
    reset_acknowledged: bool,
    /// The peer reset it.
    reset_received: bool,
    /// The reader knows that it has read everything.
    end_read: bool,
    window_update_queued: bool,
    readable_queued: bool,
    writable_queued: bool,
    wants_room: bool,
}

/// Whether the stream's bytes count for the connection's window.
fn is_counted(number: u64) -> bool {
    number >= UNCOUNTED_STREAMS
}

impl Stream {
    fn is_done(&self) -> bool {
        let sending = if self.reset.is_some() {
            self.reset_acknowledged
        } else {
            self.send.is_done()
        };
        let receiving = if self.reset.is_some() {
            self.receive.size_is_known()
        } else {
            self.end_read
        };
        sending && receiving
    }
}

/// Frames that are not stream data, waiting to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Reset(u64),
    MaxStreamData(u64),
    MaxData,
    MaxStreams,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StreamCounters {
    pub(super) sent: u64,
    pub(super) again: u64,
    pub(super) received: u64,
}

pub(super) struct Streams {
    initiator: bool,
    generation: u16,
    streams: BTreeMap<u64, Box<Stream>>,
    /// Streams opened by us, ever; and how many the peer allows.
    opened_here: u64,
    opened_here_limit: u64,
    /// Streams opened by the peer, ever; how many of them are over; and how many we allow.
    opened_there: u64,
    closed_there: u64,
    opened_there_limit: u64,
    max_streams: u64,
    /// New bytes sent over all streams, and the peer's limit for them.
    sent: u64,
    sent_limit: u64,
    /// Sum of the streams' highest offsets, what of it has been read, and our limit.
    received: u64,
    consumed: u64,
    received_limit: u64,
    receive_memory: u64,
    /// Sum of what the streams' windows let the peer make us hold.
    granted: u64,
    /// Bytes held for sending over all streams, and what may be.
    held: usize,
    send_memory: usize,
    stream_buffer: usize,
    total_buffer: usize,
    fresh: VecDeque<(u64, u32)>,
    ready: VecDeque<(u64, u32)>,
    blocked: VecDeque<(u64, u32)>,
    turn: u32,
    control: VecDeque<Control>,
    max_data_queued: bool,
    max_streams_queued: bool,
    events: VecDeque<Event>,
    /// Buffers of streams that hold nothing now.
    send_spares: Spares<VecDeque<u8>>,
    receive_spares: Spares<VecDeque<u8>>,
    pub(super) counters: StreamCounters,
}

impl Streams {
    pub(super) fn new(config: &TunnelConfig, initiator: bool, generation: u16) -> Self {
        let mut streams = Streams {
            initiator,
            generation,
            streams: BTreeMap::new(),
            opened_here: 0,
            opened_here_limit: INITIAL_STREAMS,
            opened_there: 0,
            closed_there: 0,
            opened_there_limit: INITIAL_STREAMS,
            max_streams: u64::from(config.max_streams).max(INITIAL_STREAMS),
            sent: 0,
            sent_limit: INITIAL_WINDOW,
            received: 0,
            consumed: 0,
            received_limit: INITIAL_WINDOW,
            receive_memory: u64::from(config.receive_memory).max(INITIAL_WINDOW),
            granted: 0,
            held: 0,
            send_memory: usize::try_from(config.send_memory)
                .unwrap_or(usize::MAX)
                .max(1 << 20),
            stream_buffer: 0,
            total_buffer: 0,
            fresh: VecDeque::new(),
            ready: VecDeque::new(),
            blocked: VecDeque::new(),
            turn: 0,
            control: VecDeque::new(),
            max_data_queued: false,
            max_streams_queued: false,
            events: VecDeque::new(),
            send_spares: Spares::new(spare_bytes(config.send_memory)),
            receive_spares: Spares::new(spare_bytes(config.receive_memory)),
            counters: StreamCounters::default(),
        };
        streams.set_window(0);
        streams.queue_connection_updates();
        streams
    }

    /// Buffers follow the congestion window: enough to keep the line busy, not so much that what is written waits long.
    pub(super) fn set_window(&mut self, congestion_window: u64) {
        let window = usize::try_from(congestion_window).unwrap_or(usize::MAX);
        self.stream_buffer = window
            .saturating_mul(3)
            .clamp(256 << 10, self.send_memory.max(256 << 10));
        self.total_buffer = window.saturating_mul(4).clamp(1 << 20, self.send_memory);
    }

    /// Bytes written and not acknowledged, of all streams.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn open_streams(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        let (id, readable) = match event {
            Event::Readable(id) => (id, true),
            Event::Writable(id) => (id, false),
            _ => return Some(event),
        };
        if let Some(stream) = self.streams.get_mut(&id.number()) {
            if readable {
                stream.readable_queued = false;
            } else {
                stream.writable_queued = false;
            }
        }
        Some(event)
    }

    fn id(&self, number: u64) -> StreamId {
        StreamId::new(self.generation, number)
    }

    fn is_ours(&self, number: u64) -> bool {
        number.is_multiple_of(2) == self.initiator
    }

    fn get(&self, id: StreamId) -> Option<&Stream> {
        if id.generation() != self.generation {
            return None;
        }
        self.streams.get(&id.number()).map(|s| &**s)
    }

    /// A stream of this connection that was not reset on either side.
    fn live(&mut self, id: StreamId) -> Option<&mut Stream> {
        if id.generation() != self.generation {
            return None;
        }
        self.streams
            .get_mut(&id.number())
            .map(|s| &mut **s)
            .filter(|s| s.reset.is_none())
    }

    fn insert(&mut self, number: u64) {
        let mut stream = Stream {
            send: SendHalf::new(INITIAL_STREAM_WINDOW),
            receive: ReceiveHalf::new(INITIAL_STREAM_WINDOW),
            queue: Queue::None,
            ticket: 0,
            credit: 0,
            reset: None,
            reset_acknowledged: false,
            reset_received: false,
            end_read: false,
            window_update_queued: false,
            readable_queued: false,
            writable_queued: false,
            wants_room: false,
        };
        let promised = self.granted + EARLY_STREAM_WINDOW;
        if is_counted(number) && promised <= self.receive_memory / EARLY_PART {
            stream.receive.widen(EARLY_STREAM_WINDOW);
            stream.window_update_queued = true;
            self.control.push_back(Control::MaxStreamData(number));
        }
        self.granted += stream.receive.granted();
        self.streams.insert(number, Box::new(stream));
    }

    /// A new stream; `None` while the peer allows no more.
    pub(super) fn open(&mut self) -> Option<StreamId> {
        if self.opened_here >= self.opened_here_limit {
            return None;
        }
        let number = self.opened_here * 2 + u64::from(!self.initiator);
        if number > StreamId::MAX_NUMBER {
            return None;
        }
        self.opened_here += 1;
        self.insert(number);
        Some(self.id(number))
    }

    /// Bytes that [`write`](Self::write) would take. When there is little room, an event will tell of more.
    pub(super) fn writable(&mut self, id: StreamId) -> usize {
        let room = match self.get(id) {
            Some(s) if s.reset.is_none() && s.send.is_open() => self.room(s),
            _ => return 0,
        };
        if room < WORTHWHILE_ROOM
            && let Some(stream) = self.live(id)
        {
            stream.wants_room = true;
        }
        room
    }

    /// A stream may hold as much as is left for all: so one alone may hold half, and many get about the same each. But
    /// nothing that the peer's window does not let go: a reader that has stopped must not fill the memory of the others.
    fn room(&self, stream: &Stream) -> usize {
        let free = self.total_buffer.saturating_sub(self.held);
        self.stream_buffer
            .min(free.max(MIN_SEND_BUFFER))
            .saturating_sub(stream.send.held())
            .min(stream.send.window())
    }

    pub(super) fn write(&mut self, id: StreamId, data: &[u8]) -> usize {
        let accepted = data.len().min(self.writable(id));
        if let Some(front) = data.get(..accepted)
            && accepted > 0
            && let Some(stream) = self.streams.get_mut(&id.number())
        {
            stream.send.write(front, &mut self.send_spares);
            self.held += accepted;
            self.activate(id.number(), false);
            // Asks for an event if that filled it up.
            self.writable(id);
        }
        accepted
    }

    pub(super) fn finish(&mut self, id: StreamId) {
        if let Some(stream) = self.live(id) {
            stream.send.finish();
            self.activate(id.number(), false);
        }
    }

    pub(super) fn read(&mut self, id: StreamId, out: &mut [u8]) -> Read {
        let is_ours = id.generation() == self.generation;
        let stream = self.streams.get_mut(&id.number());
        let Some(stream) = stream.filter(|s| is_ours && s.reset.is_none()) else {
            // It was reset, which an event tells, or its end was read before.
            return Read {
                len: 0,
                finished: false,
            };
        };
        let granted = stream.receive.granted();
        let len = stream.receive.read(out, &mut self.receive_spares);
        let taken_back = granted - stream.receive.granted();
        let finished = stream.receive.is_finished();
        stream.end_read |= finished;
        if len > 0 && !stream.window_update_queued && stream.receive.wants_update() {
            stream.window_update_queued = true;
            self.control.push_back(Control::MaxStreamData(id.number()));
        }
        self.granted -= taken_back;
        self.note_consumed(id.number(), len as u64);
        if finished {
            self.remove_if_done(id.number());
        }
        Read { len, finished }
    }

    /// Bytes that [`read`](Self::read) could give now.
    pub(super) fn readable(&self, id: StreamId) -> usize {
        self.get(id)
            .filter(|s| s.reset.is_none())
            .map_or(0, |s| s.receive.readable())
    }

    pub(super) fn reset(&mut self, id: StreamId, code: u32) {
        if self.live(id).is_some() {
            self.abort(id.number(), code);
            self.remove_if_done(id.number());
        }
    }

    /// Drops all that the stream holds, and tells the peer.
    fn abort(&mut self, number: u64, code: u32) {
        let Some(stream) = self.streams.get_mut(&number) else {
            return;
        };
        if stream.reset.is_some() {
            return;
        }
        stream.reset = Some(code);
        stream.queue = Queue::None;
        stream.wants_room = false;
        self.held = self.held.saturating_sub(stream.send.abort());
        self.granted -= stream.receive.granted();
        let unread = stream.receive.abort();
        self.control.push_back(Control::Reset(number));
        self.note_consumed(number, unread);
    }

    fn remove_if_done(&mut self, number: u64) {
        if !self.streams.get(&number).is_some_and(|s| s.is_done()) {
            return;
        }
        if let Some(stream) = self.streams.remove(&number) {
            self.granted -= stream.receive.granted();
        }
        if !self.is_ours(number) {
            self.closed_there += 1;
            self.queue_connection_updates();
        }
    }

    /// Queues MAX_DATA and MAX_STREAMS when the peer should hear of them.
    fn queue_connection_updates(&mut self) {
        // A quarter of the window at a time, or less when readers that have stopped leave the others less than that.
        let more = (self.consumed + self.receive_memory).saturating_sub(self.received_limit);
        let left = self.received_limit.saturating_sub(self.received);
        let worthwhile = (self.receive_memory / 4).min(left.max(MIN_STREAM_WINDOW));
        if !self.max_data_queued && more >= worthwhile {
            self.max_data_queued = true;
            self.control.push_back(Control::MaxData);
        }
        let limit = self.closed_there + self.max_streams;
        if !self.max_streams_queued
            && limit >= self.opened_there_limit + (self.max_streams / 8).max(1)
        {
            self.max_streams_queued = true;
            self.control.push_back(Control::MaxStreams);
        }
    }

    /// Finds the stream a frame is about, opening it if it is new. `None` if it is over.
    fn find(&mut self, number: u64) -> Result<Option<&mut Stream>, Violation> {
        if number > StreamId::MAX_NUMBER {
            return Err(Violation::StreamLimit);
        }
        let count = number / 2 + 1;
        if self.is_ours(number) {
            if count > self.opened_here {
                return Err(Violation::StreamLimit);
            }
        } else {
            if count > self.opened_there_limit {
                return Err(Violation::StreamLimit);
            }
            // Those below it were opened, too; their frames are still on their way.
            while self.opened_there < count {
                let opened = self.opened_there * 2 + u64::from(self.initiator);
                self.opened_there += 1;
                self.insert(opened);
                self.events.push_back(Event::Opened(self.id(opened)));
            }
        }
        Ok(self.streams.get_mut(&number).map(|s| &mut **s))
    }

    pub(super) fn on_data(
        &mut self,
        number: u64,
        offset: u64,
        data: &[u8],
        finished: bool,
    ) -> Result<(), Violation> {
        let mut spares = core::mem::take(&mut self.receive_spares);
        let result = self.on_bytes(number, offset, data, finished, &mut spares);
        self.receive_spares = spares;
        result
    }

    fn on_bytes(
        &mut self,
        number: u64,
        offset: u64,
        data: &[u8],
        finished: bool,
        spares: &mut Spares<VecDeque<u8>>,
    ) -> Result<(), Violation> {
        let Some(stream) = self.find(number)? else {
            return Ok(());
        };
        if stream.reset.is_some() {
            let advanced = stream
                .receive
                .discard(offset + data.len() as u64, finished)?;
            self.take_window(number, advanced)?;
            self.note_consumed(number, advanced);
            self.remove_if_done(number);
            return Ok(());
        }
        let granted = stream.receive.granted();
        let arrival = stream.receive.receive(offset, data, finished, spares)?;
        // The end takes back what the window allowed beyond it.
        let taken_back = granted - stream.receive.granted();
        if arrival.readable && !stream.readable_queued {
            stream.readable_queued = true;
            self.events.push_back(Event::Readable(self.id(number)));
        }
        self.granted -= taken_back;
        self.counters.received += arrival.fresh;
        self.take_window(number, arrival.advanced)
    }

    /// Bytes of the stream were read or dropped: the connection's window may move on.
    fn note_consumed(&mut self, number: u64, bytes: u64) {
        if is_counted(number) {
            self.consumed += bytes;
        }
        self.queue_connection_updates();
    }

    fn take_window(&mut self, number: u64, advanced: u64) -> Result<(), Violation> {
        if !is_counted(number) {
            return Ok(());
        }
        self.received += advanced;
        if self.received > self.received_limit {
            Err(Violation::FlowControl)
        } else {
            Ok(())
        }
    }

    pub(super) fn on_reset(&mut self, number: u64, code: u32, size: u64) -> Result<(), Violation> {
        let Some(stream) = self.find(number)? else {
            return Ok(());
        };
        let first = !stream.reset_received;
        stream.reset_received = true;
        let reset_here = stream.reset.is_some();
        // The end, whether or not all before it came: counted as received and read.
        let granted = stream.receive.granted();
        let unread = if reset_here {
            0
        } else {
            stream.receive.abort()
        };
        let advanced = stream.receive.discard(size, true)?;
        let taken_back = granted - stream.receive.granted();
        self.granted -= taken_back;
        self.take_window(number, advanced)?;
        self.note_consumed(number, unread + advanced);
        if !reset_here {
            self.abort(number, code);
            if first {
                self.events.push_back(Event::Reset(self.id(number), code));
            }
        }
        self.queue_connection_updates();
        self.remove_if_done(number);
        Ok(())
    }

    pub(super) fn on_max_data(&mut self, limit: u64) {
        if limit > self.sent_limit {
            self.sent_limit = limit;
            while let Some((number, ticket)) = self.blocked.pop_front() {
                if self
                    .streams
                    .get(&number)
                    .is_some_and(|s| s.ticket == ticket && s.queue == Queue::Blocked)
                {
                    self.enqueue(number, Queue::Ready);
                }
            }
        }
    }

    pub(super) fn on_max_stream_data(&mut self, number: u64, limit: u64) -> Result<(), Violation> {
        let Some(stream) = self.find(number)? else {
            return Ok(());
        };
        if stream.reset.is_none() && stream.send.raise_limit(limit) {
            self.activate(number, false);
            self.offer_room(number);
        }
        Ok(())
    }

    pub(super) fn on_max_streams(&mut self, limit: u64) {
        self.opened_here_limit = self.opened_here_limit.max(limit);
    }
}
