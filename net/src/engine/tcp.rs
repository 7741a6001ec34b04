//! One TCP connection towards a host, on a smoltcp interface of its own. It knows nothing of the tunnel.
//!
//! A smoltcp socket set costs time for each socket in it, so each connection has its own and is polled only when it has
//! work. IP packets go in without their Ethernet header and come out with one.

use alloc::vec;
use core::net::SocketAddrV4;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration as SmolDuration, Instant as SmolInstant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpEndpoint, IpListenEndpoint};

use crate::flow::{Host, Incoming};
use crate::outbox::Outbox;
use crate::switch::Ports;
use crate::time::Instant;
use crate::wire::{self, FlowKey, Macs, Segment};

/// With nothing to say for so long, the host is asked whether it is still there…
const KEEP_ALIVE: SmolDuration = SmolDuration::from_secs(75);
/// …and after so long without a sign of it, the connection is reset.
const GIVE_UP: SmolDuration = SmolDuration::from_secs(300);
/// The window in a SYN is never scaled (RFC 7323, 2.2), so it cannot exceed this.
const UNSCALED_WINDOW: usize = 65_535;

/// Where a connection's frames go.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// MAC addresses of the frames.
    pub macs: Macs,
    /// Ports that they leave from.
    pub ports: Ports,
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The handshake is not over.
    Opening,
    /// Bytes can go at least one way.
    Open,
    /// Both ways are closed in order. What is left to do is answer a late FIN.
    TimeWait,
    /// There is no connection (any more).
    Closed,
}

/// A TCP connection towards a host.
pub struct Tcp {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// First sequence number of the host, once its SYN has come.
    host_isn: Option<u32>,
    /// Whether a segment with a scaled window has left. Until then smoltcp overestimates what it has offered.
    window_told: bool,
    /// Whether the SYN-ACK is withheld.
    withheld: bool,
    /// Whether the host's FIN has come, with all that was before it.
    host_closed: bool,
}

impl Tcp {
    fn new(now: Instant, buffer: usize, seed: u64) -> Tcp {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut nothing = Outbox::default();
        let mut device = FlowDevice {
            ingress: None,
            outbox: &mut nothing,
            way: None,
            sent: Sent::default(),
        };
        let mut interface = Interface::new(config, &mut device, smol(now));
        interface.set_any_ip(true);
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; buffer]),
            SocketBuffer::new(vec![0; buffer]),
        );
        // What a proxy has read must go on at once.
        socket.set_nagle_enabled(false);
        socket.set_congestion_control(CongestionControl::Reno);
        // Before the connection begins: later, smoltcp would send a keep-alive at once.
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(GIVE_UP));
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(socket);
        Tcp {
            interface,
            sockets,
            handle,
            host_isn: None,
            window_told: false,
            withheld: false,
            host_closed: false,
        }
    }

    /// The server's end of a connection that `syn` opens. The SYN-ACK is withheld until [`Tcp::accept`].
    pub fn answering(
        now: Instant,
        syn: &Segment<'_>,
        buffer: usize,
        seed: u64,
        way: Way,
        outbox: &mut Outbox,
    ) -> Tcp {
        let mut tcp = Tcp::new(now, buffer, seed);
        tcp.withheld = true;
        let socket = tcp.socket();
        socket.pause_synack(true);
        let endpoint = IpListenEndpoint {
            addr: Some(IpAddress::Ipv4(*syn.destination.ip())),
            port: syn.destination.port(),
        };
        if socket.listen(endpoint).is_ok() {
            tcp.receive(now, syn, way, outbox);
        }
        tcp
    }

    /// The client's end of a connection that is opened from the client's own address.
    pub fn connecting(now: Instant, key: &FlowKey, buffer: usize, seed: u64) -> Tcp {
        let mut tcp = Tcp::new(now, buffer, seed);
        let (local, remote) = (endpoint(key.client), endpoint(key.server));
        let context = tcp.interface.context();
        let socket: &mut Socket<'_> = tcp.sockets.get_mut(tcp.handle);
        // An address that cannot be connected to leaves the socket closed, which the flow takes for a refusal.
        if let Err(error) = socket.connect(context, remote, local) {
            log::debug!("{key:?}: {error}");
        }
        tcp
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn socket_ref(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// Takes a segment from the host.
    pub fn receive(&mut self, now: Instant, segment: &Segment<'_>, way: Way, outbox: &mut Outbox) {
        if !self.is_expected(segment) {
            return;
        }
        let sent = {
            let mut device = FlowDevice {
                ingress: Some(segment.ip),
                outbox,
                way: Some(way),
                sent: Sent::default(),
            };
            self.interface
                .poll_ingress_single(smol(now), &mut device, &mut self.sockets);
            device.sent
        };
        self.window_told |= sent.past_syn;
        self.host_closed |= matches!(
            self.socket_ref().state(),
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait
        );
    }

    /// Notes the host's first sequence number, and holds back what no honest host sends before it has seen our scaled
    /// window: smoltcp 0.14 scales the window of its own SYN and would write beyond its buffer's end.
    fn is_expected(&mut self, segment: &Segment<'_>) -> bool {
        if self.window_told || segment.rst {
            return true;
        }
        if segment.syn {
            if self.host_isn.is_none() || self.socket_ref().state() == State::SynSent {
                self.host_isn = Some(segment.sequence);
            }
            return true;
        }
        let Some(isn) = self.host_isn else {
            return segment.payload_len == 0;
        };
        let window = self.socket_ref().recv_capacity().min(UNSCALED_WINDOW);
        let offset = segment.sequence.wrapping_sub(isn.wrapping_add(1)) as usize;
        segment.payload_len == 0 || offset.saturating_add(segment.payload_len) <= window
    }

    /// Sends what there is to send. Gives when to poll again if nothing happens before.
    pub fn poll(&mut self, now: Instant, way: Way, outbox: &mut Outbox) -> Option<Instant> {
        let sent = {
            let mut device = FlowDevice {
                ingress: None,
                outbox,
                way: Some(way),
                sent: Sent::default(),
            };
            self.interface
                .poll(smol(now), &mut device, &mut self.sockets);
            device.sent
        };
        self.window_told |= sent.past_syn;
        if self.withheld && self.phase() == Phase::Opening {
            // smoltcp would have us poll all the time.
            return None;
        }
        let at = self.interface.poll_at(smol(now), &self.sockets)?;
        let at = Instant::from_micros(u64::try_from(at.total_micros()).unwrap_or(0));
        // What could not be sent now (a full outbox, a window not open) is not tried again at once.
        Some(at.max(now + core::time::Duration::from_millis(1)))
    }

    /// Lets the SYN-ACK go.
    pub fn accept(&mut self) {
        self.withheld = false;
        self.socket().pause_synack(false);
    }

    /// What the connection is doing.
    pub fn phase(&self) -> Phase {
        match self.socket_ref().state() {
            State::Listen | State::SynSent | State::SynReceived => Phase::Opening,
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => Phase::Open,
            State::TimeWait => Phase::TimeWait,
            State::Closed => Phase::Closed,
        }
    }

    /// Whether the host's FIN has come, with all that was before it; some of it may still wait to be read.
    pub fn host_has_closed(&self) -> bool {
        self.host_closed
    }

    /// Whether the host gave up before the handshake was over (an RST to our SYN-ACK or before it).
    pub fn is_abandoned(&self) -> bool {
        self.socket_ref().state() == State::Listen
    }

    /// Whether an RST or a last segment has still to leave.
    pub fn owes_reset(&self) -> bool {
        let socket = self.socket_ref();
        socket.state() == State::Closed && socket.remote_endpoint().is_some()
    }

    /// The first sequence number of the host.
    pub fn host_isn(&self) -> Option<u32> {
        self.host_isn
    }

    /// Resets the connection.
    pub fn abort(&mut self) {
        self.socket().abort();
    }
}

impl Host for Tcp {
    fn read(&mut self, take: impl FnOnce(&[u8]) -> usize) -> Incoming {
        let result = self.socket().recv(|bytes| {
            let taken = take(bytes).min(bytes.len());
            (taken, taken)
        });
        match result {
            Ok(taken) => Incoming::Bytes(taken),
            Err(RecvError::Finished) => Incoming::Finished,
            Err(RecvError::InvalidState) => Incoming::Closed,
        }
    }

    fn readable(&mut self) -> usize {
        self.socket_ref().recv_queue()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.socket().send_slice(bytes).unwrap_or(0)
    }

    fn finish(&mut self) {
        self.socket().close();
    }
}

fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

fn endpoint(address: SocketAddrV4) -> IpEndpoint {
    IpEndpoint::new(IpAddress::Ipv4(*address.ip()), address.port())
}

/// What a poll sent.
#[derive(Clone, Copy, Default)]
struct Sent {
    /// A segment that was no SYN.
    past_syn: bool,
}

/// smoltcp's view of the wire: at most one packet in, frames out to the outbox.
struct FlowDevice<'a> {
    ingress: Option<&'a [u8]>,
    outbox: &'a mut Outbox,
    way: Option<Way>,
    sent: Sent,
}

struct Ingress<'a>(&'a [u8]);

struct Egress<'a> {
    outbox: &'a mut Outbox,
    way: Way,
    sent: &'a mut Sent,
}

impl RxToken for Ingress<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Egress<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        const FLAGS: usize = wire::ETHERNET_HEADER + wire::IPV4_HEADER + 13;
        const SYN: u8 = 0x02;
        let way = self.way;
        let sent = self.sent;
        self.outbox
            .push(way.ports, wire::ETHERNET_HEADER + len, |frame| {
                wire::write_ipv4_ethernet(frame, way.macs);
                let result = f(&mut frame[wire::ETHERNET_HEADER..]);
                sent.past_syn |= frame.get(FLAGS).is_some_and(|flags| flags & SYN == 0);
                result
            })
    }
}

impl Device for FlowDevice<'_> {
    type RxToken<'t>
        = Ingress<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Egress<'t>
    where
        Self: 't;

    fn receive(&mut self, _: SmolInstant) -> Option<(Ingress<'_>, Egress<'_>)> {
        let way = self.way?;
        let packet = self.ingress.take()?;
        Some((
            Ingress(packet),
            Egress {
                outbox: self.outbox,
                way,
                sent: &mut self.sent,
            },
        ))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Egress<'_>> {
        let way = self.way?;
        self.outbox.has_room_for_flows().then_some(Egress {
            outbox: self.outbox,
            way,
            sent: &mut self.sent,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = wire::IP_MTU;
        capabilities
    }
}
