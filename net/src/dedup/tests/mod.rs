//! Both ends together: a line that delivers flows in any order, and everything that may go wrong with it.

pub(crate) mod simulation;

use simulation::{Rng, World};

use alloc::vec::Vec;
use proptest::prelude::*;

/// What flows carry: text with repeats, noise, zeros, and edits of earlier contents.
fn content(rng: &mut Rng, earlier: &[Vec<u8>]) -> Vec<u8> {
    let len = match rng.below(4) {
        0 => rng.below(200),
        1 => rng.below(20_000),
        _ => rng.below(400_000),
    };
    match rng.below(6) {
        0 => simulation::noise(rng, len),
        1 => simulation::text(rng, len),
        2 => alloc::vec![rng.below(3) as u8; len],
        _ if earlier.is_empty() => simulation::text(rng, len),
        3 => earlier[rng.below(earlier.len())].clone(),
        _ => {
            let one = earlier[rng.below(earlier.len())].clone();
            let edits = rng.below(30);
            simulation::edited(rng, one, edits)
        }
    }
}

fn run(seed: u64, memory: usize, flows: usize, mut trouble: impl FnMut(&mut Rng, &mut World)) {
    let mut rng = Rng::new(seed);
    let mut world = World::new(memory, memory, seed);
    let mut earlier: Vec<Vec<u8>> = Vec::new();
    for _ in 0..flows {
        while world.open() < 1 + rng.below(4) {
            let bytes = content(&mut rng, &earlier);
            earlier.push(bytes.clone());
            world.start(bytes);
        }
        for _ in 0..rng.below(40) {
            world.step(&mut rng);
            trouble(&mut rng, &mut world);
        }
    }
    world.finish(&mut rng);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn flows_arrive_whole_in_any_interleaving(seed: u64) {
        run(seed, 16 << 20, 12, |_, _| {});
    }

    #[test]
    fn a_log_smaller_than_what_is_in_use_only_costs_bytes(seed: u64) {
        run(seed, 1 << 20, 16, |_, _| {});
    }

    #[test]
    fn a_store_that_loses_and_corrupts_only_costs_refetches(seed: u64) {
        run(seed, 16 << 20, 12, |rng, world| {
            if rng.below(8) == 0 {
                let end = world.sender.statistics().stored_bytes.max(1);
                let start = rng.next() % end;
                let range = start..start + 1 + rng.next() % 50_000;
                if rng.below(2) == 0 {
                    world.receiver.lose(range);
                } else {
                    world.receiver.tamper(range, |byte| byte.wrapping_add(1));
                }
            }
        });
    }
}
