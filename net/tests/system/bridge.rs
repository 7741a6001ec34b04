//! The box as a switch and as a station: one engine, frames in and frames out.

use std::net::Ipv4Addr;

use outpost_config::Config;
use outpost_net::time::Instant;
use outpost_net::{Engine, EngineParts, Port};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket,
    TcpRepr, TcpSeqNumber,
};

use crate::floods;

const BOX: [u8; 6] = [2, 0, 0, 0, 0, 1];
const A: [u8; 6] = [2, 0, 0, 0, 1, 1];
const B: [u8; 6] = [2, 0, 0, 0, 1, 2];
const A_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 10);
const BOX_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 10);

const SWITCH: &str = r#"
    role = "branch"
    private_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
    [management]
    address = "10.77.1.1/16"
    [[peer]]
    name = "core"
    public_key = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
    endpoint = "10.77.2.1:3301"
    prefixes = ["10.77.2.0/24"]
"#;

struct Bench {
    engine: Engine,
    now: u64,
}

impl Bench {
    fn new() -> Bench {
        let parts = EngineParts {
            mac: BOX,
            seed: [7; 32],
            store_memory: 4 << 20,
            flow_memory: 8 << 20,
        };
        let config = Config::parse(SWITCH).unwrap();
        Bench {
            engine: Engine::new(&config, parts, Instant::ZERO),
            now: 0,
        }
    }

    /// Hands in a frame and gives what leaves, without the box's own ARP requests for its peer.
    fn pass(&mut self, port: Port, frame: &[u8]) -> Vec<(Port, Vec<u8>)> {
        let now = Instant::from_millis(self.now);
        self.engine.receive(now, port, frame);
        self.poll()
    }

    fn poll(&mut self) -> Vec<(Port, Vec<u8>)> {
        let now = Instant::from_millis(self.now);
        let mut out = vec![];
        self.engine.poll(now, &mut |port, frame| {
            let own_request = frame[6..12] == BOX && frame[12..14] == [8, 6] && frame[21] == 1;
            if !own_request {
                out.push((port, frame.to_vec()));
            }
        });
        out
    }

    fn ports(&mut self, port: Port, frame: &[u8]) -> Vec<Port> {
        let out = self.pass(port, frame);
        assert!(
            out.iter().all(|(_, copy)| copy == frame),
            "changed on the way"
        );
        out.into_iter().map(|(port, _)| port).collect()
    }
}

fn ethernet(destination: [u8; 6], source: [u8; 6], ethertype: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

fn arp(operation: ArpOperation, source: [u8; 6], from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(source),
        source_protocol_addr: from,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let mut body = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut body));
    ethernet([0xff; 6], source, 0x0806, &body)
}

fn ipv4(to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: A_ADDRESS,
        dst_addr: to,
        next_header: protocol,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut packet = vec![0; repr.buffer_len()];
    repr.emit(
        &mut Ipv4Packet::new_unchecked(&mut packet),
        &ChecksumCapabilities::default(),
    );
    packet.extend_from_slice(payload);
    packet
}

fn syn(to: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: 40_000,
        dst_port: 80,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1000),
        ack_number: None,
        window_len: 64_000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut segment = vec![0; 20];
    let (from, to_address) = (IpAddress::Ipv4(A_ADDRESS), IpAddress::Ipv4(to));
    repr.emit(
        &mut TcpPacket::new_unchecked(&mut segment),
        &from,
        &to_address,
        &ChecksumCapabilities::default(),
    );
    segment.extend_from_slice(options);
    let mut packet = TcpPacket::new_unchecked(&mut segment);
    packet.set_header_len((20 + options.len()) as u8);
    packet.fill_checksum(&from, &to_address);
    ethernet(B, A, 0x0800, &ipv4(to, IpProtocol::Tcp, &segment))
}

#[test]
fn frames_of_every_kind_pass_unchanged() {
    let mut bench = Bench::new();
    for ethertype in [0x86dd, 0x8100, 0x88a8, 0x8847, 0x88cc, 0x0026, 0x0800] {
        let frame = ethernet(B, A, ethertype, &[0x5a; 60]);
        assert_eq!(
            bench.ports(Port::Lan, &frame),
            [Port::Wan, Port::Guest],
            "{ethertype:x}"
        );
    }
    // Spanning tree too: a cable would.
    let bpdu = ethernet([1, 0x80, 0xc2, 0, 0, 0], A, 0x0026, &[0; 46]);
    assert_eq!(bench.ports(Port::Wan, &bpdu), [Port::Lan, Port::Guest]);
    // IPv4 fragments, even of TCP to a served prefix.
    let mut fragment = syn(SERVER, &[]);
    fragment[14 + 6] = 0x20;
    assert_eq!(bench.ports(Port::Lan, &fragment), [Port::Wan, Port::Guest]);
}

#[test]
fn known_stations_get_their_frames_alone() {
    let mut bench = Bench::new();
    bench.ports(Port::Wan, &ethernet(A, B, 0x86dd, &[0; 46]));
    assert_eq!(
        bench.ports(Port::Lan, &ethernet(B, A, 0x86dd, &[0; 46])),
        [Port::Wan]
    );
    assert_eq!(
        bench.ports(
            Port::Guest,
            &ethernet(A, [2, 0, 0, 0, 1, 9], 0x86dd, &[0; 46])
        ),
        [Port::Lan]
    );
    // Not back to where it came from.
    assert_eq!(
        bench.ports(Port::Wan, &ethernet(B, A, 0x86dd, &[0; 46])),
        []
    );
    assert_eq!(bench.engine.statistics().stations, 3);
}

#[test]
fn runts_and_giants_and_the_boxs_own_address_are_dropped() {
    let mut bench = Bench::new();
    assert_eq!(bench.ports(Port::Lan, &[0; 13]), []);
    assert_eq!(bench.ports(Port::Lan, &[]), []);
    assert_eq!(bench.ports(Port::Lan, &[2; 20_000]), []);
    assert_eq!(
        bench.ports(Port::Wan, &ethernet(A, BOX, 0x86dd, &[0; 46])),
        []
    );
    let drops = bench.engine.statistics().drops;
    assert_eq!((drops.bad_length, drops.own_source), (3, 1));
}

#[test]
fn the_box_answers_arp_and_ping_on_every_port() {
    for port in [Port::Lan, Port::Wan, Port::Guest] {
        let mut bench = Bench::new();
        let request = arp(ArpOperation::Request, A, A_ADDRESS, BOX_ADDRESS);
        let out = bench.pass(port, &request);
        let replies: Vec<_> = out
            .iter()
            .filter(|(_, frame)| frame[6..12] == BOX)
            .collect();
        let [(reply_port, reply)] = replies[..] else {
            panic!("{out:?}")
        };
        assert_eq!((*reply_port, &reply[..6]), (port, &A[..]));
        assert_eq!(reply[22..28], BOX);
        // The broadcast itself goes on, as through any switch.
        assert_eq!(out.len(), 3);

        let echo = Icmpv4Repr::EchoRequest {
            ident: 5,
            seq_no: 6,
            data: b"are you there?",
        };
        let mut message = vec![0; echo.buffer_len()];
        let checksums = ChecksumCapabilities::default();
        echo.emit(&mut Icmpv4Packet::new_unchecked(&mut message), &checksums);
        let packet = ipv4(BOX_ADDRESS, IpProtocol::Icmp, &message);
        let out = bench.pass(port, &ethernet(BOX, A, 0x0800, &packet));
        let [(reply_port, reply)] = &out[..] else {
            panic!("{out:?}")
        };
        assert_eq!(*reply_port, port);
        let frame = EthernetFrame::new_checked(&reply[..]).unwrap();
        assert_eq!(frame.ethertype(), EthernetProtocol::Ipv4);
        let ip = Ipv4Packet::new_checked(frame.payload()).unwrap();
        assert!(ip.verify_checksum());
        let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert_eq!(
            Icmpv4Repr::parse(&icmp, &checksums).unwrap(),
            Icmpv4Repr::EchoReply {
                ident: 5,
                seq_no: 6,
                data: b"are you there?"
            }
        );
    }
}

#[test]
fn tcp_to_the_box_is_refused_not_ignored() {
    let mut bench = Bench::new();
    let mut frame = syn(BOX_ADDRESS, &[]);
    frame[..6].copy_from_slice(&BOX);
    let out = bench.pass(Port::Lan, &frame);
    let [(Port::Lan, reply)] = &out[..] else {
        panic!("{out:?}")
    };
    let tcp = TcpPacket::new_checked(&reply[34..]).unwrap();
    assert!(tcp.rst() && tcp.ack_number() == TcpSeqNumber(1001));
}

#[test]
fn each_syn_has_its_reason() {
    let mut bench = Bench::new();
    let md5 = [
        19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 1,
    ];
    let ao = [29, 4, 1, 2];
    let mut damaged = syn(SERVER, &[]);
    damaged[14 + 20 + 16] ^= 1;
    let mut with_ip_options = syn(SERVER, &[]);
    with_ip_options.splice(34..34, [1, 1, 1, 0]);
    with_ip_options[14] = 0x46;
    let total = (with_ip_options.len() - 14) as u16;
    with_ip_options[16..18].copy_from_slice(&total.to_be_bytes());
    for frame in [
        syn(SERVER, &[]),
        syn(Ipv4Addr::new(192, 0, 2, 1), &[]),
        syn(SERVER, &md5),
        syn(SERVER, &ao),
        // An option that claims to be longer than there is room.
        syn(SERVER, &[8, 200, 1, 1]),
        damaged,
        with_ip_options,
    ] {
        assert_eq!(bench.ports(Port::Lan, &frame), [Port::Wan, Port::Guest]);
    }
    // The destination is on this side of the line, wide as the prefix may be.
    bench.pass(Port::Guest, &ethernet(A, B, 0x0800, &[0; 46]));
    assert_eq!(bench.ports(Port::Lan, &syn(SERVER, &[])), [Port::Guest]);
    assert_eq!(bench.engine.statistics().syns.local, 1);
    // From the line nothing is intercepted, and so nothing counted.
    bench.ports(Port::Wan, &syn(SERVER, &[]));
    let syns = bench.engine.statistics().syns;
    let reasons = (
        syns.tunnel_down,
        syns.no_peer,
        syns.signed,
        syns.malformed,
        syns.ip_options,
    );
    assert_eq!(reasons, (1, 1, 2, 2, 1), "{syns:?}");
    assert_eq!(syns.optimised + syns.flow_limit + syns.already_bridged, 0);
}

#[test]
fn a_bridged_syn_that_nothing_answers_is_complained_of_after_five_seconds() {
    for answered in [false, true] {
        let mut bench = Bench::new();
        bench.pass(Port::Lan, &syn(SERVER, &[]));
        if answered {
            // A SYN-ACK from the line, whatever is in it.
            let mut answer = syn(SERVER, &[]);
            let (from, to) = (answer[26..30].to_vec(), answer[30..34].to_vec());
            answer[26..30].copy_from_slice(&to);
            answer[30..34].copy_from_slice(&from);
            answer[34..38].copy_from_slice(&[0, 80, 0x9c, 0x40]);
            answer[47] = 0x12;
            answer[..6].copy_from_slice(&A);
            answer[6..12].copy_from_slice(&B);
            bench.pass(Port::Wan, &answer);
        }
        bench.now = 4900;
        assert_eq!(bench.poll(), []);
        bench.now = 5000;
        let out = bench.poll();
        assert_eq!(
            bench.engine.statistics().syns_unanswered,
            u64::from(!answered)
        );
        if answered {
            assert_eq!(out, []);
            continue;
        }
        let [(Port::Lan, frame)] = &out[..] else {
            panic!("{out:?}")
        };
        assert_eq!((&frame[..6], &frame[6..12]), (&A[..], &B[..]));
        let ip = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        assert!(ip.verify_checksum() && ip.dst_addr() == A_ADDRESS);
        let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!((ip.payload()[0], ip.payload()[1]), (3, 1));
        // It quotes the SYN to the letter: addresses, ports and sequence number are what the client looks for.
        assert_eq!(ip.payload()[8..36], syn(SERVER, &[])[14..42]);
    }
}

#[test]
fn statistics_are_small_json() {
    let bench = Bench::new();
    let text = serde_json::to_string(&bench.engine.statistics()).unwrap();
    assert!(text.len() < 4096, "{} bytes", text.len());
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["tunnel"]["configured"], true);
    assert_eq!(value["tunnel"]["up"], false);
    assert_eq!(value["wan"]["tx_bytes"], 0);
    assert_eq!(value["syns"]["tunnel_down"], 0);
}

/// A frame that arrives allocates nothing, from the very first on: not for more stations than the table holds, not for more frames at once than
/// wait, not for connections that are bridged because the tunnel is down, nor for what is said to the box itself.
#[test]
fn frames_that_arrive_allocate_nothing() {
    let mut bench = Bench::new();
    let station = |number: u16| {
        let [high, low] = number.to_be_bytes();
        [2, 0, 0, 9, high, low]
    };
    let mut frames = vec![];
    for number in 0..6000 {
        let source = station(number);
        let [high, low] = number.to_be_bytes();
        let client = Ipv4Addr::new(10, 77, 64 + high, low);
        let mut opening = floods::syn((client, 40_000), (SERVER, 80), 1000);
        opening[..6].copy_from_slice(&B);
        opening[6..12].copy_from_slice(&source);
        frames.push(opening);
        frames.push(ethernet(B, source, 0x86dd, &[0x5a; 1500]));
        frames.push(arp(ArpOperation::Request, source, client, BOX_ADDRESS));
        let mut reset = syn(BOX_ADDRESS, &[]);
        reset[..6].copy_from_slice(&BOX);
        frames.push(reset);
    }
    for burst in frames.chunks(2000) {
        let now = Instant::from_millis(bench.now);
        let engine = &mut bench.engine;
        let counted = allocation_counter::measure(|| {
            for frame in burst {
                engine.receive(now, Port::Lan, frame);
            }
        });
        assert_eq!(counted.count_total, 0, "{counted:?}");
        while !bench.poll().is_empty() {}
        // Some SYNs are overdue, stations and neighbours age.
        bench.now += 20_000;
    }
    let statistics = bench.engine.statistics();
    assert!(statistics.drops.no_room > 0 && statistics.syns_unanswered > 0);
    assert_eq!(statistics.stations, 4096);
}
