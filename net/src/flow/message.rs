//! What the engines say to each other at the beginning of a tunnel stream, and why they reset one.
//!
//! A stream that carries a flow begins with [`Open`] from the branch; the core answers with one byte, [`OPENED`], when
//! the server has answered; then dedup blocks go both ways. A stream that begins with [`CONTROL`] carries the
//! dictionaries' control messages one way, each as: for whom (1 byte), length (4 bytes, little endian), bytes.

use core::net::{Ipv4Addr, SocketAddrV4};

use crate::wire::FlowKey;

/// First byte of a stream for a flow: the version of this protocol.
pub const OPEN: u8 = 0x11;
/// First byte of the stream for control messages: their version.
pub const CONTROL: u8 = 0x14;
/// The core's answer when the server has accepted the connection.
pub const OPENED: u8 = 0x21;

/// Length of an encoded [`Open`], its first byte included.
pub const OPEN_LEN: usize = 13;

/// Encodes the request to open a connection: kind, client address and port, server address and port, in network order.
pub fn encode_open(key: &FlowKey) -> [u8; OPEN_LEN] {
    let mut message = [OPEN; OPEN_LEN];
    for (at, address) in [(1, key.client), (7, key.server)] {
        message[at..at + 4].copy_from_slice(&address.ip().octets());
        message[at + 4..at + 6].copy_from_slice(&address.port().to_be_bytes());
    }
    message
}

/// Decodes the request to open a connection.
pub fn decode_open(message: &[u8; OPEN_LEN]) -> Option<FlowKey> {
    let [kind, a, b, c, d, e, f, g, h, i, j, k, l] = *message;
    (kind == OPEN).then(|| FlowKey {
        client: SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([e, f])),
        server: SocketAddrV4::new(Ipv4Addr::new(g, h, i, j), u16::from_be_bytes([k, l])),
    })
}

/// Why a flow's stream is reset. Peers of another version may send codes that are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The server refused the connection (RST to the SYN).
    Refused,
    /// Nobody has the server's address, or an ICMP error says that it cannot be reached.
    Unreachable,
    /// The host on the other side reset the connection, or vanished.
    HostReset,
    /// What came could not be decoded to the right bytes.
    Undecodable,
    /// The core may not or cannot open this connection.
    NotPermitted,
    /// The core has no room for one more flow.
    Full,
    /// The client gave up before the server answered, or its address and port are used anew.
    Abandoned,
    /// What came is no message of this protocol.
    Protocol,
    /// Any other code.
    Other(u32),
}

impl From<Code> for u32 {
    fn from(code: Code) -> u32 {
        match code {
            Code::Refused => 1,
            Code::Unreachable => 2,
            Code::HostReset => 3,
            Code::Undecodable => 4,
            Code::NotPermitted => 5,
            Code::Full => 6,
            Code::Abandoned => 7,
            Code::Protocol => 8,
            Code::Other(code) => code,
        }
    }
}

impl From<u32> for Code {
    fn from(code: u32) -> Code {
        match code {
            1 => Code::Refused,
            2 => Code::Unreachable,
            3 => Code::HostReset,
            4 => Code::Undecodable,
            5 => Code::NotPermitted,
            6 => Code::Full,
            7 => Code::Abandoned,
            8 => Code::Protocol,
            other => Code::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_round_trips() {
        let key = FlowKey {
            client: SocketAddrV4::new(Ipv4Addr::new(10, 77, 1, 10), 40_001),
            server: SocketAddrV4::new(Ipv4Addr::new(10, 77, 2, 10), 443),
        };
        let mut message = encode_open(&key);
        assert_eq!(decode_open(&message), Some(key));
        message[0] = CONTROL;
        assert_eq!(decode_open(&message), None);
    }

    #[test]
    fn codes_round_trip() {
        for number in 0..20 {
            assert_eq!(u32::from(Code::from(number)), number);
        }
    }
}
