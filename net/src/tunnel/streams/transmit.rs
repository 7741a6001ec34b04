//! Which stream sends next, what goes into a packet, and what arrived of it.

use alloc::vec::Vec;
use core::time::Duration;

use super::{
    Control, MAX_STREAM_WINDOW, MIN_STREAM_WINDOW, Queue, Streams, WORTHWHILE_ROOM, is_counted,
};
use crate::time::Instant;
use crate::tunnel::frame::{self, Frame, MAX_CONTROL, MIN_STREAM_SPACE};
use crate::tunnel::recovery::{Outcome, SentFrame, SentFrames};
use crate::tunnel::types::Event;

/// A stream that was idle may send so much before it has to take its turn.
const FRESH_CREDIT: usize = 4096;
/// One packet in so many goes to those that take turns, whatever is fresh.
const FAIR_TURN: u32 = 4;

/// What one stream put into a packet.
enum Put {
    /// A frame.
    Frame,
    /// A frame that runs to the end of the packet.
    LastFrame,
    /// Nothing: it waits for the connection's window.
    Blocked,
    /// Nothing: what is left of the packet is too small.
    NoSpace,
    /// Nothing: it has nothing.
    Nothing,
}

impl Streams {
    /// Whether a packet would carry something.
    pub(in crate::tunnel) fn has_pending(&self) -> bool {
        !self.control.is_empty() || !self.fresh.is_empty() || !self.ready.is_empty()
    }

    /// Puts the stream into a queue if it has something to send and is in none.
    pub(super) fn activate(&mut self, number: u64, urgent: bool) {
        let Some(stream) = self.streams.get_mut(&number) else {
            return;
        };
        if stream.reset.is_some() || !stream.send.is_sendable() {
            return;
        }
        match stream.queue {
            Queue::None => {
                stream.credit = FRESH_CREDIT;
                self.enqueue(number, Queue::Fresh);
            }
            // What was lost holds up all that came after it.
            Queue::Ready | Queue::Blocked if urgent => {
                stream.credit = stream.credit.max(1);
                self.enqueue(number, Queue::Fresh);
            }
            _ => {}
        }
    }

    pub(super) fn enqueue(&mut self, number: u64, queue: Queue) {
        let Some(stream) = self.streams.get_mut(&number) else {
            return;
        };
        stream.queue = queue;
        stream.ticket = stream.ticket.wrapping_add(1);
        let entry = (number, stream.ticket);
        match queue {
            Queue::Fresh => self.fresh.push_back(entry),
            Queue::Ready => self.ready.push_back(entry),
            Queue::Blocked => self.blocked.push_back(entry),
            Queue::None => {}
        }
    }

    /// Takes the stream whose turn it is out of its queue.
    fn next_stream(&mut self) -> Option<(u64, Queue)> {
        loop {
            let fair = self.turn.is_multiple_of(FAIR_TURN) && !self.ready.is_empty();
            let ((number, ticket), queue) = match if fair { None } else { self.fresh.pop_front() } {
                Some(entry) => (entry, Queue::Fresh),
                None => (self.ready.pop_front()?, Queue::Ready),
            };
            if let Some(stream) = self.streams.get_mut(&number)
                && stream.ticket == ticket
                && stream.queue == queue
            {
                stream.queue = Queue::None;
                return Some((number, queue));
            }
        }
    }

    /// Appends frames to `out` until it is `size` bytes long or nothing is left to send; `frames` notes which. True if
    /// another frame may follow.
    pub(in crate::tunnel) fn put_frames(
        &mut self,
        now: Instant,
        rtt: Duration,
        size: usize,
        out: &mut Vec<u8>,
        frames: &mut SentFrames,
    ) -> bool {
        while size.saturating_sub(out.len()) >= MAX_CONTROL
            && let Some(control) = self.control.pop_front()
        {
            self.put_control(now, rtt, control, out, frames);
        }
        self.turn = self.turn.wrapping_add(1);
        while size.saturating_sub(out.len()) >= MIN_STREAM_SPACE
            && let Some((number, queue)) = self.next_stream()
        {
            let before = out.len();
            let put = self.put_stream(number, size, out, frames);
            let Some(stream) = self.streams.get_mut(&number) else {
                continue;
            };
            match put {
                Put::Blocked => self.enqueue(number, Queue::Blocked),
                Put::NoSpace => {
                    // It goes first in the next packet.
                    stream.queue = queue;
                    let entry = (number, stream.ticket);
                    if queue == Queue::Fresh {
                        self.fresh.push_front(entry)
                    } else {
                        self.ready.push_front(entry)
                    }
                    return true;
                }
                Put::Nothing => {}
                Put::Frame | Put::LastFrame => {
                    stream.credit = stream.credit.saturating_sub(out.len() - before);
                    if stream.send.is_sendable() {
                        let fresh =
                            queue == Queue::Fresh && (stream.credit > 0 || stream.send.has_lost());
                        self.enqueue(number, if fresh { Queue::Fresh } else { Queue::Ready });
                    }
                    if matches!(put, Put::LastFrame) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn put_stream(
        &mut self,
        number: u64,
        size: usize,
        out: &mut Vec<u8>,
        frames: &mut SentFrames,
    ) -> Put {
        let connection_window = self.sent_limit.saturating_sub(self.sent);
        let Some(stream) = self.streams.get_mut(&number) else {
            return Put::Nothing;
        };
        if stream.reset.is_some() {
            return Put::Nothing;
        }
        let Some(chunk) = stream.send.chunk() else {
            return Put::Nothing;
        };
        let mut available = chunk.available;
        if !chunk.again && available > 0 && is_counted(number) {
            available = available.min(usize::try_from(connection_window).unwrap_or(usize::MAX));
            if available == 0 {
                return Put::Blocked;
            }
        }
        let space = size.saturating_sub(out.len());
        let Some(header) = frame::fit_stream(number, chunk.offset, available, space) else {
            return Put::NoSpace;
        };
        let end = chunk.offset + header.length as u64;
        let finished = stream.send.finishes_at(end);
        frame::put_stream_header(number, chunk.offset, &header, finished, out);
        stream.send.copy(chunk.offset, header.length, out);
        stream
            .send
            .note_sent(chunk.offset, header.length, chunk.again, finished);
        if chunk.again {
            self.counters.again += header.length as u64;
        } else {
            self.counters.sent += header.length as u64;
            if is_counted(number) {
                self.sent += header.length as u64;
            }
        }
        let length = u32::try_from(header.length).unwrap_or(u32::MAX);
        frames.push(SentFrame::Stream {
            stream: number,
            start: chunk.offset,
            length,
            finished,
        });
        if header.to_end {
            Put::LastFrame
        } else {
            Put::Frame
        }
    }

    fn put_control(
        &mut self,
        now: Instant,
        rtt: Duration,
        control: Control,
        out: &mut Vec<u8>,
        frames: &mut SentFrames,
    ) {
        match control {
            Control::MaxData => {
                self.max_data_queued = false;
                self.received_limit = self.received_limit.max(self.consumed + self.receive_memory);
                frame::put(&Frame::MaxData(self.received_limit), out);
                frames.push(SentFrame::MaxData);
            }
            Control::MaxStreams => {
                self.max_streams_queued = false;
                self.opened_there_limit = self
                    .opened_there_limit
                    .max(self.closed_there + self.max_streams);
                frame::put(&Frame::MaxStreams(self.opened_there_limit), out);
                frames.push(SentFrame::MaxStreams);
            }
            Control::MaxStreamData(number) => {
                // The more of the memory that all streams share is promised to others, the less of it for this one.
                let Some(stream) = self.streams.get_mut(&number) else {
                    return;
                };
                stream.window_update_queued = false;
                if stream.reset.is_some() || stream.receive.size_is_known() {
                    return;
                }
                let granted = stream.receive.granted();
                let free = self.receive_memory.saturating_sub(self.granted - granted);
                let max = (free / 2).clamp(MIN_STREAM_WINDOW, MAX_STREAM_WINDOW);
                let limit = stream.receive.update(now, rtt, max);
                self.granted += stream.receive.granted() - granted;
                frame::put(
                    &Frame::MaxStreamData {
                        stream: number,
                        limit,
                    },
                    out,
                );
                frames.push(SentFrame::MaxStreamData(number));
            }
            Control::Reset(number) => {
                let Some(stream) = self.streams.get(&number) else {
                    return;
                };
                let Some(code) = stream.reset else { return };
                frame::put(
                    &Frame::Reset {
                        stream: number,
                        code,
                        size: stream.send.sent(),
                    },
                    out,
                );
                frames.push(SentFrame::Reset(number));
            }
        }
    }

    /// A frame that was sent arrived, or was lost.
    pub(in crate::tunnel) fn on_outcome(&mut self, outcome: Outcome, frame: SentFrame) {
        match (outcome, frame) {
            (
                Outcome::Acknowledged,
                SentFrame::Stream {
                    stream,
                    start,
                    length,
                    finished,
                },
            ) => {
                self.on_stream_acknowledged(stream, start, length, finished);
            }
            (
                Outcome::Lost,
                SentFrame::Stream {
                    stream: number,
                    start,
                    length,
                    finished,
                },
            ) => {
                if let Some(stream) = self.streams.get_mut(&number).filter(|s| s.reset.is_none()) {
                    stream.send.lost(start, length, finished);
                    self.activate(number, true);
                }
            }
            (Outcome::Acknowledged, SentFrame::Reset(number)) => {
                if let Some(stream) = self.streams.get_mut(&number) {
                    stream.reset_acknowledged = true;
                    self.remove_if_done(number);
                }
            }
            (Outcome::Lost, SentFrame::Reset(number)) => {
                self.control.push_back(Control::Reset(number))
            }
            (Outcome::Lost, SentFrame::MaxData) if !self.max_data_queued => {
                self.max_data_queued = true;
                self.control.push_back(Control::MaxData);
            }
            (Outcome::Lost, SentFrame::MaxStreams) if !self.max_streams_queued => {
                self.max_streams_queued = true;
                self.control.push_back(Control::MaxStreams);
            }
            (Outcome::Lost, SentFrame::MaxStreamData(number)) => {
                if let Some(stream) = self
                    .streams
                    .get_mut(&number)
                    .filter(|s| !s.window_update_queued)
                {
                    stream.window_update_queued = true;
                    self.control.push_back(Control::MaxStreamData(number));
                }
            }
            _ => {}
        }
    }

    fn on_stream_acknowledged(&mut self, number: u64, start: u64, length: u32, finished: bool) {
        let Some(stream) = self.streams.get_mut(&number).filter(|s| s.reset.is_none()) else {
            return;
        };
        let freed = stream
            .send
            .acknowledged((start, length), finished, &mut self.send_spares);
        if freed > 0 {
            self.held = self.held.saturating_sub(freed);
            self.offer_room(number);
        }
        self.remove_if_done(number);
    }

    pub(super) fn offer_room(&mut self, number: u64) {
        let Some(stream) = self.streams.get(&number) else {
            return;
        };
        // With nothing of its own under way nothing else would wake it: there is a little room at least.
        let room = self.room(stream);
        let worthwhile = room >= WORTHWHILE_ROOM || (stream.send.held() == 0 && room > 0);
        if !stream.wants_room || !worthwhile {
            return;
        }
        let id = self.id(number);
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.wants_room = false;
            if !stream.writable_queued {
                stream.writable_queued = true;
                self.events.push_back(Event::Writable(id));
            }
        }
    }
}
