//! One connection: an ordinary TCP socket, moved to and from a tunnel stream.

use std::cell::RefCell;
use std::future::{Future as _, pending, poll_fn};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use outpost_net::FlowKey;
use outpost_net::flow::message::Code;
use outpost_net::flow::{Host, Incoming, Pump, Turn};
use outpost_net::time::Instant;
use outpost_net::tunnel::StreamId;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};

use crate::hub::{Hub, Slot, add};
use crate::ledger::{End, Numbers};

/// Why flows end when the tunnel does; never sent.
pub const TUNNEL_DOWN: Code = Code::Other(0);

/// How long the core waits for a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the branch waits for the core's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the end of a finished stream may take to be decoded.
const DECODE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes read from a socket at once: in a long turn, and in a short one, of which it is all.
const READ: usize = 128 * 1024;
const READ_SHORT: usize = 64 * 1024;

/// What the kernel may hold of a host's bytes while a peer has [`FEW`] flows: what is there at once makes blocks and turns that are
/// full.
pub const ROOM: usize = 1 << 20;
/// The same for a host that comes while there are more.
pub const ROOM_OF_MANY: usize = 256 * 1024;
/// So many flows are few.
pub const FEW: usize = 64;

/// A turn that gave the tunnel so many bytes has them sent before the next flow's.
const WORTH_SENDING: u64 = 4 * 1024;

/// What sockets are read to, one after the other: it stays in the CPU's caches.
pub struct Buffer(RefCell<Box<[u8]>>);

impl Default for Buffer {
    fn default() -> Self {
        Buffer(RefCell::new(vec![0; READ].into()))
    }
}

/// A host's socket as the pump sees it.
struct Socket {
    tcp: TcpStream,
    hub: Rc<Hub>,
    /// What was read and is not taken: `from..to` of the hub's buffer, or of `kept` if that holds anything.
    from: usize,
    to: usize,
    kept: Vec<u8>,
    /// Bytes to read at once.
    most: usize,
    /// What the block that is being collected takes.
    room: usize,
    /// The last read was of so many: more will be there at once.
    has_more: bool,
    has_ended: bool,
    is_broken: bool,
    read_blocked: bool,
    write_blocked: bool,
}

impl Socket {
    /// `early`: bytes that were read from it before.
    fn new(hub: &Rc<Hub>, tcp: TcpStream, early: &[u8]) -> Socket {
        Socket {
            tcp,
            hub: hub.clone(),
            from: 0,
            to: early.len(),
            kept: early.to_vec(),
            most: READ_SHORT,
            room: READ,
            has_more: false,
            has_ended: false,
            is_broken: false,
            read_blocked: false,
            write_blocked: false,
        }
    }

    fn fill(&mut self) {
        if self.from < self.to || self.has_ended || self.is_broken {
            return;
        }
        self.from = 0;
        self.to = 0;
        self.kept = Vec::new();
        self.has_more = false;
        let most = self.most.min(self.room);
        match self
            .tcp
            .try_read(&mut self.hub.buffer.0.borrow_mut()[..most])
        {
            Ok(0) => self.has_ended = true,
            Ok(len) => {
                self.to = len;
                self.has_more = len == most;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.read_blocked = true,
            Err(_) => self.is_broken = true,
        }
    }

    /// The turn is over: the next may read to the buffer.
    fn keep(&mut self) {
        if self.kept.is_empty() && self.from < self.to {
            let buffer = self.hub.buffer.0.borrow();
            self.kept.extend_from_slice(&buffer[self.from..self.to]);
            self.to -= self.from;
            self.from = 0;
        }
    }

    /// Closes with an RST.
    fn reset(self) {
        reset(&self.tcp);
    }
}

/// Blocks are written whole as soon as they are there: waiting for more helps nobody. What a listener accepts is as it is.
pub fn without_delay(socket: &TcpSocket) {
    let _ = SockRef::from(socket).set_tcp_nodelay(true);
}

/// What is closed after this is closed by an RST.
pub fn reset(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

impl Host for Socket {
    fn wants(&mut self, room: usize) {
        // For a few bytes no call is worth it.
        self.room = if room < READ_SHORT / 2 { READ } else { room };
    }

    fn readable(&mut self) -> usize {
        self.fill();
        // Blocks may wait for what will be there at once.
        self.to - self.from + usize::from(self.has_more)
    }

    fn read(&mut self, take: impl FnOnce(&[u8]) -> usize) -> Incoming {
        self.fill();
        if self.from == self.to {
            if self.is_broken {
                return Incoming::Closed;
            }
            if self.has_ended {
                return Incoming::Finished;
            }
        }
        let (from, to) = (self.from, self.to);
        let taken = if self.kept.is_empty() {
            take(&self.hub.buffer.0.borrow()[from..to])
        } else {
            take(&self.kept[from..to])
        };
        let taken = taken.min(to - from);
        self.from += taken;
        Incoming::Bytes(taken)
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        match self.tcp.try_write(bytes) {
            Ok(len) => {
                self.write_blocked = len < bytes.len();
                len
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.write_blocked = true;
                0
            }
            Err(_) => {
                self.is_broken = true;
                0
            }
        }
    }

    fn clock(&self) -> Option<Instant> {
        Some(self.hub.now())
    }

    fn finish(&mut self, last: bool) {
        // Closing sends the same, and the host is woken once.
        if last {
            return;
        }
        let _ = SockRef::from(&self.tcp).shutdown(std::net::Shutdown::Write);
    }
}

/// When a host has reset its connection. One that has only finished has not.
async fn broken(tcp: &TcpStream) {
    while let Ok(ready) = tcp.ready(Interest::ERROR).await {
        if ready.is_error() {
            return;
        }
    }
}

/// A flow that the core has opened.
pub struct Opened {
    stream: StreamId,
    pump: Box<Pump>,
    slot: Rc<Slot>,
}

/// Branch: has the core open a connection for `client`. Gives it when the server has answered.
///
/// # Errors
/// Why there is none. The end is noted by then.
pub async fn open(hub: &Rc<Hub>, key: FlowKey, client: &TcpStream) -> Result<Opened, End> {
    let opened = hub.session.borrow_mut().open(&key);
    // What has its place in a task is moved with it.
    let Some((stream, mut pump)) = opened.map(|(stream, pump)| (stream, Box::new(pump))) else {
        let end = match hub.session.borrow().is_up() {
            true => End::Full,
            false => End::TunnelDown,
        };
        hub.counters.ends.count(end);
        hub.ledger.not_begun(&hub.name, key, end);
        return Err(end);
    };
    let slot = hub.enter(stream, key);
    hub.dirty.notify_one();
    let answer = async {
        loop {
            if let Some(code) = slot.reset.get() {
                return Err(End::of(code));
            }
            let answer = hub.session.borrow_mut().answer(stream, &mut pump);
            match answer {
                Ok(Some(())) => return Ok(()),
                Ok(None) => slot.wake.given().await,
                Err(code) => return Err(End::of(code)),
            }
        }
    };
    let result = tokio::select! {
        answer = tokio::time::timeout(ANSWER_TIMEOUT, answer) => answer.unwrap_or(Err(End::NoAnswer)),
        () = broken(client) => Err(End::Abandoned),
    };
    match result {
        Ok(()) => Ok(Opened { stream, pump, slot }),
        Err(end) => {
            if slot.reset.get().is_none() {
                hub.session.borrow_mut().refuse(stream, Code::Abandoned);
            }
            hub.session.borrow_mut().close_pump(*pump);
            hub.leave(stream, &slot, end);
            Err(end)
        }
    }
}

/// Branch: moves bytes between the client and an opened flow. `early` are bytes of the client that were read before.
pub async fn carry(hub: &Rc<Hub>, opened: Opened, tcp: TcpStream, early: &[u8]) {
    let Opened { stream, pump, slot } = opened;
    let end = run(hub, stream, pump, &slot, Socket::new(hub, tcp, early)).await;
    hub.leave(stream, &slot, end);
}

/// Branch: carries a client's connection to `server`.
pub async fn forward(hub: Rc<Hub>, tcp: TcpStream, client: SocketAddrV4, server: SocketAddrV4) {
    let key = FlowKey { client, server };
    match open(&hub, key, &tcp).await {
        Ok(opened) => carry(&hub, opened, tcp, &[]).await,
        Err(end) => {
            say(&hub, &key, end);
            reset(&tcp);
        }
    }
}

/// A line in the log about a flow that was not opened.
pub fn say(hub: &Hub, key: &FlowKey, end: End) {
    let (client, server, name) = (key.client, key.server, &hub.name);
    log::info!("{client} to {server} by {name}: not opened: {}", end.name());
}

/// Core: opens the connection that the peer asks for, and carries it.
pub async fn serve(hub: Rc<Hub>, stream: StreamId, slot: Rc<Slot>) {
    let FlowKey { client, server } = slot.key;
    let from = hub.from_client.then_some(client);
    let connected = tokio::select! {
        result = tokio::time::timeout(CONNECT_TIMEOUT, connect(server, from, hub.room())) => match result {
            Ok(Ok(tcp)) => Ok(tcp),
            Ok(Err(error)) => Err(match error.kind() {
                io::ErrorKind::ConnectionRefused => Code::Refused,
                io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => Code::NotPermitted,
                _ => Code::Unreachable,
            }),
            Err(_) => Err(Code::Unreachable),
        },
        code = abandoned(&slot) => Err(code),
    };
    let end = match connected {
        Ok(tcp) => {
            let pump = Box::new(hub.session.borrow_mut().accept(stream));
            run(&hub, stream, pump, &slot, Socket::new(&hub, tcp, &[])).await
        }
        Err(code) => {
            let end = End::of(code);
            if slot.reset.get().is_none() {
                say(&hub, &slot.key, end);
                hub.session.borrow_mut().refuse(stream, code);
            }
            end
        }
    };
    hub.leave(stream, &slot, end);
}

/// Connects to `server`; from the address `client`, where that can be: the way back must lead through this machine. `room`: what
/// the kernel may hold of the server's bytes, if that is not for it to decide.
pub async fn connect(
    server: SocketAddrV4,
    client: Option<SocketAddrV4>,
    room: Option<usize>,
) -> io::Result<TcpStream> {
    let ip = server.ip();
    if server.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = TcpSocket::new_v4()?;
    without_delay(&socket);
    if let Some(room) = room {
        // The server is told at once how much may come.
        let _ = SockRef::from(&socket).set_recv_buffer_size(room);
    }
    // A client on the branch's own machine has an address that means another machine here.
    let client = client.filter(|it| !it.ip().is_loopback() && !it.ip().is_unspecified());
    if let Some(client) = client {
        SockRef::from(&socket).set_ip_transparent_v4(true)?;
        socket.set_reuseaddr(true)?;
        let bound = socket.bind(SocketAddr::V4(client));
        if matches!(&bound, Err(error) if error.kind() == io::ErrorKind::AddrInUse) {
            socket.bind(SocketAddr::V4(SocketAddrV4::new(*client.ip(), 0)))?;
        } else {
            bound?;
        }
    }
    socket.connect(SocketAddr::V4(server)).await
}

async fn abandoned(slot: &Slot) -> Code {
    loop {
        if let Some(code) = slot.reset.get() {
            return code;
        }
        slot.wake.given().await;
    }
}

/// What ends a flow's rest.
enum Woken {
    /// The tunnel or the host has something, or room for something.
    ToGoOn,
    /// The host, which had finished, has reset its connection. Before it has finished, that is found by reading: what came
    /// before the reset is read first.
    ByReset,
    /// The end of the stream could not be decoded in time.
    TooLate,
}

/// Waits until a flow can go on.
async fn wait(socket: &Socket, slot: &Slot, awaits_last_bytes: bool) -> Woken {
    // Most rests are in the middle of a flow, and then none of this is made.
    let mut at_the_end = pin!(async {
        let reset = async {
            match socket.has_ended {
                true => broken(&socket.tcp).await,
                false => pending().await,
            }
        };
        if !awaits_last_bytes {
            reset.await;
            return Woken::ByReset;
        }
        match tokio::time::timeout(DECODE_TIMEOUT, reset).await {
            Ok(()) => Woken::ByReset,
            Err(_) => Woken::TooLate,
        }
    });
    poll_fn(|context| {
        let can_go_on = slot.wake.poll(context).is_ready()
            || (socket.read_blocked && socket.tcp.poll_read_ready(context).is_ready())
            || (socket.write_blocked && socket.tcp.poll_write_ready(context).is_ready());
        if can_go_on {
            return Poll::Ready(Woken::ToGoOn);
        }
        if socket.has_ended || awaits_last_bytes {
            return at_the_end.as_mut().poll(context);
        }
        Poll::Pending
    })
    .await
}

/// Moves bytes both ways until the flow is over.
async fn run(
    hub: &Rc<Hub>,
    stream: StreamId,
    mut pump: Box<Pump>,
    slot: &Slot,
    mut socket: Socket,
) -> End {
    slot.stage.set("open");
    // A flow that has more to do than a short turn's worth waits until it is its turn, and then has a long one.
    let mut permit = None;
    let end = loop {
        if let Some(code) = slot.reset.get() {
            break End::of(code);
        }
        socket.read_blocked = false;
        socket.write_blocked = false;
        let (from, to) = (pump.from_host, pump.to_host);
        let sent = pump.statistics().wire_bytes;
        let turn = match permit {
            Some(_) => Turn::Long,
            None => Turn::Short,
        };
        socket.most = match turn {
            Turn::Long => READ,
            Turn::Short => READ_SHORT,
        };
        let result = hub
            .session
            .borrow_mut()
            .turn_of(turn, stream, &mut pump, &mut socket);
        socket.keep();
        if pump.statistics().wire_bytes - sent >= WORTH_SENDING {
            hub.interleave();
        } else {
            hub.dirty.notify_one();
        }
        add(&hub.counters.from_hosts, pump.from_host - from);
        add(&hub.counters.to_hosts, pump.to_host - to);
        slot.numbers.set(Numbers::of(&pump));
        let again = match result {
            Ok(again) => again,
            Err(code) => {
                hub.session.borrow_mut().refuse(stream, code);
                break End::of(code);
            }
        };
        if socket.is_broken {
            hub.session.borrow_mut().refuse(stream, Code::HostReset);
            break End::ResetByHost;
        }
        if pump.is_finished() {
            break End::Finished;
        }
        permit = None;
        if again {
            permit = hub.turns.acquire().await.ok();
            // Those that have just got something go first.
            tokio::task::yield_now().await;
            continue;
        }
        match wait(&socket, slot, pump.awaits_last_bytes()).await {
            Woken::ToGoOn => {}
            Woken::ByReset => socket.is_broken = true,
            Woken::TooLate => {
                hub.session.borrow_mut().refuse(stream, Code::Undecodable);
                break End::Undecodable;
            }
        }
    };
    hub.session.borrow_mut().close_pump(*pump);
    if end != End::Finished {
        socket.reset();
    }
    end
}
