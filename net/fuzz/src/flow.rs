//! The target for what a peer with the right key puts into streams: control messages, requests, blocks.

use core::net::{Ipv4Addr, SocketAddrV4};
use core::time::Duration;

use outpost_net::FlowKey;
use outpost_net::flow::message::{CONTROL, Code, OPEN, OPEN_LEN, decode_open, encode_open};
use outpost_net::flow::{Host, Incoming, Notice, Pump, Session, SessionConfig, StoreParts};
use outpost_net::time::Instant;
use outpost_net::tunnel::{State, StreamId, Tunnel};

use crate::Target;
use crate::dedup::{greeting, raw_block};
use crate::script::{Script, put_piece};
use crate::tunnel::{BRANCH, BRANCH_KEY, CORE, CORE_KEY, config};

/// What the seeds' blocks stand for. No input can make a digest for anything else.
const MEANT: [&[u8]; 2] = [b"hello, server", b"and so on"];
/// Streams of the peer.
const STREAMS_USED: usize = 8;

/// A host that answers with a little and takes everything.
#[derive(Default)]
struct Server {
    came: Vec<u8>,
    said: bool,
}

impl Host for Server {
    fn readable(&mut self) -> usize {
        if self.said { 0 } else { 200 }
    }

    fn read(&mut self, take: impl FnOnce(&[u8]) -> usize) -> Incoming {
        if self.said {
            return Incoming::Bytes(0);
        }
        let taken = take(&[b'x'; 200]);
        self.said = taken > 0;
        Incoming::Bytes(taken)
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.came.extend_from_slice(bytes);
        bytes.len()
    }

    fn finish(&mut self, _last: bool) {}
}

impl Server {
    /// Nothing came that the peer did not mean.
    fn check(&self) {
        let mut rest = self.came.as_slice();
        while !rest.is_empty() {
            let next = MEANT.iter().find_map(|meant| rest.strip_prefix(*meant));
            rest =
                next.unwrap_or_else(|| panic!("bytes came out that no block stands for: {rest:?}"));
        }
    }
}

/// Pieces: the stream (a byte; bit 7: it ends after this, bit 6: it is reset), then bytes for it.
pub const STREAMS: Target = Target {
    name: "flow_streams",
    about: "streams of an authenticated peer at a core: only verified bytes reach a server, bad streams are refused, memory is bounded",
    run: streams,
    honest: || {
        let key = |port| FlowKey {
            client: SocketAddrV4::new(Ipv4Addr::new(10, 77, 1, 10), 40_000),
            server: SocketAddrV4::new(Ipv4Addr::new(10, 77, 2, 10), port),
        };
        let for_receiver = |message: &[u8]| {
            let len = (message.len() as u32).to_le_bytes();
            [&[1][..], &len, message].concat()
        };
        let control = [&[CONTROL][..], &for_receiver(&greeting(0))].concat();
        let open = |port| encode_open(&key(port)).to_vec();
        let blocks = [
            raw_block(1, 1 << 16, MEANT[0]),
            raw_block(2, 1 << 17, MEANT[1]),
        ];
        let flow = |block: &[u8]| [open(80), block.to_vec()].concat();
        let wrong = {
            let mut block = blocks[1].clone();
            if let Some(last) = block.last_mut() {
                *last ^= 1;
            }
            flow(&block)
        };
        let mut all = vec![];
        for (name, pieces) in [
            (
                "one_flow",
                vec![(0, control.clone()), (1, flow(&blocks[0]))],
            ),
            (
                "two_flows",
                vec![
                    (0, control.clone()),
                    (1, flow(&blocks[0])),
                    (2 | 0x80, flow(&blocks[1])),
                ],
            ),
            (
                "flow_first",
                vec![(1, flow(&blocks[0])), (0, control.clone())],
            ),
            (
                "refused",
                vec![
                    (0, control.clone()),
                    (1, open(81)),
                    (2, open(80)),
                    (2 | 0x40, vec![]),
                ],
            ),
            ("wrong_digest", vec![(0, control.clone()), (1, wrong)]),
            (
                "greeted_twice",
                vec![(0, control.clone()), (0, for_receiver(&greeting(0)))],
            ),
            ("two_controls", vec![(0, control.clone()), (1, control)]),
            ("nonsense", vec![(0, vec![0x77; 40]), (1 | 0x80, vec![])]),
        ] {
            let mut script = vec![];
            for (stream, bytes) in pieces {
                put_piece(&mut script, &[&[stream], bytes.as_slice()].concat());
            }
            all.push((name, script));
        }
        all
    },
    cases: 800,
    memory: 24 << 20,
};

struct Flow {
    stream: StreamId,
    pump: Pump,
    server: Server,
}

struct Bench {
    core: Session,
    peer: Tunnel,
    now: Instant,
    flows: Vec<Flow>,
}

impl Bench {
    fn new() -> Bench {
        let now = Instant::from_millis(1);
        let session = SessionConfig {
            tunnel: config(CORE_KEY, BRANCH_KEY),
            endpoint: None,
            seed: [4; 32],
            store: StoreParts {
                memory: 2 << 20,
                device: None,
            },
        };
        Bench {
            core: Session::new(session, now),
            peer: Tunnel::initiator(config(BRANCH_KEY, CORE_KEY), CORE, [5; 32], now),
            now,
            flows: vec![],
        }
    }

    /// Carries datagrams and serves the core's flows for so many milliseconds.
    fn run(&mut self, millis: u64) {
        let mut buffer = vec![];
        let mut sink = vec![0; 4096];
        for _ in 0..millis {
            for turn in 0.. {
                assert!(turn < 5000, "the ends never fall silent");
                let mut busy = false;
                if self.peer.poll_transmit(self.now, &mut buffer).is_some() {
                    busy = true;
                    self.core.receive(self.now, BRANCH, &mut buffer);
                }
                if self.core.poll_transmit(self.now, &mut buffer).is_some() {
                    busy = true;
                    self.peer.receive(self.now, CORE, &mut buffer);
                }
                while let Some(notice) = self.core.notice(self.now) {
                    busy = true;
                    self.notice(notice);
                }
                while let Some(event) = self.peer.poll_event() {
                    if let outpost_net::tunnel::Event::Readable(stream) = event {
                        while self.peer.read(stream, &mut sink).len > 0 {}
                    }
                }
                if !busy {
                    break;
                }
            }
            self.now += Duration::from_millis(1);
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Down(_) => {
                for flow in self.flows.drain(..) {
                    flow.server.check();
                    self.core.close_pump(flow.pump);
                }
            }
            Notice::Request(stream, key) => {
                assert_eq!(decode_open(&encode_open(&key)), Some(key));
                if key.server.port() % 2 == 1 {
                    self.core.refuse(stream, Code::Refused);
                    return;
                }
                let pump = self.core.accept(stream);
                self.flows.push(Flow {
                    stream,
                    pump,
                    server: Server::default(),
                });
                self.turn(stream);
            }
            Notice::Wake(stream) => self.turn(stream),
            Notice::Reset(stream, code) => {
                assert_eq!(Code::from(u32::from(code)), code);
                self.end(stream);
            }
            Notice::Up | Notice::WrongKey(_) => {}
        }
    }

    fn turn(&mut self, stream: StreamId) {
        for _ in 0..1000 {
            let Some(flow) = self.flows.iter_mut().find(|it| it.stream == stream) else {
                return;
            };
            match self.core.turn(stream, &mut flow.pump, &mut flow.server) {
                Ok(true) => {}
                Ok(false) => return,
                Err(code) => {
                    self.core.refuse(stream, code);
                    self.end(stream);
                    return;
                }
            }
        }
        panic!("a flow never has enough");
    }

    fn end(&mut self, stream: StreamId) {
        if let Some(at) = self.flows.iter().position(|it| it.stream == stream) {
            let flow = self.flows.remove(at);
            flow.server.check();
            self.core.close_pump(flow.pump);
        }
    }
}

fn streams(input: &[u8]) {
    if let Some(message) = input.first_chunk::<OPEN_LEN>() {
        let key = decode_open(message);
        assert_eq!(key.is_some(), message[0] == OPEN);
        assert!(key.is_none_or(|key| encode_open(&key) == *message));
    }
    let mut bench = Bench::new();
    bench.run(5);
    assert!(bench.core.is_up(), "an honest handshake");
    let mut used: [Option<StreamId>; STREAMS_USED] = Default::default();
    let mut script = Script(input);
    while !script.is_empty() && bench.peer.state() == State::Up {
        let piece = script.piece();
        let (how, bytes) = piece.split_first().unwrap_or((&0, &[]));
        let Some(place) = used.get_mut(usize::from(how & 0x3f) % STREAMS_USED) else {
            continue;
        };
        if place.is_none() {
            *place = bench.peer.open_stream();
        }
        let Some(stream) = *place else { continue };
        bench.peer.write(stream, bytes);
        if how & 0x80 != 0 {
            bench.peer.finish(stream);
        }
        if how & 0x40 != 0 {
            bench.peer.reset(stream, 5);
            *place = None;
        }
        bench.run(2);
    }
    bench.run(60);
    for flow in &bench.flows {
        flow.server.check();
    }
    // It may have been nonsense enough to cost the tunnel; after the pause a peer is let in again.
    if !bench.core.is_up() {
        bench.now += Duration::from_secs(6);
        bench.run(1);
        bench.peer = Tunnel::initiator(config(BRANCH_KEY, CORE_KEY), CORE, [6; 32], bench.now);
        bench.run(50);
        assert!(bench.core.is_up(), "nobody is let in any more");
    }
}
