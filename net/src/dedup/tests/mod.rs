//! Both ends together: a line that delivers flows in any order, and everything that may go wrong with it.

mod bytes;
mod hostile;
mod limits;
pub(crate) mod simulation;
mod trouble;

use simulation::{Rng, World};

use super::{Effort, LEAST_BLOCK, MAX_BLOCK};

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

/// Runs `flows` rounds of flows in a world, with something happening between the steps; every byte is checked.
fn run(
    rng: &mut Rng,
    world: &mut World,
    flows: usize,
    mut trouble: impl FnMut(&mut Rng, &mut World),
) {
    let mut earlier: Vec<Vec<u8>> = Vec::new();
    for _ in 0..flows {
        while world.open() < 1 + rng.below(4) {
            let bytes = content(rng, &earlier);
            earlier.push(bytes.clone());
            world.start(bytes);
        }
        let effort = [Effort::Full, Effort::Fast][rng.below(2)];
        world.sender.set_effort(effort);
        let mut limit = || [LEAST_BLOCK, 3 * LEAST_BLOCK, MAX_BLOCK][rng.below(3)];
        world.sender.set_block_limit(limit());
        world.receiver.set_block_limit(limit());
        for _ in 0..rng.below(40) {
            world.step(rng);
            trouble(rng, world);
        }
    }
    world.finish(rng);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn flows_arrive_whole_in_any_interleaving(seed: u64) {
        let (mut rng, mut world) = (Rng::new(seed), World::new(16 << 20, 16 << 20, seed));
        run(&mut rng, &mut world, 12, |_, _| {});
        let (sender, receiver) = (world.sender.statistics(), world.receiver.statistics());
        prop_assert_eq!((sender.refetches, sender.flows), (0, 0));
        prop_assert_eq!(sender.raw_bytes, receiver.raw_bytes);
    }

    #[test]
    fn a_log_smaller_than_what_is_in_use_only_costs_bytes(seed: u64) {
        let (mut rng, mut world) = (Rng::new(seed), World::new(1 << 20, 1 << 20, seed));
        run(&mut rng, &mut world, 16, |_, _| {});
    }

    #[test]
    fn stores_may_differ_in_size(seed: u64, smaller: bool) {
        let (ours, theirs) = if smaller { (8 << 20, 1 << 20) } else { (1 << 20, 8 << 20) };
        let (mut rng, mut world) = (Rng::new(seed), World::new(ours, theirs, seed));
        run(&mut rng, &mut world, 16, |_, _| {});
    }
}
