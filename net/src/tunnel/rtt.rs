//! Round-trip estimation (RFC 9002, section 5). The shortest round trip for the model of the line is `bbr`'s.

use core::time::Duration;

/// Assumed before the first sample.
pub(super) const INITIAL: Duration = Duration::from_millis(200);
/// RFC 9002, section 6.1.2: kGranularity.
pub(super) const GRANULARITY: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug)]
pub(super) struct Rtt {
    pub(super) smoothed: Duration,
    pub(super) variation: Duration,
    pub(super) latest: Duration,
    pub(super) sampled: bool,
}

impl Rtt {
    pub(super) fn new(hint: Option<Duration>) -> Self {
        let smoothed = hint.unwrap_or(INITIAL).max(GRANULARITY);
        Rtt {
            smoothed,
            variation: smoothed / 2,
            latest: smoothed,
            sampled: false,
        }
    }

    /// A packet was acknowledged `elapsed` after it went, of which the peer waited `delay` before it answered.
    /// Gives the adjusted sample.
    pub(super) fn sample(&mut self, elapsed: Duration, delay: Duration) -> Duration {
        let adjusted = elapsed.saturating_sub(delay).max(Duration::from_micros(1));
        if self.sampled {
            let difference = self.smoothed.abs_diff(adjusted);
            self.variation = (self.variation * 3 + difference) / 4;
            self.smoothed = (self.smoothed * 7 + adjusted) / 8;
        } else {
            self.sampled = true;
            self.smoothed = adjusted;
            self.variation = adjusted / 2;
        }
        self.latest = adjusted;
        adjusted
    }

    /// RFC 9002, section 6.2.1, without the back-off.
    pub(super) fn probe_timeout(&self, ack_delay: Duration) -> Duration {
        self.smoothed + (self.variation * 4).max(GRANULARITY) + ack_delay
    }
}
