//! A tunnel to one peer with its dictionaries, for a program that brings its own sockets: streams and their coders come out
//! as [`Notice`]s and are moved by [`Session::turn`].

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use hashbrown::{HashMap, HashSet};

use super::link::{Ends, Link, StoreParts, StoreTicket};
use super::message::{self, Code, OPENED};
use super::newcomer::{Greeting, Newcomer};
use super::pump::{Host, Pump, Turn};
use crate::dedup::{ReceiverStatistics, SenderStatistics, StoreMemory};
use crate::hash::{Keyed, Random};
use crate::store::{DeviceError, StoreStatistics};
use crate::time::Instant;
use crate::tunnel::{
    DownReason, Endpoint, Event, State, StreamId, TunnelConfig, TunnelStatistics, WrongKey,
};
use crate::wire::FlowKey;

/// What a session is made of.
pub struct SessionConfig {
    /// Keys and sizes of the tunnel.
    pub tunnel: TunnelConfig,
    /// Where the peer listens; `None`: the peer comes here.
    pub endpoint: Option<Endpoint>,
    /// Secret and random, never the same twice.
    pub seed: [u8; 32],
    /// Where the dictionaries of both directions lie.
    pub store: StoreParts,
}

/// What has happened, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The tunnel is up.
    Up,
    /// The tunnel is down, and every flow with it.
    Down(DownReason),
    /// The peer wants a connection. Answer by [`Session::accept`] or [`Session::refuse`].
    Request(StreamId, FlowKey),
    /// The flow of this stream may have something to do.
    Wake(StreamId),
    /// The peer has reset the stream.
    Reset(StreamId, Code),
    /// Someone tried a wrong key.
    WrongKey(WrongKey),
}

/// A tunnel with dictionaries.
pub struct Session {
    link: Link,
    random: Random,
    newcomers: HashMap<StreamId, Newcomer, Keyed>,
    awaiting_control: HashSet<StreamId, Keyed>,
    notices: VecDeque<Notice>,
    bad_streams: u64,
}

impl Session {
    /// A session whose tunnel is not up yet.
    pub fn new(config: SessionConfig, now: Instant) -> Session {
        let mut random = Random::new(config.seed);
        let hash = Keyed::with_seed(random.number());
        let ends = Ends {
            config: config.tunnel,
            endpoint: config.endpoint,
        };
        Session {
            link: Link::new(ends, &mut random, config.store, now),
            random,
            newcomers: HashMap::with_hasher(hash.clone()),
            awaiting_control: HashSet::with_hasher(hash),
            notices: VecDeque::new(),
            bad_streams: 0,
        }
    }

    /// Takes in a UDP payload. Take the [`Session::notice`]s soon after.
    pub fn receive(&mut self, now: Instant, from: Endpoint, datagram: &mut [u8]) {
        self.link.tunnel.receive(now, from, datagram);
    }

    /// Whether a datagram that names these keys may be for this session
    /// ([`Sorted::Keys`](crate::tunnel::Sorted::Keys)).
    pub fn has_keys(&self, index: u32) -> bool {
        self.link.tunnel.has_keys(index)
    }

    /// What has happened; `None` when all is told.
    pub fn notice(&mut self, now: Instant) -> Option<Notice> {
        while let Some(event) = self.link.tunnel.poll_event() {
            self.handle(now, event);
        }
        self.notices.pop_front()
    }

    /// The next UDP payload to send, written to `buffer`; timers run in here.
    pub fn poll_transmit(&mut self, now: Instant, buffer: &mut Vec<u8>) -> Option<Endpoint> {
        self.link.write_control(now);
        let to = self.link.tunnel.poll_transmit(now, buffer);
        if to.is_none() {
            while let Some(event) = self.link.tunnel.poll_event() {
                self.handle(now, event);
            }
            self.link.mend(&mut self.random, now);
        }
        to
    }

    /// When [`Session::poll_transmit`] is to be called, if nothing happens before.
    pub fn next_wakeup(&self, now: Instant) -> Option<Instant> {
        let tunnel = self.link.tunnel.next_wakeup(now);
        let confirm = self.link.next_wakeup();
        tunnel.into_iter().chain(confirm).min()
    }

    /// Branch: asks the peer for a connection. `None`: the tunnel is down, or carries no more streams.
    pub fn open(&mut self, key: &FlowKey) -> Option<(StreamId, Pump)> {
        let stream = self.link.tunnel.open_stream()?;
        let mut pump = Pump::new(stream, &mut self.link);
        pump.queue(&message::encode_open(key));
        pump.flush(&mut self.link);
        Some((stream, pump))
    }

    /// Branch: the core's answer about the server. `None`: not yet.
    ///
    /// # Errors
    /// [`Code::Protocol`], when the answer is none of this protocol; a refusal comes as [`Notice::Reset`].
    pub fn answer(&mut self, stream: StreamId, pump: &mut Pump) -> Result<Option<()>, Code> {
        pump.flush(&mut self.link);
        let mut answer = [0];
        let read = self.link.tunnel.read(stream, &mut answer);
        match (read.len, self.link.has_finished(read)) {
            (0, false) => Ok(None),
            (1, _) if answer == [OPENED] => Ok(Some(())),
            _ => Err(Code::Protocol),
        }
    }

    /// Core: the server has answered.
    pub fn accept(&mut self, stream: StreamId) -> Pump {
        let mut pump = Pump::new(stream, &mut self.link);
        pump.queue(&[OPENED]);
        pump
    }

    /// Gives up a stream.
    pub fn refuse(&mut self, stream: StreamId, code: Code) {
        self.link.tunnel.reset(stream, code.into());
    }

    /// Moves bytes both ways. Gives whether there is more to do at once.
    ///
    /// # Errors
    /// What came cannot be decoded: both sides are to be reset.
    pub fn turn(
        &mut self,
        stream: StreamId,
        pump: &mut Pump,
        host: &mut impl Host,
    ) -> Result<bool, Code> {
        self.turn_of(Turn::Short, stream, pump, host)
    }

    /// As [`Session::turn`], of this length.
    ///
    /// # Errors
    /// As there.
    pub fn turn_of(
        &mut self,
        turn: Turn,
        stream: StreamId,
        pump: &mut Pump,
        host: &mut impl Host,
    ) -> Result<bool, Code> {
        let up = pump.up(host, &mut self.link, turn);
        let down = pump.down(host, &mut self.link, turn)?;
        if pump.awaits_control() {
            self.awaiting_control.insert(stream);
        }
        Ok(up || down)
    }

    /// Gives up a flow's place in the dictionaries.
    pub fn close_pump(&mut self, pump: Pump) {
        pump.close(&mut self.link);
    }

    /// Ends the tunnel in order.
    pub fn close(&mut self, now: Instant) {
        self.link.tunnel.close(now);
    }

    /// Whether the tunnel is up.
    pub fn is_up(&self) -> bool {
        self.link.tunnel.state() == State::Up
    }

    /// Where the peer was last heard, while up.
    pub fn peer(&self) -> Option<Endpoint> {
        self.link.tunnel.peer()
    }

    /// Streams whose first bytes were no message of this protocol.
    pub fn bad_streams(&self) -> u64 {
        self.bad_streams
    }

    /// Counters: the tunnel's, and both dictionaries'.
    pub fn statistics(&self) -> (TunnelStatistics, SenderStatistics, ReceiverStatistics) {
        (
            self.link.tunnel.statistics(),
            self.link.sender.statistics(),
            self.link.receiver.statistics(),
        )
    }

    /// What the store on a device did; all zeros without one.
    pub fn store_statistics(&self) -> StoreStatistics {
        self.link.store_statistics()
    }

    /// What the dictionaries of both directions have taken.
    pub fn store_memory(&self) -> StoreMemory {
        self.link.store_memory()
    }

    /// Whether [`Session::sync_store`] has something to write.
    pub fn store_is_dirty(&mut self) -> bool {
        self.link.store_is_dirty()
    }

    /// Writes what of the dictionaries is in memory only: call it after a pause, and every ten seconds or so while there is
    /// none. It writes some megabytes at most and does not flush; when the device has been flushed, hand the ticket to
    /// [`Session::store_flushed`].
    pub fn sync_store(&mut self) -> StoreTicket {
        self.link.sync_store()
    }

    /// The store's device has been flushed since the ticket was given.
    pub fn store_flushed(&mut self, ticket: StoreTicket) {
        self.link.store_flushed(ticket);
    }

    /// The store's device has refused a flush instead.
    pub fn store_flush_failed(&mut self, error: DeviceError) {
        self.link.store_flush_failed(error);
    }

    /// Writes all of the dictionaries and flushes their device: for an orderly stop.
    pub fn close_store(&mut self) {
        self.link.close_store();
    }

    fn handle(&mut self, now: Instant, event: Event) {
        match event {
            Event::Up => {
                self.forget();
                self.link.open_control(now);
                self.notices.push_back(Notice::Up);
            }
            Event::Down(reason) => {
                self.forget();
                self.notices.push_back(Notice::Down(reason));
            }
            Event::Opened(stream) => {
                self.newcomers.insert(stream, Newcomer::default());
                self.greet(stream);
                self.read_control(now, stream);
            }
            Event::Readable(stream) => {
                if self.newcomers.contains_key(&stream) {
                    self.greet(stream);
                }
                if self.link.is_control(stream) {
                    self.read_control(now, stream);
                } else if !self.newcomers.contains_key(&stream) {
                    self.notices.push_back(Notice::Wake(stream));
                }
            }
            Event::Writable(stream) => self.notices.push_back(Notice::Wake(stream)),
            Event::Reset(stream, _) if self.link.is_control(stream) => self.link.fail(now),
            Event::Reset(stream, code) => {
                if self.newcomers.remove(&stream).is_none() {
                    self.notices.push_back(Notice::Reset(stream, code.into()));
                }
            }
            Event::WrongKey(wrong) => self.notices.push_back(Notice::WrongKey(wrong)),
        }
    }

    fn forget(&mut self) {
        self.newcomers.clear();
        self.awaiting_control.clear();
        self.link.reset();
    }

    fn greet(&mut self, stream: StreamId) {
        let Some(newcomer) = self.newcomers.get_mut(&stream) else {
            return;
        };
        let Some(greeting) = newcomer.greet(&mut self.link, stream) else {
            return;
        };
        self.newcomers.remove(&stream);
        let is_good = match greeting {
            Greeting::Control => self.link.set_theirs(stream).is_ok(),
            Greeting::Open(key) => {
                self.notices.push_back(Notice::Request(stream, key));
                true
            }
            Greeting::Nonsense => false,
        };
        if !is_good {
            self.bad_streams += 1;
            self.refuse(stream, Code::Protocol);
        }
    }

    fn read_control(&mut self, now: Instant, stream: StreamId) {
        if !self.link.is_control(stream) {
            return;
        }
        match self.link.read_control() {
            Ok(false) => {}
            Ok(true) => {
                let waiting = self.awaiting_control.drain().map(Notice::Wake);
                self.notices.extend(waiting);
            }
            Err(_) => self.link.fail(now),
        }
    }
}
