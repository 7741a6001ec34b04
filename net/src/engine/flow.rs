//! One intercepted connection: a TCP connection towards a host, a stream of the tunnel, and the dedup coders between.
//!
//! Back-pressure: bytes are taken from the host only when what was encoded before has been taken by the tunnel, and from
//! the tunnel only when the host has taken what was decoded before. So each side's windows bound what is held here.

use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::time::Duration;

use super::link::Link;
use super::message::{Code, OPENED};
use super::tcp::{Incoming, Phase, Tcp, Way};
use crate::dedup::{Decoder, Encoder, Flush};
use crate::outbox::Outbox;
use crate::time::Instant;
use crate::tunnel::StreamId;
use crate::wire::{FlowKey, Quote};

/// How long the branch waits for the core's answer about the server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the core waits for the server. Linux retries a SYN after 1, 3, 7 and 15 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may take to answer a SYN-ACK.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the end of a finished stream may take to be decoded (it may have to be fetched again).
const DECODE_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes moved each way before another flow has its turn.
const TURN: usize = 64 * 1024;

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Core: the server's MAC address is being asked for.
    Resolving {
        /// The neighbour that is asked for: the server or the gateway.
        hop: Ipv4Addr,
    },
    /// Core: the SYN is on its way to the server.
    Connecting,
    /// Branch: the core has not yet said that the server answered; the SYN-ACK is withheld.
    Asking,
    /// Branch: the SYN-ACK is on its way to the client.
    Accepting,
    /// Bytes flow.
    Open,
    /// Both hosts and both directions of the stream have finished in order.
    Closing,
    /// The host is told that the connection is no more.
    Resetting,
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides finished in order.
    Finished,
    /// The host reset the connection or vanished.
    HostReset,
    /// The host never came: a refused or failed connection attempt.
    NeverOpened(Code),
    /// The host was sent an RST.
    Reset,
}

/// What is left to do after a flow had its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It has more to do now.
    Again,
    /// It has nothing to do before this, if nothing happens.
    Wait(Option<Instant>),
    /// It is over.
    End(End),
}

/// What a flow begins with.
pub struct Start {
    /// Addresses and ports.
    pub key: FlowKey,
    /// The connection towards the host.
    pub tcp: Tcp,
    /// Where its frames go.
    pub way: Way,
    /// The stream that carries it.
    pub stream: StreamId,
    /// Its first stage.
    pub stage: Stage,
    /// Bytes of buffers it holds.
    pub memory: usize,
}

/// An intercepted connection.
pub struct Flow {
    /// Addresses and ports.
    pub key: FlowKey,
    /// The connection towards the host.
    pub tcp: Tcp,
    /// Where its frames go.
    pub way: Way,
    /// The stream that carries it.
    pub stream: StreamId,
    /// How far it has come.
    pub stage: Stage,
    /// Bytes of buffers it holds.
    pub memory: usize,
    /// Branch: the beginning of the client's SYN.
    pub quote: Option<Quote>,
    /// When the present stage has taken too long.
    pub deadline: Option<Instant>,
    encoder: Encoder,
    decoder: Decoder,
    /// Encoded bytes that the tunnel has not yet taken, from `taken` on.
    outgoing: Vec<u8>,
    taken: usize,
    /// The host has finished and everything it sent is encoded.
    host_finished: bool,
    /// The stream is finished from this side.
    stream_finished: bool,
    /// The peer has finished the stream and everything in it is decoded or in the decoder.
    peer_finished: bool,
    /// The connection to the host is finished from this side.
    finished_to_host: bool,
    /// The encoder takes nothing before the peer has confirmed more.
    needs_credit: bool,
    /// The engine knows that the flow awaits a control message.
    pub is_listed: bool,
    /// Payload bytes taken from the host.
    pub from_host: u64,
    /// Payload bytes given to the host.
    pub to_host: u64,
}

impl Flow {
    /// A flow in its first stage.
    pub fn new(now: Instant, start: Start, link: &mut Link) -> Flow {
        let Start {
            key,
            tcp,
            way,
            stream,
            stage,
            memory,
        } = start;
        let deadline = match stage {
            Stage::Asking => Some(now + ANSWER_TIMEOUT),
            Stage::Connecting => Some(now + CONNECT_TIMEOUT),
            _ => None,
        };
        Flow {
            key,
            tcp,
            way,
            stream,
            stage,
            memory,
            quote: None,
            deadline,
            encoder: Encoder::new(&mut link.sender),
            decoder: Decoder::new(&link.receiver),
            outgoing: Vec::new(),
            taken: 0,
            host_finished: false,
            stream_finished: false,
            peer_finished: false,
            finished_to_host: false,
            needs_credit: false,
            is_listed: false,
            from_host: 0,
            to_host: 0,
        }
    }

    /// Queues bytes for the stream that are no dedup blocks.
    pub fn queue(&mut self, bytes: &[u8]) {
        self.outgoing.extend_from_slice(bytes);
    }

    /// Core: the server's MAC address is known; the connection is opened.
    pub fn connect(&mut self, now: Instant, way: Way) {
        self.way = way;
        self.stage = Stage::Connecting;
        self.deadline = Some(now + CONNECT_TIMEOUT);
    }

    /// Resets the connection to the host; the stream is gone or not to be used any more.
    pub fn abort(&mut self) {
        self.tcp.abort();
        self.stage = Stage::Resetting;
        self.outgoing = Vec::new();
        self.taken = 0;
    }

    /// Does what there is to do.
    pub fn turn(&mut self, now: Instant, link: &mut Link, outbox: &mut Outbox) -> Next {
        if self.deadline.is_some_and(|deadline| deadline <= now)
            && let Some(end) = self.overdue(link)
        {
            return end;
        }
        let again = match self.stage {
            Stage::Resolving { .. } => return Next::Wait(self.deadline),
            Stage::Resetting => {
                self.tcp.poll(now, self.way, outbox);
                return if self.tcp.owes_reset() {
                    Next::Again
                } else {
                    Next::End(End::Reset)
                };
            }
            Stage::Connecting => match self.connecting(link) {
                Ok(again) => again,
                Err(end) => return Next::End(end),
            },
            Stage::Asking => {
                if self.tcp.is_abandoned() || self.tcp.phase() == Phase::Closed {
                    link.tunnel.reset(self.stream, Code::Abandoned.into());
                    return Next::End(End::NeverOpened(Code::Abandoned));
                }
                match self.asking(now, link) {
                    Ok(again) => again,
                    Err(end) => return Next::End(end),
                }
            }
            Stage::Accepting => {
                if self.tcp.is_abandoned() {
                    link.tunnel.reset(self.stream, Code::HostReset.into());
                    return Next::End(End::HostReset);
                }
                if self.tcp.phase() != Phase::Opening {
                    self.stage = Stage::Open;
                    self.deadline = None;
                }
                self.stage == Stage::Open
            }
            // Nothing is left to move but what the socket holds; the tunnel may be gone.
            Stage::Closing => false,
            Stage::Open => match self.pump(now, link) {
                Ok(again) => again,
                Err(code) => {
                    link.tunnel.reset(self.stream, code.into());
                    self.abort();
                    true
                }
            },
        };
        let timer = self.tcp.poll(now, self.way, outbox);
        if let Some(end) = self.ended(link) {
            return Next::End(end);
        }
        if again {
            return Next::Again;
        }
        Next::Wait(match (timer, self.deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        })
    }

    /// The present stage has taken too long.
    fn overdue(&mut self, link: &mut Link) -> Option<Next> {
        self.deadline = None;
        let code = match self.stage {
            Stage::Resolving { .. } | Stage::Connecting => Code::Unreachable,
            Stage::Asking => Code::Abandoned,
            Stage::Accepting => Code::HostReset,
            Stage::Open if self.peer_finished && !self.decoder.is_complete() => Code::Undecodable,
            Stage::Open | Stage::Closing | Stage::Resetting => return None,
        };
        link.tunnel.reset(self.stream, code.into());
        if matches!(self.stage, Stage::Accepting | Stage::Open) {
            self.abort();
            return None;
        }
        Some(Next::End(End::NeverOpened(code)))
    }

    fn connecting(&mut self, link: &mut Link) -> Result<bool, End> {
        match self.tcp.phase() {
            Phase::Opening => Ok(false),
            Phase::Closed => {
                link.tunnel.reset(self.stream, Code::Refused.into());
                Err(End::NeverOpened(Code::Refused))
            }
            Phase::Open | Phase::TimeWait => {
                self.queue(&[OPENED]);
                self.stage = Stage::Open;
                self.deadline = None;
                Ok(true)
            }
        }
    }

    fn asking(&mut self, now: Instant, link: &mut Link) -> Result<bool, End> {
        self.flush(link);
        let mut answer = [0];
        let read = link.tunnel.read(self.stream, &mut answer);
        if read.len == 0 && !link.has_finished(read) {
            return Ok(false);
        }
        if read.len == 1 && answer == [OPENED] {
            self.tcp.accept();
            self.stage = Stage::Accepting;
            self.deadline = Some(now + ACCEPT_TIMEOUT);
            return Ok(true);
        }
        link.tunnel.reset(self.stream, Code::Protocol.into());
        Err(End::NeverOpened(Code::Protocol))
    }

    /// Moves bytes both ways. Gives whether there is more to do at once; an error resets the flow on both sides.
    fn pump(&mut self, now: Instant, link: &mut Link) -> Result<bool, Code> {
        let up = self.pump_up(link);
        let down = self.pump_down(link)?;
        if self.stage == Stage::Open
            && self.host_finished
            && self.stream_finished
            && self.finished_to_host
        {
            // The host may take its time over what waits for it; one that is gone is given up by `tcp`.
            self.stage = Stage::Closing;
        }
        if self.peer_finished && !self.decoder.is_complete() && self.deadline.is_none() {
            self.deadline = Some(now + DECODE_TIMEOUT);
        }
        Ok(up || down)
    }

    /// Gives the tunnel what is encoded. `true`: it has taken everything.
    fn flush(&mut self, link: &mut Link) -> bool {
        while let Some(rest) = self
            .outgoing
            .get(self.taken..)
            .filter(|rest| !rest.is_empty())
        {
            let taken = link.tunnel.write(self.stream, rest);
            if taken == 0 {
                return false;
            }
            self.taken += taken;
        }
        self.outgoing.clear();
        self.taken = 0;
        true
    }

    /// Moves bytes from the host to the tunnel.
    fn pump_up(&mut self, link: &mut Link) -> bool {
        let mut moved = 0;
        loop {
            if !self.flush(link) {
                return false;
            }
            if self.host_finished {
                if !self.stream_finished {
                    link.tunnel.finish(self.stream);
                    self.stream_finished = true;
                }
                return false;
            }
            if moved >= TURN {
                return true;
            }
            let waiting = self.tcp.readable();
            let credit = self.encoder.writable(&link.sender);
            self.needs_credit = waiting > 0 && credit == 0;
            let (encoder, outgoing) = (&mut self.encoder, &mut self.outgoing);
            let incoming = self.tcp.read(|bytes| {
                let bytes = bytes.get(..TURN - moved).unwrap_or(bytes);
                // The ring's end or this turn's may cut what waits: only the last piece is flushed.
                let flush = if bytes.len() == waiting {
                    Flush::Yes
                } else {
                    Flush::No
                };
                encoder.encode(&mut link.sender, bytes, flush, outgoing)
            });
            match incoming {
                Incoming::Bytes(0) if self.outgoing.is_empty() => return false,
                Incoming::Bytes(taken) => {
                    moved += taken;
                    self.from_host += taken as u64;
                }
                Incoming::Finished => {
                    self.encoder
                        .encode(&mut link.sender, &[], Flush::Yes, &mut self.outgoing);
                    self.host_finished = !self.encoder.has_pending();
                    if !self.host_finished {
                        self.needs_credit = true;
                        return false;
                    }
                }
                // `ended` sees what it was.
                Incoming::Closed => return false,
            }
        }
    }

    /// Moves bytes from the tunnel to the host.
    fn pump_down(&mut self, link: &mut Link) -> Result<bool, Code> {
        let mut moved = 0;
        loop {
            // Also lets a decoder go on that waited for room, or for the control stream.
            self.push(link, 0)?;
            let ready = self.decoder.pop();
            if !ready.is_empty() {
                let taken = self.tcp.write(ready);
                let all = taken == ready.len();
                self.decoder.consume(taken);
                self.to_host += taken as u64;
                moved += taken;
                if !all {
                    // The host's window is full: its ACK calls again.
                    return Ok(false);
                }
                continue;
            }
            if self.peer_finished {
                if self.decoder.is_complete() && !self.finished_to_host {
                    self.tcp.finish();
                    self.finished_to_host = true;
                }
                return Ok(false);
            }
            if moved >= TURN {
                return Ok(true);
            }
            let room = self.decoder.room().min(link.scratch.len());
            let Some(buffer) = link.scratch.get_mut(..room).filter(|it| !it.is_empty()) else {
                return Ok(false);
            };
            let read = link.tunnel.read(self.stream, buffer);
            self.peer_finished = link.has_finished(read);
            self.push(link, read.len)?;
            if read.len == 0 && !self.peer_finished {
                return Ok(false);
            }
        }
    }

    /// Decodes the first `len` bytes of the link's scratch buffer.
    fn push(&mut self, link: &mut Link, len: usize) -> Result<(), Code> {
        let wire = link.scratch.get(..len).unwrap_or_default();
        match self.decoder.push(&mut link.receiver, wire) {
            Ok(taken) if taken == len => Ok(()),
            Ok(_) => Err(Code::Undecodable),
            Err(error) => {
                log::warn!("{:?}: {error}", self.key);
                Err(Code::Undecodable)
            }
        }
    }

    /// Whether only a control message of the peer can let the flow go on.
    pub fn awaits_control(&self) -> bool {
        self.needs_credit || self.decoder.is_waiting()
    }

    /// Gives up the flow's place in the dictionaries.
    pub fn close(self, link: &mut Link) {
        self.encoder.close(&mut link.sender);
        self.decoder.close(&mut link.receiver);
    }

    /// Whether the connection to the host is over, and how. If it was reset, so is the stream.
    pub fn ended(&mut self, link: &mut Link) -> Option<End> {
        if !matches!(self.stage, Stage::Open | Stage::Closing) {
            return None;
        }
        let in_order = self.host_finished && self.finished_to_host;
        match self.tcp.phase() {
            Phase::TimeWait | Phase::Closed if in_order && self.stream_finished => {
                Some(End::Finished)
            }
            // Both ways are closed, but the tunnel has not yet taken all that the host sent before.
            Phase::Closed if self.finished_to_host && self.tcp.host_has_closed() => None,
            Phase::Closed if !in_order && !self.tcp.owes_reset() => {
                link.tunnel.reset(self.stream, Code::HostReset.into());
                Some(End::HostReset)
            }
            _ => None,
        }
    }
}
