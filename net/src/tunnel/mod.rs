//! The tunnel: streams between two peers over UDP, encrypted, with loss recovery of its own. Not interception, not dedup.
//!
//! Sans-IO: datagrams, time and randomness are handed in. Drive it so: [`Tunnel::receive`] each datagram, take
//! [`Tunnel::poll_event`] until it is empty, use the streams, call [`Tunnel::poll_transmit`] until it gives nothing, and
//! come back at [`Tunnel::next_wakeup`]. The wire format and the state machine are described in `docs/tunnel.md`.

mod bbr;
mod cipher;
mod connection;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod noise;
mod pacer;
mod pmtud;
mod ranges;
mod received;
mod reception;
mod recovery;
mod rtt;
mod streams;
#[cfg(test)]
mod tests;
mod types;
mod wire;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use crate::time::Instant;
use connection::Connection;
use frame::CloseReason;
use handshake::{Agreed, Attempts, FirstMessage, Purpose, Refusal, Request, Responder};
use noise::Random32;
pub use noise::public_key;
pub use reception::{Reception, ReceptionStatistics, Sorted};
pub use types::{
    BASE_MTU, Backlog, DEFAULT_MTU, DownReason, Endpoint, Event, KeyName, Read, State, StreamId,
    TunnelConfig, TunnelStatistics, Violation, WrongKey,
};
use wire::{Packet, RejectReason};

/// Datagrams longer than this are nobody's.
const MAX_DATAGRAM: usize = 65_535;
/// Handshake messages waiting to be handed out.
const MAX_OUTBOX: usize = 8;
/// A wrong key is answered, logged and told at most so often.
const WRONG_KEY_INTERVAL: Duration = Duration::from_secs(1);
const MAX_WRONG_KEY_EVENTS: usize = 16;

enum Role {
    Initiator {
        endpoint: Endpoint,
        attempts: Attempts,
        next_attempt: Instant,
    },
    Responder(Responder),
}

/// One end of a tunnel to one peer.
pub struct Tunnel {
    config: TunnelConfig,
    random: Random32,
    role: Role,
    connection: Option<Box<Connection>>,
    /// Counts connections, so that stream identifiers of one are not taken for those of the next.
    generation: u16,
    events: VecDeque<Event>,
    outbox: VecDeque<(Endpoint, Vec<u8>)>,
    plain: Vec<u8>,
    statistics: TunnelStatistics,
    wrong_key_at: Option<Instant>,
    stopped: bool,
}

impl Tunnel {
    /// The end that makes connections (the branch): tries `endpoint` until it answers, and again whenever the tunnel
    /// is down. `seed` must be unpredictable and never used twice: all keys of this tunnel come from it.
    pub fn initiator(
        config: TunnelConfig,
        endpoint: Endpoint,
        seed: [u8; 32],
        now: Instant,
    ) -> Self {
        let role = Role::Initiator {
            endpoint,
            attempts: Attempts::default(),
            next_attempt: now,
        };
        Tunnel::new(config, role, seed)
    }

    /// The end that waits for connections (the core). `seed` as for [`initiator`](Self::initiator).
    pub fn responder(config: TunnelConfig, seed: [u8; 32], now: Instant) -> Self {
        let role = Role::Responder(Responder::new(now, &config));
        Tunnel::new(config, role, seed)
    }

    fn new(config: TunnelConfig, role: Role, seed: [u8; 32]) -> Self {
        Tunnel {
            config,
            random: Random32::new(seed),
            role,
            connection: None,
            generation: 0,
            events: VecDeque::new(),
            outbox: VecDeque::new(),
            plain: Vec::new(),
            statistics: TunnelStatistics::default(),
            wrong_key_at: None,
            stopped: false,
        }
    }

    /// Takes in a UDP payload that came from `from`. Whatever is wrong with it is counted, and that is all it does.
    pub fn receive(&mut self, now: Instant, from: Endpoint, datagram: &mut [u8]) {
        self.statistics.packets_received += 1;
        self.statistics.bytes_received += datagram.len() as u64;
        if datagram.len() > MAX_DATAGRAM {
            self.statistics.dropped_malformed += 1;
            return;
        }
        match Packet::parse(datagram) {
            None => self.statistics.dropped_malformed += 1,
            Some(Packet::Data {
                receiver,
                number,
                number_length,
                sealed,
            }) => {
                self.on_data(now, from, receiver, number, number_length, sealed);
            }
            Some(Packet::First {
                sender,
                noise,
                signed,
                mac,
            }) => {
                self.on_first(
                    now,
                    &FirstMessage {
                        from,
                        sender,
                        noise,
                        signed,
                        mac,
                    },
                );
            }
            Some(Packet::Second { receiver, noise }) => self.on_second(now, from, receiver, noise),
            Some(Packet::Reject { receiver, reason }) => {
                self.on_reject(now, from, receiver, reason)
            }
        }
    }

    fn on_data(
        &mut self,
        now: Instant,
        from: Endpoint,
        receiver: u32,
        number: u32,
        length: u8,
        sealed: &[u8],
    ) {
        let connection = self.connection.as_deref();
        let pending = match &self.role {
            Role::Responder(responder) => responder.pending(now, receiver),
            Role::Initiator { .. } => None,
        };
        let known = connection.and_then(|c| c.keys_of(now, receiver));
        let Some(keys) = known.or(pending.map(|p| &p.session.keys)) else {
            self.statistics.dropped_unknown += 1;
            return;
        };
        // Numbers go on under new keys, and start anew with a new connection.
        let same = pending.is_none_or(|p| p.purpose == Purpose::Rekey);
        let current = connection.filter(|_| same);
        let number = wire::full_number(current.map_or(0, Connection::expected), number, length);
        if current.is_some_and(|c| c.is_replay(number)) {
            self.statistics.dropped_replayed += 1;
            return;
        }
        let mut plain = core::mem::take(&mut self.plain);
        plain.clear();
        plain.resize(sealed.len(), 0);
        match keys.open(number, sealed, &mut plain) {
            Err(_) => self.statistics.dropped_forged += 1,
            Ok(opened) => {
                if (known.is_some() || self.on_confirmed(now, receiver))
                    && let Some(connection) = self.connection.as_deref_mut()
                {
                    let plain = plain.get(..opened).unwrap_or_default();
                    if let Err(reason) =
                        connection.receive(now, from, number, plain, &mut self.statistics)
                    {
                        self.go_down(now, reason);
                    }
                }
            }
        }
        self.plain = plain;
    }

    /// The initiator has shown that it has the keys of an unconfirmed handshake. False if they are of no use.
    fn on_confirmed(&mut self, now: Instant, local: u32) -> bool {
        let Role::Responder(responder) = &mut self.role else {
            return false;
        };
        let Some(agreed) = responder.confirm(now, local) else {
            return false;
        };
        responder.clear();
        self.adopt(now, agreed)
    }

    /// Puts the keys of a finished handshake to use. False if they are for a connection that is over.
    fn adopt(&mut self, now: Instant, agreed: Agreed) -> bool {
        match (agreed.purpose, self.connection.as_deref_mut()) {
            (Purpose::Rekey, Some(connection)) if connection.token == agreed.token => {
                self.statistics.rekeys += 1;
                connection.install(now, agreed.session);
                return true;
            }
            (Purpose::Rekey, _) => {
                self.statistics.dropped_unknown += 1;
                return false;
            }
            (Purpose::Connect, Some(_)) => self.go_down(now, DownReason::PeerRestarted),
            (Purpose::Connect, None) => {}
        }
        self.generation = self.generation.wrapping_add(1);
        self.statistics.connections += 1;
        log::info!("tunnel: up, peer at {}", agreed.from);
        let initiator = matches!(self.role, Role::Initiator { .. });
        let connection = Connection::new(now, &self.config, initiator, self.generation, agreed);
        self.connection = Some(Box::new(connection));
        self.events.push_back(Event::Up);
        true
    }

    fn go_down(&mut self, now: Instant, reason: DownReason) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        log::info!("tunnel: down: {reason}");
        // Counters that live in the connection outlive it.
        connection.describe(&mut self.statistics);
        let close = match reason {
            DownReason::Violation(_) => Some(CloseReason::Violation),
            // Perhaps only one direction of the line is dead.
            DownReason::Closed | DownReason::Silence => Some(CloseReason::Finished),
            DownReason::PeerRestarted | DownReason::ClosedByPeer | DownReason::AccusedByPeer => {
                None
            }
        };
        if let Some(close) = close
            && let Some((to, datagram)) = connection.farewell(now, close, &mut self.statistics)
        {
            self.post(to, datagram);
        }
        self.events.push_back(Event::Down(reason));
        if let Role::Initiator {
            attempts,
            next_attempt,
            ..
        } = &mut self.role
        {
            attempts.clear();
            *next_attempt = now;
        }
    }

    fn post(&mut self, to: Endpoint, datagram: Vec<u8>) {
        if self.outbox.len() < MAX_OUTBOX {
            self.outbox.push_back((to, datagram));
        }
    }

    /// A name for new keys that nothing else has.
    fn new_index(&mut self) -> u32 {
        loop {
            let index = self.random.u32();
            if !self.has_keys(index) {
                return index;
            }
        }
    }

    /// Whether a packet that names these keys may be for this tunnel.
    pub fn has_keys(&self, index: u32) -> bool {
        self.connection.as_ref().is_some_and(|c| c.knows(index))
            || match &self.role {
                Role::Initiator { attempts, .. } => attempts.knows(index),
                Role::Responder(responder) => responder.knows(index),
            }
    }

    fn on_first(&mut self, now: Instant, first: &FirstMessage<'_>) {
        let index = self.new_index();
        let Role::Responder(responder) = &mut self.role else {
            self.statistics.dropped_unknown += 1;
            return;
        };
        if self.stopped {
            return;
        }
        let mut out = Vec::new();
        let refusal =
            match responder.answer(now, &self.config, &mut self.random, first, index, &mut out) {
                Ok(()) => {
                    self.statistics.handshakes_received += 1;
                    self.statistics.handshakes_sent += 1;
                    self.post(first.from, out);
                    return;
                }
                Err(refusal) => refusal,
            };
        let reason = refusal.reject_reason();
        let told = match refusal {
            Refusal::Dropped => {
                self.statistics.dropped_handshakes += 1;
                return;
            }
            Refusal::Forged => {
                self.statistics.dropped_forged += 1;
                return;
            }
            Refusal::NotOurKey => self.on_wrong_key(now, WrongKey::NotOurs { from: first.from }),
            Refusal::NotPinned(key) => self.on_wrong_key(
                now,
                WrongKey::NotPinned {
                    from: first.from,
                    key,
                },
            ),
        };
        if told && let Some(reason) = reason {
            wire::reject(first.sender, reason, &mut out);
            self.post(first.from, out);
        }
    }

    /// Counts a wrong key; true if it was told as well.
    fn on_wrong_key(&mut self, now: Instant, wrong: WrongKey) -> bool {
        self.statistics.rejected_wrong_key += 1;
        if self
            .wrong_key_at
            .is_some_and(|at| now.since(at) < WRONG_KEY_INTERVAL)
        {
            return false;
        }
        self.wrong_key_at = Some(now);
        log::warn!("{wrong}");
        if self.events.len() < MAX_WRONG_KEY_EVENTS {
            self.events.push_back(Event::WrongKey(wrong));
        }
        true
    }

    fn on_second(&mut self, now: Instant, from: Endpoint, receiver: u32, message: &[u8]) {
        let Role::Initiator { attempts, .. } = &mut self.role else {
            self.statistics.dropped_unknown += 1;
            return;
        };
        if !attempts.knows(receiver) {
            self.statistics.dropped_unknown += 1;
            return;
        }
        let Some(agreed) = attempts.finish(now, from, receiver, message) else {
            self.statistics.dropped_forged += 1;
            return;
        };
        attempts.clear();
        self.statistics.handshakes_received += 1;
        self.adopt(now, agreed);
    }

    fn on_reject(&mut self, now: Instant, from: Endpoint, receiver: u32, reason: RejectReason) {
        match &self.role {
            Role::Initiator { attempts, .. } if attempts.knows(receiver) => {
                self.on_wrong_key(
                    now,
                    match reason {
                        RejectReason::NotOurKey => WrongKey::PeerHasAnotherKey { from },
                        RejectReason::NotPinned => WrongKey::RefusedByPeer { from },
                    },
                );
            }
            _ => self.statistics.dropped_unknown += 1,
        }
    }

    /// Timers: what has become due by `now`.
    fn on_time(&mut self, now: Instant) {
        if let Some(connection) = self.connection.as_deref_mut()
            && let Err(reason) = connection.on_time(now, &mut self.statistics)
        {
            self.go_down(now, reason);
        }
        if self.handshake_due().is_some_and(|at| at <= now) {
            self.start_handshake(now);
        }
    }

    /// When the initiator sends a first message.
    fn handshake_due(&self) -> Option<Instant> {
        let Role::Initiator { next_attempt, .. } = &self.role else {
            return None;
        };
        if self.stopped {
            return None;
        }
        Some(match &self.connection {
            None => *next_attempt,
            Some(connection) => {
                (connection.session().since + self.config.rekey_after).max(*next_attempt)
            }
        })
    }

    fn start_handshake(&mut self, now: Instant) {
        let (purpose, token) = match &self.connection {
            None => (Purpose::Connect, self.random.u64()),
            Some(connection) => (Purpose::Rekey, connection.token),
        };
        let moved = self.connection.as_ref().map(|c| c.peer());
        let request = Request {
            local: self.new_index(),
            purpose,
            token,
        };
        let Role::Initiator {
            endpoint,
            attempts,
            next_attempt,
        } = &mut self.role
        else {
            return;
        };
        *next_attempt = now + self.config.handshake_retry;
        let to = moved.unwrap_or(*endpoint);
        let mut out = Vec::new();
        if attempts.start(now, &self.config, &mut self.random, &request, &mut out) {
            self.statistics.handshakes_sent += 1;
            self.post(to, out);
        }
    }

    /// Writes the next UDP payload into `buffer` (which it empties first) and gives where to send it; `None` when
    /// nothing may go now. Timers run in here, too.
    pub fn poll_transmit(&mut self, now: Instant, buffer: &mut Vec<u8>) -> Option<Endpoint> {
        buffer.clear();
        self.on_time(now);
        if let Some((to, datagram)) = self.outbox.pop_front() {
            buffer.extend_from_slice(&datagram);
            self.statistics.packets_sent += 1;
            self.statistics.bytes_sent += datagram.len() as u64;
            return Some(to);
        }
        self.connection
            .as_deref_mut()?
            .transmit(now, &mut self.plain, buffer, &mut self.statistics)
    }

    /// What waits for the line, and the model of its rate; `None` before the line has been filled once, for until then the
    /// model only grows.
    pub fn backlog(&self) -> Option<Backlog> {
        self.connection.as_deref()?.backlog()
    }

    /// When to call [`poll_transmit`](Self::poll_transmit) again, if nothing else happens before; not before `now`.
    pub fn next_wakeup(&self, now: Instant) -> Option<Instant> {
        if !self.outbox.is_empty() {
            return Some(now);
        }
        let connection = self.connection.as_ref().map(|c| c.next_wakeup(now));
        let handshake = self.handshake_due().map(|at| at.max(now));
        match (connection, handshake) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// What has happened, in order; `None` when all is told.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events
            .pop_front()
            .or_else(|| self.connection.as_deref_mut()?.streams.poll_event())
    }

    /// Whether the tunnel carries streams.
    pub fn state(&self) -> State {
        if self.connection.is_some() {
            State::Up
        } else {
            State::Down
        }
    }

    /// Where the peer was heard last, while up.
    pub fn peer(&self) -> Option<Endpoint> {
        self.connection.as_ref().map(|c| c.peer())
    }

    /// Counters, and the present state of the line.
    pub fn statistics(&self) -> TunnelStatistics {
        let mut statistics = self.statistics;
        statistics.rtt_micros = 0;
        statistics.min_rtt_micros = 0;
        statistics.bandwidth = 0;
        statistics.pacing_rate = 0;
        statistics.congestion_window = 0;
        statistics.in_flight = 0;
        statistics.mtu = 0;
        statistics.streams = 0;
        if let Some(connection) = &self.connection {
            connection.describe(&mut statistics);
        }
        statistics
    }

    /// Ends the tunnel in order: the peer is told (once; it may get lost), and no further connection is made.
    pub fn close(&mut self, now: Instant) {
        self.stopped = true;
        self.go_down(now, DownReason::Closed);
    }

    /// A new stream; the peer hears of it with its first byte, end or reset. `None` while down, or while the peer allows no more.
    pub fn open_stream(&mut self) -> Option<StreamId> {
        self.connection.as_deref_mut()?.streams.open()
    }

    /// Appends bytes to the stream; gives how many were taken. After a short write, [`Event::Writable`] follows.
    pub fn write(&mut self, id: StreamId, data: &[u8]) -> usize {
        self.connection
            .as_deref_mut()
            .map_or(0, |c| c.streams.write(id, data))
    }

    /// Bytes that [`write`](Self::write) would take now. If that is little (below 8 KiB), [`Event::Writable`] follows when
    /// there is more; 0 for good when the stream is finished, reset or gone.
    pub fn writable(&mut self, id: StreamId) -> usize {
        self.connection
            .as_deref_mut()
            .map_or(0, |c| c.streams.writable(id))
    }

    /// Moves received bytes, in order, to the front of `out`.
    pub fn read(&mut self, id: StreamId, out: &mut [u8]) -> Read {
        self.connection.as_deref_mut().map_or(
            Read {
                len: 0,
                finished: false,
            },
            |c| c.streams.read(id, out),
        )
    }

    /// Bytes that [`read`](Self::read) would give now.
    pub fn readable(&self, id: StreamId) -> usize {
        self.connection
            .as_deref()
            .map_or(0, |c| c.streams.readable(id))
    }

    /// No more bytes follow in our direction; the peer reads the end after the last of them.
    pub fn finish(&mut self, id: StreamId) {
        if let Some(connection) = self.connection.as_deref_mut() {
            connection.streams.finish(id);
        }
    }

    /// Drops the stream in both directions, whatever is still under way; the peer gets [`Event::Reset`] with `code`.
    pub fn reset(&mut self, id: StreamId, code: u32) {
        if let Some(connection) = self.connection.as_deref_mut() {
            connection.streams.reset(id, code);
        }
    }
}
