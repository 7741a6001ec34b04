//! One flow's decoder: blocks come in, verified bytes come out, in order.

use alloc::vec::Vec;
use core::ops::Range;

use super::codec::{self, BodyError, Source, Tables};
use super::digest::DIGEST_BYTES;
use super::ranges::RangeSet;
use super::receiver::Receiver;
use super::store::Store;
use super::wire::{Contiguity, FlowId, Header, Kind, MAX_BLOCK, MAX_WIRE_BLOCK, Reader};

/// How often one block may have the store read from its device. An honest block is spread over few places.
const MOST_READS: u32 = 512;

/// How many of the ranges that are missing or may be wrong are given up for one block. An honest block refers to few.
const MOST_LOST: usize = 1024;

/// The flow cannot go on, and must be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes are no block, or one with an impossible claim.
    Malformed,
    /// A block was wrong, was fetched again, and is still wrong.
    Unverified,
    /// A block has to be fetched again, and the sender does not have it any more.
    Gone,
    /// The session with the peer in which the flow began is over.
    OldSession,
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            DecodeError::Malformed => "dedup block is malformed",
            DecodeError::Unverified => "dedup block does not have its digest, even fetched again",
            DecodeError::Gone => {
                "dedup block has to be fetched again and the sender no longer has it"
            }
            DecodeError::OldSession => "dedup block of a session that is over",
        })
    }
}

impl core::error::Error for DecodeError {}

/// One flow's receiving end.
pub struct Decoder {
    session: u64,
    flow: Option<FlowId>,
    /// The number of the next block.
    block: u32,
    contiguity: Contiguity,
    tables: Tables,
    /// Bytes from the line that are not decoded yet.
    wire: Vec<u8>,
    /// Verified bytes, of which the first `taken` have been taken.
    ready: Vec<u8>,
    taken: usize,
    /// Verified bytes that wait to be taken, beyond which no further block is decoded: as many as a block may have.
    most_ready: usize,
    waiting: Option<Waiting>,
    refetches: u64,
    failed: Option<DecodeError>,
}

/// A block that is being fetched again.
struct Waiting {
    header: Header,
    digest: [u8; DIGEST_BYTES],
}

impl Decoder {
    /// The decoder of a new flow.
    pub fn new<S: Store>(receiver: &Receiver<S>) -> Self {
        Decoder {
            session: receiver.session,
            flow: None,
            block: 0,
            contiguity: Contiguity::default(),
            tables: Tables::new(),
            wire: Vec::new(),
            ready: Vec::new(),
            taken: 0,
            most_ready: receiver.block_limit,
            waiting: None,
            refetches: 0,
            failed: None,
        }
    }

    /// How many blocks had to be fetched again.
    pub fn refetches(&self) -> u64 {
        self.refetches
    }

    /// How many bytes from the line [`Decoder::push`] would take now.
    pub fn room(&self) -> usize {
        if self.ready.len() - self.taken >= self.most_ready {
            return 0;
        }
        // Nothing of what comes is decoded before the block that is fetched again is there.
        let most = match self.waiting {
            Some(_) => self.most_ready,
            None => MAX_WIRE_BLOCK,
        };
        most.saturating_sub(self.wire.len())
    }

    /// Whether a block is being fetched again, or the sender's greeting has not come: push nothing into the decoder after
    /// the receiver's control channel has said something.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
            || (!self.wire.is_empty() && self.ready.len() - self.taken < self.most_ready)
    }

    /// Takes in at most [`Decoder::room`] bytes from the line, cut anywhere, decodes what can be, and returns how many
    /// were taken. A few bytes from the line may stand for megabytes: after what is ready has been taken, push again, if
    /// only nothing, until nothing more gets ready.
    ///
    /// # Errors
    ///
    /// The flow is broken for good; what was verified before can still be taken.
    pub fn push<S: Store>(
        &mut self,
        receiver: &mut Receiver<S>,
        wire: &[u8],
    ) -> Result<usize, DecodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut taken = 0;
        self.most_ready = receiver.block_limit;
        loop {
            let now = self.room().min(wire.len() - taken);
            if now > 0 {
                receiver.spares.lend(&mut self.wire);
            }
            self.wire
                .extend_from_slice(wire.get(taken..taken + now).unwrap_or(&[]));
            taken += now;
            receiver.statistics.wire_bytes += now as u64;
            match self.advance(receiver) {
                Ok(()) => {}
                Err(error) => {
                    receiver.statistics.rejected += 1;
                    self.failed = Some(error);
                    self.wire = Vec::new();
                    self.close_at(receiver);
                    return Err(error);
                }
            }
            if taken == wire.len() || self.room() == 0 {
                if self.ready.is_empty() && self.ready.capacity() > MAX_BLOCK / 4 {
                    receiver.spares.take_back(&mut self.ready);
                }
                return Ok(taken);
            }
        }
    }

    /// Verified bytes that have not been taken.
    pub fn pop(&self) -> &[u8] {
        self.ready.get(self.taken..).unwrap_or(&[])
    }

    /// Takes the first `len` bytes of [`Decoder::pop`] away.
    pub fn consume(&mut self, len: usize) {
        self.taken = self.taken.saturating_add(len).min(self.ready.len());
        if self.taken == self.ready.len() {
            self.taken = 0;
            self.ready.clear();
        }
    }

    /// Whether the flow may end here: every byte from the line has come out as verified bytes (or waits to be taken).
    pub fn is_complete(&self) -> bool {
        self.failed.is_none() && self.waiting.is_none() && self.wire.is_empty()
    }

    /// The flow is gone.
    pub fn close<S: Store>(self, receiver: &mut Receiver<S>) {
        self.close_at(receiver);
    }

    fn close_at<S: Store>(&self, receiver: &mut Receiver<S>) {
        if let Some(flow) = self.flow.filter(|_| self.session == receiver.session) {
            receiver.close(flow);
        }
    }

    fn advance<S: Store>(&mut self, receiver: &mut Receiver<S>) -> Result<(), DecodeError> {
        if self.session != receiver.session {
            return Err(DecodeError::OldSession);
        }
        if receiver.digest.is_none() {
            return Ok(());
        }
        if let Some(waiting) = &self.waiting {
            let Some(bytes) = self.flow.and_then(|flow| receiver.answer(flow, self.block)) else {
                return Ok(());
            };
            if bytes.is_empty() {
                return Err(DecodeError::Gone);
            }
            let (header, digest) = (waiting.header, waiting.digest);
            if bytes.len() != header.raw || !is_right(receiver, &bytes, digest) {
                return Err(DecodeError::Unverified);
            }
            self.waiting = None;
            receiver.spares.lend(&mut self.ready);
            let start = self.ready.len();
            self.ready.extend_from_slice(&bytes);
            // A copy's source is mended by the way.
            let (Kind::Raw { position }
            | Kind::Coded { position, .. }
            | Kind::Copy { source: position }) = header.kind;
            receiver.put(position, self.ready.get(start..).unwrap_or(&[]));
            self.passed(receiver, header);
        }
        let wire = core::mem::take(&mut self.wire);
        let mut used = 0;
        let result = loop {
            if self.waiting.is_some() || self.ready.len() - self.taken >= self.most_ready {
                break Ok(());
            }
            let rest = wire.get(used..).unwrap_or(&[]);
            match self.block(receiver, rest) {
                Ok(0) => break Ok(()),
                Ok(len) => used += len,
                Err(error) => break Err(error),
            }
        };
        self.wire = wire;
        self.wire.drain(..used);
        if self.wire.is_empty() && self.wire.capacity() > MAX_WIRE_BLOCK / 4 {
            receiver.spares.take_back(&mut self.wire);
        }
        result
    }

    /// Decodes the block at the start of `wire`; returns its length, or 0 when it is not all there.
    fn block<S: Store>(
        &mut self,
        receiver: &mut Receiver<S>,
        wire: &[u8],
    ) -> Result<usize, DecodeError> {
        let mut reader = Reader(wire);
        let header =
            Header::parse(&mut reader, &self.contiguity).map_err(|_| DecodeError::Malformed)?;
        let Some(header) = header else { return Ok(0) };
        let Some(body) = reader.take(header.body()) else {
            return Ok(0);
        };
        let Some(digest) = reader.array::<DIGEST_BYTES>() else {
            return Ok(0);
        };
        let used = wire.len() - reader.0.len();
        // The first block names the flow, and no other does.
        if header.flow.is_some() == self.flow.is_some() {
            return Err(DecodeError::Malformed);
        }
        self.flow = self.flow.or(header.flow);
        self.make_room();
        receiver.spares.lend(&mut self.ready);
        let start = self.ready.len();
        let before = matches!(header.kind, Kind::Coded { .. }).then(|| self.tables.clone());
        let mut found = Found::default();
        self.resolve(receiver, header, body, &mut found)?;
        let right = self.ready.get(start..).is_some_and(|bytes| {
            !found.missing && bytes.len() == header.raw && is_right(receiver, bytes, digest)
        });
        if right {
            if let Kind::Raw { position } | Kind::Coded { position, .. } = header.kind {
                receiver.put(position, self.ready.get(start..).unwrap_or(&[]));
            }
            receiver.statistics.copied_bytes += found.copied;
            self.passed(receiver, header);
            return Ok(used);
        }
        if found.missing {
            receiver.statistics.missing += 1;
        } else {
            receiver.statistics.mismatches += 1;
            // Nobody knows which of the sources is wrong: all are given up, within reason. If it was another, the next block
            // that refers to it finds it again.
            self.ready.truncate(start);
            let after = before.map(|before| core::mem::replace(&mut self.tables, before));
            found = Found {
                suspect_all: true,
                ..Found::default()
            };
            let _ = self.resolve(receiver, header, body, &mut found);
            self.tables = after.unwrap_or_else(|| self.tables.clone());
        }
        self.ready.truncate(start);
        if let Some(flow) = self.flow {
            receiver.ask(flow, self.block, found.lost);
        }
        self.refetches += 1;
        self.waiting = Some(Waiting { header, digest });
        Ok(used)
    }

    /// Appends what a block seems to stand for to `ready`; what cannot be found is noted.
    fn resolve<S: Store>(
        &mut self,
        receiver: &mut Receiver<S>,
        header: Header,
        body: &[u8],
        found: &mut Found,
    ) -> Result<(), DecodeError> {
        match header.kind {
            Kind::Raw { .. } => self.ready.extend_from_slice(body),
            Kind::Copy { source } => {
                let mut stored = Stored {
                    receiver,
                    found,
                    span: 0..0,
                };
                let end = source + header.raw as u64;
                let mut at = source;
                while at < end {
                    let left = (end - at) as usize;
                    let Some(bytes) = stored.bytes(at, left) else {
                        break;
                    };
                    let now = bytes.len().min(left);
                    self.ready
                        .extend_from_slice(bytes.get(..now).unwrap_or(&[]));
                    at += now as u64;
                }
            }
            Kind::Coded { position, .. } => {
                let mut workspace = core::mem::take(&mut receiver.workspace);
                let mut stored = Stored {
                    receiver,
                    found,
                    span: 0..0,
                };
                let tables = &mut self.tables;
                let result = codec::decode(
                    &mut workspace,
                    body,
                    position,
                    header.raw,
                    tables,
                    &mut stored,
                    &mut self.ready,
                );
                receiver.workspace = workspace;
                if result == Err(BodyError::Malformed) {
                    return Err(DecodeError::Malformed);
                }
            }
        }
        Ok(())
    }

    /// A block has come out.
    fn passed<S: Store>(&mut self, receiver: &mut Receiver<S>, header: Header) {
        self.contiguity.after(&header);
        self.block = self.block.wrapping_add(1);
        if let Some(flow) = self.flow {
            receiver.verified(flow, header.raw);
        }
    }

    /// Drops what has been taken.
    fn make_room(&mut self) {
        self.ready.drain(..self.taken);
        self.taken = 0;
    }
}

/// What was looked for in the store.
#[derive(Default)]
struct Found {
    copied: u64,
    /// Not everything could be had.
    missing: bool,
    /// What is not there.
    lost: RangeSet,
    /// Reads from a device.
    reads: u32,
    /// Note everything as lost.
    suspect_all: bool,
}

impl Found {
    fn give_up(&mut self, range: Range<u64>) {
        if self.lost.iter().len() < MOST_LOST {
            self.lost.insert(range);
        }
    }
}

/// The store as a block sees it.
struct Stored<'a, S: Store> {
    receiver: &'a mut Receiver<S>,
    found: &'a mut Found,
    /// A range that is known to be present.
    span: Range<u64>,
}

impl<S: Store> codec::Source for Stored<'_, S> {
    #[inline]
    fn bytes(&mut self, position: u64, len: usize) -> Option<&[u8]> {
        let end = position.saturating_add(len as u64);
        self.found.copied += len as u64;
        if self.found.suspect_all {
            self.found.give_up(position..end);
        }
        if !(self.span.start <= position && end <= self.span.end) {
            match self
                .receiver
                .present(position)
                .filter(|span| end <= span.end)
            {
                Some(span) => self.span = span,
                None => {
                    self.found.missing = true;
                    self.found.give_up(position..end);
                    return None;
                }
            }
        }
        if self.receiver.stored(position).is_empty() {
            // It is there, but not in memory. Blocks that point everywhere are fetched again from the peer instead.
            self.found.reads += 1;
            if self.found.reads <= MOST_READS {
                self.receiver.bring(position, &mut self.found.lost);
                self.span = 0..0;
                let left = self.receiver.present(position);
                if left.is_none_or(|left| left.end < end) {
                    self.found.missing = true;
                    return None;
                }
            }
        }
        let bytes = self.receiver.stored(position);
        if bytes.is_empty() {
            self.found.missing = true;
            return None;
        }
        Some(bytes)
    }
}

fn is_right<S: Store>(receiver: &Receiver<S>, bytes: &[u8], digest: [u8; DIGEST_BYTES]) -> bool {
    receiver
        .digest
        .as_ref()
        .is_some_and(|key| key.digest(bytes) == digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dedup::ReceiverConfig;

    /// A coded block can have some 87,000 sources; to note each once took seconds, and asked for them in a quarter of a megabyte.
    #[test]
    fn only_so_many_of_a_blocks_sources_are_given_up() {
        let mut receiver = Receiver::new(ReceiverConfig { memory: 1 << 20 });
        let mut found = Found {
            suspect_all: true,
            ..Found::default()
        };
        let mut stored = Stored {
            receiver: &mut receiver,
            found: &mut found,
            span: 0..0,
        };
        for at in 0..87_000 {
            codec::Source::bytes(&mut stored, at * 10, 3);
        }
        assert!(found.lost.iter().len() <= MOST_LOST);
        assert!(found.lost.touches(0..3));
    }
}
