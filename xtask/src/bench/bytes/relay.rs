//! The line between the two programs, as a process between two sockets: it counts whole IP packets, and carries no more than
//! Ethernet does.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, poll};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};

/// IPv4 (RFC 791 §3.1, no options) and UDP (RFC 768) headers.
pub const HEADERS: u64 = 20 + 8;
/// The largest UDP payload in an IP packet of 1,500 bytes.
const LARGEST: usize = 1_500 - HEADERS as usize;

/// The system gives as much of it as it allows.
const SOCKET_BUFFER: usize = 4 << 20;
/// How often it is seen whether the relay is to stop, in milliseconds.
const PATIENCE: u16 = 50;

/// A UDP socket that takes and gives datagrams in batches (GRO and GSO): one at a time, the relay would be the bottleneck, and
/// what it lost would be sent again and counted.
struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    fn new() -> Result<Socket> {
        let bind = || -> io::Result<Socket> {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
            state.set_recv_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER)?;
            state.set_send_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER)?;
            Ok(Socket { socket, state })
        };
        bind().context("no socket for the line")
    }

    fn wait(&self, what: PollFlags) {
        let mut polled = [PollFd::new(self.socket.as_fd(), what)];
        // Whatever woke it, the socket is tried next.
        let _ = poll(&mut polled, PATIENCE);
    }

    /// Some datagrams of one size, of which the last may be shorter; nothing if none came for a while.
    fn receive(&self, buffer: &mut [u8]) -> Option<RecvMeta> {
        self.wait(PollFlags::POLLIN);
        let mut meta = [RecvMeta::default()];
        let reference = UdpSockRef::from(&self.socket);
        // Errors are refusals while an end is away.
        self.state
            .recv(reference, &mut [IoSliceMut::new(buffer)], &mut meta)
            .ok()?;
        let [meta] = meta;
        (meta.len > 0).then_some(meta)
    }

    fn send(&self, to: SocketAddr, datagrams: &[u8], size: usize) {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: datagrams,
            segment_size: (datagrams.len() > size).then_some(size),
            src_ip: None,
        };
        let send = || {
            self.state
                .try_send(UdpSockRef::from(&self.socket), &transmit)
        };
        while matches!(send(), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.wait(PollFlags::POLLOUT);
        }
    }
}

/// What both directions share.
struct Shared {
    packets: AtomicU64,
    bytes: AtomicU64,
    stopped: AtomicBool,
    /// Where the branch's datagrams come from.
    branch: Mutex<Option<SocketAddr>>,
}

/// A relay that runs until it is dropped.
pub struct Relay {
    /// Where the branch is to send to.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Starts relaying to `core`, in each direction at `bits_per_second` if given.
    ///
    /// # Errors
    /// No sockets or threads.
    pub fn new(core: SocketAddr, bits_per_second: Option<u64>) -> Result<Relay> {
        let (front, back) = (Arc::new(Socket::new()?), Arc::new(Socket::new()?));
        let address = front.socket.local_addr()?;
        let shared = Arc::new(Shared {
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            branch: Mutex::new(None),
        });
        let mut threads = Vec::new();
        for up in [true, false] {
            let (front, back, shared) = (front.clone(), back.clone(), shared.clone());
            let (from, to) = if up { (front, back) } else { (back, front) };
            let name = if up { "line up" } else { "line down" };
            threads.push(
                std::thread::Builder::new()
                    .name(name.into())
                    .spawn(move || {
                        let core = up.then_some(core);
                        carry(&from, &to, core, bits_per_second, &shared);
                    })?,
            );
        }
        Ok(Relay {
            address,
            shared,
            threads,
        })
    }

    /// Bytes of IP packets so far, both directions.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// Packets so far, both directions.
    pub fn packets(&self) -> u64 {
        self.shared.packets.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One direction: to the core's address if that is given, else to where the branch's datagrams come from.
fn carry(from: &Socket, to: &Socket, core: Option<SocketAddr>, rate: Option<u64>, shared: &Shared) {
    let branch = || shared.branch.lock().unwrap_or_else(PoisonError::into_inner);
    let mut buffer = vec![0; 1 << 16];
    let mut free_at = Instant::now();
    while !shared.stopped.load(Ordering::SeqCst) {
        let Some(meta) = from.receive(&mut buffer) else {
            continue;
        };
        if core.is_some() {
            *branch() = Some(meta.addr);
        }
        let Some(to_address) = core.or(*branch()) else {
            continue;
        };
        let (datagrams, size) = (&buffer[..meta.len], meta.stride.max(1));
        if size > LARGEST {
            continue;
        }
        let packets = datagrams.len().div_ceil(size) as u64;
        let bytes = datagrams.len() as u64 + packets * HEADERS;
        shared.bytes.fetch_add(bytes, Ordering::SeqCst);
        shared.packets.fetch_add(packets, Ordering::SeqCst);
        let Some(rate) = rate else {
            to.send(to_address, datagrams, size);
            continue;
        };
        for datagram in datagrams.chunks(size) {
            let bits = (datagram.len() as u64 + HEADERS) * 8;
            let takes = Duration::from_nanos(bits * 1_000_000_000 / rate.max(1));
            free_at = free_at.max(Instant::now()) + takes;
            std::thread::sleep(free_at.saturating_duration_since(Instant::now()));
            to.send(to_address, datagram, size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_carries_both_ways_and_counts_packets() {
        let socket = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            socket
        };
        let (core, branch) = (socket(), socket());
        let relay = Relay::new(core.local_addr().unwrap(), None).unwrap();
        branch.send_to(&[1; 1_473], relay.address).unwrap();
        branch.send_to(&[2; 1_472], relay.address).unwrap();
        let mut buffer = [0; 2_000];
        let (length, from) = core.recv_from(&mut buffer).unwrap();
        assert_eq!((length, buffer[0]), (1_472, 2));
        core.send_to(&[3; 10], from).unwrap();
        assert_eq!(branch.recv(&mut buffer).unwrap(), 10);
        assert_eq!((relay.packets(), relay.bytes()), (2, 1_500 + 38));
    }
}
