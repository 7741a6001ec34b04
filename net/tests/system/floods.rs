//! Floods of SYNs that nobody follows up: who means it is optimised all the same, and memory keeps to its bound.

use std::net::Ipv4Addr;
use std::time::Duration;

use outpost_net::Port;
use outpost_net::engine::working_memory;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::host::{Close, Script};
use crate::line::{LineConfig, Random};
use crate::transfers::BOTH_FINISHED;
use crate::world::{SERVER, Site, World};

/// Nobody on the server's LAN has it.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 99);
const FLOODER: [u8; 6] = [2, 0, 0, 0, 1, 0x66];
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 1, 0x67];

/// A SYN as an ordinary client sends it.
pub fn syn(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), sequence: u32) -> Vec<u8> {
    let tcp = TcpRepr {
        src_port: from.1,
        dst_port: to.1,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(sequence as i32),
        ack_number: None,
        window_len: 64_000,
        window_scale: Some(7),
        max_seg_size: Some(1460),
        sack_permitted: true,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ip = Ipv4Repr {
        src_addr: from.0,
        dst_addr: to.0,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let checksums = ChecksumCapabilities::default();
    let mut frame = vec![0; 14 + 20 + tcp.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
    ethernet.set_src_addr(EthernetAddress(FLOODER));
    ethernet.set_dst_addr(EthernetAddress(GATEWAY));
    ethernet.set_ethertype(EthernetProtocol::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
    ip.emit(&mut packet, &checksums);
    tcp.emit(
        &mut TcpPacket::new_unchecked(packet.payload_mut()),
        &IpAddress::Ipv4(from.0),
        &IpAddress::Ipv4(to.0),
        &checksums,
    );
    frame
}

struct Flood {
    flow_memory: usize,
    /// SYNs a second.
    rate: u64,
    /// Everyone's address, or one.
    spoofed: bool,
    /// To servers that answer, or to one that does not.
    open_ports: u16,
}

/// A flood for three seconds, with honest connections in the midst of it.
fn survive(flood: &Flood) {
    const FIRST_PORT: u16 = 2000;
    let mut random = Random::new(9);
    let mut world = World::new(9, LineConfig::CLEAN);
    world.flow_memory = flood.flow_memory;
    world.power_on(Site::Branch);
    world.power_on(Site::Core);
    world.taken = Some(Default::default());
    world.wait_up();
    for number in 0..flood.open_ports {
        let waits = Script::send(vec![]);
        world.server().listen(FIRST_PORT + number, waits);
    }
    let mut pairs = vec![];
    let gap = Duration::from_micros(1_000_000 / flood.rate);
    let mut most = [0; 2];
    for number in 0..3 * flood.rate {
        let from = match flood.spoofed {
            true => Ipv4Addr::from(0x0a4d_0000 | random.below(1 << 16) as u32 | 0x8000),
            false => Ipv4Addr::new(10, 77, 1, 66),
        };
        let to = match flood.open_ports {
            0 => (NOBODY, 80),
            ports => (SERVER, FIRST_PORT + (number % u64::from(ports)) as u16),
        };
        let port = 1024 + (number % 60_000) as u16;
        world.send_to_box(Site::Branch, Port::Lan, syn((from, port), to, 77));
        if number % flood.rate == flood.rate / 2 {
            let file = random.bytes(100_000);
            let pair = world.connect(
                80 + pairs.len() as u16,
                Script::send(b"GET".to_vec()),
                Script::send(file.clone()).close(Close::AfterSending),
            );
            pairs.push((pair, file));
        }
        world.run_for(gap);
        for (site, most) in [Site::Branch, Site::Core].into_iter().zip(&mut most) {
            *most = world.statistics(site).flows.memory.max(*most);
        }
    }
    world.run_for(Duration::from_secs(10));
    let statistics = world.statistics(Site::Branch);
    println!(
        "most memory {most:?}, {:?}, {:?}",
        statistics.syns, statistics.flows
    );
    for (pair, file) in &pairs {
        assert_eq!(world.outcomes(*pair), BOTH_FINISHED);
        assert!(world.client_connection(*pair).received == *file);
    }
    // Of the flood nothing is finished, so these were optimised.
    assert_eq!(statistics.flows.finished, 3);
    assert!(
        most.iter().all(|&most| most <= flood.flow_memory),
        "{most:?}"
    );
    for taken in world.taken.unwrap() {
        let most = taken.most as usize;
        assert!(most <= working_memory(flood.flow_memory), "{taken:?}");
    }
}

#[test]
fn syns_from_everywhere_to_servers_that_answer_keep_nobody_out() {
    survive(&Flood {
        flow_memory: 8 << 20,
        rate: 1500,
        spoofed: true,
        open_ports: 250,
    });
}

#[test]
fn syns_from_everywhere_to_nobody_keep_nobody_out() {
    survive(&Flood {
        flow_memory: 16 << 20,
        rate: 1500,
        spoofed: true,
        open_ports: 0,
    });
}

#[test]
fn one_client_that_floods_harms_only_itself() {
    survive(&Flood {
        flow_memory: 8 << 20,
        rate: 10_000,
        spoofed: false,
        open_ports: 250,
    });
}

#[test]
fn a_silent_connection_holds_little_until_it_speaks() {
    for client_speaks in [true, false] {
        let mut world = World::new(10, LineConfig::CLEAN);
        world.wait_up();
        let silent = || Script::send(vec![]).close(Close::Never);
        let pair = world.connect(80, silent(), silent());
        world.run_for(Duration::from_secs(60));
        for site in [Site::Branch, Site::Core] {
            let flows = world.statistics(site).flows;
            assert_eq!((flows.open, flows.small), (1, 1), "{site:?}");
            assert!(flows.memory <= 8192, "{site:?}: {} bytes", flows.memory);
        }
        let file = Random::new(10).bytes(3_000_000);
        let (speaks, listens) = match client_speaks {
            true => (0, 1),
            false => (1, 0),
        };
        let number = [pair.client, pair.server];
        world.hosts[speaks].connections[number[speaks]].script =
            Script::send(file.clone()).close(Close::AfterSending);
        world.hosts[listens].connections[number[listens]].script = Script::send(vec![]);
        assert_eq!(world.finish(pair, Duration::from_secs(30)), BOTH_FINISHED);
        assert!(world.hosts[listens].connections[number[listens]].received == file);
    }
}
