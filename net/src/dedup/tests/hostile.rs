//! Bytes that no honest peer sends: never a panic, never a wrong byte, never more memory than the bounds say.

use alloc::vec::Vec;
use proptest::prelude::*;

use super::simulation::{self, Rng, World};
use crate::dedup::codec::Coder;
use crate::dedup::wire::{Contiguity, Header, Kind, Message, put_number};
use crate::dedup::*;

/// A world after its greetings, in which `bytes` are known and one more flow is under way.
fn under_way(seed: u64) -> (Rng, World) {
    let (mut rng, mut world) = (Rng::new(seed), World::new(4 << 20, 4 << 20, seed));
    let bytes = simulation::text(&mut rng, 60_000);
    world.transfer(&mut rng, bytes.clone());
    let next = simulation::edited(&mut rng, bytes, 8);
    world.start(next);
    let mut sent = 0;
    while sent < 60_000 {
        world.encode(0, 20_000, Flush::Yes);
        sent += 20_000;
    }
    (rng, world)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_corrupted_flow_fails_or_is_fetched_again(seed: u64, flips in 1usize..4) {
        let (mut rng, mut world) = under_way(seed);
        for _ in 0..flips {
            let at = rng.below(world.flows[0].wire.len());
            world.flows[0].wire[at] ^= 1 << rng.below(8);
        }
        // `deliver` checks every byte that comes out.
        for _ in 0..50 {
            if world.deliver(0, usize::MAX).is_err() {
                break;
            }
            world.receiver_control();
            world.encode(0, 1 << 20, Flush::Yes);
        }
    }

    #[test]
    fn garbage_as_blocks(bytes in prop::collection::vec(any::<u8>(), 0..2000), first in 0u8..12) {
        let (_, mut world) = under_way(1);
        let mut decoder = Decoder::new(&world.receiver);
        let bytes = [&[first][..], &bytes].concat();
        let _ = decoder.push(&mut world.receiver, &bytes);
        prop_assert!(decoder.pop().is_empty(), "nothing can have had its digest");
        decoder.close(&mut world.receiver);
    }

    #[test]
    fn garbage_as_control(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 1u8..6) {
        let (mut rng, mut world) = under_way(2);
        let bytes = [&[bytes.len() as u8 / 2 + 1, kind][..], &bytes].concat();
        let _ = world.sender.on_control(&bytes);
        let _ = world.receiver.on_control(&bytes);
        let mut out = Vec::new();
        world.sender.take_control(&mut out, rng.below(100_000));
        world.receiver.take_control(&mut out, Urgency::Now);
    }

    #[test]
    fn a_receiver_that_lies_gets_what_it_asks_for_at_most(seed: u64, lies in 1usize..20) {
        let (mut rng, mut world) = under_way(seed);
        world.start(alloc::vec![7; 100]);
        for _ in 0..lies {
            let flow = rng.below(5) as u32;
            let lie = match rng.below(4) {
                0 => Message::Confirm { flow, blocks: rng.below(3) as u32 },
                1 => Message::ReceiverHello { log: [3; 16], capacity: rng.next(), ranges: Vec::new() },
                _ => {
                    let start = rng.next() >> rng.below(64);
                    let lost = alloc::vec![start..start.saturating_add(rng.next() >> rng.below(64))];
                    Message::Refetch { flow, block: rng.below(6) as u32, lost }
                }
            };
            let mut bytes = Vec::new();
            lie.emit(&mut bytes);
            if world.sender.on_control(&bytes).is_err() {
                // The engine takes the tunnel down.
                world.reconnect();
                let text = simulation::text(&mut rng, 60_000);
                world.start(text);
            }
            world.encode(0, 30_000, Flush::Yes);
            let _ = world.deliver(0, usize::MAX);
            let mut out = Vec::new();
            world.sender.take_control(&mut out, usize::MAX);
            prop_assert!(out.len() < 2 << 20);
        }
    }

    #[test]
    fn a_peer_that_claims_to_have_everything_is_still_served(seed: u64) {
        let (mut rng, mut world) = (Rng::new(seed), World::new(4 << 20, 4 << 20, seed));
        let bytes = simulation::text(&mut rng, 100_000);
        world.transfer(&mut rng, bytes.clone());
        world.reconnect();
        world.receiver.lose(0..1 << 20);
        // The greeting is replaced by one that lies.
        let mut out = Vec::new();
        world.sender.take_control(&mut out, usize::MAX);
        world.receiver.on_control(&out).expect("an honest sender");
        out.clear();
        world.receiver.take_control(&mut out, Urgency::Now);
        let Ok(Some(Message::ReceiverHello { log, .. })) = greeting(&out) else { panic!("a greeting") };
        out.clear();
        Message::ReceiverHello { log, capacity: u64::MAX, ranges: alloc::vec![0..u64::MAX] }.emit(&mut out);
        world.sender.on_control(&out).expect("cannot be told from the truth");
        world.transfer(&mut rng, bytes);
        prop_assert!(world.receiver.statistics().refetches > 0);
    }
}

fn greeting(bytes: &[u8]) -> Result<Option<Message>, crate::dedup::wire::Malformed> {
    let mut inbox = crate::dedup::wire::Inbox::default();
    inbox.push(bytes);
    inbox.next()
}

#[test]
fn headers_that_claim_too_much_are_refused() {
    let (_, mut world) = under_way(3);
    let refused = |world: &mut World, wire: &[u8]| {
        let mut decoder = Decoder::new(&world.receiver);
        assert_eq!(
            decoder.push(&mut world.receiver, wire),
            Err(DecodeError::Malformed),
            "{wire:?}"
        );
        assert_eq!(decoder.room(), wire::MAX_WIRE_BLOCK, "nothing is kept");
        // And it stays so.
        assert_eq!(
            decoder.push(&mut world.receiver, &[]),
            Err(DecodeError::Malformed)
        );
        decoder.close(&mut world.receiver);
    };
    let last = Contiguity::default();
    for raw in [0, MAX_BLOCK + 1, 1 << 40] {
        let mut wire = Vec::new();
        Header {
            flow: Some(9),
            kind: Kind::Raw { position: 0 },
            raw,
        }
        .emit(&last, &mut wire);
        refused(&mut world, &wire);
    }
    for kind in [
        Kind::Coded {
            position: 0,
            body: 100,
        },
        Kind::Coded {
            position: 0,
            body: 1 << 40,
        },
        Kind::Copy {
            source: u64::MAX - 50,
        },
        Kind::Raw { position: u64::MAX },
    ] {
        let mut wire = Vec::new();
        Header {
            flow: Some(9),
            kind,
            raw: 100,
        }
        .emit(&last, &mut wire);
        refused(&mut world, &wire);
    }
    // A first block without a flow, and a second with one.
    let mut wire = Vec::new();
    Header {
        flow: None,
        kind: Kind::Copy { source: 5 },
        raw: 10,
    }
    .emit(&last, &mut wire);
    wire.extend([0; 8]);
    refused(&mut world, &wire);
    let mut decoder = Decoder::new(&world.receiver);
    let flow: Vec<u8> = world.flows[0].wire.iter().copied().collect();
    assert!(flow[0] & 4 != 0, "the first block names its flow");
    assert_eq!(decoder.push(&mut world.receiver, &flow), Ok(flow.len()));
    let all = decoder.pop().len();
    decoder.consume(all);
    assert_eq!(
        decoder.push(&mut world.receiver, &flow),
        Err(DecodeError::Malformed)
    );
    decoder.close(&mut world.receiver);
}

#[test]
fn few_bytes_that_stand_for_many_come_out_a_piece_at_a_time() {
    let (mut rng, mut world) = (Rng::new(9), World::new(8 << 20, 8 << 20, 9));
    let bytes = simulation::noise(&mut rng, 3 << 20);
    world.transfer(&mut rng, bytes.clone());
    world.start(bytes);
    world.encode(0, usize::MAX >> 1, Flush::Yes);
    let flow = &mut world.flows[0];
    let wire: Vec<u8> = flow.wire.drain(..).collect();
    let mut got = 0;
    assert_eq!(
        flow.decoder.push(&mut world.receiver, &wire),
        Ok(wire.len())
    );
    while !flow.decoder.pop().is_empty() {
        let ready = flow.decoder.pop().len();
        assert!(ready <= 2 * MAX_BLOCK, "{ready} bytes at once");
        assert!(flow.decoder.room() == 0 || ready < MAX_BLOCK);
        flow.decoder.consume(ready);
        got += ready;
        flow.decoder
            .push(&mut world.receiver, &[])
            .expect("an honest sender");
    }
    assert_eq!(got, flow.sent);
}

#[test]
fn what_is_confirmed_but_was_never_sent_ends_the_session() {
    let (_, mut world) = under_way(4);
    let lies = [
        Message::Confirm {
            flow: 99,
            blocks: 1,
        },
        Message::Confirm {
            flow: 1,
            blocks: 1000,
        },
        Message::Refetch {
            flow: 1,
            block: 1000,
            lost: Vec::new(),
        },
        Message::Refetch {
            flow: 99,
            block: 0,
            lost: Vec::new(),
        },
    ];
    for lie in lies {
        let mut bytes = Vec::new();
        lie.emit(&mut bytes);
        assert_eq!(
            world.sender.on_control(&bytes),
            Err(ControlError::NeverSent),
            "{lie:?}"
        );
    }
    let mut bytes = Vec::new();
    Message::Answer {
        flow: 1,
        block: 0,
        bytes: alloc::vec![1, 2, 3],
    }
    .emit(&mut bytes);
    assert_eq!(
        world.sender.on_control(&bytes),
        Err(ControlError::OutOfPlace)
    );
    assert_eq!(world.receiver.on_control(&bytes), Ok(()));
    assert_eq!(world.receiver.statistics().stray_answers, 1);
    assert_eq!(
        world.receiver.on_control(&[0]),
        Err(ControlError::Malformed)
    );
    // Four gigabytes are announced.
    assert_eq!(
        world.receiver.on_control(&[0xff, 0xff, 0xff, 0xff, 0x0f]),
        Err(ControlError::Malformed)
    );
}

#[test]
fn a_wrong_answer_ends_its_flow_only() {
    let (mut rng, mut world) = (Rng::new(10), World::new(4 << 20, 4 << 20, 10));
    let bytes = simulation::noise(&mut rng, 50_000);
    world.transfer(&mut rng, bytes.clone());
    world.receiver.lose(0..1000);
    world.start(bytes.clone());
    world.encode(0, 1 << 20, Flush::Yes);
    world.deliver(0, usize::MAX).expect("waits");
    assert!(world.flows[0].decoder.is_waiting());
    let mut lie = Vec::new();
    Message::Answer {
        flow: 1,
        block: 0,
        bytes: alloc::vec![9; 50_000],
    }
    .emit(&mut lie);
    world.receiver.on_control(&lie).expect("well-formed");
    assert_eq!(world.deliver(0, 0), Err(DecodeError::Unverified));
    assert_eq!(world.flows[0].got, 0);
    assert_eq!(world.receiver.statistics().rejected, 1);
}

#[test]
fn a_coded_answer_that_is_none_ends_the_session() {
    let mut zeros = Vec::new();
    let text = [7; 5000];
    Message::CodedAnswer {
        flow: 1,
        block: 0,
        raw: text.len(),
        body: Coder::new().encode_alone(&text).expect("shrinks"),
    }
    .emit(&mut zeros);
    let coded = |raw, body: &[u8]| {
        let (flow, block, body) = (1, 0, body.to_vec());
        let (mut message, mut out) = (alloc::vec![6, flow, block], Vec::new());
        put_number(&mut message, raw);
        message.extend_from_slice(&body);
        put_number(&mut out, message.len() as u64);
        out.extend_from_slice(&message);
        out
    };
    let good = Coder::new().encode_alone(&text).expect("shrinks");
    let lies = [
        // Garbage; another length; more than a block; nothing; one that did not shrink.
        coded(5000, &[0xff; 40]),
        coded(4999, &good),
        coded(1 << 40, &good),
        coded(MAX_BLOCK as u64 + 1, &good),
        coded(0, &[]),
        coded(good.len() as u64, &good),
    ];
    for lie in lies {
        let (mut rng, mut world) = (Rng::new(11), World::new(4 << 20, 4 << 20, 11));
        world.transfer(&mut rng, text.to_vec());
        world.receiver.lose(0..1000);
        world.start(text.to_vec());
        world.encode(0, 1 << 20, Flush::Yes);
        world.deliver(0, usize::MAX).expect("waits");
        assert!(world.flows[0].decoder.is_waiting());
        assert_eq!(
            world.receiver.on_control(&lie),
            Err(ControlError::Malformed),
            "{lie:?}"
        );
        assert_eq!(world.flows[0].got, 0);
    }
    // And one that is as it should be.
    let (mut rng, mut world) = (Rng::new(11), World::new(4 << 20, 4 << 20, 11));
    world.transfer(&mut rng, text.to_vec());
    world.receiver.lose(0..1000);
    world.start(text.to_vec());
    world.encode(0, 1 << 20, Flush::Yes);
    world.deliver(0, usize::MAX).expect("waits");
    world.receiver.on_control(&zeros).expect("well-formed");
    world.deliver(0, 0).expect("right");
    assert_eq!(world.flows[0].got, text.len());
}

#[test]
fn more_stale_requests_than_are_answered_are_counted() {
    let (mut rng, mut world) = (Rng::new(12), World::new(4 << 20, 4 << 20, 12));
    world.transfer(&mut rng, alloc::vec![1; 100]);
    let mut bytes = Vec::new();
    for block in 0..1100 {
        let lost = Vec::new();
        Message::Refetch {
            flow: 0,
            block,
            lost,
        }
        .emit(&mut bytes);
    }
    world.sender.on_control(&bytes).expect("only late");
    let statistics = world.sender.statistics();
    assert_eq!(
        (statistics.stale_messages, statistics.refetches_dropped),
        (1100, 76)
    );
}

#[test]
fn decoders_of_an_earlier_session_are_void() {
    let (_, mut world) = under_way(5);
    let wire: Vec<u8> = world.flows[0].wire.iter().copied().collect();
    world.receiver.reset_peer();
    assert_eq!(
        world.flows[0].decoder.push(&mut world.receiver, &wire),
        Err(DecodeError::OldSession)
    );
    let mut out = Vec::new();
    world.sender.reset_peer();
    assert_eq!(
        world.flows[0]
            .encoder
            .encode(&mut world.sender, b"abc", Flush::Yes, &mut out),
        0
    );
    assert_eq!(world.flows[0].encoder.writable(&world.sender), 0);
}

/// Who asks for the same blocks again and again is answered once for each time that an answer was taken.
#[test]
fn asking_twice_before_an_answer_is_asking_once() {
    let (_, mut world) = under_way(10);
    let mut control = Vec::new();
    for _ in 0..1000 {
        for block in 0..2 {
            let lost = Vec::new();
            Message::Refetch {
                flow: 1,
                block,
                lost,
            }
            .emit(&mut control);
        }
    }
    world.sender.on_control(&control).unwrap();
    let mut answers = Vec::new();
    world.sender.take_control(&mut answers, usize::MAX);
    assert!(
        answers.len() < 2 * (MAX_BLOCK + 16),
        "{} bytes",
        answers.len()
    );
    world.sender.take_control(&mut answers, usize::MAX);
    let before = answers.len();
    world.sender.on_control(&control).unwrap();
    world.sender.take_control(&mut answers, usize::MAX);
    assert!(answers.len() > before, "but it may ask again");
}
