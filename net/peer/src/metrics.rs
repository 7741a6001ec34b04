//! `/metrics` (Prometheus text) and `/flows` (JSON), in the words that the box uses.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::Display;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use outpost_net::report::{
    self, Exposition, FLOWS_TYPE, FlowReport, FlowsPage, METRICS_TYPE, MOST_FLOWS,
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::hub::Hub;
use crate::ledger::Ledger;
use crate::wire::Wire;

/// What is shown.
pub struct Shown {
    /// The peers of this moment.
    pub hubs: RefCell<Vec<Rc<Hub>>>,
    /// What became of connections.
    pub ledger: Rc<Ledger>,
    /// A core's socket.
    pub wire: RefCell<Option<Rc<Wire>>>,
}

/// Serves for as long as it is polled.
pub async fn serve(listener: TcpListener, shown: Rc<Shown>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let shown = shown.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &shown);
                async move { Ok::<_, Infallible>(response) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, shown: &Shown) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, METRICS_TYPE, metrics(shown)),
        (&Method::GET, "/flows") => (StatusCode::OK, FLOWS_TYPE, flows(shown)),
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

fn metrics(shown: &Shown) -> String {
    let mut out = Exposition::new();
    for hub in shown.hubs.borrow().iter() {
        let session = hub.session.borrow();
        let (tunnel, sent, received) = session.statistics();
        report::add_tunnel(&mut out, &hub.name, session.is_up(), &tunnel);
        report::add_dedup(&mut out, &hub.name, &sent, &received);
        report::add_dedup_memory(&mut out, &hub.name, session.store_memory());
        report::add_store(&mut out, &hub.name, &session.store_statistics());
        add_flows(&mut out, hub, session.bad_streams());
    }
    for (reason, count) in shown.ledger.reasons.borrow().all() {
        out.counter(
            "outpost_connections_total",
            "Connections that hosts began at [[proxy]], [[socks]] and [transparent], by what became of them.",
            &[("reason", &reason.name())],
            count,
        );
    }
    out.counter(
        "outpost_socks_refused_total",
        "SOCKS clients that were refused before anything was opened.",
        &[],
        shown.ledger.socks_refused.get(),
    );
    let core = shown.wire.borrow();
    if let Some(strangers) = core.as_ref().and_then(|wire| wire.statistics()) {
        for (reason, count) in [
            ("malformed", strangers.malformed),
            ("forged", strangers.forged),
            ("excess", strangers.excess),
            ("wrong_key", strangers.wrong_key),
        ] {
            out.counter(
                "outpost_strangers_total",
                "Datagrams at the core's socket that are from none of its peers.",
                &[("reason", &reason)],
                count,
            );
        }
    }
    out.into_text()
}

fn add_flows(out: &mut Exposition, hub: &Hub, bad_streams: u64) {
    let labels = [("peer", &hub.name as &dyn Display)];
    let counters = &hub.counters;
    out.gauge(
        "outpost_flows_open",
        "Optimised connections now.",
        &labels,
        hub.slots.borrow().len() as u64,
    );
    out.counter(
        "outpost_flows_total",
        "Optimised connections so far.",
        &labels,
        counters.total.get(),
    );
    for (direction, value) in [
        ("from_hosts", counters.from_hosts.get()),
        ("to_hosts", counters.to_hosts.get()),
    ] {
        out.counter(
            "outpost_host_bytes_total",
            "Payload of optimised connections, from and to the hosts on this side.",
            &[("peer", &hub.name), ("direction", &direction)],
            value,
        );
    }
    for (end, count) in counters.ends.all() {
        out.counter(
            "outpost_flow_ends_total",
            "How optimised connections ended.",
            &[("peer", &hub.name), ("end", &end.name())],
            count,
        );
    }
    out.counter(
        "outpost_bad_streams_total",
        "Streams of the peer that did not begin as one must.",
        &labels,
        bad_streams,
    );
}

fn flows(shown: &Shown) -> String {
    let hubs = shown.hubs.borrow();
    let slots: Vec<_> = hubs.iter().map(|hub| (hub, hub.slots.borrow())).collect();
    let all = slots.iter().flat_map(|(hub, slots)| {
        let report = move |slot: &'_ Rc<crate::hub::Slot>| {
            let flow =
                FlowReport::new(&hub.name, &slot.key, slot.stage.get(), slot.begun.elapsed());
            slot.numbers.get().report(flow)
        };
        slots.values().map(report)
    });
    let count: usize = slots.iter().map(|(_, slots)| slots.len()).sum();
    let page = FlowsPage {
        flows: all.take(MOST_FLOWS).collect(),
        flows_left_out: count.saturating_sub(MOST_FLOWS),
        bridged: shown.ledger.direct_reports(),
    };
    let mut value = json!(page);
    value["ended"] = json!(shown.ledger.ended());
    format!("{value}\n")
}
