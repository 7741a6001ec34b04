//! Streams: every byte right whatever the line does, fairness, independence, resets, limits.

use super::*;

/// A line that does everything at once.
fn terrible(rng: &mut Rng) -> LineConfig {
    let mut line = LineConfig::new(2_000_000 + rng.below(40_000_000), millis(1 + rng.below(80)));
    line.queue = 20_000 + rng.below(200_000) as usize;
    line.loss = rng.below(8) as f64 / 100.0;
    line.burst = rng.below(3) as f64 / 1000.0;
    line.burst_length = 1.0 + rng.below(20) as f64;
    line.reorder = rng.below(30) as f64 / 100.0;
    line.reorder_delay = millis(rng.below(40));
    line.duplicate = rng.below(5) as f64 / 100.0;
    line.corrupt = rng.below(4) as f64 / 100.0;
    line.truncate = rng.below(3) as f64 / 100.0;
    line
}

#[test]
fn every_byte_of_many_streams_is_right_on_terrible_lines() {
    carry_all(0..25);
}

#[test]
#[ignore = "a thousand lines: run it by name with --ignored"]
fn every_byte_is_right_on_a_thousand_terrible_lines() {
    carry_all(1000..2000);
}

fn carry_all(seeds: core::ops::Range<u64>) {
    for seed in seeds {
        let mut rng = Rng::new(seed);
        let mut world = World::new(terrible(&mut rng), seed);
        world.connect();
        world.core.answer = Some(1 + rng.below(60_000));
        let mut streams = Vec::new();
        for _ in 0..30 {
            let length = match rng.below(4) {
                0 => 0,
                1 => rng.below(2000),
                _ => rng.below(200_000),
            };
            streams.push((world.branch.send(length), length));
            world.run(millis(rng.below(20)));
        }
        let answer = world.core.answer.unwrap();
        let done = world.run_until(secs(120), |w| {
            streams
                .iter()
                .all(|&(id, length)| w.core.has_all(id, length) && w.branch.has_all(id, answer))
        });
        assert!(
            done,
            "seed {seed}: not all arrived; {:?}",
            world.branch.tunnel.statistics()
        );
        assert!(
            world.branch.down.is_empty(),
            "seed {seed}: {:?}",
            world.branch.down
        );
        // Both ends forget streams that are over.
        let over = |w: &mut World| {
            w.branch.tunnel.statistics().streams + w.core.tunnel.statistics().streams == 0
        };
        assert!(
            world.run_until(secs(30), over),
            "seed {seed}: streams left over"
        );
    }
}

#[test]
fn a_lost_packet_stalls_only_its_stream() {
    let mut world = World::new(LineConfig::new(10_000_000, millis(50)), 5);
    world.connect();
    world.run(secs(1));
    let delay = |w: &mut World, lossy: bool| {
        let start = w.now;
        let first = w.branch.send(100);
        // It goes alone, and is lost.
        w.up.config_mut().loss = if lossy { 1.0 } else { 0.0 };
        w.transmit();
        w.up.config_mut().loss = 0.0;
        let others: Vec<_> = (0..20).map(|_| w.branch.send(100)).collect();
        let all = |w: &mut World| {
            others
                .iter()
                .chain([&first])
                .all(|&id| w.core.has_all(id, 100))
        };
        assert!(w.run_until(secs(5), all));
        let took =
            |w: &World, id: StreamId| w.core.receiving[&id.number()].last_at.unwrap() - start;
        (
            took(w, first),
            others.iter().map(|&id| took(w, id)).max().unwrap(),
        )
    };
    let (first, others) = delay(&mut world, false);
    assert!(
        first < millis(60) && others < millis(65),
        "{first:?} {others:?}"
    );
    world.run(millis(300));
    let (first, others) = delay(&mut world, true);
    assert!(first > millis(150), "the lost one came after {first:?}");
    assert!(others < millis(65), "others waited {others:?}");
}

#[test]
fn small_streams_do_not_wait_behind_large_ones() {
    let mut world = World::new(LineConfig::new(10_000_000, millis(50)), 6);
    world.connect();
    let large: Vec<_> = (0..40).map(|_| world.branch.send(10 << 20)).collect();
    world.run(secs(5));
    for _ in 0..10 {
        let start = world.now;
        let small = world.branch.send(1000);
        assert!(world.run_until(secs(5), |w| w.core.has_all(small, 1000)));
        let took = world.now - start;
        // One way is 50 ms; the rest is the queue of the line.
        assert!(took < millis(110), "{took:?}");
    }
    // And the large ones got about the same.
    let got: Vec<_> = large.iter().map(|&id| world.core.received(id)).collect();
    let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
    assert!(*least * 2 > *most, "{got:?}");
}

#[test]
fn a_stream_that_is_not_read_holds_up_only_itself() {
    let mut world = World::new(LineConfig::new(50_000_000, millis(10)), 7);
    world.connect();
    world.core.lazy = true;
    let stuck = world.branch.send(50 << 20);
    world.run(secs(5));
    world.core.lazy = false;
    let good = world.branch.send(20 << 20);
    assert!(world.run_until(secs(20), |w| w.core.has_all(good, 20 << 20)));
    let held = world.core.tunnel.readable(stuck);
    assert!(
        held > 0 && held <= 1 << 20,
        "{held} bytes held for a reader that sleeps"
    );
    // It goes on when it is read.
    let now = world.now;
    world.core.pull(now, stuck);
    assert!(world.run_until(secs(60), |w| w.core.has_all(stuck, 50 << 20)));
}

#[test]
fn readers_that_have_stopped_do_not_starve_the_others() {
    // As many as share the memory of a small box, on the line that most have.
    let mut core = config_of(2, 1);
    core.receive_memory = 8 << 20;
    let mut world = World::with(
        LineConfig::new(10_000_000, millis(50)),
        13,
        config_of(1, 2),
        core,
    );
    world.connect();
    let first = world.branch.send(1000);
    assert!(world.run_until(secs(5), |w| w.core.has_all(first, 1000)));
    world.core.lazy = true;
    let stuck: Vec<_> = (0..190).map(|_| world.branch.send(5 << 20)).collect();
    world.run(secs(20));
    world.core.lazy = false;
    let start = world.now;
    let good = world.branch.send(2 << 20);
    assert!(world.run_until(secs(60), |w| w.core.has_all(good, 2 << 20)));
    let took = world.now - start;
    // The line alone needs 1.7 s.
    assert!(took < secs(4), "{took:?}");
    let held: usize = stuck.iter().map(|&id| world.core.tunnel.readable(id)).sum();
    assert!(held <= 8 << 20, "{held}");
}

#[test]
fn the_first_stream_goes_on_when_the_others_have_filled_the_connection() {
    let mut core = config_of(2, 1);
    core.receive_memory = 1 << 20;
    let mut world = World::with(
        LineConfig::new(10_000_000, millis(20)),
        14,
        config_of(1, 2),
        core,
    );
    world.connect();
    let first = world.branch.tunnel.open_stream().unwrap();
    world.core.lazy = true;
    for _ in 0..100 {
        world.branch.send(1 << 20);
    }
    world.run(secs(10));
    world.core.lazy = false;
    world.branch.send_on(first, 100_000);
    assert!(world.run_until(secs(5), |w| w.core.has_all(first, 100_000)));
}

#[test]
fn a_stream_that_went_with_its_connection_has_not_finished() {
    let mut world = World::new(LineConfig::new(10_000_000, millis(20)), 15);
    world.connect();
    let id = world.branch.send(1 << 20);
    world.run(millis(200));
    world.set_cut(true);
    assert!(world.run_until(secs(10), |w| w.core.tunnel.state() == State::Down));
    let read = world.core.tunnel.read(id, &mut [0; 10]);
    assert!(!read.finished, "half of a stream is no whole one");
}

#[test]
fn an_end_that_comes_after_the_last_byte_was_read_is_still_told() {
    let mut world = World::new(LineConfig::new(10_000_000, millis(20)), 16);
    world.connect();
    let id = world.branch.tunnel.open_stream().unwrap();
    let mut pattern = Pattern {
        stream: id.number() * 2,
        offset: 0,
    };
    world.branch.tunnel.write(id, &[pattern.next()]);
    world.run(millis(200));
    // The core has read everything and finishes its own direction; then the branch finishes, and nobody reads.
    world.core.tunnel.finish(id);
    world.run(millis(200));
    world.core.lazy = true;
    world.branch.tunnel.finish(id);
    world.run(secs(1));
    let read = world.core.tunnel.read(id, &mut [0; 10]);
    assert_eq!(
        read,
        Read {
            len: 0,
            finished: true
        }
    );
}

#[test]
fn held_memory_is_bounded_however_many_streams_stall() {
    let mut branch = config_of(1, 2);
    let mut core = config_of(2, 1);
    branch.send_memory = 4 << 20;
    core.receive_memory = 2 << 20;
    let mut world = World::with(LineConfig::new(100_000_000, millis(5)), 8, branch, core);
    world.connect();
    world.core.lazy = true;
    let streams: Vec<_> = (0..200).map(|_| world.branch.send(1 << 20)).collect();
    world.run(secs(5));
    let held: usize = streams
        .iter()
        .map(|&id| world.core.tunnel.readable(id))
        .sum();
    // The first stream is not counted.
    assert!(held <= (2 << 20) + (32 << 10), "{held}");
    let sending =
        (200_u64 << 20) - world.branch.sending.values().map(|s| s.left).sum::<u64>() - held as u64;
    // The bound, and the little that each stream may always hold.
    assert!(sending <= (4 << 20) + 200 * (2 << 10), "{sending}");
    // All go on when they are read.
    world.core.lazy = false;
    for &id in &streams {
        let now = world.now;
        world.core.pull(now, id);
    }
    assert!(world.run_until(secs(120), |w| {
        streams.iter().all(|&id| w.core.has_all(id, 1 << 20))
    }));
}

#[test]
fn a_reset_reaches_the_other_side_and_frees_both() {
    for loss in [0.0, 0.1] {
        let mut line = LineConfig::new(10_000_000, millis(20));
        line.loss = loss;
        let mut world = World::new(line, 9);
        world.connect();
        let ids: Vec<_> = (0..10).map(|_| world.branch.send(1 << 20)).collect();
        world.run(millis(300));
        for (i, &id) in ids.iter().enumerate() {
            // From either side, or from both at once.
            if i % 3 != 1 {
                world.branch.tunnel.reset(id, i as u32);
            }
            if i % 3 != 0 {
                world.core.tunnel.reset(id, 100 + i as u32);
            }
            world.branch.sending.remove(&id);
            if i % 3 != 1 {
                assert_eq!(world.branch.tunnel.write(id, b"more"), 0);
            }
        }
        let over = |w: &mut World| {
            w.branch.tunnel.statistics().streams + w.core.tunnel.statistics().streams == 0
        };
        assert!(
            world.run_until(secs(20), over),
            "loss {loss}: {:?}",
            world.core.tunnel.statistics()
        );
        for (i, id) in ids.iter().enumerate() {
            match i % 3 {
                0 => assert_eq!(world.core.receiving[&id.number()].reset, Some(i as u32)),
                1 => assert_eq!(
                    world.branch.receiving[&id.number()].reset,
                    Some(100 + i as u32)
                ),
                _ => {}
            }
        }
        // The windows that the dropped bytes took are free again.
        let id = world.branch.send(40 << 20);
        assert!(world.run_until(secs(300), |w| w.core.has_all(id, 40 << 20)));
        assert!(world.branch.down.is_empty() && world.core.down.is_empty());
    }
}

#[test]
fn half_closed_streams_go_on_the_other_way() {
    let mut world = World::new(LineConfig::new(10_000_000, millis(20)), 10);
    world.connect();
    let id = world.branch.send(10);
    assert!(world.run_until(secs(5), |w| w.core.has_all(id, 10)));
    world.run(secs(20));
    world.core.send_on(id, 100_000);
    assert!(world.run_until(secs(5), |w| w.branch.has_all(id, 100_000)));
    assert!(world.run_until(secs(5), |w| w.branch.tunnel.statistics().streams == 0));
    // The end was told; what is over says it no more.
    assert_eq!(
        world.branch.tunnel.read(id, &mut [0; 10]),
        Read {
            len: 0,
            finished: false
        }
    );
}

#[test]
fn streams_can_be_opened_without_end_but_not_all_at_once() {
    let mut core = config_of(2, 1);
    core.max_streams = 300;
    let mut world = World::with(
        LineConfig::new(50_000_000, millis(5)),
        11,
        config_of(1, 2),
        core,
    );
    world.connect();
    world.run(millis(100));
    let mut opened = 0;
    while let Some(id) = world.branch.tunnel.open_stream() {
        world.branch.send_on(id, 10);
        opened += 1;
    }
    assert_eq!(opened, 300);
    // When they are over on both sides, as many again may be.
    for round in 0..10 {
        world.run(millis(200));
        for event in world.core.events.split_off(0) {
            if let Event::Opened(id) = event {
                world.core.send_on(id, 10);
            }
        }
        let over = |w: &mut World| w.core.tunnel.statistics().streams == 0;
        assert!(world.run_until(secs(2), over), "{round}");
        world.run(millis(50));
        for _ in 0..260 {
            let id = world
                .branch
                .tunnel
                .open_stream()
                .expect("as many as are over");
            world.branch.send_on(id, 10);
        }
    }
}

#[test]
fn identifiers_of_a_former_connection_are_refused() {
    let mut world = World::new(LineConfig::new(10_000_000, millis(20)), 12);
    world.connect();
    let old = world.branch.send(10);
    world.set_cut(true);
    assert!(world.run_until(secs(5), |w| w.branch.tunnel.state() == State::Down));
    world.set_cut(false);
    world.connect();
    let new = world.branch.tunnel.open_stream().unwrap();
    assert_eq!(old.number(), new.number());
    assert_ne!(old, new);
    assert_eq!(world.branch.tunnel.write(old, b"stale"), 0);
    assert_eq!(world.branch.tunnel.writable(old), 0);
    world.branch.tunnel.reset(old, 1);
    assert_eq!(world.branch.tunnel.write(new, b"fresh"), 5);
}
