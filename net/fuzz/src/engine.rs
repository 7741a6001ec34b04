//! The target for frames: two boxes with their tunnel up, and anything at their ports.

use core::net::Ipv4Addr;
use core::time::Duration;
use std::collections::BTreeMap;

use outpost_config::Config;
use outpost_net::time::Instant;
use outpost_net::{Engine, EngineParts, Port};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket,
    TcpRepr, TcpSeqNumber, UdpPacket,
};

use crate::Target;
use crate::script::{Script, put_piece};

/// The public keys of the private keys [1; 32] and [2; 32] are made when the configuration is written.
const BOX_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const BOXES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 1, 1), Ipv4Addr::new(10, 77, 2, 1)];
const CLIENT: (Ipv4Addr, [u8; 6]) = (Ipv4Addr::new(10, 77, 1, 10), [2, 0, 0, 0, 1, 10]);
const SERVER: (Ipv4Addr, [u8; 6]) = (Ipv4Addr::new(10, 77, 2, 10), [2, 0, 0, 0, 2, 10]);
const BROADCAST: [u8; 6] = [0xff; 6];
/// The longest frame that is bridged.
const LONGEST: usize = 9216 + 14 + 4;

/// What an injected frame is made right in before it is handed in.
const CHECKSUMS: u8 = 0x10;
/// … and that it acknowledges what the box last said to its sender.
const ACKNOWLEDGES: u8 = 0x20;

/// Addresses and ports of a segment.
type Way = (Ipv4Addr, u16, Ipv4Addr, u16);

struct Bench {
    boxes: [Engine; 2],
    now: Instant,
    /// Frames that came out of the LAN ports, and of the guest's.
    out: u64,
    /// What comes next in the segments that came out, by their way.
    next: BTreeMap<Way, u32>,
    /// The last few frames that came out of each LAN port.
    last: [Vec<Vec<u8>>; 2],
}

fn base64(bytes: &[u8; 32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let shown = digit <= chunk.len();
            let at = (word >> (18 - 6 * digit)) as usize & 63;
            out.push(if shown { char::from(DIGITS[at]) } else { '=' });
        }
    }
    out
}

impl Bench {
    fn new() -> Bench {
        let keys = [[1; 32], [2; 32]];
        let publics = keys.map(|key| base64(&outpost_net::tunnel::public_key(&key)));
        let texts = [
            format!(
                "role = \"branch\"\nprivate_key = \"{}\"\n[management]\naddress = \"10.77.1.1/16\"\n[[peer]]\nname = \"core\"\n\
                 public_key = \"{}\"\nendpoint = \"10.77.2.1:3301\"\nprefixes = [\"10.77.2.0/24\"]\n",
                base64(&keys[0]),
                publics[1]
            ),
            format!(
                "role = \"core\"\nprivate_key = \"{}\"\n[management]\naddress = \"10.77.2.1/16\"\n[[peer]]\nname = \"branch\"\n\
                 public_key = \"{}\"\n",
                base64(&keys[1]),
                publics[0]
            ),
        ];
        let now = Instant::from_millis(1);
        let mut at = 0;
        let boxes = texts.map(|text| {
            let parts = EngineParts {
                mac: BOX_MACS[at],
                seed: [7 + at as u8; 32],
                store_memory: 2 << 20,
                flow_memory: 1 << 20,
            };
            at += 1;
            let config = Config::parse(&text).expect("a good configuration");
            Engine::new(&config, parts, now)
        });
        let mut bench = Bench {
            boxes,
            now,
            out: 0,
            next: BTreeMap::new(),
            last: Default::default(),
        };
        bench.run(40);
        bench
    }

    /// Carries frames between the WAN ports for so many milliseconds.
    fn run(&mut self, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        loop {
            let mut turns = 0;
            loop {
                turns += 1;
                assert!(turns < 2000, "the boxes never fall silent");
                let mut frames = vec![];
                for (at, engine) in self.boxes.iter_mut().enumerate() {
                    engine.poll(self.now, &mut |port, frame| {
                        frames.push((at, port, frame.to_vec()))
                    });
                }
                let busy = |it: &Engine| it.next_wakeup(self.now).is_some_and(|at| at <= self.now);
                let idle = frames.is_empty() && !self.boxes.iter().any(busy);
                assert!(frames.len() < 2000, "{} frames at once", frames.len());
                for (at, port, frame) in frames {
                    self.came(at, port, frame);
                }
                if idle {
                    break;
                }
            }
            let wakes = self.boxes.iter().filter_map(|it| it.next_wakeup(self.now));
            let next = wakes
                .min()
                .map(|at| at.max(self.now + Duration::from_micros(100)));
            match next.filter(|at| *at < until) {
                Some(at) => self.now = at,
                None => break,
            }
        }
        self.now = until;
    }

    fn came(&mut self, at: usize, port: Port, frame: Vec<u8>) {
        assert!(
            (14..=LONGEST).contains(&frame.len()),
            "a frame of {} bytes",
            frame.len()
        );
        let own = frame[6..12] == BOX_MACS[at];
        if own {
            check_own(&frame);
        }
        if port == Port::Wan {
            self.boxes[1 - at].receive(self.now, Port::Wan, &frame);
            return;
        }
        self.out += 1;
        if let Some((way, after)) = segment(&frame) {
            self.next.insert(way, after);
        }
        if port == Port::Lan {
            let last = &mut self.last[at];
            last.push(frame);
            let excess = last.len().saturating_sub(16);
            last.drain(..excess);
        }
    }

    /// Both boxes still do what they are there for.
    fn must_work(&mut self) {
        for at in 0..2 {
            self.last[at].clear();
            let station = [6, 0, 0, 0, 9, at as u8];
            let asker = Ipv4Addr::new(10, 77, 9, 1 + at as u8);
            let ask = arp(true, station, asker, BROADCAST, BOXES[at]);
            self.boxes[at].receive(self.now, Port::Lan, &ask);
            self.run(1);
            let answered = self.last[at].iter().any(|frame| {
                frame[..6] == station && frame[6..12] == BOX_MACS[at] && frame[12..14] == [8, 6]
            });
            assert!(answered, "box {at} does not answer for its address");
            self.last[1 - at].clear();
            let mut other = vec![0; 64];
            other[..6].copy_from_slice(&BROADCAST);
            other[6..12].copy_from_slice(&station);
            other[12..14].copy_from_slice(&[0x88, 0xb5]);
            self.boxes[at].receive(self.now, Port::Lan, &other);
            self.run(1);
            assert!(
                self.last[1 - at].contains(&other),
                "box {at} does not bridge"
            );
        }
    }
}

/// What a box writes itself is well-formed.
fn check_own(frame: &[u8]) {
    let view = EthernetFrame::new_checked(frame).expect("an Ethernet frame");
    if view.ethertype() != EthernetProtocol::Ipv4 {
        return;
    }
    let ip = Ipv4Packet::new_checked(view.payload()).expect("an IPv4 packet");
    assert!(ip.verify_checksum(), "wrong IPv4 checksum: {frame:02x?}");
    let (from, to) = (
        IpAddress::Ipv4(ip.src_addr()),
        IpAddress::Ipv4(ip.dst_addr()),
    );
    let right = match ip.next_header() {
        IpProtocol::Tcp => {
            TcpPacket::new_checked(ip.payload()).is_ok_and(|it| it.verify_checksum(&from, &to))
        }
        IpProtocol::Udp => {
            UdpPacket::new_checked(ip.payload()).is_ok_and(|it| it.verify_checksum(&from, &to))
        }
        IpProtocol::Icmp => {
            Icmpv4Packet::new_checked(ip.payload()).is_ok_and(|it| it.verify_checksum())
        }
        _ => true,
    };
    assert!(right, "wrong checksum: {frame:02x?}");
}

/// The way of a segment, and the sequence number after it.
fn segment(frame: &[u8]) -> Option<(Way, u32)> {
    let view = EthernetFrame::new_checked(frame).ok()?;
    let ip = Ipv4Packet::new_checked(view.payload()).ok()?;
    if view.ethertype() != EthernetProtocol::Ipv4 || ip.next_header() != IpProtocol::Tcp {
        return None;
    }
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    let len = tcp.payload().len() + usize::from(tcp.syn()) + usize::from(tcp.fin());
    let way = (ip.src_addr(), tcp.src_port(), ip.dst_addr(), tcp.dst_port());
    Some((way, (tcp.seq_number().0 as u32).wrapping_add(len as u32)))
}

/// Makes the checksums of a frame right, and its acknowledgement number, as `how` says.
fn mend(frame: &mut [u8], how: u8, next: &BTreeMap<Way, u32>) -> Option<()> {
    let mut view = EthernetFrame::new_checked(frame).ok()?;
    if view.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let mut ip = Ipv4Packet::new_checked(view.payload_mut()).ok()?;
    if how & CHECKSUMS != 0 {
        ip.fill_checksum();
    }
    let (from, to, protocol) = (ip.src_addr(), ip.dst_addr(), ip.next_header());
    let body = ip.payload_mut();
    match protocol {
        IpProtocol::Tcp => {
            let mut tcp = TcpPacket::new_checked(body).ok()?;
            if how & ACKNOWLEDGES != 0
                && let Some(next) = next.get(&(to, tcp.dst_port(), from, tcp.src_port()))
            {
                tcp.set_ack_number(TcpSeqNumber(*next as i32));
            }
            if how & CHECKSUMS != 0 {
                tcp.fill_checksum(&from.into(), &to.into());
            }
        }
        IpProtocol::Udp if how & CHECKSUMS != 0 => {
            UdpPacket::new_checked(body)
                .ok()?
                .fill_checksum(&from.into(), &to.into());
        }
        IpProtocol::Icmp if how & CHECKSUMS != 0 => {
            Icmpv4Packet::new_checked(body).ok()?.fill_checksum();
        }
        _ => {}
    }
    Some(())
}

fn ethernet(from: [u8; 6], to: [u8; 6], protocol: EthernetProtocol, len: usize) -> Vec<u8> {
    let mut frame = vec![0; 14 + len];
    let mut view = EthernetFrame::new_unchecked(&mut frame[..]);
    view.set_src_addr(EthernetAddress(from));
    view.set_dst_addr(EthernetAddress(to));
    view.set_ethertype(protocol);
    frame
}

fn arp(request: bool, mac: [u8; 6], sender: Ipv4Addr, to: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(mac, to, EthernetProtocol::Arp, 46);
    let repr = ArpRepr::EthernetIpv4 {
        operation: if request {
            ArpOperation::Request
        } else {
            ArpOperation::Reply
        },
        source_hardware_addr: EthernetAddress(mac),
        source_protocol_addr: sender,
        target_hardware_addr: EthernetAddress(to),
        target_protocol_addr: target,
    };
    repr.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
    frame
}

/// A station: address and MAC address.
type Station = (Ipv4Addr, [u8; 6]);

fn ipv4(from: Station, to: Station, protocol: IpProtocol, len: usize) -> Vec<u8> {
    let mut frame = ethernet(from.1, to.1, EthernetProtocol::Ipv4, 20 + len);
    let repr = Ipv4Repr {
        src_addr: from.0,
        dst_addr: to.0,
        next_header: protocol,
        payload_len: len,
        hop_limit: 64,
    };
    repr.emit(
        &mut Ipv4Packet::new_unchecked(&mut frame[14..]),
        &ChecksumCapabilities::default(),
    );
    frame
}

/// A segment; an acknowledgement number is put in later.
fn tcp(
    from: (Station, u16),
    to: (Station, u16),
    sequence: i32,
    control: TcpControl,
    payload: &[u8],
    ack: bool,
) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: from.1,
        dst_port: to.1,
        control,
        seq_number: TcpSeqNumber(sequence),
        ack_number: ack.then_some(TcpSeqNumber(0)),
        window_len: 60_000,
        window_scale: (control == TcpControl::Syn).then_some(2),
        max_seg_size: (control == TcpControl::Syn).then_some(1460),
        sack_permitted: control == TcpControl::Syn,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let mut frame = ipv4(from.0, to.0, IpProtocol::Tcp, repr.buffer_len());
    repr.emit(
        &mut TcpPacket::new_unchecked(&mut frame[34..]),
        &IpAddress::Ipv4(from.0.0),
        &IpAddress::Ipv4(to.0.0),
        &ChecksumCapabilities::default(),
    );
    frame
}

/// Pieces: where and how (a byte: bit 0 the box, bits 1 and 2 the port, bits 3 and 6 whether time passes after it, bit 4
/// checksums are made right, bit 5 acknowledges), then the frame.
pub const FRAMES: Target = Target {
    name: "engine_frames",
    about: "frames at any port of two boxes whose tunnel is up: what they send is well-formed, and they go on bridging",
    run: frames,
    honest: seeds,
    cases: 1000,
    memory: 24 << 20,
};

fn frames(input: &[u8]) {
    let mut bench = Bench::new();
    let mut script = Script(input);
    let mut handed = 0;
    while !script.is_empty() && handed < 300 {
        let piece = script.piece();
        let (how, frame) = piece.split_first().unwrap_or((&0, &[]));
        let mut frame = frame.to_vec();
        mend(&mut frame, *how, &bench.next);
        let port = Port::ALL[usize::from(how >> 1 & 3) % 3];
        bench.boxes[usize::from(how & 1)].receive(bench.now, port, &frame);
        handed += 1;
        match how & 0x48 {
            0x08 => bench.run(20),
            0x40 => bench.run(1500),
            _ => bench.run(0),
        }
    }
    bench.run(30);
    bench.must_work();
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    const MENDED: u8 = CHECKSUMS | ACKNOWLEDGES | 8;
    let boxes = [(BOXES[0], BOX_MACS[0]), (BOXES[1], BOX_MACS[1])];
    let ping = {
        let repr = Icmpv4Repr::EchoRequest {
            ident: 1,
            seq_no: 2,
            data: b"are you there",
        };
        let mut frame = ipv4(CLIENT, boxes[0], IpProtocol::Icmp, repr.buffer_len());
        repr.emit(
            &mut Icmpv4Packet::new_unchecked(&mut frame[34..]),
            &ChecksumCapabilities::default(),
        );
        frame
    };
    let (to_page, page) = ((CLIENT, 40_000), (boxes[0], 9090));
    let pages = vec![
        (MENDED, arp(true, CLIENT.1, CLIENT.0, BROADCAST, BOXES[0])),
        (
            MENDED,
            tcp(to_page, page, 1000, TcpControl::Syn, b"", false),
        ),
        (
            MENDED,
            tcp(to_page, page, 1001, TcpControl::None, b"", true),
        ),
        (
            MENDED,
            tcp(
                to_page,
                page,
                1001,
                TcpControl::Psh,
                b"GET /metrics HTTP/1.1\r\nHost: b\r\n\r\n",
                true,
            ),
        ),
        (
            MENDED,
            tcp(to_page, page, 1036, TcpControl::None, b"", true),
        ),
        (MENDED, tcp(to_page, page, 1036, TcpControl::Fin, b"", true)),
    ];
    let (client, server) = ((CLIENT, 40_001), (SERVER, 80));
    // Bit 0: at the core, where the server is.
    let flow = vec![
        (
            MENDED | 1,
            arp(true, SERVER.1, SERVER.0, BROADCAST, CLIENT.0),
        ),
        (
            MENDED,
            tcp(client, server, 5000, TcpControl::Syn, b"", false),
        ),
        (
            MENDED | 1,
            arp(false, SERVER.1, SERVER.0, BOX_MACS[1], BOXES[1]),
        ),
        (
            MENDED | 1,
            tcp(server, client, 9000, TcpControl::Syn, b"", true),
        ),
        (
            MENDED,
            tcp(client, server, 5001, TcpControl::None, b"", true),
        ),
        (
            MENDED,
            tcp(
                client,
                server,
                5001,
                TcpControl::Psh,
                b"GET / HTTP/1.1\r\n\r\n",
                true,
            ),
        ),
        (
            MENDED | 1,
            tcp(server, client, 9001, TcpControl::Psh, &[b'y'; 900], true),
        ),
        (
            MENDED | 1,
            tcp(server, client, 9901, TcpControl::Fin, b"", true),
        ),
        (
            MENDED,
            tcp(client, server, 5019, TcpControl::Fin, b"", true),
        ),
        (
            MENDED | 1,
            tcp(server, client, 9902, TcpControl::None, b"", true),
        ),
    ];
    let refused = vec![
        (
            MENDED | 1,
            arp(true, SERVER.1, SERVER.0, BROADCAST, CLIENT.0),
        ),
        (
            MENDED,
            tcp(client, server, 5000, TcpControl::Syn, b"", false),
        ),
        (
            MENDED | 1,
            tcp(server, client, 0, TcpControl::Rst, b"", true),
        ),
    ];
    let odd = vec![
        // Of a page's connection that is over: the box once never slept again.
        (MENDED, tcp(to_page, page, 1, TcpControl::None, b"", true)),
        (0, ping.clone()),
        (2, ping.clone()),
        (4, ethernet(CLIENT.1, BROADCAST, EthernetProtocol::Ipv6, 60)),
        (
            0x40,
            tcp(client, server, 1, TcpControl::Fin, b"mid-stream", true),
        ),
        (0, arp(false, BOX_MACS[0], BOXES[0], BROADCAST, BOXES[0])),
    ];
    let mut all = vec![];
    for (name, pieces) in [
        ("ping", vec![(MENDED, ping)]),
        ("page", pages),
        ("flow", flow),
        ("refused", refused),
        ("odd", odd),
    ] {
        let mut script = vec![];
        for (how, frame) in pieces {
            put_piece(&mut script, &[&[how], frame.as_slice()].concat());
        }
        all.push((name, script));
    }
    all
}
