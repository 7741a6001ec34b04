//! Chooses how hard the encoders look for matches: hard while the line is the bottleneck, less so while the CPU is. The line is,
//! when it is slower than the encoder and what fills the tunnel's buffers takes it long to carry; the CPU is, when that does not
//! happen though hosts have more to give.

use core::time::Duration;

use crate::dedup::Effort;
use crate::tunnel::Backlog;

/// Full buffers that drain in less are those of a burst, on a line that is faster than any encoder.
const LONG: Duration = Duration::from_millis(10);
/// A turn found the tunnel's buffers full: so many points less.
const FULL: u32 = 8;
/// From so many points on less effort is made (a megabyte of hosts that are faster than the encoder, and no full buffer)…
const ENOUGH: u32 = 16;
/// …until there are fewer than this.
const FEW: u32 = 8;
const MOST: u32 = 24;
/// An encoder that makes the full effort is slower by about so much.
const SLOWER: u64 = 2;
/// The encoder's speed is told by so much of its work at least, and the newest work counts more.
const ENOUGH_WORK: Duration = Duration::from_millis(5);
const RECENT_WORK: Duration = Duration::from_millis(100);

/// What the last turns of all flows showed.
#[derive(Debug)]
pub struct Gauge {
    points: u32,
    fast: bool,
    /// Bytes for the tunnel that the encoder made of late, and how long that took.
    encoded: u64,
    took: Duration,
}

/// At first the CPU is the bottleneck: a slow line shows itself with the first full buffer after it has been filled.
impl Default for Gauge {
    fn default() -> Self {
        Gauge {
            points: FEW,
            fast: true,
            encoded: 0,
            took: Duration::ZERO,
        }
    }
}

impl Gauge {
    /// The tunnel took all that was encoded, and a host has more than a turn takes.
    pub fn host_waits(&mut self) {
        self.points = (self.points + 1).min(MOST);
        self.fast |= self.points >= ENOUGH;
    }

    /// An encoder has made `bytes` for the tunnel in this time.
    pub fn encoded(&mut self, bytes: usize, took: Duration) {
        self.encoded += bytes as u64;
        self.took += took;
        if self.took > RECENT_WORK {
            self.encoded /= 2;
            self.took /= 2;
        }
    }

    /// The tunnel did not take all that was encoded, for this is still to be carried. Before the line's rate is known full
    /// buffers say only that the tunnel is new.
    pub fn line_is_full(&mut self, backlog: Option<Backlog>) {
        let Some(backlog) = backlog else { return };
        if backlog.drains_in().is_none_or(|time| time < LONG) || self.is_slower_than(backlog.rate) {
            return;
        }
        self.points = self.points.saturating_sub(FULL);
        self.fast &= self.points >= FEW;
    }

    /// Whether the encoder is known to be slower, with full effort, than a line of so many bytes a second. Then the line seems
    /// full only because many flows want it at once.
    fn is_slower_than(&self, line: u64) -> bool {
        if self.took < ENOUGH_WORK {
            return false;
        }
        let encoder = self.encoded * 1_000_000 / self.took.as_micros().max(1) as u64;
        encoder / if self.fast { SLOWER } else { 1 } < line
    }

    /// What to do now.
    pub fn effort(&self) -> Effort {
        if self.fast {
            Effort::Fast
        } else {
            Effort::Full
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Option<Backlog> = Some(Backlog {
        bytes: 100_000,
        rate: 1_000_000,
    });

    #[test]
    fn a_slow_cpu_lowers_the_effort_and_a_slow_line_raises_it() {
        let mut gauge = Gauge::default();
        assert_eq!(gauge.effort(), Effort::Fast);
        gauge.line_is_full(SLOW);
        for _ in 0..15 {
            gauge.host_waits();
            assert_eq!(gauge.effort(), Effort::Full);
        }
        for _ in 0..100 {
            gauge.host_waits();
        }
        assert_eq!(gauge.effort(), Effort::Fast);
        gauge.line_is_full(SLOW);
        assert_eq!(gauge.effort(), Effort::Fast, "once is no rule");
        gauge.line_is_full(SLOW);
        gauge.line_is_full(SLOW);
        for _ in 0..100 {
            assert_eq!(gauge.effort(), Effort::Full);
            for _ in 0..7 {
                gauge.host_waits();
            }
            gauge.line_is_full(SLOW);
        }
    }

    #[test]
    fn a_burst_on_a_fast_line_is_no_slow_line() {
        let mut gauge = Gauge::default();
        for _ in 0..100 {
            gauge.host_waits();
            gauge.line_is_full(Some(Backlog {
                bytes: 100_000,
                rate: 100_000_000,
            }));
        }
        assert_eq!(gauge.effort(), Effort::Fast);
        for _ in 0..3 {
            gauge.line_is_full(None);
        }
        assert_eq!(gauge.effort(), Effort::Fast, "the tunnel is new");
    }

    /// Fifty flows fill the tunnel's buffers, and each finds them full, on a line that could carry more than is encoded.
    #[test]
    fn buffers_that_many_flows_fill_are_no_slow_line_while_the_encoder_is_slower() {
        let many = Some(Backlog {
            bytes: 1_000_000,
            rate: 20_000_000,
        });
        let mut gauge = Gauge::default();
        gauge.encoded(150_000, ENOUGH_WORK);
        for _ in 0..100 {
            gauge.encoded(30_000, Duration::from_millis(1));
            gauge.line_is_full(many);
            assert_eq!(gauge.effort(), Effort::Fast);
        }
        for _ in 0..1000 {
            gauge.encoded(60_000, Duration::from_millis(1));
        }
        gauge.line_is_full(many);
        assert_eq!(gauge.effort(), Effort::Full, "it would be faster");
        for _ in 0..1000 {
            gauge.encoded(25_000, Duration::from_millis(1));
        }
        for _ in 0..8 {
            gauge.host_waits();
        }
        gauge.line_is_full(many);
        gauge.line_is_full(many);
        assert_eq!(gauge.effort(), Effort::Full, "and still is");
    }
}
