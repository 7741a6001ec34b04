//! Stores that lose, corrupt, restart and disagree; flows that stand still.

use alloc::vec::Vec;
use proptest::prelude::*;

use super::run;
use super::simulation::{self, Rng, World};
use crate::dedup::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_store_that_loses_and_corrupts_only_costs_refetches(seed: u64) {
        let (mut rng, mut world) = (Rng::new(seed), World::new(16 << 20, 16 << 20, seed));
        run(&mut rng, &mut world, 12, |rng, world| {
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

    #[test]
    fn what_is_fetched_again_is_compressed(seed: u64, len in 1000usize..MAX_BLOCK, noise: bool) {
        let (mut rng, mut world) = (Rng::new(seed), World::new(4 << 20, 4 << 20, seed));
        let bytes = if noise {
            simulation::noise(&mut rng, len)
        } else {
            simulation::text(&mut rng, len)
        };
        world.transfer(&mut rng, bytes.clone());
        world.receiver.lose(0..len as u64);
        let before = world.sender.statistics().control_bytes;
        world.transfer(&mut rng, bytes);
        let (sender, took) = (world.sender.statistics(), world.sender.statistics().control_bytes - before);
        prop_assert_eq!(sender.refetched_bytes, len as u64);
        let most = if noise { len + 20 } else { len * 3 / 4 + 300 };
        prop_assert!(took <= most as u64, "{} bytes for {}", took, len);
    }

    #[test]
    fn colliding_fingerprints_only_cost_time(seed: u64) {
        let (mut rng, mut world) = (Rng::new(seed), World::new(16 << 20, 16 << 20, seed));
        world.sender.anchors.weak = true;
        run(&mut rng, &mut world, 8, |_, _| {});
        prop_assert_eq!(world.sender.statistics().refetches, 0);
    }

    #[test]
    fn either_end_may_restart(seed: u64) {
        let (mut rng, mut world) = (Rng::new(seed), World::new(4 << 20, 4 << 20, seed));
        for round in 0..6 {
            run(&mut rng, &mut world, 3, |_, _| {});
            match rng.below(4) {
                0 => world.receiver = Receiver::new(ReceiverConfig { memory: 4 << 20 }),
                1 => world.sender = Sender::new(SenderConfig::with_memory(4 << 20), [round; 32]),
                2 => world.receiver.lose(0..1 << 20),
                _ => {}
            }
            world.reconnect();
        }
    }

    #[test]
    fn flows_are_cut_off_anywhere(seed: u64) {
        let (mut rng, mut world) = (Rng::new(seed), World::new(2 << 20, 2 << 20, seed));
        run(&mut rng, &mut world, 16, |rng, world| {
            if rng.below(30) == 0 && world.open() > 0 {
                let flow = world.flows.swap_remove(rng.below(world.flows.len()));
                flow.encoder.close(&mut world.sender);
                flow.decoder.close(&mut world.receiver);
            }
            if rng.below(100) == 0 {
                world.reconnect();
            }
        });
    }
}

#[test]
fn both_stores_are_still_good_after_a_reconnect() {
    let (mut rng, mut world) = (Rng::new(1), World::new(16 << 20, 16 << 20, 1));
    let bytes = simulation::noise(&mut rng, 2 << 20);
    world.transfer(&mut rng, bytes.clone());
    world.reconnect();
    // The peer's greeting is back before the flow begins.
    world.finish(&mut rng);
    let wire = world.transfer(&mut rng, bytes.clone());
    assert!(wire < 2000, "{wire} bytes");
    // An interrupted flow leaves what had been confirmed.
    let other = simulation::noise(&mut rng, 2 << 20);
    world.start(other.clone());
    for _ in 0..3 {
        world.encode(0, 300_000, Flush::Yes);
        world.deliver(0, usize::MAX).expect("an honest sender");
        world.control(&mut rng, 1 << 20, Urgency::Now);
        world.control(&mut rng, 1 << 20, Urgency::Now);
    }
    world.reconnect();
    world.finish(&mut rng);
    let wire = world.transfer(&mut rng, other);
    assert!(wire < (2 << 20) - 800_000, "{wire} bytes");
}

#[test]
fn a_restarted_receiver_is_served_and_warms_up() {
    let (mut rng, mut world) = (Rng::new(2), World::new(16 << 20, 16 << 20, 2));
    let bytes = simulation::noise(&mut rng, 1 << 20);
    world.transfer(&mut rng, bytes.clone());
    world.receiver = Receiver::new(ReceiverConfig { memory: 16 << 20 });
    world.reconnect();
    world.finish(&mut rng);
    let wire = world.transfer(&mut rng, bytes.clone());
    assert!(
        wire > 1 << 20,
        "nothing may be referred to yet: {wire} bytes"
    );
    assert_eq!(world.sender.statistics().refetches, 0, "and nothing was");
    let wire = world.transfer(&mut rng, bytes);
    assert!(wire < 1000, "{wire} bytes");
}

#[test]
fn what_was_lost_is_fetched_once_and_mended() {
    let (mut rng, mut world) = (Rng::new(4), World::new(16 << 20, 16 << 20, 4));
    let bytes = simulation::noise(&mut rng, 1 << 20);
    world.transfer(&mut rng, bytes.clone());
    world.receiver.lose(300_000..600_000);
    world.transfer(&mut rng, bytes.clone());
    let statistics = world.receiver.statistics();
    assert!(statistics.missing > 0 && statistics.refetches == statistics.missing);
    world.receiver.tamper(700_000..700_001, |byte| !byte);
    world.transfer(&mut rng, bytes.clone());
    assert_eq!(world.receiver.statistics().mismatches, 1);
    let before = world.receiver.statistics().refetches;
    let wire = world.transfer(&mut rng, bytes);
    assert_eq!(world.receiver.statistics().refetches, before, "mended");
    assert!(wire < 600_000, "{wire} bytes");
}

#[test]
fn a_flow_that_waits_for_what_is_fetched_again_stops_no_other() {
    let (mut rng, mut world) = (Rng::new(9), World::new(16 << 20, 16 << 20, 9));
    let lost = simulation::noise(&mut rng, 1 << 20);
    let kept = simulation::noise(&mut rng, 1 << 20);
    world.transfer(&mut rng, lost.clone());
    world.transfer(&mut rng, kept.clone());
    world.receiver.lose(0..300_000);
    // The first flow refers to what is gone, and its request for that stays on the way…
    world.start(lost);
    world.encode(0, 1 << 20, Flush::Yes);
    world.deliver(0, usize::MAX).expect("an honest sender");
    assert!(world.flows[0].decoder.is_waiting());
    let got = world.flows[0].got;
    // …while others, of old and of new bytes, come out whole.
    for bytes in [kept, simulation::noise(&mut rng, 1 << 20)] {
        world.start(bytes);
        while world.flows.len() > 1 {
            world.encode(1, 1 << 20, Flush::Yes);
            world.deliver(1, usize::MAX).expect("an honest sender");
            world.reap();
        }
    }
    assert!(world.flows[0].decoder.is_waiting());
    assert_eq!(world.flows[0].got, got);
    world.finish(&mut rng);
    assert!(world.receiver.statistics().refetches > 0);
}

#[test]
fn a_flow_that_stands_still_does_not_stop_the_others() {
    let (mut rng, mut world) = (Rng::new(5), World::new(4 << 20, 4 << 20, 5));
    world.finish(&mut rng);
    let stalled = simulation::noise(&mut rng, 8 << 20);
    world.start(stalled);
    for _ in 0..50 {
        world.encode(0, 1 << 20, Flush::Yes);
    }
    assert_eq!(
        world.flows[0].encoder.writable(&world.sender),
        0,
        "nothing is confirmed: no credit"
    );
    assert!(world.flows[0].sent <= 1 << 20);
    // Others carry several times the size of the log, over the stalled flow's blocks.
    let flow = world.flows.remove(0);
    for _ in 0..12 {
        let bytes = simulation::noise(&mut rng, 1 << 20);
        world.start(bytes);
        let mut rounds = 0;
        while !world.flows.is_empty() {
            world.encode(0, 1 << 20, Flush::Yes);
            world.deliver(0, 1 << 20).expect("an honest sender");
            world.control(&mut rng, 1 << 20, Urgency::Now);
            world.reap();
            rounds += 1;
            assert!(rounds < 200);
        }
    }
    assert!(world.sender.statistics().kept_aside > 0);
    // Its blocks come late: they are right, but no longer stored.
    world.flows.push(flow);
    world.finish(&mut rng);
    assert!(world.receiver.statistics().late_bytes > 0);
}

#[test]
fn a_block_set_aside_can_be_fetched_again() {
    let (mut rng, mut world) = (Rng::new(6), World::new(2 << 20, 2 << 20, 6));
    let bytes = simulation::noise(&mut rng, 200_000);
    world.transfer(&mut rng, bytes.clone());
    // A copy of what both have is under way when the log runs over it at both ends.
    world.start(bytes);
    world.encode(0, 1 << 20, Flush::Yes);
    assert!(world.flows[0].wire.len() < 1000);
    let flow = world.flows.remove(0);
    for _ in 0..4 {
        let other = simulation::noise(&mut rng, 1 << 20);
        world.start(other);
        while !world.flows.is_empty() {
            world.encode(0, 1 << 20, Flush::Yes);
            world.deliver(0, 1 << 20).expect("an honest sender");
            world.control(&mut rng, 1 << 20, Urgency::Now);
            world.reap();
        }
    }
    world.flows.push(flow);
    world.finish(&mut rng);
    assert!(world.receiver.statistics().missing > 0);
    assert!(world.sender.statistics().kept_aside > 0);
}

#[test]
fn flows_closed_before_they_are_confirmed_are_forgotten_in_the_end() {
    let mut rng = Rng::new(7);
    let mut world = World::new(2 << 20, 2 << 20, 7);
    for _ in 0..3000 {
        world.start(alloc::vec![1; 10]);
        world.encode(0, 10, Flush::Yes);
        let flow = world.flows.remove(0);
        flow.encoder.close(&mut world.sender);
        flow.decoder.close(&mut world.receiver);
    }
    assert!(world.sender.statistics().flows <= 1024);
    world.control(&mut rng, 1, Urgency::Now);
}

#[test]
fn a_block_that_is_gone_for_good_ends_its_flow() {
    let (mut rng, mut world) = (Rng::new(8), World::new(1 << 20, 1 << 20, 8));
    let bytes = simulation::noise(&mut rng, 100_000);
    world.transfer(&mut rng, bytes.clone());
    world.start(bytes);
    world.encode(0, 1 << 20, Flush::Yes);
    let Some(simulation::Flow {
        encoder,
        mut decoder,
        wire,
        ..
    }) = world.flows.pop()
    else {
        panic!("a flow")
    };
    // The encoder closes too early, and the log runs over what the copy refers to.
    encoder.close(&mut world.sender);
    for _ in 0..3 {
        let other = simulation::noise(&mut rng, 1 << 20);
        world.start(other);
        while !world.flows.is_empty() {
            world.encode(0, 1 << 20, Flush::Yes);
            world.deliver(0, 1 << 20).expect("an honest sender");
            world.control(&mut rng, 1 << 20, Urgency::Now);
            world.reap();
        }
    }
    let wire: Vec<u8> = wire.into_iter().collect();
    assert_eq!(decoder.push(&mut world.receiver, &wire), Ok(wire.len()));
    assert!(decoder.is_waiting() && !decoder.is_complete());
    for _ in 0..4 {
        world.control(&mut rng, 1 << 20, Urgency::Now);
    }
    assert_eq!(
        decoder.push(&mut world.receiver, &[]),
        Err(DecodeError::Gone)
    );
    assert_eq!(decoder.pop(), &[] as &[u8]);
    assert_eq!(world.sender.statistics().refetches_gone, 1);
    decoder.close(&mut world.receiver);
}

#[test]
fn a_flow_of_single_bytes_runs_out_of_credit_before_it_fills_the_memory() {
    let config = SenderConfig::with_memory(16 << 20);
    let most = config.flow_credit.max(MAX_BLOCK) / 128 + 1;
    let mut sender = Sender::new(config, [7; 32]);
    let mut encoder = Encoder::new(&mut sender);
    let mut out = Vec::new();
    let mut blocks = 0;
    while encoder.writable(&sender) > 0 {
        out.clear();
        assert_eq!(encoder.encode(&mut sender, b"x", Flush::Yes, &mut out), 1);
        blocks += 1;
        assert!(blocks <= most, "{blocks} blocks that nobody confirmed");
    }
}
