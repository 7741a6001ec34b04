//! One peer: its tunnel, the UDP socket that carries it, and the flows in it. Everything of a process runs on one thread;
//! each flow is a task that is woken by its socket or by the tunnel.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use outpost_net::FlowKey;
use outpost_net::flow::message::Code;
use outpost_net::flow::{Notice, Session, SessionConfig};
use outpost_net::time::Instant;
use outpost_net::tunnel::{Endpoint, StreamId};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::flow;

/// Datagrams taken in before what they brought is acted on.
const BATCHES: usize = 4;
/// What is asked of the kernel for datagrams that wait.
const SOCKET_BUFFER: usize = 4 << 20;
/// The most bytes the kernel gives or takes at once.
const BATCH_BYTES: usize = 65_507;

/// What a flow's task and the rest of the process share.
pub struct Slot {
    /// Who talks to whom.
    pub key: FlowKey,
    /// The tunnel has something for the flow.
    pub wake: Notify,
    /// The peer has reset the stream, or the tunnel is gone.
    pub reset: Cell<Option<Code>>,
    /// Payload bytes from the host, to the host, and encoded, copied and literal bytes of those from the host.
    pub bytes: Cell<[u64; 5]>,
    /// What it is doing.
    pub stage: Cell<&'static str>,
}

/// How flows ended, and how many there were.
#[derive(Default)]
#[allow(missing_docs)] // named after the ends
pub struct Counters {
    pub total: Cell<u64>,
    pub finished: Cell<u64>,
    pub refused: Cell<u64>,
    pub unreachable: Cell<u64>,
    pub reset_by_host: Cell<u64>,
    pub reset_by_peer: Cell<u64>,
    pub tunnel_down: Cell<u64>,
    pub from_hosts: Cell<u64>,
    pub to_hosts: Cell<u64>,
}

/// Adds to a counter.
pub fn add(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

/// A peer.
pub struct Hub {
    /// Its name in the configuration.
    pub name: String,
    /// Tunnel and dictionaries.
    pub session: RefCell<Session>,
    /// The flows in it.
    pub slots: RefCell<HashMap<StreamId, Rc<Slot>>>,
    /// There is something to send.
    pub dirty: Notify,
    /// What became of flows.
    pub counters: Counters,
    started: std::time::Instant,
}

impl Hub {
    /// A peer whose tunnel is not up yet.
    pub fn new(name: &str, config: SessionConfig) -> Rc<Hub> {
        Rc::new(Hub {
            name: name.to_owned(),
            session: RefCell::new(Session::new(config, Instant::ZERO)),
            slots: RefCell::default(),
            dirty: Notify::new(),
            counters: Counters::default(),
            started: std::time::Instant::now(),
        })
    }

    /// The engine's time.
    pub fn now(&self) -> Instant {
        Instant::ZERO + self.started.elapsed()
    }

    /// Makes a flow known.
    pub fn enter(&self, stream: StreamId, key: FlowKey) -> Rc<Slot> {
        let slot = Rc::new(Slot {
            key,
            wake: Notify::new(),
            reset: Cell::new(None),
            bytes: Cell::default(),
            stage: Cell::new("opening"),
        });
        add(&self.counters.total, 1);
        self.slots.borrow_mut().insert(stream, slot.clone());
        slot
    }

    /// Sends and receives for as long as it is polled.
    ///
    /// # Errors
    /// The socket's, when it is of no use any more.
    pub async fn carry(self: &Rc<Hub>, socket: UdpSocket) -> io::Result<()> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // As much as the system allows: what does not fit is lost, and sent again.
        let _ = SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER);
        let _ = SockRef::from(&socket).set_send_buffer_size(SOCKET_BUFFER);
        let mut out = Sending::default();
        let mut buffer = vec![0; BATCH_BYTES.next_multiple_of(65_536)];
        loop {
            self.handle_notices();
            let blocked = !self.transmit(&socket, &state, &mut out)?;
            // Sending may have told something, too.
            self.handle_notices();
            let now = self.now();
            let wait = match self.session.borrow().next_wakeup(now) {
                Some(at) => at.since(now),
                None => Duration::from_secs(60),
            };
            tokio::select! {
                ready = socket.readable() => {
                    ready?;
                    self.receive(&socket, &state, &mut buffer)?;
                }
                ready = socket.writable(), if blocked => ready?,
                () = self.dirty.notified() => {}
                () = tokio::time::sleep(wait), if !blocked => {}
            }
        }
    }

    fn receive(
        &self,
        socket: &UdpSocket,
        state: &UdpSocketState,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        for _ in 0..BATCHES {
            let mut meta = [RecvMeta::default()];
            let result = socket.try_io(Interest::READABLE, || {
                state.recv(
                    UdpSockRef::from(socket),
                    &mut [IoSliceMut::new(buffer)],
                    &mut meta,
                )
            });
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
            let now = self.now();
            let mut session = self.session.borrow_mut();
            for datagram in buffer[..meta.len].chunks_mut(meta.stride.max(1)) {
                session.receive(now, from, datagram);
            }
        }
        Ok(())
    }

    /// Sends all that may go now. `false`: the socket takes no more at the moment.
    fn transmit(
        &self,
        socket: &UdpSocket,
        state: &UdpSocketState,
        out: &mut Sending,
    ) -> io::Result<bool> {
        loop {
            if !out.is_full(state.max_gso_segments()) {
                out.collect(
                    &mut self.session.borrow_mut(),
                    self.now(),
                    state.max_gso_segments(),
                );
            }
            let Some(to) = out.to else { return Ok(true) };
            let transmit = Transmit {
                destination: SocketAddr::V4(SocketAddrV4::new(to.address, to.port)),
                ecn: None,
                contents: &out.batch,
                segment_size: (out.count > 1).then_some(out.size),
                src_ip: None,
            };
            let result = socket.try_io(Interest::WRITABLE, || {
                state.send(UdpSockRef::from(socket), &transmit)
            });
            if let Err(error) = result
                && error.kind() == io::ErrorKind::WouldBlock
            {
                return Ok(false);
            }
            // Any other error is a lost packet: the tunnel sends it again.
            out.sent();
        }
    }

    fn handle_notices(self: &Rc<Hub>) {
        loop {
            let notice = self.session.borrow_mut().notice(self.now());
            match notice {
                None => return,
                Some(Notice::Up) => {
                    let peer = self.session.borrow().peer();
                    log::info!(
                        "{}: the tunnel is up, peer at {}",
                        self.name,
                        peer.map_or_else(String::new, |at| at.to_string())
                    );
                    self.end_all();
                }
                Some(Notice::Down(reason)) => {
                    log::warn!("{}: the tunnel is down: {reason}", self.name);
                    self.end_all();
                }
                Some(Notice::Request(stream, key)) => {
                    let slot = self.enter(stream, key);
                    tokio::task::spawn_local(flow::serve(self.clone(), stream, slot));
                }
                Some(Notice::Wake(stream)) => {
                    if let Some(slot) = self.slots.borrow().get(&stream) {
                        slot.wake.notify_one();
                    }
                }
                Some(Notice::Reset(stream, code)) => {
                    if let Some(slot) = self.slots.borrow().get(&stream) {
                        slot.reset.set(Some(code));
                        slot.wake.notify_one();
                    }
                }
                Some(Notice::WrongKey(wrong)) => log::warn!("{}: {wrong}", self.name),
            }
        }
    }

    /// The tunnel is lost: every flow is reset.
    fn end_all(&self) {
        for (_, slot) in self.slots.borrow_mut().drain() {
            slot.reset.set(Some(flow::TUNNEL_DOWN));
            slot.wake.notify_one();
        }
    }
}

/// Datagrams of one size for one place, and perhaps one that did not fit with them.
#[derive(Default)]
struct Sending {
    batch: Vec<u8>,
    to: Option<Endpoint>,
    size: usize,
    count: usize,
    /// The last one was shorter: nothing may follow it.
    closed: bool,
    next: Vec<u8>,
    next_to: Option<Endpoint>,
}

impl Sending {
    fn is_full(&self, most: usize) -> bool {
        self.closed || self.count >= most || self.next_to.is_some()
    }

    fn collect(&mut self, session: &mut Session, now: Instant, most: usize) {
        while !self.is_full(most) {
            let Some(to) = session.poll_transmit(now, &mut self.next) else {
                return;
            };
            self.next_to = Some(to);
            self.take_next();
        }
    }

    /// Appends the waiting datagram, if it goes with the others.
    fn take_next(&mut self) {
        let Some(to) = self.next_to else { return };
        let len = self.next.len();
        let goes = match self.to {
            None => true,
            Some(place) => place == to && len <= self.size && self.batch.len() + len <= BATCH_BYTES,
        };
        if goes {
            if self.to.is_none() {
                self.size = len;
            }
            self.to = Some(to);
            self.closed = len < self.size;
            self.batch.extend_from_slice(&self.next);
            self.count += 1;
            self.next_to = None;
        }
    }

    fn sent(&mut self) {
        self.batch.clear();
        self.to = None;
        self.count = 0;
        self.closed = false;
        self.take_next();
    }
}
