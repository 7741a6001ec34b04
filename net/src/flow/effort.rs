//! Chooses how hard the encoders look for matches: hard while the line is the bottleneck, less so while the CPU is. Nothing is timed:
//! the line is, when what fills the tunnel's buffers takes it long to carry; the CPU is, when that does not happen though hosts have
//! more to give.

use core::time::Duration;

use crate::dedup::Effort;

/// Full buffers that drain in less are those of a burst, on a line that is faster than any encoder.
const LONG: Duration = Duration::from_millis(10);
/// A turn found the tunnel's buffers full: so many points less.
const FULL: u32 = 8;
/// From so many points on less effort is made (a megabyte of hosts that are faster than the encoder, and no full buffer)…
const ENOUGH: u32 = 16;
/// …until there are fewer than this.
const FEW: u32 = 8;
const MOST: u32 = 24;

/// What the last turns of all flows showed.
#[derive(Debug)]
pub struct Gauge {
    points: u32,
    fast: bool,
}

/// At first the CPU is the bottleneck: a slow line shows itself with the first full buffer after it has been filled.
impl Default for Gauge {
    fn default() -> Self {
        Gauge {
            points: FEW,
            fast: true,
        }
    }
}

impl Gauge {
    /// The tunnel took all that was encoded, and a host has more than a turn takes.
    pub fn host_waits(&mut self) {
        self.points = (self.points + 1).min(MOST);
        self.fast |= self.points >= ENOUGH;
    }

    /// The tunnel did not take all that was encoded: what it holds drains in `drains`. Before that is known full buffers say only
    /// that the tunnel is new.
    pub fn line_is_full(&mut self, drains: Option<Duration>) {
        if drains.is_none_or(|time| time < LONG) {
            return;
        }
        self.points = self.points.saturating_sub(FULL);
        self.fast &= self.points >= FEW;
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

    const SLOW: Option<Duration> = Some(Duration::from_millis(100));

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
            gauge.line_is_full(Some(Duration::from_millis(1)));
        }
        assert_eq!(gauge.effort(), Effort::Fast);
        for _ in 0..3 {
            gauge.line_is_full(None);
        }
        assert_eq!(gauge.effort(), Effort::Fast, "the tunnel is new");
    }
}
