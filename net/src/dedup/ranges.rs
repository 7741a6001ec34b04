//! Sets of log positions as sorted, disjoint ranges: what a peer has confirmed, what a store holds.

use alloc::vec::Vec;
use core::ops::Range;

/// A set of positions. Ranges that touch are one range; the number of ranges is bounded by the caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<Range<u64>>);

impl RangeSet {
    /// An empty set with room for so many ranges.
    pub fn with_room(ranges: usize) -> RangeSet {
        RangeSet(Vec::with_capacity(ranges))
    }

    /// Gives back what room there is for more ranges than these, and than it has.
    pub fn shrink_to(&mut self, ranges: usize) {
        self.0.shrink_to(ranges);
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Range<u64>> + ExactSizeIterator {
        self.0.iter()
    }

    /// How many positions the set holds.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds `range`; an empty or backward one adds nothing.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        // Everything that touches the new range is swallowed by it.
        let first = self.0.partition_point(|have| have.end < range.start);
        let after = self.0.partition_point(|have| have.start <= range.end);
        if first == after {
            self.0.insert(first, range);
            return;
        }
        let start = self
            .0
            .get(first)
            .map_or(range.start, |have| have.start.min(range.start));
        let end = self
            .0
            .get(after.wrapping_sub(1))
            .map_or(range.end, |have| have.end.max(range.end));
        self.0.drain(first + 1..after);
        if let Some(have) = self.0.get_mut(first) {
            *have = start..end;
        }
    }

    /// Takes `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let first = self.0.partition_point(|have| have.end <= range.start);
        let after = self.0.partition_point(|have| have.start < range.end);
        if first >= after {
            return;
        }
        let (Some(head), Some(tail)) = (self.0.get(first).cloned(), self.0.get(after - 1).cloned())
        else {
            return;
        };
        let left = head.start..range.start;
        let right = range.end..tail.end;
        self.0.splice(
            first..after,
            [left, right]
                .into_iter()
                .filter(|part| part.start < part.end),
        );
    }

    /// Drops every position below `floor`.
    pub fn trim_below(&mut self, floor: u64) {
        match self.0.first() {
            Some(first) if first.start < floor => {}
            _ => return,
        }
        let gone = self.0.partition_point(|have| have.end <= floor);
        self.0.drain(..gone);
        if let Some(first) = self.0.first_mut() {
            first.start = first.start.max(floor);
        }
    }

    /// Keeps the `most` newest ranges.
    pub fn keep_newest(&mut self, most: usize) {
        let excess = self.0.len().saturating_sub(most);
        self.0.drain(..excess);
    }

    /// The range that holds `position`.
    pub fn find(&self, position: u64) -> Option<Range<u64>> {
        let at = self.0.partition_point(|have| have.end <= position);
        self.0
            .get(at)
            .filter(|have| have.start <= position)
            .cloned()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the set holds of `range`, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'_> {
        let first = self.0.partition_point(|have| have.end <= range.start);
        let from = self.0.get(first..).unwrap_or(&[]).iter();
        let (start, end) = (range.start, range.end);
        from.take_while(move |have| have.start < end)
            .map(move |have| have.start.max(start)..have.end.min(end))
    }

    /// Whether the set holds anything of `range`.
    pub fn touches(&self, range: Range<u64>) -> bool {
        range.start < range.end && self.within(range).next().is_some()
    }

    /// Keeps only what `other` holds, too.
    pub fn intersect(&mut self, other: &RangeSet) {
        let both = self.0.iter().flat_map(|have| other.within(have.clone()));
        *self = RangeSet(both.collect());
    }

    /// Whether every position of `range` is in the set.
    #[cfg(test)]
    pub fn covers(&self, range: Range<u64>) -> bool {
        range.start >= range.end
            || self
                .find(range.start)
                .is_some_and(|have| have.end >= range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_positions(steps in prop::collection::vec((0u8..4, 0u64..60, 0u64..20), 1..40)) {
            let (mut ranges, mut model) = (RangeSet::default(), BTreeSet::new());
            for (kind, start, len) in steps {
                match kind {
                    0 | 1 => { ranges.insert(start..start + len); model.extend(start..start + len); }
                    2 => { ranges.remove(start..start + len); model.retain(|p| !(start..start + len).contains(p)); }
                    _ => { ranges.trim_below(start); model.retain(|p| *p >= start); }
                }
                for position in 0..90 {
                    prop_assert_eq!(ranges.find(position).is_some(), model.contains(&position));
                    prop_assert_eq!(ranges.covers(position..position + 3), (position..position + 3).all(|p| model.contains(&p)));
                    prop_assert_eq!(ranges.touches(position..position + 3), (position..position + 3).any(|p| model.contains(&p)));
                }
                prop_assert_eq!(ranges.total(), model.len() as u64);
                let mut other = RangeSet::default();
                other.insert(start..start + 7);
                other.insert(start + 9..start + 30);
                let inside = model.iter().filter(|p| other.find(**p).is_some()).count();
                other.intersect(&ranges);
                prop_assert_eq!(other.total(), inside as u64);
                for (one, next) in ranges.iter().zip(ranges.iter().skip(1)) {
                    prop_assert!(one.start < one.end && one.end < next.start);
                }
            }
        }
    }
}
