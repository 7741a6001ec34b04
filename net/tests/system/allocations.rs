//! What a connection under way allocates: on a clean line nothing, on a bad one very little; and a tunnel at rest, nothing; and what all
//! connections take together, however many come.

use std::time::Duration;

use outpost_net::engine::working_memory;

use crate::host::Script;
use crate::line::{LineConfig, Random};
use crate::transfers::text;
use crate::world::{Pair, Site, World};

/// What has been carried before anything is counted: by then, windows and records are as large as they get.
const BEFORE: usize = 12_000_000;
/// What is carried while everything is counted.
const COUNTED: usize = 6_000_000;

#[derive(Clone, Copy, Debug)]
enum Payload {
    Text,
    Noise,
    /// Noise that comes again and again: nearly all are copies.
    Repeats,
}

impl Payload {
    fn bytes(self, len: usize) -> Vec<u8> {
        let mut random = Random::new(7);
        match self {
            Payload::Text => text(&mut random, len),
            Payload::Noise => random.bytes(len),
            Payload::Repeats => {
                let once = random.bytes(700_000);
                once.iter().copied().cycle().take(len).collect()
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Up,
    Down,
}

/// Carries the payload in one connection and gives how often both boxes allocate something once it is under way.
fn allocations(payload: Payload, way: Way, line: LineConfig) -> u64 {
    let mut world = World::new(5, line);
    world.wait_up();
    let (bulk, word) = (
        Script::send(payload.bytes(BEFORE + COUNTED + 1_000_000)),
        Script::send(b"x".to_vec()),
    );
    let pair = match way {
        Way::Up => world.connect(80, bulk, word),
        Way::Down => world.connect(80, word, bulk),
    };
    carry(&mut world, pair, way, BEFORE);
    world.taken = Some(Default::default());
    carry(&mut world, pair, way, BEFORE + COUNTED);
    times(&world)
}

/// How often both boxes have taken something.
fn times(world: &World) -> u64 {
    world.taken.iter().flatten().map(|taken| taken.times).sum()
}

/// Runs until so many bytes have arrived.
fn carry(world: &mut World, pair: Pair, way: Way, bytes: usize) {
    let arrived = world.run_until(Duration::from_secs(600), |world| {
        let to = match way {
            Way::Up => world.server_connection(pair),
            Way::Down => world.client_connection(pair),
        };
        to.received.len() >= bytes
    });
    assert!(arrived);
}

/// Once it has carried some megabytes, a connection over a clean line allocates nothing in either box, whichever way its bytes go and
/// whatever they are: each buffer is lent, each record is as large as it gets.
#[test]
fn a_connection_under_way_allocates_nothing() {
    for payload in [Payload::Text, Payload::Noise, Payload::Repeats] {
        for way in [Way::Up, Way::Down] {
            let count = allocations(payload, way, LineConfig::CLEAN);
            assert_eq!(count, 0, "{payload:?} {way:?}");
        }
    }
}

/// On a line that loses 2% of all packets it is not quite nothing. What is left does not come with bytes: a buffer or a record of ranges
/// is made larger when losses are worse than any before, and a packet of more than two frames (pieces that are sent again, and others)
/// keeps the rest in a list of its own. It was 0 to 9 times for these seeds.
#[test]
fn a_connection_over_a_bad_line_allocates_next_to_nothing() {
    let line = LineConfig {
        loss_ppm: 20_000,
        ..LineConfig::CLEAN
    };
    for payload in [Payload::Text, Payload::Noise, Payload::Repeats] {
        for way in [Way::Up, Way::Down] {
            let count = allocations(payload, way, line);
            assert!(count <= 12, "{payload:?} {way:?}: {count}");
        }
    }
}

/// A tunnel with nothing to carry lives for nothing.
#[test]
fn a_tunnel_at_rest_allocates_nothing() {
    let mut world = World::new(5, LineConfig::CLEAN);
    world.wait_up();
    world.run_for(Duration::from_secs(60));
    world.taken = Some(Default::default());
    world.run_for(Duration::from_secs(60));
    assert_eq!(times(&world), 0);
}

/// Many more connections than there is memory for, with boxes of so much memory for flows, and what both have taken at most.
fn crowd(payload: Payload, line: LineConfig, flow_memory: [usize; 2]) -> [usize; 2] {
    let mut world = World::new(5, line);
    for (site, memory) in [Site::Branch, Site::Core].into_iter().zip(flow_memory) {
        world.flow_memory = memory;
        world.power_on(site);
    }
    world.taken = Some(Default::default());
    world.wait_up();
    let bytes = payload.bytes(1_000_000);
    for number in 0..80 {
        let script = || Script::send(bytes.clone());
        world.connect(1000 + number, script(), script());
        world.run_for(Duration::from_millis(10));
    }
    world.run_for(Duration::from_secs(2));
    world.taken.unwrap().map(|taken| taken.most as usize)
}

/// The same where one connection ends after the other, those with the largest buffers first, and others take their places, until all have the smallest.
fn drift(flow_memory: usize, line: LineConfig) -> [usize; 2] {
    let mut world = World::new(6, line);
    world.flow_memory = flow_memory;
    world.power_on(Site::Branch);
    world.power_on(Site::Core);
    world.taken = Some(Default::default());
    world.wait_up();
    let bytes = Payload::Noise.bytes(3_000_000);
    let connect = |world: &mut World, count: usize| {
        for _ in 0..count {
            let script = || Script::send(bytes.clone());
            let port = 1000 + world.hosts[0].connections.len() as u16;
            world.connect(port, script(), script());
            world.run_for(Duration::from_millis(10));
        }
    };
    connect(&mut world, 45);
    for oldest in 0..40 {
        world.hosts[0].connections[oldest].script.reset_after = Some(0);
        connect(&mut world, 8);
    }
    world.run_for(Duration::from_secs(2));
    let open = world.statistics(Site::Branch).flows.open;
    assert!(open > flow_memory / (72 << 10), "only {open} are open");
    world.taken.unwrap().map(|taken| taken.most as usize)
}

/// Over whatever line, though one of the boxes has much more memory than the other, and whatever has been before.
#[test]
fn connections_take_no_more_than_is_set_aside_for_them() {
    const SMALL: usize = 6 << 20;
    const LARGE: usize = 64 << 20;
    let fast = LineConfig {
        rate: 1_000_000_000,
        delay: Duration::from_millis(30),
        queue: 4 << 20,
        ..LineConfig::CLEAN
    };
    let bad = LineConfig {
        rate: 50_000_000,
        loss_ppm: 20_000,
        ..fast
    };
    for (memory, taken) in [
        ([SMALL, LARGE], crowd(Payload::Noise, fast, [SMALL, LARGE])),
        ([LARGE, SMALL], crowd(Payload::Noise, fast, [LARGE, SMALL])),
        ([SMALL, LARGE], crowd(Payload::Text, bad, [SMALL, LARGE])),
        ([SMALL, SMALL], drift(SMALL, bad)),
    ] {
        for (taken, memory) in taken.into_iter().zip(memory) {
            assert!(
                taken <= working_memory(memory),
                "{taken} bytes with {memory} for flows"
            );
        }
    }
}
