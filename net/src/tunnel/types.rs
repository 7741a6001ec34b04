//! What the tunnel shows to its user: configuration, identifiers, events, counters. No behaviour.

use core::fmt;
use core::net::Ipv4Addr;
use core::time::Duration;

/// Largest UDP payload in an Ethernet frame of 1500 bytes: less IPv4 (20) and UDP (8) headers.
pub const DEFAULT_MTU: u16 = 1472;

/// UDP payload that is expected to pass every path (RFC 9000, section 14: at least 1200 bytes).
pub const BASE_MTU: u16 = 1200;

/// What a tunnel has to know. Keys are X25519.
#[derive(Clone)]
pub struct TunnelConfig {
    /// Our static private key.
    pub private_key: [u8; 32],
    /// The only static public key that is let in.
    pub peer_public_key: [u8; 32],
    /// Largest UDP payload in bytes to try, from 1200 to 65,000; path MTU discovery finds what really passes.
    pub mtu: u16,
    /// Silence after which the tunnel is down.
    pub dead_after: Duration,
    /// With nothing heard for so long, a ping is sent. Less than a third of `dead_after`, so that one lost ping does not matter.
    pub keepalive: Duration,
    /// While down, the initiator tries again so often.
    pub handshake_retry: Duration,
    /// The initiator replaces the keys after so long (fresh handshake, streams go on).
    pub rekey_after: Duration,
    /// Bytes received and not yet read that are held at most, over all streams. 100 Mbit/s × 300 ms is 3.75 MB.
    pub receive_memory: u32,
    /// Bytes written and not yet acknowledged that are held at most, over all streams.
    pub send_memory: u32,
    /// Streams that the peer may have open at once; 256 it always may.
    pub max_streams: u32,
}

impl TunnelConfig {
    /// The defaults with these keys.
    pub fn new(private_key: [u8; 32], peer_public_key: [u8; 32]) -> Self {
        TunnelConfig {
            private_key,
            peer_public_key,
            mtu: DEFAULT_MTU,
            dead_after: Duration::from_secs(3),
            keepalive: Duration::from_millis(900),
            handshake_retry: Duration::from_secs(1),
            rekey_after: Duration::from_secs(15 * 60),
            receive_memory: 32 << 20,
            send_memory: 32 << 20,
            max_streams: 16_384,
        }
    }
}

impl fmt::Debug for TunnelConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelConfig")
            .field("peer", &KeyName(&self.peer_public_key))
            .field("mtu", &self.mtu)
            .finish_non_exhaustive()
    }
}

/// The first eight bytes of a public key in hexadecimal: enough to tell keys apart in a log line.
pub struct KeyName<'a>(pub &'a [u8; 32]);

impl fmt::Display for KeyName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.iter().take(8) {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…")
    }
}

impl fmt::Debug for KeyName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A UDP address over IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// IPv4 address.
    pub address: Ipv4Addr,
    /// UDP port.
    pub port: u16,
}

impl Endpoint {
    /// `address:port`.
    pub const fn new(address: Ipv4Addr, port: u16) -> Self {
        Endpoint { address, port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

/// A stream of the tunnel. The initiator's streams are even, the responder's odd. It is valid until [`Event::Down`]:
/// an identifier from before is refused, never mistaken for a stream of the next connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

const NUMBER_BITS: u32 = 48;

impl StreamId {
    pub(super) const MAX_NUMBER: u64 = (1 << NUMBER_BITS) - 1;

    pub(super) const fn new(generation: u16, number: u64) -> Self {
        StreamId(((generation as u64) << NUMBER_BITS) | (number & Self::MAX_NUMBER))
    }

    pub(super) const fn generation(self) -> u16 {
        (self.0 >> NUMBER_BITS) as u16
    }

    /// The number both sides know the stream by within this connection.
    pub const fn number(self) -> u64 {
        self.0 & Self::MAX_NUMBER
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({}.{})", self.generation(), self.number())
    }
}

/// Why the tunnel went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// Nothing was heard for [`TunnelConfig::dead_after`].
    Silence,
    /// The peer has started anew: it made a new connection while ours was up.
    PeerRestarted,
    /// The peer closed the tunnel in order.
    ClosedByPeer,
    /// We closed the tunnel in order.
    Closed,
    /// The peer, though authenticated, broke the protocol in the way named.
    Violation(Violation),
    /// The peer says that we broke the protocol.
    AccusedByPeer,
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DownReason::Silence => f.write_str("nothing heard from the peer"),
            DownReason::PeerRestarted => f.write_str("the peer has restarted"),
            DownReason::ClosedByPeer => f.write_str("closed by the peer"),
            DownReason::Closed => f.write_str("closed here"),
            DownReason::Violation(v) => write!(f, "the peer broke the protocol: {v}"),
            DownReason::AccusedByPeer => f.write_str("the peer says we broke the protocol"),
        }
    }
}

/// What an authenticated peer did that no correct peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A frame that cannot be parsed.
    Frame,
    /// More bytes than the window that was granted.
    FlowControl,
    /// More streams than were granted, or one of ours that we never opened.
    StreamLimit,
    /// Two different ends of one stream, or data after its end.
    FinalSize,
    /// An acknowledgement of a packet that was never sent.
    Acknowledgement,
    /// Data so fragmented that it is meant to use up memory.
    Fragmentation,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Violation::Frame => "malformed frame",
            Violation::FlowControl => "more data than its window",
            Violation::StreamLimit => "more streams than its limit",
            Violation::FinalSize => "a stream with two ends",
            Violation::Acknowledgement => "acknowledged what was never sent",
            Violation::Fragmentation => "data in too many fragments",
        })
    }
}

/// A handshake that failed for a key that is not the pinned one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrongKey {
    /// Someone at `from` addressed a box with another public key than ours: its `public_key` for us is wrong.
    NotOurs {
        /// Where it came from.
        from: Endpoint,
    },
    /// Someone at `from` proved that it has `key`, which is not the pinned one: our `public_key` for it is wrong.
    NotPinned {
        /// Where it came from.
        from: Endpoint,
        /// The public key it has.
        key: [u8; 32],
    },
    /// The peer says (unauthenticated: a hint only) that we addressed another public key than its own.
    PeerHasAnotherKey {
        /// Where it came from.
        from: Endpoint,
    },
    /// The peer says (unauthenticated: a hint only) that our public key is not the one it has pinned.
    RefusedByPeer {
        /// Where it came from.
        from: Endpoint,
    },
}

impl fmt::Display for WrongKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WrongKey::NotOurs { from } => {
                write!(
                    f,
                    "tunnel: {from} expects a box with another key; put this box's public key into its [[peer]]"
                )
            }
            WrongKey::NotPinned { from, key } => write!(
                f,
                "tunnel: {from} has public key {}, which is not the [[peer]] public_key configured here",
                KeyName(key)
            ),
            WrongKey::PeerHasAnotherKey { from } => {
                write!(
                    f,
                    "tunnel: {from} has another key than the [[peer]] public_key configured here"
                )
            }
            WrongKey::RefusedByPeer { from } => {
                write!(
                    f,
                    "tunnel: {from} does not accept this box's key; put this box's public key into its [[peer]]"
                )
            }
        }
    }
}

/// What has happened, in order. Stream events are edges: after `Readable`, read until nothing comes; after a short
/// write, `Writable` says when to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection to the peer is there; no streams yet.
    Up,
    /// The connection and all its streams are gone.
    Down(DownReason),
    /// The peer opened a stream.
    Opened(StreamId),
    /// There is something new to read, perhaps the end.
    Readable(StreamId),
    /// There is room again after a write that was cut short.
    Writable(StreamId),
    /// The peer reset the stream with this code; both directions are gone.
    Reset(StreamId, u32),
    /// Someone tried a handshake with a wrong key (at most one event a second; all are counted).
    WrongKey(WrongKey),
}

/// Whether the tunnel carries streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No connection.
    Down,
    /// Connected.
    Up,
}

/// What [`read`](super::Tunnel::read) gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Bytes written to the front of the buffer.
    pub len: usize,
    /// The peer finished the stream and everything has been read. Said once: a stream that is over, reset or gone gives nothing.
    pub finished: bool,
}

/// What waits for the line, and how fast that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Bytes written to all streams and not acknowledged.
    pub bytes: u64,
    /// The model of the line's rate, in bytes a second.
    pub rate: u64,
}

impl Backlog {
    /// How long the line needs for it; `None` if it carries nothing.
    pub fn drains_in(&self) -> Option<Duration> {
        let micros = self.bytes.saturating_mul(1_000_000);
        micros.checked_div(self.rate).map(Duration::from_micros)
    }
}

/// Counters since the tunnel was made, and the present state of the line. Bytes are UDP payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelStatistics {
    /// Times that a connection was made.
    pub connections: u64,
    /// Keys replaced without losing the connection.
    pub rekeys: u64,
    /// Handshake messages sent.
    pub handshakes_sent: u64,
    /// Handshake messages that were good.
    pub handshakes_received: u64,
    /// Datagrams handed out.
    pub packets_sent: u64,
    /// Datagrams handed in, good or bad.
    pub packets_received: u64,
    /// Bytes handed out.
    pub bytes_sent: u64,
    /// Bytes handed in, good or bad.
    pub bytes_received: u64,
    /// Stream data sent for the first time, in bytes.
    pub stream_bytes_sent: u64,
    /// Stream data sent again, in bytes.
    pub stream_bytes_retransmitted: u64,
    /// Stream data received, in order or not, without what came twice, in bytes.
    pub stream_bytes_received: u64,
    /// Packets declared lost.
    pub packets_lost: u64,
    /// Of those, packets that turned out to be only late.
    pub packets_lost_spuriously: u64,
    /// Probe timeouts: nothing was acknowledged in time.
    pub probe_timeouts: u64,
    /// Dropped: too short, too long, of unknown type or version.
    pub dropped_malformed: u64,
    /// Dropped: for a connection that is not known.
    pub dropped_unknown: u64,
    /// Dropped: authentication failed.
    pub dropped_forged: u64,
    /// Dropped: already received, or too old to tell.
    pub dropped_replayed: u64,
    /// Dropped: handshakes in excess of what is answered in a second, or replayed.
    pub dropped_handshakes: u64,
    /// Handshakes with a key that is not the pinned one, on either side; see [`WrongKey`].
    pub rejected_wrong_key: u64,
    /// The peer's address changed while up.
    pub address_changes: u64,
    /// Smoothed round trip, µs; 0 before the first.
    pub rtt_micros: u64,
    /// Shortest round trip of late, µs; 0 before the first.
    pub min_rtt_micros: u64,
    /// Model of the line's rate, bytes a second.
    pub bandwidth: u64,
    /// Rate of sending now, bytes a second.
    pub pacing_rate: u64,
    /// Bytes allowed in flight.
    pub congestion_window: u64,
    /// Bytes in flight.
    pub in_flight: u64,
    /// Largest UDP payload known to pass.
    pub mtu: u16,
    /// Streams open now.
    pub streams: u32,
}
