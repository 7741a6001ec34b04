//! Garbage, truncations and forgeries from the LAN and from the line: nothing panics, and whoever plays by the rules is
//! not disturbed.

use std::time::Duration;

use outpost_net::Port;
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket,
};

use crate::host::{Close, Script};
use crate::line::{LineConfig, Random};
use crate::transfers::{BOTH_FINISHED, seeds};
use crate::world::{Site, World};

/// Where forged frames are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forge {
    Line,
    Lan,
}

/// A damaged copy of a frame. On the LAN, half of those with TCP in them get good checksums, so that they reach the
/// sockets.
pub fn damage(random: &mut Random, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    match random.below(5) {
        0 => frame.truncate(random.below(frame.len() as u64 + 1) as usize),
        1 => {
            let more = random.below(64) as usize;
            frame.extend_from_slice(&random.bytes(more));
        }
        _ => {
            // Headers are more interesting than payload.
            let reach = [24, 60, frame.len() as u64][random.below(3) as usize];
            for _ in 0..1 + random.below(4) {
                let at = random.below(reach.min(frame.len() as u64)) as usize;
                if let Some(byte) = frame.get_mut(at) {
                    *byte = match random.below(3) {
                        0 => random.below(256) as u8,
                        1 => *byte ^ (1 << random.below(8)),
                        _ => [0, 0xff, 0x7f, 0x80][random.below(4) as usize],
                    };
                }
            }
        }
    }
    if random.chance(500_000) {
        mend_checksums(&mut frame);
    }
    frame
}

fn mend_checksums(frame: &mut [u8]) {
    let Ok(mut ethernet) = EthernetFrame::new_checked(frame) else {
        return;
    };
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return;
    }
    let Ok(mut ip) = Ipv4Packet::new_checked(ethernet.payload_mut()) else {
        return;
    };
    if ChecksumCapabilities::default().ipv4.tx() {
        ip.fill_checksum();
    }
    let (source, destination) = (ip.src_addr(), ip.dst_addr());
    if ip.next_header() == IpProtocol::Tcp
        && let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut())
    {
        tcp.fill_checksum(&IpAddress::Ipv4(source), &IpAddress::Ipv4(destination));
    }
}

fn storm(seed: u64, forge: Forge) -> bool {
    let mut random = Random::new(seed);
    let mut world = World::new(random.number(), LineConfig::CLEAN);
    world.wait_up();
    world.forge = Some((forge, random.number()));
    let (up, down) = (random.bytes(200_000), random.bytes(300_000));
    let mut scripts = [
        Script::send(up.clone()),
        Script::send(down.clone()).close(Close::AfterSending),
    ];
    for script in &mut scripts {
        script.piece = 2000;
    }
    let [client, server] = scripts;
    let pair = world.connect(80, client, server);
    world.finish(pair, Duration::from_secs(60));
    if forge == Forge::Line {
        assert_eq!(
            world.outcomes(pair),
            BOTH_FINISHED,
            "SEED={seed}: forgeries on the line disturb a flow"
        );
        assert!(
            world.client_connection(pair).received == down,
            "SEED={seed}"
        );
        assert!(world.server_connection(pair).received == up, "SEED={seed}");
    }
    let survived = world.outcomes(pair) == BOTH_FINISHED;
    // Whatever the storm did to its own connection, the next one works.
    world.forge = None;
    world.run_for(Duration::from_secs(1));
    world.wait_up();
    let file = random.bytes(100_000);
    let pair = world.connect(
        81,
        Script::send(vec![]),
        Script::send(file.clone()).close(Close::AfterSending),
    );
    assert_eq!(
        world.finish(pair, Duration::from_secs(60)),
        BOTH_FINISHED,
        "SEED={seed} {forge:?}"
    );
    assert!(
        world.client_connection(pair).received == file,
        "SEED={seed}"
    );
    survived
}

#[test]
fn forgeries_on_the_line_disturb_nothing() {
    assert!((0..seeds(40)).all(|seed| storm(seed, Forge::Line)));
}

#[test]
fn forgeries_on_the_lan_disturb_only_their_own_connection() {
    // A forged reset or segment with good checksums does harm a connection, as on any LAN: else the storm is too mild.
    let harmed = (0..seeds(40))
        .filter(|&seed| !storm(seed, Forge::Lan))
        .count();
    assert!(harmed > 0);
    println!("{harmed} connections harmed");
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let anything = prop::collection::vec(any::<u8>(), 0..200);
    // The right addresses and ethertypes get further.
    let plausible = (
        prop::sample::select(vec![
            [2, 0, 0, 0, 0, 1],
            [2, 0, 0, 0, 0, 2],
            [2, 0, 0, 0, 1, 1],
            [0xff; 6],
        ]),
        prop::sample::select(vec![0x0800_u16, 0x0806, 0x8100, 0x86dd]),
        prop::option::of(prop::sample::select(vec![1_u8, 6, 17])),
        prop::collection::vec(any::<u8>(), 0..120),
    )
        .prop_map(|(destination, ethertype, protocol, mut body)| {
            if let Some(protocol) = protocol
                && body.len() > 20
            {
                let len = body.len() as u16;
                body[0] = 0x45;
                body[2..4].copy_from_slice(&len.to_be_bytes());
                body[6..8].copy_from_slice(&[0, 0]);
                body[9] = protocol;
                body[12..16].copy_from_slice(&[10, 77, 1, 10]);
                let last = body[20] & 3;
                body[16..20].copy_from_slice(&[10, 77, 2, last]);
            }
            let mut frame = destination.to_vec();
            frame.extend_from_slice(&[2, 0, 0, 0, 1, 7]);
            frame.extend_from_slice(&ethertype.to_be_bytes());
            frame.extend_from_slice(&body);
            if ethertype == 0x0800 {
                mend_checksums(&mut frame);
            }
            frame
        });
    prop_oneof![anything, plausible]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_frame_panics(frames in prop::collection::vec((0..3_u8, any::<bool>(), frame()), 1..60)) {
        let mut world = World::new(1, LineConfig::CLEAN);
        world.wait_up();
        for (port, branch, frame) in frames {
            let site = if branch { Site::Branch } else { Site::Core };
            let port = [Port::Lan, Port::Wan, Port::Guest][usize::from(port)];
            world.send_to_box(site, port, frame);
            world.run_for(Duration::from_millis(1));
        }
        world.run_for(Duration::from_secs(12));
        prop_assert!(world.is_up());
    }
}
