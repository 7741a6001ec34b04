//! A set of interrupt vectors: the form of ISR, TMR and IRR.

/// 256 bits, one for each vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VectorSet([u32; 8]);

impl VectorSet {
    pub fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    pub fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    /// The vector of highest priority.
    pub fn highest(&self) -> Option<u8> {
        self.0
            .iter()
            .enumerate()
            .rev()
            .find(|(_, word)| **word != 0)
            .map(|(index, word)| (32 * index as u32 + word.ilog2()) as u8)
    }

    /// How many vectors there are.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// 32 bits as a register shows them; `index` is taken modulo 8.
    pub fn word(&self, index: u32) -> u32 {
        self.0[(index & 7) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_vector_wins() {
        let mut set = VectorSet::default();
        assert_eq!(set.highest(), None);
        for vector in [0x31, 0xFF, 0x80, 0] {
            set.insert(vector);
        }
        assert_eq!((set.highest(), set.count()), (Some(0xFF), 4));
        set.remove(0xFF);
        assert_eq!(set.highest(), Some(0x80));
        assert!(set.contains(0x31) && !set.contains(0x32));
        assert_eq!(set.word(1), 1 << 0x11);
    }
}
