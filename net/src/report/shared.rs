//! Metrics that mean the same on the box and in `outpost-peer`.

use super::Exposition;
use crate::dedup::{ReceiverStatistics, SenderStatistics};
use crate::tunnel::TunnelStatistics;

/// Adds the metrics of the tunnel to `peer`.
pub fn add_tunnel(out: &mut Exposition, peer: &str, is_up: bool, of: &TunnelStatistics) {
    let labels = [("peer", peer)];
    let mut gauge = |name, help, value| out.gauge(name, help, &labels, value);
    gauge(
        "outpost_tunnel_up",
        "Whether the tunnel is up.",
        u64::from(is_up),
    );
    gauge(
        "outpost_tunnel_rtt_microseconds",
        "Smoothed round trip time; 0 before the first.",
        of.rtt_micros,
    );
    gauge(
        "outpost_tunnel_rate_bytes_per_second",
        "What the line is believed to carry.",
        of.bandwidth,
    );
    gauge(
        "outpost_tunnel_streams",
        "Streams open now.",
        u64::from(of.streams),
    );
    let mut counter = |name, help, value| out.counter(name, help, &labels, value);
    counter(
        "outpost_tunnel_connections_total",
        "Times the tunnel came up.",
        of.connections,
    );
    counter(
        "outpost_tunnel_sent_bytes_total",
        "UDP payload sent.",
        of.bytes_sent,
    );
    counter(
        "outpost_tunnel_received_bytes_total",
        "UDP payload received.",
        of.bytes_received,
    );
    counter(
        "outpost_tunnel_sent_packets_total",
        "Datagrams sent.",
        of.packets_sent,
    );
    counter(
        "outpost_tunnel_received_packets_total",
        "Datagrams received.",
        of.packets_received,
    );
    counter(
        "outpost_tunnel_lost_packets_total",
        "Datagrams lost on the way to the peer.",
        of.packets_lost,
    );
    counter(
        "outpost_tunnel_wrong_key_total",
        "Handshakes refused for a wrong key, here or by the peer.",
        of.rejected_wrong_key,
    );
    let dropped = of.dropped_malformed
        + of.dropped_unknown
        + of.dropped_forged
        + of.dropped_replayed
        + of.dropped_handshakes;
    counter(
        "outpost_tunnel_dropped_packets_total",
        "Datagrams dropped as malformed, forged, replayed or unknown.",
        dropped,
    );
}

/// Adds the metrics of both dictionaries shared with `peer`.
pub fn add_dedup(
    out: &mut Exposition,
    peer: &str,
    sent: &SenderStatistics,
    received: &ReceiverStatistics,
) {
    let mut both = |name, help, values: [u64; 2]| {
        for (direction, value) in ["sent", "received"].into_iter().zip(values) {
            let labels = [("peer", peer), ("direction", direction)];
            out.counter(name, help, &labels, value);
        }
    };
    both(
        "outpost_dedup_raw_bytes_total",
        "Payload bytes before encoding and after decoding.",
        [sent.raw_bytes, received.raw_bytes],
    );
    both(
        "outpost_dedup_wire_bytes_total",
        "Bytes that the payload became.",
        [sent.wire_bytes, received.wire_bytes],
    );
    both(
        "outpost_dedup_copied_bytes_total",
        "Payload bytes that the other end already had.",
        [sent.copied_bytes, received.copied_bytes],
    );
    both(
        "outpost_dedup_control_bytes_total",
        "Bytes of control messages given out by each side's dictionary.",
        [sent.control_bytes, received.control_bytes],
    );
    both(
        "outpost_dedup_refetches_total",
        "Blocks asked for again: by the peer (sent), by us (received).",
        [sent.refetches, received.refetches],
    );
    both(
        "outpost_dedup_stored_bytes_total",
        "Bytes appended to the dictionaries.",
        [sent.stored_bytes, received.stored_bytes],
    );
    let labels = [("peer", peer)];
    let mut counter = |name, help, value| out.counter(name, help, &labels, value);
    counter(
        "outpost_dedup_matched_bytes_total",
        "Sent payload bytes found near by while compressing.",
        sent.matched_bytes,
    );
    counter(
        "outpost_dedup_literal_bytes_total",
        "Sent payload bytes that went as literals, before compression.",
        sent.literal_bytes,
    );
    counter(
        "outpost_dedup_refetches_dropped_total",
        "Requests of the peer for blocks of flows that are gone, not answered because too many waited.",
        sent.refetches_dropped,
    );
    counter(
        "outpost_dedup_missing_total",
        "Blocks asked for again because bytes they refer to are not here.",
        received.missing,
    );
    counter(
        "outpost_dedup_mismatches_total",
        "Blocks asked for again because what came out was not what went in.",
        received.mismatches,
    );
    counter(
        "outpost_dedup_rejected_total",
        "Blocks refused for good.",
        received.rejected,
    );
}
