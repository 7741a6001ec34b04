//! One intercepted connection: a TCP connection towards a host, a stream of the tunnel, and the dedup coders between.
//!
//! Back-pressure: bytes are taken from the host only when what was encoded before has been taken by the tunnel, and from
//! the tunnel only when the host has taken what was decoded before. So each side's windows bound what is held here.

use core::net::Ipv4Addr;
use core::time::Duration;

use super::link::Link;
use super::message::{Code, OPENED};
use crate::flow::{Pump, Turn};
use crate::outbox::Outbox;
use crate::tcp::{Phase, Tcp, Way};
use crate::time::Instant;
use crate::tunnel::StreamId;
use crate::wire::{FlowKey, Quote};

/// How long the branch waits for the core's answer about the server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the core waits for the server. Linux retries a SYN after 1, 3, 7 and 15 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may take to answer a SYN-ACK.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(20);
/// From when on a flow whose handshakes are not over may give way to a new one, if there is no room…
const OPENING_PATIENCE: Duration = Duration::from_millis(250);
/// …and one that is open, but has carried nothing.
const SILENT_PATIENCE: Duration = Duration::from_secs(10);

/// How long the end of a finished stream may take to be decoded (it may have to be fetched again).
const DECODE_TIMEOUT: Duration = Duration::from_secs(60);

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
    /// When the flow was made.
    pub born: Instant,
    /// When the present stage began, as far as it matters to [`Flow::gives_way_at`].
    since: Instant,
    /// Bytes of memory it holds; kept by the table.
    pub memory: usize,
    /// Branch: the beginning of the client's SYN.
    pub quote: Option<Quote>,
    /// When the present stage has taken too long.
    pub deadline: Option<Instant>,
    /// The coders, and what they do with the stream.
    pub pump: Pump,
    /// The engine knows that the flow awaits a control message.
    pub is_listed: bool,
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
            born: now,
            since: now,
            memory: 0,
            quote: None,
            deadline,
            pump: Pump::new(stream, link),
            is_listed: false,
        }
    }

    /// Queues bytes for the stream that are no dedup blocks.
    pub fn queue(&mut self, bytes: &[u8]) {
        self.pump.queue(bytes);
    }

    /// Core: the server's MAC address is known; the connection is opened.
    pub fn connect(&mut self, now: Instant, way: Way) {
        self.way = way;
        self.stage = Stage::Connecting;
        self.deadline = Some(now + CONNECT_TIMEOUT);
    }

    /// From when on the flow may give way to a new one; `None`: never.
    pub fn gives_way_at(&self) -> Option<Instant> {
        if !self.tcp.is_small() {
            return None;
        }
        let patience = match self.stage {
            Stage::Resolving { .. } | Stage::Connecting | Stage::Asking | Stage::Accepting => {
                OPENING_PATIENCE
            }
            Stage::Open => SILENT_PATIENCE,
            Stage::Closing | Stage::Resetting => return None,
        };
        Some(self.since + patience)
    }

    /// Resets the connection to the host; the stream is gone or not to be used any more.
    pub fn abort(&mut self) {
        self.tcp.abort();
        self.stage = Stage::Resetting;
        self.pump.clear();
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
            Stage::Connecting => match self.connecting(now, link) {
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
                    self.since = now;
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
            Stage::Open if self.pump.awaits_last_bytes() => Code::Undecodable,
            Stage::Open | Stage::Closing | Stage::Resetting => return None,
        };
        link.tunnel.reset(self.stream, code.into());
        if matches!(self.stage, Stage::Accepting | Stage::Open) {
            self.abort();
            return None;
        }
        Some(Next::End(End::NeverOpened(code)))
    }

    fn connecting(&mut self, now: Instant, link: &mut Link) -> Result<bool, End> {
        match self.tcp.phase() {
            Phase::Opening => Ok(false),
            Phase::Closed => {
                link.tunnel.reset(self.stream, Code::Refused.into());
                Err(End::NeverOpened(Code::Refused))
            }
            Phase::Open | Phase::TimeWait => {
                self.queue(&[OPENED]);
                self.stage = Stage::Open;
                self.since = now;
                self.deadline = None;
                Ok(true)
            }
        }
    }

    fn asking(&mut self, now: Instant, link: &mut Link) -> Result<bool, End> {
        self.pump.flush(link);
        let mut answer = [0];
        let read = link.tunnel.read(self.stream, &mut answer);
        if read.len == 0 && !link.has_finished(read) {
            return Ok(false);
        }
        if read.len == 1 && answer == [OPENED] {
            self.tcp.accept();
            self.stage = Stage::Accepting;
            self.since = now;
            self.deadline = Some(now + ACCEPT_TIMEOUT);
            return Ok(true);
        }
        link.tunnel.reset(self.stream, Code::Protocol.into());
        Err(End::NeverOpened(Code::Protocol))
    }

    /// Moves bytes both ways. Gives whether there is more to do at once; an error resets the flow on both sides.
    fn pump(&mut self, now: Instant, link: &mut Link) -> Result<bool, Code> {
        let up = self.pump.up(&mut self.tcp, link, Turn::Short);
        let down = self.pump.down(&mut self.tcp, link, Turn::Short)?;
        if self.stage == Stage::Open && self.pump.is_finished() {
            // The host may take its time over what waits for it; one that is gone is given up by `tcp`.
            self.stage = Stage::Closing;
        }
        if self.pump.awaits_last_bytes() && self.deadline.is_none() {
            self.deadline = Some(now + DECODE_TIMEOUT);
        }
        Ok(up || down)
    }

    /// Whether only a control message of the peer can let the flow go on.
    pub fn awaits_control(&self) -> bool {
        self.pump.awaits_control()
    }

    /// Gives up the flow's place in the dictionaries.
    pub fn close(self, link: &mut Link) {
        self.pump.close(link);
    }

    /// Whether the connection to the host is over, and how. If it was reset, so is the stream.
    pub fn ended(&mut self, link: &mut Link) -> Option<End> {
        if !matches!(self.stage, Stage::Open | Stage::Closing) {
            return None;
        }
        let in_order = self.pump.is_in_order();
        match self.tcp.phase() {
            Phase::TimeWait | Phase::Closed if in_order && self.pump.is_finished() => {
                Some(End::Finished)
            }
            // Both ways are closed, but the tunnel has not yet taken all that the host sent before.
            Phase::Closed if self.pump.has_finished_to_host() && self.tcp.host_has_closed() => None,
            Phase::Closed if !in_order && !self.tcp.owes_reset() => {
                link.tunnel.reset(self.stream, Code::HostReset.into());
                Some(End::HostReset)
            }
            _ => None,
        }
    }
}
