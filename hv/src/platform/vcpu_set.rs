//! Sets of vCPUs: whom something concerns.

use super::layout::MAX_VCPUS;

/// A set of vCPUs, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuSet(u32);

impl VcpuSet {
    /// Only `vcpu`, which is below [`MAX_VCPUS`].
    pub fn only(vcpu: usize) -> Self {
        Self(1_u32.checked_shl(vcpu as u32).unwrap_or(0))
    }

    /// Those of `vcpus` but the first.
    pub(super) fn all_but_first(vcpus: usize) -> Self {
        (1..vcpus.min(MAX_VCPUS)).fold(Self::default(), |set, vcpu| set.with(Self::only(vcpu)))
    }

    /// Both together.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without those of `other`.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether `vcpu` is in it.
    pub fn has(self, vcpu: usize) -> bool {
        self.0 & Self::only(vcpu).0 != 0
    }

    /// Whether it is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its members, lowest first.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            let lowest = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(lowest)
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn members_come_in_order() {
        let set = VcpuSet::only(15)
            .with(VcpuSet::only(0))
            .with(VcpuSet::only(3));
        assert_eq!(Vec::from_iter(set.iter()), [0, 3, 15]);
        assert_eq!(
            Vec::from_iter(set.without(VcpuSet::only(0)).iter()),
            [3, 15]
        );
        assert_eq!(VcpuSet::default().iter().next(), None);
        assert_eq!(VcpuSet::all_but_first(3).iter().count(), 2);
        assert!(VcpuSet::only(usize::MAX).is_empty());
    }
}
