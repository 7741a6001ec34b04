//! Packets received: which were there before (anti-replay), which to acknowledge, and when.

use core::time::Duration;

use super::frame;
use super::ranges::RangeSet;
use crate::time::Instant;

/// Packets behind the newest that can still be told from replays.
const WINDOW: u64 = 4096;
const WORDS: usize = (WINDOW / 64) as usize;
/// Ranges kept: the newest that an acknowledgement can name.
const MAX_RANGES: usize = frame::MAX_ACK_RANGES + 1;
/// An acknowledgement is at most so late.
pub(super) const MAX_DELAY: Duration = Duration::from_millis(20);
/// At the start of a connection every second packet is acknowledged, so that the sender's model of the line builds up…
const EAGER_PACKETS: u64 = 64;
const EAGER: u32 = 2;
/// …and then every eighth, so that acknowledgements cost the line little.
const LAZY: u32 = 8;

pub(super) struct Received {
    largest: Option<u64>,
    largest_at: Instant,
    /// Bit `n % WINDOW` for each of the last WINDOW numbers.
    seen: [u64; WORDS],
    ranges: RangeSet,
    eliciting: u64,
    /// Eliciting packets since the last acknowledgement.
    unacknowledged: u32,
    deadline: Option<Instant>,
}

impl Received {
    pub(super) fn new() -> Self {
        Received {
            largest: None,
            largest_at: Instant::ZERO,
            seen: [0; WORDS],
            ranges: RangeSet::default(),
            eliciting: 0,
            unacknowledged: 0,
            deadline: None,
        }
    }

    /// The number expected next, for decoding truncated numbers.
    pub(super) fn expected(&self) -> u64 {
        self.largest.map_or(0, |n| n.saturating_add(1))
    }

    /// Whether `number` has been received, or is too old to tell.
    pub(super) fn is_replay(&self, number: u64) -> bool {
        match self.largest {
            None => false,
            Some(largest) if number > largest => false,
            Some(largest) if largest - number >= WINDOW => true,
            Some(_) => self.word(number).is_none_or(|w| w & bit(number) != 0),
        }
    }

    fn word(&self, number: u64) -> Option<u64> {
        self.seen.get(word_index(number)).copied()
    }

    /// Notes an authenticated packet that is no replay. True if it is the newest so far.
    pub(super) fn note(
        &mut self,
        now: Instant,
        number: u64,
        eliciting: bool,
        rtt: Duration,
    ) -> bool {
        let newest = self.largest.is_none_or(|l| number > l);
        let gap = number > self.expected();
        if newest {
            let first_unseen = self.expected();
            if number - first_unseen >= WINDOW {
                self.seen = [0; WORDS];
            } else {
                for n in first_unseen..=number {
                    if let Some(word) = self.seen.get_mut(word_index(n)) {
                        *word &= !bit(n);
                    }
                }
            }
            self.largest = Some(number);
            self.largest_at = now;
        }
        if let Some(word) = self.seen.get_mut(word_index(number)) {
            *word |= bit(number);
        }
        self.ranges.insert(number, number.saturating_add(1));
        if self.ranges.count() > MAX_RANGES {
            self.ranges.drop_first();
        }
        if eliciting {
            self.eliciting += 1;
            self.unacknowledged += 1;
            let every = if self.eliciting <= EAGER_PACKETS {
                EAGER
            } else {
                LAZY
            };
            // A gap, or a packet that fills one, is news for the sender's loss detection (RFC 9000, section 13.2.1).
            if self.unacknowledged >= every || gap || !newest {
                self.deadline = Some(now);
            } else if self.deadline.is_none() {
                let delay = MAX_DELAY.min(rtt / 4).max(Duration::from_millis(2));
                self.deadline = Some(now + delay);
            }
        }
        newest
    }

    /// Everything below `number` need not be acknowledged any more.
    pub(super) fn settle(&mut self, number: u64) {
        self.ranges
            .remove_below(number.min(self.largest.unwrap_or(0)));
    }

    /// When an acknowledgement must go.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether an acknowledgement would tell the peer anything it waits for.
    pub(super) fn is_wanted(&self) -> bool {
        self.unacknowledged > 0
    }

    /// Appends an ACK frame of at most `space` bytes; false if it does not fit or there is nothing to acknowledge.
    pub(super) fn put_ack(
        &mut self,
        now: Instant,
        space: usize,
        out: &mut alloc::vec::Vec<u8>,
    ) -> bool {
        let delay = u64::try_from(now.since(self.largest_at).as_micros()).unwrap_or(u64::MAX);
        let put = frame::put_ack(&self.ranges, delay.min(1 << 30), space, out);
        if put {
            self.unacknowledged = 0;
            self.deadline = None;
        }
        put
    }
}

fn word_index(number: u64) -> usize {
    ((number % WINDOW) / 64) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const RTT: Duration = Duration::from_millis(100);

    proptest! {
        #[test]
        fn each_number_passes_once(steps in proptest::collection::vec((0_u64..20_000, 0_u64..300), 1..200)) {
            let mut received = Received::new();
            let mut model = HashSet::new();
            let mut largest = 0;
            for (base, spread) in steps {
                for number in [base, base + spread, base] {
                    let replay = received.is_replay(number);
                    if model.contains(&number) {
                        prop_assert!(replay);
                    } else if number + WINDOW > largest {
                        prop_assert!(!replay);
                    }
                    if !replay {
                        received.note(Instant::ZERO, number, true, RTT);
                        model.insert(number);
                        largest = largest.max(number);
                    }
                }
            }
        }
    }

    #[test]
    fn acknowledges_in_time() {
        let mut received = Received::new();
        let at = Instant::from_millis;
        received.note(at(0), 0, false, RTT);
        assert_eq!(received.deadline(), None);
        received.note(at(1), 1, true, RTT);
        assert_eq!(received.deadline(), Some(at(21)));
        received.note(at(2), 2, true, RTT);
        assert_eq!(received.deadline(), Some(at(2)));
        let mut out = alloc::vec::Vec::new();
        assert!(received.put_ack(at(2), 100, &mut out));
        assert_eq!(received.deadline(), None);
        // A gap is told at once.
        received.note(at(3), 9, true, RTT);
        assert_eq!(received.deadline(), Some(at(3)));
    }
}
