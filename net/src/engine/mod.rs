//! The engine: what a box does with every frame. It ties the switch, the management station, interception, flows, tunnel
//! and dictionaries together; each of them is elsewhere.
//!
//! Frames come in by [`Engine::receive`], and leave in [`Engine::poll`], which does all other work too.

mod bridged;
mod events;
mod flow;
mod intercept;
mod lingering;
mod pages;
mod policy;
mod statistics;
mod store;
mod table;
mod unanswered;

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::time::Duration;

use hashbrown::HashMap;
use outpost_config::{Config, DEFAULT_PORT, Role};

use crate::hash::{Keyed, Random};
use crate::management::{Heard, Host, PAGES_PORT, Web};
use crate::outbox::Outbox;
use crate::store::BlockDevice;
use crate::switch::{Port, Ports, Switch};
use crate::time::Instant;
use crate::tunnel::{Endpoint, StreamId, TunnelConfig};
use crate::wire::{self, Frame, Mac, Payload};

use crate::flow::newcomer::Newcomer;
use crate::flow::{link, message};
use crate::tcp::Way;
use bridged::Bridged;
use flow::Next;
use lingering::Lingering;
use link::{Ends, Link, StoreParts};
use policy::Policy;
use table::FlowTable;
use unanswered::Unanswered;

pub use pages::MoreMetrics;
pub use policy::{Reason, ReasonCounts};
pub use statistics::{Drops, FlowCounters, PortCounters, Statistics, TunnelView};

/// The longest frame that is bridged, in bytes (a jumbo frame).
const MAX_FRAME: usize = 9216 + wire::ETHERNET_HEADER + 4;
/// Frames sent in one [`Engine::poll`] at most (one for several ports may exceed it). More is left for the next.
const POLL_FRAMES: usize = 256;
/// Payload bytes of flows moved in one [`Engine::poll`], about: encoding and decoding them is most of the work.
const POLL_BYTES: u64 = 256 * 1024;
/// When a flow that found no room for its buffers looks again.
const BUFFERS_RETRY: Duration = Duration::from_millis(50);
/// Turns of flows between two looks at the tunnel.
const TURNS: usize = 32;

/// What the engine needs beside its configuration.
#[derive(Clone, Copy, Debug)]
pub struct EngineParts {
    /// MAC address of the box's own station. The LAN port's will do: it is the box's alone.
    pub mac: [u8; 6],
    /// Secret and random: keys of hash tables, sequence numbers, the tunnel's ephemeral keys. Never the same twice.
    pub seed: [u8; 32],
    /// Memory for the dictionaries of both directions, if the configuration does not say, in bytes. With a device
    /// ([`Engine::with_store`]) it is for the parts of them in use; the index (1/32 of what the sending direction may hold,
    /// half of the device) comes on top.
    pub store_memory: usize,
    /// Memory for flows (buffers towards the hosts), in bytes; a flow takes 8 KiB of it until it carries something, then
    /// 64 KiB to 544 KiB. What flows take elsewhere follows from it: [`working_memory`].
    pub flow_memory: usize,
}

/// A box's network.
pub struct Engine {
    role: Role,
    policy: Policy,
    switch: Switch,
    host: Host,
    outbox: Outbox,
    link: Option<Link>,
    tunnel_port: u16,
    flows: FlowTable,
    lingering: Lingering,
    unanswered: Unanswered,
    bridged: Bridged,
    web: Web,
    /// The peer's name.
    peer: String,
    /// What adds the owner's metrics.
    more_metrics: Option<pages::MoreMetrics>,
    /// Streams that the peer opened and that have not yet said what they are.
    newcomers: HashMap<StreamId, Newcomer, Keyed>,
    /// Flows that go on only after the peer's control stream has said something.
    awaiting_control: Vec<table::Slot>,
    random: Random,
    /// When the dictionaries are written to their device.
    rhythm: store::Rhythm,
    counters: Statistics,
    /// Room for one tunnel datagram.
    datagram: Vec<u8>,
    /// [`Engine::poll`] has something to do now.
    keep_polling: bool,
}

/// What an engine with so much memory for flows takes while it runs, beside what it has when it is made, in bytes: those buffers; as much in the flows' coders, which blocks become
/// smaller for; half as much for the tunnel's buffers; half as much for room that is larger than what is in it, or kept for the next; and what all share. It does not refuse to
/// take more: that the crowds that we could think of stay below is for `connections_take_no_more_than_is_set_aside_for_them` to show.
pub const fn working_memory(flow_memory: usize) -> usize {
    3 * flow_memory + (2 << 20)
}

impl Engine {
    /// An engine that has heard nothing yet. `now` is the time of this call.
    ///
    /// With no peer in the configuration it is a switch with a management address.
    pub fn new(config: &Config, parts: EngineParts, now: Instant) -> Engine {
        Engine::with_store(config, parts, None, now)
    }

    /// As [`Engine::new`]; the dictionaries with the (first) peer are kept on `device`. A device that cannot be used is left
    /// alone, with a line in the log, and they are in memory.
    pub fn with_store(
        config: &Config,
        parts: EngineParts,
        device: Option<Rc<dyn BlockDevice>>,
        now: Instant,
    ) -> Engine {
        let mut random = Random::new(parts.seed);
        let hash = Keyed::with_seed(random.number());
        let mac = Mac(parts.mac);
        let tunnel_port = match config.role {
            Role::Branch => DEFAULT_PORT,
            Role::Core => config.listen.port(),
        };
        let memory = config.store.memory.map_or(parts.store_memory, |size| {
            usize::try_from(size.bytes()).unwrap_or(usize::MAX)
        });
        let ends = config.peers.first().and_then(|peer| {
            let endpoint = match config.role {
                Role::Branch => Some(peer.endpoint?),
                Role::Core => None,
            };
            let mut tunnel = TunnelConfig::new(config.private_key.0, peer.public_key.0);
            let buffers = u32::try_from(parts.flow_memory / 4).unwrap_or(u32::MAX);
            tunnel.receive_memory = tunnel.receive_memory.min(buffers);
            tunnel.send_memory = tunnel.send_memory.min(buffers);
            Some(Ends {
                config: tunnel,
                endpoint: endpoint.map(|at| Endpoint::new(*at.ip(), at.port())),
            })
        });
        let link = ends.map(|ends| {
            let store = StoreParts { memory, device };
            let mut link = Link::new(ends, &mut random, store, now);
            link.keep_spares(parts.flow_memory / 16);
            link
        });
        Engine {
            role: config.role,
            policy: Policy::new(config),
            switch: Switch::new(mac, hash.clone(), now),
            host: Host::new(mac, &config.management, hash.clone()),
            outbox: Outbox::with_buffers(),
            link,
            tunnel_port,
            flows: FlowTable::new(parts.flow_memory, &hash),
            lingering: Lingering::new(hash.clone()),
            unanswered: Unanswered::new(hash.clone()),
            bridged: Bridged::new(hash.clone()),
            web: Web::default(),
            peer: config
                .peers
                .first()
                .map(|peer| peer.name.clone())
                .unwrap_or_default(),
            more_metrics: None,
            newcomers: HashMap::with_hasher(hash.clone()),
            awaiting_control: Vec::new(),
            random,
            rhythm: store::Rhythm::default(),
            counters: Statistics::default(),
            datagram: Vec::new(),
            keep_polling: false,
        }
    }

    /// Takes a frame that arrived at `port`. Call [`Engine::poll`] soon after, at best after a few of them.
    pub fn receive(&mut self, now: Instant, port: Port, frame: &[u8]) {
        let counters = self.counters.port_mut(port);
        counters.rx_frames += 1;
        counters.rx_bytes += frame.len() as u64;
        if frame.len() > MAX_FRAME {
            self.counters.drops.bad_length += 1;
            return;
        }
        let Some(parsed) = Frame::parse(frame) else {
            self.counters.drops.bad_length += 1;
            return;
        };
        if parsed.source == self.host.mac() {
            self.counters.drops.own_source += 1;
            return;
        }
        self.switch.learn(now, port, parsed.source);
        let consumed = match &parsed.payload {
            Payload::Tcp(segment) => self.intercept(now, port, &parsed, segment),
            Payload::Icmp(icmp) => self.notice_icmp(now, port, icmp),
            _ => false,
        };
        if consumed {
            return;
        }
        if parsed.destination == self.host.mac() {
            self.receive_own(now, port, &parsed);
            return;
        }
        if matches!(parsed.payload, Payload::Arp(_)) {
            self.receive_own(now, port, &parsed);
        }
        let ports = self.switch.forward(now, Some(port), parsed.destination);
        if !ports.is_empty() {
            self.counters.bridged_frames += 1;
        }
        self.outbox.push_copy(ports, frame);
    }

    /// A frame for the box itself.
    fn receive_own(&mut self, now: Instant, port: Port, frame: &Frame<'_>) {
        if let Payload::Tcp(segment) = &frame.payload
            && segment.destination == SocketAddrV4::new(self.host.address(), PAGES_PORT)
        {
            if port != Port::Lan {
                // The pages are for the LAN; to everyone else there is not even a closed port.
                self.counters.drops.unknown_to_host += 1;
                return;
            }
            let way = Way {
                macs: self.host.back_to(frame.source),
                ports: Ports::only(Port::Lan),
            };
            let seed = self.random.number();
            if self.web.receive(now, segment, way, seed, &mut self.outbox) {
                return;
            }
        }
        match self
            .host
            .receive(now, frame, &self.switch, &mut self.outbox)
        {
            Heard::Done => self.wake_resolved(now),
            Heard::Datagram(from, port, payload) if port == self.tunnel_port => {
                if let Some(link) = &mut self.link {
                    self.datagram.clear();
                    self.datagram.extend_from_slice(payload);
                    let from = Endpoint::new(*from.ip(), from.port());
                    link.tunnel.receive(now, from, &mut self.datagram);
                    self.keep_polling = true;
                }
            }
            Heard::Datagram(..) | Heard::Unknown => self.counters.drops.unknown_to_host += 1,
        }
    }

    /// Does what there is to do and hands each frame that leaves to `emit`. Works for a bounded time: when
    /// [`Engine::next_wakeup`] then says "now", there is more.
    pub fn poll(&mut self, now: Instant, emit: &mut dyn FnMut(Port, &[u8])) {
        self.keep_polling = false;
        if let Some(link) = &mut self.link {
            link.set_block_limit(self.flows.block_limit());
        }
        self.host.poll(now, &self.switch, &mut self.outbox);
        self.wake_resolved(now);
        while let Some(complaint) = self.unanswered.overdue(now) {
            self.counters.syns_unanswered += 1;
            self.complain(&complaint);
        }
        self.serve_pages(now);
        let mut sent = self.emit(POLL_FRAMES, emit);
        let moved_before = self.bytes_moved();
        // The tunnel's events first, always: a stream that the peer has reset must not be read as if it had finished.
        self.handle_tunnel(now);
        self.flows.wake_due(now);
        loop {
            let flows = self.take_turns(now, moved_before + POLL_BYTES);
            if let Some(link) = &mut self.link {
                link.write_control(now);
            }
            let datagrams = self.transmit(now);
            self.handle_tunnel(now);
            sent += self.emit(POLL_FRAMES.saturating_sub(sent), emit);
            let idle = flows == 0 && datagrams == 0;
            if idle || sent >= POLL_FRAMES || self.bytes_moved() - moved_before >= POLL_BYTES {
                self.keep_polling |= !idle;
                break;
            }
        }
        self.keep_polling |= self.flows.has_ready() || !self.outbox.is_empty();
    }

    /// Payload bytes that flows have moved, both ways.
    fn bytes_moved(&self) -> u64 {
        self.counters.flows.from_hosts + self.counters.flows.to_hosts
    }

    /// Hands at most `most` waiting frames over; gives how many they were.
    fn emit(&mut self, most: usize, emit: &mut dyn FnMut(Port, &[u8])) -> usize {
        let mut sent = 0;
        while sent < most
            && let Some((ports, frame)) = self.outbox.pop()
        {
            for port in ports.iter() {
                let counters = self.counters.port_mut(port);
                counters.tx_frames += 1;
                counters.tx_bytes += frame.len() as u64;
                emit(port, &frame);
                sent += 1;
            }
            self.outbox.recycle(frame);
        }
        sent
    }

    /// Gives waiting flows their turns until [`Engine::bytes_moved`] reaches `enough`; gives how many had one.
    fn take_turns(&mut self, now: Instant, enough: u64) -> usize {
        let mut turns = 0;
        let most = self.flows.ready_len().min(TURNS);
        while turns < most && self.bytes_moved() < enough && self.outbox.has_room_for_flows() {
            let Some((slot, mut flow)) = self.flows.take_ready() else {
                break;
            };
            turns += 1;
            self.refresh_way(now, &mut flow);
            let Some(link) = &mut self.link else { break };
            let (from, to) = (flow.pump.from_host, flow.pump.to_host);
            let next = flow.turn(now, link, &mut self.outbox);
            self.counters.flows.from_hosts += flow.pump.from_host - from;
            self.counters.flows.to_hosts += flow.pump.to_host - to;
            let next = match next {
                Next::Wait(timer) if flow.tcp.wants_buffers() => {
                    match self.flows.grant(&mut flow) {
                        Some(buffer) => {
                            flow.tcp.grow(buffer);
                            Next::Again
                        }
                        None => {
                            let again = now + BUFFERS_RETRY;
                            Next::Wait(Some(timer.map_or(again, |timer| timer.min(again))))
                        }
                    }
                }
                next => next,
            };
            match next {
                Next::Again => {
                    self.flows.put_back(slot, flow, None);
                    self.flows.wake(slot);
                }
                Next::Wait(timer) => {
                    if flow.awaits_control() && !flow.is_listed {
                        flow.is_listed = true;
                        self.awaiting_control.push(slot);
                    }
                    self.flows.put_back(slot, flow, timer);
                }
                Next::End(end) => {
                    self.flows.remove(slot, &flow);
                    self.conclude(now, *flow, end);
                }
            }
        }
        turns
    }

    /// Sends tunnel datagrams; gives how many.
    fn transmit(&mut self, now: Instant) -> usize {
        let Some(link) = &mut self.link else {
            return 0;
        };
        let mut sent = 0;
        while self.outbox.has_room_for_flows() {
            let Some(to) = link.tunnel.poll_transmit(now, &mut self.datagram) else {
                break;
            };
            sent += 1;
            let to = SocketAddrV4::new(to.address, to.port);
            let went = self.host.send(
                now,
                self.tunnel_port,
                to,
                &self.datagram,
                &self.switch,
                &mut self.outbox,
            );
            if !went {
                self.counters.drops.no_route += 1;
            }
        }
        link.mend(&mut self.random, now);
        sent
    }

    /// When [`Engine::poll`] has something to do if no frame arrives before. In the past or present: now.
    pub fn next_wakeup(&self, now: Instant) -> Option<Instant> {
        if self.keep_polling {
            return Some(now);
        }
        let link = self.link.as_ref();
        [
            self.host.next_wakeup(),
            self.unanswered.next_wakeup(),
            self.web.next_wakeup(),
            self.flows.next_wakeup(),
            link.and_then(|link| link.tunnel.next_wakeup(now)),
            link.and_then(Link::next_wakeup),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether flows can begin.
    fn is_up(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_ready)
    }

    /// The box's own address.
    pub fn address(&self) -> Ipv4Addr {
        self.host.address()
    }

    /// Counters and states at this moment.
    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.counters.clone();
        statistics.flows.open = self.flows.len();
        statistics.flows.small = self.flows.small();
        statistics.flows.memory = self.flows.memory();
        statistics.drops.no_room = self.outbox.dropped();
        statistics.stations = self.switch.stations();
        if let Some(link) = &self.link {
            statistics.tunnel = TunnelView::new(&link.tunnel);
            statistics.sent = link.sender.statistics();
            statistics.received = link.receiver.statistics();
            statistics.store = link.store_statistics();
        }
        statistics
    }

    /// The ports that frames for a host leave from: never the line's, for what is sent to hosts is in the clear.
    fn ports_to_host(&self, now: Instant, mac: Mac) -> Ports {
        match self.switch.port_of(now, mac) {
            Some(Port::Wan) => Ports::NONE,
            Some(port) => Ports::only(port),
            None => Ports::ALL.without(Port::Wan),
        }
    }
}
