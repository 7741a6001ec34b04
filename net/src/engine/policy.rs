//! Which connections are optimised, and the reason for each that is not.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use outpost_config::{Config, Ipv4Cidr, Role};
use serde::Serialize;

use crate::wire::{FlowKey, Segment, SynFlaw};

/// Reasons with a counter each, which has the name that pages and telemetry use.
macro_rules! reasons {
    ($($(#[$doc:meta])* $reason:ident $name:ident $why:literal)*) => {
        /// What became of a connection that the LAN or the guest began.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$doc])* $reason,)*
        }

        /// How many connections that the LAN and the guest began had which fate. See [`Reason`].
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        #[allow(missing_docs)] // named after the reasons
        pub struct ReasonCounts {
            $(pub $name: u64,)*
        }

        impl Reason {
            /// The reason's name on pages and in telemetry.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Reason::$reason => stringify!($name),)*
                }
            }

            /// The reason in a sentence.
            pub const fn why(self) -> &'static str {
                match self {
                    $(Reason::$reason => $why,)*
                }
            }
        }

        impl ReasonCounts {
            /// Counts one connection.
            pub fn count(&mut self, reason: Reason) {
                match reason {
                    $(Reason::$reason => self.$name += 1,)*
                }
            }

            /// Each reason with its count.
            pub fn all(&self) -> impl Iterator<Item = (Reason, u64)> {
                [$((Reason::$reason, self.$name),)*].into_iter()
            }
        }
    };
}

reasons! {
    /// It became a flow.
    Optimised optimised "intercepted and carried through the tunnel"
    /// No peer serves its destination: bridged.
    NoPeer no_peer "no peer's prefixes hold the destination (or this box is a core, or the source is no host's address)"
    /// Its destination was heard on this side of the line: bridged.
    Local local "the destination is on this side of the line"
    /// The tunnel to the peer is down: bridged.
    TunnelDown tunnel_down "the tunnel to the peer was down"
    /// It repeats a SYN that was bridged before the tunnel came up: bridged.
    AlreadyBridged already_bridged "its first SYN was bridged before the tunnel came up"
    /// It was first seen without its SYN, to a destination that the peer serves: bridged.
    MidStream mid_stream "the connection was there before the box or its tunnel"
    /// There is no memory for one more flow: bridged.
    FlowLimit flow_limit "no memory for one more flow"
    /// Too many connections, of this client or in all, have been begun and have carried nothing yet: bridged.
    HalfOpenLimit half_open_limit "too many connections were begun and carried nothing yet"
    /// The tunnel carries no more streams: bridged.
    StreamLimit stream_limit "the tunnel carries no more streams"
    /// The IPv4 header has options: bridged.
    IpOptions ip_options "its packets have IPv4 options"
    /// The segments are signed (TCP MD5, TCP-AO), which no proxy can keep: bridged.
    Signed signed "its segments are signed (TCP MD5 or TCP-AO)"
    /// The checksum is wrong or the options do not parse: bridged.
    Malformed malformed "its SYN is malformed"
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
