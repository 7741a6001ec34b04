//! Single connections: what servers and clients may do.

use super::*;
use std::io::ErrorKind;
use std::sync::mpsc;

#[test]
fn bytes_arrive_both_ways_after_half_a_close() {
    let pair = Pair::new(echo(), "");
    let bytes = noise(1, 3_000_000);
    exchange(pair.proxy, &bytes, 100_000);
    exchange(pair.proxy, &bytes, 100_000);
    exchange(pair.proxy, &[], 1);
    until("three flows to finish", || {
        (flow_ends(pair.management, "head", "finished") == 3).then_some(())
    });
}

#[test]
fn a_client_may_send_a_byte_at_a_time() {
    let pair = Pair::new(echo(), "");
    exchange(pair.proxy, &noise(2, 2_000), 1);
}

#[test]
fn either_side_may_finish_first() {
    // This server says its word and no more, and then counts.
    let (sender, counted) = mpsc::channel();
    let sender = Mutex::new(sender);
    let at = server(move |mut stream| {
        stream.write_all(b"welcome").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        sender.lock().unwrap().send(bytes).unwrap();
    });
    let pair = Pair::new(at, "");
    let mut client = connect(pair.proxy);
    let mut word = Vec::new();
    client.read_to_end(&mut word).unwrap();
    assert_eq!(word, b"welcome");
    let bytes = noise(3, 500_000);
    client.write_all(&bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(counted.recv_timeout(DEADLINE).unwrap() == bytes);
}

#[test]
fn fifty_connections_at_once() {
    let pair = Pair::new(echo(), "");
    let at = pair.proxy;
    let threads: Vec<_> = (0..50)
        .map(|seed| std::thread::spawn(move || exchange(at, &noise(seed, 40_000), 7_000)))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_refusal_is_mirrored_and_counted() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let pair = Pair::new(nobody, "");
    let error = connect(pair.proxy).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(flow_ends(pair.management, "head", "refused"), 1);
    assert_eq!(flow_ends(pair.core_management, "branch", "refused"), 1);
}

#[test]
fn a_server_that_never_answers_holds_up_nobody_else() {
    // A listener whose queue is full: its system drops further SYNs.
    let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    deaf.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    deaf.listen(0).unwrap();
    let at = deaf.local_addr().unwrap().as_socket().unwrap();
    let mut filling = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&at, Duration::from_millis(300)) {
        filling.push(stream);
        assert!(filling.len() < 100, "the queue does not fill");
    }
    let second = free_port();
    let pair = Pair::new(at, &proxy_text(second, echo()));
    let waiting = connect(pair.proxy);
    until("the flow to be shown as opening", || {
        let page = flows_page(pair.management);
        let flow = page["flows"].get(0)?;
        (flow["stage"] == "opening" && flow["server"] == at.to_string()).then_some(())
    });
    let other = SocketAddr::from(([127, 0, 0, 1], second));
    exchange(other, &noise(4, 300_000), 50_000);
    // The client loses its patience.
    reset(waiting);
    for (port, peer) in [(pair.management, "head"), (pair.core_management, "branch")] {
        until("both ends to give it up", || {
            (flow_ends(port, peer, "abandoned") == 1).then_some(())
        });
    }
}

#[test]
fn a_reset_is_mirrored_whoever_makes_it_and_whatever_flows() {
    // Resets after the first byte.
    let at = server(|mut stream| {
        let _ = stream.read(&mut [0]);
        reset(stream);
    });
    let pair = Pair::new(at, "");
    let mut client = connect(pair.proxy);
    client.write_all(b"x").unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(flow_ends(pair.management, "head", "reset_by_peer"), 1);
    until("the core to count it", || {
        (flow_ends(pair.core_management, "branch", "reset_by_host") == 1).then_some(())
    });

    // The client resets while nothing is under way, and the server hears of it.
    let (sender, heard) = mpsc::channel();
    let sender = Mutex::new(sender);
    let at = server(move |mut stream| {
        let result = stream.read(&mut [0]);
        sender
            .lock()
            .unwrap()
            .send(result.map_err(|error| error.kind()))
            .unwrap();
    });
    let pair = Pair::new(at, "");
    let client = connect(pair.proxy);
    until("the flow to be open", || {
        (flows_page(pair.management)["flows"].get(0)?["stage"] == "open").then_some(())
    });
    reset(client);
    let heard = heard.recv_timeout(DEADLINE).unwrap();
    assert_eq!(heard, Err(ErrorKind::ConnectionReset));
}

#[test]
fn what_was_sent_before_a_reset_still_arrives() {
    let bytes = noise(5, 100_000);
    let all = bytes.clone();
    let at = server(move |mut stream| {
        let _ = stream.read(&mut [0]);
        stream.write_all(&all).unwrap();
        // Wait until the other system has taken everything, or the RST would drop it.
        let _ = stream.read(&mut [0]);
        reset(stream);
    });
    let pair = Pair::new(at, "");
    let mut client = connect(pair.proxy);
    client.write_all(b"x").unwrap();
    let mut back = vec![0; bytes.len()];
    client.read_exact(&mut back).unwrap();
    assert!(back == bytes);
    client.write_all(b"x").unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
