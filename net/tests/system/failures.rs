//! What hosts see when something goes wrong: it is mirrored, and promptly.

use std::time::Duration;

use crate::host::{Close, Outcome, Script};
use crate::line::{LineConfig, Random};
use crate::transfers::BOTH_FINISHED;
use crate::world::{Pair, Site, World};

const CLEAN_RTT: Duration = Duration::from_millis(10);

fn forever() -> Script {
    Script::send(vec![]).close(Close::Never)
}

/// A world with a transfer from the server under way, of which the client has had some.
fn in_the_middle(seed: u64, line: LineConfig) -> (World, Pair) {
    let mut random = Random::new(seed);
    let mut world = World::new(seed, line);
    // A client that only receives learns of a branch box that forgot it when it asks.
    world.client().keep_alive = Some(2000);
    world.wait_up();
    let file = random.bytes(30_000_000);
    let pair = world.connect(80, Script::send(vec![]), Script::send(file.clone()));
    assert!(world.run_until(Duration::from_secs(10), |world| {
        world.client_connection(pair).received.len() > 500_000
    }));
    (world, pair)
}

/// Runs until the client sees an outcome; gives it, and after how long.
fn client_sees(world: &mut World, client: usize, most: u64) -> (Option<Outcome>, Duration) {
    let start = world.now;
    world.run_until(Duration::from_secs(most), |world| {
        world.client().connections[client].outcome.is_some()
    });
    (
        world.client().connections[client].outcome,
        Duration::from_micros(world.now - start),
    )
}

#[test]
fn a_refusal_is_mirrored() {
    let mut world = World::new(1, LineConfig::CLEAN);
    world.wait_up();
    let client = world.connect_only(81, forever());
    let (outcome, after) = client_sees(&mut world, client, 10);
    assert_eq!(outcome, Some(Outcome::Refused));
    assert!(
        after >= CLEAN_RTT && after < Duration::from_secs(2),
        "{after:?}"
    );
    world.run_for(Duration::from_secs(1));
    let flows = world.statistics(Site::Branch).flows;
    assert_eq!((flows.total, flows.refused, flows.open), (1, 1, 0));
    let flows = world.statistics(Site::Core).flows;
    assert_eq!((flows.total, flows.refused, flows.open), (1, 1, 0));
}

#[test]
fn the_client_is_answered_only_after_the_server_has_answered() {
    let mut line = LineConfig::CLEAN;
    line.delay = Duration::from_millis(200);
    let mut world = World::new(2, line);
    world.wait_up();
    let pair = world.connect(80, forever(), forever());
    world.run_until(Duration::from_secs(5), |world| {
        world.server_connection(pair).is_open()
    });
    assert!(!world.client_connection(pair).is_open());
    assert!(world.run_until(Duration::from_secs(5), |world| {
        world.client_connection(pair).is_open()
    }));
}

#[test]
fn a_server_that_is_not_there_is_reported_unreachable() {
    let mut world = World::new(3, LineConfig::CLEAN);
    world.wait_up();
    let nobody = core::net::Ipv4Addr::new(10, 77, 2, 99);
    let client = world.client().connect(nobody, 80, 41_000, forever());
    // The client itself finds nobody by ARP on this flat network, so let it think that it has.
    let frame = syn_frame(&world, nobody, 41_000);
    world.send_to_box(Site::Branch, outpost_net::Port::Lan, frame);
    world.run_for(Duration::from_secs(6));
    assert_eq!(world.client().unreachable, [(41_000, 80)]);
    assert_eq!(world.statistics(Site::Branch).flows.unreachable, 1);
    assert_eq!(world.statistics(Site::Core).flows.unreachable, 1);
    let _ = client;
}

/// A SYN from the client's address.
fn syn_frame(world: &World, to: core::net::Ipv4Addr, from_port: u16) -> Vec<u8> {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::*;
    let host = &world.hosts[0];
    let tcp = TcpRepr {
        src_port: from_port,
        dst_port: 80,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(7),
        ack_number: None,
        window_len: 60_000,
        window_scale: Some(3),
        max_seg_size: Some(1460),
        sack_permitted: true,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ip = Ipv4Repr {
        src_addr: host.address,
        dst_addr: to,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let mut frame = vec![0; 14 + ip.buffer_len() + tcp.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
    ethernet.set_src_addr(EthernetAddress(host.mac));
    ethernet.set_dst_addr(EthernetAddress([2, 9, 9, 9, 9, 9]));
    ethernet.set_ethertype(EthernetProtocol::Ipv4);
    let checksums = ChecksumCapabilities::default();
    ip.emit(
        &mut Ipv4Packet::new_unchecked(ethernet.payload_mut()),
        &checksums,
    );
    tcp.emit(
        &mut TcpPacket::new_unchecked(&mut ethernet.payload_mut()[20..]),
        &IpAddress::Ipv4(host.address),
        &IpAddress::Ipv4(to),
        &checksums,
    );
    frame
}

#[test]
fn a_reset_by_the_server_reaches_the_client() {
    for lossy in [false, true] {
        let line = if lossy {
            LineConfig::DEFAULT
        } else {
            LineConfig::CLEAN
        };
        let mut random = Random::new(4);
        let mut world = World::new(4, line);
        world.wait_up();
        let mut server = Script::send(random.bytes(50_000)).close(Close::Never);
        server.reset_after = Some(40_000);
        let pair = world.connect(
            80,
            Script::send(random.bytes(100_000)).close(Close::Never),
            server,
        );
        assert_eq!(
            world.finish(pair, Duration::from_secs(10)),
            (Some(Outcome::Reset), Some(Outcome::ResetHere))
        );
        assert_eq!(world.statistics(Site::Branch).flows.reset_by_peer, 1);
        assert_eq!(world.statistics(Site::Core).flows.reset_by_host, 1);
    }
}

#[test]
fn a_reset_by_the_client_reaches_the_server() {
    let mut random = Random::new(5);
    let mut world = World::new(5, LineConfig::CLEAN);
    world.wait_up();
    let mut client = forever();
    client.reset_after = Some(100_000);
    let pair = world.connect(80, client, Script::send(random.bytes(5_000_000)));
    assert_eq!(
        world.finish(pair, Duration::from_secs(10)),
        (Some(Outcome::ResetHere), Some(Outcome::Reset))
    );
    world.run_for(Duration::from_secs(1));
    for site in [Site::Branch, Site::Core] {
        assert_eq!(world.statistics(site).flows.open, 0);
    }
}

#[test]
fn the_core_switched_off_in_the_middle_resets_the_client_within_seconds() {
    let (mut world, pair) = in_the_middle(6, LineConfig::DEFAULT);
    world.power_off(Site::Core);
    let (outcome, after) = client_sees(&mut world, pair.client, 30);
    assert_eq!(outcome, Some(Outcome::Reset));
    assert!(after < Duration::from_secs(5), "{after:?}");
    assert_eq!(world.statistics(Site::Branch).flows.reset_by_tunnel, 1);
}

#[test]
fn the_branch_switched_off_in_the_middle_resets_the_server_within_seconds() {
    let (mut world, pair) = in_the_middle(7, LineConfig::DEFAULT);
    world.power_off(Site::Branch);
    let start = world.now;
    assert!(world.run_until(Duration::from_secs(30), |world| {
        world.server_connection(pair).outcome == Some(Outcome::Reset)
    }));
    assert!(world.now - start < 5_000_000);
}

#[test]
fn without_the_core_everything_is_bridged() {
    let mut random = Random::new(8);
    let mut world = World::new(8, LineConfig::CLEAN);
    world.power_off(Site::Core);
    world.run_for(Duration::from_secs(3));
    let (up, down) = (random.bytes(200_000), random.bytes(500_000));
    let pair = world.connect(
        80,
        Script::send(up.clone()),
        Script::send(down.clone()).close(Close::AfterSending),
    );
    assert_eq!(world.finish(pair, Duration::from_secs(30)), BOTH_FINISHED);
    assert!(world.client_connection(pair).received == down);
    assert!(world.server_connection(pair).received == up);
    let statistics = world.statistics(Site::Branch);
    assert_eq!(statistics.syns.tunnel_down, 1);
    assert_eq!((statistics.flows.total, statistics.syns_unanswered), (0, 0));

    // A refusal is the server's own.
    let client = world.connect_only(81, forever());
    assert_eq!(
        client_sees(&mut world, client, 10).0,
        Some(Outcome::Refused)
    );
}

#[test]
fn a_bridged_connection_survives_the_tunnel_coming_up() {
    let mut random = Random::new(9);
    let mut line = LineConfig::CLEAN;
    line.rate = 4_000_000;
    let mut world = World::new(9, line);
    world.power_off(Site::Core);
    let file = random.bytes(4_000_000);
    let pair = world.connect(
        80,
        Script::send(vec![]),
        Script::send(file.clone()).close(Close::AfterSending),
    );
    assert!(world.run_until(Duration::from_secs(10), |world| {
        world.client_connection(pair).received.len() > 100_000
    }));
    world.power_on(Site::Core);
    world.wait_up();
    assert!(world.client_connection(pair).received.len() < file.len());
    assert_eq!(world.finish(pair, Duration::from_secs(60)), BOTH_FINISHED);
    assert!(world.client_connection(pair).received == file);
}

#[test]
fn a_dead_line_fails_promptly_and_recovers_within_five_seconds() {
    for first_syn_after_down in [0, 1, 2, 3, 4, 6, 30] {
        let mut world = World::new(10, LineConfig::DEFAULT);
        world.wait_up();
        let warm = world.connect(
            80,
            Script::send(vec![]),
            Script::send(vec![]).close(Close::AfterSending),
        );
        assert_eq!(world.finish(warm, Duration::from_secs(20)), BOTH_FINISHED);
        world.set_line(false);
        world.run_for(Duration::from_secs(first_syn_after_down));
        let client = world.connect_only(81, forever());
        let (outcome, after) = client_sees(&mut world, client, 30);
        // After 30 s the client itself has forgotten the server's MAC address, which no box can help.
        if first_syn_after_down < 30 {
            assert_eq!(
                outcome,
                Some(Outcome::Unreachable),
                "{first_syn_after_down}"
            );
            assert!(after < Duration::from_secs(10), "{after:?}");
        }
        world.set_line(true);
        let start = world.now;
        world.wait_up();
        let back = Duration::from_micros(world.now - start);
        assert!(back < Duration::from_secs(5), "back after {back:?}");
        let again = world.connect(
            82,
            Script::send(b"GET".to_vec()),
            Script::send(b"OK".to_vec()).close(Close::AfterSending),
        );
        assert_eq!(world.finish(again, Duration::from_secs(20)), BOTH_FINISHED);
    }
}

#[test]
fn a_line_cut_in_the_middle_resets_both_ends() {
    let (mut world, pair) = in_the_middle(11, LineConfig::DEFAULT);
    world.set_line(false);
    let start = world.now;
    assert_eq!(
        world.finish(pair, Duration::from_secs(20)),
        (Some(Outcome::Reset), Some(Outcome::Reset))
    );
    assert!(world.now - start < 8_000_000);
}

#[test]
fn a_peer_with_the_wrong_key_is_counted_and_everything_is_bridged() {
    let mut random = Random::new(12);
    let mut world = World::new(12, LineConfig::CLEAN);
    world.keys.branch_at_core = outpost_net::tunnel::public_key(&[99; 32]);
    world.power_on(Site::Core);
    world.run_for(Duration::from_secs(5));
    assert!(!world.statistics(Site::Branch).tunnel.up);
    assert!(world.statistics(Site::Core).tunnel.wrong_key > 0);
    let file = random.bytes(300_000);
    let pair = world.connect(
        80,
        Script::send(vec![]),
        Script::send(file.clone()).close(Close::AfterSending),
    );
    assert_eq!(world.finish(pair, Duration::from_secs(30)), BOTH_FINISHED);
    assert!(world.client_connection(pair).received == file);
    assert!(world.statistics(Site::Branch).syns.tunnel_down >= 1);
}

#[test]
fn either_box_may_restart_at_any_moment() {
    for site in [Site::Branch, Site::Core] {
        let (mut world, pair) = in_the_middle(13, LineConfig::DEFAULT);
        world.power_on(site);
        let start = world.now;
        assert!(
            world.run_until(Duration::from_secs(10), |world| {
                world.client_connection(pair).outcome == Some(Outcome::Reset)
                    && world.server_connection(pair).outcome == Some(Outcome::Reset)
            }),
            "{site:?}: {:?}",
            world.outcomes(pair)
        );
        let reset = Duration::from_micros(world.now - start);
        assert!(reset < Duration::from_secs(8), "{site:?}: {reset:?}");
        assert!(world.run_until(Duration::from_secs(10), |world| world.is_up()));
        let mut random = Random::new(14);
        let file = random.bytes(400_000);
        for port in [90, 91] {
            let pair = world.connect(
                port,
                Script::send(vec![]),
                Script::send(file.clone()).close(Close::AfterSending),
            );
            assert_eq!(world.finish(pair, Duration::from_secs(30)), BOTH_FINISHED);
            assert!(world.client_connection(pair).received == file);
        }
    }
}

#[test]
fn a_box_without_memory_for_flows_bridges() {
    let mut random = Random::new(15);
    let mut world = World::new(15, LineConfig::CLEAN);
    world.flow_memory = 0;
    world.power_on(Site::Branch);
    world.wait_up();
    let file = random.bytes(100_000);
    let pair = world.connect(
        80,
        Script::send(vec![]),
        Script::send(file.clone()).close(Close::AfterSending),
    );
    assert_eq!(world.finish(pair, Duration::from_secs(30)), BOTH_FINISHED);
    assert!(world.client_connection(pair).received == file);
    assert_eq!(world.statistics(Site::Branch).syns.flow_limit, 1);

    // A core without memory says so; the client hears that the host cannot be reached.
    let mut world = World::new(16, LineConfig::CLEAN);
    world.flow_memory = 0;
    world.power_on(Site::Core);
    world.wait_up();
    let client = world.connect_only(80, forever());
    assert_eq!(
        client_sees(&mut world, client, 10).0,
        Some(Outcome::Unreachable)
    );
}

#[test]
fn a_port_can_be_used_again_at_once() {
    let mut world = World::new(17, LineConfig::CLEAN);
    world.wait_up();
    for round in 0..5_u8 {
        let server = world.server().listen(
            80,
            Script::send(vec![round; 5000]).close(Close::AfterSending),
        );
        let client =
            world
                .client()
                .connect(crate::world::SERVER, 80, 45_000, Script::send(vec![round]));
        let pair = Pair { client, server };
        assert_eq!(
            world.finish(pair, Duration::from_secs(10)),
            BOTH_FINISHED,
            "{round}"
        );
        assert!(world.client_connection(pair).received == vec![round; 5000]);
        // The hosts' own sockets leave TIME-WAIT.
        world.run_for(Duration::from_secs(11));
    }
}

#[test]
fn a_client_may_reset_and_begin_again_from_the_same_port() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let mut world = World::new(seed, LineConfig::DEFAULT);
        world.wait_up();
        let file = random.bytes(60_000);
        for round in 0..4 {
            let last = round == 3;
            let mut impatient =
                Script::send(vec![]).close(if last { Close::AfterPeer } else { Close::Never });
            if !last {
                impatient.reset_after = Some(random.below(20_000) as usize);
            }
            let server = world
                .server()
                .listen(80, Script::send(file.clone()).close(Close::AfterSending));
            let client = world
                .client()
                .connect(crate::world::SERVER, 80, 45_000, impatient);
            let pair = Pair { client, server };
            world.run_until(Duration::from_secs(20), |world| {
                world.client_connection(pair).outcome.is_some()
            });
            let (outcome, _) = world.outcomes(pair);
            if last {
                assert_eq!(outcome, Some(Outcome::Finished), "seed {seed}");
                assert!(world.client_connection(pair).received == file);
            } else {
                assert_eq!(outcome, Some(Outcome::ResetHere), "seed {seed}");
            }
            world.run_for(Duration::from_millis(random.below(150)));
        }
        world.run_for(Duration::from_secs(5));
        for site in [Site::Branch, Site::Core] {
            assert_eq!(world.statistics(site).flows.open, 0, "seed {seed}");
        }
    }
}

#[test]
fn a_client_that_gives_up_and_tries_again_takes_the_place_of_its_first_attempt() {
    let mut world = World::new(18, LineConfig::CLEAN);
    world.wait_up();
    // Nobody has this address, so the core is busy looking for it for some seconds.
    let nobody = core::net::Ipv4Addr::new(10, 77, 2, 98);
    let frame = syn_frame(&world, nobody, 42_000);
    let mut again = frame.clone();
    again[14 + 20 + 7] ^= 0x40;
    let at = 14 + 20 + 16;
    let sum = u16::from_be_bytes([again[at], again[at + 1]]);
    again[at..at + 2].copy_from_slice(&(sum.wrapping_sub(0x40)).to_be_bytes());
    world.send_to_box(Site::Branch, outpost_net::Port::Lan, frame.clone());
    world.run_for(Duration::from_millis(100));
    world.send_to_box(Site::Branch, outpost_net::Port::Lan, frame);
    world.run_for(Duration::from_millis(100));
    let flows = world.statistics(Site::Branch).flows;
    assert_eq!(
        (flows.total, flows.open),
        (1, 1),
        "a SYN sent again is the same"
    );
    world.send_to_box(Site::Branch, outpost_net::Port::Lan, again);
    world.run_for(Duration::from_millis(100));
    let flows = world.statistics(Site::Branch).flows;
    assert_eq!((flows.total, flows.open, flows.abandoned), (2, 1, 1));
    let flows = world.statistics(Site::Core).flows;
    assert_eq!((flows.total, flows.open), (2, 1));
    world.run_for(Duration::from_secs(6));
    assert_eq!(world.client().unreachable, [(42_000, 80)]);
    for site in [Site::Branch, Site::Core] {
        assert_eq!(world.statistics(site).flows.open, 0);
    }
}

#[test]
fn a_connection_may_be_bridged_where_one_was_optimised() {
    let mut world = World::new(19, LineConfig::CLEAN);
    world.wait_up();
    let mut random = Random::new(19);
    let file = random.bytes(100_000);
    let mut stuck = forever();
    stuck.reset_after = Some(10_000);
    let server = world.server().listen(80, Script::send(file.clone()));
    let client = world
        .client()
        .connect(crate::world::SERVER, 80, 45_000, stuck);
    let first = Pair { client, server };
    world.finish(first, Duration::from_secs(10));
    // The branch box goes, the core notices, and the same client port comes over the line in the clear.
    world.power_off(Site::Branch);
    world.run_for(Duration::from_secs(4));
    assert!(!world.statistics(Site::Core).tunnel.up);
    let server = world
        .server()
        .listen(80, Script::send(file.clone()).close(Close::AfterSending));
    let client = world
        .client()
        .connect(crate::world::SERVER, 80, 45_000, Script::send(vec![]));
    let pair = Pair { client, server };
    assert_eq!(world.finish(pair, Duration::from_secs(10)), BOTH_FINISHED);
    assert!(world.client_connection(pair).received == file);
}

#[test]
fn what_a_slow_client_has_not_yet_taken_outlives_the_tunnel() {
    let mut random = Random::new(20);
    let mut world = World::new(20, LineConfig::CLEAN);
    world.wait_up();
    let file = random.bytes(420_000);
    let mut slow = Script::send(vec![]).close(Close::AfterSending);
    slow.read = 0;
    let pair = world.connect(
        80,
        slow,
        Script::send(file.clone()).close(Close::AfterSending),
    );
    world.run_for(Duration::from_secs(5));
    assert_eq!(
        world.server_connection(pair).outcome,
        Some(Outcome::Finished)
    );
    assert_eq!(world.statistics(Site::Branch).flows.open, 1);
    world.set_line(false);
    world.run_for(Duration::from_secs(6));
    assert!(!world.statistics(Site::Branch).tunnel.up);
    assert_eq!(world.client_connection(pair).outcome, None);
    world.client().connections[pair.client].script.read = usize::MAX;
    let (outcome, _) = client_sees(&mut world, pair.client, 20);
    assert_eq!(outcome, Some(Outcome::Finished));
    assert!(world.client_connection(pair).received == file);
    // The flow is forgotten, and does no harm to those of the next tunnel.
    world.set_line(true);
    world.wait_up();
    let again = world.connect(
        81,
        Script::send(vec![]),
        Script::send(file.clone()).close(Close::AfterSending),
    );
    assert_eq!(world.finish(again, Duration::from_secs(20)), BOTH_FINISHED);
    assert_eq!(world.statistics(Site::Branch).flows.open, 0);
}

#[test]
fn a_syn_in_the_very_moment_in_which_the_tunnel_comes_up_is_bridged() {
    let up = |world: &mut World| world.statistics(Site::Branch).tunnel.up;
    let mut world = World::new(21, LineConfig::CLEAN);
    assert!(world.run_until(Duration::from_secs(5), up));
    let at = world.now;
    let mut world = World::new(21, LineConfig::CLEAN);
    world.run_for(Duration::from_micros(at - 1 - world.now));
    assert!(!up(&mut world));
    // It arrives behind the last message of the handshake, before the engine has its turn.
    world.now = at;
    let frame = syn_frame(&world, crate::world::SERVER, 42_000);
    world.send_to_box(Site::Branch, outpost_net::Port::Lan, frame);
    world.run_for(Duration::from_millis(1));
    assert!(up(&mut world));
    let statistics = world.statistics(Site::Branch);
    assert_eq!(
        (statistics.syns.tunnel_down, statistics.flows.total),
        (1, 0)
    );
}
