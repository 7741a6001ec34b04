//! Reloading, restarting, stopping, and keys that do not fit.

use super::*;
use std::io::ErrorKind;

#[test]
fn a_reload_under_a_transfer_drops_nothing() {
    let pair = Pair::new(echo(), "");
    let bytes = noise(1, 2_000_000);
    let (first, second) = bytes.split_at(700_000);
    let mut stream = connect(pair.proxy);
    stream.write_all(first).unwrap();
    let more = free_port();
    let file = &pair.branch.config.0;
    std::fs::write(file, pair.branch_text.clone() + &proxy_text(more, echo())).unwrap();
    pair.branch.signal("-HUP");
    pair.branch.says("reloaded");
    pair.core.signal("-HUP");
    pair.core.says("reloaded");
    exchange_on_rest(stream, second, &bytes);
    let added = SocketAddr::from(([127, 0, 0, 1], more));
    exchange(added, &noise(2, 10_000), 5_000);

    // And away with it again: what runs through it ends in its own time.
    let mut stream = connect(added);
    stream.write_all(first).unwrap();
    until("the flow to be open", || {
        (flows_page(pair.management)["flows"].get(0)?["stage"] == "open").then_some(())
    });
    std::fs::write(file, &pair.branch_text).unwrap();
    pair.branch.signal("-HUP");
    until("a second reload", || {
        (pair.branch.lines_with("reloaded").len() == 2).then_some(())
    });
    assert!(TcpStream::connect(added).is_err());
    exchange_on_rest(stream, second, &bytes);
    assert!(pair.branch.lines_with("is down").is_empty());
}

fn exchange_on_rest(mut stream: TcpStream, rest: &[u8], all: &[u8]) {
    stream.write_all(rest).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert!(back == all, "{} bytes came back", back.len());
}

#[test]
fn a_core_takes_in_and_lets_go_of_branches_by_a_reload() {
    let ((core_private, core_public), (private, public)) = (keys(), keys());
    let (_, other) = keys();
    let (udp, management, core_management, port) =
        (free_port(), free_port(), free_port(), free_port());
    let with = |peers: &[(&str, &str)]| core_text(&core_private, udp, core_management, peers);
    let core = Running::start(&with(&[("other", &other)]));
    let text = branch_text(&private, management, &core_public, udp) + &proxy_text(port, echo());
    let branch = Running::start(&text);
    branch.says("does not accept this box's key");
    std::fs::write(&core.config.0, with(&[("other", &other), ("new", &public)])).unwrap();
    core.signal("-HUP");
    tunnel_is_up(management, "head");
    exchange(
        SocketAddr::from(([127, 0, 0, 1], port)),
        &noise(3, 100_000),
        10_000,
    );
    std::fs::write(&core.config.0, with(&[("other", &other)])).unwrap();
    core.signal("-HUP");
    branch.says("the tunnel is down: closed by the peer");
}

#[test]
fn a_file_that_is_wrong_at_a_reload_changes_nothing() {
    let pair = Pair::new(echo(), "");
    let file = &pair.branch.config.0;
    std::fs::write(file, pair.branch_text.replace("[[proxy]]", "[[proxi]]")).unwrap();
    pair.branch.signal("-HUP");
    pair.branch.says("not reloaded: ");
    let said = pair.branch.lines_with("not reloaded: ").remove(0);
    assert!(said.contains("line 12: unknown key `proxi`"), "{said}");
    exchange(pair.proxy, b"as before", 3);
    let other = pair.branch_text.replace("\"16M\"", "\"32M\"");
    std::fs::write(file, other).unwrap();
    pair.branch.signal("-HUP");
    pair.branch.says("change only by a restart");
    exchange(pair.proxy, b"as before", 3);
}

#[test]
fn either_end_may_restart() {
    let mut pair = Pair::new(echo(), "");
    let bytes = noise(4, 400_000);
    exchange(pair.proxy, &bytes, 50_000);
    for restarted in ["core", "branch"] {
        let mut open = connect(pair.proxy);
        open.write_all(b"x").unwrap();
        until("the flow to be open", || {
            (flows_page(pair.management)["flows"].get(0)?["stage"] == "open").then_some(())
        });
        match restarted {
            "core" => pair.core.restart(),
            _ => pair.branch.restart(),
        }
        let result = open.read(&mut [0]).map_err(|error| error.kind());
        // The branch may not have noticed yet that the tunnel is a dead one.
        if restarted == "core" {
            assert_eq!(result, Err(ErrorKind::ConnectionReset));
            pair.branch.says("the tunnel is down");
        } else {
            // Its own system closes what a dead program leaves open.
            assert!(!matches!(result, Ok(1..)));
        }
        tunnel_is_up(pair.core_management, "branch");
        tunnel_is_up(pair.management, "head");
        exchange(pair.proxy, &bytes, 50_000);
    }
}

#[test]
fn a_wrong_key_is_said_at_both_ends_and_nothing_is_carried() {
    let ((core_private, _), (_, expected), (private, public)) = (keys(), keys(), keys());
    let (udp, management, core_management, port) =
        (free_port(), free_port(), free_port(), free_port());
    let core = Running::start(&core_text(
        &core_private,
        udp,
        core_management,
        &[("branch", &public)],
    ));
    let branch = Running::start(
        &(branch_text(&private, management, &expected, udp) + &proxy_text(port, echo())),
    );
    core.says("expects a box with another key");
    branch.says("has another key than the [[peer]] public_key configured here");
    let mut client = connect(SocketAddr::from(([127, 0, 0, 1], port)));
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(flow_ends(management, "head", "tunnel_down"), 1);
    let flow = &flows_page(management)["ended"][0];
    assert_eq!(
        (&flow["reason"], &flow["end"]),
        (&"tunnel_down".into(), &"tunnel_down".into()),
        "{flow}"
    );
    let wrong = "outpost_tunnel_wrong_key_total{peer=\"head\"}";
    assert!(metric(management, wrong) > 0);
}

#[test]
fn a_stop_lets_flows_end_and_takes_no_new_ones() {
    let mut pair = Pair::new(echo(), "");
    let bytes = noise(5, 300_000);
    let (first, second) = bytes.split_at(100_000);
    let mut stream = connect(pair.proxy);
    stream.write_all(first).unwrap();
    until("the flow to be open", || {
        (flows_page(pair.management)["flows"].get(0)?["stage"] == "open").then_some(())
    });
    pair.branch.signal("-TERM");
    until("the proxy to be closed", || {
        TcpStream::connect(pair.proxy).is_err().then_some(())
    });
    exchange_on_rest(stream, second, &bytes);
    assert!(pair.branch.ends().success());
    pair.core.says("the tunnel is down: closed by the peer");
    pair.core.signal("-INT");
    assert!(pair.core.ends().success());
}

#[test]
fn a_stop_does_not_wait_for_flows_without_end() {
    let mut pair = Pair::new(echo(), "");
    let mut stream = connect(pair.proxy);
    stream.write_all(b"x").unwrap();
    until("the flow to be open", || {
        (flows_page(pair.management)["flows"].get(0)?["stage"] == "open").then_some(())
    });
    pair.branch.signal("-TERM");
    assert!(pair.branch.ends().success());
    pair.branch.says("1 flows are not over");
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
