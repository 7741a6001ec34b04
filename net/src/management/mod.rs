//! The box's own station on the network that it bridges: ARP, ping, a polite no to TCP, and the tunnel's UDP datagrams.

mod arp;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod http;
mod web;

use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};

use outpost_config::{Ipv4Interface, Management};

use crate::hash::Keyed;
use crate::outbox::Outbox;
use crate::switch::Switch;
use crate::time::Instant;
use crate::wire::{self, Answer, Arp, Frame, Mac, Macs, Payload};

use arp::{ArpCache, Outcome, Waiter};

pub use http::Page;
pub use web::Web;

/// TCP port of `/metrics` and `/flows` on the management address.
pub const PAGES_PORT: u16 = 9090;

/// What a frame for the box was.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// Answered, or nothing to answer.
    Done,
    /// A UDP datagram for the engine: from, to which port, what.
    Datagram(SocketAddrV4, u16, &'a [u8]),
    /// Something that the box does not speak.
    Unknown,
}

/// The box's own station.
pub struct Host {
    mac: Mac,
    interface: Ipv4Interface,
    gateway: Option<Ipv4Addr>,
    arp: ArpCache,
    resolved: Vec<Resolved>,
}

/// What became of a neighbour that a flow waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The number that the flow waited with.
    pub flow: u32,
    /// The neighbour.
    pub address: Ipv4Addr,
    /// Its MAC address; `None`: nobody answers.
    pub mac: Option<Mac>,
}

impl Host {
    /// A station with the address `mac`.
    pub fn new(mac: Mac, management: &Management, hash: Keyed) -> Host {
        Host {
            mac,
            interface: management.address,
            gateway: management.gateway,
            arp: ArpCache::new(hash),
            resolved: Vec::new(),
        }
    }

    /// The station's MAC address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The station's IPv4 address.
    pub fn address(&self) -> Ipv4Addr {
        self.interface.address()
    }

    /// The MAC addresses of frames to the station that sent one.
    pub fn back_to(&self, station: Mac) -> Macs {
        Macs {
            source: self.mac,
            destination: station,
        }
    }

    /// The neighbour that packets for `destination` are sent to; `None`: no route.
    pub fn next_hop(&self, destination: Ipv4Addr) -> Option<Ipv4Addr> {
        if self.interface.is_neighbour(destination) {
            Some(destination)
        } else {
            self.gateway
        }
    }

    /// The MAC address of a neighbour, if it is known; otherwise it is asked for.
    pub fn neighbour(&mut self, now: Instant, address: Ipv4Addr) -> Option<Mac> {
        self.arp.lookup(now, address)
    }

    /// Has a flow wait for a neighbour that is being asked for; `false`: there is no room.
    pub fn wait(&mut self, address: Ipv4Addr, flow: u32) -> bool {
        self.arp.wait(address, Waiter::Flow(flow)).is_ok()
    }

    /// Takes the flows whose neighbour is now known, or known not to be there.
    pub fn take_resolved(&mut self) -> Option<Resolved> {
        self.resolved.pop()
    }

    /// Takes a frame that is addressed to the station, or an ARP broadcast.
    pub fn receive<'a>(
        &mut self,
        now: Instant,
        frame: &Frame<'a>,
        switch: &Switch,
        outbox: &mut Outbox,
    ) -> Heard<'a> {
        let back = self.back_to(frame.source);
        let own = self.interface.address();
        let ports = |mac| switch.forward(now, None, mac);
        match &frame.payload {
            Payload::Arp(arp) => {
                self.receive_arp(now, arp, switch, outbox);
                Heard::Done
            }
            Payload::Icmp(icmp)
                if icmp.destination == own && wire::is_echo_request(icmp.message) =>
            {
                outbox.push(
                    ports(back.destination),
                    wire::echo_reply_len(icmp.message.len()),
                    |frame| wire::write_echo_reply(frame, back, own, icmp.source, icmp.message),
                );
                Heard::Done
            }
            Payload::Tcp(segment) if *segment.destination.ip() == own && !segment.rst => {
                outbox.push(ports(back.destination), wire::TCP_ANSWER_FRAME, |frame| {
                    wire::write_tcp_answer(frame, back, segment, Answer::Reset)
                });
                Heard::Done
            }
            Payload::Udp(datagram) if *datagram.destination.ip() == own => Heard::Datagram(
                datagram.source,
                datagram.destination.port(),
                datagram.payload,
            ),
            _ => Heard::Unknown,
        }
    }

    fn receive_arp(&mut self, now: Instant, arp: &Arp, switch: &Switch, outbox: &mut Outbox) {
        let own = self.interface.address();
        let for_us = arp.target == own;
        // A probe (RFC 5227) has no sender address; one with ours would be a conflict. Neither tells anything.
        if self.interface.is_neighbour(arp.sender) && arp.sender != own {
            let outcome = self
                .arp
                .confirm(now, arp.sender, arp.sender_mac, for_us && arp.request);
            if let Some(outcome) = outcome {
                self.release(now, outcome, switch, outbox);
            }
        }
        if for_us && arp.request && !arp.sender_mac.is_group() {
            let reply = Arp {
                request: false,
                sender_mac: self.mac,
                sender: own,
                target: arp.sender,
            };
            let ports = switch.forward(now, None, arp.sender_mac);
            outbox.push(ports, wire::ARP_FRAME, |frame| {
                wire::write_arp(frame, reply, arp.sender_mac);
            });
        }
    }

    fn release(&mut self, now: Instant, outcome: Outcome, switch: &Switch, outbox: &mut Outbox) {
        let address = outcome.address;
        for waiter in outcome.waiters {
            match (waiter, outcome.mac) {
                (Waiter::Flow(flow), mac) => self.resolved.push(Resolved { flow, address, mac }),
                (Waiter::Frame(mut frame), Some(mac)) => {
                    if let Some(destination) = frame.get_mut(..6) {
                        destination.copy_from_slice(&mac.0);
                    }
                    outbox.push_copy(switch.forward(now, None, mac), &frame);
                }
                (Waiter::Frame(_), None) => {}
            }
        }
    }

    /// Sends a UDP datagram. One to a neighbour that is not known waits for it; `false`: it was dropped instead.
    pub fn send(
        &mut self,
        now: Instant,
        from_port: u16,
        to: SocketAddrV4,
        payload: &[u8],
        switch: &Switch,
        outbox: &mut Outbox,
    ) -> bool {
        let Some(hop) = self.next_hop(*to.ip()) else {
            return false;
        };
        let from = SocketAddrV4::new(self.interface.address(), from_port);
        let len = wire::udp_frame_len(payload.len());
        let macs = |destination| Macs {
            source: self.mac,
            destination,
        };
        match self.arp.lookup(now, hop) {
            Some(mac) => {
                outbox.push(switch.forward(now, None, mac), len, |frame| {
                    wire::write_udp(frame, macs(mac), from, to, payload);
                });
                true
            }
            None => {
                let mut frame = alloc::vec![0; len];
                wire::write_udp(&mut frame, macs(Mac::default()), from, to, payload);
                self.arp.wait(hop, Waiter::Frame(frame)).is_ok()
            }
        }
    }

    /// Sends the ARP requests that are due.
    pub fn poll(&mut self, now: Instant, switch: &Switch, outbox: &mut Outbox) {
        let (mac, own) = (self.mac, self.interface.address());
        let resolved = &mut self.resolved;
        self.arp.poll(
            now,
            |target| {
                let request = Arp {
                    request: true,
                    sender_mac: mac,
                    sender: own,
                    target,
                };
                let ports = switch.forward(now, None, Mac::BROADCAST);
                outbox.push(ports, wire::ARP_FRAME, |frame| {
                    wire::write_arp(frame, request, Mac::default());
                });
            },
            |outcome| {
                let (address, mac) = (outcome.address, outcome.mac);
                for waiter in outcome.waiters {
                    if let Waiter::Flow(flow) = waiter {
                        resolved.push(Resolved { flow, address, mac });
                    }
                }
            },
        );
    }

    /// When [`Host::poll`] has something to do.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.arp.next_wakeup()
    }
}
