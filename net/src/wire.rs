//! Frames as the engine sees them: one checked look at each, and the few frames that the box writes itself.
//!
//! What cannot be parsed is not an error here: it is [`Payload::Other`], and the switch bridges it as a cable would. TCP
//! towards the hosts is smoltcp's job, not this module's.

use core::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpOption,
    TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
};

/// Length of an Ethernet header, in bytes.
pub const ETHERNET_HEADER: usize = 14;
/// Length of an IPv4 header without options, in bytes.
pub const IPV4_HEADER: usize = 20;
/// Length of a UDP header, in bytes.
pub const UDP_HEADER: usize = 8;
/// The largest IPv4 packet on the box's Ethernet ports, in bytes.
pub const IP_MTU: usize = 1500;

/// TTL of every packet that the box makes itself (RFC 1700's recommended default).
const TTL: u8 = 64;
/// TCP option kinds that sign segments: RFC 2385 (MD5) and RFC 5925 (TCP-AO). A proxy cannot keep them.
const SIGNATURE_OPTIONS: [u8; 2] = [19, 29];

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The broadcast address.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether the address is a multicast or the broadcast address.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

/// The addresses and ports of a TCP connection, named by who opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Who sent the SYN.
    pub client: SocketAddrV4,
    /// To whom.
    pub server: SocketAddrV4,
}

/// A frame after one checked look.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Source MAC address.
    pub source: Mac,
    /// Destination MAC address.
    pub destination: Mac,
    /// What is in it, as far as the engine cares.
    pub payload: Payload<'a>,
}

/// What is in a frame.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// ARP for IPv4 over Ethernet.
    Arp(Arp),
    /// A whole TCP segment with a valid header; checksums are not yet checked.
    Tcp(Segment<'a>),
    /// A whole UDP datagram.
    Udp(Datagram<'a>),
    /// A whole ICMP message.
    Icmp(Icmp<'a>),
    /// Any other IPv4, fragments and bad headers included.
    Ipv4,
    /// Everything else: VLAN-tagged frames, IPv6, LLC, …
    Other,
}

/// An ARP request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// A request, else a reply.
    pub request: bool,
    /// Who sent it.
    pub sender_mac: Mac,
    /// Who sent it.
    pub sender: Ipv4Addr,
    /// Whose MAC is asked for or told.
    pub target: Ipv4Addr,
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The whole IPv4 packet, without what the wire padded.
    pub ip: &'a [u8],
    /// Where it comes from.
    pub source: SocketAddrV4,
    /// Where it goes to.
    pub destination: SocketAddrV4,
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// Acknowledgement number, if the ACK flag is set.
    pub acknowledgement: Option<u32>,
    /// SYN flag.
    pub syn: bool,
    /// FIN flag.
    pub fin: bool,
    /// RST flag.
    pub rst: bool,
    /// Number of payload bytes.
    pub payload_len: usize,
}

/// A UDP datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Where it comes from.
    pub source: SocketAddrV4,
    /// Where it goes to.
    pub destination: SocketAddrV4,
    /// What it carries.
    pub payload: &'a [u8],
}

/// An ICMP message.
#[derive(Clone, Copy, Debug)]
pub struct Icmp<'a> {
    /// Where it comes from.
    pub source: Ipv4Addr,
    /// Where it goes to.
    pub destination: Ipv4Addr,
    /// The message, from its type field on.
    pub message: &'a [u8],
}

/// Why a SYN cannot be answered by a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynFlaw {
    /// Wrong checksum or options that do not parse.
    Malformed,
    /// The IPv4 header has options (source routes, …).
    IpOptions,
    /// The segments are signed (TCP MD5 or TCP-AO).
    Signed,
}

impl<'a> Frame<'a> {
    /// Looks at a frame. `None`: it is shorter than an Ethernet header.
    pub fn parse(frame: &'a [u8]) -> Option<Frame<'a>> {
        let view = EthernetFrame::new_checked(frame).ok()?;
        let payload = match view.ethertype() {
            EthernetProtocol::Arp => parse_arp(view.payload()),
            EthernetProtocol::Ipv4 => parse_ipv4(view.payload()),
            _ => Payload::Other,
        };
        Some(Frame {
            source: Mac(view.src_addr().0),
            destination: Mac(view.dst_addr().0),
            payload,
        })
    }
}

fn parse_arp(payload: &[u8]) -> Payload<'_> {
    let Ok(packet) = ArpPacket::new_checked(payload) else {
        return Payload::Other;
    };
    match ArpRepr::parse(&packet) {
        Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) if matches!(operation, ArpOperation::Request | ArpOperation::Reply) => {
            Payload::Arp(Arp {
                request: operation == ArpOperation::Request,
                sender_mac: Mac(source_hardware_addr.0),
                sender: source_protocol_addr,
                target: target_protocol_addr,
            })
        }
        _ => Payload::Other,
    }
}

fn parse_ipv4(payload: &[u8]) -> Payload<'_> {
    let other = Payload::Ipv4;
    let Ok(packet) = Ipv4Packet::new_checked(payload) else {
        return other;
    };
    if packet.version() != 4 {
        return other;
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Payload::Ipv4;
    }
    let (source, destination) = (packet.src_addr(), packet.dst_addr());
    let Some(ip) = payload.get(..usize::from(packet.total_len())) else {
        return other;
    };
    let Some(body) = ip.get(usize::from(packet.header_len())..) else {
        return other;
    };
    match packet.next_header() {
        IpProtocol::Tcp => match TcpPacket::new_checked(body) {
            Ok(tcp) => Payload::Tcp(Segment {
                ip,
                source: SocketAddrV4::new(source, tcp.src_port()),
                destination: SocketAddrV4::new(destination, tcp.dst_port()),
                sequence: tcp.seq_number().0 as u32,
                acknowledgement: tcp.ack().then(|| tcp.ack_number().0 as u32),
                syn: tcp.syn(),
                fin: tcp.fin(),
                rst: tcp.rst(),
                payload_len: tcp.payload().len(),
            }),
            Err(_) => other,
        },
        IpProtocol::Udp => match UdpPacket::new_checked(body) {
            Ok(udp) => Payload::Udp(Datagram {
                source: SocketAddrV4::new(source, udp.src_port()),
                destination: SocketAddrV4::new(destination, udp.dst_port()),
                payload: udp.payload(),
            }),
            Err(_) => other,
        },
        IpProtocol::Icmp => Payload::Icmp(Icmp {
            source,
            destination,
            message: body,
        }),
        _ => other,
    }
}

impl Segment<'_> {
    /// Whether this opens a connection: a SYN that is nothing else.
    pub fn opens(&self) -> bool {
        self.syn && !self.fin && !self.rst && self.acknowledgement.is_none()
    }

    /// The beginning of the packet, to quote it.
    pub fn quote(&self) -> Quote {
        let mut quote = [0; QUOTE];
        for (to, from) in quote.iter_mut().zip(self.ip) {
            *to = *from;
        }
        quote
    }

    /// Whether this SYN says that its sender scales windows (RFC 7323, 2.2).
    pub fn scales_window(&self) -> bool {
        let Ok(ip) = Ipv4Packet::new_checked(self.ip) else {
            return false;
        };
        let Ok(tcp) = TcpPacket::new_checked(ip.payload()) else {
            return false;
        };
        let mut options = tcp.options();
        while !options.is_empty() {
            match TcpOption::parse(options) {
                Ok((_, TcpOption::EndOfList)) | Err(_) => return false,
                Ok((_, TcpOption::WindowScale(_))) => return true,
                Ok((rest, _)) => options = rest,
            }
        }
        false
    }

    /// What keeps this SYN from being answered by a proxy, if anything.
    pub fn flaw(&self) -> Option<SynFlaw> {
        let Ok(ip) = Ipv4Packet::new_checked(self.ip) else {
            return Some(SynFlaw::Malformed);
        };
        if usize::from(ip.header_len()) != IPV4_HEADER {
            return Some(SynFlaw::IpOptions);
        }
        let Ok(tcp) = TcpPacket::new_checked(ip.payload()) else {
            return Some(SynFlaw::Malformed);
        };
        let (source, destination) = (
            IpAddress::Ipv4(ip.src_addr()),
            IpAddress::Ipv4(ip.dst_addr()),
        );
        if !ip.verify_checksum() || !tcp.verify_checksum(&source, &destination) {
            return Some(SynFlaw::Malformed);
        }
        let mut options = tcp.options();
        while !options.is_empty() {
            match TcpOption::parse(options) {
                Ok((_, TcpOption::EndOfList)) => break,
                Ok((_, TcpOption::Unknown { kind, .. })) if SIGNATURE_OPTIONS.contains(&kind) => {
                    return Some(SynFlaw::Signed);
                }
                Ok((rest, _)) => options = rest,
                Err(_) => return Some(SynFlaw::Malformed),
            }
        }
        let checksums = ChecksumCapabilities::ignored();
        match TcpRepr::parse(&tcp, &source, &destination, &checksums) {
            Ok(_) => None,
            Err(_) => Some(SynFlaw::Malformed),
        }
    }
}

/// Source and destination of a frame that the box makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs {
    /// From whom.
    pub source: Mac,
    /// To whom.
    pub destination: Mac,
}

/// Writes the header of an IPv4 frame to the first 14 bytes of `frame`.
pub fn write_ipv4_ethernet(frame: &mut [u8], macs: Macs) {
    write_ethernet(frame, macs, EthernetProtocol::Ipv4);
}

fn write_ethernet(frame: &mut [u8], macs: Macs, protocol: EthernetProtocol) {
    let mut view = EthernetFrame::new_unchecked(frame);
    view.set_dst_addr(EthernetAddress(macs.destination.0));
    view.set_src_addr(EthernetAddress(macs.source.0));
    view.set_ethertype(protocol);
}

/// Length of the ARP frames that [`write_arp`] writes: padded to Ethernet's least, in bytes.
pub const ARP_FRAME: usize = 60;

/// Writes an ARP frame to `frame`, which has [`ARP_FRAME`] zeroed bytes.
pub fn write_arp(frame: &mut [u8], arp: Arp, target_mac: Mac) {
    let destination = if arp.request {
        Mac::BROADCAST
    } else {
        target_mac
    };
    let macs = Macs {
        source: arp.sender_mac,
        destination,
    };
    write_ethernet(frame, macs, EthernetProtocol::Arp);
    let repr = ArpRepr::EthernetIpv4 {
        operation: if arp.request {
            ArpOperation::Request
        } else {
            ArpOperation::Reply
        },
        source_hardware_addr: EthernetAddress(arp.sender_mac.0),
        source_protocol_addr: arp.sender,
        target_hardware_addr: EthernetAddress(target_mac.0),
        target_protocol_addr: arp.target,
    };
    if let Some(body) = frame.get_mut(ETHERNET_HEADER..) {
        repr.emit(&mut ArpPacket::new_unchecked(body));
    }
}

/// Length of a UDP frame with `payload` bytes in it.
pub const fn udp_frame_len(payload: usize) -> usize {
    ETHERNET_HEADER + IPV4_HEADER + UDP_HEADER + payload
}

/// Writes a UDP frame to `frame`, which has [`udp_frame_len`] bytes. `identification` tells packets apart when a router
/// fragments them.
pub fn write_udp(
    frame: &mut [u8],
    macs: Macs,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload: &[u8],
) {
    write_ipv4_ethernet(frame, macs);
    let Some(body) = write_ipv4(
        frame,
        *source.ip(),
        *destination.ip(),
        IpProtocol::Udp,
        UDP_HEADER + payload.len(),
    ) else {
        return;
    };
    let mut udp = UdpPacket::new_unchecked(body);
    udp.set_src_port(source.port());
    udp.set_dst_port(destination.port());
    udp.set_len(u16::try_from(UDP_HEADER + payload.len()).unwrap_or(u16::MAX));
    if let Some(room) = udp.payload_mut().get_mut(..payload.len()) {
        room.copy_from_slice(payload);
    }
    udp.fill_checksum(
        &IpAddress::Ipv4(*source.ip()),
        &IpAddress::Ipv4(*destination.ip()),
    );
}

/// Writes the IPv4 header after the Ethernet header and gives the rest. `None`: the frame is too short.
fn write_ipv4(
    frame: &mut [u8],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: IpProtocol,
    payload_len: usize,
) -> Option<&mut [u8]> {
    let ip = frame.get_mut(ETHERNET_HEADER..)?;
    if ip.len() < IPV4_HEADER + payload_len || payload_len > usize::from(u16::MAX) - IPV4_HEADER {
        return None;
    }
    let repr = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: protocol,
        payload_len,
        hop_limit: TTL,
    };
    repr.emit(
        &mut Ipv4Packet::new_unchecked(&mut *ip),
        &ChecksumCapabilities::default(),
    );
    ip.get_mut(IPV4_HEADER..IPV4_HEADER + payload_len)
}

/// Length of the frame that [`write_echo_reply`] writes.
pub const fn echo_reply_len(message: usize) -> usize {
    ETHERNET_HEADER + IPV4_HEADER + message
}

/// Whether an ICMP message is an echo request with a good checksum.
pub fn is_echo_request(message: &[u8]) -> bool {
    let Ok(packet) = Icmpv4Packet::new_checked(message) else {
        return false;
    };
    matches!(
        Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()),
        Ok(Icmpv4Repr::EchoRequest { .. })
    )
}

/// Writes the answer to an echo request to `frame`, which has [`echo_reply_len`] bytes.
pub fn write_echo_reply(
    frame: &mut [u8],
    macs: Macs,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    request: &[u8],
) {
    write_ipv4_ethernet(frame, macs);
    let Ok(packet) = Icmpv4Packet::new_checked(request) else {
        return;
    };
    let Ok(Icmpv4Repr::EchoRequest {
        ident,
        seq_no,
        data,
    }) = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::ignored())
    else {
        return;
    };
    if let Some(body) = write_ipv4(frame, source, destination, IpProtocol::Icmp, request.len()) {
        Icmpv4Repr::EchoReply {
            ident,
            seq_no,
            data,
        }
        .emit(
            &mut Icmpv4Packet::new_unchecked(body),
            &ChecksumCapabilities::default(),
        );
    }
}

/// How much of a packet an ICMP error quotes, in bytes (RFC 792: its header and 8 bytes).
pub const QUOTE: usize = IPV4_HEADER + 8;
/// The beginning of a packet, as an ICMP error quotes it.
pub type Quote = [u8; QUOTE];
/// Length of the frame that [`write_host_unreachable`] writes.
pub const UNREACHABLE_FRAME: usize = ETHERNET_HEADER + IPV4_HEADER + 8 + QUOTE;

/// Writes an ICMP host-unreachable message (RFC 792) from `source` to the sender of the packet that begins with `quote`.
/// `frame` has [`UNREACHABLE_FRAME`] zeroed bytes.
pub fn write_host_unreachable(frame: &mut [u8], macs: Macs, source: Ipv4Addr, quote: &Quote) {
    const DESTINATION_UNREACHABLE: u8 = 3;
    const HOST_UNREACHABLE: u8 = 1;
    write_ipv4_ethernet(frame, macs);
    let offender = Ipv4Packet::new_unchecked(&quote[..]).src_addr();
    let Some(message) = write_ipv4(frame, source, offender, IpProtocol::Icmp, 8 + QUOTE) else {
        return;
    };
    if let Some((header, body)) = message.split_at_mut_checked(8) {
        header[0] = DESTINATION_UNREACHABLE;
        header[1] = HOST_UNREACHABLE;
        body.copy_from_slice(quote);
    }
    Icmpv4Packet::new_unchecked(message).fill_checksum();
}

/// The TCP connection that an ICMP error is about, as (source, destination) of the packet that it quotes, and whether the
/// error ends an attempt to connect (RFC 1122, 4.2.3.9: destination unreachable, but not "fragmentation needed").
pub fn icmp_error_about(message: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    const DESTINATION_UNREACHABLE: u8 = 3;
    const FRAGMENTATION_NEEDED: u8 = 4;
    let (&kind, &code) = (message.first()?, message.get(1)?);
    if kind != DESTINATION_UNREACHABLE || code == FRAGMENTATION_NEEDED {
        return None;
    }
    let quote = message.get(8..)?;
    let header = usize::from(quote.first()? & 0x0f) * 4;
    if header < IPV4_HEADER || *quote.get(9)? != u8::from(IpProtocol::Tcp) {
        return None;
    }
    let address = |at: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = quote.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let port = |at: usize| -> Option<u16> {
        let bytes: [u8; 2] = quote.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    };
    Some((
        SocketAddrV4::new(address(12)?, port(header)?),
        SocketAddrV4::new(address(16)?, port(header + 2)?),
    ))
}

/// Length of the frames that [`write_tcp_answer`] writes.
pub const TCP_ANSWER_FRAME: usize = ETHERNET_HEADER + IPV4_HEADER + 20;

/// What to say to a segment that no socket owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is no such connection (RFC 9293, 3.10.7.1).
    Reset,
    /// The segment and its FIN have arrived.
    Acknowledge,
}

/// Writes the answer to a segment, from its destination to its source, made of nothing but the segment itself. `frame`
/// has [`TCP_ANSWER_FRAME`] bytes.
pub fn write_tcp_answer(frame: &mut [u8], macs: Macs, segment: &Segment<'_>, answer: Answer) {
    let length = segment.payload_len as u32 + u32::from(segment.syn) + u32::from(segment.fin);
    let end = segment.sequence.wrapping_add(length);
    let (control, sequence, acknowledgement) = match (answer, segment.acknowledgement) {
        (Answer::Reset, Some(acknowledged)) => (TcpControl::Rst, acknowledged, None),
        (Answer::Reset, None) => (TcpControl::Rst, 0, Some(end)),
        (Answer::Acknowledge, acknowledged) => {
            (TcpControl::None, acknowledged.unwrap_or(0), Some(end))
        }
    };
    let repr = TcpRepr {
        src_port: segment.destination.port(),
        dst_port: segment.source.port(),
        control,
        seq_number: TcpSeqNumber(sequence as i32),
        ack_number: acknowledgement.map(|number| TcpSeqNumber(number as i32)),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None, None, None],
        timestamp: None,
        payload: &[],
    };
    let (source, destination) = (*segment.destination.ip(), *segment.source.ip());
    write_ipv4_ethernet(frame, macs);
    if let Some(body) = write_ipv4(
        frame,
        source,
        destination,
        IpProtocol::Tcp,
        repr.buffer_len(),
    ) {
        repr.emit(
            &mut TcpPacket::new_unchecked(body),
            &IpAddress::Ipv4(source),
            &IpAddress::Ipv4(destination),
            &ChecksumCapabilities::default(),
        );
    }
}
