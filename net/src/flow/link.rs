//! The tunnel to the peer and the dictionaries at both ends of it, with the control stream that keeps them in step.

use alloc::rc::Rc;
use alloc::vec::Vec;

use core::time::Duration;

use sha2::{Digest, Sha256};

use super::effort::Gauge;
use super::message::CONTROL;
use crate::dedup::{
    MAX_WIRE_BLOCK, Receiver, ReceiverConfig, Sender, SenderConfig, StoreMemory, Urgency,
};
use crate::hash::Random;
use crate::spare::Spares;
use crate::store::{BlockDevice, DeviceError, Disk, DiskLog, Opened, StoreStatistics, Ticket};
use crate::time::Instant;
use crate::tunnel::{Endpoint, Read, State, StreamId, Tunnel, TunnelConfig, public_key};

/// A control message of the peer's receiver, for our sender.
const FOR_SENDER: u8 = 0;
/// A control message of the peer's sender, for our receiver.
const FOR_RECEIVER: u8 = 1;
/// Bytes before each control message: for whom, and its length (4 bytes, little endian).
const HEADER: usize = 5;
/// The most bytes one control message may have. They are passed on as they come, so this bounds nothing but mischief.
const MAX_MESSAGE: usize = 1 << 20;
/// While more than this waits for the tunnel, no further control messages are taken.
const ENOUGH: usize = 256 * 1024;

/// How long confirmations may wait for more to go with them.
const CONFIRM_WITHIN: Duration = Duration::from_millis(25);
/// How long the tunnel stays down after the peer has talked nonsense (until then everything is bridged); twice as long
/// each time…
const PAUSE: Duration = Duration::from_secs(5);
/// …but not longer than this. A tunnel that was up so long without a failure makes the next pause a short one again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Bytes read from the tunnel at once.
const READ: usize = 16 * 1024;

/// Bytes of flows' buffers that are kept to be used again.
const SPARE_BYTES: usize = 1 << 20;

/// The control stream carried what no honest peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadControl;

/// What a tunnel is made of.
pub struct Ends {
    /// Keys and sizes.
    pub config: TunnelConfig,
    /// Where the peer listens; `None`: here.
    pub endpoint: Option<Endpoint>,
}

impl Ends {
    fn tunnel(&self, random: &mut Random, now: Instant) -> Tunnel {
        let (config, seed) = (self.config.clone(), random.seed());
        match self.endpoint {
            Some(endpoint) => Tunnel::initiator(config, endpoint, seed, now),
            None => Tunnel::responder(config, seed, now),
        }
    }
}

/// The tunnel and what belongs to it.
pub struct Link {
    /// The tunnel.
    pub tunnel: Tunnel,
    ends: Ends,
    /// When a broken tunnel is made anew.
    mend_at: Option<Instant>,
    /// How long the next failure keeps the tunnel down.
    pause: Duration,
    /// When the tunnel last came up.
    up_at: Option<Instant>,
    /// Dictionary of what goes to the peer.
    pub sender: Sender,
    /// Dictionary of what comes from the peer.
    pub receiver: Receiver,
    /// Whether the line or the CPU is the bottleneck.
    pub gauge: Gauge,
    /// Room for what is read from the tunnel.
    pub scratch: Vec<u8>,
    ours: Option<StreamId>,
    theirs: Option<StreamId>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    taken: usize,
    /// Room for one control message.
    room: Vec<u8>,
    /// Buffers of flows that have nothing for the tunnel now.
    pub spares: Spares<Vec<u8>>,
    /// When confirmations must go that might have waited for more.
    confirm_at: Option<Instant>,
    /// Where the dictionaries lie, if not in memory.
    device: Option<Rc<dyn BlockDevice>>,
    /// There is a device, but it could not be used.
    is_refused: bool,
}

/// Where the dictionaries of both directions lie.
#[derive(Clone, Default)]
pub struct StoreParts {
    /// Bytes of memory: for the dictionaries, or for the parts in use of those on a device.
    pub memory: usize,
    /// What they are kept on.
    pub device: Option<Rc<dyn BlockDevice>>,
}

/// What both directions have written and only a flush can make safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreTicket(Option<Ticket>, Option<Ticket>);

/// Whose store it is: a digest of both public keys, ours first.
pub fn store_owner(config: &TunnelConfig) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"outpost store");
    hash.update(public_key(&config.private_key));
    hash.update(config.peer_public_key);
    hash.finalize().into()
}

/// The dictionaries that lie on the device.
fn on_device(
    ends: &Ends,
    random: &mut Random,
    parts: &StoreParts,
) -> Result<Option<(Sender, Receiver)>, crate::store::OpenError> {
    let Some(device) = parts.device.clone() else {
        return Ok(None);
    };
    let mut seed = [0; 48];
    let (name, keys) = seed.split_at_mut(16);
    keys.copy_from_slice(&random.seed());
    name.copy_from_slice(random.seed().get(..16).unwrap_or(&[0; 16]));
    let disk = Disk::open(device, store_owner(&ends.config), seed)?;
    match disk.opened() {
        Opened::Own => {}
        Opened::Blank => log::info!("store: there is none yet; started"),
        Opened::Foreign => log::warn!("store: it belongs to another pair of keys; started anew"),
    }
    let sender = Sender::on_disk(&disk, parts.memory / 2, random.seed());
    let receiver = Receiver::on_disk(&disk, parts.memory / 2);
    Ok(Some((sender, receiver)))
}

impl Link {
    /// A link whose tunnel is not up yet.
    pub fn new(ends: Ends, random: &mut Random, parts: StoreParts, now: Instant) -> Link {
        let opened = on_device(&ends, random, &parts);
        if let Err(error) = &opened {
            log::error!("store: {error}; the dictionary is in memory only");
        }
        let is_refused = opened.is_err();
        let (sender, receiver) = opened.ok().flatten().unwrap_or_else(|| {
            let memory = parts.memory / 2;
            let config = SenderConfig::with_memory(memory);
            let sender = Sender::new(config, random.seed());
            (sender, Receiver::new(ReceiverConfig { memory }))
        });
        Link {
            tunnel: ends.tunnel(random, now),
            ends,
            mend_at: None,
            pause: PAUSE,
            up_at: None,
            sender,
            receiver,
            gauge: Gauge::default(),
            scratch: alloc::vec![0; READ],
            ours: None,
            theirs: None,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            taken: 0,
            room: Vec::new(),
            spares: Spares::new(SPARE_BYTES),
            confirm_at: None,
            device: parts.device.filter(|_| !is_refused),
            is_refused,
        }
    }

    /// Keeps no more than that of buffers that coders do not need now, in bytes, but one of each sort.
    pub fn keep_spares(&mut self, bytes: usize) {
        let quarter = (bytes / 4).max(MAX_WIRE_BLOCK);
        self.spares.keep(quarter);
        self.sender.keep_spares(quarter);
        self.receiver.keep_spares(2 * quarter);
    }

    /// No block, of either end, stands for more bytes from now on.
    pub fn set_block_limit(&mut self, bytes: usize) {
        self.sender.set_block_limit(bytes);
        self.receiver.set_block_limit(bytes);
    }

    /// What the dictionaries of both directions have taken.
    pub fn store_memory(&self) -> StoreMemory {
        self.sender.store_memory() + self.receiver.store_memory()
    }

    /// Whether [`Link::sync_store`] has something to write.
    pub fn store_is_dirty(&mut self) -> bool {
        let sender = self.sender.place().disk().is_some_and(|log| log.is_dirty());
        sender
            || self
                .receiver
                .place()
                .disk()
                .is_some_and(|log| log.is_dirty())
    }

    /// Writes what of the dictionaries is in memory only, without a flush. Once the device has been flushed, hand the ticket to
    /// [`Link::store_flushed`].
    pub fn sync_store(&mut self) -> StoreTicket {
        StoreTicket(self.sender.place().sync(), self.receiver.place().sync())
    }

    /// The device has been flushed since the ticket was given.
    pub fn store_flushed(&mut self, ticket: StoreTicket) {
        for (log, ticket) in [
            (self.sender.place().disk(), ticket.0),
            (self.receiver.place().disk(), ticket.1),
        ] {
            if let (Some(log), Some(ticket)) = (log, ticket) {
                DiskLog::flushed(log, ticket);
            }
        }
    }

    /// Writes everything and flushes the device: for an orderly stop.
    pub fn close_store(&mut self) {
        let ticket = self.sync_store();
        let Some(device) = &self.device else { return };
        match device.flush() {
            Ok(()) => self.store_flushed(ticket),
            Err(error) => self.store_flush_failed(error),
        }
    }

    /// The store's device has refused a flush.
    pub fn store_flush_failed(&mut self, error: DeviceError) {
        if let Some(log) = self.receiver.place().disk() {
            log.flush_failed(error);
        }
    }

    /// What the store on a device did, both directions together.
    pub fn store_statistics(&self) -> StoreStatistics {
        let mut statistics = self.sender.store_statistics();
        statistics += self.receiver.store_statistics();
        statistics.store_memory_only |= u64::from(self.is_refused);
        statistics
    }

    /// The tunnel has come up, or gone down: everything of the last connection is void.
    pub fn reset(&mut self) {
        self.ours = None;
        self.theirs = None;
        self.incoming = Vec::new();
        self.outgoing.clear();
        self.taken = 0;
        self.confirm_at = None;
        self.sender.reset_peer();
        self.receiver.reset_peer();
    }

    /// The peer, though it has the right key, talks nonsense: the tunnel is closed, and made anew by
    /// [`Link::mend`] after a pause. Two boxes that can never agree are bridged most of the time.
    pub fn fail(&mut self, now: Instant) {
        if self.mend_at.is_some() {
            return;
        }
        if self.up_at.is_some_and(|at| now.since(at) >= LONGEST_PAUSE) {
            self.pause = PAUSE;
        }
        log::warn!(
            "the peer does not keep to the protocol; the tunnel starts again in {} s",
            self.pause.as_secs()
        );
        self.mend_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.tunnel.close(now);
    }

    /// Makes a broken tunnel anew, when its pause is over. By then it has sent and told everything.
    pub fn mend(&mut self, random: &mut Random, now: Instant) {
        if self.mend_at.is_some_and(|at| at <= now) {
            self.mend_at = None;
            self.tunnel = self.ends.tunnel(random, now);
        }
    }

    /// Whether flows can begin: the tunnel is up, and the engine knows.
    pub fn is_ready(&self) -> bool {
        self.ours.is_some() && self.tunnel.state() == State::Up
    }

    /// Whether what was read from a stream is its end. A stream that is gone because the tunnel is has not finished.
    pub fn has_finished(&self, read: Read) -> bool {
        read.finished && self.tunnel.state() == State::Up
    }

    /// The tunnel is up: opens the control stream.
    pub fn open_control(&mut self, now: Instant) {
        self.up_at = Some(now);
        self.ours = self.tunnel.open_stream();
        self.outgoing.push(CONTROL);
    }

    /// The peer's control stream has been found. A second one is refused.
    ///
    /// # Errors
    /// There is one already.
    pub fn set_theirs(&mut self, stream: StreamId) -> Result<(), BadControl> {
        if self.theirs.is_some() {
            return Err(BadControl);
        }
        self.theirs = Some(stream);
        Ok(())
    }

    /// Whether a stream is one of the two control streams.
    pub fn is_control(&self, stream: StreamId) -> bool {
        self.ours == Some(stream) || self.theirs == Some(stream)
    }

    /// Reads what the peer's control stream has. Gives whether something came, so that flows that wait may go on.
    ///
    /// # Errors
    /// The peer does not keep to the protocol: the tunnel must be taken down.
    pub fn read_control(&mut self) -> Result<bool, BadControl> {
        let Some(stream) = self.theirs else {
            return Ok(false);
        };
        let mut came = false;
        loop {
            let read = self.tunnel.read(stream, &mut self.scratch);
            if self.has_finished(read) {
                return Err(BadControl);
            }
            let Some(bytes) = self.scratch.get(..read.len).filter(|it| !it.is_empty()) else {
                return Ok(came);
            };
            came = true;
            self.incoming.extend_from_slice(bytes);
            self.deliver()?;
        }
    }

    /// Hands on every whole message.
    fn deliver(&mut self) -> Result<(), BadControl> {
        let mut used = 0;
        while let Some(rest) = self.incoming.get(used..) {
            let Some(&[kind, a, b, c, d]) = rest.first_chunk::<HEADER>() else {
                break;
            };
            let len = u32::from_le_bytes([a, b, c, d]) as usize;
            if len > MAX_MESSAGE {
                return Err(BadControl);
            }
            let Some(message) = rest.get(HEADER..HEADER + len) else {
                break;
            };
            let result = match kind {
                FOR_SENDER => self.sender.on_control(message),
                FOR_RECEIVER => self.receiver.on_control(message),
                _ => return Err(BadControl),
            };
            if let Err(error) = result {
                log::warn!("{error}");
                return Err(BadControl);
            }
            used += HEADER + len;
        }
        self.incoming.drain(..used);
        Ok(())
    }

    /// Sends what the dictionaries have to say.
    pub fn write_control(&mut self, now: Instant) {
        let Some(stream) = self.ours else { return };
        while self.flush_control(stream) {
            let urgency = match self.confirm_at {
                Some(at) if at <= now => Urgency::Now,
                _ => Urgency::Lazy,
            };
            let before = self.outgoing.len();
            put(&mut self.outgoing, &mut self.room, FOR_RECEIVER, |out| {
                if self.sender.control_pending() {
                    self.sender.take_control(out, ENOUGH);
                }
            });
            put(&mut self.outgoing, &mut self.room, FOR_SENDER, |out| {
                if self.receiver.control_pending() {
                    self.receiver.take_control(out, urgency);
                }
            });
            self.confirm_at = match self.confirm_at {
                _ if !self.receiver.control_pending() => None,
                None => Some(now + CONFIRM_WITHIN),
                at => at,
            };
            if self.outgoing.len() == before {
                return;
            }
        }
    }

    /// Gives the tunnel what waits; `true`: it has taken everything.
    fn flush_control(&mut self, stream: StreamId) -> bool {
        while let Some(rest) = self.outgoing.get(self.taken..).filter(|it| !it.is_empty()) {
            let taken = self.tunnel.write(stream, rest);
            if taken == 0 {
                return false;
            }
            self.taken += taken;
        }
        self.outgoing.clear();
        self.taken = 0;
        true
    }

    /// When [`Link::write_control`] or [`Link::mend`] has something to do that it has not now.
    pub fn next_wakeup(&self) -> Option<Instant> {
        // While the stream takes no more, only its `Writable` helps.
        let confirm_at = self.confirm_at.filter(|_| self.outgoing.is_empty());
        [confirm_at, self.mend_at].into_iter().flatten().min()
    }
}

/// Appends what `write` writes for `whom` (into `bytes`, which is empty before and after), in as many messages as it takes.
fn put(out: &mut Vec<u8>, bytes: &mut Vec<u8>, whom: u8, write: impl FnOnce(&mut Vec<u8>)) {
    write(bytes);
    for message in bytes.chunks(MAX_MESSAGE) {
        out.push(whom);
        out.extend_from_slice(&(message.len() as u32).to_le_bytes());
        out.extend_from_slice(message);
    }
    bytes.clear();
    if bytes.capacity() > READ {
        *bytes = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A receiver whose store has gone bad asks for much at once; its peer once took that for nonsense.
    #[test]
    fn what_is_too_long_for_one_control_message_goes_in_several() {
        let long: Vec<u8> = (0..2 * MAX_MESSAGE + 7).map(|at| at as u8).collect();
        let mut out = Vec::new();
        let mut room = Vec::new();
        put(&mut out, &mut room, FOR_SENDER, |bytes| {
            bytes.extend_from_slice(&long)
        });
        put(&mut out, &mut room, FOR_RECEIVER, |_| {});
        let (mut rest, mut came, mut lengths) = (&out[..], Vec::new(), Vec::new());
        while let Some((&[whom, a, b, c, d], after)) = rest.split_first_chunk::<HEADER>() {
            let (message, after) = after.split_at(u32::from_le_bytes([a, b, c, d]) as usize);
            assert_eq!(whom, FOR_SENDER);
            lengths.push(message.len());
            came.extend_from_slice(message);
            rest = after;
        }
        assert_eq!(lengths, [MAX_MESSAGE, MAX_MESSAGE, 7]);
        assert!(came == long);
    }

    #[test]
    fn a_control_stream_that_takes_nothing_does_not_ask_for_turns() {
        let now = Instant::from_millis(10);
        let ends = Ends {
            config: TunnelConfig::new([1; 32], [2; 32]),
            endpoint: None,
        };
        let parts = StoreParts {
            memory: 8 << 20,
            device: None,
        };
        let mut link = Link::new(ends, &mut Random::new([3; 32]), parts, now);
        link.confirm_at = Some(now);
        assert_eq!(link.next_wakeup(), Some(now));
        link.outgoing.push(0);
        assert_eq!(link.next_wakeup(), None);
    }
}
