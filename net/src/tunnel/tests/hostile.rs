//! Whatever comes in from anywhere: garbage, forgeries, replays, wrong keys, a peer that has lost its memory or its mind.

use super::*;
use crate::sim::Rng;
use proptest::prelude::*;

fn good_line() -> LineConfig {
    LineConfig::new(10_000_000, millis(20))
}

fn wrong_keys(end: &End) -> Vec<WrongKey> {
    let wrong = |e: &Event| {
        if let Event::WrongKey(w) = e {
            Some(*w)
        } else {
            None
        }
    };
    end.events.iter().filter_map(wrong).collect()
}

#[test]
fn a_branch_with_another_key_is_refused_and_named() {
    // The core pins key 1; the branch has key 3.
    let mut world = World::with(good_line(), 1, config_of(3, 2), config_of(2, 1));
    world.run(secs(5));
    assert_eq!(world.core.tunnel.state(), State::Down);
    assert_eq!(world.branch.tunnel.state(), State::Down);
    assert!((4..=6).contains(&world.core.tunnel.statistics().rejected_wrong_key));
    assert!(wrong_keys(&world.core).contains(&WrongKey::NotPinned {
        from: BRANCH,
        key: public_key(&key(3))
    }));
    assert!(wrong_keys(&world.branch).contains(&WrongKey::RefusedByPeer { from: CORE }));
}

#[test]
fn a_branch_that_expects_another_core_is_refused_and_named() {
    let mut world = World::with(good_line(), 2, config_of(1, 3), config_of(2, 1));
    world.run(secs(5));
    assert_eq!(world.core.tunnel.state(), State::Down);
    assert!((4..=6).contains(&world.core.tunnel.statistics().rejected_wrong_key));
    assert!(wrong_keys(&world.core).contains(&WrongKey::NotOurs { from: BRANCH }));
    assert!(wrong_keys(&world.branch).contains(&WrongKey::PeerHasAnotherKey { from: CORE }));
}

#[test]
fn a_wrong_key_does_not_disturb_the_right_one() {
    let mut world = World::new(good_line(), 3);
    world.connect();
    let id = world.branch.send(2 << 20);
    let mut stranger = Tunnel::initiator(config_of(3, 2), CORE, [7; 32], world.now);
    let address = Endpoint::new(Ipv4Addr::new(192, 0, 2, 1), 9);
    let mut buffer = Vec::new();
    let done = world.run_until(secs(30), |w| {
        while stranger.poll_transmit(w.now, &mut buffer).is_some() {
            w.core.tunnel.receive(w.now, address, &mut buffer);
        }
        w.core.has_all(id, 2 << 20)
    });
    assert!(done);
    assert!(world.core.tunnel.statistics().rejected_wrong_key > 0);
    assert!(world.core.down.is_empty() && world.branch.down.is_empty());
}

#[test]
fn replays_change_nothing() {
    let mut world = World::new(good_line(), 4);
    world.capture = Some(Vec::new());
    world.connect();
    let id = world.branch.send(200_000);
    assert!(world.run_until(secs(30), |w| w.core.has_all(id, 200_000)));
    world.run(millis(100));
    let capture = world.capture.take().unwrap();
    let before = world.core.tunnel.statistics();
    let elsewhere = Endpoint::new(Ipv4Addr::new(192, 0, 2, 1), 9);
    for (to_core, packet) in &capture {
        let mut packet = packet.clone();
        let end = if *to_core {
            &mut world.core
        } else {
            &mut world.branch
        };
        end.tunnel.receive(world.now, elsewhere, &mut packet);
    }
    let after = world.core.tunnel.statistics();
    assert_eq!(after.address_changes, 0);
    assert_eq!(after.stream_bytes_received, before.stream_bytes_received);
    assert!(after.dropped_replayed > 100);
    world.run(secs(5));
    assert!(world.core.down.is_empty() && world.branch.down.is_empty());
    assert_eq!((world.core.ups, world.branch.ups), (1, 1));
}

#[test]
fn a_replayed_handshake_connects_nobody() {
    let mut world = World::new(good_line(), 5);
    world.capture = Some(Vec::new());
    world.connect();
    let capture = world.capture.take().unwrap();
    // The core restarts, knows nothing of the past, and somebody replays all that the branch once sent.
    let mut core = Tunnel::responder(config_of(2, 1), [9; 32], world.now);
    let mut answers = 0;
    let mut buffer = Vec::new();
    for _ in 0..3 {
        for (_, packet) in capture.iter().filter(|(to_core, _)| *to_core) {
            core.receive(world.now, BRANCH, &mut packet.clone());
            while core.poll_transmit(world.now, &mut buffer).is_some() {
                answers += 1;
            }
        }
    }
    assert_eq!(core.state(), State::Down);
    assert_eq!(core.poll_event(), None);
    assert_eq!(answers, 1, "each first message is answered once");
    assert!(core.statistics().dropped_handshakes >= 2);
}

/// A flipped bit in the name that the core gives the keys once made the branch talk to nobody for three seconds.
#[test]
fn a_handshake_with_any_bit_flipped_is_not_believed() {
    let now = Instant::ZERO;
    let (mut first, mut second, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
    let fresh = || Tunnel::initiator(config_of(1, 2), CORE, [8; 32], now);
    assert!(fresh().poll_transmit(now, &mut first).is_some());
    let mut core = Tunnel::responder(config_of(2, 1), [9; 32], now);
    core.receive(now, BRANCH, &mut first.clone());
    assert!(core.poll_transmit(now, &mut second).is_some());
    for bit in 0..first.len() * 8 {
        let mut bent = first.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        let mut core = Tunnel::responder(config_of(2, 1), [9; 32], now);
        core.receive(now, BRANCH, &mut bent);
        while core.poll_transmit(now, &mut buffer).is_some() {
            assert_eq!(buffer.len(), wire::REJECT, "bit {bit}");
        }
    }
    // A branch that starts from the same seed makes the same first message.
    let mut branch = fresh();
    assert!(branch.poll_transmit(now, &mut buffer).is_some());
    for bit in 0..second.len() * 8 {
        let mut bent = second.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        branch.receive(now, CORE, &mut bent);
        assert_eq!(branch.state(), State::Down, "bit {bit}");
    }
    // None of them has spoilt the real one.
    branch.receive(now, CORE, &mut second);
    assert_eq!(branch.state(), State::Up);
}

#[test]
fn a_flood_of_handshakes_is_bounded() {
    let mut core = Tunnel::responder(config_of(2, 1), [9; 32], Instant::ZERO);
    let mut buffer = Vec::new();
    let (mut sent, mut answered) = (0, 0);
    for ms in 0..2000 {
        let now = Instant::from_millis(ms);
        let mut seed = [0; 32];
        Rng::new(ms).fill(&mut seed);
        let mut branch = Tunnel::initiator(config_of(1, 2), CORE, seed, now);
        assert!(branch.poll_transmit(now, &mut buffer).is_some());
        core.receive(now, BRANCH, &mut buffer);
        sent += 1;
        while core.poll_transmit(now, &mut buffer).is_some() {
            answered += 1;
        }
    }
    assert!(sent == 2000 && (20..=60).contains(&answered), "{answered}");
    assert_eq!(core.statistics().dropped_handshakes, 2000 - answered);
}

#[test]
fn a_restarted_peer_replaces_its_former_self() {
    for restarted_is_branch in [true, false] {
        let mut world = World::new(good_line(), 6);
        world.connect();
        world.branch.send(50 << 20);
        world.run(millis(700));
        if restarted_is_branch {
            world.branch = End::new(
                Tunnel::initiator(config_of(1, 2), CORE, [3; 32], world.now),
                BRANCH,
            );
            let at = world.now;
            assert!(world.run_until(secs(5), |w| w.core.ups == 2));
            assert!(world.now - at < millis(500), "at once, not after a silence");
            assert_eq!(world.core.down, [DownReason::PeerRestarted]);
            let order: Vec<_> = world
                .core
                .events
                .iter()
                .filter(|e| matches!(e, Event::Up | Event::Down(_)))
                .copied()
                .collect();
            assert_eq!(
                order,
                [Event::Up, Event::Down(DownReason::PeerRestarted), Event::Up]
            );
        } else {
            world.core = End::new(Tunnel::responder(config_of(2, 1), [3; 32], world.now), CORE);
            assert!(world.run_until(secs(6), |w| w.branch.ups == 2 && w.core.ups == 1));
            assert_eq!(world.branch.down, [DownReason::Silence]);
        }
        let id = world.branch.send(100_000);
        assert!(world.run_until(secs(10), |w| w.core.has_all(id, 100_000)));
    }
}

#[test]
fn closing_tells_the_peer() {
    let mut world = World::new(good_line(), 7);
    world.connect();
    world.core.tunnel.close(world.now);
    assert!(world.run_until(millis(100), |w| w.branch.tunnel.state() == State::Down));
    assert_eq!(world.branch.down, [DownReason::ClosedByPeer]);
    assert_eq!(world.core.down, [DownReason::Closed]);
    world.run(secs(3));
    assert_eq!(world.core.tunnel.state(), State::Down);
}

#[test]
fn nothing_readable_is_on_the_line() {
    let mut world = World::new(good_line(), 8);
    world.capture = Some(Vec::new());
    world.connect();
    let secret = b"a sentence that nobody on the line may read";
    let id = world.branch.tunnel.open_stream().unwrap();
    for _ in 0..100 {
        assert_eq!(world.branch.tunnel.write(id, secret), secret.len());
    }
    world.core.lazy = true;
    assert!(world.run_until(secs(5), |w| w.core.tunnel.readable(id)
        == 100 * secret.len()));
    for (_, packet) in world.capture.unwrap() {
        assert!(!packet.windows(8).any(|w| secret.windows(8).any(|s| s == w)));
        assert!(
            !packet.windows(32).any(|w| w == public_key(&key(1))),
            "the branch's identity is hidden"
        );
    }
}

/// A connection's innards, fed with frames that an authenticated peer might send.
fn feed(frames: &[u8]) -> (State, Option<DownReason>) {
    let mut world = World::new(good_line(), 9);
    world.connect();
    world.branch.send(3000);
    world.run(millis(100));
    // What such a peer sends is not what the test expects to read.
    world.core.lazy = true;
    let now = world.now;
    let connection = world.core.tunnel.connection.as_deref_mut().unwrap();
    let number = connection.expected();
    let result = connection.receive(
        now,
        BRANCH,
        number,
        frames,
        &mut TunnelStatistics::default(),
    );
    if let Err(reason) = result {
        world.core.tunnel.go_down(now, reason);
    }
    // Whatever it was, what follows works.
    let until = now + millis(200);
    while world.now < until {
        world.step(until);
    }
    (world.core.tunnel.state(), world.core.down.first().copied())
}

#[test]
fn a_peer_that_breaks_the_protocol_is_dropped_with_a_reason() {
    let varint = |value: u64| {
        let mut out = Vec::new();
        wire::put_varint(value, &mut out);
        out
    };
    let cases: Vec<(Vec<u8>, Violation)> = vec![
        (vec![0xff], Violation::Frame),
        (vec![0x02, 0x80], Violation::Frame),
        // Acknowledges packet 100,000.
        (
            [vec![0x02], varint(100_000), varint(0), varint(0), varint(0)].concat(),
            Violation::Acknowledgement,
        ),
        // Stream 2, one byte beyond the window.
        (
            [vec![0x14], varint(2), varint(256 << 10), vec![7]].concat(),
            Violation::FlowControl,
        ),
        // A stream of ours that we never opened, and one of its own beyond the limit.
        ([vec![0x10], varint(1)].concat(), Violation::StreamLimit),
        (
            [vec![0x10], varint(2 * 16_384)].concat(),
            Violation::StreamLimit,
        ),
        (
            [vec![0x10], varint(u64::MAX >> 2)].concat(),
            Violation::StreamLimit,
        ),
        // Two ends.
        (
            [
                vec![0x13],
                varint(2),
                varint(1),
                vec![7],
                vec![0x13],
                varint(2),
                varint(2),
                vec![7, 7],
            ]
            .concat(),
            Violation::FinalSize,
        ),
        // Data beyond the end.
        (
            [
                vec![0x13],
                varint(2),
                varint(1),
                vec![7],
                vec![0x16],
                varint(2),
                varint(5),
                varint(1),
                vec![7],
            ]
            .concat(),
            Violation::FinalSize,
        ),
        // A reset that is shorter than what came.
        (
            [
                vec![0x12],
                varint(2),
                varint(3),
                vec![7; 3],
                vec![0x03],
                varint(2),
                varint(0),
                varint(2),
            ]
            .concat(),
            Violation::FinalSize,
        ),
    ];
    for (frames, violation) in cases {
        assert_eq!(
            feed(&frames).1,
            Some(DownReason::Violation(violation)),
            "{frames:?}"
        );
    }
    // One byte in every second place of the window.
    let mut world = World::new(good_line(), 9);
    world.connect();
    let connection = world.core.tunnel.connection.as_deref_mut().unwrap();
    let mut reason = Ok(());
    for i in 0..200_000_u64 {
        let frames = [vec![0x14], varint(0), varint(i * 2 + 1), vec![7]].concat();
        reason = connection.receive(
            world.now,
            BRANCH,
            10 + i,
            &frames,
            &mut TunnelStatistics::default(),
        );
        if reason.is_err() {
            break;
        }
    }
    assert_eq!(reason, Err(DownReason::Violation(Violation::Fragmentation)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn garbage_never_panics(datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..40), pick: u64) {
        let mut rng = Rng::new(pick);
        let mut world = World::new(good_line(), 1);
        let mut total = 0;
        for mut datagram in datagrams {
            // The right type, version, index and length half of the time.
            if rng.chance(0.5) {
                let (kind, length) = [(1, wire::FIRST), (2, wire::SECOND), (3, wire::REJECT), (0x41, datagram.len())][rng.below(4) as usize];
                datagram.resize(length.max(1), 3);
                datagram[0] = kind;
                if kind == 1 {
                    datagram[1] = wire::VERSION;
                }
                let index = world.core.tunnel.connection.as_ref().map(|c| c.session().local.to_be_bytes());
                if let (Some(index), Some(at)) = (index, datagram.get_mut(1..5).filter(|_| kind != 1)) {
                    at.copy_from_slice(&index);
                }
            }
            total += 1;
            world.core.tunnel.receive(world.now, BRANCH, &mut datagram);
            world.branch.tunnel.receive(world.now, CORE, &mut datagram);
            world.run(millis(20));
        }
        let s = world.core.tunnel.statistics();
        let dropped = s.dropped_malformed + s.dropped_unknown + s.dropped_forged + s.dropped_replayed + s.dropped_handshakes + s.rejected_wrong_key;
        prop_assert_eq!(dropped, total);
        prop_assert!(world.core.down.is_empty() && world.branch.down.is_empty());
        world.connect();
    }

    #[test]
    fn frames_of_a_mad_peer_never_panic(frames in proptest::collection::vec(any::<u8>(), 0..120)) {
        feed(&frames);
    }

    #[test]
    fn plausible_frames_of_a_mad_peer_never_panic(fields in proptest::collection::vec((0_u8..0x18, 0_u64..6, any::<u64>(), 0_u32..64, 0_usize..20), 1..30)) {
        let mut frames = Vec::new();
        for (kind, stream, value, shift, length) in fields {
            frames.push(kind);
            wire::put_varint(stream, &mut frames);
            wire::put_varint((value >> 1) >> shift, &mut frames);
            wire::put_varint(length as u64, &mut frames);
            frames.resize(frames.len() + length, 0);
        }
        feed(&frames);
    }

    #[test]
    fn real_packets_bent_out_of_shape_never_panic(seed: u64) {
        let mut rng = Rng::new(seed);
        let mut world = World::new(good_line(), seed);
        world.capture = Some(Vec::new());
        world.connect();
        let id = world.branch.send(20_000);
        world.run_until(secs(5), |w| w.core.has_all(id, 20_000));
        for (to_core, mut packet) in world.capture.take().unwrap() {
            for _ in 0..rng.below(4) {
                let at = rng.below(packet.len().min(12) as u64) as usize;
                packet[at] = rng.u64() as u8;
            }
            packet.truncate(1 + rng.below(packet.len() as u64) as usize);
            let end = if to_core { &mut world.core } else { &mut world.branch };
            end.tunnel.receive(world.now, CORE, &mut packet);
        }
        let id = world.branch.send(20_000);
        prop_assert!(world.run_until(secs(5), |w| w.core.has_all(id, 20_000)));
    }
}
