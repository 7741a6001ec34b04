//! The pages' TCP side: a few connections of clients on the LAN, each with a request to make in good time.

use alloc::vec::Vec;
use core::time::Duration;

use super::http::{self, MOST_REQUEST, Page, Request};
use crate::flow::{Host as _, Incoming};
use crate::outbox::Outbox;
use crate::tcp::{Phase, Tcp, Way};
use crate::time::Instant;
use crate::wire::{FlowKey, Segment};

/// The most connections at a time.
const MOST: usize = 8;
/// When all are taken, the oldest gives way to a new one from this age on.
const GIVES_WAY: Duration = Duration::from_secs(1);
/// How long a client may take to make its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take over the response, its end included.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Buffers of a connection, each way, in bytes.
const BUFFER: usize = 16 * 1024;

/// What a connection is about.
enum Stage {
    /// The request is being read.
    Reading(Vec<u8>),
    /// A page is wanted; `true`: without its body.
    Asking(Page, bool),
    /// The response, of which so many bytes have been taken.
    Responding(Vec<u8>, usize),
    /// Everything is said.
    Closing,
}

struct Connection {
    key: FlowKey,
    tcp: Tcp,
    way: Way,
    stage: Stage,
    born: Instant,
    deadline: Instant,
    timer: Option<Instant>,
}

/// The connections. Their number and each one's memory are bounded.
#[derive(Default)]
pub struct Web {
    connections: Vec<Connection>,
    /// A segment has come since the last [`Web::poll`], or there is more to do.
    busy: bool,
    requests: u64,
}

impl Web {
    /// Takes a segment for the pages' port. `false`: it belongs to no connection and cannot begin one.
    pub fn receive(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        way: Way,
        seed: u64,
        outbox: &mut Outbox,
    ) -> bool {
        let key = FlowKey {
            client: segment.source,
            server: segment.destination,
        };
        let found = self.connections.iter_mut().find(|it| it.key == key);
        if let Some(connection) = found {
            self.busy = true;
            let tcp = &mut connection.tcp;
            if tcp.needs_buffers_for(segment) {
                tcp.grow(BUFFER);
            }
            tcp.receive(now, segment, connection.way, outbox);
            return true;
        }
        if !segment.opens() || segment.flaw().is_some() || !self.make_room(now, outbox) {
            return false;
        }
        let mut tcp = Tcp::answering(now, segment, seed, way, outbox);
        tcp.accept();
        self.busy = true;
        self.connections.push(Connection {
            key,
            tcp,
            way,
            stage: Stage::Reading(Vec::new()),
            born: now,
            deadline: now + REQUEST_TIMEOUT,
            timer: None,
        });
        true
    }

    /// Whether there is room for one more connection; the oldest may have to make it.
    fn make_room(&mut self, now: Instant, outbox: &mut Outbox) -> bool {
        if self.connections.len() < MOST {
            return true;
        }
        // They are in the order in which they came.
        let gives_way = self
            .connections
            .first()
            .is_some_and(|oldest| now.since(oldest.born) >= GIVES_WAY);
        if gives_way {
            let mut oldest = self.connections.remove(0);
            oldest.tcp.abort();
            oldest.tcp.poll(now, oldest.way, outbox);
        }
        gives_way
    }

    /// A page that a client asks for: answer it by [`Web::respond`].
    pub fn asked(&mut self) -> Option<Page> {
        for connection in &mut self.connections {
            connection.read();
        }
        self.connections.iter().find_map(Connection::asks)
    }

    /// Answers the client that [`Web::asked`] told of.
    pub fn respond(&mut self, now: Instant, media_type: &str, body: &str) {
        let asking = self.connections.iter_mut().find(|it| it.asks().is_some());
        if let Some(connection) = asking
            && let Stage::Asking(_, head_only) = connection.stage
        {
            self.requests += 1;
            self.busy = true;
            connection.deadline = now + RESPONSE_TIMEOUT;
            connection.stage = Stage::Responding(http::page(media_type, body, head_only), 0);
        }
    }

    /// Sends what there is to send, and gives up who takes too long.
    pub fn poll(&mut self, now: Instant, outbox: &mut Outbox) {
        if !self.busy && self.next_wakeup().is_none_or(|at| at > now) {
            return;
        }
        self.busy = false;
        self.connections.retain_mut(|it| {
            if it.deadline <= now {
                it.tcp.abort();
            }
            it.write();
            it.timer = it.tcp.poll(now, it.way, outbox);
            match it.tcp.phase() {
                Phase::Opening => !it.tcp.is_abandoned(),
                Phase::Open => true,
                Phase::TimeWait => false,
                Phase::Closed => it.tcp.owes_reset() && it.deadline > now,
            }
        });
    }

    /// When [`Web::poll`] has something to do.
    pub fn next_wakeup(&self) -> Option<Instant> {
        if self.busy {
            return Some(Instant::ZERO);
        }
        self.connections
            .iter()
            .flat_map(|it| [Some(it.deadline), it.timer])
            .flatten()
            .min()
    }

    /// Whether there is no connection, and so nothing to do.
    pub fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }

    /// Pages that were asked for.
    pub fn requests(&self) -> u64 {
        self.requests
    }
}

impl Connection {
    fn asks(&self) -> Option<Page> {
        match self.stage {
            Stage::Asking(page, _) => Some(page),
            _ => None,
        }
    }

    /// Takes in what the client sends.
    fn read(&mut self) {
        loop {
            let room = match &self.stage {
                Stage::Reading(request) => MOST_REQUEST - request.len(),
                // What comes after the request is of no interest.
                _ => usize::MAX,
            };
            let stage = &mut self.stage;
            let incoming = self.tcp.read(|bytes| {
                let bytes = bytes.get(..room).unwrap_or(bytes);
                if let Stage::Reading(request) = stage {
                    request.extend_from_slice(bytes);
                }
                bytes.len()
            });
            match incoming {
                Incoming::Bytes(0) | Incoming::Closed => return,
                Incoming::Bytes(_) => {}
                Incoming::Finished => {
                    // No request will come any more.
                    if matches!(self.stage, Stage::Reading(_)) {
                        self.stage = Stage::Responding(Vec::new(), 0);
                    }
                    return;
                }
            }
            if let Stage::Reading(request) = &self.stage {
                match http::parse(request) {
                    None => {}
                    Some(Request::Page(page, head_only)) => {
                        self.stage = Stage::Asking(page, head_only);
                    }
                    Some(Request::Refused(refusal, head_only)) => {
                        self.stage = Stage::Responding(http::refusal(refusal, head_only), 0);
                    }
                }
            }
        }
    }

    /// Hands out the response.
    fn write(&mut self) {
        let Stage::Responding(response, taken) = &mut self.stage else {
            return;
        };
        let rest = response.get(*taken..).unwrap_or_default();
        *taken += self.tcp.write(rest);
        if *taken == response.len() {
            self.tcp.finish(false);
            self.stage = Stage::Closing;
        }
        if self.tcp.wants_buffers() {
            self.tcp.grow(BUFFER);
        }
    }
}
