//! The line: throughput, queue, outages, changes of path.

use super::*;

/// Sends `bytes` from core to branch; gives the share of the line's rate that arrived as stream data (headers count against us), and the world.
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

#[test]
fn fills_the_line_at_random_loss() {
    for (loss, least) in [(0.0, 0.90), (0.005, 0.85), (0.01, 0.85), (0.03, 0.85)] {
        for seed in 0..3 {
            let (share, world) = download(line_10m(loss), 30 << 20, seed);
            std::println!(
                "10 Mbit/s 100 ms loss {loss}: share {share:.3} {:?}",
                world.core.tunnel.statistics()
            );
            assert!(share >= least, "loss {loss}, seed {seed}: {share}");
        }
    }
}
