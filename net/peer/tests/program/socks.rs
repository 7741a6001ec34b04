//! The SOCKS5 server, spoken to byte by byte.

use super::*;

const GREETING: &[u8] = &[5, 1, 0];

fn to_address(at: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(at) = at else {
        unreachable!()
    };
    [
        &[5, 1, 0, 1],
        &at.ip().octets()[..],
        &at.port().to_be_bytes(),
    ]
    .concat()
}

fn to_name(name: &str, port: u16) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    [&[5, 1, 0, 3, length], name.as_bytes(), &port.to_be_bytes()].concat()
}

fn socks_text(port: u16) -> String {
    format!("[[socks]]\nlisten = \"127.0.0.1:{port}\"\npeer = \"head\"\n")
}

/// Greets, asks, and gives the reply field with the connection.
fn ask(port: u16, request: &[u8], piece: usize) -> (u8, TcpStream) {
    let mut stream = connect(SocketAddr::from(([127, 0, 0, 1], port)));
    for part in GREETING.chunks(piece) {
        stream.write_all(part).unwrap();
    }
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).unwrap();
    assert_eq!(chosen, [5, 0]);
    for part in request.chunks(piece) {
        stream.write_all(part).unwrap();
    }
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!([reply[0], reply[2], reply[3]], [5, 0, 1]);
    (reply[1], stream)
}

#[test]
fn addresses_and_names_are_connected_through_the_core() {
    let (port, server) = (free_port(), echo());
    let pair = Pair::new(server, &socks_text(port));
    for (request, piece) in [
        (to_address(server), 100),
        (to_address(server), 1),
        (to_name("localhost", server.port()), 100),
        (to_name("localhost", server.port()), 1),
        (to_name("127.0.0.1", server.port()), 100),
    ] {
        let (reply, stream) = ask(port, &request, piece);
        assert_eq!(reply, 0);
        exchange_on(stream, &noise(1, 100_000), 9_000);
    }
    until("all flows to end", || {
        (flow_ends(pair.core_management, "branch", "finished") == 5).then_some(())
    });
    // A client that does not wait for the answers.
    let mut hasty = connect(SocketAddr::from(([127, 0, 0, 1], port)));
    let all = [GREETING, &to_address(server), b"at once"].concat();
    hasty.write_all(&all).unwrap();
    hasty.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    hasty.read_to_end(&mut back).unwrap();
    assert_eq!(&back[12..], b"at once");
}

#[test]
fn each_refusal_has_its_code() {
    let port = free_port();
    let pair = Pair::new(echo(), &socks_text(port));
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let nowhere = SocketAddr::from(([224, 0, 0, 1], 80));
    let mut bind = to_address(nobody);
    bind[1] = 2;
    let mut associate = to_address(nobody);
    associate[1] = 3;
    let mut sixth = vec![5, 1, 0, 4];
    sixth.extend([0; 18]);
    for (request, code, what) in [
        (to_address(nobody), 5, "a server that refuses"),
        (to_address(nowhere), 2, "an address that is no host's"),
        (
            to_name("no-such-name.invalid", 80),
            4,
            "a name that nobody has",
        ),
        (bind, 7, "BIND"),
        (associate, 7, "UDP ASSOCIATE"),
        (sixth, 8, "IPv6"),
    ] {
        let (reply, mut stream) = ask(port, &request, 100);
        assert_eq!(reply, code, "{what}");
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "{what}");
    }
    assert_eq!(flow_ends(pair.management, "head", "refused"), 1);
    assert_eq!(flow_ends(pair.management, "head", "not_permitted"), 1);
    assert_eq!(metric(pair.management, "outpost_socks_refused_total"), 4);

    // Only with a password; no SOCKS at all.
    let mut stream = connect(SocketAddr::from(([127, 0, 0, 1], port)));
    stream.write_all(&[5, 1, 2]).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, [5, 0xff]);
    let mut stream = connect(SocketAddr::from(([127, 0, 0, 1], port)));
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty());
}

#[test]
fn without_a_tunnel_the_network_is_unreachable() {
    let ((_, core_public), (private, _)) = (keys(), keys());
    let (management, port) = (free_port(), free_port());
    let text = branch_text(&private, management, &core_public, free_port()) + &socks_text(port);
    let branch = Running::start(&text);
    branch.says("running");
    let (reply, _) = ask(port, &to_address(echo()), 100);
    assert_eq!(reply, 3);
}
