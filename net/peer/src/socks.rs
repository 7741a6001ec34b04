//! SOCKS5 (RFC 1928): CONNECT without authentication, to IPv4 addresses and to names. Success is answered only when the real
//! server has answered. Names are resolved here, at the branch: the flow protocol carries addresses.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use outpost_net::FlowKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::flow;
use crate::hub::{Hub, add};
use crate::ledger::End;

const VERSION: u8 = 5;
/// A client has so long to say what it wants, and a name server to answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long the end of a refused client is waited for, so that it reads the answer.
const LINGER: Duration = Duration::from_secs(2);
/// The longest message: a request with a name of 255 bytes.
const LONGEST: usize = 4 + 1 + 255 + 2;

/// The reply field of RFC 1928, section 6; `NoMethod` is the method field of section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Succeeded = 0,
    Failure = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    Refused = 5,
    TtlExpired = 6,
    CommandUnsupported = 7,
    AddressUnsupported = 8,
    NoMethod = 0xff,
}

impl From<End> for Reply {
    fn from(end: End) -> Reply {
        match end {
            End::Refused => Reply::Refused,
            End::Unreachable => Reply::HostUnreachable,
            End::NotPermitted => Reply::NotAllowed,
            End::TunnelDown => Reply::NetworkUnreachable,
            End::NoAnswer => Reply::TtlExpired,
            _ => Reply::Failure,
        }
    }
}

/// Where a client wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Address(SocketAddrV4),
    Name(String, u16),
}

/// What the first bytes of a client are.
#[derive(Debug, PartialEq, Eq)]
enum Parsed<T> {
    /// Not all of the message is there.
    More,
    /// The message, and its length.
    Got(T, usize),
    /// To be answered with this, and closed. `None`: this is no SOCKS5.
    Bad(Option<Reply>),
}

/// The client's greeting: version, number of methods, methods.
fn greeting(bytes: &[u8]) -> Parsed<()> {
    match *bytes {
        [] => Parsed::More,
        [VERSION] => Parsed::More,
        [VERSION, count, ref methods @ ..] => match methods.get(..usize::from(count)) {
            None => Parsed::More,
            Some(methods) if methods.contains(&0) => Parsed::Got((), 2 + methods.len()),
            Some(_) => Parsed::Bad(Some(Reply::NoMethod)),
        },
        _ => Parsed::Bad(None),
    }
}

/// The client's request: version, command, reserved, address type, address, port.
fn request(bytes: &[u8]) -> Parsed<Target> {
    let (command, kind, rest) = match *bytes {
        [] | [VERSION] | [VERSION, _] | [VERSION, _, _] => return Parsed::More,
        [VERSION, command, _, kind, ref rest @ ..] => (command, kind, rest),
        _ => return Parsed::Bad(None),
    };
    let port = |at: usize| {
        let port = rest.get(at..at + 2)?;
        Some(u16::from_be_bytes([port[0], port[1]]))
    };
    let parsed = match kind {
        1 => port(4).and_then(|port| {
            let address: [u8; 4] = rest.get(..4)?.try_into().ok()?;
            let address = SocketAddrV4::new(Ipv4Addr::from(address), port);
            Some((Some(Target::Address(address)), 4 + 6))
        }),
        3 => rest.first().and_then(|&length| {
            let end = 1 + usize::from(length);
            let port = port(end)?;
            let name = String::from_utf8(rest.get(1..end)?.to_vec()).ok();
            let name = name.filter(|it| !it.is_empty() && !it.contains(['\0', ' ']));
            Some((name.map(|name| Target::Name(name, port)), 4 + end + 2))
        }),
        _ => return Parsed::Bad(Some(Reply::AddressUnsupported)),
    };
    match parsed {
        None => Parsed::More,
        Some(_) if command != 1 => Parsed::Bad(Some(Reply::CommandUnsupported)),
        Some((Some(target), length)) => Parsed::Got(target, length),
        Some((None, _)) => Parsed::Bad(Some(Reply::HostUnreachable)),
    }
}

/// The reply to a request. No address is said to be bound: it would be the core's.
fn reply(reply: Reply) -> [u8; 10] {
    [VERSION, reply as u8, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// Serves a client.
pub async fn serve(hub: Rc<Hub>, mut tcp: TcpStream, client: SocketAddrV4) {
    let mut early = Vec::new();
    let (target, server) = match ask(&mut tcp, &mut early).await {
        Ok(asked) => asked,
        Err(refusal) => {
            add(&hub.ledger.socks_refused, 1);
            match refusal {
                Some(Reply::NoMethod) => close(tcp, &[VERSION, Reply::NoMethod as u8]).await,
                Some(other) => close(tcp, &reply(other)).await,
                None => {}
            }
            return;
        }
    };
    let key = FlowKey { client, server };
    match flow::open(&hub, key, &tcp).await {
        Ok(opened) => {
            if tcp.write_all(&reply(Reply::Succeeded)).await.is_err() {
                flow::reset(&tcp);
            }
            flow::carry(&hub, opened, tcp, &early).await;
        }
        Err(end) => {
            log::info!("socks: {client} to {target}: {}", end.name());
            close(tcp, &reply(Reply::from(end))).await;
        }
    }
}

/// Reads what a client wants. What it sent after that is left in `early`.
async fn ask(
    tcp: &mut TcpStream,
    early: &mut Vec<u8>,
) -> Result<(String, SocketAddrV4), Option<Reply>> {
    let talk = async {
        read(tcp, early, greeting).await?;
        let accepted = tcp.write_all(&[VERSION, 0]).await;
        accepted.map_err(|_| None)?;
        read(tcp, early, request).await
    };
    let target = tokio::time::timeout(TIMEOUT, talk)
        .await
        .unwrap_or(Err(None))?;
    let (name, port) = match target {
        Target::Address(address) => return Ok((address.to_string(), address)),
        Target::Name(name, port) => (name, port),
    };
    let found = tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((name.as_str(), port))).await;
    let server = match found {
        Ok(Ok(mut all)) => all.find_map(|address| match address {
            SocketAddr::V4(address) => Some(address),
            SocketAddr::V6(_) => None,
        }),
        _ => None,
    };
    match server {
        Some(server) => Ok((format!("{name}:{port}"), server)),
        None => {
            log::info!("socks: {name} has no IPv4 address that this machine can find");
            Err(Some(Reply::HostUnreachable))
        }
    }
}

/// Reads until `parse` has a whole message, and takes it off the front of `bytes`.
async fn read<T>(
    tcp: &mut TcpStream,
    bytes: &mut Vec<u8>,
    parse: impl Fn(&[u8]) -> Parsed<T>,
) -> Result<T, Option<Reply>> {
    loop {
        match parse(bytes) {
            Parsed::Got(message, length) => {
                bytes.drain(..length);
                return Ok(message);
            }
            Parsed::Bad(reply) => return Err(reply),
            Parsed::More => {}
        }
        let mut buffer = [0; LONGEST];
        match tcp.read(&mut buffer).await {
            Ok(length @ 1..) => bytes.extend_from_slice(&buffer[..length]),
            _ => return Err(None),
        }
    }
}

/// Says a last word, and waits a little for the client to have read it.
async fn close(mut tcp: TcpStream, word: &[u8]) {
    let farewell = async {
        tcp.write_all(word).await?;
        tcp.shutdown().await?;
        let mut rest = [0; 512];
        while tcp.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(LINGER, farewell).await;
}

/// What a client's greeting and its request are, if these bytes were one: for the fuzz targets in `net/fuzz`. Each is the
/// message as text and its length; `None`: not all of it is there.
#[cfg(feature = "fuzzing")]
pub fn parsed(bytes: &[u8]) -> [Option<(String, usize)>; 2] {
    fn shown<T: std::fmt::Debug>(parsed: Parsed<T>) -> Option<(String, usize)> {
        match parsed {
            Parsed::More => None,
            Parsed::Got(message, length) => Some((format!("{message:?}"), length)),
            Parsed::Bad(reply) => Some((format!("{reply:?}"), 0)),
        }
    }
    [shown(greeting(bytes)), shown(request(bytes))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_parsed_whole_or_not_at_all() {
        for (bytes, result) in [
            (&[5, 1, 0][..], Parsed::Got((), 3)),
            (&[5, 2, 2, 0, 9], Parsed::Got((), 4)),
            (&[5, 1, 2], Parsed::Bad(Some(Reply::NoMethod))),
            (&[5, 0], Parsed::Bad(Some(Reply::NoMethod))),
            (&[4, 1], Parsed::Bad(None)),
            (b"GET / HTTP/1.1", Parsed::Bad(None)),
        ] {
            assert_eq!(greeting(bytes), result, "{bytes:?}");
        }
        let address = [5, 1, 0, 1, 10, 77, 2, 10, 0, 80];
        let name = [5, 1, 0, 3, 3, b'a', b'.', b'b', 1, 187];
        for whole in [&address[..], &name] {
            for cut in 0..whole.len() {
                assert_eq!(request(&whole[..cut]), Parsed::More, "{cut} of {whole:?}");
            }
        }
        let target = Target::Address(SocketAddrV4::new(Ipv4Addr::new(10, 77, 2, 10), 80));
        assert_eq!(request(&address), Parsed::Got(target, 10));
        let target = Target::Name(String::from("a.b"), 443);
        let longer = [&name[..], &[1, 2, 3]].concat();
        assert_eq!(request(&longer), Parsed::Got(target, 10));
    }

    #[test]
    fn what_is_not_offered_is_refused_with_its_own_code() {
        let with = |command, kind| [5, command, 0, kind, 1, 2, 3, 4, 0, 80];
        for (bytes, reply) in [
            (with(2, 1), Reply::CommandUnsupported),
            (with(3, 1), Reply::CommandUnsupported),
            (with(1, 4), Reply::AddressUnsupported),
            (with(1, 9), Reply::AddressUnsupported),
            ([5, 1, 0, 3, 1, 0, 0, 80, 0, 0], Reply::HostUnreachable),
            ([5, 1, 0, 3, 1, 0xff, 0, 80, 0, 0], Reply::HostUnreachable),
            ([5, 1, 0, 3, 0, 0, 80, 0, 0, 0], Reply::HostUnreachable),
        ] {
            assert_eq!(request(&bytes), Parsed::Bad(Some(reply)), "{bytes:?}");
        }
        assert_eq!(request(&[4, 1, 0, 1]), Parsed::Bad(None));
    }
}
