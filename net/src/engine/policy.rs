//! Which connections are optimised, and the reason for each that is not.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use outpost_config::{Config, Ipv4Cidr, Role};
use serde::Serialize;

use crate::wire::{FlowKey, Segment, SynFlaw};

/// What became of a SYN from the LAN or the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It became a flow.
    Optimised,
    /// No peer serves its destination: bridged.
    NoPeer,
    /// Its destination was heard on this side of the line: bridged.
    Local,
    /// The tunnel to the peer is down: bridged.
    TunnelDown,
    /// It repeats a SYN that was bridged before the tunnel came up: bridged.
    AlreadyBridged,
    /// There is no memory for one more flow: bridged.
    FlowLimit,
    /// Too many connections, of this client or in all, have been begun and have carried nothing yet: bridged.
    HalfOpenLimit,
    /// The tunnel carries no more streams: bridged.
    StreamLimit,
    /// The IPv4 header has options: bridged.
    IpOptions,
    /// The segments are signed (TCP MD5, TCP-AO), which no proxy can keep: bridged.
    Signed,
    /// The checksum is wrong or the options do not parse: bridged.
    Malformed,
}

/// How many SYNs from the LAN and the guest had which fate. See [`Reason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // named after the reasons
pub struct ReasonCounts {
    pub optimised: u64,
    pub no_peer: u64,
    pub local: u64,
    pub tunnel_down: u64,
    pub already_bridged: u64,
    pub flow_limit: u64,
    pub half_open_limit: u64,
    pub stream_limit: u64,
    pub ip_options: u64,
    pub signed: u64,
    pub malformed: u64,
}

impl ReasonCounts {
    /// Counts one SYN.
    pub fn count(&mut self, reason: Reason) {
        let counter = match reason {
            Reason::Optimised => &mut self.optimised,
            Reason::NoPeer => &mut self.no_peer,
            Reason::Local => &mut self.local,
            Reason::TunnelDown => &mut self.tunnel_down,
            Reason::AlreadyBridged => &mut self.already_bridged,
            Reason::FlowLimit => &mut self.flow_limit,
            Reason::HalfOpenLimit => &mut self.half_open_limit,
            Reason::StreamLimit => &mut self.stream_limit,
            Reason::IpOptions => &mut self.ip_options,
            Reason::Signed => &mut self.signed,
            Reason::Malformed => &mut self.malformed,
        };
        *counter += 1;
    }
}

impl From<SynFlaw> for Reason {
    fn from(flaw: SynFlaw) -> Reason {
        match flaw {
            SynFlaw::Malformed => Reason::Malformed,
            SynFlaw::IpOptions => Reason::IpOptions,
            SynFlaw::Signed => Reason::Signed,
        }
    }
}

/// What the configuration says about which connections to optimise.
pub struct Policy {
    /// Destinations that the peer serves; a core intercepts nothing of its own accord.
    served: Vec<Ipv4Cidr>,
    own: Ipv4Addr,
}

impl Policy {
    /// The policy of `config`.
    pub fn new(config: &Config) -> Policy {
        let served = match config.role {
            Role::Branch => config
                .peers
                .first()
                .map(|peer| peer.prefixes.clone())
                .unwrap_or_default(),
            Role::Core => Vec::new(),
        };
        Policy {
            served,
            own: config.management.address.address(),
        }
    }

    /// Whether the peer serves `destination`.
    pub fn is_served(&self, destination: Ipv4Addr) -> bool {
        destination != self.own
            && self
                .served
                .iter()
                .any(|prefix| prefix.contains(destination))
    }

    /// Why a SYN is not to become a flow, as far as the SYN itself tells.
    pub fn objection(&self, syn: &Segment<'_>) -> Option<Reason> {
        if !self.is_served(*syn.destination.ip()) || !is_host(*syn.source.ip()) {
            return Some(Reason::NoPeer);
        }
        if syn.source.port() == 0 || syn.destination.port() == 0 {
            return Some(Reason::Malformed);
        }
        syn.flaw().map(Reason::from)
    }

    /// Whether the core may connect as `key` says: between two hosts, neither of them this box.
    pub fn may_connect(&self, key: &FlowKey) -> bool {
        [key.client, key.server]
            .iter()
            .all(|end| is_host(*end.ip()) && *end.ip() != self.own && end.port() != 0)
    }
}

/// Whether an address can be a host's.
fn is_host(address: Ipv4Addr) -> bool {
    !address.is_unspecified()
        && !address.is_broadcast()
        && !address.is_multicast()
        && !address.is_loopback()
}
