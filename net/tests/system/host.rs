//! A host on a LAN: smoltcp over Ethernet, with connections that follow a script.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint};

#[derive(Default)]
struct Wire {
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Rx(frame), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// When a host closes its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// As soon as it has sent everything (a half-close, if the other side still sends).
    AfterSending,
    /// When it has sent everything and the other side has finished.
    AfterPeer,
    Never,
}

/// What a connection does.
#[derive(Clone, Debug)]
pub struct Script {
    pub send: Vec<u8>,
    /// Bytes written at once; the rest follows in later polls.
    pub piece: usize,
    /// Wait for so many bytes of the other side before sending.
    pub send_after: usize,
    pub close: Close,
    /// Reset after so many bytes were received.
    pub reset_after: Option<usize>,
    /// Take at most so many bytes in each poll.
    pub read: usize,
}

impl Script {
    pub fn send(bytes: Vec<u8>) -> Script {
        Script {
            send: bytes,
            piece: usize::MAX,
            send_after: 0,
            close: Close::AfterPeer,
            reset_after: None,
            read: usize::MAX,
        }
    }

    pub fn close(mut self, close: Close) -> Script {
        self.close = close;
        self
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both sides finished.
    Finished,
    /// The other side refused: RST to the SYN.
    Refused,
    /// An RST came.
    Reset,
    /// An ICMP error ended the attempt to connect.
    Unreachable,
    /// This side reset it, as the script says.
    ResetHere,
}

pub struct Connection {
    handle: SocketHandle,
    pub script: Script,
    sent: usize,
    pub received: Vec<u8>,
    was_open: bool,
    pub peer_finished: bool,
    closed: bool,
    pub outcome: Option<Outcome>,
}

impl Connection {
    pub fn is_open(&self) -> bool {
        self.was_open
    }

    pub fn sent(&self) -> usize {
        self.sent
    }
}

pub struct Host {
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    pub connections: Vec<Connection>,
    /// Source and destination port of packets that an ICMP error was received about.
    pub unreachable: Vec<(u16, u16)>,
    /// Hosts of new connections probe an idle other side so often.
    pub keep_alive: Option<u64>,
}

const BUFFER: usize = 200_000;

impl Host {
    pub fn new(number: u8, address: Ipv4Addr, seed: u64) -> Host {
        let mac = [2, 0, 0, 0, 1, number];
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = seed;
        let mut wire = Wire::default();
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(IpAddress::Ipv4(address), 16))
                .unwrap();
        });
        Host {
            mac,
            address,
            interface,
            sockets: SocketSet::new(vec![]),
            wire,
            connections: vec![],
            unreachable: vec![],
            keep_alive: None,
        }
    }

    fn socket() -> Socket<'static> {
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; BUFFER]),
            SocketBuffer::new(vec![0; BUFFER]),
        );
        socket.set_congestion_control(smoltcp::socket::tcp::CongestionControl::Reno);
        socket
    }

    fn add(&mut self, mut socket: Socket<'static>, script: Script) -> usize {
        socket.set_keep_alive(self.keep_alive.map(smoltcp::time::Duration::from_millis));
        let handle = self.sockets.add(socket);
        self.connections.push(Connection {
            handle,
            script,
            sent: 0,
            received: vec![],
            was_open: false,
            peer_finished: false,
            closed: false,
            outcome: None,
        });
        self.connections.len() - 1
    }

    pub fn listen(&mut self, port: u16, script: Script) -> usize {
        let mut socket = Host::socket();
        socket.listen(port).unwrap();
        self.add(socket, script)
    }

    pub fn connect(&mut self, to: Ipv4Addr, port: u16, from_port: u16, script: Script) -> usize {
        let mut socket = Host::socket();
        socket
            .connect(
                self.interface.context(),
                IpEndpoint::new(IpAddress::Ipv4(to), port),
                from_port,
            )
            .unwrap();
        self.add(socket, script)
    }

    pub fn receive(&mut self, frame: Vec<u8>) {
        self.notice_unreachable(&frame);
        self.wire.rx.push_back(frame);
    }

    /// smoltcp ignores ICMP errors; Linux ends an attempt to connect, so this does too.
    fn notice_unreachable(&mut self, frame: &[u8]) {
        let is_ours = frame.get(..6) == Some(&self.mac);
        if !is_ours
            || frame.get(12..14) != Some(&[8, 0])
            || frame.get(23) != Some(&1)
            || frame.get(34) != Some(&3)
        {
            return;
        }
        let Some(quote) = frame.get(42..70) else {
            return;
        };
        let port = |at: usize| u16::from_be_bytes([quote[at], quote[at + 1]]);
        let (from, to) = (port(20), port(22));
        self.unreachable.push((from, to));
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket>(connection.handle);
            let matches = socket.local_endpoint().is_some_and(|end| end.port == from)
                && socket.remote_endpoint().is_some_and(|end| end.port == to);
            if matches && socket.state() == State::SynSent {
                socket.close();
                connection.outcome = Some(Outcome::Unreachable);
            }
        }
    }

    /// Does everything that is due, and gives the frames that leave.
    pub fn poll(&mut self, now: u64) -> Vec<Vec<u8>> {
        let at = Instant::from_micros(now as i64);
        self.interface.poll(at, &mut self.wire, &mut self.sockets);
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket>(connection.handle);
            run(connection, socket);
        }
        self.interface.poll(at, &mut self.wire, &mut self.sockets);
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket>(connection.handle);
            conclude(connection, socket);
        }
        self.wire.tx.drain(..).collect()
    }

    pub fn next_wakeup(&mut self, now: u64) -> Option<u64> {
        let at = Instant::from_micros(now as i64);
        let slow_reader = self.connections.iter().any(|connection| {
            connection.script.read > 0 && self.sockets.get::<Socket>(connection.handle).can_recv()
        });
        let reading = slow_reader.then_some(now + 1000);
        let next = self
            .interface
            .poll_at(at, &self.sockets)
            .map(|at| (at.total_micros() as u64).max(now + 50));
        [reading, next].into_iter().flatten().min()
    }
}

fn run(connection: &mut Connection, socket: &mut Socket<'_>) {
    if connection.outcome.is_some() {
        return;
    }
    if socket.may_send() || socket.state() == State::CloseWait {
        connection.was_open = true;
    }
    let mut budget = connection.script.read;
    while budget > 0 && socket.can_recv() {
        let taken = socket
            .recv(|bytes| {
                let taken = bytes.len().min(budget);
                connection.received.extend_from_slice(&bytes[..taken]);
                (taken, taken)
            })
            .unwrap();
        budget -= taken;
    }
    if connection.was_open
        && !socket.can_recv()
        && socket.recv_slice(&mut []) == Err(RecvError::Finished)
    {
        connection.peer_finished = true;
    }
    if connection
        .script
        .reset_after
        .is_some_and(|limit| connection.was_open && connection.received.len() >= limit)
    {
        socket.abort();
        connection.outcome = Some(Outcome::ResetHere);
        return;
    }
    if socket.may_send() && connection.received.len() >= connection.script.send_after {
        let rest = &connection.script.send[connection.sent..];
        let piece = &rest[..rest.len().min(connection.script.piece)];
        connection.sent += socket.send_slice(piece).unwrap();
        let all = connection.sent == connection.script.send.len();
        let close = match connection.script.close {
            Close::AfterSending => all,
            Close::AfterPeer => all && connection.peer_finished,
            Close::Never => false,
        };
        if close && !connection.closed {
            socket.close();
            connection.closed = true;
        }
    }
}

fn conclude(connection: &mut Connection, socket: &mut Socket<'_>) {
    if connection.outcome.is_some() || socket.can_recv() {
        return;
    }
    match socket.state() {
        State::TimeWait if connection.peer_finished => connection.outcome = Some(Outcome::Finished),
        State::Closed if socket.remote_endpoint().is_none() => {
            connection.outcome = Some(if connection.closed && connection.peer_finished {
                Outcome::Finished
            } else if connection.was_open {
                Outcome::Reset
            } else {
                Outcome::Refused
            });
        }
        _ => {}
    }
}
