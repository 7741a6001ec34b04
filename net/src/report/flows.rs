//! Connections one by one, as JSON.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddrV4;
use core::time::Duration;

use serde::Serialize;

use crate::flow::Pump;
use crate::wire::FlowKey;

/// The most flows that are listed, and the most bridged connections.
pub const MOST_FLOWS: usize = 256;

/// One optimised connection.
#[derive(Clone, Debug, Serialize)]
pub struct FlowReport<'a> {
    /// The peer's name in the configuration.
    pub peer: &'a str,
    /// Who opened it.
    pub client: SocketAddrV4,
    /// To whom.
    pub server: SocketAddrV4,
    /// How far it has come: `opening`, `open` or `closing`.
    pub stage: &'a str,
    /// Why it is or is not optimised.
    pub reason: &'a str,
    /// How long it has been there.
    pub age_seconds: u64,
    /// Payload bytes from the host on this side.
    pub from_host_bytes: u64,
    /// Payload bytes to the host on this side.
    pub to_host_bytes: u64,
    /// Bytes that the payload from the host became on the line.
    pub encoded_bytes: u64,
    /// Bytes of the line that the payload to the host was made of.
    pub received_bytes: u64,
    /// Of the payload from the host: bytes that the peer had.
    pub copied_bytes: u64,
    /// Of the payload from the host: bytes found near by while compressing.
    pub matched_bytes: u64,
    /// Of the payload from the host: bytes sent as literals, before compression.
    pub literal_bytes: u64,
    /// Blocks to this side that had to be fetched again.
    pub refetches: u64,
    /// Payload bytes for each byte on the line, both ways; nothing while there is none.
    pub ratio: Option<f64>,
}

impl<'a> FlowReport<'a> {
    /// A flow with nothing in it yet.
    pub fn new(peer: &'a str, key: &FlowKey, stage: &'a str, age: Duration) -> FlowReport<'a> {
        FlowReport {
            peer,
            client: key.client,
            server: key.server,
            stage,
            reason: "optimised",
            age_seconds: age.as_secs(),
            from_host_bytes: 0,
            to_host_bytes: 0,
            encoded_bytes: 0,
            received_bytes: 0,
            copied_bytes: 0,
            matched_bytes: 0,
            literal_bytes: 0,
            refetches: 0,
            ratio: None,
        }
    }

    /// The flow with what has gone through its coders.
    pub fn with(self, pump: &Pump) -> FlowReport<'a> {
        let of = pump.statistics();
        let line = of.wire_bytes + pump.from_peer;
        let payload = pump.from_host + pump.to_host;
        let ratio = (payload * 1000).checked_div(line);
        FlowReport {
            from_host_bytes: pump.from_host,
            to_host_bytes: pump.to_host,
            encoded_bytes: of.wire_bytes,
            received_bytes: pump.from_peer,
            copied_bytes: of.copied_bytes,
            matched_bytes: of.matched_bytes,
            literal_bytes: of.literal_bytes,
            refetches: pump.refetches(),
            // Three decimals are enough for anyone who reads it.
            ratio: ratio.map(|thousandths| thousandths as f64 / 1000.0),
            ..self
        }
    }
}

/// A connection that was bridged of late.
#[derive(Clone, Debug, Serialize)]
pub struct BridgedReport<'a> {
    /// Who opened it (of one seen in mid-stream: who is on this side of the line).
    pub client: SocketAddrV4,
    /// To whom.
    pub server: SocketAddrV4,
    /// Why it was not optimised.
    pub reason: &'a str,
    /// The same in a sentence.
    pub why: &'a str,
    /// How long ago it was last decided so.
    pub age_seconds: u64,
    /// How often, for SYNs that were repeated.
    pub times: u64,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FlowsPage<'a> {
    /// Connections that are optimised.
    pub flows: Vec<FlowReport<'a>>,
    /// How many more there are than are listed.
    pub flows_left_out: usize,
    /// Connections that were bridged of late, the latest first.
    pub bridged: Vec<BridgedReport<'a>>,
}

impl FlowsPage<'_> {
    /// The page as JSON.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string(self).unwrap_or_default();
        text.push('\n');
        text
    }
}
