//! `/metrics` and `/flows` on the box's own address: for the LAN, and for nobody else.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use outpost_net::Port;
use outpost_net::report::Exposition;

use crate::floods::syn;
use crate::host::{Close, Outcome, Script};
use crate::line::LineConfig;
use crate::world::{CLIENT, Pair, Site, World};

const BOX: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 77, 1, 1);
const CORE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 77, 2, 1);

fn ask(world: &mut World, from: u16, request: &[u8]) -> usize {
    let script = Script::send(request.to_vec()).close(Close::AfterPeer);
    world.client().connect(BOX, 9090, from, script)
}

fn get(world: &mut World, from: u16, request: &str) -> String {
    let asked = ask(world, from, request.as_bytes());
    world.run_for(Duration::from_secs(2));
    let connection = &world.hosts[0].connections[asked];
    assert_eq!(connection.outcome, Some(Outcome::Finished), "{request}");
    String::from_utf8(connection.received.clone()).unwrap()
}

fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn the_lan_reads_numbers_and_reasons() {
    let mut world = World::new(20, LineConfig::CLEAN);
    world.wait_up();
    let file = crate::line::Random::new(20).bytes(50_000);
    let pair: Pair = world.connect(
        80,
        Script::send(b"GET".to_vec()).close(Close::Never),
        Script::send(file).close(Close::Never),
    );
    let elsewhere = (std::net::Ipv4Addr::new(192, 0, 2, 1), 80);
    let bridged = syn((CLIENT, 999), elsewhere, 1);
    world.send_to_box(Site::Branch, Port::Lan, bridged);
    world.run_for(Duration::from_secs(5));
    assert_eq!(world.client_connection(pair).received.len(), 50_000);

    let flows = get(&mut world, 5001, "GET /flows HTTP/1.1\r\nHost: box\r\n\r\n");
    assert!(flows.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"));
    let flows: serde_json::Value = serde_json::from_str(body(&flows)).unwrap();
    let flow = &flows["flows"][0];
    assert_eq!(flow["peer"], "core");
    assert_eq!(
        (&flow["stage"], &flow["reason"]),
        (&"open".into(), &"optimised".into())
    );
    assert_eq!(flow["from_host_bytes"], 3);
    assert_eq!(flow["to_host_bytes"], 50_000);
    assert!(flow["received_bytes"].as_u64().unwrap() >= 50_000);
    assert!(flow["age_seconds"].as_u64().unwrap() >= 4);
    assert!(flow["ratio"].as_f64().unwrap() > 0.9);
    assert_eq!(flows["bridged"][0]["reason"], "no_peer");
    assert_eq!(flows["bridged"][0]["server"], "192.0.2.1:80");

    let metrics = get(&mut world, 5002, "GET /metrics HTTP/1.1\r\n\r\n");
    for line in [
        "outpost_tunnel_up{peer=\"core\"} 1",
        "outpost_flows_open{peer=\"core\"} 1",
        "outpost_connections_total{reason=\"optimised\"} 1",
        "outpost_connections_total{reason=\"no_peer\"} 1",
        "outpost_dedup_coded_blocks_total{peer=\"core\",effort=\"full\"} 0",
        "outpost_host_bytes_total{peer=\"core\",direction=\"to_hosts\"} 50000",
    ] {
        assert!(
            body(&metrics).lines().any(|it| it == line),
            "{line}\n{metrics}"
        );
    }
    let head = get(&mut world, 5003, "HEAD /flows HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK") && body(&head).is_empty());
    assert!(get(&mut world, 5004, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    let post = get(&mut world, 5005, "POST /flows HTTP/1.1\r\n\r\n");
    assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("Allow: GET, HEAD\r\n"));
    assert!(get(&mut world, 5006, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
}

#[test]
fn clients_that_say_nothing_are_given_up_and_keep_nobody_out() {
    let mut world = World::new(21, LineConfig::CLEAN);
    let silent: Vec<usize> = (0..20)
        .map(|number| ask(&mut world, 6000 + number, b"GET /met"))
        .collect();
    world.run_for(Duration::from_secs(2));
    let metrics = get(&mut world, 7000, "GET /metrics HTTP/1.1\r\n\r\n");
    assert!(metrics.starts_with("HTTP/1.1 200 OK"));
    world.run_for(Duration::from_secs(12));
    for number in silent {
        let outcome = world.hosts[0].connections[number].outcome;
        assert!(
            matches!(outcome, Some(Outcome::Reset | Outcome::Refused)),
            "{number}: {outcome:?}"
        );
    }
}

#[test]
fn nothing_is_answered_on_the_line_or_through_the_tunnel() {
    let mut world = World::new(22, LineConfig::CLEAN);
    world.wait_up();
    // A client of the branch asks the core's box: through the tunnel, or bridged to the core's WAN port.
    let asked = {
        let script = Script::send(b"GET /metrics HTTP/1.1\r\n\r\n".to_vec());
        world.client().connect(CORE, 9090, 8000, script)
    };
    world.run_for(Duration::from_secs(10));
    let connection = &world.hosts[0].connections[asked];
    assert!(!connection.is_open() && connection.received.is_empty());
    // From the line itself, straight to the box's own address.
    let mut frame = syn((CLIENT, 8001), (BOX, 9090), 1);
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    world.send_to_box(Site::Branch, Port::Wan, frame.clone());
    world.send_to_box(Site::Branch, Port::Guest, frame);
    let before = world.statistics(Site::Branch).drops.unknown_to_host;
    world.capture = Some(vec![]);
    world.run_for(Duration::from_millis(500));
    assert_eq!(
        world.statistics(Site::Branch).drops.unknown_to_host,
        before + 2
    );
    let answers = world.capture.take().unwrap();
    assert!(
        answers.iter().all(|frame| frame.get(23) != Some(&6)),
        "TCP on the line"
    );
}

/// A box with many vCPUs has much to say of its own, and it comes whole, behind the engine's, as it is when it is asked for.
#[test]
fn what_the_box_adds_comes_after_the_engines_numbers() {
    let mut world = World::new(23, LineConfig::CLEAN);
    world.wait_up();
    let many = |lines: usize, out: &mut Exposition| {
        for vcpu in 0..lines {
            out.counter(
                "outpost_guest_vcpu_exits_total",
                "Times that a vCPU left for the hypervisor, by reason.",
                &[("vcpu", &vcpu), ("reason", &"host-interrupt")],
                123_456,
            );
        }
    };
    let lines = Rc::new(Cell::new(0));
    let wanted = lines.clone();
    let engine = world.boxes[Site::Branch as usize].as_mut().unwrap();
    engine.set_more_metrics(Box::new(move |_, out| many(wanted.get(), out)));
    for (port, count) in [(5100, 0), (5101, 1), (5102, 500), (5103, 1_000)] {
        lines.set(count);
        let metrics = get(&mut world, port, "GET /metrics HTTP/1.1\r\n\r\n");
        let page = body(&metrics);
        let mut added = Exposition::new();
        many(count, &mut added);
        let own = page.strip_suffix(added.into_text().as_str()).unwrap();
        assert!(own.contains("outpost_tunnel_up{peer=\"core\"} 1\n"));
        assert!(own.ends_with('\n') && !own.contains("outpost_guest"));
    }
}
