//! The line: throughput, queue, outages, changes of path.

use super::*;

/// Sends `bytes` from core to branch; gives the share of the line's rate that arrived as stream data (headers and
/// retransmissions count against us), and the world.
fn download(line: LineConfig, bytes: u64, seed: u64) -> (f64, World) {
    let mut world = World::new(line.clone(), seed);
    world.connect();
    world.run(millis(500));
    let start = world.now;
    let id = world.core.send(bytes);
    assert!(
        world.run_until(secs(600), |w| w.branch.has_all(id, bytes)),
        "stalled at {}",
        world.branch.received(id)
    );
    let seconds = (world.now - start).as_secs_f64();
    (bytes as f64 * 8.0 / seconds / line.rate as f64, world)
}

fn line_10m(loss: f64) -> LineConfig {
    let mut line = LineConfig::new(10_000_000, millis(50));
    line.loss = loss;
    line
}

/// Mean bytes that a packet finds waiting before it, as a share of what the line holds in a round trip.
fn queue_share(world: &World, line: &LineConfig) -> f64 {
    let counters = world.down.counters;
    let product = line.rate as f64 / 8.0 * line.delay.as_secs_f64() * 2.0;
    counters.queue_sum as f64 / counters.packets as f64 / product
}

#[test]
fn fills_the_line_at_random_loss() {
    for (loss, least) in [(0.0, 0.90), (0.005, 0.88), (0.01, 0.87), (0.03, 0.85)] {
        for seed in 0..3 {
            let (share, _) = download(line_10m(loss), 20 << 20, seed);
            assert!(share >= least, "loss {loss}, seed {seed}: {share}");
        }
    }
}

#[test]
fn does_not_fill_a_deep_queue() {
    let mut line = line_10m(0.005);
    line.queue = 2_000_000;
    let (share, world) = download(line.clone(), 40 << 20, 1);
    assert!(share > 0.85, "{share}");
    let queue = queue_share(&world, &line);
    assert!(queue < 0.25, "{queue} of a round trip waits");
}

#[test]
fn makes_do_with_a_short_queue() {
    let mut line = line_10m(0.0);
    line.queue = 16_000;
    let (share, world) = download(line, 20 << 20, 1);
    assert!(share > 0.80, "{share}");
    let counters = world.down.counters;
    assert!(
        counters.dropped * 100 < counters.packets * 4,
        "{counters:?}"
    );
}

#[test]
fn fills_a_long_fat_line() {
    let line = LineConfig::new(100_000_000, millis(150));
    let (share, _) = download(line, 300 << 20, 1);
    assert!(share > 0.80, "{share}");
}

#[test]
fn keeps_its_rate_through_bursts_of_loss_and_reordering() {
    let mut line = line_10m(0.002);
    line.burst = 0.001;
    line.burst_length = 10.0;
    let (share, _) = download(line, 20 << 20, 2);
    assert!(share > 0.80, "{share}");
    let mut line = line_10m(0.002);
    line.reorder = 0.1;
    line.reorder_delay = millis(15);
    let (share, world) = download(line, 20 << 20, 3);
    assert!(share > 0.85, "{share}");
    let statistics = world.core.tunnel.statistics();
    // It learns how far packets are overtaken instead of sending everything again.
    let again = statistics.stream_bytes_retransmitted as f64 / statistics.stream_bytes_sent as f64;
    assert!(again < 0.02, "{again} sent again");
}

#[test]
fn both_directions_at_once() {
    let mut world = World::new(line_10m(0.005), 4);
    world.connect();
    let start = world.now;
    let (up, down) = (world.branch.send(10 << 20), world.core.send(10 << 20));
    assert!(world.run_until(secs(60), |w| w.core.has_all(up, 10 << 20)
        && w.branch.has_all(down, 10 << 20)));
    let share = (10_u64 << 23) as f64 / (world.now - start).as_secs_f64() / 10e6;
    assert!(share > 0.80, "{share}");
}

#[test]
fn costs_the_line_little() {
    let (_, world) = download(line_10m(0.0), 20 << 20, 5);
    let carried = world.up.counters.bytes + world.down.counters.bytes;
    let overhead = carried as f64 / (20_u64 << 20) as f64;
    // IP packets of plain TCP with timestamps: 1500/1448, and 52 bytes of acknowledgement for every second: 1.054.
    assert!(overhead < 1.054, "{overhead}");
}

#[test]
fn an_idle_tunnel_is_nearly_silent_and_stays_up() {
    let mut world = World::new(line_10m(0.01), 6);
    world.connect();
    world.run(secs(2));
    let before = (
        world.up.counters.packets + world.down.counters.packets,
        world.steps,
    );
    world.run(secs(600));
    assert!(world.branch.down.is_empty() && world.core.down.is_empty());
    let packets = world.up.counters.packets + world.down.counters.packets - before.0;
    assert!(packets < 600 * 3, "{packets} packets in 600 s");
    let steps = world.steps - before.1;
    assert!(steps < 600 * 12, "woken {steps} times in 600 s");
}

#[test]
fn comes_back_within_five_seconds_of_the_line() {
    for outage in [100, 1500, 2500, 3500, 10_000, 63_700] {
        let mut world = World::new(line_10m(0.01), outage);
        world.connect();
        world.core.send(500 << 20);
        world.run(secs(2));
        world.set_cut(true);
        let cut = world.now;
        if outage > 3500 {
            assert!(world.run_until(secs(5), |w| !w.branch.down.is_empty()
                && !w.core.down.is_empty()));
            for end in [&world.branch, &world.core] {
                let after = end.down_at.unwrap() - cut;
                assert!(after <= millis(3100), "down after {after:?}");
            }
            assert_eq!(world.branch.down, [DownReason::Silence]);
            assert_eq!(world.core.down, [DownReason::Silence]);
        }
        world.run(millis(outage).saturating_sub(world.now - cut));
        world.set_cut(false);
        let back = world.now;
        let ups = world.branch.ups;
        if outage <= 2500 {
            // Short enough to be ridden out: data flows again.
            let id = world.branch.send(1000);
            assert!(
                world.run_until(secs(5), |w| w.core.has_all(id, 1000)),
                "{outage}"
            );
            assert_eq!(world.branch.ups, 1, "{outage}");
            assert!(
                world.now - back < secs(2),
                "{outage}: {:?}",
                world.now - back
            );
        } else {
            // (At the very edge one side may have given up and the other not yet.)
            let up = |w: &mut World| {
                w.branch.tunnel.state() == State::Up && w.core.tunnel.state() == State::Up
            };
            world.run(millis(if outage == 3500 { 1 } else { 0 }));
            assert!(
                world.run_until(secs(5), |w| up(w) && (w.branch.ups > ups || outage == 3500)),
                "{outage}"
            );
            assert!(
                world.now - back < secs(2),
                "{outage}: {:?}",
                world.now - back
            );
            let id = world.branch.send(1000);
            assert!(
                world.run_until(secs(5), |w| w.core.has_all(id, 1000)),
                "{outage}"
            );
        }
    }
}

#[test]
fn one_dead_direction_is_a_dead_line() {
    for up_is_dead in [true, false] {
        let mut world = World::new(line_10m(0.0), 7);
        world.connect();
        world.run(secs(1));
        if up_is_dead {
            world.up.set_cut(true)
        } else {
            world.down.set_cut(true)
        }
        assert!(world.run_until(secs(8), |w| !w.branch.down.is_empty()
            && !w.core.down.is_empty()));
        world.set_cut(false);
        world.connect();
        let id = world.branch.send(1000);
        assert!(world.run_until(secs(5), |w| w.core.has_all(id, 1000)));
    }
}

#[test]
fn survives_a_change_of_address() {
    let mut world = World::new(line_10m(0.01), 8);
    world.connect();
    let (up, down) = (world.branch.send(4 << 20), world.core.send(4 << 20));
    for i in 0..5 {
        world.run(millis(700));
        // As when a NAT forgets: the branch now shows as somebody else, and what goes to the old address is lost.
        world.branch.address = Endpoint::new(Ipv4Addr::new(198, 51, 100, i), 4000);
    }
    assert!(world.run_until(secs(30), |w| w.core.has_all(up, 4 << 20)
        && w.branch.has_all(down, 4 << 20)));
    assert!(world.branch.down.is_empty() && world.core.down.is_empty());
    assert_eq!(world.core.tunnel.statistics().address_changes, 5);
    assert_eq!(world.core.tunnel.peer(), Some(world.branch.address));
}

#[test]
fn a_path_that_narrows_is_found_out() {
    for mtu in [1500, 1492, 1400, 1280] {
        let mut line = line_10m(0.005);
        line.mtu = mtu;
        let (_, mut world) = download(line, 2 << 20, 9);
        let found = usize::from(world.core.tunnel.statistics().mtu) + 28;
        assert!(found <= mtu && mtu - found < 16, "{mtu}: {found}");
        if mtu != 1500 {
            continue;
        }
        // In the middle of a transfer large packets begin to vanish, without a word.
        let id = world.core.send(8 << 20);
        world.run(secs(1));
        world.down.config_mut().mtu = 1400;
        world.up.config_mut().mtu = 1400;
        assert!(
            world.run_until(secs(15), |w| w.branch.has_all(id, 8 << 20)),
            "{:?}",
            world.core.tunnel.statistics()
        );
        assert!(world.core.down.is_empty() && world.branch.down.is_empty());
        let found = usize::from(world.core.tunnel.statistics().mtu) + 28;
        assert!(found <= 1400 && 1400 - found < 16, "{found}");
    }
}

#[test]
fn new_keys_do_not_disturb_the_streams() {
    let mut branch = config_of(1, 2);
    branch.rekey_after = secs(2);
    let mut world = World::with(line_10m(0.02), 10, branch, config_of(2, 1));
    world.connect();
    let (up, down) = (world.branch.send(15 << 20), world.core.send(15 << 20));
    assert!(world.run_until(secs(60), |w| w.core.has_all(up, 15 << 20)
        && w.branch.has_all(down, 15 << 20)));
    assert!(world.branch.down.is_empty() && world.core.down.is_empty());
    let rekeys = (
        world.branch.tunnel.statistics().rekeys,
        world.core.tunnel.statistics().rekeys,
    );
    assert!(rekeys.0 >= 5 && rekeys.1 >= 5, "{rekeys:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let (_, world) = download(line_10m(0.03), 1 << 20, 11);
        (
            world.now,
            world.steps,
            world.core.tunnel.statistics(),
            world.branch.tunnel.statistics(),
        )
    };
    assert_eq!(run(), run());
}

/// The figures of docs/tunnel.md.
#[test]
#[ignore = "prints figures: run it by name with --ignored --nocapture"]
fn figures() {
    std::println!(
        "rate Mbit/s, RTT ms, loss %, queue KB: share of the line, bytes on the line / data, mean queue of a round trip, lost %, spurious, timeouts"
    );
    for (rate, rtt, loss, queue) in [
        (10, 100, 0.0, 125),
        (10, 100, 0.5, 125),
        (10, 100, 1.0, 125),
        (10, 100, 3.0, 125),
        (10, 100, 0.5, 2000),
        (10, 100, 0.5, 16),
        (2, 600, 0.5, 150),
        (100, 20, 0.5, 250),
        (100, 300, 0.5, 3750),
        (1, 50, 0.0, 64),
    ] {
        let mut line = LineConfig::new(rate * 1_000_000, millis(rtt / 2));
        line.loss = loss / 100.0;
        line.queue = queue * 1000;
        let bytes = rate * 4_000_000;
        let (share, world) = download(line.clone(), bytes, 1);
        let carried = world.down.counters.bytes + world.up.counters.bytes;
        let statistics = world.core.tunnel.statistics();
        std::println!(
            "{rate:4} {rtt:4} {loss:4} {queue:5}: {share:.3} {:.4} {:.2} {:.2} {} {}",
            carried as f64 / bytes as f64,
            queue_share(&world, &line),
            statistics.packets_lost as f64 * 100.0 / statistics.packets_sent as f64,
            statistics.packets_lost_spuriously,
            statistics.probe_timeouts,
        );
    }
}

#[test]
#[ignore = "debugging aid"]
fn trace() {
    let get = |k: &str, d: f64| {
        std::env::var(k)
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(d)
    };
    let mut line = LineConfig::new(
        (get("RATE", 10.0) * 1e6) as u64,
        millis(get("RTT", 100.0) as u64 / 2),
    );
    line.loss = get("LOSS", 0.5) / 100.0;
    line.queue = (get("QUEUE", 125.0) * 1000.0) as usize;
    let step = get("STEP", 100.0) as u64;
    let mut world = World::new(line.clone(), get("SEED", 1.0) as u64);
    world.connect();
    world.run(millis(500));
    let id = world.core.send(1 << 40);
    let mut last = 0;
    for i in 0..get("STEPS", 100.0) as u64 {
        world.run(millis(step));
        let s = world.core.tunnel.statistics();
        let got = world.branch.received(id);
        std::println!(
            "{:6} got {:6} bw {:6} pace {:6} win {:6} infl {:6} q {:6} lost {:4} drop {:4} rtt {} min {}  {}",
            i * step,
            (got - last) * 8 / step,
            s.bandwidth * 8 / 1000,
            s.pacing_rate * 8 / 1000,
            s.congestion_window,
            s.in_flight,
            world.down.queued(world.now),
            s.packets_lost,
            world.down.counters.dropped,
            s.rtt_micros / 1000,
            s.min_rtt_micros / 1000,
            world.core.tunnel.connection.as_ref().unwrap().trace(),
        );
        last = got;
    }
}
