//! Metrics that mean the same on the box and in `outpost-peer`.

use core::fmt::Display;

use super::Exposition;
use crate::dedup::{ReceiverStatistics, SenderStatistics, StoreMemory};
use crate::store::StoreStatistics;
use crate::tunnel::TunnelStatistics;

/// Adds the metrics of the tunnel to `peer`.
pub fn add_tunnel(out: &mut Exposition, peer: &str, is_up: bool, of: &TunnelStatistics) {
    let labels = [("peer", &peer as &dyn Display)];
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
            let labels = [("peer", &peer as &dyn Display), ("direction", &direction)];
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
    let labels = [("peer", &peer as &dyn Display)];
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
    for (effort, blocks) in [
        ("full", sent.coded_blocks.saturating_sub(sent.fast_blocks)),
        ("fast", sent.fast_blocks),
    ] {
        out.counter(
            "outpost_dedup_coded_blocks_total",
            "Blocks compressed, by the effort spent on them.",
            &[("peer", &peer), ("effort", &effort)],
            blocks,
        );
    }
}

/// Adds the memory that the dictionaries shared with `peer` take: the anchor index over what is sent, and the parts of both
/// that may be in memory, in bytes.
pub fn add_dedup_memory(out: &mut Exposition, peer: &str, memory: StoreMemory) {
    let labels = [("peer", &peer as &dyn Display)];
    out.gauge(
        "outpost_dedup_index_bytes",
        "Memory of the index over the dictionary of what is sent.",
        &labels,
        memory.index as u64,
    );
    out.gauge(
        "outpost_dedup_memory_bytes",
        "Memory for the parts of both dictionaries in use; all of them, if they are in memory only.",
        &labels,
        memory.parts as u64,
    );
}

/// Adds the metrics of the dictionaries' place on a device.
pub fn add_store(out: &mut Exposition, peer: &str, store: &StoreStatistics) {
    let labels = [("peer", &peer as &dyn Display)];
    for (name, help, value) in [
        (
            "outpost_store_capacity_bytes",
            "What the dictionaries of both directions hold at most; 0 if they are in memory.",
            store.store_capacity_bytes,
        ),
        (
            "outpost_store_warm_bytes",
            "What of them was there at the start.",
            store.store_warm_bytes,
        ),
        (
            "outpost_store_memory_only",
            "Whether they go on in memory only, for too many writes have failed.",
            store.store_memory_only,
        ),
        (
            "outpost_store_started_anew",
            "Whether there was no store of this pair of peers at the start.",
            store.store_started_anew,
        ),
    ] {
        out.gauge(name, help, &labels, value);
    }
    for (name, help, value) in [
        (
            "outpost_store_read_bytes_total",
            "Bytes read from disk.",
            store.store_read_bytes,
        ),
        (
            "outpost_store_written_bytes_total",
            "Bytes written to disk.",
            store.store_written_bytes,
        ),
        (
            "outpost_store_segment_writes_total",
            "Times that segments, or what was new in them, were written.",
            store.store_segment_writes,
        ),
        (
            "outpost_store_bad_pages_total",
            "Pages without their checksum, treated as not there.",
            store.store_bad_pages,
        ),
        (
            "outpost_store_bad_segments_total",
            "Segments with a damaged description, treated as not there.",
            store.store_bad_segments,
        ),
        (
            "outpost_store_read_errors_total",
            "Reads that the disk refused.",
            store.store_read_errors,
        ),
        (
            "outpost_store_write_errors_total",
            "Writes and flushes that the disk refused.",
            store.store_write_errors,
        ),
        (
            "outpost_store_dropped_bytes_total",
            "Bytes dropped from memory because they could not be written.",
            store.store_dropped_bytes,
        ),
    ] {
        out.counter(name, help, &labels, value);
    }
}
