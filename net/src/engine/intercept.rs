//! Interception: which frames belong to flows, which SYNs become flows, and what hosts are told otherwise.

use core::net::Ipv4Addr;

use outpost_config::Role;

use super::Engine;
use super::flow::{End, Flow, Stage, Start};
use super::lingering::Linger;
use super::message::{self, Code};
use super::policy::Reason;
use super::table::{Full, Slot};
use super::unanswered::Complaint;
use crate::management::Resolved;
use crate::switch::{Port, Ports};
use crate::tcp::{Tcp, Way};
use crate::time::Instant;
use crate::wire::{self, Answer, FlowKey, Frame, Icmp, Mac, Macs, Segment};

impl Engine {
    /// The connection that a segment belongs to, seen at `port`. On a branch the clients are on this side, on a core the
    /// servers.
    fn key_of(&self, port: Port, segment: &Segment<'_>) -> FlowKey {
        let client_is_source = (self.role == Role::Branch) == (port != Port::Wan);
        let (client, server) = if client_is_source {
            (segment.source, segment.destination)
        } else {
            (segment.destination, segment.source)
        };
        FlowKey { client, server }
    }

    /// Takes a TCP segment if it is for a flow, or becomes one. `false`: it goes its way as if nobody had looked.
    pub(super) fn intercept(
        &mut self,
        now: Instant,
        port: Port,
        frame: &Frame<'_>,
        segment: &Segment<'_>,
    ) -> bool {
        let key = self.key_of(port, segment);
        if let Some(slot) = self.flows.by_key(&key) {
            if port == Port::Wan {
                // A flow's 4-tuple is the tunnel's. From the line come leftovers of an earlier connection, or forgeries.
                self.counters.drops.shadowed += 1;
                return true;
            }
            if !self.replaces(slot, segment) {
                self.give(now, slot, segment);
                return true;
            }
            self.supplant(now, slot);
        }
        if let Some(linger) = self.lingering.get(now, &key) {
            // Who begins anew, or says that it knows of no connection either, is let through.
            if segment.opens() || segment.rst {
                self.lingering.remove(&key);
            } else if port != Port::Wan {
                self.answer_late(linger, segment);
                return true;
            }
        }
        if port == Port::Wan {
            if !self.unanswered.is_empty() {
                self.unanswered.answered(&key);
            }
            return false;
        }
        if frame.destination == self.host.mac() || frame.destination.is_group() {
            return false;
        }
        if !segment.opens() {
            self.notice_mid_stream(now, &key);
            return false;
        }
        let reason = match self.objection(now, frame, &key, segment) {
            Some(reason) => reason,
            None => self.open(now, port, frame, key, segment),
        };
        self.counters.syns.count(reason);
        if reason != Reason::Optimised {
            // Not `key`: on a core that one has its ends the other way round.
            let opened = FlowKey {
                client: segment.source,
                server: segment.destination,
            };
            self.bridged.note(now, opened, reason);
        }
        if reason == Reason::TunnelDown {
            let complaint = Complaint {
                quote: segment.quote(),
                back: back(frame),
                port,
            };
            self.unanswered.bridged(now, key, complaint);
        }
        reason == Reason::Optimised
    }

    /// Notices a connection to the peer that goes on without a flow and whose beginning nobody remembers.
    fn notice_mid_stream(&mut self, now: Instant, key: &FlowKey) {
        if self.policy.is_served(*key.server.ip()) && !self.bridged.contains(key) {
            self.counters.syns.count(Reason::MidStream);
            self.bridged.note(now, *key, Reason::MidStream);
        }
    }

    /// Whether a segment begins a new connection in place of the one that has its 4-tuple.
    fn replaces(&mut self, slot: Slot, segment: &Segment<'_>) -> bool {
        let (Some(flow), Some(link)) = (self.flows.get_mut(slot), &mut self.link) else {
            return false;
        };
        if !segment.opens() || flow.tcp.host_isn() == Some(segment.sequence) {
            return false;
        }
        // In any other case smoltcp does what RFC 5961, section 4.2 asks for: the host is asked whether it means it.
        matches!(
            flow.stage,
            Stage::Asking | Stage::Closing | Stage::Resetting
        ) || flow.ended(link).is_some()
    }

    /// Ends a flow whose client has begun anew.
    fn supplant(&mut self, now: Instant, slot: Slot) {
        let (Some(mut flow), Some(link)) = (self.flows.take(slot), &mut self.link) else {
            return;
        };
        let end = match flow.stage {
            Stage::Asking => {
                link.tunnel.reset(flow.stream, Code::Abandoned.into());
                End::NeverOpened(Code::Abandoned)
            }
            Stage::Resetting => End::Reset,
            _ => flow.ended(link).unwrap_or(End::Finished),
        };
        let key = flow.key;
        self.conclude(now, *flow, end);
        self.lingering.remove(&key);
    }

    /// Hands a segment to its flow.
    fn give(&mut self, now: Instant, slot: Slot, segment: &Segment<'_>) {
        let needs_buffers = self
            .flows
            .get_mut(slot)
            .is_some_and(|flow| flow.tcp.needs_buffers_for(segment));
        if needs_buffers {
            self.flows.grow(slot);
        }
        if let Some(flow) = self.flows.get_mut(slot) {
            if flow.tcp.needs_buffers_for(segment) {
                // The host will send it again.
                self.counters.drops.no_buffers += 1;
                return;
            }
            let way = flow.way;
            flow.tcp.receive(now, segment, way, &mut self.outbox);
            self.flows.wake(slot);
        }
    }

    fn answer_late(&mut self, linger: Linger, segment: &Segment<'_>) {
        self.counters.drops.late += 1;
        if let Some(answer) = linger.answer_to(segment) {
            self.outbox
                .push(linger.way.ports, wire::TCP_ANSWER_FRAME, |frame| {
                    wire::write_tcp_answer(frame, linger.way.macs, segment, answer);
                });
        }
    }

    fn objection(
        &self,
        now: Instant,
        frame: &Frame<'_>,
        key: &FlowKey,
        segment: &Segment<'_>,
    ) -> Option<Reason> {
        if let Some(reason) = self.policy.objection(segment) {
            return Some(reason);
        }
        // A prefix may be wide enough to hold what is on this side of the line.
        let at = self.switch.port_of(now, frame.destination);
        if at.is_some_and(|port| port != Port::Wan) {
            return Some(Reason::Local);
        }
        if !self.is_up() {
            return Some(Reason::TunnelDown);
        }
        self.unanswered
            .contains(key)
            .then_some(Reason::AlreadyBridged)
    }

    /// Branch: makes a flow of a SYN, and asks the core for the server.
    fn open(
        &mut self,
        now: Instant,
        port: Port,
        frame: &Frame<'_>,
        key: FlowKey,
        segment: &Segment<'_>,
    ) -> Reason {
        match self.make_room(now, &key) {
            Ok(()) => {}
            Err(Full::InUse) => return Reason::FlowLimit,
            Err(Full::SetAside | Full::Client) => return Reason::HalfOpenLimit,
        }
        let Some(link) = &mut self.link else {
            return Reason::TunnelDown;
        };
        let Some(stream) = link.tunnel.open_stream() else {
            return Reason::StreamLimit;
        };
        let way = Way {
            macs: back(frame),
            ports: Ports::only(port),
        };
        let seed = self.random.number();
        let tcp = Tcp::answering(now, segment, seed, way, &mut self.outbox);
        let start = Start {
            key,
            tcp,
            way,
            stream,
            stage: Stage::Asking,
        };
        let mut flow = Flow::new(now, start, link);
        flow.quote = Some(segment.quote());
        flow.queue(&message::encode_open(&key));
        self.counters.flows.total += 1;
        self.flows.insert(flow);
        Reason::Optimised
    }

    /// Finds room for one more flow. When there is none, the one that has gone longest without carrying anything gives
    /// way, if it has had its time: so SYNs that nobody follows up keep nobody else out.
    fn make_room(&mut self, now: Instant, key: &FlowKey) -> Result<(), Full> {
        loop {
            let full = match self.flows.admit(*key.client.ip()) {
                Ok(()) => return Ok(()),
                Err(Full::Client) => return Err(Full::Client),
                Err(full) => full,
            };
            let slot = self.flows.idlest(now).ok_or(full)?;
            self.give_way(now, slot);
        }
    }

    /// Gives up a flow for another.
    fn give_way(&mut self, now: Instant, slot: Slot) {
        self.counters.flows.gave_way += 1;
        let is_open = self
            .flows
            .get_mut(slot)
            .is_some_and(|flow| matches!(flow.stage, Stage::Accepting | Stage::Open));
        if is_open {
            self.abandon(now, slot);
        } else if let Some(flow) = self.flows.take(slot) {
            // Nothing is said: whoever meant it sends his SYN again.
            if let Some(link) = &mut self.link {
                link.tunnel.reset(flow.stream, Code::Abandoned.into());
            }
            self.conclude(now, *flow, End::NeverOpened(Code::Abandoned));
        } else {
            self.flows.forget_idlest(slot);
        }
    }

    /// Core: opens a connection that the peer asks for, on the stream that asks.
    pub(super) fn open_for_peer(
        &mut self,
        now: Instant,
        stream: crate::tunnel::StreamId,
        key: FlowKey,
    ) -> Result<(), Code> {
        if self.role != Role::Core || !self.policy.may_connect(&key) {
            return Err(Code::NotPermitted);
        }
        if let Some(slot) = self.flows.by_key(&key) {
            // The client's box knows best: the old connection is over, even if its end is still on the way here.
            self.abandon(now, slot);
        }
        self.lingering.remove(&key);
        let hop = self
            .host
            .next_hop(*key.server.ip())
            .ok_or(Code::Unreachable)?;
        self.make_room(now, &key).map_err(|_| Code::Full)?;
        let link = self.link.as_mut().ok_or(Code::NotPermitted)?;
        let way = Way {
            macs: Macs {
                source: self.host.mac(),
                destination: Mac::default(),
            },
            ports: Ports::NONE,
        };
        let tcp = Tcp::connecting(now, &key, self.random.number());
        let start = Start {
            key,
            tcp,
            way,
            stream,
            stage: Stage::Resolving { hop },
        };
        let flow = Flow::new(now, start, link);
        self.counters.flows.total += 1;
        let slot = self.flows.insert(flow);
        self.resolve(now, slot, hop);
        Ok(())
    }

    /// Core: connects if the neighbour's address is known, else waits for it.
    fn resolve(&mut self, now: Instant, slot: Slot, hop: Ipv4Addr) {
        match self.host.neighbour(now, hop) {
            Some(mac) => self.connect(now, slot, mac),
            None => {
                if !self.host.wait(hop, slot) {
                    self.give_up(now, slot);
                }
            }
        }
    }

    fn connect(&mut self, now: Instant, slot: Slot, mac: Mac) {
        let way = Way {
            macs: Macs {
                source: self.host.mac(),
                destination: mac,
            },
            ports: self.ports_to_host(now, mac),
        };
        if way.ports.is_empty() {
            log::warn!("a server is on the line's side of this box: not connected to");
            self.give_up(now, slot);
            return;
        }
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.connect(now, way);
            self.flows.wake(slot);
        }
    }

    /// Core: tells the peer that a server cannot be reached.
    fn give_up(&mut self, now: Instant, slot: Slot) {
        let Some(flow) = self.flows.take(slot) else {
            return;
        };
        if let Some(link) = &mut self.link {
            link.tunnel.reset(flow.stream, Code::Unreachable.into());
        }
        self.conclude(now, *flow, End::NeverOpened(Code::Unreachable));
    }

    /// Lets the flows go on that waited for a neighbour.
    pub(super) fn wake_resolved(&mut self, now: Instant) {
        while let Some(Resolved { flow, address, mac }) = self.host.take_resolved() {
            let waits = self
                .flows
                .get_mut(flow)
                .is_some_and(|flow| flow.stage == Stage::Resolving { hop: address });
            match mac {
                _ if !waits => {}
                Some(mac) => self.connect(now, flow, mac),
                None => self.give_up(now, flow),
            }
        }
    }

    /// Core: sends a flow's frames where its server is now, should that have changed.
    pub(super) fn refresh_way(&mut self, now: Instant, flow: &mut Flow) {
        if self.role != Role::Core || matches!(flow.stage, Stage::Resolving { .. }) {
            return;
        }
        if let Some(hop) = self.host.next_hop(*flow.key.server.ip())
            && let Some(mac) = self.host.neighbour(now, hop)
        {
            flow.way.macs.destination = mac;
        }
        flow.way.ports = self.ports_to_host(now, flow.way.macs.destination);
    }

    /// Resets a flow towards its host at once; its stream is gone.
    pub(super) fn abandon(&mut self, now: Instant, slot: Slot) {
        let has_stream = self.flows.has_stream(slot);
        let Some(mut flow) = self.flows.take(slot) else {
            return;
        };
        if let Some(link) = self.link.as_mut().filter(|_| has_stream) {
            link.tunnel.reset(flow.stream, Code::Abandoned.into());
        }
        flow.abort();
        flow.tcp.poll(now, flow.way, &mut self.outbox);
        self.conclude(now, *flow, End::Reset);
    }

    /// A flow is out of the table: what is left to say and to count.
    pub(super) fn conclude(&mut self, now: Instant, flow: Flow, end: End) {
        self.counters.flows.count(end);
        let (key, way) = (flow.key, flow.way);
        if let (End::NeverOpened(code), Some(quote)) = (end, flow.quote)
            && code != Code::Abandoned
            && flow.stage == Stage::Asking
        {
            let complaint = Complaint {
                quote,
                back: way.macs,
                port: Port::Lan,
            };
            self.complain_at(&complaint, way.ports);
        }
        if let Some(link) = &mut self.link {
            flow.close(link);
        }
        let answer = match end {
            End::Finished => Answer::Acknowledge,
            End::HostReset | End::Reset => Answer::Reset,
            End::NeverOpened(_) => return,
        };
        self.lingering.insert(now, key, Linger { answer, way });
    }

    /// Tells a client that its SYN leads nowhere.
    pub(super) fn complain(&mut self, complaint: &Complaint) {
        self.complain_at(complaint, Ports::only(complaint.port));
    }

    fn complain_at(&mut self, complaint: &Complaint, ports: Ports) {
        let own = self.host.address();
        self.outbox.push(ports, wire::UNREACHABLE_FRAME, |frame| {
            wire::write_host_unreachable(frame, complaint.back, own, &complaint.quote);
        });
    }

    /// Notices ICMP errors about connection attempts. `true`: it was for a flow.
    pub(super) fn notice_icmp(&mut self, now: Instant, port: Port, icmp: &Icmp<'_>) -> bool {
        let Some((source, destination)) = wire::icmp_error_about(icmp.message) else {
            return false;
        };
        // The packet quoted went the other way than its error comes.
        let key = FlowKey {
            client: source,
            server: destination,
        };
        match self.role {
            Role::Branch => {
                if port == Port::Wan && !self.unanswered.is_empty() {
                    self.unanswered.answered(&key);
                }
                false
            }
            Role::Core => {
                if port == Port::Wan {
                    return false;
                }
                let Some(slot) = self.flows.by_key(&key) else {
                    return false;
                };
                // Once connected, an error is no reason to give up (RFC 1122, 4.2.3.9).
                if self
                    .flows
                    .get_mut(slot)
                    .is_some_and(|flow| flow.stage == Stage::Connecting)
                {
                    self.give_up(now, slot);
                }
                true
            }
        }
    }
}

/// The way back to whoever sent a frame.
fn back(frame: &Frame<'_>) -> Macs {
    Macs {
        source: frame.destination,
        destination: frame.source,
    }
}
