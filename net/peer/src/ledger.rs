//! What became of connections: how they ended, the last of them, and those that were not optimised, with the reason.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::Instant;

use outpost_net::FlowKey;
use outpost_net::engine::{Reason, ReasonCounts};
use outpost_net::flow::Pump;
use outpost_net::flow::message::Code;
use outpost_net::report::{BridgedReport, FlowReport};
use serde_json::{Value, json};

/// Ended flows that are remembered.
const ENDED: usize = 100;
/// Connections carried outside of any tunnel that are remembered.
const DIRECT: usize = 100;

/// Ends of flows, with the names that pages use.
macro_rules! ends {
    ($($(#[$doc:meta])* $end:ident $name:literal)*) => {
        /// How a flow ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum End {
            $($(#[$doc])* $end,)*
        }

        impl End {
            /// All of them.
            pub const ALL: &'static [End] = &[$(End::$end,)*];

            /// Its name on pages.
            pub const fn name(self) -> &'static str {
                match self {
                    $(End::$end => $name,)*
                }
            }
        }
    };
}

ends! {
    /// Both sides had finished, and everything arrived.
    Finished "finished"
    /// The server refused the connection.
    Refused "refused"
    /// The server cannot be reached, or did not answer.
    Unreachable "unreachable"
    /// The core may not open it.
    NotPermitted "not_permitted"
    /// The client gave up before the server answered.
    Abandoned "abandoned"
    /// The core did not answer in time.
    NoAnswer "no_answer"
    /// The host on this side reset the connection.
    ResetByHost "reset_by_host"
    /// The peer reset the stream: its host reset the connection, or it could not go on.
    ResetByPeer "reset_by_peer"
    /// What came could not be decoded.
    Undecodable "undecodable"
    /// The tunnel carries no more streams, or the core no more flows.
    Full "full"
    /// The tunnel was or went down.
    TunnelDown "tunnel_down"
}

impl End {
    /// The end that a peer's or our own code for a reset means.
    pub fn of(code: Code) -> End {
        match code {
            Code::Refused => End::Refused,
            Code::Unreachable => End::Unreachable,
            Code::NotPermitted => End::NotPermitted,
            Code::Abandoned => End::Abandoned,
            Code::Undecodable => End::Undecodable,
            Code::Full => End::Full,
            crate::flow::TUNNEL_DOWN => End::TunnelDown,
            Code::HostReset | Code::Protocol | Code::Other(_) => End::ResetByPeer,
        }
    }
}

/// Counts by end.
#[derive(Default)]
pub struct Ends([Cell<u64>; End::ALL.len()]);

impl Ends {
    /// One more.
    pub fn count(&self, end: End) {
        if let Some(counter) = self.0.get(end as usize) {
            counter.set(counter.get() + 1);
        }
    }

    /// Each end with its count.
    pub fn all(&self) -> impl Iterator<Item = (End, u64)> {
        End::ALL.iter().copied().zip(self.0.iter().map(Cell::get))
    }
}

/// A flow's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // as in `FlowReport`
pub struct Numbers {
    pub from_host: u64,
    pub to_host: u64,
    pub encoded: u64,
    pub received: u64,
    pub copied: u64,
    pub matched: u64,
    pub literal: u64,
    pub refetches: u64,
}

impl Numbers {
    /// What has gone through `pump`.
    pub fn of(pump: &Pump) -> Numbers {
        let of = pump.statistics();
        Numbers {
            from_host: pump.from_host,
            to_host: pump.to_host,
            encoded: of.wire_bytes,
            received: pump.from_peer,
            copied: of.copied_bytes,
            matched: of.matched_bytes,
            literal: of.literal_bytes,
            refetches: pump.refetches(),
        }
    }

    /// The report of a flow with these numbers.
    pub fn report<'a>(&self, flow: FlowReport<'a>) -> FlowReport<'a> {
        let payload = self.from_host + self.to_host;
        let line = self.encoded + self.received;
        FlowReport {
            from_host_bytes: self.from_host,
            to_host_bytes: self.to_host,
            encoded_bytes: self.encoded,
            received_bytes: self.received,
            copied_bytes: self.copied,
            matched_bytes: self.matched,
            literal_bytes: self.literal,
            refetches: self.refetches,
            ratio: (payload * 1000)
                .checked_div(line)
                .map(|thousandths| thousandths as f64 / 1000.0),
            ..flow
        }
    }
}

struct Ended {
    peer: String,
    key: FlowKey,
    /// Why it was or was not optimised.
    reason: Reason,
    numbers: Numbers,
    end: End,
    lasted: std::time::Duration,
    at: Instant,
}

struct Outside {
    client: SocketAddrV4,
    server: SocketAddrV4,
    reason: Reason,
    at: Instant,
}

/// The program's memory of connections.
#[derive(Default)]
pub struct Ledger {
    ended: RefCell<VecDeque<Ended>>,
    outside: RefCell<VecDeque<Outside>>,
    /// Connections that hosts began here, by whether and why they were not optimised.
    pub reasons: RefCell<ReasonCounts>,
    /// SOCKS requests that were answered with an error before anything was opened.
    pub socks_refused: Cell<u64>,
}

impl Ledger {
    /// A flow with the peer called `peer` is over.
    pub fn end(&self, peer: &str, key: FlowKey, numbers: Numbers, end: End, begun: Instant) {
        self.add_ended(peer, key, Reason::Optimised, numbers, end, begun);
    }

    /// A connection for the peer called `peer` did not become a flow.
    pub fn not_begun(&self, peer: &str, key: FlowKey, end: End) {
        let reason = match end {
            End::Full => Reason::StreamLimit,
            _ => Reason::TunnelDown,
        };
        self.add_ended(peer, key, reason, Numbers::default(), end, Instant::now());
    }

    fn add_ended(
        &self,
        peer: &str,
        key: FlowKey,
        reason: Reason,
        numbers: Numbers,
        end: End,
        begun: Instant,
    ) {
        let mut ended = self.ended.borrow_mut();
        if ended.len() >= ENDED {
            ended.pop_back();
        }
        ended.push_front(Ended {
            peer: peer.to_owned(),
            key,
            reason,
            numbers,
            end,
            lasted: begun.elapsed(),
            at: Instant::now(),
        });
    }

    /// A connection is carried outside of any tunnel.
    pub fn direct(&self, client: SocketAddrV4, server: SocketAddrV4, reason: Reason) {
        self.reasons.borrow_mut().count(reason);
        let mut outside = self.outside.borrow_mut();
        if outside.len() >= DIRECT {
            outside.pop_back();
        }
        outside.push_front(Outside {
            client,
            server,
            reason,
            at: Instant::now(),
        });
    }

    /// The latest connections outside of any tunnel, for `/flows`.
    pub fn direct_reports(&self) -> Vec<BridgedReport<'static>> {
        let outside = self.outside.borrow();
        let report = |it: &Outside| BridgedReport {
            client: it.client,
            server: it.server,
            reason: it.reason.name(),
            why: it.reason.why(),
            age_seconds: it.at.elapsed().as_secs(),
            times: 1,
        };
        outside.iter().map(report).collect()
    }

    /// The flows that ended last, the latest first, for `/flows`.
    pub fn ended(&self) -> Vec<Value> {
        let ended = self.ended.borrow();
        let report = |it: &Ended| {
            let flow = FlowReport::new(&it.peer, &it.key, "ended", it.lasted);
            let flow = FlowReport {
                reason: it.reason.name(),
                ..it.numbers.report(flow)
            };
            let mut value = json!(flow);
            value["end"] = json!(it.end.name());
            value["ended_seconds_ago"] = json!(it.at.elapsed().as_secs());
            value
        };
        ended.iter().map(report).collect()
    }
}
