//! Transfers in all directions, over good and bad lines.

use std::time::Duration;

use crate::host::{Close, Outcome, Script};
use crate::line::{LineConfig, Random};
use crate::world::{Site, World};

const BOTH_FINISHED: (Option<Outcome>, Option<Outcome>) =
    (Some(Outcome::Finished), Some(Outcome::Finished));

#[test]
fn bytes_arrive_in_both_directions() {
    let mut random = Random::new(1);
    let mut world = World::new(1, LineConfig::CLEAN);
    world.wait_up();
    let (up, down) = (random.bytes(300_000), random.bytes(700_000));
    let pair = world.connect(
        80,
        Script::send(up.clone()),
        Script::send(down.clone()).close(Close::AfterSending),
    );
    assert_eq!(world.finish(pair, Duration::from_secs(30)), BOTH_FINISHED);
    assert!(world.client_connection(pair).received == down);
    assert!(world.server_connection(pair).received == up);
    let statistics = world.statistics(Site::Branch);
    assert_eq!(statistics.syns.optimised, 1);
    world.run_for(Duration::from_secs(2));
    let statistics = world.statistics(Site::Branch);
    assert_eq!((statistics.flows.open, statistics.flows.finished), (0, 1));
    let statistics = world.statistics(Site::Core);
    assert_eq!((statistics.flows.open, statistics.flows.finished), (0, 1));
}
