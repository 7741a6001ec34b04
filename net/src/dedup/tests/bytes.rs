//! How many bytes the blocks take: ratios, never time.

use alloc::vec::Vec;

use super::simulation::{self, Rng, World};

/// This crate's own dedup sources: real text.
fn sources() -> Vec<u8> {
    [
        include_str!("../encoder.rs"),
        include_str!("../sender.rs"),
        include_str!("../receiver.rs"),
        include_str!("../decoder.rs"),
        include_str!("../wire.rs"),
        include_str!("../store.rs"),
        include_str!("../anchor.rs"),
        include_str!("../codec/huffman.rs"),
        include_str!("../codec/parse.rs"),
        include_str!("../codec/sequences.rs"),
    ]
    .concat()
    .into_bytes()
}

fn world() -> (Rng, World) {
    (Rng::new(1), World::new(32 << 20, 32 << 20, 1))
}

/// Asserts that `wire` is at most `parts` in `of` of `raw`.
fn at_most(wire: u64, raw: usize, parts: u64, of: u64) {
    assert!(
        wire * of <= raw as u64 * parts,
        "{wire} bytes for {raw}: more than {parts} in {of}"
    );
}

#[test]
fn source_text_takes_a_third_cold() {
    let (mut rng, mut world) = world();
    let text = sources();
    let wire = world.transfer(&mut rng, text.clone());
    at_most(wire, text.len(), 30, 100);
}

#[test]
fn a_repeat_takes_next_to_nothing() {
    let (mut rng, mut world) = world();
    for bytes in [
        simulation::text(&mut rng, 4 << 20),
        simulation::noise(&mut rng, 4 << 20),
    ] {
        world.transfer(&mut rng, bytes.clone());
        let stored = world.sender.statistics().stored_bytes;
        let wire = world.transfer(&mut rng, bytes.clone());
        at_most(wire, bytes.len(), 2, 10_000);
        assert!(
            world.sender.statistics().stored_bytes < stored + 4096,
            "a repeat is not stored again"
        );
        let shifted = [&b"!"[..], &bytes].concat();
        let wire = world.transfer(&mut rng, shifted);
        at_most(wire, bytes.len(), 2, 10_000);
    }
}

#[test]
fn the_next_version_takes_its_edits_and_then_nothing() {
    let (mut rng, mut world) = world();
    let one = simulation::text(&mut rng, 4 << 20);
    world.transfer(&mut rng, one.clone());
    // An edit for every 8 KiB, of which each brings up to 40 bytes of noise.
    let two = simulation::edited(&mut rng, one.clone(), 512);
    let wire = world.transfer(&mut rng, two.clone());
    at_most(wire, 512 * 64, 1, 1);
    let wire = world.transfer(&mut rng, two.clone());
    at_most(wire, two.len(), 5, 10_000);
    let wire = world.transfer(&mut rng, one.clone());
    at_most(wire, one.len(), 5, 10_000);
    // A few edits far apart leave most of the version before in place: its copies are not stored again, and the third time
    // finds the way through both.
    let stored = world.sender.statistics().stored_bytes;
    let three = simulation::edited(&mut rng, one, 10);
    world.transfer(&mut rng, three.clone());
    assert!(world.sender.statistics().stored_bytes - stored < 300_000);
    let wire = world.transfer(&mut rng, three.clone());
    at_most(wire, three.len(), 5, 10_000);
}

#[test]
fn rewritten_pages_take_their_own_size() {
    let (mut rng, mut world) = world();
    let one = simulation::noise(&mut rng, 8 << 20);
    world.transfer(&mut rng, one.clone());
    let mut two = one;
    for _ in 0..20 {
        let page = simulation::noise(&mut rng, 4096);
        let at = rng.below(two.len() / 4096) * 4096;
        two[at..at + 4096].copy_from_slice(&page);
    }
    let wire = world.transfer(&mut rng, two.clone());
    at_most(wire, 20 * 4096, 103, 100);
}

#[test]
fn noise_grows_by_less_than_a_thousandth() {
    let (mut rng, mut world) = world();
    let noise = simulation::noise(&mut rng, 4 << 20);
    let wire = world.transfer(&mut rng, noise.clone());
    at_most(wire, noise.len(), 1001, 1000);
}

#[test]
fn small_files_are_found_again_each_on_its_own_flow() {
    let (mut rng, mut world) = world();
    let files: Vec<Vec<u8>> = (0..200)
        .map(|_| {
            let len = 1000 + rng.below(49_000);
            simulation::text(&mut rng, len)
        })
        .collect();
    for file in &files {
        world.transfer(&mut rng, file.clone());
    }
    let (mut wire, mut raw) = (0, 0);
    for file in &files {
        wire += world.transfer(&mut rng, file.clone());
        raw += file.len();
    }
    at_most(wire, raw, 3, 1000);
}

#[test]
fn what_is_in_use_outlives_what_is_old() {
    let (mut rng, mut world) = (Rng::new(3), World::new(8 << 20, 8 << 20, 3));
    let favourite = simulation::noise(&mut rng, 1 << 20);
    world.transfer(&mut rng, favourite.clone());
    // Several times the log's size goes by, and the favourite is asked for now and then.
    for _ in 0..24 {
        let other = simulation::noise(&mut rng, 1 << 20);
        world.transfer(&mut rng, other);
        let wire = world.transfer(&mut rng, favourite.clone());
        at_most(wire, favourite.len(), 1, 100);
    }
}

#[test]
fn a_flush_sends_everything_that_was_taken_in() {
    use crate::dedup::Flush;
    let (mut rng, mut world) = world();
    // The greeting arrives first.
    world.finish(&mut rng);
    let text = simulation::text(&mut rng, 50_000);
    world.start(text.clone());
    let mut sent = 0;
    while sent < 40_000 {
        let len = 1 + rng.below(3000);
        sent += len;
        world.encode(0, len, Flush::Yes);
        world.deliver(0, usize::MAX).expect("an honest sender");
        assert_eq!(world.flows[0].got, sent);
    }
}
