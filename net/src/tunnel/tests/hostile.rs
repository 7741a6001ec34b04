//! Whatever comes in from anywhere.

use super::*;

#[test]
fn connects_and_carries() {
    let mut world = World::new(LineConfig::new(10_000_000, millis(50)), 1);
    world.connect();
    let id = world.branch.send(100_000);
    assert!(world.run_until(secs(10), |w| w.core.has_all(id, 100_000)));
}
