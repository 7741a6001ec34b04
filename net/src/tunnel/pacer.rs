//! Spreads packets over time, so that they queue here, where a new stream can overtake, and not in the line.

use core::time::Duration;

use crate::time::Instant;

/// What is not used is kept so long: a caller that wakes late catches up.
const BURST: Duration = Duration::from_millis(5);

/// In nanoseconds, since at 1 Gbit/s a packet takes but 12 µs.
pub(super) struct Pacer {
    next: u64,
}

impl Pacer {
    pub(super) fn new(now: Instant) -> Self {
        Pacer { next: nanos(now) }
    }

    /// When the next packet may go.
    pub(super) fn next(&self) -> Instant {
        Instant::from_micros(self.next.div_ceil(1000))
    }

    /// `size` bytes went, at a rate of `rate` bytes a second.
    pub(super) fn sent(&mut self, now: Instant, size: usize, rate: u64) {
        let burst = u64::try_from(BURST.as_nanos()).unwrap_or(0);
        let earliest = nanos(now).saturating_sub(burst);
        let cost = (size as u64).saturating_mul(1_000_000_000) / rate.max(1);
        self.next = self.next.max(earliest).saturating_add(cost);
    }
}

fn nanos(at: Instant) -> u64 {
    at.as_micros().saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_the_rate_over_time() {
        let mut pacer = Pacer::new(Instant::ZERO);
        let (mut sent, mut now) = (0, Instant::ZERO);
        // Ten seconds at 1 MB/s, woken whenever it asks.
        while now < Instant::from_millis(10_000) {
            if pacer.next() <= now {
                pacer.sent(now, 1472, 1_000_000);
                sent += 1472;
            } else {
                now = pacer.next();
            }
        }
        assert!((9_990_000..10_010_000).contains(&sent), "{sent}");
    }

    #[test]
    fn idling_saves_up_a_small_burst_only() {
        let mut pacer = Pacer::new(Instant::ZERO);
        let now = Instant::from_millis(60_000);
        let mut burst = 0;
        while pacer.next() <= now {
            pacer.sent(now, 1000, 1_000_000);
            burst += 1000;
        }
        assert_eq!(burst, 6000);
    }
}
