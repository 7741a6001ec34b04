//! One TCP connection towards a host, on a smoltcp interface of its own. It knows nothing of the tunnel.
//!
//! A smoltcp socket set costs time for each socket in it, so each connection has its own and is polled only when it has
//! work. IP packets go in without their Ethernet header and come out with one.
//!
//! A connection begins without buffers worth the name, and gets them by [`Tcp::grow`] when the first byte, or anything
//! else after the handshake, is on its way. smoltcp cannot give a socket other buffers, so it is made again: with the
//! same random numbers, the handshake, played again, gives the same socket.

mod device;

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddrV4;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration as SmolDuration, Instant as SmolInstant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpEndpoint, IpListenEndpoint};

use crate::flow::{Host, Incoming};
use crate::outbox::Outbox;
use crate::switch::Ports;
use crate::time::Instant;
use crate::wire::{FlowKey, Mac, Macs, Segment};

use device::{Announce, FlowDevice, Sent};

/// With nothing to say for so long, the host is asked whether it is still there…
const KEEP_ALIVE: SmolDuration = SmolDuration::from_secs(75);
/// …and after so long without a sign of it, the connection is reset.
const GIVE_UP: SmolDuration = SmolDuration::from_secs(300);
/// The window in a SYN is never scaled (RFC 7323, 2.2), so it cannot exceed this.
const UNSCALED_WINDOW: usize = 65_535;
/// Buffers of a connection over which nothing has gone yet, each way, in bytes.
const NO_BUFFER: usize = 256;

/// Where a connection's frames go.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// MAC addresses of the frames.
    pub macs: Macs,
    /// Ports that they leave from.
    pub ports: Ports,
}

impl Way {
    /// Frames that go nowhere.
    const NOWHERE: Way = Way {
        macs: Macs {
            source: Mac([0; 6]),
            destination: Mac([0; 6]),
        },
        ports: Ports::NONE,
    };
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

/// Who opened a connection.
#[derive(Clone, Copy, Debug)]
enum Opener {
    /// The host, to this address.
    Host(SocketAddrV4),
    /// This side.
    Us(FlowKey),
}

/// What it takes to make a socket again over which nothing has gone but a handshake.
struct Birth {
    opener: Opener,
    seed: u64,
    /// When our SYN last left.
    syn_left: Instant,
    /// The packets of the handshake that moved it on: at most two.
    heard: Vec<(Instant, Vec<u8>)>,
}

/// A TCP connection towards a host.
pub struct Tcp {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Bytes of the buffers each way.
    buffer: usize,
    /// While the connection has no buffers.
    birth: Option<Birth>,
    /// Something waits for the buffers.
    wants_buffers: bool,
    /// The way to the host is to be closed as soon as there are buffers for what it may still send.
    finish_wanted: bool,
    /// First sequence number of the host, once its SYN has come.
    host_isn: Option<u32>,
    /// Our first sequence number, once our SYN has left.
    own_isn: Option<u32>,
    /// Whether the host scales windows.
    scales: bool,
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
            announce: Announce {
                shift: None,
                promise: true,
            },
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
            buffer,
            birth: None,
            wants_buffers: false,
            finish_wanted: false,
            host_isn: None,
            own_isn: None,
            scales: false,
            window_told: false,
            withheld: false,
            host_closed: false,
        }
    }

    /// The server's end of a connection that `syn` opens. The SYN-ACK is withheld until [`Tcp::accept`].
    pub fn answering(
        now: Instant,
        syn: &Segment<'_>,
        seed: u64,
        way: Way,
        outbox: &mut Outbox,
    ) -> Tcp {
        let mut tcp = Tcp::new(now, NO_BUFFER, seed);
        tcp.withheld = true;
        tcp.socket().pause_synack(true);
        tcp.listen(syn.destination);
        tcp.birth = Some(Birth {
            opener: Opener::Host(syn.destination),
            seed,
            syn_left: now,
            heard: vec![(now, syn.ip.to_vec())],
        });
        tcp.receive(now, syn, way, outbox);
        tcp
    }

    /// The client's end of a connection that is opened from the client's own address.
    pub fn connecting(now: Instant, key: &FlowKey, seed: u64) -> Tcp {
        let mut tcp = Tcp::new(now, NO_BUFFER, seed);
        tcp.connect(key);
        tcp.birth = Some(Birth {
            opener: Opener::Us(*key),
            seed,
            syn_left: now,
            heard: vec![],
        });
        tcp
    }

    fn listen(&mut self, address: SocketAddrV4) {
        let endpoint = IpListenEndpoint {
            addr: Some(IpAddress::Ipv4(*address.ip())),
            port: address.port(),
        };
        if let Err(error) = self.socket().listen(endpoint) {
            log::debug!("{address}: {error}");
        }
    }

    fn connect(&mut self, key: &FlowKey) {
        let (local, remote) = (endpoint(key.client), endpoint(key.server));
        let context = self.interface.context();
        let socket: &mut Socket<'_> = self.sockets.get_mut(self.handle);
        // An address that cannot be connected to leaves the socket closed, which the flow takes for a refusal.
        if let Err(error) = socket.connect(context, remote, local) {
            log::debug!("{key:?}: {error}");
        }
    }

    /// Whether the connection has no buffers yet.
    pub fn is_small(&self) -> bool {
        self.birth.is_some()
    }

    /// Whether the connection must have its buffers before it takes this segment.
    pub fn needs_buffers_for(&self, segment: &Segment<'_>) -> bool {
        if !self.is_small() || segment.rst {
            return false;
        }
        // What ends the handshake may carry the first bytes, or the last.
        let ends_handshake = self
            .own_isn
            .is_some_and(|isn| segment.acknowledgement == Some(isn.wrapping_add(1)));
        match self.phase() {
            Phase::Opening => ends_handshake && (segment.payload_len > 0 || segment.fin),
            Phase::Open => true,
            Phase::TimeWait | Phase::Closed => false,
        }
    }

    /// Whether something waits for the connection's buffers.
    pub fn wants_buffers(&self) -> bool {
        self.wants_buffers && self.is_small()
    }

    /// Gives the connection buffers of so many bytes each way: at least 16 KiB and at most 256 KiB.
    pub fn grow(&mut self, buffer: usize) {
        let Some(birth) = self.birth.take() else {
            return;
        };
        self.wants_buffers = false;
        let mut nowhere = Outbox::default();
        let mut tcp = Tcp::new(birth.syn_left, buffer, birth.seed);
        tcp.scales = self.scales;
        match birth.opener {
            Opener::Host(address) => tcp.listen(address),
            Opener::Us(key) => {
                tcp.connect(&key);
                tcp.poll(birth.syn_left, Way::NOWHERE, &mut nowhere);
            }
        }
        for (index, (at, packet)) in birth.heard.iter().enumerate() {
            tcp.feed(*at, packet, Way::NOWHERE, &mut nowhere);
            let answers_syn = index == 0 && matches!(birth.opener, Opener::Host(_));
            let at = if answers_syn { birth.syn_left } else { *at };
            if !(answers_syn && self.withheld) {
                tcp.poll(at, Way::NOWHERE, &mut nowhere);
            }
        }
        tcp.host_isn = self.host_isn;
        tcp.own_isn = self.own_isn;
        tcp.withheld = self.withheld;
        if self.withheld {
            tcp.socket().pause_synack(true);
        }
        if self.finish_wanted {
            tcp.socket().close();
        }
        *self = tcp;
    }

    fn announce(&self) -> Announce {
        Announce {
            shift: self.scales.then(|| Announce::shift_of(self.buffer)),
            promise: self.is_small(),
        }
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
        let before = self.phase();
        self.feed(now, segment.ip, way, outbox);
        let is_open = self.phase() == Phase::Open;
        if let Some(birth) = &mut self.birth
            && before == Phase::Opening
            && is_open
        {
            birth.heard.push((now, segment.ip.to_vec()));
        }
    }

    fn feed(&mut self, now: Instant, packet: &[u8], way: Way, outbox: &mut Outbox) {
        let mut device = FlowDevice {
            ingress: Some(packet),
            outbox,
            way: Some(way),
            announce: self.announce(),
            sent: Sent::default(),
        };
        self.interface
            .poll_ingress_single(smol(now), &mut device, &mut self.sockets);
        let sent = device.sent;
        self.note(now, sent);
        self.host_closed |= matches!(
            self.socket_ref().state(),
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait
        );
    }

    /// Notes what has left.
    fn note(&mut self, now: Instant, sent: Sent) {
        self.window_told |= sent.past_syn;
        if let Some(isn) = sent.syn {
            self.own_isn = Some(isn);
            if let Some(birth) = &mut self.birth {
                birth.syn_left = now;
            }
        }
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
                self.scales = segment.scales_window();
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
        let mut device = FlowDevice {
            ingress: None,
            outbox,
            way: Some(way),
            announce: self.announce(),
            sent: Sent::default(),
        };
        self.interface
            .poll(smol(now), &mut device, &mut self.sockets);
        let sent = device.sent;
        self.note(now, sent);
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
        self.birth = None;
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
        if self.is_small() {
            self.wants_buffers |= !bytes.is_empty();
            return 0;
        }
        self.socket().send_slice(bytes).unwrap_or(0)
    }

    fn finish(&mut self, _last: bool) {
        if self.is_small() {
            self.wants_buffers = true;
            self.finish_wanted = true;
        } else {
            self.socket().close();
        }
    }
}

fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

fn endpoint(address: SocketAddrV4) -> IpEndpoint {
    IpEndpoint::new(IpAddress::Ipv4(*address.ip()), address.port())
}
