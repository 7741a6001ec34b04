//! Blocks that are no larger than either end wants.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::simulation::{Rng, World, noise, text};
use crate::dedup::wire::{Contiguity, Header, Reader};
use crate::dedup::{Encoder, Flush, LEAST_BLOCK, MAX_BLOCK};

/// Raw bytes of each block that a new flow makes of `input`.
fn blocks(world: &mut World, input: &[u8]) -> Vec<usize> {
    let mut encoder = Encoder::new(&mut world.sender);
    let mut out = Vec::new();
    let taken = encoder.encode(&mut world.sender, input, Flush::Yes, &mut out);
    assert_eq!(taken, input.len());
    encoder.close(&mut world.sender);
    let (mut reader, mut last, mut sizes) = (Reader(&out), Contiguity::default(), Vec::new());
    while !reader.0.is_empty() {
        let header = Header::parse(&mut reader, &last).unwrap().unwrap();
        last.after(&header);
        reader.take(header.body()).unwrap();
        reader.take(crate::dedup::digest::DIGEST_BYTES).unwrap();
        sizes.push(header.raw);
    }
    assert_eq!(sizes.iter().sum::<usize>(), input.len());
    sizes
}

/// Fails unless the largest block is in `sizes`.
fn largest(world: &mut World, rng: &mut Rng, sizes: RangeInclusive<usize>) {
    for input in [noise(rng, 600_000), text(rng, 600_000)] {
        let most = blocks(world, &input).into_iter().max().unwrap();
        assert!(sizes.contains(&most), "{most} bytes, not {sizes:?}");
    }
}

fn greet(rng: &mut Rng, world: &mut World) {
    for _ in 0..100 {
        world.control(rng, 1000, super::super::Urgency::Now);
    }
}

#[test]
fn blocks_are_no_larger_than_either_end_wants() {
    const HALF: usize = MAX_BLOCK / 2;
    let (mut rng, mut world) = (Rng::new(3), World::new(16 << 20, 16 << 20, 3));
    // It is told before they have met…
    world.receiver.set_block_limit(HALF);
    greet(&mut rng, &mut world);
    largest(&mut world, &mut rng, HALF..=HALF);
    // …and whenever it changes.
    world.receiver.set_block_limit(LEAST_BLOCK);
    greet(&mut rng, &mut world);
    largest(&mut world, &mut rng, LEAST_BLOCK..=LEAST_BLOCK);
    world.sender.set_block_limit(HALF);
    largest(&mut world, &mut rng, LEAST_BLOCK..=LEAST_BLOCK);
    world.receiver.set_block_limit(MAX_BLOCK);
    greet(&mut rng, &mut world);
    largest(&mut world, &mut rng, HALF..=HALF);
    // Nobody can make blocks senselessly small.
    world.sender.set_block_limit(MAX_BLOCK);
    world.receiver.set_block_limit(1);
    greet(&mut rng, &mut world);
    largest(&mut world, &mut rng, LEAST_BLOCK..=LEAST_BLOCK);
    // Another session, another peer, which has asked for nothing yet.
    world.reconnect();
    largest(&mut world, &mut rng, MAX_BLOCK..=MAX_BLOCK);
    greet(&mut rng, &mut world);
    largest(&mut world, &mut rng, LEAST_BLOCK..=LEAST_BLOCK);
}

#[test]
fn with_small_blocks_a_repeat_is_as_little_stored_again() {
    let (mut rng, mut world) = (Rng::new(4), World::new(32 << 20, 32 << 20, 4));
    world.receiver.set_block_limit(LEAST_BLOCK);
    greet(&mut rng, &mut world);
    let bytes = noise(&mut rng, 4 << 20);
    world.transfer(&mut rng, bytes.clone());
    let stored = world.sender.statistics().stored_bytes;
    let wire = world.transfer(&mut rng, [&b"!"[..], &bytes].concat());
    assert!(wire < 4 << 10, "{wire} bytes of 4 MiB");
    let more = world.sender.statistics().stored_bytes - stored;
    assert!(more < 4096, "{more} bytes are stored again");
}

#[test]
fn a_decoder_waits_when_it_holds_as_much_as_its_end_wants() {
    let (mut rng, mut world) = (Rng::new(5), World::new(16 << 20, 16 << 20, 5));
    greet(&mut rng, &mut world);
    world.receiver.set_block_limit(LEAST_BLOCK);
    world.sender.set_block_limit(LEAST_BLOCK);
    world.start(alloc::vec![7; 600_000]);
    world.encode(0, 600_000, Flush::Yes);
    let flow = &mut world.flows[0];
    let wire: Vec<u8> = flow.wire.drain(..).collect();
    flow.decoder.push(&mut world.receiver, &wire).unwrap();
    let ready = flow.decoder.pop().len();
    assert!(
        (LEAST_BLOCK..2 * LEAST_BLOCK).contains(&ready),
        "{ready} bytes wait"
    );
    assert_eq!(flow.decoder.room(), 0);
}

/// While a block is fetched again, nothing is decoded: what comes meanwhile stays where it is, but for as much as is liked.
#[test]
fn a_decoder_that_waits_for_a_block_takes_no_more_than_its_end_wants() {
    let (mut rng, mut world) = (Rng::new(6), World::new(16 << 20, 16 << 20, 6));
    world.receiver.set_block_limit(LEAST_BLOCK);
    greet(&mut rng, &mut world);
    let old = noise(&mut rng, 100_000);
    world.transfer(&mut rng, old.clone());
    world.receiver.lose(0..100_000);
    let more = noise(&mut rng, 500_000);
    world.start([old, more].concat());
    world.encode(0, 600_000, Flush::Yes);
    let flow = &mut world.flows[0];
    let wire: Vec<u8> = flow.wire.iter().copied().collect();
    let mut taken = 0;
    while flow.decoder.room() > 0 {
        let piece = &wire[taken..][..flow.decoder.room().min(1000)];
        taken += flow.decoder.push(&mut world.receiver, piece).unwrap();
    }
    assert!(flow.decoder.is_waiting());
    assert!(taken < 2 * LEAST_BLOCK, "{taken} bytes");
    flow.wire.drain(..taken);
    // And then it goes on.
    world.finish(&mut rng);
}
