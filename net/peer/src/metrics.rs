//! `/metrics` (Prometheus text) and `/flows` (JSON).

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::rc::Rc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use crate::hub::Hub;

/// The peers of this moment.
pub type Hubs = Rc<RefCell<Vec<Rc<Hub>>>>;

/// Serves for as long as it is polled.
pub async fn serve(listener: TcpListener, hubs: Hubs) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let hubs = hubs.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &hubs);
                async move { Ok::<_, Infallible>(response) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, hubs: &Hubs) -> Response<Full<Bytes>> {
    let hubs = hubs.borrow();
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, "text/plain; version=0.0.4", metrics(&hubs)),
        (&Method::GET, "/flows") => (StatusCode::OK, "application/json", flows(&hubs)),
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            String::from("GET /metrics or /flows\n"),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    response
}

fn metrics(hubs: &[Rc<Hub>]) -> String {
    let mut rows: Vec<(&str, &str, String, u64)> = Vec::new();
    for hub in hubs {
        let (tunnel, sent, received) = hub.session.borrow().statistics();
        let peer = format!("peer=\"{}\"", hub.name);
        let counters = &hub.counters;
        let mut row = |name, kind, more: &str, value| {
            rows.push((name, kind, format!("{peer}{more}"), value));
        };
        row(
            "outpost_tunnel_up",
            "gauge",
            "",
            u64::from(hub.session.borrow().is_up()),
        );
        row(
            "outpost_tunnel_rtt_microseconds",
            "gauge",
            "",
            tunnel.rtt_micros,
        );
        row(
            "outpost_tunnel_bandwidth_bytes_per_second",
            "gauge",
            "",
            tunnel.bandwidth,
        );
        row(
            "outpost_tunnel_congestion_window_bytes",
            "gauge",
            "",
            tunnel.congestion_window,
        );
        row(
            "outpost_tunnel_sent_bytes_total",
            "counter",
            "",
            tunnel.bytes_sent,
        );
        row(
            "outpost_tunnel_received_bytes_total",
            "counter",
            "",
            tunnel.bytes_received,
        );
        row(
            "outpost_tunnel_sent_packets_total",
            "counter",
            "",
            tunnel.packets_sent,
        );
        row(
            "outpost_tunnel_received_packets_total",
            "counter",
            "",
            tunnel.packets_received,
        );
        row(
            "outpost_tunnel_lost_packets_total",
            "counter",
            "",
            tunnel.packets_lost,
        );
        row(
            "outpost_tunnel_wrong_key_total",
            "counter",
            "",
            tunnel.rejected_wrong_key,
        );
        row(
            "outpost_dedup_raw_bytes_total",
            "counter",
            ",direction=\"sent\"",
            sent.raw_bytes,
        );
        row(
            "outpost_dedup_coded_blocks_total",
            "counter",
            ",effort=\"full\"",
            sent.coded_blocks - sent.fast_blocks.min(sent.coded_blocks),
        );
        row(
            "outpost_dedup_coded_blocks_total",
            "counter",
            ",effort=\"fast\"",
            sent.fast_blocks,
        );
        row(
            "outpost_dedup_wire_bytes_total",
            "counter",
            ",direction=\"sent\"",
            sent.wire_bytes,
        );
        row(
            "outpost_dedup_wire_bytes_total",
            "counter",
            ",direction=\"received\"",
            received.wire_bytes,
        );
        row(
            "outpost_bad_streams_total",
            "counter",
            "",
            hub.session.borrow().bad_streams(),
        );
        row(
            "outpost_flows_open",
            "gauge",
            "",
            hub.slots.borrow().len() as u64,
        );
        for (name, kind, value) in crate::store::rows(&hub.session.borrow().store_statistics()) {
            row(name, kind, "", value);
        }
        row("outpost_flows_total", "counter", "", counters.total.get());
        row(
            "outpost_host_bytes_total",
            "counter",
            ",direction=\"from_hosts\"",
            counters.from_hosts.get(),
        );
        row(
            "outpost_host_bytes_total",
            "counter",
            ",direction=\"to_hosts\"",
            counters.to_hosts.get(),
        );
        for (end, counter) in [
            ("finished", &counters.finished),
            ("refused", &counters.refused),
            ("unreachable", &counters.unreachable),
            ("reset_by_host", &counters.reset_by_host),
            ("reset_by_peer", &counters.reset_by_peer),
            ("tunnel_down", &counters.tunnel_down),
        ] {
            row(
                "outpost_flow_ends_total",
                "counter",
                &format!(",end=\"{end}\""),
                counter.get(),
            );
        }
    }
    // The samples of one metric stand together.
    rows.sort_by_key(|row| row.0);
    let mut out = String::new();
    let mut last = "";
    for (name, kind, labels, value) in rows {
        if name != last {
            let _ = writeln!(out, "# TYPE {name} {kind}");
            last = name;
        }
        let _ = writeln!(out, "{name}{{{labels}}} {value}");
    }
    out
}

fn flows(hubs: &[Rc<Hub>]) -> String {
    let mut list = Vec::new();
    for hub in hubs {
        for slot in hub.slots.borrow().values() {
            let [from_host, to_host, wire, copied, literal] = slot.bytes.get();
            list.push(json!({
                "peer": hub.name,
                "client": slot.key.client.to_string(),
                "server": slot.key.server.to_string(),
                "stage": slot.stage.get(),
                "reason": "optimised",
                "from_host_bytes": from_host,
                "to_host_bytes": to_host,
                "encoded_bytes": wire,
                "copied_bytes": copied,
                "literal_bytes": literal,
            }));
        }
    }
    json!({ "flows": list }).to_string()
}
