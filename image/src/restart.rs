//! When a guest that stopped is started again: at once when it reset itself or a person wants it back, else after a second, then after longer and longer waits
//! while it keeps failing.

use core::time::Duration;

/// How a run of the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It switched itself off, or ended with a status: it stays off until a person wants it back.
    Off,
    /// It reset itself.
    Reset,
    /// It failed.
    Failed,
    /// A person asked for a restart.
    Requested,
}

/// A run that lasted this long makes good for earlier failures.
const GOOD_RUN: Duration = Duration::from_secs(60);
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The policy and what it remembers.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestartPolicy {
    bad_runs: u32,
}

impl RestartPolicy {
    /// How long to wait before the next start; none to stay off. `ran` is how long the run lasted.
    pub fn after(&mut self, ended: Ended, ran: Duration) -> Option<Duration> {
        if ran >= GOOD_RUN {
            self.bad_runs = 0;
        }
        match ended {
            Ended::Off => None,
            Ended::Requested => {
                self.bad_runs = 0;
                Some(Duration::ZERO)
            }
            // The first reset is what a guest does when it is told to reboot.
            Ended::Reset if self.bad_runs == 0 => {
                self.bad_runs = 1;
                Some(Duration::ZERO)
            }
            Ended::Reset | Ended::Failed => {
                let wait =
                    FIRST_WAIT.saturating_mul(1_u32.checked_shl(self.bad_runs).unwrap_or(u32::MAX));
                self.bad_runs = (self.bad_runs + 1).min(16);
                Some(wait.min(LONGEST_WAIT))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(2);

    #[test]
    fn waits_longer_after_each_failure() {
        let mut policy = RestartPolicy::default();
        let waits: Vec<u64> = (0..8)
            .map(|_| policy.after(Ended::Failed, SHORT).unwrap().as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn a_good_run_makes_good() {
        let mut policy = RestartPolicy::default();
        for _ in 0..5 {
            policy.after(Ended::Failed, SHORT);
        }
        let wait = policy.after(Ended::Failed, Duration::from_secs(3600));
        assert_eq!(wait, Some(FIRST_WAIT));
    }

    #[test]
    fn a_reboot_is_immediate_but_a_reboot_loop_is_not() {
        let mut policy = RestartPolicy::default();
        assert_eq!(policy.after(Ended::Reset, SHORT), Some(Duration::ZERO));
        assert_eq!(
            policy.after(Ended::Reset, SHORT),
            Some(Duration::from_secs(2))
        );
    }

    #[test]
    fn off_means_off_and_a_person_is_obeyed() {
        let mut policy = RestartPolicy::default();
        for _ in 0..40 {
            policy.after(Ended::Failed, SHORT);
        }
        assert_eq!(policy.after(Ended::Off, SHORT), None);
        assert_eq!(policy.after(Ended::Requested, SHORT), Some(Duration::ZERO));
    }
}
