//! Searches a flow's input for what the peer has: anchors give hints, comparing with the log makes matches of them, and a
//! match that reaches the end of the input is followed into whatever comes next.

use alloc::vec::Vec;
use core::ops::Range;

use super::anchor::{Anchor, Rolling, WINDOW};
use super::codec::{self, FarMatch};
use super::sender::Sender;
use super::store::Store;
use super::wire::FlowId;

/// The shortest match that anchors make.
const MIN_FAR: usize = WINDOW;
/// Bytes that are rolled over before the anchors in them are looked up.
const STRIDE: usize = 4096;
/// After a match of this length, the window right behind it is looked up whether it is sampled or not: a run that was stored
/// next begins there.
const REMARKABLE: usize = 512;

/// How many places that are not in memory may be read for one piece of input to see whether they are alike: so many if one gave
/// a remarkable match of late, and one less for each that did not, but one at least.
const MOST_READS: u32 = 16;

/// The matches in a flow's pending input. Indices count from its start.
#[derive(Default)]
pub struct Search {
    /// Matches, in order and disjoint.
    pub far: Vec<FarMatch>,
    /// The last match goes on with whatever comes next, as far as it has been compared. It may have no length yet.
    pub live: bool,
    /// What is before this has been searched.
    scanned: usize,
    /// What is before this has been rolled over, or lies in `skipped`.
    rolled: usize,
    rolling: Rolling,
    anchors: Vec<Anchor>,
    /// How many of the anchors have been looked up.
    looked_up: usize,
    /// What was not rolled over because a match covers it.
    skipped: Vec<Range<usize>>,
    /// Of [`MOST_READS`], those that gave nothing of late.
    reads_in_vain: u32,
}

impl Search {
    /// Searches what has come to `pending` since the last time.
    pub fn advance<S: Store>(&mut self, sender: &mut Sender<S>, flow: FlowId, pending: &[u8]) {
        sender.allow_reads(MOST_READS.saturating_sub(self.reads_in_vain).max(1));
        self.search(sender, flow, pending);
        self.reads_in_vain = MOST_READS - sender.reads_left();
    }

    fn search<S: Store>(&mut self, sender: &mut Sender<S>, flow: FlowId, pending: &[u8]) {
        loop {
            if self.live {
                self.follow(sender, flow, pending);
            }
            if self.scanned >= pending.len() {
                return;
            }
            if self.rolled == 0 && self.scanned == 0 && self.begin(sender, flow, pending) {
                continue;
            }
            if self.looked_up == self.anchors.len() && !self.roll(sender, pending) {
                self.scanned = pending.len();
                return;
            }
            while let Some(anchor) = self.anchors.get(self.looked_up).copied() {
                self.looked_up += 1;
                if anchor.at > self.scanned {
                    self.look_up(sender, flow, pending, anchor);
                }
            }
            if !self.live {
                self.scanned = self.scanned.max(self.rolled);
            }
        }
    }

    /// The start of a flow, or of what follows a copy: its first window is looked up whether it is sampled or not, and before
    /// anything is rolled over. Gives whether a match goes on to the end of the input.
    fn begin<S: Store>(&mut self, sender: &mut Sender<S>, flow: FlowId, pending: &[u8]) -> bool {
        let Some(first) = self.behind(sender, pending) else {
            return false;
        };
        self.look_up(sender, flow, pending, first);
        if !self.live {
            // Windows that reach beyond a short match are looked up as well.
            self.roll_over(sender, pending);
        }
        self.live
    }

    /// The window behind all that is known.
    fn behind<S: Store>(&self, sender: &Sender<S>, pending: &[u8]) -> Option<Anchor> {
        let fingerprint = sender.roller.fingerprint(pending.get(self.scanned..)?)?;
        Some(Anchor {
            at: self.scanned + WINDOW,
            fingerprint,
        })
    }

    /// Rolls over the next piece that no match covers; false at the end of the input.
    fn roll<S: Store>(&mut self, sender: &Sender<S>, pending: &[u8]) -> bool {
        if self.rolled < self.scanned {
            self.skipped.push(self.rolled..self.scanned);
            self.rolled = self.scanned;
            self.rolling = Rolling::default();
        }
        self.roll_over(sender, pending)
    }

    /// Rolls over the next piece; false at the end of the input.
    fn roll_over<S: Store>(&mut self, sender: &Sender<S>, pending: &[u8]) -> bool {
        let stop = pending.len().min(self.rolled + STRIDE);
        let Some(piece) = pending
            .get(self.rolled..stop)
            .filter(|piece| !piece.is_empty())
        else {
            return false;
        };
        sender
            .roller
            .sample(&mut self.rolling, piece, self.rolled, &mut self.anchors);
        self.rolled = stop;
        let new = self.anchors.get(self.looked_up..).unwrap_or(&[]);
        sender.anchors.touch(new);
        true
    }

    fn look_up<S: Store>(
        &mut self,
        sender: &mut Sender<S>,
        flow: FlowId,
        pending: &[u8],
        anchor: Anchor,
    ) {
        let mut next = Some(anchor);
        let reads = sender.reads_left();
        while let Some(anchor) = next {
            let Some(found) = self.best_match(sender, flow, pending, anchor) else {
                return;
            };
            if sender.reads_left() < reads && found.len >= REMARKABLE {
                sender.allow_reads(MOST_READS);
            }
            self.far.push(found);
            self.scanned = found.start + found.len;
            self.live = self.scanned == pending.len();
            if found.len < REMARKABLE {
                return;
            }
            next = self.behind(sender, pending);
        }
    }

    /// Compares what comes next with what followed last time.
    fn follow<S: Store>(&mut self, sender: &mut Sender<S>, flow: FlowId, pending: &[u8]) {
        let Some(last) = self.far.last_mut() else {
            self.live = false;
            return;
        };
        let rest = pending.get(self.scanned..).unwrap_or(&[]);
        let position = last.source + last.len as u64;
        let len = common_forward(sender, flow, position, rest, true);
        last.len += len;
        self.scanned += len;
        if len < rest.len() {
            self.live = false;
            if last.len == 0 {
                self.far.pop();
            }
            // What was stored next begins here. At the very start that is looked up anyway.
            if self.scanned > 0
                && let Some(next) = self.behind(sender, pending)
            {
                self.look_up(sender, flow, pending, next);
            }
        }
    }

    /// The longest match around an anchor.
    fn best_match<S: Store>(
        &self,
        sender: &mut Sender<S>,
        flow: FlowId,
        pending: &[u8],
        anchor: Anchor,
    ) -> Option<FarMatch> {
        let floor = self.far.last().map_or(0, |last| last.start + last.len);
        let (before, after) = pending.split_at_checked(anchor.at)?;
        let before = before.get(floor..)?;
        let mut best: Option<FarMatch> = None;
        let head = sender.store.head();
        for position in sender.anchors.candidates(anchor.fingerprint, head) {
            let back = common_backward(sender, flow, position, before);
            if back == 0 {
                continue;
            }
            let len = back + common_forward(sender, flow, position, after, true);
            if len >= MIN_FAR && best.is_none_or(|best| best.len < len) {
                best = Some(FarMatch {
                    start: anchor.at - back,
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

    /// Puts the anchors of the first `len` bytes of `pending`, now stored at `position`, into the index.
    pub fn index<S: Store>(
        &mut self,
        sender: &mut Sender<S>,
        pending: &[u8],
        position: u64,
        len: usize,
    ) {
        // A run that begins here is found by its first window.
        let block = pending.get(..len).unwrap_or(&[]);
        if let Some(fingerprint) = sender.roller.fingerprint(block) {
            sender.note_anchor(fingerprint, position + WINDOW as u64);
        }
        let unrolled = self.rolled..self.scanned.max(self.rolled);
        let mut anchors = core::mem::take(&mut sender.room.anchors);
        anchors.clear();
        for gap in self.skipped.iter().chain([&unrolled]) {
            // All windows that end in the gap, or reach into it.
            let start = gap.start.saturating_sub(WINDOW - 1);
            let end = (gap.end + WINDOW - 1).min(len);
            if gap.start < end && gap.start < gap.end {
                let piece = block.get(start..end).unwrap_or(&[]);
                sender
                    .roller
                    .sample(&mut Rolling::default(), piece, start, &mut anchors);
            }
        }
        sender.anchors.touch(&anchors);
        let rolled = self.anchors.iter().take_while(|anchor| anchor.at <= len);
        for anchor in rolled.chain(&anchors) {
            sender.note_anchor(anchor.fingerprint, position + anchor.at as u64);
        }
        sender.room.anchors = anchors;
    }

    /// The first `len` bytes of the input are gone.
    pub fn taken(&mut self, len: usize) {
        if self.rolled < len {
            self.rolling = Rolling::default();
        }
        self.rolled = self.rolled.saturating_sub(len);
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
        let gone = self.anchors.partition_point(|anchor| anchor.at <= len);
        self.anchors.drain(..gone);
        self.looked_up = self.looked_up.saturating_sub(gone);
        for anchor in &mut self.anchors {
            anchor.at -= len;
        }
        self.skipped.retain_mut(|gap| {
            *gap = gap.start.saturating_sub(len)..gap.end.saturating_sub(len);
            gap.start < gap.end
        });
    }

    /// Gives up the first match.
    pub fn drop_first(&mut self) {
        if !self.far.is_empty() {
            self.far.remove(0);
        }
        self.live &= !self.far.is_empty();
    }
}

/// How many bytes from `position` on are the first of `bytes`, as far as the flow may refer to them. With `known` the bytes
/// before are alike, so that it is worth reading on.
fn common_forward<S: Store>(
    sender: &mut Sender<S>,
    flow: FlowId,
    position: u64,
    bytes: &[u8],
    known: bool,
) -> usize {
    let Some(span) = sender.span(flow, position) else {
        return 0;
    };
    let most = usize::try_from(span.end - position)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let mut len = 0;
    while len < most {
        let at = position + len as u64;
        if sender.store.forward(at).is_empty() {
            sender.bring(at, known || len > 0);
        }
        let stored = sender.store.forward(at);
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
    sender: &mut Sender<S>,
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
        let at = position - len as u64;
        if sender.store.backward(at).is_empty() {
            sender.bring(at - 1, len > 0);
        }
        let stored = sender.store.backward(at);
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

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::sender::SenderConfig;
    use super::*;

    fn noise(seed: u64, count: usize) -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
            (state >> 56) as u8
        };
        core::iter::repeat_with(next).take(count).collect()
    }

    /// A sender whose flow has stored each of `pieces` as a block of its own, and may refer to them.
    fn stored(pieces: &[&[u8]]) -> (Sender, FlowId) {
        let mut sender = Sender::new(SenderConfig::with_memory(1 << 20), [7; 32]);
        let flow = sender.open_flow();
        for piece in pieces {
            let mut search = Search::default();
            search.advance(&mut sender, flow, piece);
            assert!(search.far.is_empty(), "nothing is known yet");
            let position = sender.append(piece);
            search.index(&mut sender, piece, position, piece.len());
            sender.sent(flow, position..position + piece.len() as u64, true);
        }
        (sender, flow)
    }

    #[test]
    fn a_flow_that_begins_as_another_did_is_followed_without_rolling() {
        let bytes = noise(1, 64 * 1024);
        let (mut sender, flow) = stored(&[&bytes]);
        let mut search = Search::default();
        search.advance(&mut sender, flow, &bytes[..40_000]);
        search.advance(&mut sender, flow, &bytes);
        assert!(search.live);
        assert_eq!(search.far.len(), 1);
        assert_eq!((search.far[0].start, search.far[0].len), (0, bytes.len()));
        assert_eq!((search.rolled, search.anchors.len()), (0, 0));
    }

    #[test]
    fn what_was_stored_next_is_found_without_rolling_where_a_followed_match_ends() {
        let (one, other, two) = (noise(1, 30_000), noise(2, 30_000), noise(3, 30_000));
        // Another flow's block came between the two.
        let (mut sender, flow) = stored(&[&one, &other, &two]);
        let both = [&one[..], &two].concat();
        let mut search = Search::default();
        for upto in [20_000, 50_000, both.len()] {
            search.advance(&mut sender, flow, &both[..upto]);
        }
        let found: Vec<_> = search.far.iter().map(|it| (it.start, it.len)).collect();
        assert_eq!(found, [(0, one.len()), (one.len(), two.len())]);
        assert!(search.live);
        assert_eq!((search.rolled, search.anchors.len()), (0, 0));
    }

    #[test]
    fn a_short_match_at_the_start_hides_nothing_behind_it() {
        let bytes = noise(1, 64 * 1024);
        let (mut sender, flow) = stored(&[&bytes]);
        // What follows the short match is known from elsewhere, then unknown, then known from the start once more.
        let other: Vec<u8> = bytes[20_000..30_000].iter().map(|byte| !byte).collect();
        let input = [&bytes[..100], &bytes[9_000..12_000], &other, &bytes].concat();
        let mut search = Search::default();
        search.advance(&mut sender, flow, &input);
        let found = |at: usize| {
            let mut all = search.far.iter();
            all.any(|it| it.start <= at && at < it.start + it.len)
        };
        for at in [0, 99, 3_000, 13_100 + 4_000, input.len() - 1] {
            assert!(found(at), "{at} in {}", search.far.len());
        }
        assert!(!found(8_000));
        assert!(search.live);
    }
}
