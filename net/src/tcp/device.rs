//! smoltcp's view of the wire: at most one packet in, frames out to the outbox, their windows as [`Announce`] says.

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{IpAddress, Ipv4Packet, TcpPacket};

use super::Way;
use crate::outbox::Outbox;
use crate::wire;

/// The window scale that every SYN of ours announces, whatever the socket's buffers are then: that of 256 KiB.
const ANNOUNCED_SHIFT: u8 = 3;
/// The window that a socket announces before it has its buffers: the smallest that it may get, in bytes.
const PROMISED_WINDOW: u16 = 16 * 1024;

/// How a socket's windows are put on the wire. smoltcp derives the scale from the buffer that a socket is made with; a
/// connection gets its buffers only after its SYN has left, so all announce the same scale and are translated to it.
#[derive(Clone, Copy, Debug)]
pub struct Announce {
    /// The shift that smoltcp uses for this socket; `None`: the host scales no windows, so nor does smoltcp.
    pub shift: Option<u8>,
    /// The socket has no buffers yet.
    pub promise: bool,
}

impl Announce {
    /// The shift that smoltcp 0.14 uses for a buffer of so many bytes.
    pub fn shift_of(buffer: usize) -> u8 {
        (usize::BITS - buffer.leading_zeros()).saturating_sub(16) as u8
    }

    /// Translates the window of a frame that smoltcp wrote.
    fn apply(self, frame: &mut [u8]) {
        let Some(packet) = frame.get_mut(wire::ETHERNET_HEADER..) else {
            return;
        };
        let Ok(ip) = Ipv4Packet::new_checked(&mut *packet) else {
            return;
        };
        let (source, destination) = (
            IpAddress::Ipv4(ip.src_addr()),
            IpAddress::Ipv4(ip.dst_addr()),
        );
        let header = usize::from(ip.header_len());
        let Some(Ok(mut tcp)) = packet.get_mut(header..).map(TcpPacket::new_checked) else {
            return;
        };
        if tcp.rst() {
            return;
        }
        if tcp.syn() {
            if self.promise {
                tcp.set_window_len(PROMISED_WINDOW);
            }
            announce_shift(&mut tcp);
            tcp.fill_checksum(&source, &destination);
            return;
        }
        let before = tcp.window_len();
        let window = match self.promise {
            true => usize::from(PROMISED_WINDOW),
            false => usize::from(before) << self.shift.unwrap_or(0),
        };
        let scaled = match self.shift {
            Some(_) => window >> ANNOUNCED_SHIFT,
            None => window,
        };
        let after = u16::try_from(scaled).unwrap_or(u16::MAX);
        if after != before {
            tcp.set_window_len(after);
            let checksum = tcp.checksum();
            tcp.set_checksum(updated(checksum, before, after));
        }
    }
}

/// Sets the window scale option of a SYN, if it has one.
fn announce_shift(tcp: &mut TcpPacket<&mut [u8]>) {
    const END: u8 = 0;
    const PADDING: u8 = 1;
    const WINDOW_SCALE: u8 = 3;
    let options = tcp.options_mut();
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        match kind {
            END => return,
            PADDING => at += 1,
            WINDOW_SCALE => {
                if let Some(shift) = options.get_mut(at + 2) {
                    *shift = ANNOUNCED_SHIFT;
                }
                return;
            }
            _ => at += usize::from(options.get(at + 1).copied().unwrap_or(0)).max(2),
        }
    }
}

/// A checksum after one 16-bit word under it has changed (RFC 1624, equation 3).
fn updated(checksum: u16, before: u16, after: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!before) + u32::from(after);
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// The sequence number of a SYN.
    pub syn: Option<u32>,
    /// A segment that was no SYN.
    pub past_syn: bool,
}

/// smoltcp's view of the wire.
pub struct FlowDevice<'a> {
    /// The packet that arrives.
    pub ingress: Option<&'a [u8]>,
    /// Where frames go.
    pub outbox: &'a mut Outbox,
    /// Where their frames go; `None`: nothing can be sent or received.
    pub way: Option<Way>,
    /// How windows are put on the wire.
    pub announce: Announce,
    /// What was sent.
    pub sent: Sent,
}

/// A packet that arrives.
pub struct Ingress<'a>(&'a [u8]);

/// A packet that leaves.
pub struct Egress<'a> {
    outbox: &'a mut Outbox,
    way: Way,
    announce: Announce,
    sent: &'a mut Sent,
}

impl RxToken for Ingress<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Egress<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        const SEQUENCE: usize = wire::ETHERNET_HEADER + wire::IPV4_HEADER + 4;
        const FLAGS: usize = SEQUENCE + 9;
        const SYN: u8 = 0x02;
        let (way, announce, sent) = (self.way, self.announce, self.sent);
        self.outbox
            .push(way.ports, wire::ETHERNET_HEADER + len, |frame| {
                wire::write_ipv4_ethernet(frame, way.macs);
                let result = f(&mut frame[wire::ETHERNET_HEADER..]);
                announce.apply(frame);
                if frame.get(FLAGS).is_some_and(|flags| flags & SYN == 0) {
                    sent.past_syn = true;
                } else if let Some(&[a, b, c, d]) = frame.get(SEQUENCE..SEQUENCE + 4) {
                    sent.syn = Some(u32::from_be_bytes([a, b, c, d]));
                }
                result
            })
    }
}

impl Device for FlowDevice<'_> {
    type RxToken<'t>
        = Ingress<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Egress<'t>
    where
        Self: 't;

    fn receive(&mut self, _: SmolInstant) -> Option<(Ingress<'_>, Egress<'_>)> {
        let way = self.way?;
        let packet = self.ingress.take()?;
        Some((
            Ingress(packet),
            Egress {
                outbox: self.outbox,
                way,
                announce: self.announce,
                sent: &mut self.sent,
            },
        ))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Egress<'_>> {
        let way = self.way?;
        self.outbox.has_room_for_flows().then_some(Egress {
            outbox: self.outbox,
            way,
            announce: self.announce,
            sent: &mut self.sent,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = wire::IP_MTU;
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{IpProtocol, Ipv4Repr, TcpControl, TcpRepr, TcpSeqNumber};

    #[test]
    fn a_checksum_follows_the_word_that_changes() {
        // Over these two words alone.
        let whole = |a: u16, b: u16| {
            let sum = u32::from(a) + u32::from(b);
            !((sum & 0xffff) + (sum >> 16)) as u16
        };
        for (kept, before, after) in [
            (0x1234, 0x4000, 0x0800),
            (0xffff, 0x0001, 0xffff),
            (0xfffe, 0xffff, 0x0001),
            (0x0001, 0x0000, 0xfff0),
        ] {
            let changed = updated(whole(kept, before), before, after);
            assert_eq!(changed, whole(kept, after), "{kept:x} {before:x} {after:x}");
        }
    }

    fn frame(control: TcpControl, window: u16, scale: Option<u8>) -> Vec<u8> {
        let (source, destination) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let tcp = TcpRepr {
            src_port: 1,
            dst_port: 2,
            control,
            seq_number: TcpSeqNumber(3),
            ack_number: Some(TcpSeqNumber(4)),
            window_len: window,
            window_scale: scale,
            max_seg_size: scale.map(|_| 1460),
            sack_permitted: scale.is_some(),
            sack_ranges: [None; 3],
            timestamp: None,
            payload: b"payload",
        };
        let ip = Ipv4Repr {
            src_addr: source.into(),
            dst_addr: destination.into(),
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let checksums = ChecksumCapabilities::default();
        let mut frame = vec![0; wire::ETHERNET_HEADER + ip.buffer_len() + tcp.buffer_len()];
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[wire::ETHERNET_HEADER..]);
        ip.emit(&mut packet, &checksums);
        tcp.emit(
            &mut TcpPacket::new_unchecked(packet.payload_mut()),
            &ip.src_addr.into(),
            &ip.dst_addr.into(),
            &checksums,
        );
        frame
    }

    /// Window and scale that a frame announces after translation, its checksum verified.
    fn announced(announce: Announce, mut frame: Vec<u8>) -> (u16, Option<u8>) {
        announce.apply(&mut frame);
        let ip = Ipv4Packet::new_checked(&frame[wire::ETHERNET_HEADER..]).expect("IPv4");
        let tcp = TcpPacket::new_checked(ip.payload()).expect("TCP");
        let (source, destination) = (ip.src_addr().into(), ip.dst_addr().into());
        assert!(tcp.verify_checksum(&source, &destination));
        let repr = TcpRepr::parse(
            &tcp,
            &source,
            &destination,
            &ChecksumCapabilities::default(),
        )
        .expect("a segment");
        (repr.window_len, repr.window_scale)
    }

    #[test]
    fn windows_are_translated_to_the_scale_that_was_announced() {
        let announce = |shift, promise| Announce { shift, promise };
        let syn = || frame(TcpControl::Syn, 256, Some(0));
        assert_eq!(announced(announce(Some(0), true), syn()), (16_384, Some(3)));
        // A host that scales no windows is not told of a scale.
        let plain = frame(TcpControl::Syn, 256, None);
        assert_eq!(announced(announce(None, true), plain), (16_384, None));
        for (shift, promise, window, expected) in [
            (Some(0), true, 256, 2048),
            (None, true, 256, 16_384),
            (Some(0), false, 16_384, 2048),
            (Some(1), false, 32_768, 8192),
            (Some(3), false, 32_768, 32_768),
            (Some(0), false, 7, 0),
            (None, false, 65_535, 65_535),
            (Some(0), false, 0, 0),
        ] {
            let segment = frame(TcpControl::None, window, None);
            let result = announced(announce(shift, promise), segment);
            assert_eq!(result, (expected, None), "{shift:?} {promise} {window}");
        }
    }

    #[test]
    fn frames_that_are_cut_short_are_left_alone() {
        let whole = frame(TcpControl::Syn, 256, Some(0));
        let announce = Announce {
            shift: Some(0),
            promise: true,
        };
        for length in 0..whole.len() {
            announce.apply(&mut whole[..length].to_vec());
        }
    }

    #[test]
    fn the_shift_is_that_of_the_largest_buffer() {
        assert_eq!(Announce::shift_of(256 * 1024), ANNOUNCED_SHIFT);
        assert_eq!(Announce::shift_of(16 * 1024), 0);
    }
}
