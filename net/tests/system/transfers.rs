//! Transfers in all directions, over good and bad lines.

use std::time::Duration;

use crate::host::{Close, Outcome, Script};
use crate::line::{LineConfig, Random};
use crate::world::{Pair, Site, World};

pub const BOTH_FINISHED: (Option<Outcome>, Option<Outcome>) =
    (Some(Outcome::Finished), Some(Outcome::Finished));

/// Text that compresses as text does: words of a small vocabulary.
pub fn text(random: &mut Random, len: usize) -> Vec<u8> {
    let words: Vec<Vec<u8>> = (0..400)
        .map(|_| {
            (0..2 + random.below(9))
                .map(|_| b'a' + random.below(26) as u8)
                .collect()
        })
        .collect();
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        let pick = random.below(400).min(random.below(400));
        text.extend_from_slice(&words[pick as usize]);
        text.push(if random.chance(100_000) { b'\n' } else { b' ' });
    }
    text.truncate(len);
    text
}

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
    assert_eq!(world.statistics(Site::Branch).syns.optimised, 1);
    world.run_for(Duration::from_secs(2));
    for site in [Site::Branch, Site::Core] {
        let flows = world.statistics(site).flows;
        assert_eq!(
            (flows.open, flows.memory, flows.finished),
            (0, 0, 1),
            "{site:?}"
        );
    }
}

#[test]
fn each_side_can_finish_first_and_go_on_receiving() {
    for client_first in [true, false] {
        let mut random = Random::new(2);
        let mut world = World::new(2, LineConfig::CLEAN);
        world.wait_up();
        let (question, answer) = (random.bytes(20_000), random.bytes(400_000));
        let mut asks = Script::send(question.clone()).close(Close::AfterSending);
        let mut answers = Script::send(answer.clone()).close(Close::AfterPeer);
        answers.send_after = question.len();
        let pair = if client_first {
            world.connect(80, asks, answers)
        } else {
            // The server speaks and finishes; the client answers and finishes then.
            asks.piece = 1000;
            world.connect(80, answers, asks)
        };
        assert_eq!(world.finish(pair, Duration::from_secs(30)), BOTH_FINISHED);
        let (client, server) = (
            world.client_connection(pair).received.clone(),
            world.server_connection(pair).received.clone(),
        );
        let (asked, answered) = if client_first {
            (server, client)
        } else {
            (client, server)
        };
        assert!(asked == question && answered == answer);
    }
}

#[test]
fn a_client_that_sends_a_byte_at_a_time_is_not_kept_waiting() {
    let mut world = World::new(3, LineConfig::CLEAN);
    world.wait_up();
    let bytes: Vec<u8> = (0..=255).cycle().take(1500).collect();
    let mut slow = Script::send(bytes.clone());
    slow.piece = 1;
    let pair = world.connect(80, slow, Script::send(vec![]).close(Close::AfterSending));
    world.run_until(Duration::from_secs(5), |world| {
        world.client_connection(pair).sent() >= 10
    });
    let sent = world.client_connection(pair).sent();
    world.run_for(Duration::from_millis(60));
    let arrived = world.server_connection(pair).received.len();
    assert!(arrived >= sent, "{sent} sent, only {arrived} there");
    assert_eq!(world.finish(pair, Duration::from_secs(60)), BOTH_FINISHED);
    assert!(world.server_connection(pair).received == bytes);
}

#[test]
fn a_reader_that_stops_stops_the_sender_and_no_one_else() {
    let mut random = Random::new(4);
    let mut world = World::new(4, LineConfig::CLEAN);
    world.wait_up();
    let file = random.bytes(20_000_000);
    let mut stops = Script::send(vec![]);
    stops.read = 0;
    let stuck = world.connect(80, stops, Script::send(file.clone()));
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.client_connection(stuck).received.len(), 0);
    let sent = world.server_connection(stuck).sent();
    assert!(sent < 14_000_000, "{sent} bytes are held between the hosts");
    let small = random.bytes(1_000_000);
    let pair = world.connect(
        81,
        Script::send(vec![]),
        Script::send(small.clone()).close(Close::AfterSending),
    );
    assert_eq!(world.finish(pair, Duration::from_secs(10)), BOTH_FINISHED);
    assert!(world.client_connection(pair).received == small);
}

/// Connections of all kinds at once, over a line of any kind.
fn mixed(seed: u64) {
    let mut random = Random::new(seed);
    let line = LineConfig::random(&mut random);
    let mut world = World::new(random.number(), line);
    world.wait_up();
    let shared = text(&mut random, 120_000);
    let mut pairs: Vec<(Pair, Vec<u8>, Vec<u8>)> = vec![];
    let mut pages = vec![];
    for _ in 0..4 {
        pages.push(random.bytes(40_000));
    }
    for number in 0..6 + random.below(10) {
        let mut part = |most: u64| -> Vec<u8> {
            let len = random.below(most) as usize;
            match random.below(4) {
                0 => random.bytes(len),
                1 => pages[random.below(4) as usize][..len.min(40_000)].to_vec(),
                2 => {
                    let from = random.below(60_000) as usize;
                    shared[from..(from + len).min(shared.len())].to_vec()
                }
                _ => vec![number as u8; len],
            }
        };
        let (up, down) = (part(60_000), part(110_000));
        let closes = [Close::AfterSending, Close::AfterPeer];
        // Somebody has to finish first.
        let (client_close, server_close) = match random.below(3) {
            0 => (closes[0], closes[0]),
            1 => (closes[0], closes[1]),
            _ => (closes[1], closes[0]),
        };
        let mut client = Script::send(up.clone()).close(client_close);
        let mut server = Script::send(down.clone()).close(server_close);
        client.piece = [1 << 20, 1 + random.below(5000) as usize][random.below(2) as usize];
        server.piece = [1 << 20, 1 + random.below(5000) as usize][random.below(2) as usize];
        server.read = [1 << 20, 100 + random.below(5000) as usize][random.below(2) as usize];
        client.read = [1 << 20, 100 + random.below(5000) as usize][random.below(2) as usize];
        let pair = world.connect(1000 + number as u16, client, server);
        pairs.push((pair, up, down));
        world.run_for(Duration::from_millis(random.below(200)));
    }
    let done = world.run_until(Duration::from_secs(240), |world| {
        pairs.iter().all(|(pair, ..)| {
            let (client, server) = world.outcomes(*pair);
            client.is_some() && server.is_some()
        })
    });
    for (pair, up, down) in &pairs {
        let (client, server) = (
            world.client_connection(*pair),
            world.server_connection(*pair),
        );
        assert_eq!(
            world.outcomes(*pair),
            BOTH_FINISHED,
            "SEED={seed} {line:?} {pair:?}: {}/{} up, {}/{} down, all done: {done}, {:?}, {:?}, {:?}",
            server.received.len(),
            up.len(),
            client.received.len(),
            down.len(),
            world.statistics(Site::Branch).flows,
            world.statistics(Site::Core).flows,
            world.statistics(Site::Branch).drops,
        );
        assert!(
            server.received == *up,
            "SEED={seed} {pair:?}: wrong bytes up"
        );
        assert!(
            client.received == *down,
            "SEED={seed} {pair:?}: wrong bytes down"
        );
    }
    world.run_for(Duration::from_secs(5));
    for site in [Site::Branch, Site::Core] {
        let flows = world.statistics(site).flows;
        assert_eq!((flows.open, flows.memory), (0, 0), "SEED={seed} {site:?}");
    }
}

#[test]
fn many_connections_over_lines_of_all_kinds() {
    match std::env::var("SEED") {
        Ok(seed) => mixed(seed.parse().expect("SEED is a number")),
        Err(_) => (0..seeds(150)).for_each(mixed),
    }
}

/// How many seeds: `SEEDS=n` for more.
pub fn seeds(usual: u64) -> u64 {
    std::env::var("SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(usual)
}

#[test]
fn hundreds_of_connections_at_once() {
    let mut random = Random::new(5);
    let mut world = World::new(5, LineConfig::CLEAN);
    world.wait_up();
    let pairs: Vec<(Pair, Vec<u8>)> = (0..300)
        .map(|number| {
            let len = random.below(8_000) as usize;
            let page = random.bytes(len);
            let pair = world.connect(
                1000 + number,
                Script::send(b"GET".to_vec()),
                Script::send(page.clone()).close(Close::AfterSending),
            );
            (pair, page)
        })
        .collect();
    let done = world.run_until(Duration::from_secs(60), |world| {
        pairs
            .iter()
            .all(|(pair, _)| world.outcomes(*pair) == BOTH_FINISHED)
    });
    assert!(done);
    for (pair, page) in &pairs {
        assert!(world.client_connection(*pair).received == *page);
        assert!(world.server_connection(*pair).received == b"GET");
    }
    assert!(world.statistics(Site::Branch).syns.optimised >= 250);
}

#[test]
fn the_same_again_costs_a_hundredth_and_text_half() {
    let mut random = Random::new(6);
    let mut world = World::new(6, LineConfig::DEFAULT);
    world.store = "64M";
    world.power_on(Site::Branch);
    world.power_on(Site::Core);
    world.wait_up();
    world.capture = Some(vec![]);
    let file = text(&mut random, 6_000_000);
    let mut costs = vec![];
    for port in [80, 81] {
        let before = (world.line_bytes(), world.now);
        let pair = world.connect(
            port,
            Script::send(b"GET".to_vec()),
            Script::send(file.clone()).close(Close::AfterSending),
        );
        assert_eq!(world.finish(pair, Duration::from_secs(60)), BOTH_FINISHED);
        assert!(world.client_connection(pair).received == file);
        costs.push((world.line_bytes() - before.0, world.now - before.1));
    }
    println!("cold {:?}, warm {:?} (bytes, µs)", costs[0], costs[1]);
    let len = file.len() as u64;
    assert!(costs[0].0 * 2 <= len, "cold: {} of {len}", costs[0].0);
    assert!(costs[1].0 * 100 <= len, "warm: {} of {len}", costs[1].0);
    // `direct` would need 5 s at the line's rate.
    assert!(costs[1].1 <= 1_000_000, "warm took {} µs", costs[1].1);

    // Nothing of it can be read on the line.
    let capture = world.capture.take().unwrap();
    assert!(capture.len() > 1000);
    for piece in file.chunks(16).step_by(997) {
        let first = piece[0];
        for frame in &capture {
            let leaks = frame
                .windows(piece.len())
                .any(|window| window[0] == first && window == piece);
            assert!(!leaks, "cleartext on the line");
        }
    }
}

#[test]
fn compressed_files_fill_the_default_line_and_cost_little_more_than_themselves() {
    let mut random = Random::new(7);
    let mut world = World::new(7, LineConfig::DEFAULT);
    world.wait_up();
    let file = random.bytes(8_000_000);
    let before = (world.line_bytes(), world.now);
    let pair = world.connect(
        80,
        Script::send(b"GET".to_vec()),
        Script::send(file.clone()).close(Close::AfterSending),
    );
    assert_eq!(world.finish(pair, Duration::from_secs(60)), BOTH_FINISHED);
    assert!(world.client_connection(pair).received == file);
    let (bytes, micros) = (world.line_bytes() - before.0, world.now - before.1);
    println!(
        "{bytes} bytes, {micros} µs: {:?}",
        world.statistics(Site::Core).tunnel
    );
    // Plain TCP: 40 bytes of headers and an ACK of 40 each two segments, for each 1,460 bytes.
    let direct = file.len() as u64 * (1500 + 20) / 1460;
    assert!(
        bytes * 100 <= direct * 103,
        "{bytes} bytes; direct {direct}"
    );
    // 6.4 s is what the line needs for the file alone.
    assert!(micros <= 8_000_000, "{micros} µs");
}
