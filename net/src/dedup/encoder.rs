//! One flow's encoder: finds what the peer has, cuts the flow into blocks, and writes them.

use alloc::vec::Vec;

use super::anchor::Anchor;
use super::codec::{FarMatch, Tables};
use super::digest::DIGEST_BYTES;
use super::search::Search;
use super::sender::Sender;
use super::statistics::FlowStatistics;
use super::store::Store;
use super::wire::{Contiguity, FlowId, Header, Kind};
use crate::spare::Spares;

/// A run at least this long is sent as a copy and not stored again; what is shorter is stored again with its surroundings,
/// so that the next repeat finds them in one piece.
const LONG: usize = 32 * 1024;
/// The least that is stored between two copies, so that an anchor fits in.
const MIN_STORED: usize = 64;

/// Bytes of buffers that are kept to be used again.
const SPARE_BYTES: usize = 1 << 20;

/// Whether the flow has paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// More is to come at once: blocks may wait until they are full.
    No,
    /// Everything goes out now.
    Yes,
}

/// What the encoders of a sending side work in, one after the other.
pub struct Room {
    /// A block's body.
    body: Vec<u8>,
    /// A block's matches.
    far: Vec<FarMatch>,
    /// Anchors of a block where nothing was looked up.
    pub anchors: Vec<Anchor>,
    /// Buffers of encoders that hold no input now.
    pending: Spares<Vec<u8>>,
}

impl Room {
    pub fn new() -> Self {
        Room {
            body: Vec::new(),
            far: Vec::new(),
            anchors: Vec::new(),
            pending: Spares::new(SPARE_BYTES),
        }
    }

    /// Keeps no more than that of buffers that nobody needs now, in bytes.
    pub fn keep_spares(&mut self, bytes: usize) {
        self.pending.keep(bytes);
    }
}

/// One flow's sending end.
pub struct Encoder {
    flow: FlowId,
    started: bool,
    contiguity: Contiguity,
    tables: Tables,
    /// Input that is not sent yet.
    pending: Vec<u8>,
    search: Search,
    /// The run at the start of `pending` goes on from copies already sent, or is long enough for one.
    copying: bool,
    /// Bytes since a short run was last sent as a copy; see [`Encoder::may_copy_short`].
    since_short: usize,
    statistics: FlowStatistics,
}

impl Encoder {
    /// The encoder of a new flow.
    pub fn new<S: Store>(sender: &mut Sender<S>) -> Self {
        Encoder {
            flow: sender.open_flow(),
            started: false,
            contiguity: Contiguity::default(),
            tables: Tables::new(),
            pending: Vec::new(),
            search: Search::default(),
            copying: false,
            since_short: LONG,
            statistics: FlowStatistics::default(),
        }
    }

    /// Counts of this flow since its start.
    pub fn statistics(&self) -> FlowStatistics {
        self.statistics
    }

    /// How many bytes [`Encoder::encode`] would take now. Zero until the peer confirms earlier blocks means: wait.
    pub fn writable<S: Store>(&self, sender: &Sender<S>) -> usize {
        sender.credit(self.flow).saturating_sub(self.pending.len())
    }

    /// How many bytes would fill the block that is being collected.
    pub fn room<S: Store>(&self, sender: &Sender<S>) -> usize {
        let limit = sender.block_limit();
        limit.saturating_sub(self.pending.len())
    }

    /// Whether input waits to be sent by a flush.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether the last bytes taken in go on with a long repeat.
    pub fn is_copying(&self) -> bool {
        self.copying && self.search.live
    }

    /// Takes in at most [`Encoder::writable`] bytes of `input`, appends whole blocks to `out` and returns how many
    /// bytes were taken. Nothing is taken when the sender's session is not the one that the encoder was made in.
    pub fn encode<S: Store>(
        &mut self,
        sender: &mut Sender<S>,
        input: &[u8],
        flush: Flush,
        out: &mut Vec<u8>,
    ) -> usize {
        if !sender.knows(self.flow) {
            return 0;
        }
        let mut taken = 0;
        let limit = sender.block_limit();
        loop {
            let room = self.writable(sender).min(self.room(sender));
            let now = input.len().saturating_sub(taken).min(room);
            let Some(bytes) = input.get(taken..taken + now) else {
                break;
            };
            if now > 0 {
                sender.room.pending.lend(&mut self.pending);
            }
            if self.pending.is_empty() && now >= limit / 4 {
                self.pending.reserve_exact(limit);
            }
            self.pending.extend_from_slice(bytes);
            taken += now;
            sender.statistics.raw_bytes += now as u64;
            self.statistics.raw_bytes += now as u64;
            self.search.advance(sender, self.flow, &self.pending);
            let last = taken == input.len();
            // Without credit nothing more can join a block.
            let flush = (last && flush == Flush::Yes) || self.writable(sender) == 0;
            self.emit(sender, flush, out);
            if last || self.writable(sender) == 0 {
                break;
            }
        }
        taken
    }

    /// The flow ends here: whatever was not flushed is dropped; what was sent stays answerable. Call it when the
    /// tunnel's stream is gone, for whatever reason.
    pub fn close<S: Store>(self, sender: &mut Sender<S>) {
        sender.close_flow(self.flow);
    }

    /// Sends what is due.
    fn emit<S: Store>(&mut self, sender: &mut Sender<S>, flush: bool, out: &mut Vec<u8>) {
        let limit = sender.block_limit();
        loop {
            let long = self
                .search
                .far
                .iter()
                .position(|found| self.is_copy(sender, found, flush));
            if let Some(index) = long {
                let Some(found) = self.search.far.get(index).copied() else {
                    return;
                };
                if found.start > 0 {
                    // A little of the run is stored with what precedes it, if that alone were too short for an anchor.
                    let more = MIN_STORED
                        .saturating_sub(found.start)
                        .min(found.len.saturating_sub(MIN_STORED));
                    self.send_data(sender, found.start + more, out);
                    self.copying = self
                        .search
                        .far
                        .first()
                        .is_some_and(|first| first.start == 0);
                    continue;
                }
                let live = self.search.live && index + 1 == self.search.far.len();
                if live && !flush && found.len < limit {
                    self.copying = true;
                    return;
                }
                self.send_copy(sender, found.len.min(limit), out);
                continue;
            }
            if self.pending.is_empty() || (!flush && self.pending.len() < limit) {
                return;
            }
            // A run at the end may yet become a long one. What is stored without it has room for an anchor.
            let len = match self.search.far.last() {
                Some(last) if !flush && self.search.live && last.start > 0 && last.len < LONG => {
                    last.start.max(MIN_STORED)
                }
                _ => self.pending.len(),
            };
            self.send_data(sender, len, out);
        }
    }

    /// Whether a match is sent as a copy of its own.
    fn is_copy<S: Store>(&self, sender: &Sender<S>, found: &FarMatch, flush: bool) -> bool {
        if found.len == 0 || found.source < sender.refresh_below() {
            return false;
        }
        let end = found.start + found.len;
        found.len >= LONG
            || (found.start == 0 && self.copying)
            || (flush
                && end == self.pending.len()
                && found.len >= 4 * MIN_STORED
                && self.since_short >= LONG)
    }

    /// Sends the first `len` bytes of `pending`, which a match covers, as a copy.
    fn send_copy<S: Store>(&mut self, sender: &mut Sender<S>, len: usize, out: &mut Vec<u8>) {
        let Some(found) = self.search.far.first().copied() else {
            return;
        };
        // The log may have moved on since the match was found.
        let valid = sender
            .span(self.flow, found.source)
            .is_some_and(|span| found.source + len as u64 <= span.end);
        if !valid {
            self.search.drop_first();
            self.copying = false;
            self.send_data(sender, len, out);
            return;
        }
        if found.len < LONG && !self.copying {
            self.since_short = 0;
        }
        self.copying = found.len > len || (self.search.live && self.search.far.len() == 1);
        let bytes = self.pending.get(..len).unwrap_or(&[]);
        let digest = sender.digest.digest(bytes);
        let start = out.len();
        self.header(
            Kind::Copy {
                source: found.source,
            },
            len,
            out,
        );
        out.extend_from_slice(&digest);
        sender.sent(self.flow, found.source..found.source + len as u64, false);
        sender.statistics.copied_bytes += len as u64;
        self.statistics.copied_bytes += len as u64;
        sender.statistics.copy_blocks += 1;
        self.statistics.copy_blocks += 1;
        self.sent(sender, len, out.len() - start);
    }

    /// Sends the first `len` bytes of `pending` as data that both ends store.
    fn send_data<S: Store>(&mut self, sender: &mut Sender<S>, len: usize, out: &mut Vec<u8>) {
        let len = len
            .min(sender.block_limit())
            .min(sender.contiguous())
            .min(self.pending.len());
        let Some(bytes) = self.pending.get(..len) else {
            return;
        };
        let digest = sender.digest.digest(bytes);
        let position = sender.append(bytes);
        let mut far = core::mem::take(&mut sender.room.far);
        self.usable(sender, len, &mut far);
        let start = out.len();
        // The header needs the body's length: the body is made first and moved.
        let mut body = core::mem::take(&mut sender.room.body);
        body.clear();
        let parts = sender.encode(self.flow, position, len, &far, &mut self.tables, &mut body);
        match parts {
            Some(parts) => {
                self.header(
                    Kind::Coded {
                        position,
                        body: body.len(),
                    },
                    len,
                    out,
                );
                out.extend_from_slice(&body);
                for (total, part) in [
                    (&mut sender.statistics.copied_bytes, parts.copied),
                    (&mut self.statistics.copied_bytes, parts.copied),
                    (&mut sender.statistics.matched_bytes, parts.matched),
                    (&mut self.statistics.matched_bytes, parts.matched),
                    (&mut sender.statistics.literal_bytes, parts.literal),
                    (&mut self.statistics.literal_bytes, parts.literal),
                ] {
                    *total += part as u64;
                }
                sender.statistics.coded_blocks += 1;
                sender.statistics.fast_blocks += u64::from(parts.fast);
                self.statistics.coded_blocks += 1;
            }
            None => {
                self.header(Kind::Raw { position }, len, out);
                out.extend_from_slice(self.pending.get(..len).unwrap_or(&[]));
                sender.statistics.literal_bytes += len as u64;
                self.statistics.literal_bytes += len as u64;
                sender.statistics.raw_blocks += 1;
                self.statistics.raw_blocks += 1;
            }
        }
        sender.room.body = body;
        sender.room.far = far;
        out.extend_from_slice(&digest);
        let range = position..position + len as u64;
        self.search.index(sender, &self.pending, position, len);
        sender.sent(self.flow, range, true);
        self.copying = false;
        self.sent(sender, len, out.len() - start);
    }

    /// The matches in the first `len` bytes of `pending` that may still be referred to.
    fn usable<S: Store>(&self, sender: &Sender<S>, len: usize, usable: &mut Vec<FarMatch>) {
        usable.clear();
        for found in self.search.far.iter().take_while(|found| found.start < len) {
            let clipped = FarMatch {
                len: found.len.min(len - found.start),
                ..*found
            };
            let end = clipped.source + clipped.len as u64;
            if sender
                .span(self.flow, clipped.source)
                .is_some_and(|span| end <= span.end)
            {
                usable.push(clipped);
            }
        }
    }

    fn header(&mut self, kind: Kind, raw: usize, out: &mut Vec<u8>) {
        let flow = (!self.started).then_some(self.flow);
        self.started = true;
        let header = Header { flow, kind, raw };
        header.emit(&self.contiguity, out);
        self.contiguity.after(&header);
    }

    /// The first `len` bytes of `pending` are gone.
    fn sent<S: Store>(&mut self, sender: &mut Sender<S>, len: usize, wire: usize) {
        debug_assert!(wire > DIGEST_BYTES);
        sender.statistics.wire_bytes += wire as u64;
        self.statistics.wire_bytes += wire as u64;
        self.since_short = self.since_short.saturating_add(len);
        self.pending.drain(..len);
        self.search.taken(len);
        if self.pending.is_empty() && self.pending.capacity() > sender.block_limit() / 2 {
            sender.room.pending.take_back(&mut self.pending);
        }
    }
}
