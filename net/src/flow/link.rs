//! The tunnel to the peer and the dictionaries at both ends of it, with the control stream that keeps them in step.

use alloc::vec::Vec;

use core::time::Duration;

use super::effort::Gauge;
use super::message::CONTROL;
use crate::dedup::{Receiver, ReceiverConfig, Sender, SenderConfig, Urgency};
use crate::hash::Random;
use crate::time::Instant;
use crate::tunnel::{Endpoint, Read, State, StreamId, Tunnel, TunnelConfig};

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
    /// When confirmations must go that might have waited for more.
    confirm_at: Option<Instant>,
}

impl Link {
    /// A link whose tunnel is not up yet.
    pub fn new(ends: Ends, random: &mut Random, memory: usize, now: Instant) -> Link {
        let half = memory / 2;
        let sender = Sender::new(SenderConfig::with_memory(half), random.seed());
        let receiver = Receiver::new(ReceiverConfig { memory: half });
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
            confirm_at: None,
        }
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
            put(&mut self.outgoing, FOR_RECEIVER, |out| {
                if self.sender.control_pending() {
                    self.sender.take_control(out, ENOUGH);
                }
            });
            put(&mut self.outgoing, FOR_SENDER, |out| {
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

/// Appends a message for `whom`, if `write` writes one.
fn put(out: &mut Vec<u8>, whom: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[whom, 0, 0, 0, 0]);
    write(out);
    let len = out.len() - start - HEADER;
    if len == 0 {
        out.truncate(start);
    } else if let Some(header) = out.get_mut(start + 1..start + HEADER) {
        header.copy_from_slice(&(len as u32).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_stream_that_takes_nothing_does_not_ask_for_turns() {
        let now = Instant::from_millis(10);
        let ends = Ends {
            config: TunnelConfig::new([1; 32], [2; 32]),
            endpoint: None,
        };
        let mut link = Link::new(ends, &mut Random::new([3; 32]), 8 << 20, now);
        link.confirm_at = Some(now);
        assert_eq!(link.next_wakeup(), Some(now));
        link.outgoing.push(0);
        assert_eq!(link.next_wakeup(), None);
    }
}
