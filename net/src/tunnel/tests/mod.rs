//! Whole tunnels over the simulated line.

mod hostile;
mod line;
mod streams;

use super::*;
use crate::sim::{Line, LineConfig, Rng};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::vec;
use std::vec::Vec;

const BRANCH: Endpoint = Endpoint::new(Ipv4Addr::new(10, 77, 1, 1), 3301);
const CORE: Endpoint = Endpoint::new(Ipv4Addr::new(10, 77, 2, 1), 3301);

fn key(seed: u8) -> [u8; 32] {
    let mut key = [seed; 32];
    Rng::new(seed.into()).fill(&mut key);
    key
}

fn config_of(own: u8, peer: u8) -> TunnelConfig {
    TunnelConfig::new(key(own), public_key(&key(peer)))
}

/// One end: a tunnel, and what it has to send and has received on each stream.
struct End {
    tunnel: Tunnel,
    address: Endpoint,
    is_core: bool,
    events: Vec<Event>,
    /// What goes out on each stream: bytes left, and the generator that makes them.
    sending: BTreeMap<StreamId, Sending>,
    /// What came in on each stream of this connection, by its number.
    receiving: BTreeMap<u64, Receiving>,
    /// Leave streams unread.
    lazy: bool,
    /// Answer each opened stream with this many bytes.
    answer: Option<u64>,
    down: Vec<DownReason>,
    down_at: Option<Instant>,
    ups: usize,
}

struct Sending {
    left: u64,
    pattern: Pattern,
}

#[derive(Default)]
struct Receiving {
    length: u64,
    finished: bool,
    reset: Option<u32>,
    /// When the first and the last byte, or the end, came.
    first_at: Option<Instant>,
    last_at: Option<Instant>,
}

/// Bytes that depend on the stream and the offset, so that anything out of place shows.
#[derive(Clone, Copy)]
struct Pattern {
    stream: u64,
    offset: u64,
}

impl Pattern {
    fn next(&mut self) -> u8 {
        let word = (self.offset / 4).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ self.stream.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let byte = (word.rotate_left(17).wrapping_mul(0xff51_afd7_ed55_8ccd)
            >> 40
            >> (8 * (self.offset % 3))) as u8;
        self.offset += 1;
        byte
    }
}

impl End {
    fn new(tunnel: Tunnel, address: Endpoint) -> Self {
        End {
            tunnel,
            address,
            is_core: address == CORE,
            events: Vec::new(),
            sending: BTreeMap::new(),
            receiving: BTreeMap::new(),
            lazy: false,
            answer: None,
            down: Vec::new(),
            down_at: None,
            ups: 0,
        }
    }

    /// Opens a stream and sends `length` bytes and the end.
    fn send(&mut self, length: u64) -> StreamId {
        let id = self.tunnel.open_stream().expect("tunnel is up");
        self.send_on(id, length);
        id
    }

    fn send_on(&mut self, id: StreamId, length: u64) {
        let pattern = Pattern {
            stream: id.number() * 2 + u64::from(self.is_core),
            offset: 0,
        };
        self.sending.insert(
            id,
            Sending {
                left: length,
                pattern,
            },
        );
        self.push(id);
    }

    /// Writes as much as the tunnel takes.
    fn push(&mut self, id: StreamId) {
        let Some(sending) = self.sending.get_mut(&id) else {
            return;
        };
        while sending.left > 0 {
            let mut pattern = sending.pattern;
            let chunk: Vec<u8> = (0..sending.left.min(8192))
                .map(|_| pattern.next())
                .collect();
            let taken = self.tunnel.write(id, &chunk);
            sending.left -= taken as u64;
            sending.pattern.offset += taken as u64;
            if taken < chunk.len() {
                return;
            }
        }
        self.tunnel.finish(id);
        self.sending.remove(&id);
    }

    fn pull(&mut self, now: Instant, id: StreamId) {
        let mut buffer = vec![0; 10_000];
        let receiving = self.receiving.entry(id.number()).or_default();
        let mut pattern = Pattern {
            stream: id.number() * 2 + u64::from(!self.is_core),
            offset: receiving.length,
        };
        loop {
            let read = self.tunnel.read(id, &mut buffer);
            for (i, &byte) in buffer[..read.len].iter().enumerate() {
                assert_eq!(
                    byte,
                    pattern.next(),
                    "{id:?} wrong at {}",
                    receiving.length + i as u64
                );
            }
            receiving.length += read.len as u64;
            if read.len > 0 {
                receiving.first_at.get_or_insert(now);
            }
            if read.len > 0 || read.finished && !receiving.finished {
                receiving.last_at = Some(now);
            }
            receiving.finished |= read.finished;
            if read.len == 0 {
                return;
            }
        }
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.tunnel.poll_event() {
            match event {
                Event::Up => {
                    self.ups += 1;
                    self.receiving.clear();
                }
                Event::Down(reason) => {
                    self.down.push(reason);
                    self.down_at = Some(now);
                    self.sending.clear();
                }
                Event::Opened(id) => {
                    self.receiving.insert(id.number(), Receiving::default());
                    if let Some(length) = self.answer {
                        self.send_on(id, length);
                    }
                }
                Event::Readable(id) if !self.lazy => self.pull(now, id),
                Event::Writable(id) => self.push(id),
                Event::Reset(id, code) => {
                    self.receiving.entry(id.number()).or_default().reset = Some(code);
                    self.sending.remove(&id);
                }
                Event::Readable(_) | Event::WrongKey(_) => {}
            }
            self.events.push(event);
        }
    }

    fn received(&self, id: StreamId) -> u64 {
        self.receiving.get(&id.number()).map_or(0, |r| r.length)
    }

    fn has_all(&self, id: StreamId, length: u64) -> bool {
        self.receiving
            .get(&id.number())
            .is_some_and(|r| r.finished && r.length == length)
    }
}

/// Two ends and a line, in simulated time.
struct World {
    now: Instant,
    branch: End,
    core: End,
    /// From the branch to the core, and back.
    up: Line,
    down: Line,
    /// Datagrams in both directions, for tests that replay or inspect them.
    capture: Option<Vec<(bool, Vec<u8>)>>,
    steps: u64,
}

impl World {
    fn new(line: LineConfig, seed: u64) -> Self {
        World::with(line, seed, config_of(1, 2), config_of(2, 1))
    }

    fn with(line: LineConfig, seed: u64, branch: TunnelConfig, core: TunnelConfig) -> Self {
        let now = Instant::from_millis(1000);
        let mut rng = Rng::new(seed);
        let mut seed32 = || {
            let mut seed = [0; 32];
            rng.fill(&mut seed);
            seed
        };
        let branch = Tunnel::initiator(branch, CORE, seed32(), now);
        let core = Tunnel::responder(core, seed32(), now);
        World {
            now,
            branch: End::new(branch, BRANCH),
            core: End::new(core, CORE),
            up: Line::new(line.clone(), rng.u64()),
            down: Line::new(line, rng.u64()),
            capture: None,
            steps: 0,
        }
    }

    fn transmit(&mut self) {
        let mut buffer = Vec::new();
        while let Some(to) = self.branch.tunnel.poll_transmit(self.now, &mut buffer) {
            assert_eq!(to, self.core.address);
            assert!(buffer.len() <= 1472);
            if let Some(capture) = &mut self.capture {
                capture.push((true, buffer.clone()));
            }
            self.up.push(self.now, &buffer);
        }
        while let Some(to) = self.core.tunnel.poll_transmit(self.now, &mut buffer) {
            assert!(buffer.len() <= 1472);
            if let Some(capture) = &mut self.capture {
                capture.push((false, buffer.clone()));
            }
            // What is sent to an address that the branch has left is lost.
            if to == self.branch.address {
                self.down.push(self.now, &buffer);
            }
        }
    }

    /// One thing happens.
    fn step(&mut self, until: Instant) {
        self.steps += 1;
        self.branch.handle_events(self.now);
        self.core.handle_events(self.now);
        self.transmit();
        self.branch.handle_events(self.now);
        self.core.handle_events(self.now);
        let next = [
            self.up.next(),
            self.down.next(),
            self.branch.tunnel.next_wakeup(self.now),
            self.core.tunnel.next_wakeup(self.now),
        ];
        self.now = next
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(until)
            .clamp(self.now, until);
        while let Some(mut packet) = self.up.pop(self.now) {
            self.core
                .tunnel
                .receive(self.now, self.branch.address, &mut packet);
        }
        while let Some(mut packet) = self.down.pop(self.now) {
            self.branch
                .tunnel
                .receive(self.now, self.core.address, &mut packet);
        }
        self.branch.handle_events(self.now);
        self.core.handle_events(self.now);
    }

    /// Runs until `done`, at most `limit`. False if the time ran out.
    fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut World) -> bool) -> bool {
        let until = self.now + limit;
        while self.now < until {
            if done(self) {
                return true;
            }
            self.step(until);
        }
        done(self)
    }

    fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    fn connect(&mut self) {
        let up = |w: &mut World| {
            w.branch.tunnel.state() == State::Up && w.core.tunnel.state() == State::Up
        };
        assert!(self.run_until(Duration::from_secs(20), up), "no connection");
    }

    fn set_cut(&mut self, cut: bool) {
        self.up.set_cut(cut);
        self.down.set_cut(cut);
    }
}

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
