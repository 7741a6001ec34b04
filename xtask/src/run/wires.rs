//! All the cables of a run, in one thread: client and server cards (TAP), the boxes' LAN and WAN ports (datagram sockets that QEMU
//! sends frames to), and the line between the sites.
//!
//! A box whose power is off is a pair of joined wires, as with the bypass relay of a real two-port card: what its LAN sends goes
//! straight to the line. Frames are only moved, never changed.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde::Serialize;
use tun_rs::SyncDevice;

use super::line::{Counters, Line, LineConfig, Site};
use super::observe::{Pcap, PlainText, Watch};

/// Room for any frame: nothing here offers more than 1,514 bytes.
const FRAME_ROOM: usize = 2048;
/// Frames that wait for a box's port, at most: the ring of an ordinary network card and its queue.
const PORT_QUEUE: usize = 1000;
/// With so many frames waiting for a box's LAN port, the card behind it is not read, and its kernel holds back the sender.
const LAN_HIGH_WATER: usize = 64;
/// Frames read from one source before the others have their turn.
const BURST: usize = 32;
/// How often a socket that QEMU has yet to make is looked for.
const RETRY: Duration = Duration::from_millis(20);

/// A port of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Towards client or server.
    Lan,
    /// Towards the line.
    Wan,
}

/// The two sockets of a box's port: QEMU's own, and ours that it sends to.
pub fn sockets(directory: &Path, site: Site, port: Port) -> (PathBuf, PathBuf) {
    let port = match port {
        Port::Lan => "lan",
        Port::Wan => "wan",
    };
    let name = format!("{}-{port}", site.name());
    (
        directory.join(format!("{name}.box")),
        directory.join(format!("{name}.wire")),
    )
}

/// What passed the card of a client or server.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct CardCounters {
    /// Bytes of frames that it sent.
    pub sent_bytes: u64,
    /// Bytes of frames that it received.
    pub received_bytes: u64,
}

/// The state of all cables at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    /// The line's directions, by the site that sends: branch, core.
    pub line: [Counters; 2],
    /// The cards: client (branch), server (core).
    pub cards: [CardCounters; 2],
    /// Is the line plugged in?
    pub plugged: bool,
    /// Frames dropped because a port or card did not take them.
    pub dropped: u64,
}

impl Snapshot {
    /// Bytes that the line carried, both directions together.
    pub fn line_bytes(&self) -> u64 {
        self.line.iter().map(|direction| direction.bytes).sum()
    }
}

enum Command {
    Plug(bool),
    Power(Site, bool),
    Look(Option<PlainText>, mpsc::Sender<Option<PlainText>>),
    Stop,
}

/// The thread and its cables. They are cut when this is dropped.
pub struct Wires {
    commands: mpsc::Sender<Command>,
    bell: UnixDatagram,
    shared: Arc<Mutex<Snapshot>>,
    thread: Option<JoinHandle<()>>,
}

impl Wires {
    /// Connects everything, with both boxes off and the line plugged in. The sockets are made in `directory`.
    ///
    /// # Errors
    /// When a socket or the thread cannot be made.
    pub fn new(
        directory: &Path,
        config: &LineConfig,
        cards: [SyncDevice; 2],
        pcap: Option<Pcap>,
    ) -> Result<Wires> {
        let [client, server] = cards;
        let sites = [
            End::new(directory, Site::Branch, client)?,
            End::new(directory, Site::Core, server)?,
        ];
        let (bell, heard) = UnixDatagram::pair()?;
        heard.set_nonblocking(true)?;
        let (commands, receiver) = mpsc::channel();
        let shared = Arc::new(Mutex::new(Snapshot::default()));
        let mut thread = Thread {
            line: Line::new(config),
            plugged: true,
            watch: Watch {
                plain_text: None,
                pcap,
            },
            sites,
            commands: receiver,
            bell: heard,
            shared: Arc::clone(&shared),
            start: Instant::now(),
            dropped: 0,
        };
        thread.publish();
        let thread = std::thread::Builder::new()
            .name("wires".into())
            .spawn(move || thread.run())?;
        Ok(Wires {
            commands,
            bell,
            shared,
            thread: Some(thread),
        })
    }

    fn command(&self, command: Command) -> Result<()> {
        let gone = || anyhow!("the thread that moves frames has died");
        self.commands.send(command).map_err(|_| gone())?;
        self.bell.send(&[0]).map(drop).map_err(|_| gone())
    }

    /// Plugs the line in or pulls the plug.
    ///
    /// # Errors
    /// When the thread has died.
    pub fn plug(&self, plugged: bool) -> Result<()> {
        self.command(Command::Plug(plugged))
    }

    /// Puts a box between its wires (QEMU makes its sockets sooner or later), or joins them.
    ///
    /// # Errors
    /// When the thread has died.
    pub fn power(&self, site: Site, on: bool) -> Result<()> {
        self.command(Command::Power(site, on))
    }

    /// Looks for something else on the line from now on, and gives what was looked for so far.
    ///
    /// # Errors
    /// When the thread has died.
    pub fn look_for(&self, plain_text: Option<PlainText>) -> Result<Option<PlainText>> {
        let (sender, receiver) = mpsc::channel();
        self.command(Command::Look(plain_text, sender))?;
        receiver
            .recv()
            .context("the thread that moves frames has died")
    }

    /// The state of the cables.
    pub fn snapshot(&self) -> Snapshot {
        *lock(&self.shared)
    }

    /// For those who only want to see the state.
    pub fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.shared))
    }
}

/// Shows the state of the cables, and outlives them.
#[derive(Clone)]
pub struct Meter(Arc<Mutex<Snapshot>>);

impl Meter {
    /// The state of the cables; the last one after they are gone.
    pub fn read(&self) -> Snapshot {
        *lock(&self.0)
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        let _ = self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<Snapshot>) -> MutexGuard<'_, Snapshot> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Our end of the wire to a box's port.
struct PortWire {
    socket: UnixDatagram,
    peer: PathBuf,
    connected: bool,
    waiting: VecDeque<Vec<u8>>,
}

impl PortWire {
    fn new(directory: &Path, site: Site, port: Port) -> Result<PortWire> {
        let (peer, own) = sockets(directory, site, port);
        let socket = UnixDatagram::bind(&own)
            .with_context(|| format!("cannot make the socket {}", own.display()))?;
        socket.set_nonblocking(true)?;
        Ok(PortWire {
            socket,
            peer,
            connected: false,
            waiting: VecDeque::new(),
        })
    }

    /// Sends a frame, or keeps it until the box takes it. False when there is no room.
    fn send(&mut self, frame: Vec<u8>) -> bool {
        if self.waiting.len() >= PORT_QUEUE {
            return false;
        }
        self.waiting.push_back(frame);
        self.flush();
        true
    }

    fn flush(&mut self) {
        while self.connected
            && let Some(frame) = self.waiting.front()
        {
            match self.socket.send(frame) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionRefused | ErrorKind::NotConnected
                    ) =>
                {
                    self.connected = false;
                    return;
                }
                _ => drop(self.waiting.pop_front()),
            }
        }
    }

    fn connect(&mut self) {
        self.connected = self.connected || self.socket.connect(&self.peer).is_ok();
        self.flush();
    }
}

/// One site: a card, a box, and the line's end.
struct End {
    site: Site,
    card: SyncDevice,
    counters: CardCounters,
    lan: PortWire,
    wan: PortWire,
    power: bool,
}

impl End {
    fn new(directory: &Path, site: Site, card: SyncDevice) -> Result<End> {
        Ok(End {
            site,
            card,
            counters: CardCounters::default(),
            lan: PortWire::new(directory, site, Port::Lan)?,
            wan: PortWire::new(directory, site, Port::Wan)?,
            power: false,
        })
    }

    fn set_power(&mut self, on: bool) {
        self.power = on;
        for port in [&mut self.lan, &mut self.wan] {
            port.connected = false;
            port.waiting.clear();
            // Nothing that the box sent before comes out later.
            while port.socket.recv(&mut [0; 1]).is_ok() {}
            if !on {
                // QEMU unlinks only what it finds when it starts; a stale name would be taken for the next one's socket.
                let _ = std::fs::remove_file(&port.peer);
            }
        }
    }

    fn give_to_card(&mut self, frame: &[u8]) -> bool {
        self.counters.received_bytes += frame.len() as u64;
        self.card.send(frame).is_ok()
    }

    /// A frame that the line delivers. False when it was dropped.
    fn take_from_line(&mut self, frame: Vec<u8>) -> bool {
        if self.power {
            self.wan.send(frame)
        } else {
            self.give_to_card(&frame)
        }
    }

    /// A frame from the card: to the box, or given back for the line. False when it was dropped.
    fn read_card(&mut self, buffer: &mut [u8]) -> Option<(Option<Vec<u8>>, bool)> {
        let length = self.card.recv(buffer).ok()?;
        let frame = buffer.get(..length)?.to_vec();
        self.counters.sent_bytes += length as u64;
        if self.power {
            return Some((None, self.lan.send(frame)));
        }
        Some((Some(frame), true))
    }
}

struct Thread {
    line: Line,
    plugged: bool,
    watch: Watch,
    sites: [End; 2],
    commands: mpsc::Receiver<Command>,
    bell: UnixDatagram,
    shared: Arc<Mutex<Snapshot>>,
    start: Instant,
    dropped: u64,
}

/// What one wait for events found.
#[derive(Default)]
struct Ready {
    card: [bool; 2],
    lan: [bool; 2],
    wan: [bool; 2],
}

impl Thread {
    fn run(&mut self) {
        let mut buffer = vec![0; FRAME_ROOM];
        loop {
            self.deliver();
            self.publish();
            let ready = self.wait();
            if !self.obey() {
                return;
            }
            for index in 0..self.sites.len() {
                self.move_frames(index, &ready, &mut buffer);
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Gives to the sites what has arrived at the ends of the line.
    fn deliver(&mut self) {
        let now = self.now();
        while let Some((site, frame)) = self.line.poll(now, &mut self.watch) {
            if let Some(end) = self.sites.iter_mut().find(|end| end.site == site) {
                self.dropped += u64::from(!end.take_from_line(frame));
            }
        }
    }

    fn wait(&mut self) -> Ready {
        let mut deadline = self.line.next_wakeup();
        for end in &mut self.sites {
            for port in [&mut end.lan, &mut end.wan] {
                if end.power && !port.connected {
                    port.connect();
                }
                if end.power && !port.connected {
                    let retry = self.start.elapsed() + RETRY;
                    deadline = Some(deadline.map_or(retry, |deadline| deadline.min(retry)));
                }
            }
        }
        let timeout =
            deadline.map(|deadline| TimeSpec::from_duration(deadline.saturating_sub(self.now())));
        let port_events = |port: &PortWire| match port.connected && !port.waiting.is_empty() {
            true => PollFlags::POLLIN | PollFlags::POLLOUT,
            false => PollFlags::POLLIN,
        };
        let mut descriptors = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        for end in &self.sites {
            let hold = end.power && end.lan.waiting.len() >= LAN_HIGH_WATER;
            descriptors.push(PollFd::new(
                end.card.as_fd(),
                if hold {
                    PollFlags::empty()
                } else {
                    PollFlags::POLLIN
                },
            ));
            descriptors.push(PollFd::new(end.lan.socket.as_fd(), port_events(&end.lan)));
            descriptors.push(PollFd::new(end.wan.socket.as_fd(), port_events(&end.wan)));
        }
        // An error here is a signal that arrived: then nothing is ready, and the loop goes on.
        if ppoll(&mut descriptors, timeout, None).is_err() {
            return Ready::default();
        }
        let any = |index: usize| {
            descriptors
                .get(index)
                .and_then(PollFd::any)
                .unwrap_or(false)
        };
        Ready {
            card: [any(1), any(4)],
            lan: [any(2), any(5)],
            wan: [any(3), any(6)],
        }
    }

    /// Carries out commands. False at the last one.
    fn obey(&mut self) -> bool {
        while self.bell.recv(&mut [0; 1]).is_ok() {}
        loop {
            match self.commands.try_recv() {
                Ok(Command::Plug(plugged)) => {
                    self.plugged = plugged;
                    self.line.set_plugged(plugged);
                }
                Ok(Command::Power(site, on)) => {
                    self.sites
                        .iter_mut()
                        .filter(|end| end.site == site)
                        .for_each(|end| end.set_power(on));
                }
                Ok(Command::Look(plain_text, reply)) => {
                    let _ = reply.send(std::mem::replace(&mut self.watch.plain_text, plain_text));
                }
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    fn move_frames(&mut self, index: usize, ready: &Ready, buffer: &mut [u8]) {
        let Some(end) = self.sites.get_mut(index) else {
            return;
        };
        let mut to_line = Vec::new();
        if ready.card[index] {
            for _ in 0..BURST {
                let Some((frame, taken)) = end.read_card(buffer) else {
                    break;
                };
                self.dropped += u64::from(!taken);
                to_line.extend(frame);
            }
        }
        if ready.lan[index] {
            end.lan.flush();
            for _ in 0..BURST {
                let Ok(length) = end.lan.socket.recv(buffer) else {
                    break;
                };
                if end.power {
                    let taken = end.give_to_card(&buffer[..length]);
                    self.dropped += u64::from(!taken);
                }
            }
        }
        if ready.wan[index] {
            end.wan.flush();
            for _ in 0..BURST {
                let Ok(length) = end.wan.socket.recv(buffer) else {
                    break;
                };
                if end.power {
                    to_line.push(buffer[..length].to_vec());
                }
            }
        }
        if to_line.is_empty() {
            return;
        }
        let site = end.site;
        // The queue must be as it is now before something is put into it.
        self.deliver();
        let now = self.now();
        for frame in to_line {
            self.line.send(now, site, frame);
        }
    }

    fn publish(&mut self) {
        let snapshot = Snapshot {
            line: Site::ALL.map(|site| self.line.counters(site)),
            cards: [self.sites[0].counters, self.sites[1].counters],
            plugged: self.plugged,
            dropped: self.dropped,
        };
        *lock(&self.shared) = snapshot;
    }
}
