//! Bytes on the line: packet headers, variable-length integers, a checked reader and a bounded writer.
//!
//! What the frames inside mean is `frame`'s business.

use super::noise;

/// Version of packets and frames; in every first handshake message.
pub(super) const VERSION: u8 = 1;

const TYPE_FIRST: u8 = 0x01;
const TYPE_SECOND: u8 = 0x02;
const TYPE_REJECT: u8 = 0x03;
/// Low two bits: length of the packet number less one.
const TYPE_DATA: u8 = 0x40;

/// Type and connection index.
pub(super) const DATA_HEADER: usize = 1 + 4;
/// Payload of the first handshake message: purpose (1), connection token (8).
pub(super) const FIRST_PAYLOAD: usize = 9;
/// Type, version, our index, Noise message, MAC.
pub(super) const FIRST: usize = 1 + 1 + 4 + noise::FIRST + FIRST_PAYLOAD + 16;
/// Payload of the second handshake message: the sender's index, so that nobody else chooses it.
pub(super) const SECOND_PAYLOAD: usize = 4;
/// Type, receiver's index, Noise message.
pub(super) const SECOND: usize = 1 + 4 + noise::SECOND + SECOND_PAYLOAD;
/// Type, receiver's index, reason.
pub(super) const REJECT: usize = 1 + 4 + 1;

/// Why a first handshake message is rejected (a hint, not authenticated).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RejectReason {
    NotOurKey,
    NotPinned,
}

/// A datagram, by its header. Only shapes are checked here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    First {
        sender: u32,
        noise: &'a [u8],
        signed: &'a [u8],
        mac: [u8; 16],
    },
    Second {
        receiver: u32,
        noise: &'a [u8],
    },
    Reject {
        receiver: u32,
        reason: RejectReason,
    },
    Data {
        receiver: u32,
        number: u32,
        number_length: u8,
        sealed: &'a [u8],
    },
}

impl<'a> Packet<'a> {
    /// `None` for what no peer of this version sends.
    pub(super) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(datagram);
        match reader.u8()? {
            TYPE_FIRST if datagram.len() == FIRST => {
                if reader.u8()? != VERSION {
                    return None;
                }
                let sender = reader.u32()?;
                let noise = reader.bytes(noise::FIRST + FIRST_PAYLOAD)?;
                let mac = reader.bytes(16)?.try_into().ok()?;
                Some(Packet::First {
                    sender,
                    noise,
                    signed: datagram.get(..FIRST - 16)?,
                    mac,
                })
            }
            TYPE_SECOND if datagram.len() == SECOND => Some(Packet::Second {
                receiver: reader.u32()?,
                noise: reader.rest(),
            }),
            TYPE_REJECT if datagram.len() == REJECT => {
                let receiver = reader.u32()?;
                let reason = match reader.u8()? {
                    1 => RejectReason::NotOurKey,
                    2 => RejectReason::NotPinned,
                    _ => return None,
                };
                Some(Packet::Reject { receiver, reason })
            }
            kind @ TYPE_DATA..=0x43 => {
                let number_length = (kind & 3) + 1;
                let receiver = reader.u32()?;
                let mut number = 0;
                for byte in reader.bytes(usize::from(number_length))? {
                    number = (number << 8) | u32::from(*byte);
                }
                let sealed = reader.rest();
                // A frame at least, and the tag.
                (sealed.len() > noise::TAG).then_some(Packet::Data {
                    receiver,
                    number,
                    number_length,
                    sealed,
                })
            }
            _ => None,
        }
    }
}

/// The first handshake message; `message` is Noise's.
pub(super) fn first(
    sender: u32,
    message: &[u8],
    mac_key: &[u8; 32],
    out: &mut alloc::vec::Vec<u8>,
) {
    out.extend_from_slice(&[TYPE_FIRST, VERSION]);
    out.extend_from_slice(&sender.to_be_bytes());
    out.extend_from_slice(message);
    let mac = noise::mac(mac_key, out);
    out.extend_from_slice(&mac);
}

/// The second handshake message; `message` is Noise's.
pub(super) fn second(receiver: u32, message: &[u8], out: &mut alloc::vec::Vec<u8>) {
    out.push(TYPE_SECOND);
    out.extend_from_slice(&receiver.to_be_bytes());
    out.extend_from_slice(message);
}

/// The answer to a first message with a wrong key.
pub(super) fn reject(receiver: u32, reason: RejectReason, out: &mut alloc::vec::Vec<u8>) {
    out.push(TYPE_REJECT);
    out.extend_from_slice(&receiver.to_be_bytes());
    out.push(match reason {
        RejectReason::NotOurKey => 1,
        RejectReason::NotPinned => 2,
    });
}

/// Bytes that packet number `number` needs, the peer having acknowledged everything below `base` (RFC 9000, A.2, and
/// one bit more, for packets that are overtaken on the way).
pub(super) fn number_length(number: u64, base: u64) -> u8 {
    match number.saturating_sub(base) {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x40_0000 => 3,
        _ => 4,
    }
}

/// A data packet's header; the sealed frames follow.
pub(super) fn data_header(receiver: u32, number: u64, length: u8, out: &mut alloc::vec::Vec<u8>) {
    out.push(TYPE_DATA | (length.clamp(1, 4) - 1));
    out.extend_from_slice(&receiver.to_be_bytes());
    let bytes = number.to_be_bytes();
    out.extend_from_slice(&bytes[8 - usize::from(length.clamp(1, 4))..]);
}

/// The full packet number closest to `expected` that ends in the `length` bytes of `truncated` (RFC 9000, A.3).
pub(super) fn full_number(expected: u64, truncated: u32, length: u8) -> u64 {
    let window = 1_u64 << (8 * u32::from(length.clamp(1, 4)));
    let half = window / 2;
    let candidate = (expected & !(window - 1)) | u64::from(truncated);
    if candidate.saturating_add(half) <= expected && candidate.checked_add(window).is_some() {
        candidate + window
    } else if candidate > expected.saturating_add(half) && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

/// Takes fields off the front of bytes that somebody else wrote.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn remaining(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }

    pub(super) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|b| b[0])
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// LEB128 of at most 63 bits: seven bits a byte, lowest first. One value has one form: no zero byte at the end.
    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..63).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return (byte != 0 || shift == 0).then_some(value);
            }
        }
        None
    }
}

/// Bytes that `value` takes as a varint.
pub(super) const fn varint_length(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends a varint; values up to 2⁶³−1.
pub(super) fn put_varint(mut value: u64, out: &mut alloc::vec::Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_come_back(value in 0..(1_u64 << 63)) {
            let mut out = Vec::new();
            put_varint(value, &mut out);
            prop_assert_eq!(out.len(), varint_length(value));
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint(), Some(value));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn small_varints_come_back(value in 0..70_000_u64) {
            let mut out = Vec::new();
            put_varint(value, &mut out);
            prop_assert_eq!(out.len(), varint_length(value));
            prop_assert_eq!(Reader::new(&out).varint(), Some(value));
        }

        #[test]
        fn truncated_numbers_come_back(base in 0..(1_u64 << 50), ahead in 0..0x3f_0000_u64, back in 0..60_u64) {
            // The sender knows that all below `base` is acknowledged; the receiver has seen up to `largest`.
            let number = base + ahead;
            let length = number_length(number, base);
            let largest = if back < ahead { number - 1 } else { base };
            let mut out = Vec::new();
            data_header(7, number, length, &mut out);
            out.extend_from_slice(&[0; 17]);
            let Some(Packet::Data { receiver, number: truncated, number_length, .. }) = Packet::parse(&out) else {
                return Err(TestCaseError::fail("not parsed"));
            };
            prop_assert_eq!(receiver, 7);
            prop_assert_eq!(full_number(largest + 1, truncated, number_length), number);
        }

        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Packet::parse(&bytes);
            let mut reader = Reader::new(&bytes);
            while reader.varint().is_some() {}
        }
    }

    #[test]
    fn a_varint_has_one_form() {
        assert_eq!(Reader::new(&[0x80, 0x00]).varint(), None);
        assert_eq!(Reader::new(&[0xff; 12]).varint(), None);
        assert_eq!(Reader::new(&[0x80]).varint(), None);
        assert_eq!(Reader::new(&[0x00]).varint(), Some(0));
    }
}
