//! The half of a flow that knows no sockets: a stream of the tunnel, and the dedup coders between it and a host.
//!
//! Back-pressure: bytes are taken from the host only when what was encoded before has been taken by the tunnel, and from
//! the tunnel only when the host has taken what was decoded before. So each side's windows bound what is held here.

use alloc::vec::Vec;

use super::link::Link;
use super::message::Code;
use crate::dedup::{Decoder, Encoder, FlowStatistics, Flush, MAX_BLOCK};
use crate::time::Instant;
use crate::tunnel::StreamId;

/// Bytes moved each way before another flow has its turn. Those count but a part that are one long repeat: they are hardly any
/// work.
const TURN: usize = 64 * 1024;
const REPEATED: usize = 4;
/// An empty buffer of more than so many bytes is given to others.
const KEPT: usize = 16 * 1024;

/// How much a flow may move before another has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// As much as keeps nobody waiting, though all flows have one at once.
    Short,
    /// Two whole blocks, or eight of a repeat: for flows that have them one at a time.
    Long,
}

impl Turn {
    fn bytes(self) -> usize {
        match self {
            Turn::Short => TURN,
            Turn::Long => 2 * MAX_BLOCK,
        }
    }
}

/// What reading from a host gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// So many bytes were taken; 0: there is none now.
    Bytes(usize),
    /// The host has finished, and everything was taken.
    Finished,
    /// The connection is not open.
    Closed,
}

/// A TCP connection to a host: what is read and written here.
pub trait Host {
    /// So many bytes would fill a block: what is read beyond that may have to be kept.
    fn wants(&mut self, _room: usize) {}
    /// How many bytes from the host wait to be read.
    fn readable(&mut self) -> usize;
    /// Hands bytes from the host, oldest first, to `take`, which gives how many it took.
    fn read(&mut self, take: impl FnOnce(&[u8]) -> usize) -> Incoming;
    /// Takes bytes for the host; gives how many there was room for.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Closes the way to the host, after what was written. `last`: nothing else happens to the connection, which its owner closes
    /// next, so that an owner who closes in order need not do it here.
    fn finish(&mut self, last: bool);
    /// What time it is, if there is a clock to see how long encoding takes.
    fn clock(&self) -> Option<Instant> {
        None
    }
}

/// A flow's coders and stream.
pub struct Pump {
    stream: StreamId,
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
    /// Payload bytes taken from the host.
    pub from_host: u64,
    /// Payload bytes given to the host.
    pub to_host: u64,
    /// Bytes of blocks from the peer.
    pub from_peer: u64,
}

impl Pump {
    /// Coders for `stream`, which have seen nothing yet.
    pub fn new(stream: StreamId, link: &mut Link) -> Pump {
        Pump {
            stream,
            encoder: Encoder::new(&mut link.sender),
            decoder: Decoder::new(&link.receiver),
            outgoing: Vec::new(),
            taken: 0,
            host_finished: false,
            stream_finished: false,
            peer_finished: false,
            finished_to_host: false,
            needs_credit: false,
            from_host: 0,
            to_host: 0,
            from_peer: 0,
        }
    }

    /// Queues bytes for the stream that are no dedup blocks.
    pub fn queue(&mut self, bytes: &[u8]) {
        self.outgoing.extend_from_slice(bytes);
    }

    /// Forgets what the tunnel has not yet taken.
    pub fn clear(&mut self) {
        self.outgoing = Vec::new();
        self.taken = 0;
    }

    /// Gives the tunnel what is encoded. `true`: it has taken everything.
    pub fn flush(&mut self, link: &mut Link) -> bool {
        while let Some(rest) = self
            .outgoing
            .get(self.taken..)
            .filter(|rest| !rest.is_empty())
        {
            let taken = link.tunnel.write(self.stream, rest);
            if taken == 0 {
                link.gauge.line_is_full(link.tunnel.backlog());
                return false;
            }
            self.taken += taken;
        }
        self.taken = 0;
        self.outgoing.clear();
        if self.outgoing.capacity() > KEPT {
            link.spares.take_back(&mut self.outgoing);
        }
        true
    }

    /// Moves bytes from the host to the tunnel.
    pub fn up(&mut self, host: &mut impl Host, link: &mut Link, turn: Turn) -> bool {
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
            // A turn ends with a block, if it can: then nothing of the flow is held until the next.
            if moved >= turn.bytes() || (moved >= MAX_BLOCK / 2 && !self.encoder.has_pending()) {
                return true;
            }
            host.wants(self.encoder.room(&link.sender));
            let waiting = host.readable();
            if waiting >= TURN {
                link.gauge.host_waits();
            }
            link.sender.set_effort(link.gauge.effort());
            let credit = self.encoder.writable(&link.sender);
            self.needs_credit = waiting > 0 && credit == 0;
            let before = host.clock();
            if waiting > 0 {
                link.spares.lend(&mut self.outgoing);
            }
            let encoded = self.outgoing.len();
            // What is encoded is held until the tunnel has taken it.
            let most = TURN.min(link.sender.block_limit());
            let (encoder, outgoing) = (&mut self.encoder, &mut self.outgoing);
            let incoming = host.read(|bytes| {
                let bytes = bytes.get(..most).unwrap_or(bytes);
                // The ring's end or this turn's may cut what waits: only the last piece is flushed.
                let flush = if bytes.len() == waiting {
                    Flush::Yes
                } else {
                    Flush::No
                };
                encoder.encode(&mut link.sender, bytes, flush, outgoing)
            });
            if let (Some(before), Some(after)) = (before, host.clock()) {
                link.gauge
                    .encoded(self.outgoing.len() - encoded, after.since(before));
            }
            match incoming {
                Incoming::Bytes(0) if self.outgoing.is_empty() => return false,
                Incoming::Bytes(taken) => {
                    let is_repeat = self.encoder.is_copying();
                    moved += if is_repeat { taken / REPEATED } else { taken };
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
    pub fn down(
        &mut self,
        host: &mut impl Host,
        link: &mut Link,
        turn: Turn,
    ) -> Result<bool, Code> {
        let mut moved = 0;
        loop {
            // Also lets a decoder go on that waited for room, or for the control stream.
            self.push(link, 0)?;
            let ready = self.decoder.pop();
            if !ready.is_empty() {
                let taken = host.write(ready);
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
                    host.finish(self.stream_finished);
                    self.finished_to_host = true;
                }
                return Ok(false);
            }
            if moved >= turn.bytes() {
                return Ok(true);
            }
            let room = self.decoder.room().min(link.scratch.len());
            let Some(buffer) = link.scratch.get_mut(..room).filter(|it| !it.is_empty()) else {
                return Ok(false);
            };
            let read = link.tunnel.read(self.stream, buffer);
            self.peer_finished = link.has_finished(read);
            self.from_peer += read.len as u64;
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
                log::warn!("{:?}: {error}", self.stream);
                Err(Code::Undecodable)
            }
        }
    }

    /// Both ways are finished towards the host, and the last byte to the peer is in the tunnel.
    pub fn is_finished(&self) -> bool {
        self.is_in_order() && self.stream_finished
    }

    /// The peer has finished, and the host has been told.
    pub fn has_finished_to_host(&self) -> bool {
        self.finished_to_host
    }

    /// The host has finished, and so has the peer towards it.
    pub fn is_in_order(&self) -> bool {
        self.host_finished && self.finished_to_host
    }

    /// The peer has finished, but not everything can be decoded yet.
    pub fn awaits_last_bytes(&self) -> bool {
        self.peer_finished && !self.decoder.is_complete()
    }

    /// Whether only a control message of the peer can let the flow go on.
    pub fn awaits_control(&self) -> bool {
        self.needs_credit || self.decoder.is_waiting()
    }

    /// What became of the bytes from the host.
    pub fn statistics(&self) -> FlowStatistics {
        self.encoder.statistics()
    }

    /// How many blocks for the host had to be fetched again.
    pub fn refetches(&self) -> u64 {
        self.decoder.refetches()
    }

    /// Gives up the place in the dictionaries.
    pub fn close(self, link: &mut Link) {
        self.encoder.close(&mut link.sender);
        self.decoder.close(&mut link.receiver);
    }
}
