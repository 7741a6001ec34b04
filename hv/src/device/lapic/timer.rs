//! The local APIC's timer (Intel SDM vol. 3A, 11.5.4): one-shot, periodic, TSC-deadline.
//!
//! Counts on a clock of 1 GHz, as KVM's does: one tick is a nanosecond. It has no clock of its own.

/// Shortest period, in nanoseconds. A guest that asks for less gets this, so that it cannot spend its time in timer exits alone.
const SHORTEST_PERIOD_NS: u64 = 100_000;

/// What bits 17–18 of the LVT timer register select.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum TimerMode {
    /// Counts down once.
    #[default]
    OneShot,
    /// Counts down again and again.
    Periodic,
    /// Fires when the TSC reaches a value.
    TscDeadline,
}

/// The timer's state.
#[derive(Clone, Debug, Default)]
pub(super) struct Timer {
    mode: TimerMode,
    /// Divide configuration register.
    divide: u32,
    initial: u32,
    /// When it fires.
    deadline_ns: Option<u64>,
    /// What the guest wrote to IA32_TSC_DEADLINE; 0 when disarmed.
    tsc_deadline: u64,
}

impl Timer {
    /// Ticks for each count: 1 to 128.
    fn divisor(&self) -> u64 {
        let code = (self.divide & 3) | (self.divide >> 1 & 4);
        match code {
            7 => 1,
            code => 2 << code,
        }
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    pub fn mode(&self) -> TimerMode {
        self.mode
    }

    /// Takes a new mode. A change disarms the timer.
    pub fn set_mode(&mut self, mode: TimerMode) {
        if mode != self.mode {
            self.mode = mode;
            self.deadline_ns = None;
            self.tsc_deadline = 0;
        }
    }

    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration register. What is left of a running count goes on at the new rate.
    pub fn set_divide(&mut self, value: u32, now_ns: u64) {
        let left = u64::from(self.current(now_ns));
        self.divide = value & 0b1011;
        if self.deadline_ns.is_some() && self.mode != TimerMode::TscDeadline {
            self.deadline_ns = Some(now_ns.saturating_add(left * self.divisor()));
        }
    }

    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial count: starts the timer, or stops it with 0. Not in TSC-deadline mode.
    pub fn set_initial(&mut self, value: u32, now_ns: u64) {
        if self.mode == TimerMode::TscDeadline {
            return;
        }
        self.initial = value;
        self.deadline_ns = (value != 0).then(|| {
            let mut period = self.period_ns();
            if self.mode == TimerMode::Periodic {
                period = period.max(SHORTEST_PERIOD_NS);
            }
            now_ns.saturating_add(period)
        });
    }

    /// The current count.
    pub fn current(&self, now_ns: u64) -> u32 {
        match self.deadline_ns {
            Some(deadline) if self.mode != TimerMode::TscDeadline => {
                let count = deadline.saturating_sub(now_ns).div_ceil(self.divisor());
                u32::try_from(count).unwrap_or(u32::MAX).min(self.initial)
            }
            _ => 0,
        }
    }

    pub fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE: arms the timer, or disarms it with 0. Ignored in the other modes.
    pub fn set_tsc_deadline(&mut self, value: u64, tsc_now: u64, now_ns: u64, tsc_hz: u64) {
        if self.mode != TimerMode::TscDeadline {
            return;
        }
        self.tsc_deadline = value;
        self.deadline_ns = (value != 0).then(|| {
            let ticks = u128::from(value.saturating_sub(tsc_now));
            let ns = (ticks * 1_000_000_000).div_ceil(u128::from(tsc_hz.max(1)));
            now_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
        });
    }

    pub fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }

    /// True if the timer has fired by `now_ns`. Periods that were missed count once.
    pub fn expire(&mut self, now_ns: u64) -> bool {
        let Some(deadline) = self.deadline_ns.filter(|deadline| *deadline <= now_ns) else {
            return false;
        };
        self.deadline_ns = None;
        self.tsc_deadline = 0;
        if self.mode == TimerMode::Periodic {
            let period = self.period_ns().max(SHORTEST_PERIOD_NS);
            let missed = (now_ns - deadline) / period;
            self.deadline_ns = Some(deadline.saturating_add((missed + 1).saturating_mul(period)));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shot_counts_down_once() {
        let mut timer = Timer::default();
        timer.set_divide(0b1011, 0); // by 1
        timer.set_initial(1000, 500);
        assert_eq!(timer.deadline_ns(), Some(1500));
        assert_eq!(timer.current(900), 600);
        assert!(!timer.expire(1499));
        assert!(timer.expire(1500));
        assert!(!timer.expire(10_000));
        assert_eq!((timer.deadline_ns(), timer.current(2000)), (None, 0));
    }

    #[test]
    fn divisors_are_those_of_the_manual() {
        let mut timer = Timer::default();
        for (code, divisor) in [
            (0, 2),
            (1, 4),
            (2, 8),
            (3, 16),
            (8, 32),
            (9, 64),
            (10, 128),
            (11, 1),
        ] {
            timer.set_divide(code, 0);
            assert_eq!(timer.divisor(), divisor);
        }
    }

    #[test]
    fn missed_periods_count_once_and_keep_the_phase() {
        let mut timer = Timer::default();
        timer.set_divide(0b1011, 0);
        timer.set_mode(TimerMode::Periodic);
        timer.set_initial(1_000_000, 0);
        assert!(timer.expire(3_500_000));
        assert_eq!(timer.deadline_ns(), Some(4_000_000));
        timer.set_initial(1, 0);
        assert_eq!(timer.deadline_ns(), Some(SHORTEST_PERIOD_NS));
        timer.set_initial(0, 0);
        assert_eq!(timer.deadline_ns(), None);
    }

    #[test]
    fn a_tsc_deadline_becomes_a_time() {
        let mut timer = Timer::default();
        timer.set_tsc_deadline(5000, 0, 0, 1_000_000_000);
        assert_eq!(timer.deadline_ns(), None, "not in one-shot mode");
        timer.set_mode(TimerMode::TscDeadline);
        timer.set_tsc_deadline(5001, 1000, 70, 2_000_000_000);
        assert_eq!(timer.deadline_ns(), Some(70 + 2001), "rounded up");
        assert_eq!(timer.tsc_deadline(), 5001);
        assert!(timer.expire(3000));
        assert_eq!(timer.tsc_deadline(), 0);
        timer.set_tsc_deadline(7, 1000, 80, 2_000_000_000);
        assert!(timer.expire(80), "a deadline in the past fires at once");
        timer.set_tsc_deadline(u64::MAX, 0, 0, 1);
        assert_eq!(timer.deadline_ns(), Some(u64::MAX));
    }
}
