//! A peer that has the right key and talks nonsense: it harms nobody but itself.

use std::net::Ipv4Addr;

use outpost_config::Config;
use outpost_net::time::Instant;
use outpost_net::tunnel::{Endpoint, Event, StreamId, Tunnel, TunnelConfig, public_key};
use outpost_net::{Engine, EngineParts, Port};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress,
    IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use crate::host::{Close, Host, Script};
use crate::line::Random;
use crate::transfers::seeds;
use crate::world::{CLIENT, SERVER, base64};

const CORE: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const CORE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PORT: u16 = 3301;
const CORE_KEY: [u8; 32] = [22; 32];
const PEER_KEY: [u8; 32] = [11; 32];

/// A core, and at the other end of its WAN port a bare tunnel.
struct Bench {
    core: Engine,
    tunnel: Tunnel,
    random: Random,
    now: Instant,
    up: bool,
    downs: u32,
    opened: Vec<StreamId>,
    resets: Vec<u32>,
    /// On the core's LAN, if wanted.
    server: Option<Host>,
    /// FINs that it was sent.
    fins: u32,
}

fn frame(destination: [u8; 6], ethertype: EthernetProtocol, len: usize) -> Vec<u8> {
    let mut frame = vec![0; 14 + len];
    let mut view = EthernetFrame::new_unchecked(&mut frame[..]);
    view.set_dst_addr(EthernetAddress(destination));
    view.set_src_addr(EthernetAddress(PEER_MAC));
    view.set_ethertype(ethertype);
    frame
}

fn udp_frame(payload: &[u8]) -> Vec<u8> {
    let udp = UdpRepr {
        src_port: PORT,
        dst_port: PORT,
    };
    let ip = Ipv4Repr {
        src_addr: PEER,
        dst_addr: CORE,
        next_header: IpProtocol::Udp,
        payload_len: 8 + payload.len(),
        hop_limit: 64,
    };
    let mut frame = frame(CORE_MAC, EthernetProtocol::Ipv4, 28 + payload.len());
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &checksums);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut frame[34..]),
        &IpAddress::Ipv4(PEER),
        &IpAddress::Ipv4(CORE),
        payload.len(),
        |room| room.copy_from_slice(payload),
        &checksums,
    );
    frame
}

impl Bench {
    fn new(seed: u64) -> Bench {
        crate::start_log();
        let mut random = Random::new(seed);
        let text = format!(
            r#"role = "core"
            private_key = "{}"
            [management]
            address = "10.77.2.1/16"
            [[peer]]
            name = "branch"
            public_key = "{}"
            "#,
            base64(&CORE_KEY),
            base64(&public_key(&PEER_KEY)),
        );
        let parts = EngineParts {
            mac: CORE_MAC,
            seed: random.seed(),
            store_memory: 4 << 20,
            flow_memory: 8 << 20,
        };
        let now = Instant::from_millis(1);
        let tunnel = Tunnel::initiator(
            TunnelConfig::new(PEER_KEY, public_key(&CORE_KEY)),
            Endpoint::new(CORE, PORT),
            random.seed(),
            now,
        );
        Bench {
            core: Engine::new(&Config::parse(&text).unwrap(), parts, now),
            tunnel,
            random,
            now,
            up: false,
            downs: 0,
            opened: vec![],
            resets: vec![],
            server: None,
            fins: 0,
        }
    }

    fn run(&mut self, millis: u64) {
        self.run_by(millis, 1000);
    }

    /// Runs so many steps of so many microseconds.
    fn run_by(&mut self, steps: u64, step: u64) {
        let mut buffer = vec![];
        for _ in 0..steps {
            self.now = Instant::from_micros(self.now.as_micros() + step);
            let frames = self
                .server
                .as_mut()
                .map(|server| server.poll(self.now.as_micros()));
            for frame in frames.unwrap_or_default() {
                self.core.receive(self.now, Port::Lan, &frame);
            }
            while self.tunnel.poll_transmit(self.now, &mut buffer).is_some() {
                self.core.receive(self.now, Port::Wan, &udp_frame(&buffer));
            }
            let mut out = vec![];
            self.core.poll(self.now, &mut |port, frame| {
                if port == Port::Wan {
                    out.push(frame.to_vec());
                } else if let (Port::Lan, Some(server)) = (port, &mut self.server) {
                    let is_tcp = frame[12..14] == [8, 0] && frame[23] == 6;
                    self.fins += u32::from(is_tcp && frame[47] & 1 != 0);
                    server.receive(frame.to_vec());
                }
            });
            for frame in out {
                self.take(&frame);
            }
            while let Some(event) = self.tunnel.poll_event() {
                match event {
                    Event::Up => self.up = true,
                    Event::Down(_) => {
                        self.up = false;
                        self.downs += 1;
                        self.opened.clear();
                    }
                    Event::Opened(stream) => self.opened.push(stream),
                    Event::Reset(_, code) => self.resets.push(code),
                    _ => {}
                }
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let view = EthernetFrame::new_checked(bytes).unwrap();
        if view.ethertype() == EthernetProtocol::Arp {
            let asked = ArpRepr::parse(&ArpPacket::new_checked(view.payload()).unwrap()).unwrap();
            let ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr,
                source_protocol_addr,
                target_protocol_addr: asked_for @ (PEER | CLIENT),
                ..
            } = asked
            else {
                return;
            };
            let reply = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: EthernetAddress(PEER_MAC),
                source_protocol_addr: asked_for,
                target_hardware_addr: source_hardware_addr,
                target_protocol_addr: source_protocol_addr,
            };
            let mut frame = frame(
                source_hardware_addr.0,
                EthernetProtocol::Arp,
                reply.buffer_len(),
            );
            reply.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
            self.core.receive(self.now, Port::Wan, &frame);
            return;
        }
        let ip = Ipv4Packet::new_checked(view.payload()).unwrap();
        let mut payload = UdpPacket::new_checked(ip.payload())
            .unwrap()
            .payload()
            .to_vec();
        self.tunnel
            .receive(self.now, Endpoint::new(CORE, PORT), &mut payload);
    }

    fn wait_up(&mut self) {
        // The longest pause after nonsense is a minute.
        for _ in 0..700 {
            if self.up && self.core.statistics().tunnel.up {
                return;
            }
            self.run_by(5, 20_000);
        }
        panic!("the tunnel does not come up");
    }

    fn say(&mut self, bytes: &[u8]) -> Option<StreamId> {
        let stream = self.tunnel.open_stream()?;
        self.tunnel.write(stream, bytes);
        Some(stream)
    }
}

fn open(client: [u8; 4], client_port: u16, server: [u8; 4], server_port: u16) -> Vec<u8> {
    let mut message = vec![0x11];
    message.extend_from_slice(&client);
    message.extend_from_slice(&client_port.to_be_bytes());
    message.extend_from_slice(&server);
    message.extend_from_slice(&server_port.to_be_bytes());
    message
}

#[test]
fn streams_that_begin_with_anything_else_are_reset() {
    const PROTOCOL: u32 = 8;
    let mut bench = Bench::new(1);
    bench.wait_up();
    for bytes in [&[0x77][..], &[0; 40], b"GET / HTTP/1.1\r\n\r\n"] {
        bench.say(bytes);
    }
    // Cut short, and nothing at all.
    for bytes in [&open([10, 77, 1, 10], 5, [10, 77, 2, 10], 80)[..7], &[]] {
        let stream = bench.say(bytes).unwrap();
        bench.tunnel.finish(stream);
    }
    bench.run(500);
    assert_eq!(bench.resets, [PROTOCOL; 5]);
    assert_eq!(bench.core.statistics().drops.bad_streams, 5);
    assert_eq!(bench.core.statistics().flows.total, 0);
    assert_eq!(bench.downs, 0);
}

#[test]
fn addresses_that_are_no_hosts_are_not_connected_to() {
    let client = [10, 77, 1, 10];
    let server = [10, 77, 2, 10];
    let mut bench = Bench::new(2);
    bench.wait_up();
    for message in [
        open(client, 5, CORE.octets(), 80),
        open(client, 5, [224, 0, 0, 1], 80),
        open(client, 5, [255; 4], 80),
        open(client, 5, [0; 4], 80),
        open(client, 5, [127, 0, 0, 1], 80),
        open(CORE.octets(), 5, server, 80),
        open([0; 4], 5, server, 80),
        open(client, 0, server, 80),
        open(client, 5, server, 0),
        // Off the core's network, and it has no gateway.
        open(client, 5, [192, 0, 2, 7], 80),
    ] {
        bench.say(&message);
    }
    bench.run(500);
    assert_eq!(bench.resets.len(), 10);
    assert_eq!(bench.core.statistics().flows.open, 0);
    assert_eq!(bench.downs, 0);
}

#[test]
fn nonsense_on_the_control_stream_costs_the_tunnel_and_it_comes_back() {
    for message in [
        // For nobody.
        vec![0x14, 9, 1, 0, 0, 0, 0],
        // Gigabytes.
        vec![0x14, 0, 255, 255, 255, 255],
        // No message that there is.
        vec![0x14, 0, 3, 0, 0, 0, 2, 99, 99],
    ] {
        let mut bench = Bench::new(3);
        bench.wait_up();
        bench.say(&open([10, 77, 1, 10], 5, [10, 77, 2, 10], 80));
        bench.run(50);
        assert_eq!(bench.core.statistics().flows.open, 1);
        bench.say(&message);
        bench.run(200);
        assert_eq!(bench.downs, 1, "{message:?}");
        bench.wait_up();
        bench.run(4000);
        let statistics = bench.core.statistics();
        assert_eq!(statistics.flows.open, 0);
        assert!(statistics.tunnel.up);
    }
}

#[test]
fn a_second_control_stream_is_refused_and_the_first_must_not_end() {
    let mut bench = Bench::new(4);
    bench.wait_up();
    let first = bench.say(&[0x14]).unwrap();
    bench.run(100);
    bench.say(&[0x14]);
    bench.run(100);
    assert_eq!((bench.resets.len(), bench.downs), (1, 0));
    bench.tunnel.finish(first);
    bench.run(200);
    assert_eq!(bench.downs, 1);
    bench.wait_up();
}

#[test]
fn nonsense_in_the_midst_of_a_flow_is_no_end_of_file() {
    for phase in 0..30 {
        let mut bench = Bench::new(5);
        let mut server = Host::new(2, SERVER, 5);
        // Something from the server every few steps: in some phase its flow has a turn in the very poll that ends the tunnel.
        let mut script = Script::send(vec![7; 1 << 20]).close(Close::Never);
        script.piece = 100;
        server.listen(80, script);
        bench.server = Some(server);
        bench.wait_up();
        bench.say(&open([10, 77, 1, 10], 5, SERVER.octets(), 80));
        bench.run(200 + phase);
        assert!(bench.server.as_ref().unwrap().connections[0].is_open());
        bench.say(&[0x14, 9, 1, 0, 0, 0, 0]);
        bench.run(200);
        assert_eq!((bench.downs, bench.fins), (1, 0));
        assert_eq!(bench.core.statistics().flows.reset_by_tunnel, 1);
    }
}

#[test]
fn a_peer_that_goes_on_with_nonsense_is_left_alone_for_longer_and_longer() {
    let mut bench = Bench::new(6);
    for (round, seconds) in [5, 10, 20, 40, 60, 60].into_iter().enumerate() {
        bench.wait_up();
        bench.say(&[0x14, 9, 1, 0, 0, 0, 0]);
        bench.run(200);
        bench.run_by((seconds - 1) * 50, 20_000);
        assert_eq!(bench.downs, round as u32 + 1);
        assert!(!bench.core.statistics().tunnel.up, "{seconds}");
    }
    // After a good minute the peer is trusted again.
    bench.wait_up();
    bench.run_by(61 * 50, 20_000);
    bench.say(&[0x14, 9, 1, 0, 0, 0, 0]);
    bench.run(200);
    assert!(!bench.core.statistics().tunnel.up);
    bench.run_by(350, 20_000);
    assert!(bench.core.statistics().tunnel.up);
}

#[test]
fn random_streams_never_panic() {
    for seed in 0..seeds(60) {
        let mut bench = Bench::new(seed);
        bench.wait_up();
        let mut streams = vec![];
        for _ in 0..60 {
            if !bench.up {
                bench.wait_up();
                streams.clear();
            }
            let len = bench.random.below(300) as usize;
            let mut bytes = bench.random.bytes(len);
            match bench.random.below(5) {
                0 => {
                    let (port, last) = (bench.random.below(4) as u16, bench.random.below(4) as u8);
                    let mut message = open([10, 77, 1, last], port, [10, 77, 2, last], port);
                    message.append(&mut bytes);
                    bytes = message;
                }
                1 => {
                    let mut message = vec![0x14, bench.random.below(2) as u8];
                    message.extend_from_slice(&(len as u32).to_le_bytes());
                    message.append(&mut bytes);
                    bytes = message;
                }
                _ => {}
            }
            streams.extend(bench.say(&bytes));
            streams.append(&mut bench.opened);
            if let Some(&stream) = streams.get(bench.random.below(streams.len() as u64) as usize) {
                match bench.random.below(4) {
                    0 => bench.tunnel.finish(stream),
                    1 => bench.tunnel.reset(stream, 3),
                    2 => {
                        bench.tunnel.write(stream, &[7; 100]);
                    }
                    _ => {}
                }
            }
            let millis = 1 + bench.random.below(50);
            bench.run(millis);
        }
        bench.run(5000);
        bench.wait_up();
    }
}
