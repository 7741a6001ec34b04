//! Nice values and the weights they stand for.

/// How willingly something gives way: −20 (least) to 19 (most), as Linux counts (`sched(7)`, "The nice value").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nice(i8);

/// Linux's weights, −20 first (`sched_prio_to_weight`): a step is about a factor of 1.25, so that it moves about 10% of a CPU
/// between two tasks that share it.
const WEIGHTS: [u32; 40] = [
    88_761, 71_755, 56_483, 46_273, 36_291, 29_154, 23_254, 18_705, 14_949, 11_916, //
    9_548, 7_620, 6_100, 4_904, 3_906, 3_121, 2_501, 1_991, 1_586, 1_277, //
    1_024, 820, 655, 526, 423, 335, 272, 215, 172, 137, //
    110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
];

impl Nice {
    /// The nice value `value`; `None` outside −20…19.
    pub const fn new(value: i8) -> Option<Nice> {
        if value >= -20 && value <= 19 {
            Some(Nice(value))
        } else {
            None
        }
    }

    /// −20 to 19.
    pub const fn value(self) -> i8 {
        self.0
    }

    /// Its share against others: 15 to 88,761, and 1,024 at nice 0.
    pub fn weight(self) -> u32 {
        let index = usize::from(self.0.wrapping_add(20).unsigned_abs());
        WEIGHTS.get(index).copied().unwrap_or(1_024)
    }
}

/// Weighted CPU time: what a task has had, divided by its weight. Only differences count, and they may wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtualTime(u64);

/// Fraction bits of virtual time: a nanosecond at weight 1,024 is 16 units.
const SCALE: u64 = 1 << 14;

impl VirtualTime {
    /// After `ns` more nanoseconds on a CPU at `weight`.
    pub fn after(self, ns: u64, weight: u32) -> VirtualTime {
        VirtualTime(
            self.0
                .wrapping_add(ns.saturating_mul(SCALE) / u64::from(weight.max(1))),
        )
    }

    /// `ns` nanoseconds at `weight` earlier.
    pub fn before(self, ns: u64, weight: u32) -> VirtualTime {
        VirtualTime(
            self.0
                .wrapping_sub(ns.saturating_mul(SCALE) / u64::from(weight.max(1))),
        )
    }

    /// How far this is ahead of `other`; negative: behind.
    pub fn ahead_of(self, other: VirtualTime) -> i64 {
        self.0.wrapping_sub(other.0) as i64
    }

    /// The later of the two.
    pub fn max(self, other: VirtualTime) -> VirtualTime {
        if self.ahead_of(other) >= 0 {
            self
        } else {
            other
        }
    }

    /// The same lead over `to` as this has over `from`.
    pub fn moved(self, from: VirtualTime, to: VirtualTime) -> VirtualTime {
        VirtualTime(to.0.wrapping_add(self.0.wrapping_sub(from.0)))
    }

    /// Nanoseconds on a CPU at `weight` that carry this to `other`; zero if it is there already.
    pub fn until(self, other: VirtualTime, weight: u32) -> u64 {
        let ahead = u64::try_from(other.ahead_of(self)).unwrap_or(0);
        u64::try_from(u128::from(ahead) * u128::from(weight) / u128::from(SCALE))
            .unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_nice_is_about_a_quarter() {
        for value in -20..19 {
            let (this, next) = (Nice::new(value).unwrap(), Nice::new(value + 1).unwrap());
            let ratio = f64::from(this.weight()) / f64::from(next.weight());
            assert!((1.19..1.29).contains(&ratio), "{value}: {ratio}");
        }
        assert_eq!(Nice::default().weight(), 1_024);
        assert_eq!((Nice::new(-21), Nice::new(20)), (None, None));
    }

    #[test]
    fn virtual_time_survives_its_wrap() {
        let start = VirtualTime(u64::MAX - 5);
        let later = start.after(1_000, 1_024);
        assert!(later.ahead_of(start) > 0 && start.ahead_of(later) < 0);
        assert_eq!(start.until(later, 1_024), 1_000);
        assert_eq!(later.until(start, 1_024), 0);
        assert_eq!(start.max(later), later);
        assert_eq!(later.before(1_000, 1_024), start);
    }
}
