//! The guest's watchdog: the guest starts it and answers it; when it runs out, the guest hangs. What follows is the box's to decide.
//!
//! Four registers of 32 bits, which ACPI's table WDAT describes (Microsoft, "Hardware Watchdog Timers Design Specification" 1.0): Linux drives
//! it with `wdat_wdt`, Windows without a driver of ours.

use super::{bytes_of, merge_bytes};

/// Registers, by their offsets.
pub mod register {
    /// Bit 0: it runs. Writing 1 starts the countdown.
    pub const CONTROL: u16 = 0;
    /// From where it counts down, in ticks. Writing starts the countdown anew.
    pub const COUNT: u16 = 4;
    /// Where the countdown is.
    pub const LEFT: u16 = 8;
    /// Writing, whatever, starts the countdown anew: the guest is well.
    pub const ANSWER: u16 = 12;
}

/// Length of the registers, in bytes.
pub const LENGTH: u16 = 16;
/// One tick, in milliseconds.
pub const TICK_MS: u32 = 1000;
/// The countdown starts from one of these, in ticks.
pub const COUNTS: core::ops::RangeInclusive<u32> = 1..=3600;
const COUNT_RESET: u32 = 60;

/// The watchdog.
#[derive(Clone, Debug)]
pub struct Watchdog {
    count: u32,
    /// When it runs out, while it runs.
    ends_ns: Option<u64>,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self {
            count: COUNT_RESET,
            ends_ns: None,
        }
    }
}

impl Watchdog {
    /// Reads `width` bytes at `offset`.
    pub fn read(&self, offset: u16, width: u8, now_ns: u64) -> u32 {
        let value = match offset & !3 {
            register::CONTROL => u32::from(self.ends_ns.is_some()),
            register::COUNT => self.count,
            register::LEFT => self.ends_ns.map_or(self.count, |ends| {
                ends.saturating_sub(now_ns).div_ceil(TICK_NS) as u32
            }),
            _ => 0,
        };
        bytes_of(value, 4, offset & 3, width)
    }

    /// Writes there.
    pub fn write(&mut self, offset: u16, width: u8, value: u32, now_ns: u64) {
        match offset & !3 {
            register::CONTROL => {
                let control = u32::from(self.ends_ns.is_some());
                let control = merge_bytes(control, 4, offset & 3, width, value);
                if control & 1 == 0 {
                    self.ends_ns = None;
                } else if self.ends_ns.is_none() {
                    self.start(now_ns);
                }
            }
            register::COUNT => {
                let count = merge_bytes(self.count, 4, offset & 3, width, value);
                self.count = count.clamp(*COUNTS.start(), *COUNTS.end());
                self.restart(now_ns);
            }
            register::ANSWER => self.restart(now_ns),
            _ => {}
        }
    }

    fn start(&mut self, now_ns: u64) {
        let span = u64::from(self.count).saturating_mul(TICK_NS);
        self.ends_ns = Some(now_ns.saturating_add(span));
    }

    fn restart(&mut self, now_ns: u64) {
        if self.ends_ns.is_some() {
            self.start(now_ns);
        }
    }

    /// When it runs out if it is not answered.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.ends_ns
    }

    /// For how many seconds it was not answered, if it has run out. Whoever looks long after the end was kept from running himself, and so may
    /// the guest have been: it gets another countdown.
    pub fn has_run_out(&mut self, now_ns: u64) -> Option<u32> {
        let ends = self.ends_ns.filter(|ends| *ends <= now_ns)?;
        if now_ns - ends > LATE_NS {
            self.start(now_ns);
            return None;
        }
        Some(self.count * TICK_MS / 1000)
    }
}

/// The end is looked at within milliseconds, unless the whole box stood still.
const LATE_NS: u64 = 500_000_000;
const TICK_NS: u64 = TICK_MS as u64 * 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn it_runs_out_when_it_is_not_answered() {
        let mut watchdog = Watchdog::default();
        watchdog.write(register::COUNT, 4, 5, 0);
        assert_eq!(watchdog.has_run_out(u64::MAX), None, "it does not run");
        watchdog.write(register::CONTROL, 4, 1, SECOND);
        assert_eq!(watchdog.read(register::CONTROL, 4, SECOND), 1);
        assert_eq!(watchdog.deadline_ns(), Some(6 * SECOND));
        assert_eq!(watchdog.read(register::LEFT, 4, 3 * SECOND), 3);
        watchdog.write(register::ANSWER, 4, 0, 4 * SECOND);
        assert_eq!(watchdog.has_run_out(8 * SECOND), None);
        assert_eq!(watchdog.has_run_out(9 * SECOND), Some(5));
        watchdog.write(register::CONTROL, 4, 0, 8 * SECOND);
        assert_eq!(watchdog.has_run_out(u64::MAX), None, "it was stopped");
        assert_eq!(watchdog.read(register::LEFT, 4, 0), 5);
    }

    #[test]
    fn a_box_that_stood_still_does_not_blame_the_guest() {
        let mut watchdog = Watchdog::default();
        watchdog.write(register::CONTROL, 4, 1, 0);
        assert_eq!(watchdog.has_run_out(100 * SECOND), None);
        assert_eq!(watchdog.deadline_ns(), Some(160 * SECOND));
        assert_eq!(watchdog.has_run_out(160 * SECOND), Some(60));
    }

    #[test]
    fn starting_what_runs_is_no_answer() {
        let mut watchdog = Watchdog::default();
        watchdog.write(register::CONTROL, 4, 1, 0);
        watchdog.write(register::CONTROL, 4, 1, SECOND);
        assert_eq!(watchdog.deadline_ns(), Some(60 * SECOND));
    }

    #[test]
    fn counts_stay_within_bounds_and_bytes_are_registers_too() {
        let mut watchdog = Watchdog::default();
        for (count, taken) in [(0, 1), (u32::MAX, 3600), (3600, 3600)] {
            watchdog.write(register::COUNT, 4, count, 0);
            assert_eq!(watchdog.read(register::COUNT, 4, 0), taken);
        }
        watchdog.write(register::COUNT, 4, 0x100, 0);
        watchdog.write(register::COUNT, 1, 5, 0);
        assert_eq!(watchdog.read(register::COUNT, 4, 0), 0x105);
        assert_eq!(watchdog.read(register::COUNT + 1, 1, 0), 1);
        watchdog.write(register::CONTROL, 4, 1, u64::MAX);
        assert_eq!(watchdog.deadline_ns(), Some(u64::MAX));
        for offset in 0..LENGTH {
            watchdog.write(offset, 4, u32::MAX, 0);
            let _ = watchdog.read(offset, 4, 0);
        }
    }
}
