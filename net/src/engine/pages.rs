//! The pages on the management address: `/metrics` and `/flows`.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt::Display;

use super::Engine;
use super::flow::Stage;
use super::statistics::Statistics;
use crate::management::Page;
use crate::report::{
    self, Exposition, FLOWS_TYPE, FlowReport, FlowsPage, METRICS_TYPE, MOST_FLOWS,
};
use crate::switch::Port;
use crate::time::Instant;

/// Adds what only the engine's owner knows to the metrics of a page.
pub type MoreMetrics = Box<dyn FnMut(&Engine, &mut Exposition)>;

impl Engine {
    /// Answers who asks for a page: one in each poll, for each costs as much as some packets.
    pub(super) fn serve_pages(&mut self, now: Instant) {
        if self.web.is_idle() {
            return;
        }
        if let Some(page) = self.web.asked() {
            let (media_type, body) = match page {
                Page::Metrics => (METRICS_TYPE, self.metrics_page()),
                Page::Flows => (FLOWS_TYPE, self.flows_page(now)),
            };
            self.web.respond(now, media_type, &body);
        }
        self.web.poll(now, &mut self.outbox);
    }

    /// Has `/metrics` end with what `add` adds, each time that it is read.
    pub fn set_more_metrics(&mut self, add: MoreMetrics) {
        self.more_metrics = Some(add);
    }

    /// `/metrics`.
    fn metrics_page(&mut self) -> String {
        let statistics = self.statistics();
        let peer = self.peer.as_str();
        let mut out = Exposition::new();
        if let Some(link) = &self.link {
            let tunnel = link.tunnel.statistics();
            report::add_tunnel(&mut out, peer, statistics.tunnel.up, &tunnel);
            report::add_dedup(&mut out, peer, &statistics.sent, &statistics.received);
            report::add_dedup_memory(&mut out, peer, link.store_memory());
            report::add_store(&mut out, peer, &statistics.store);
            add_flows(&mut out, peer, &statistics);
        }
        for (reason, count) in statistics.syns.all() {
            out.counter(
                "outpost_connections_total",
                "Connections that the LAN and the guest began, by what became of them.",
                &[("reason", &reason.name())],
                count,
            );
        }
        out.counter(
            "outpost_syns_unanswered_total",
            "Bridged SYNs to the peer's network that nothing answered, so that the client was told.",
            &[],
            statistics.syns_unanswered,
        );
        add_frames(&mut out, &statistics);
        out.counter(
            "outpost_pages_total",
            "Times that /metrics and /flows were read.",
            &[],
            self.web.requests(),
        );
        if let Some(mut add) = self.more_metrics.take() {
            add(self, &mut out);
            self.more_metrics = Some(add);
        }
        out.into_text()
    }

    /// `/flows`.
    fn flows_page(&self, now: Instant) -> String {
        let flows = self.flows.iter().take(MOST_FLOWS).map(|flow| {
            let stage = match flow.stage {
                Stage::Resolving { .. } | Stage::Connecting | Stage::Asking | Stage::Accepting => {
                    "opening"
                }
                Stage::Open => "open",
                Stage::Closing | Stage::Resetting => "closing",
            };
            FlowReport::new(&self.peer, &flow.key, stage, now.since(flow.born)).with(&flow.pump)
        });
        FlowsPage {
            flows: flows.collect(),
            flows_left_out: self.flows.len().saturating_sub(MOST_FLOWS),
            bridged: self.bridged.report(now),
        }
        .to_json()
    }
}

fn add_flows(out: &mut Exposition, peer: &str, statistics: &Statistics) {
    let flows = &statistics.flows;
    let labels = [("peer", &peer as &dyn Display)];
    for (name, help, value) in [
        (
            "outpost_flows_open",
            "Optimised connections now.",
            flows.open,
        ),
        (
            "outpost_flows_silent",
            "Those of them that have carried nothing yet.",
            flows.small,
        ),
        (
            "outpost_flows_memory_bytes",
            "Memory that they hold.",
            flows.memory,
        ),
    ] {
        out.gauge(name, help, &labels, value as u64);
    }
    out.counter(
        "outpost_flows_total",
        "Optimised connections so far.",
        &labels,
        flows.total,
    );
    for (direction, value) in [
        ("from_hosts", flows.from_hosts),
        ("to_hosts", flows.to_hosts),
    ] {
        out.counter(
            "outpost_host_bytes_total",
            "Payload of optimised connections, from and to the hosts on this side.",
            &[("peer", &peer), ("direction", &direction)],
            value,
        );
    }
    for (end, value) in [
        ("finished", flows.finished),
        ("refused", flows.refused),
        ("unreachable", flows.unreachable),
        ("abandoned", flows.abandoned),
        ("gave_way", flows.gave_way),
        ("reset_by_host", flows.reset_by_host),
        ("reset_by_peer", flows.reset_by_peer),
        ("tunnel_down", flows.reset_by_tunnel),
    ] {
        out.counter(
            "outpost_flow_ends_total",
            "How optimised connections ended.",
            &[("peer", &peer), ("end", &end)],
            value,
        );
    }
    out.counter(
        "outpost_bad_streams_total",
        "Streams of the peer that did not begin as one must.",
        &labels,
        statistics.drops.bad_streams,
    );
}

fn add_frames(out: &mut Exposition, statistics: &Statistics) {
    for (name, port) in [
        ("lan", Port::Lan),
        ("wan", Port::Wan),
        ("guest", Port::Guest),
    ] {
        let of = statistics.port(port);
        for (direction, frames, bytes) in [
            ("received", of.rx_frames, of.rx_bytes),
            ("sent", of.tx_frames, of.tx_bytes),
        ] {
            let labels = [("port", &name as &dyn Display), ("direction", &direction)];
            out.counter(
                "outpost_port_frames_total",
                "Ethernet frames.",
                &labels,
                frames,
            );
            out.counter(
                "outpost_port_bytes_total",
                "Their bytes, headers included.",
                &labels,
                bytes,
            );
        }
    }
    out.counter(
        "outpost_bridged_frames_total",
        "Frames that were bridged as they were.",
        &[],
        statistics.bridged_frames,
    );
    for (reason, value) in statistics.drops.all() {
        out.counter(
            "outpost_dropped_frames_total",
            "Frames that were dropped.",
            &[("reason", &reason)],
            value,
        );
    }
    out.gauge(
        "outpost_stations",
        "MAC addresses that the switch knows.",
        &[],
        statistics.stations as u64,
    );
}
