//! Targets for the dictionaries: blocks, both control channels, headers, bodies, and whole flows.

mod world;

use outpost_net::dedup::{Decoder, Flush, MAX_BLOCK, fuzzing};

use world::{Blocks, KEY, Primed, transfer};
pub(crate) use world::{carry, greeting, raw_block};

use crate::Target;
use crate::mutate::{Random, leb128};
use crate::script::Script;

/// Room for what the worlds of these targets hold: logs and stores of 1 MiB, the encoder's tables.
const MEMORY: usize = 24 << 20;

/// Blocks to a decoder whose receiver knows a file. What comes out is what the sender meant, or nothing.
pub const BLOCKS: Target = Target {
    name: "dedup_blocks",
    about: "blocks to a decoder whose receiver knows a file: out comes what the sender meant, or nothing; its receiver stays of use",
    run: blocks,
    honest: || {
        let mut primed = Primed::new();
        let flow = primed.next_flow();
        let mut all = vec![];
        for (name, step) in [("by_the_byte", 0u8), ("in_pieces", 97), ("at_once", 255)] {
            all.push((name, [&[step], flow.wire.as_slice()].concat()));
        }
        // The same blocks from a sender whose digests this receiver cannot confirm.
        let mut wrong = flow.wire.clone();
        if let Some(last) = wrong.last_mut() {
            *last ^= 1;
        }
        all.push(("wrong_digest", [&[255], wrong.as_slice()].concat()));
        all.push((
            "raw",
            [&[255], raw_block(9, 1 << 19, b"hello").as_slice()].concat(),
        ));
        all
    },
    cases: 1000,
    memory: MEMORY,
};

fn blocks(input: &[u8]) {
    let mut primed = Primed::new();
    let flow = primed.next_flow();
    let mut meant = Blocks::of(&flow);
    let mut script = Script(input);
    let step = 1 + usize::from(script.byte()).pow(2);
    let mut decoder = Decoder::new(&primed.receiver);
    let mut honest_peer = true;
    'input: for piece in script.rest().chunks(step) {
        let mut at = 0;
        loop {
            let taken = decoder.push(&mut primed.receiver, &piece[at..]);
            let ready = decoder.pop();
            assert!(ready.len() < 2 * MAX_BLOCK, "{} bytes wait", ready.len());
            meant.came(ready);
            let len = ready.len();
            decoder.consume(len);
            let Ok(taken) = taken else { break 'input };
            at += taken;
            if decoder.is_waiting() && honest_peer {
                honest_peer = primed.carry();
            }
            if taken == 0 && len == 0 {
                break;
            }
        }
    }
    meant.end();
    decoder.close(&mut primed.receiver);
    // The receiver is still of use: a flow of the same peer comes out whole, unless what was said in its name undid it.
    if honest_peer && primed.carry() {
        let text = primed.edited.clone();
        primed.finish(flow, &text);
    }
}

/// Control bytes to a receiver one of whose decoders waits for a block to be fetched again.
pub const CONTROL_TO_RECEIVER: Target = Target {
    name: "dedup_control_to_receiver",
    about: "control bytes to a receiver that waits for a block: only right bytes come out, and what it says can be read",
    run: control_to_receiver,
    honest: || {
        let mut primed = Primed::new();
        let answer = primed.damaged_flow().1;
        vec![
            ("answer", [&[1], answer.as_slice()].concat()),
            ("greeting", [&[0], greeting(7).as_slice()].concat()),
            ("greeting_again", [&[1], greeting(7).as_slice()].concat()),
            ("gone", vec![1, 3, 5, 1, 0]),
        ]
    },
    cases: 1500,
    memory: MEMORY,
};

fn control_to_receiver(input: &[u8]) {
    let mut primed = Primed::new();
    let (mut flow, _) = primed.damaged_flow();
    let mut script = Script(input);
    if script.byte() % 2 == 0 {
        // The tunnel is new: nobody has greeted yet.
        primed.receiver.reset_peer();
        flow.decoder = Decoder::new(&primed.receiver);
    }
    for piece in script.rest().chunks(777) {
        if primed.receiver.on_control(piece).is_err() {
            return;
        }
        let mut out = vec![];
        primed
            .receiver
            .take_control(&mut out, outpost_net::dedup::Urgency::Lazy);
        let (messages, whole) = fuzzing::messages(&out);
        assert!(
            whole && messages == out,
            "a receiver says only what can be read"
        );
    }
    let text = primed.edited.clone();
    flow.push_all(&mut primed, &text);
}

/// Control bytes to a sender that has a flow under way. Its peer still gets right bytes or none.
pub const CONTROL_TO_SENDER: Target = Target {
    name: "dedup_control_to_sender",
    about: "control bytes to a sender with a flow under way: bounded answers, and its peer gets right bytes or none",
    run: control_to_sender,
    honest: || {
        let mut primed = Primed::new();
        let confirmation = primed.confirmation_of_next_flow();
        let asks = primed.damaged_flow_asks();
        vec![
            ("confirm", [&[0], confirmation.as_slice()].concat()),
            ("fetch_again", [&[0], asks.as_slice()].concat()),
            (
                "block_limit",
                [&[0, 4, 7], leb128(1 << 15).as_slice()].concat(),
            ),
            ("greeting", {
                let mut hello = vec![1, 2];
                hello.extend([7; 16]);
                hello.extend(leb128(1 << 20));
                hello.extend([1, 0, 100]);
                hello.insert(1, (hello.len() - 1) as u8);
                hello
            }),
        ]
    },
    cases: 1000,
    memory: MEMORY,
};

fn control_to_sender(input: &[u8]) {
    let mut primed = Primed::new();
    let mut script = Script(input);
    if script.byte() % 2 == 1 {
        primed.sender.reset_peer();
        primed.receiver.reset_peer();
    }
    let mut flow = primed.next_flow();
    for piece in script.rest().chunks(777) {
        if primed.sender.on_control(piece).is_err() {
            return;
        }
        let (mut out, room) = (vec![], 4096);
        primed.sender.take_control(&mut out, room);
        assert!(
            out.len() <= room + MAX_BLOCK + 64,
            "{} bytes for a room of {room}",
            out.len()
        );
        let _ = primed.receiver.on_control(&out);
    }
    let text = primed.edited.clone();
    // More of the flow, with whatever the sender now believes that its peer has.
    flow.encode(&mut primed.sender, &text, Flush::Yes);
    flow.push_all(&mut primed, &text);
    let statistics = primed.sender.statistics();
    assert!(statistics.unconfirmed_bytes <= statistics.raw_bytes);
}

/// Control messages have one form each: written again they are the same bytes.
pub const MESSAGES: Target = Target {
    name: "dedup_messages",
    about: "control messages: written again they are the same bytes",
    run: |input| {
        let (again, goes_on) = fuzzing::messages(input);
        assert!(input.starts_with(&again), "written again: {again:02x?}");
        // A length of five bytes says that gigabytes follow: nobody waits for them.
        let rest = &input[again.len()..];
        let gigabytes = rest
            .first_chunk::<5>()
            .is_some_and(|[a, b, c, d, last]| a & b & c & d & 0x80 != 0 && last & 0x80 == 0);
        assert!(
            !(goes_on && gigabytes),
            "waits for what {:02x?} begins",
            &rest[..5]
        );
    },
    honest: || {
        let mut primed = Primed::new();
        let answer = primed.damaged_flow().1;
        let asks = Primed::new().damaged_flow_asks();
        vec![
            ("sender", [greeting(3), answer].concat()),
            ("receiver", asks),
            ("last_range", {
                let mut hello = [&[2][..], &[7; 16], &leb128(1 << 20), &[1]].concat();
                hello.extend(leb128(u64::MAX - 9));
                hello.push(9);
                [leb128(hello.len() as u64), hello].concat()
            }),
            (
                "gigabytes",
                [&[0xff, 0xff, 0xff, 0xff, 0x0f, 5][..], &[0; 90]].concat(),
            ),
        ]
    },
    cases: 20_000,
    memory: 4 << 20,
};

/// Block headers: written again they read the same, and are no longer than before.
pub const HEADERS: Target = Target {
    name: "dedup_headers",
    about: "block headers: sizes within bounds, and written again they read the same",
    run: headers,
    honest: || {
        let with = |header: &[u8]| [&[0, 16, 0, 32], header].concat();
        vec![
            ("raw", with(&[0x04, 9, 5, 0x80, 0x20])),
            ("coded", with(&[0x09, 0x80, 0x02, 0x80, 0x01])),
            ("copy", with(&[0x0a, 0x80, 0x80, 0x10])),
            (
                "last_position",
                with(&[&[0x00, 100][..], &leb128(u64::MAX - 100)].concat()),
            ),
        ]
    },
    cases: 20_000,
    memory: 4 << 20,
};

fn headers(input: &[u8]) {
    let mut script = Script(input);
    let stored = u64::from(script.short());
    let copied = u64::from(script.short());
    let bytes = script.rest();
    let Some(view) = fuzzing::header(bytes, stored, copied) else {
        return;
    };
    assert!((1..=MAX_BLOCK).contains(&view.raw) && view.body.len() <= view.raw);
    assert!(view.position.checked_add(view.raw as u64).is_some());
    assert!(view.again.len() <= view.body.start);
    let mut again = view.again.clone();
    again.resize(again.len() + view.body.len(), 0);
    let second = fuzzing::header(&again, stored, copied).expect("what is written can be read");
    assert_eq!(
        (
            second.position,
            second.raw,
            second.body.len(),
            &second.again
        ),
        (view.position, view.raw, view.body.len(), &view.again)
    );
}

/// Coded bodies: exactly the length that the header says, always the same, and the same through a decoder.
pub const BODIES: Target = Target {
    name: "dedup_bodies",
    about: "coded bodies: exactly the length that the header says, always the same, and the same through a decoder",
    run: bodies,
    honest: || {
        let mut random = Random::new(21);
        let dictionary = dictionary();
        let edited = random.edited(dictionary.clone(), 6);
        let text = random.text(6000);
        let zeros = vec![0; 5000];
        let mut all = vec![];
        for (name, bytes) in [("edited", edited), ("text", text), ("zeros", zeros)] {
            let wire = world::encoded_behind(&dictionary, &bytes);
            let view = fuzzing::header(&wire, 0, 0).expect("a block");
            let mut input = (view.raw as u16).to_le_bytes().to_vec();
            input.extend_from_slice(&wire[view.body]);
            all.push((name, input));
        }
        all
    },
    cases: 5000,
    memory: MEMORY,
};

/// What bodies may refer to.
fn dictionary() -> Vec<u8> {
    Random::new(20).text(8000)
}

fn bodies(input: &[u8]) {
    let dictionary = dictionary();
    let mut script = Script(input);
    let raw = usize::from(script.short());
    let body = script.rest();
    if raw == 0 || body.len() >= raw {
        return;
    }
    let Some(bytes) = fuzzing::decode_body(&dictionary, body, raw) else {
        return;
    };
    assert_eq!(bytes.len(), raw);
    assert_eq!(
        fuzzing::decode_body(&dictionary, body, raw).as_ref(),
        Some(&bytes)
    );
    let mut wire = vec![0x01 | 0x04, 2];
    wire.extend(leb128(raw as u64));
    wire.extend(leb128(dictionary.len() as u64));
    wire.extend(leb128(body.len() as u64));
    wire.extend_from_slice(body);
    wire.extend(fuzzing::digest(KEY, &bytes));
    let mut receiver = world::receiver_with(&dictionary);
    let mut decoder = Decoder::new(&receiver);
    assert_eq!(decoder.push(&mut receiver, &wire), Ok(wire.len()));
    assert!(decoder.pop() == bytes, "the decoder says something else");
}

/// The input as what flows carry: every byte arrives, and what goes over the line is bounded.
pub const ROUND_TRIP: Target = Target {
    name: "dedup_round_trip",
    about: "the input as what flows carry: every byte arrives, for few bytes more on the line than it has",
    run: round_trip,
    honest: || {
        let mut random = Random::new(30);
        let text = random.text(9000);
        let edited = random.edited(text.clone(), 5);
        let noise = random.noise(5000);
        let (again, zeros) = (text.repeat(3), vec![0; 20_000]);
        let mut all = vec![];
        for (name, step, bytes) in [
            ("text", 255, text),
            ("edited", 40, edited),
            ("noise", 13, noise),
            ("again", 60, again),
            ("zeros", 9, zeros),
        ] {
            all.push((name, [&[step], bytes.as_slice()].concat()));
        }
        all
    },
    cases: 1000,
    memory: 2 * MEMORY,
};

fn round_trip(input: &[u8]) {
    let mut script = Script(input);
    let step = 1 + usize::from(script.byte()).pow(2);
    let bytes = script.rest();
    let (mut sender, mut receiver) = world::ends();
    for round in 0..3 {
        let flush = if round == 1 { Flush::Yes } else { Flush::No };
        let wire = transfer(&mut sender, &mut receiver, bytes, step, flush);
        let blocks = 2 + bytes.len() / step.min(MAX_BLOCK / 2);
        assert!(
            wire <= bytes.len() + 32 * blocks,
            "{} bytes became {wire}",
            bytes.len()
        );
    }
}
