//! Frames that tests send and look for.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice,
};

/// The MAC address of the station on the LAN.
pub const LAN_STATION: [u8; 6] = [0x52, 0x54, 0, 0, 1, 0x10];
/// The MAC address of the station on the WAN side.
pub const WAN_STATION: [u8; 6] = [0x52, 0x54, 0, 0, 2, 0x10];
/// The MAC address of a host on the line between two boxes.
pub const LINE_STATION: [u8; 6] = [0x52, 0x54, 0, 0, 3, 0x10];
const BROADCAST: [u8; 6] = [0xff; 6];
/// "Local experimental EtherType 1" (IEEE 802-2014, 9.2.4).
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// How much of a frame of [`raw`] says which one it is.
pub const TAGGED: usize = 14 + 32;

/// A frame of no protocol, with a payload that is its own.
pub fn raw(from: [u8; 6], to: [u8; 6], tag: &[u8], length: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from[..], &EXPERIMENTAL[..], tag].concat();
    let mut next = 0u8;
    frame.resize_with(length.max(60), || {
        next = next.wrapping_mul(31).wrapping_add(7);
        next
    });
    frame
}

/// "Who has `wanted`?", from the LAN's station.
///
/// # Errors
/// Never, so far as is known.
pub fn arp_request(own: Ipv4Addr, wanted: Ipv4Addr) -> Result<Vec<u8>> {
    arp(ArpOperation::REQUEST, own, BROADCAST, [0; 6], wanted).context("an ARP request")
}

/// An ARP packet of the LAN's station.
fn arp(
    operation: ArpOperation,
    own: Ipv4Addr,
    to: [u8; 6],
    target: [u8; 6],
    target_address: Ipv4Addr,
) -> Result<Vec<u8>> {
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &LAN_STATION,
        &own.octets(),
        &target,
        &target_address.octets(),
    )?;
    let builder = PacketBuilder::ethernet2(LAN_STATION, to).arp(arp);
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame)?;
    frame.resize(60, 0);
    Ok(frame)
}

/// The MAC address in a frame that answers "who has `wanted`?".
pub fn arp_answer(frame: &[u8], wanted: Ipv4Addr) -> Option<[u8; 6]> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(NetSlice::Arp(arp)) = packet.net else {
        return None;
    };
    if arp.operation() != ArpOperation::REPLY || arp.sender_protocol_addr() != wanted.octets() {
        return None;
    }
    arp.sender_hw_addr().try_into().ok()
}

/// What the LAN's station says to a frame that asks for its address.
pub fn arp_reply_to(frame: &[u8], own: Ipv4Addr) -> Option<Vec<u8>> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(NetSlice::Arp(asked)) = packet.net else {
        return None;
    };
    if asked.operation() != ArpOperation::REQUEST || asked.target_protocol_addr() != own.octets() {
        return None;
    }
    let asker: [u8; 6] = asked.sender_hw_addr().try_into().ok()?;
    let address: [u8; 4] = asked.sender_protocol_addr().try_into().ok()?;
    arp(ArpOperation::REPLY, own, asker, asker, address.into()).ok()
}

/// An echo request from the LAN's station.
///
/// # Errors
/// Never, so far as is known.
pub fn ping(own: Ipv4Addr, to: Ipv4Addr, mac: [u8; 6], sequence: u16) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(LAN_STATION, mac)
        .ipv4(own.octets(), to.octets(), 64)
        .icmpv4_echo_request(0x4f70, sequence);
    let mut frame = Vec::with_capacity(builder.size(PING.len()));
    builder.write(&mut frame, PING).context("an echo request")?;
    frame.resize(frame.len().max(60), 0);
    Ok(frame)
}

const PING: &[u8] = b"is anybody there?";

/// A SYN from the host on the line.
///
/// # Errors
/// Never, so far as is known.
pub fn syn_from_line(own: SocketAddrV4, to: SocketAddrV4, mac: [u8; 6]) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(LINE_STATION, mac)
        .ipv4(own.ip().octets(), to.ip().octets(), 64)
        .tcp(own.port(), to.port(), 1, 65_000)
        .syn();
    let mut frame = Vec::with_capacity(60);
    builder.write(&mut frame, &[]).context("a SYN")?;
    frame.resize(60, 0);
    Ok(frame)
}

/// True if the frame carries TCP from `from`.
pub fn is_tcp_from(frame: &[u8], from: SocketAddrV4) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return false;
    };
    matches!(
        (&packet.net, &packet.transport),
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp)))
            if ip.header().source_addr() == *from.ip() && tcp.source_port() == from.port()
    )
}

/// True if the frame answers [`ping`] from `from`.
pub fn is_pong(frame: &[u8], from: Ipv4Addr, sequence: u16) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return false;
    };
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) =
        (&packet.net, &packet.transport)
    else {
        return false;
    };
    let etherparse::Icmpv4Type::EchoReply(header) = icmp.icmp_type() else {
        return false;
    };
    ip.header().source_addr() == from
        && header.id == 0x4f70
        && header.seq == sequence
        && icmp.payload() == PING
}

/// Frames that are wrong in every layer, the same each time: cut short, lengths and offsets that lie, and noise.
pub fn malformed() -> Vec<Vec<u8>> {
    let addresses = (Ipv4Addr::new(10, 77, 1, 10), Ipv4Addr::new(10, 77, 2, 10));
    let mut whole = Vec::new();
    for mac in [WAN_STATION, BROADCAST] {
        whole.extend(ping(addresses.0, addresses.1, mac, 1).ok());
        for port in [80, 3301] {
            let ip = || {
                PacketBuilder::ethernet2(LAN_STATION, mac).ipv4(
                    addresses.0.octets(),
                    addresses.1.octets(),
                    64,
                )
            };
            let (mut tcp, mut udp) = (Vec::new(), Vec::new());
            if ip()
                .tcp(1025, port, 7, 1000)
                .syn()
                .write(&mut tcp, b"data on a SYN")
                .is_ok()
            {
                whole.push(tcp);
            }
            if ip()
                .udp(1025, port)
                .write(&mut udp, b"not a tunnel packet")
                .is_ok()
            {
                whole.push(udp);
            }
        }
    }
    whole.extend(arp_request(addresses.0, Ipv4Addr::new(10, 77, 1, 1)).ok());
    let mut frames = Vec::new();
    for frame in &whole {
        frames.extend(
            (1..frame.len())
                .step_by(3)
                .map(|length| frame[..length].to_vec()),
        );
        for at in (12..frame.len().min(74)).step_by(2) {
            for value in [0x00, 0xff, 0x0f, 0xf0] {
                let mut wrong = frame.clone();
                wrong[at] = value;
                frames.push(wrong);
            }
        }
    }
    // xorshift64 (Marsaglia, 2003)
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for length in 1..200 {
        frames.push(
            (0..length * 7)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_le_bytes()[0]
                })
                .collect(),
        );
    }
    frames.retain(|frame| frame.len() <= 1514);
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 10);
    const BOX: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);

    #[test]
    fn questions_are_no_answers() {
        let request = arp_request(OWN, BOX).unwrap();
        assert_eq!(request.len(), 60);
        assert_eq!(arp_answer(&request, BOX), None);
        assert!(!is_pong(&ping(OWN, BOX, [2; 6], 9).unwrap(), BOX, 9));
    }

    #[test]
    fn answers_are_recognised() {
        let mut answer = arp_request(BOX, OWN).unwrap();
        answer[21] = 2; // operation: reply (RFC 826)
        assert_eq!(arp_answer(&answer, BOX), Some(LAN_STATION));
        assert_eq!(arp_answer(&answer, OWN), None);
        let builder = PacketBuilder::ethernet2(WAN_STATION, LAN_STATION)
            .ipv4(BOX.octets(), OWN.octets(), 64)
            .icmpv4_echo_reply(0x4f70, 9);
        let mut pong = Vec::new();
        builder.write(&mut pong, PING).unwrap();
        assert!(is_pong(&pong, BOX, 9));
        assert!(!is_pong(&pong, BOX, 8));
        pong.resize(80, 0);
        assert!(is_pong(&pong, BOX, 9), "padding does not matter");
    }

    #[test]
    fn tcp_is_told_by_where_it_comes_from() {
        let (own, page) = (SocketAddrV4::new(OWN, 1025), SocketAddrV4::new(BOX, 9090));
        let syn = syn_from_line(own, page, [2; 6]).unwrap();
        assert!(is_tcp_from(&syn, own));
        assert!(!is_tcp_from(&syn, page));
        assert!(!is_tcp_from(&ping(OWN, BOX, [2; 6], 1).unwrap(), own));
    }

    #[test]
    fn there_is_a_lot_of_nonsense() {
        let frames = malformed();
        assert!(frames.len() > 500, "{}", frames.len());
        assert!(frames.iter().any(|frame| frame.len() == 1));
        assert_eq!(frames, malformed());
    }
}
