//! One connection: an ordinary TCP socket, moved to and from a tunnel stream.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use outpost_net::FlowKey;
use outpost_net::flow::message::Code;
use outpost_net::flow::{Host, Incoming, Pump};
use outpost_net::tunnel::StreamId;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::hub::{Hub, Slot, add};

/// Why flows end when the tunnel does; never sent.
pub const TUNNEL_DOWN: Code = Code::Other(0);

/// How long the core waits for a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the branch waits for the core's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the end of a finished stream may take to be decoded.
const DECODE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes read from a socket at once.
const READ: usize = 128 * 1024;

/// A host's socket as the pump sees it.
struct Socket {
    tcp: TcpStream,
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    has_ended: bool,
    is_broken: bool,
    read_blocked: bool,
    write_blocked: bool,
}

impl Socket {
    fn new(tcp: TcpStream) -> Socket {
        // Blocks are written whole as soon as they are there: waiting for more helps nobody.
        let _ = tcp.set_nodelay(true);
        Socket {
            tcp,
            buffer: vec![0; READ],
            from: 0,
            to: 0,
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
        match self.tcp.try_read(&mut self.buffer) {
            Ok(0) => self.has_ended = true,
            Ok(len) => self.to = len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.read_blocked = true,
            Err(_) => self.is_broken = true,
        }
    }

    /// Closes with an RST.
    fn reset(self) {
        reset(&self.tcp);
    }
}

/// What is closed after this is closed by an RST.
fn reset(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

impl Host for Socket {
    fn readable(&mut self) -> usize {
        self.fill();
        // A full buffer: more will be there at once, and blocks may wait for it.
        self.to - self.from + usize::from(self.to == READ)
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
        let taken = take(&self.buffer[self.from..self.to]).min(self.to - self.from);
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

    fn finish(&mut self) {
        let _ = SockRef::from(&self.tcp).shutdown(std::net::Shutdown::Write);
    }
}

/// Branch: carries a client's connection to `server`.
pub async fn forward(hub: Rc<Hub>, tcp: TcpStream, server: SocketAddrV4) {
    let Ok(SocketAddr::V4(client)) = tcp.peer_addr() else {
        return;
    };
    let key = FlowKey { client, server };
    let opened = hub.session.borrow_mut().open(&key);
    let Some((stream, mut pump)) = opened else {
        add(&hub.counters.tunnel_down, 1);
        log::info!(
            "{client} to {server}: the tunnel to {} is down or full; the client is reset",
            hub.name
        );
        reset(&tcp);
        return;
    };
    let slot = hub.enter(stream, key);
    hub.dirty.notify_one();
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, async {
        loop {
            if let Some(code) = slot.reset.get() {
                return Err(code);
            }
            if hub
                .session
                .borrow_mut()
                .answer(stream, &mut pump)?
                .is_some()
            {
                return Ok(());
            }
            slot.wake.notified().await;
        }
    });
    match answer.await.unwrap_or(Err(Code::Abandoned)) {
        Ok(()) => run(&hub, stream, pump, &slot, tcp).await,
        Err(code) => {
            count(&hub, code);
            log::info!("{client} to {server}: not opened: {code:?}");
            reset(&tcp);
            if slot.reset.get().is_none() {
                hub.session.borrow_mut().refuse(stream, code);
            }
            hub.session.borrow_mut().close_pump(pump);
        }
    }
    leave(&hub, stream, &slot);
}

/// Core: opens the connection that the peer asks for, and carries it.
pub async fn serve(hub: Rc<Hub>, stream: StreamId, slot: Rc<Slot>) {
    let server = slot.key.server;
    let connected = tokio::select! {
        result = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(server)) => match result {
            Ok(Ok(tcp)) => Ok(tcp),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(Code::Refused),
            _ => Err(Code::Unreachable),
        },
        code = abandoned(&slot) => Err(code),
    };
    match connected {
        Ok(tcp) => {
            let pump = hub.session.borrow_mut().accept(stream);
            run(&hub, stream, pump, &slot, tcp).await;
        }
        Err(code) => {
            count(&hub, code);
            if slot.reset.get().is_none() {
                log::info!("{} to {server}: not opened: {code:?}", slot.key.client);
                hub.session.borrow_mut().refuse(stream, code);
            }
        }
    }
    leave(&hub, stream, &slot);
}

async fn abandoned(slot: &Slot) -> Code {
    loop {
        slot.wake.notified().await;
        if let Some(code) = slot.reset.get() {
            return code;
        }
    }
}

/// Forgets a flow that is over, if the name is still its own.
fn leave(hub: &Hub, stream: StreamId, slot: &Rc<Slot>) {
    let mut slots = hub.slots.borrow_mut();
    if slots.get(&stream).is_some_and(|it| Rc::ptr_eq(it, slot)) {
        slots.remove(&stream);
    }
    hub.dirty.notify_one();
}

fn count(hub: &Hub, code: Code) {
    let counters = &hub.counters;
    add(
        match code {
            Code::Refused => &counters.refused,
            Code::Unreachable => &counters.unreachable,
            TUNNEL_DOWN => &counters.tunnel_down,
            _ => &counters.reset_by_peer,
        },
        1,
    );
}

/// Moves bytes both ways until the flow is over.
async fn run(hub: &Rc<Hub>, stream: StreamId, mut pump: Pump, slot: &Slot, tcp: TcpStream) {
    let mut socket = Socket::new(tcp);
    slot.stage.set("open");
    let end = loop {
        if let Some(code) = slot.reset.get() {
            break Err(code);
        }
        socket.read_blocked = false;
        socket.write_blocked = false;
        let (from, to) = (pump.from_host, pump.to_host);
        let result = hub
            .session
            .borrow_mut()
            .turn(stream, &mut pump, &mut socket);
        hub.dirty.notify_one();
        add(&hub.counters.from_hosts, pump.from_host - from);
        add(&hub.counters.to_hosts, pump.to_host - to);
        let statistics = pump.statistics();
        slot.bytes.set([
            pump.from_host,
            pump.to_host,
            statistics.wire_bytes,
            statistics.copied_bytes,
            statistics.literal_bytes,
        ]);
        let again = match result {
            Ok(again) => again,
            Err(code) => {
                hub.session.borrow_mut().refuse(stream, code);
                break Err(code);
            }
        };
        if socket.is_broken {
            hub.session.borrow_mut().refuse(stream, Code::HostReset);
            add(&hub.counters.reset_by_host, 1);
            break Ok(());
        }
        if pump.is_finished() {
            add(&hub.counters.finished, 1);
            break Ok(());
        }
        if again {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            _ = socket.tcp.readable(), if socket.read_blocked => {}
            _ = socket.tcp.writable(), if socket.write_blocked => {}
            () = slot.wake.notified() => {}
            () = tokio::time::sleep(DECODE_TIMEOUT), if pump.awaits_last_bytes() => {
                hub.session.borrow_mut().refuse(stream, Code::Undecodable);
                break Err(Code::Undecodable);
            }
        }
    };
    hub.session.borrow_mut().close_pump(pump);
    if let Err(code) = end {
        count(hub, code);
        socket.reset();
    }
}
