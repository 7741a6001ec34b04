//! The unconfirmed blocks in the order in which the log will run over them.

use alloc::collections::VecDeque;

use super::super::wire::FlowId;

/// Where a block's bytes begin in the log, its flow, and its number in the flow.
pub type Pin = (u64, FlowId, u32);

/// An empty set that has room for more is given back.
const KEPT: usize = 4096;

/// A sorted set. Blocks are stored at the log's end and confirmed from its beginning on, so that nearly all work is at an end;
/// in the middle, where copies are, it is linear. Unlike a tree, it allocates nothing while it is not larger than it was.
#[derive(Default)]
pub struct Pins(VecDeque<Pin>);

impl Pins {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn first(&self) -> Option<&Pin> {
        self.0.front()
    }

    pub fn pop_first(&mut self) {
        self.0.pop_front();
    }

    pub fn insert(&mut self, pin: Pin) {
        if self.0.back().is_none_or(|last| *last < pin) {
            self.0.push_back(pin);
        } else if let Err(at) = self.0.binary_search(&pin) {
            self.0.insert(at, pin);
        }
    }

    pub fn remove(&mut self, pin: &Pin) {
        if self.0.front() == Some(pin) {
            self.0.pop_front();
        } else if let Ok(at) = self.0.binary_search(pin) {
            self.0.remove(at);
        }
        if self.0.is_empty() && self.0.capacity() > KEPT {
            self.0 = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_sorted_set(steps in prop::collection::vec((0u8..4, 0u64..20, 0u32..3), 0..60)) {
            let (mut pins, mut model) = (Pins::default(), BTreeSet::new());
            for (step, start, flow) in steps {
                let pin = (start, flow, 0);
                match step {
                    0 | 1 => { pins.insert(pin); model.insert(pin); }
                    2 => { pins.remove(&pin); model.remove(&pin); }
                    _ => { pins.pop_first(); model.pop_first(); }
                }
                prop_assert_eq!(pins.first(), model.first());
                prop_assert_eq!(pins.0.iter().collect::<Vec<_>>(), model.iter().collect::<Vec<_>>());
            }
        }
    }
}
