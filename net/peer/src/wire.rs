//! A UDP socket and the peers on it: a branch has one for each peer, a core one for all of them.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::rc::{Rc, Weak};

use outpost_net::time::Instant;
use outpost_net::tunnel::{Endpoint, Reception, ReceptionStatistics, Sorted};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::hub::{BATCH_BYTES, Hub};

/// Batches of datagrams taken in before what they brought is acted on.
const BATCHES: usize = 4;
/// What is asked of the kernel for datagrams that wait.
const SOCKET_BUFFER: usize = 4 << 20;

/// The socket.
pub struct Wire {
    socket: UdpSocket,
    /// Bytes of the kernel's, as the system allowed them.
    receive_buffer: usize,
    state: UdpSocketState,
    buffer: RefCell<Vec<u8>>,
    hubs: RefCell<Vec<Rc<Hub>>>,
    /// Core: finds out whose a datagram is.
    reception: Option<RefCell<Reception>>,
    /// Whose the last datagram was, by the name of its keys.
    latest: RefCell<(u32, Weak<Hub>)>,
    started: std::time::Instant,
}

impl Wire {
    /// A socket without peers. A core's (`core`: its private key, and an unpredictable seed) sorts what comes by peer.
    ///
    /// # Errors
    /// The system's.
    pub fn new(socket: UdpSocket, core: Option<([u8; 32], [u8; 32])>) -> io::Result<Rc<Wire>> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // As much as the system allows: what does not fit is lost, and sent again.
        let _ = SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER);
        let _ = SockRef::from(&socket).set_send_buffer_size(SOCKET_BUFFER);
        // Linux shows twice what was asked for.
        let receive_buffer = SockRef::from(&socket).recv_buffer_size()? / 2;
        Ok(Rc::new(Wire {
            socket,
            receive_buffer,
            state,
            buffer: RefCell::new(vec![0; BATCH_BYTES.next_multiple_of(65_536)]),
            hubs: RefCell::default(),
            reception: core
                .map(|(private, seed)| RefCell::new(Reception::new(private, seed, Instant::ZERO))),
            latest: RefCell::new((0, Weak::new())),
            started: std::time::Instant::now(),
        }))
    }

    /// Whether the system lets sockets have receive buffers of so many bytes (`net.core.rmem_max`).
    pub fn allows(&self, bytes: usize) -> bool {
        self.receive_buffer >= bytes
    }

    /// Makes a peer known.
    pub fn add(&self, hub: Rc<Hub>) {
        self.hubs.borrow_mut().push(hub);
        self.count_peers();
    }

    /// Forgets a peer.
    pub fn remove(&self, hub: &Rc<Hub>) {
        self.hubs.borrow_mut().retain(|it| !Rc::ptr_eq(it, hub));
        self.count_peers();
    }

    fn count_peers(&self) {
        if let Some(reception) = &self.reception {
            let peers = self.hubs.borrow().len();
            reception.borrow_mut().set_peers(self.now(), peers);
        }
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.started.elapsed()
    }

    /// What a core's socket did not hand on.
    pub fn statistics(&self) -> Option<ReceptionStatistics> {
        Some(self.reception.as_ref()?.borrow().statistics())
    }

    /// Receives for as long as it is polled.
    ///
    /// # Errors
    /// The socket's, when it is of no use any more.
    pub async fn listen(&self) -> io::Result<()> {
        loop {
            self.socket.readable().await?;
            self.receive(|socket, buffers, meta| {
                self.socket.try_io(Interest::READABLE, || {
                    self.state.recv(socket, buffers, meta)
                })
            })?;
            // The peers answer before more is taken in.
            tokio::task::yield_now().await;
        }
    }

    /// Receives what is there, whether the runtime has seen it or not.
    ///
    /// # Errors
    /// The socket's.
    pub fn receive_now(&self) -> io::Result<()> {
        self.receive(|socket, buffers, meta| self.state.recv(socket, buffers, meta))
    }

    fn receive(
        &self,
        from_kernel: impl Fn(
            UdpSockRef<'_>,
            &mut [IoSliceMut<'_>],
            &mut [RecvMeta],
        ) -> io::Result<usize>,
    ) -> io::Result<()> {
        let buffer = &mut *self.buffer.borrow_mut();
        for _ in 0..BATCHES {
            let mut meta = [RecvMeta::default()];
            let result = from_kernel(
                UdpSockRef::from(&self.socket),
                &mut [IoSliceMut::new(buffer)],
                &mut meta,
            );
            match result {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // An ICMP error about what was sent before: the tunnel finds out by itself.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
            }
            let [meta] = meta;
            let IpAddr::V4(address) = meta.addr.ip() else {
                continue;
            };
            let from = Endpoint::new(address, meta.addr.port());
            for datagram in buffer[..meta.len].chunks_mut(meta.stride.max(1)) {
                if let Some(hub) = self.whose(from, datagram) {
                    let now = hub.now();
                    hub.session.borrow_mut().receive(now, from, datagram);
                    hub.dirty.notify_one();
                }
            }
        }
        Ok(())
    }

    /// The peer that a datagram is from.
    fn whose(&self, from: Endpoint, datagram: &[u8]) -> Option<Rc<Hub>> {
        let hubs = self.hubs.borrow();
        let Some(reception) = &self.reception else {
            return hubs.first().cloned();
        };
        let is_peer = |key: &[u8; 32]| hubs.iter().any(|hub| hub.key == *key);
        let sorted = reception
            .borrow_mut()
            .sort(self.now(), from, datagram, is_peer);
        match sorted {
            Sorted::Keys(name) => {
                let has = |hub: &&Rc<Hub>| hub.session.borrow().has_keys(name);
                let latest = self.latest.borrow().clone();
                if latest.0 == name
                    && let Some(hub) = latest.1.upgrade().filter(|hub| has(&hub))
                {
                    return Some(hub);
                }
                let hub = hubs.iter().find(has)?;
                *self.latest.borrow_mut() = (name, Rc::downgrade(hub));
                Some(hub.clone())
            }
            Sorted::Initiator(key) => hubs.iter().find(|hub| hub.key == key).cloned(),
            Sorted::Refused { wrong, answer } => {
                if let Some(wrong) = wrong {
                    log::warn!("{wrong}");
                }
                if let Some(answer) = answer {
                    let to = SocketAddrV4::new(from.address, from.port);
                    let _ = self.socket.try_send_to(&answer, SocketAddr::V4(to));
                }
                None
            }
            Sorted::Dropped => None,
        }
    }

    /// The most datagrams that go at once.
    pub fn max_batch(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends datagrams of one `size` (the last may be shorter). `false`: the socket takes no more at the moment. Any other
    /// failure is a lost packet: the tunnel sends it again.
    pub fn send(&self, to: Endpoint, datagrams: &[u8], size: Option<usize>) -> bool {
        let transmit = Transmit {
            destination: SocketAddr::V4(SocketAddrV4::new(to.address, to.port)),
            ecn: None,
            contents: datagrams,
            segment_size: size,
            src_ip: None,
        };
        let result = self.socket.try_io(Interest::WRITABLE, || {
            self.state.send(UdpSockRef::from(&self.socket), &transmit)
        });
        !matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Waits until the socket takes more.
    ///
    /// # Errors
    /// The socket's.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }
}
