//! A host on a wire, with a TCP of its own (smoltcp): the clients and servers of the tests. It runs in the test's own loop.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

use super::wire::WireEnd;

/// Room for each direction of a connection, in bytes.
const BUFFER: usize = 256 << 10;
/// An Ethernet frame without its checksum.
const FRAME: usize = 1514;

struct Card(Arc<WireEnd>);

struct Received(Vec<u8>);

struct Sending<'a>(&'a WireEnd);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        frame.resize(length.max(60), 0);
        self.0.send(&frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.0.receive()?;
        Some((Received(frame), Sending(&self.0)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities.checksum.tcp = Checksum::Both;
        capabilities
    }
}

/// A host.
pub struct Station {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    started: std::time::Instant,
    next_port: u16,
}

impl Station {
    /// A host with this address on 10.77.0.0/16; everything elsewhere goes by way of `router`.
    pub fn new(wire: &Arc<WireEnd>, mac: [u8; 6], address: Ipv4Addr, router: Ipv4Addr) -> Station {
        let mut card = Card(wire.clone());
        let mut config = Config::new(EthernetAddress(mac).into());
        config.random_seed = u64::from(mac[5]);
        let mut interface = Interface::new(config, &mut card, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address, 16)));
        });
        let _ = interface.routes_mut().add_default_ipv4_route(router);
        Station {
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            started: std::time::Instant::now(),
            next_port: 40_000,
        }
    }

    fn add(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        self.sockets.add(socket)
    }

    /// Waits for a connection to `port`.
    ///
    /// # Errors
    /// Never, so far as is known.
    pub fn listen(&mut self, port: u16) -> Result<Connection> {
        let handle = self.add();
        self.sockets
            .get_mut::<Socket>(handle)
            .listen(port)
            .map_err(|error| anyhow!("cannot listen at {port}: {error}"))?;
        Ok(Connection::new(handle))
    }

    /// Begins a connection.
    ///
    /// # Errors
    /// Never, so far as is known.
    pub fn connect(&mut self, to: SocketAddrV4) -> Result<Connection> {
        self.next_port += 1;
        let handle = self.add();
        self.sockets
            .get_mut::<Socket>(handle)
            .connect(
                self.interface.context(),
                (*to.ip(), to.port()),
                self.next_port,
            )
            .map_err(|error| anyhow!("cannot connect to {to}: {error}"))?;
        Ok(Connection::new(handle))
    }

    /// Sends and receives what there is; true if there was something.
    pub fn poll(&mut self) -> bool {
        let now =
            Instant::from_micros(i64::try_from(self.started.elapsed().as_micros()).unwrap_or(0));
        let changed = self.interface.poll(now, &mut self.card, &mut self.sockets);
        changed != smoltcp::iface::PollResult::None
    }
}

/// One connection of a station, and what is to be sent and was received on it.
pub struct Connection {
    handle: SocketHandle,
    sending: Vec<u8>,
    sent: usize,
    closes: bool,
    was_open: bool,
    /// What has come.
    pub received: Vec<u8>,
}

impl Connection {
    fn new(handle: SocketHandle) -> Connection {
        Connection {
            handle,
            sending: Vec::new(),
            sent: 0,
            closes: false,
            was_open: false,
            received: Vec::new(),
        }
    }

    /// Sends this, too.
    pub fn send(&mut self, bytes: &[u8]) {
        self.sending.extend_from_slice(bytes);
    }

    /// Ends this side once everything is sent.
    pub fn close(&mut self) {
        self.closes = true;
    }

    /// Moves bytes between socket and memory. True when the other side has ended its direction.
    ///
    /// # Errors
    /// When the connection was refused or reset.
    pub fn turn(&mut self, station: &mut Station) -> Result<bool> {
        let socket = station.sockets.get_mut::<Socket>(self.handle);
        self.was_open |= socket.may_send() || socket.may_recv();
        while socket.can_recv() {
            let taken = socket
                .recv(|bytes| {
                    self.received.extend_from_slice(bytes);
                    (bytes.len(), bytes.len())
                })
                .map_err(|error| anyhow!("cannot receive: {error}"))?;
            if taken == 0 {
                break;
            }
        }
        if socket.can_send()
            && let Some(rest) = self.sending.get(self.sent..).filter(|it| !it.is_empty())
        {
            self.sent += socket
                .send_slice(rest)
                .map_err(|error| anyhow!("cannot send: {error}"))?;
        }
        if self.closes && self.was_open && self.sent == self.sending.len() {
            socket.close();
        }
        let state = socket.state();
        let has_ended = matches!(
            state,
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        ) || (state == State::Closed && self.closes);
        ensure!(
            has_ended || state != State::Closed,
            "the connection was {}",
            if self.was_open { "reset" } else { "refused" }
        );
        Ok(has_ended && !socket.can_recv())
    }
}
