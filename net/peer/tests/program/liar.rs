//! A branch with the right key that lies in its dictionary and its blocks, and one that works all the while.

use super::*;
use std::net::SocketAddrV4;

use base64::Engine as _;
use outpost_net::FlowKey;
use outpost_net::flow::message::{CONTROL, Code, encode_open};
use outpost_net::time::Instant as Moment;
use outpost_net::tunnel::{Endpoint, Event, State, StreamId, Tunnel, TunnelConfig};

fn key(text: &str) -> [u8; 32] {
    let bytes = base64::prelude::BASE64_STANDARD.decode(text).unwrap();
    bytes.try_into().unwrap()
}

/// A tunnel that says what the test wants.
struct Liar {
    tunnel: Tunnel,
    socket: UdpSocket,
    started: Instant,
    resets: Vec<(StreamId, u32)>,
}

impl Liar {
    fn connect(private: &str, core_public: &str, udp: u16, seed: u8) -> Liar {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", udp)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let core = Endpoint::new([127, 0, 0, 1].into(), udp);
        let config = TunnelConfig::new(key(private), key(core_public));
        let mut liar = Liar {
            tunnel: Tunnel::initiator(config, core, [seed; 32], Moment::ZERO),
            socket,
            started: Instant::now(),
            resets: vec![],
        };
        liar.until("the liar's tunnel", |it| it.tunnel.state() == State::Up);
        liar
    }

    fn turn(&mut self) {
        let now = Moment::ZERO + self.started.elapsed();
        let mut buffer = vec![0; 2000];
        let core = self.tunnel_address();
        while let Ok(len) = self.socket.recv(&mut buffer) {
            self.tunnel.receive(now, core, &mut buffer[..len]);
        }
        while let Some(event) = self.tunnel.poll_event() {
            if let Event::Reset(stream, code) = event {
                self.resets.push((stream, code));
            }
        }
        let mut datagram = vec![];
        while self.tunnel.poll_transmit(now, &mut datagram).is_some() {
            let _ = self.socket.send(&datagram);
        }
    }

    fn tunnel_address(&self) -> Endpoint {
        Endpoint::new(
            [127, 0, 0, 1].into(),
            self.socket.peer_addr().unwrap().port(),
        )
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut seen: impl FnMut(&Liar) -> bool) {
        until(what, || {
            self.turn();
            seen(self).then_some(())
        });
    }

    /// A stream that begins with these bytes.
    fn say(&mut self, bytes: &[u8]) -> StreamId {
        let stream = self.tunnel.open_stream().unwrap();
        assert_eq!(self.tunnel.write(stream, bytes), bytes.len());
        stream
    }

    /// Says the same again and again: an answer counts only once it was asked for.
    fn answer_until_reset(&mut self, control: StreamId, answer: &[u8], stream: StreamId) {
        until("an answer to be taken", || {
            self.tunnel.write(control, answer);
            self.turn();
            let is_it = |reset: &(StreamId, u32)| reset.0 == stream;
            self.resets.iter().any(is_it).then_some(())
        });
    }

    /// The stream is reset, as one that cannot be decoded.
    #[track_caller]
    fn is_refused(&mut self, what: &str, stream: StreamId) {
        self.until(what, |it| it.resets.iter().any(|reset| reset.0 == stream));
        let code = self
            .resets
            .iter()
            .find(|reset| reset.0 == stream)
            .unwrap()
            .1;
        assert_eq!(Code::from(code), Code::Undecodable, "{what}");
    }
}

/// A control message for the core's receiver.
fn for_receiver(body: &[u8]) -> Vec<u8> {
    let message = [&[body.len() as u8], body].concat();
    let len = (message.len() as u32).to_le_bytes();
    [&[1][..], &len, &message].concat()
}

/// A sender's greeting: log, head, digest key.
fn greeting() -> Vec<u8> {
    for_receiver(&[&[1][..], &[7; 16], &[0], &[9; 32]].concat())
}

#[test]
fn a_branch_that_lies_loses_its_own_flows_and_the_other_branch_none() {
    let server = echo();
    let (core_private, core_public) = keys();
    let ((private, public), (liar_private, liar_public)) = (keys(), keys());
    let (udp, core_management) = (free_port(), free_port());
    let peers = [("honest", public.as_str()), ("liar", liar_public.as_str())];
    let core = Running::start(&core_text(&core_private, udp, core_management, &peers));
    let (management, port) = (free_port(), free_port());
    let text = branch_text(&private, management, &core_public, udp) + &proxy_text(port, server);
    let branch = Running::start(&text);
    tunnel_is_up(management, "head");
    let proxy = SocketAddr::from(([127, 0, 0, 1], port));
    // It is at work the whole time.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let honest = std::thread::spawn(move || {
        let mut rounds = 0;
        while stopped.try_recv().is_err() {
            exchange(proxy, &noise(rounds, 300_000), 20_000);
            rounds += 1;
        }
        rounds
    });

    let mut liar = Liar::connect(&liar_private, &core_public, udp, 1);
    let control = liar.say(&[&[CONTROL][..], &greeting()].concat());
    let SocketAddr::V4(at) = server else { panic!() };
    let open = encode_open(&FlowKey {
        client: SocketAddrV4::new([10, 0, 0, 1].into(), 4000),
        server: at,
    });
    let flow = |block: &[u8]| [&open[..], block].concat();
    let digest = [0; 8];
    let lies: [(&str, Vec<u8>); 5] = [
        // Kind and flow, raw length, position, body length, body.
        (
            "a block of four gigabytes",
            vec![0x04, 1, 0x80, 0x80, 0x80, 0x80, 0x10],
        ),
        (
            "a body of four gigabytes",
            vec![0x05, 2, 0x80, 0x08, 0, 0x80, 0x80, 0x80, 0x80, 0x10],
        ),
        // One sequence, one literal, …: a few bytes, where the header says 1,024.
        (
            "a body that decodes to another length",
            [
                &[0x05, 3, 0x80, 0x08, 0, 8][..],
                &[0, 5, 0, b'h', b'e', b'l', b'l', b'o'],
                &digest,
            ]
            .concat(),
        ),
        (
            "more literals than the block has bytes",
            [
                &[0x05, 4, 0x80, 0x08, 0, 6][..],
                &[0, 0xff, 0xff, 0xff, 0xff, 0x0f],
                &digest,
            ]
            .concat(),
        ),
        (
            "a flow without a number",
            [&[0x00, 5, 0][..], b"hello", &digest].concat(),
        ),
    ];
    let count = lies.len() as u64;
    for (what, block) in lies {
        let stream = liar.say(&flow(&block));
        liar.is_refused(what, stream);
    }
    core.says("dedup block is malformed");
    // A block that does not have its digest, and whose answer does not either; a copy of what nobody has, and is gone.
    let wrong = liar.say(&flow(
        &[&[0x04, 20, 5, 100][..], b"hello", &digest].concat(),
    ));
    let lie = for_receiver(&[&[5, 20, 0][..], b"jello"].concat());
    liar.answer_until_reset(control, &lie, wrong);
    liar.is_refused("a wrong answer", wrong);
    core.says("dedup block does not have its digest, even fetched again");
    let gone = liar.say(&flow(
        &[&[0x06, 21, 5, 0xff, 0xff, 0x7f][..], &digest].concat(),
    ));
    liar.answer_until_reset(control, &for_receiver(&[5, 21, 0]), gone);
    liar.is_refused("an answer that there is none", gone);
    core.says("the sender no longer has it");
    until("the ends to be counted", || {
        (flow_ends(core_management, "liar", "undecodable") == count + 2).then_some(())
    });
    assert_eq!(
        liar.tunnel.state(),
        State::Up,
        "only the flows were refused"
    );

    // A lie on the control stream costs the tunnel.
    liar.tunnel.write(control, &greeting());
    liar.until("the tunnel to end", |it| it.tunnel.state() == State::Down);
    core.says("dedup control message in the wrong place");
    core.says("the peer does not keep to the protocol; the tunnel starts again in 5 s");

    stop.send(()).unwrap();
    assert!(honest.join().unwrap() > 0);
    let connections = "outpost_tunnel_connections_total{peer=\"honest\"}";
    assert_eq!(metric(core_management, connections), 1);
    assert_eq!(flow_ends(core_management, "honest", "undecodable"), 0);
    assert!(branch.lines_with("is down").is_empty());
}
