//! A set of numbers kept as ranges: what has been received, acknowledged, or has to be sent again.

use alloc::collections::VecDeque;

/// Half-open ranges, ascending, neither touching nor overlapping. Work at either end is constant, in the middle linear
/// in the number of ranges; users bound that number.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeSet(VecDeque<(u64, u64)>);

impl RangeSet {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many separate ranges there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The lowest range.
    pub(super) fn first(&self) -> Option<(u64, u64)> {
        self.0.front().copied()
    }

    /// All ranges, ascending.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + Clone + '_ {
        self.0.iter().copied()
    }

    pub(super) fn clear(&mut self) {
        self.0 = VecDeque::new();
    }

    /// Adds `start..end`; returns how many of its numbers were not there.
    pub(super) fn insert(&mut self, start: u64, end: u64) -> u64 {
        if start >= end {
            return 0;
        }
        // Nearly always at the top.
        match self.0.back_mut() {
            Some(last) if start > last.1 => {
                self.0.push_back((start, end));
                return end - start;
            }
            Some(last) if start >= last.0 => {
                let added = end.saturating_sub(last.1);
                last.1 = last.1.max(end);
                return added;
            }
            None => {
                self.0.push_back((start, end));
                return end - start;
            }
            Some(_) => {}
        }
        // The first range that touches or follows, and the first that follows without touching.
        let from = self.0.partition_point(|r| r.1 < start);
        let to = self.0.partition_point(|r| r.0 <= end);
        if from == to {
            self.0.insert(from, (start, end));
            return end - start;
        }
        let mut present = 0;
        let mut merged = (start, end);
        for r in self.0.range(from..to) {
            present += r.1.min(end).saturating_sub(r.0.max(start));
            merged = (merged.0.min(r.0), merged.1.max(r.1));
        }
        if let Some(r) = self.0.get_mut(from) {
            *r = merged;
        }
        if to - from > 1 {
            self.0.drain(from + 1..to);
        }
        end - start - present
    }

    /// Takes `start..end` out.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let mut at = self.0.partition_point(|r| r.1 <= start);
        while let Some(r) = self.0.get_mut(at) {
            if r.0 >= end {
                break;
            }
            let (low, high) = *r;
            match (low < start, high > end) {
                (true, true) => {
                    r.1 = start;
                    self.0.insert(at + 1, (end, high));
                    return;
                }
                (true, false) => {
                    r.1 = start;
                    at += 1;
                }
                (false, true) => {
                    r.0 = end;
                    return;
                }
                (false, false) => {
                    self.0.remove(at);
                }
            }
        }
    }

    /// Takes out everything below `limit`.
    pub(super) fn remove_below(&mut self, limit: u64) {
        while let Some(r) = self.0.front_mut() {
            if r.0 >= limit {
                break;
            }
            if r.1 > limit {
                r.0 = limit;
                break;
            }
            self.0.pop_front();
        }
    }

    /// Forgets the lowest range.
    pub(super) fn drop_first(&mut self) {
        self.0.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(steps in proptest::collection::vec((0_u8..4, 0_u64..60, 0_u64..12), 1..60)) {
            let mut ranges = RangeSet::default();
            let mut model = BTreeSet::new();
            for (step, start, length) in steps {
                let end = start + length;
                match step {
                    0 | 1 => {
                        let added = ranges.insert(start, end);
                        let mut expected = 0;
                        for n in start..end {
                            expected += u64::from(model.insert(n));
                        }
                        prop_assert_eq!(added, expected);
                    }
                    2 => {
                        ranges.remove(start, end);
                        model.retain(|n| !(start..end).contains(n));
                    }
                    _ => {
                        ranges.remove_below(start);
                        model.retain(|&n| n >= start);
                    }
                }
                let got: Vec<u64> = ranges.iter().flat_map(|(a, b)| a..b).collect();
                prop_assert_eq!(got, model.iter().copied().collect::<Vec<_>>());
                let pairs: Vec<_> = ranges.iter().collect();
                prop_assert!(pairs.iter().all(|r| r.0 < r.1));
                prop_assert!(pairs.windows(2).all(|w| w[0].1 < w[1].0), "{:?}", pairs);
            }
        }
    }
}
