//! The box's pages, `/metrics` and `/flows`: read from the LAN while a flow is open, and asked for from the line.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::boxes::{BOX_ADDRESS, TestBox};
use super::pair::{Configs, Pair, SERVER};
use super::station::Station;
use super::{Trial, frames, store};

/// Where the branch's box has its pages.
const PAGES: SocketAddrV4 = SocketAddrV4::new(BOX_ADDRESS, 9090);
/// The MAC address of the branch's own station: its LAN card's.
const BOX_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
/// What the open flow has carried.
const CARRIED: usize = 100_000;
/// How often the pages are asked for from the line.
const ASKED: u64 = 5;

/// Fetches a page from the branch's LAN; gives its body.
fn get(pair: &mut Pair, stations: &mut [Station; 2], path: &str) -> Result<String> {
    let [client, _] = stations;
    let mut asking = client.connect(PAGES)?;
    asking.send(format!("GET {path} HTTP/1.1\r\nHost: box\r\n\r\n").as_bytes());
    pair.until(stations, path, |[client, _]| asking.turn(client))?;
    asking.close();
    pair.until(stations, path, |[client, _]| asking.turn(client))?;
    body(path, asking.received)
}

/// Fetches a page from the LAN of a box that has no peer; gives its body.
///
/// # Errors
/// As [`TestBox::wait_for`], or when the box has no such page.
pub fn get_from(machine: &mut TestBox, path: &str) -> Result<String> {
    let client = Ipv4Addr::new(10, 77, 1, 10);
    let mut station = Station::new(&machine.lan, frames::LAN_STATION, client, BOX_ADDRESS);
    let mut asking = station.connect(PAGES)?;
    asking.send(format!("GET {path} HTTP/1.1\r\nHost: box\r\n\r\n").as_bytes());
    while !asking.turn(&mut station)? {
        machine.alive(path)?;
        if !station.poll() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    body(path, asking.received)
}

/// The body of a response.
fn body(path: &str, response: Vec<u8>) -> Result<String> {
    let text = String::from_utf8(response).context("a page that is no text")?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("{path} has no head: {text:?}"))?;
    ensure!(head.starts_with("HTTP/1.1 200 OK"), "{path}: {head}");
    Ok(body.to_owned())
}

/// Both pages tell of an open flow, to the LAN; the line gets no answer at all.
pub fn pages(trial: &mut Trial<'_>) -> Result<()> {
    let mut pair = Configs::matching()?.start(trial)?;
    pair.is_up()?;
    let mut stations = pair.stations();
    let [client, server] = &mut stations;
    let mut serving = server.listen(SERVER.port())?;
    let mut asking = client.connect(SERVER)?;
    serving.send(&store::noise(CARRIED));
    pair.until(&mut stations, "the flow's bytes", |[client, server]| {
        serving.turn(server)?;
        asking.turn(client)?;
        Ok(asking.received.len() == CARRIED)
    })?;

    let flows = get(&mut pair, &mut stations, "/flows")?;
    let flows: serde_json::Value =
        serde_json::from_str(&flows).with_context(|| format!("/flows is not JSON: {flows}"))?;
    let flow = &flows["flows"][0];
    ensure!(
        flow["peer"] == "head-office"
            && flow["stage"] == "open"
            && flow["reason"] == "optimised"
            && flow["server"] == SERVER.to_string()
            && flow["to_host_bytes"] == CARRIED,
        "/flows: {flows}"
    );

    let metrics = get(&mut pair, &mut stations, "/metrics")?;
    for wanted in [
        "outpost_tunnel_up{peer=\"head-office\"} 1".to_owned(),
        "outpost_flows_open{peer=\"head-office\"} 1".to_owned(),
        format!(
            "outpost_host_bytes_total{{peer=\"head-office\",direction=\"to_hosts\"}} {CARRIED}"
        ),
        "outpost_store_memory_only{peer=\"head-office\"} 0".to_owned(),
        "outpost_disk_failed_requests_total 0".to_owned(),
    ] {
        ensure!(
            metrics.lines().any(|line| line == wanted),
            "{wanted:?} is not in /metrics:\n{metrics}"
        );
    }
    let index = "outpost_dedup_index_bytes{peer=\"head-office\"} ";
    ensure!(
        metrics
            .lines()
            .filter_map(|line| line.strip_prefix(index))
            .any(|bytes| bytes != "0"),
        "the index takes no memory:\n{metrics}"
    );

    is_silent_to_the_line(&mut pair)
}

/// Asks for the pages from the line: the box counts it, and says nothing.
fn is_silent_to_the_line(pair: &mut Pair) -> Result<()> {
    let unknown =
        |said: &super::watch::Said| said.status()?["net"]["drops"]["unknown_to_host"].as_u64();
    let before = pair.branch.wait_for("a status line", unknown)?;
    pair.line.take_frames();
    for asked in 0..ASKED {
        let own = SocketAddrV4::new(Ipv4Addr::new(10, 77, 9, 9), 50_000 + asked as u16);
        pair.line
            .send_to_branch(frames::syn_from_line(own, PAGES, BOX_MAC)?);
    }
    pair.branch
        .wait_for("SYNs from the line to be counted", |said| {
            (unknown(said)? >= before + ASKED).then_some(())
        })?;
    pair.branch.goes_on(1)?;
    let answered = pair
        .line
        .take_frames()
        .iter()
        .any(|frame| frames::is_tcp_from(frame, PAGES));
    ensure!(!answered, "the pages are answered on the line");
    Ok(())
}
