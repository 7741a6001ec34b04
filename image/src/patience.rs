//! How long something slow is waited for that may not be there at all: long, but only once.

/// With one that may be stuck. It counts tries, for it is of use before there is a clock.
#[derive(Debug, Default)]
pub struct Patience {
    is_stuck: bool,
}

impl Patience {
    /// Tries until it works, `tries` times at most; once only, if it did not work the last time. True if it worked.
    pub fn wait(&mut self, tries: u32, mut attempt: impl FnMut() -> bool) -> bool {
        let tries = if self.is_stuck { 1 } else { tries };
        self.is_stuck = !(0..tries).any(|_| attempt());
        !self.is_stuck
    }

    /// With one that has worked so far.
    pub const fn new() -> Patience {
        Patience { is_stuck: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_one_is_waited_for_each_time_and_a_stuck_one_once() {
        let mut patience = Patience::new();
        let mut tries = 0;
        let mut wait = |works_after: u32| {
            tries = 0;
            let works = patience.wait(1000, || {
                tries += 1;
                tries > works_after
            });
            (works, tries)
        };
        assert_eq!(wait(0), (true, 1));
        assert_eq!(wait(999), (true, 1000));
        assert_eq!(wait(999), (true, 1000));
        assert_eq!(wait(1000), (false, 1000));
        assert_eq!(wait(1), (false, 1));
        // It works again, and has all patience again.
        assert_eq!(wait(0), (true, 1));
        assert_eq!(wait(999), (true, 1000));
    }
}
