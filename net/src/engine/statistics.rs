//! What the engine shows of itself: telemetry lines and the panel are made of it. Small, and only numbers.

use serde::Serialize;

use super::flow::End;
use super::message::Code;
use super::policy::ReasonCounts;
use crate::dedup::{ReceiverStatistics, SenderStatistics};
use crate::store::StoreStatistics;
use crate::switch::Port;
use crate::tunnel::{State, Tunnel};

/// Everything at one moment. Counters run from the engine's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// The tunnel to the peer.
    pub tunnel: TunnelView,
    /// Port towards the office.
    pub lan: PortCounters,
    /// Port towards the line.
    pub wan: PortCounters,
    /// The guest's port.
    pub guest: PortCounters,
    /// Intercepted connections.
    pub flows: FlowCounters,
    /// SYNs from the LAN and the guest by their fate.
    pub syns: ReasonCounts,
    /// Bridged SYNs to served destinations that nothing answered, so that the client was told.
    pub syns_unanswered: u64,
    /// Frames bridged as they were.
    pub bridged_frames: u64,
    /// Dedup of what goes to the peer.
    pub sent: SenderStatistics,
    /// Dedup of what comes from the peer.
    pub received: ReceiverStatistics,
    /// The dictionaries' device; all zeros if they are in memory.
    pub store: StoreStatistics,
    /// What was dropped.
    pub drops: Drops,
    /// Stations that the switch knows.
    pub stations: usize,
}

/// The tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TunnelView {
    /// Whether there is a peer at all.
    pub configured: bool,
    /// Whether it is up.
    pub up: bool,
    /// Times it came up.
    pub connections: u64,
    /// Smoothed round trip in µs; 0 while unknown.
    pub rtt_micros: u64,
    /// Packets sent and received.
    pub packets_sent: u64,
    /// Packets received.
    pub packets_received: u64,
    /// UDP payload bytes sent.
    pub bytes_sent: u64,
    /// UDP payload bytes received.
    pub bytes_received: u64,
    /// Packets that were lost on the way to the peer.
    pub packets_lost: u64,
    /// Lost packets per million sent, since the start.
    pub loss_ppm: u64,
    /// What the line is believed to carry, bytes a second.
    pub rate: u64,
    /// Streams open now.
    pub streams: u32,
    /// Handshakes refused for a wrong key, here or by the peer.
    pub wrong_key: u64,
    /// Datagrams dropped as malformed, forged, replayed or unknown.
    pub dropped: u64,
}

/// A port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PortCounters {
    /// Frames that arrived.
    pub rx_frames: u64,
    /// Their bytes, Ethernet headers included.
    pub rx_bytes: u64,
    /// Frames that left.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
}

/// Intercepted connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowCounters {
    /// Open now, those that are being opened or closed included.
    pub open: usize,
    /// Those of them that have carried nothing yet, and so have no buffers.
    pub small: usize,
    /// Bytes of memory that they hold.
    pub memory: usize,
    /// All so far.
    pub total: u64,
    /// Ended in order.
    pub finished: u64,
    /// Never opened: the server refused.
    pub refused: u64,
    /// Never opened: the server could not be reached.
    pub unreachable: u64,
    /// Never opened for another reason: the client gave up, the tunnel went down, the core had no room.
    pub abandoned: u64,
    /// Given up before they carried anything, because a new one found no room. Also counted as abandoned if they were
    /// not open yet.
    pub gave_way: u64,
    /// Reset by the host on this side.
    pub reset_by_host: u64,
    /// Reset from the other side, its host included.
    pub reset_by_peer: u64,
    /// Reset because the tunnel went down.
    pub reset_by_tunnel: u64,
    /// Payload bytes taken from hosts on this side.
    pub from_hosts: u64,
    /// Payload bytes given to hosts on this side.
    pub to_hosts: u64,
}

impl FlowCounters {
    /// Counts how a flow ended by itself.
    pub fn count(&mut self, end: End) {
        match end {
            End::Finished => self.finished += 1,
            End::HostReset => self.reset_by_host += 1,
            End::NeverOpened(code) => self.never_opened(code),
            // Counted when its cause came.
            End::Reset => {}
        }
    }

    /// Counts a connection that was never there.
    pub fn never_opened(&mut self, code: Code) {
        match code {
            Code::Refused => self.refused += 1,
            Code::Unreachable => self.unreachable += 1,
            _ => self.abandoned += 1,
        }
    }
}

/// What was dropped, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drops {
    /// Shorter than an Ethernet header, or longer than any Ethernet frame.
    pub bad_length: u64,
    /// From the box's own address: a loop or a forgery.
    pub own_source: u64,
    /// From the line, in the middle of a connection that the tunnel carries.
    pub shadowed: u64,
    /// For the box, but nothing that it speaks.
    pub unknown_to_host: u64,
    /// Segments of a connection that is over.
    pub late: u64,
    /// Segments of flows that found no room for their buffers. Their hosts send them again.
    pub no_buffers: u64,
    /// Frames that found too many others waiting.
    pub no_room: u64,
    /// Tunnel datagrams without a way to the peer (no route, no ARP answer).
    pub no_route: u64,
    /// Streams that did not begin as one must.
    pub bad_streams: u64,
}

impl Drops {
    /// Each counter with its name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("bad_length", self.bad_length),
            ("own_source", self.own_source),
            ("shadowed", self.shadowed),
            ("unknown_to_host", self.unknown_to_host),
            ("late", self.late),
            ("no_buffers", self.no_buffers),
            ("no_room", self.no_room),
            ("no_route", self.no_route),
        ]
        .into_iter()
    }
}

impl Statistics {
    /// A port's counters, to count.
    pub(super) fn port_mut(&mut self, port: Port) -> &mut PortCounters {
        match port {
            Port::Lan => &mut self.lan,
            Port::Wan => &mut self.wan,
            Port::Guest => &mut self.guest,
        }
    }

    /// A port's counters.
    pub fn port(&self, port: Port) -> &PortCounters {
        match port {
            Port::Lan => &self.lan,
            Port::Wan => &self.wan,
            Port::Guest => &self.guest,
        }
    }
}

impl TunnelView {
    /// The tunnel as it is now.
    pub fn new(tunnel: &Tunnel) -> TunnelView {
        let of = tunnel.statistics();
        TunnelView {
            configured: true,
            up: tunnel.state() == State::Up,
            connections: of.connections,
            rtt_micros: of.rtt_micros,
            packets_sent: of.packets_sent,
            packets_received: of.packets_received,
            bytes_sent: of.bytes_sent,
            bytes_received: of.bytes_received,
            packets_lost: of.packets_lost,
            loss_ppm: (of.packets_lost.saturating_mul(1_000_000))
                .checked_div(of.packets_sent)
                .unwrap_or(0),
            rate: of.bandwidth,
            streams: of.streams,
            wrong_key: of.rejected_wrong_key,
            dropped: of.dropped_malformed
                + of.dropped_unknown
                + of.dropped_forged
                + of.dropped_replayed
                + of.dropped_handshakes,
        }
    }
}
