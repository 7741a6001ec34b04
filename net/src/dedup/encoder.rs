//! One flow's encoder: finds what the peer has, cuts the flow into blocks, and writes them.

use alloc::vec::Vec;

use super::anchor::{Rolling, WINDOW};
use super::codec::{self, FarMatch, Input, Tables};
use super::digest::DIGEST_BYTES;
use super::sender::Sender;
use super::statistics::FlowStatistics;
use super::store::Store;
use super::wire::{Contiguity, FlowId, Header, Kind, MAX_BLOCK};

/// The shortest run that the anchors' matches are used for.
const MIN_FAR: usize = WINDOW;
/// A run at least this long is sent as a copy and not stored again; what is shorter is stored again with its surroundings,
/// so that the next repeat finds them in one piece.
const LONG: usize = 32 * 1024;
/// The least that is stored between two copies, so that an anchor fits in.
const MIN_STORED: usize = 64;

/// Whether the flow has paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// More is to come at once: blocks may wait until they are full.
    No,
    /// Everything goes out now.
    Yes,
}

/// One flow's sending end.
pub struct Encoder {
    flow: FlowId,
    started: bool,
    contiguity: Contiguity,
    tables: Tables,
    /// Input that is not sent yet.
    pending: Vec<u8>,
    /// How much of it has been searched for matches.
    scanned: usize,
    rolling: Rolling,
    /// Matches in `pending`, in order and disjoint.
    far: Vec<FarMatch>,
    /// The last match goes on with whatever comes next, as far as it has been compared.
    live: bool,
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
            scanned: 0,
            rolling: Rolling::default(),
            far: Vec::new(),
            live: false,
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

    /// Whether input waits to be sent by a flush.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
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
        loop {
            let room = self
                .writable(sender)
                .min(MAX_BLOCK.saturating_sub(self.pending.len()));
            let now = input.len().saturating_sub(taken).min(room);
            let Some(bytes) = input.get(taken..taken + now) else {
                break;
            };
            self.pending.extend_from_slice(bytes);
            taken += now;
            sender.statistics.raw_bytes += now as u64;
            self.statistics.raw_bytes += now as u64;
            self.scan(sender);
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

    /// Looks for matches in what has not been searched.
    fn scan<S: Store>(&mut self, sender: &Sender<S>) {
        while self.scanned < self.pending.len() {
            if self.live {
                self.follow(sender);
                continue;
            }
            let Some(at) = sender
                .roller
                .next(&mut self.rolling, &self.pending, self.scanned)
            else {
                self.scanned = self.pending.len();
                return;
            };
            self.scanned = at;
            let Some(fingerprint) = self.rolling.full() else {
                continue;
            };
            if let Some(found) = self.best_match(sender, fingerprint, at) {
                self.scanned = found.start + found.len;
                self.live = self.scanned == self.pending.len();
                self.rolling = Rolling::default();
                self.far.push(found);
            }
        }
    }

    /// Compares what comes next with what followed last time.
    fn follow<S: Store>(&mut self, sender: &Sender<S>) {
        let Some(last) = self.far.last_mut() else {
            self.live = false;
            return;
        };
        let position = last.source + last.len as u64;
        let rest = self.pending.get(self.scanned..).unwrap_or(&[]);
        let len = common_forward(sender, self.flow, position, rest);
        last.len += len;
        self.scanned += len;
        if self.scanned < self.pending.len() {
            self.live = false;
            if last.len == 0 {
                self.far.pop();
            }
        }
    }

    /// The longest match around the window that ends before `at`.
    fn best_match<S: Store>(
        &self,
        sender: &Sender<S>,
        fingerprint: u64,
        at: usize,
    ) -> Option<FarMatch> {
        let floor = self.far.last().map_or(0, |last| last.start + last.len);
        let (before, after) = self.pending.split_at_checked(at)?;
        let before = before.get(floor..)?;
        let mut best: Option<FarMatch> = None;
        for position in sender.anchors.candidates(fingerprint, sender.store.head()) {
            let back = common_backward(sender, self.flow, position, before);
            if back == 0 {
                continue;
            }
            let len = back + common_forward(sender, self.flow, position, after);
            if len >= MIN_FAR && best.is_none_or(|best| best.len < len) {
                best = Some(FarMatch {
                    start: at - back,
                    len,
                    source: position - back as u64,
                });
                if len == back + after.len() {
                    // Nothing can go on for longer.
                    break;
                }
            }
        }
        best
    }

    /// Sends what is due.
    fn emit<S: Store>(&mut self, sender: &mut Sender<S>, flush: bool, out: &mut Vec<u8>) {
        loop {
            let long = self
                .far
                .iter()
                .position(|found| self.is_copy(sender, found, flush));
            if let Some(index) = long {
                let Some(found) = self.far.get(index).copied() else {
                    return;
                };
                if found.start > 0 {
                    // A little of the run is stored with what precedes it, if that alone were too short for an anchor.
                    let more = MIN_STORED
                        .saturating_sub(found.start)
                        .min(found.len.saturating_sub(MIN_STORED));
                    self.send_data(sender, found.start + more, out);
                    self.copying = self.far.first().is_some_and(|first| first.start == 0);
                    continue;
                }
                let live = self.live && index + 1 == self.far.len();
                if live && !flush && found.len < MAX_BLOCK {
                    self.copying = true;
                    return;
                }
                self.send_copy(sender, found.len.min(MAX_BLOCK), out);
                continue;
            }
            if self.pending.is_empty() || (!flush && self.pending.len() < MAX_BLOCK) {
                return;
            }
            // A run at the end may yet become a long one.
            let len = match self.far.last() {
                Some(last) if !flush && self.live && last.start > 0 && last.len < LONG => {
                    last.start
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
        let Some(found) = self.far.first().copied() else {
            return;
        };
        // The log may have moved on since the match was found.
        let valid = sender
            .span(self.flow, found.source)
            .is_some_and(|span| found.source + len as u64 <= span.end);
        if !valid {
            self.far.remove(0);
            self.live &= !self.far.is_empty();
            self.copying = false;
            self.send_data(sender, len, out);
            return;
        }
        if found.len < LONG && !self.copying {
            self.since_short = 0;
        }
        self.copying = found.len > len || self.live;
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
            .min(MAX_BLOCK)
            .min(sender.contiguous())
            .min(self.pending.len());
        let Some(bytes) = self.pending.get(..len) else {
            return;
        };
        let digest = sender.digest.digest(bytes);
        let position = sender.append(bytes);
        let far = self.usable(sender, len);
        let start = out.len();
        // The header needs the body's length: the body is made first and moved.
        let mut body = Vec::new();
        let mut coder = core::mem::take(&mut sender.coder);
        let input = Input {
            store: &sender.store,
            position,
            block: bytes,
            span: &|position| sender.span(self.flow, position),
        };
        let parts = coder.encode(&input, &far, &mut self.tables, &mut body);
        sender.coder = coder;
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
        out.extend_from_slice(&digest);
        let range = position..position + len as u64;
        sender.index(range.clone());
        sender.sent(self.flow, range, true);
        self.copying = false;
        self.sent(sender, len, out.len() - start);
    }

    /// The matches in the first `len` bytes of `pending` that may still be referred to.
    fn usable<S: Store>(&self, sender: &Sender<S>, len: usize) -> Vec<FarMatch> {
        let mut usable = Vec::new();
        for found in self.far.iter().take_while(|found| found.start < len) {
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
        usable
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
        self.scanned = self.scanned.saturating_sub(len);
        // A run that has been sent to its end may still go on: it stays, with no length.
        let live = self.live.then(|| self.far.len().saturating_sub(1));
        let mut index = 0;
        self.far.retain_mut(|found| {
            let cut = len.saturating_sub(found.start).min(found.len);
            found.start = found.start.saturating_sub(len);
            found.source += cut as u64;
            found.len -= cut;
            index += 1;
            found.len > 0 || live == Some(index - 1)
        });
        if self.pending.is_empty()
            && self.pending.capacity() > 64 * 1024
            && self.statistics.raw_bytes < 1 << 20
        {
            self.pending = Vec::new();
        }
    }
}

/// How many bytes from `position` on are the first of `bytes`, as far as the flow may refer to them.
fn common_forward<S: Store>(
    sender: &Sender<S>,
    flow: FlowId,
    position: u64,
    bytes: &[u8],
) -> usize {
    let Some(span) = sender.span(flow, position) else {
        return 0;
    };
    let most = usize::try_from(span.end - position)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let mut len = 0;
    while len < most {
        let stored = sender.store.forward(position + len as u64);
        let wanted = bytes.get(len..most).unwrap_or(&[]);
        let same = codec::common_prefix(stored, wanted);
        len += same;
        if same == 0 || same < stored.len().min(wanted.len()) {
            break;
        }
    }
    len
}

/// How many bytes before `position` are the last of `bytes`, as far as the flow may refer to them.
fn common_backward<S: Store>(
    sender: &Sender<S>,
    flow: FlowId,
    position: u64,
    bytes: &[u8],
) -> usize {
    let Some(span) = position
        .checked_sub(1)
        .and_then(|last| sender.span(flow, last))
    else {
        return 0;
    };
    let most = usize::try_from(position - span.start)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let mut len = 0;
    while len < most {
        let stored = sender.store.backward(position - len as u64);
        let wanted = bytes
            .get(bytes.len() - most..bytes.len() - len)
            .unwrap_or(&[]);
        let same = codec::common_suffix(stored, wanted);
        len += same;
        if same == 0 || same < stored.len().min(wanted.len()) {
            break;
        }
    }
    len
}
