//! Several branches, strangers and noise at one core on one socket.

use core::net::Ipv4Addr;
use std::vec;

use super::super::types::{Event, State, TunnelConfig};
use super::super::{Tunnel, public_key};
use super::*;

const CORE: Endpoint = Endpoint::new(Ipv4Addr::new(10, 0, 0, 2), 3301);
const CORE_KEY: [u8; 32] = [9; 32];

fn at(host: u8) -> Endpoint {
    Endpoint::new(Ipv4Addr::new(192, 0, 2, host), 4000)
}

fn millis(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

/// A branch's tunnel with this private key, to the core with that private key.
fn branch(own: u8, core: [u8; 32], seed: u8, now: Instant) -> Tunnel {
    let config = TunnelConfig::new([own; 32], public_key(&core));
    Tunnel::initiator(config, CORE, [seed; 32], now)
}

/// The first message of such a tunnel.
fn first(own: u8, core: [u8; 32], seed: u8) -> Vec<u8> {
    let mut buffer = Vec::new();
    let now = millis(1);
    assert!(
        branch(own, core, seed, now)
            .poll_transmit(now, &mut buffer)
            .is_some()
    );
    buffer
}

/// A socket whose peers have the private keys 1 to 3.
struct Socket {
    reception: Reception,
    peers: Vec<([u8; 32], Tunnel)>,
    now: Instant,
}

impl Socket {
    fn new() -> Socket {
        let now = millis(1);
        let peers = [1, 2, 3].map(|own| {
            let key = public_key(&[own; 32]);
            let config = TunnelConfig::new(CORE_KEY, key);
            (key, Tunnel::responder(config, [50 + own; 32], now))
        });
        let mut reception = Reception::new(CORE_KEY, [60; 32], now);
        reception.set_peers(now, peers.len());
        Socket {
            reception,
            peers: peers.into(),
            now,
        }
    }

    fn sort(&mut self, from: Endpoint, datagram: &[u8]) -> Sorted {
        let peers = &self.peers;
        let is_peer = |key: &[u8; 32]| peers.iter().any(|peer| peer.0 == *key);
        self.reception.sort(self.now, from, datagram, is_peer)
    }

    /// Hands a datagram to the peer that it is for. Gives which, and what goes back at once.
    fn receive(&mut self, from: Endpoint, datagram: &mut [u8]) -> (Option<usize>, Option<Vec<u8>>) {
        let sorted = self.sort(from, datagram);
        let mut peers = self.peers.iter();
        let whose = match sorted {
            Sorted::Keys(name) => peers.position(|peer| peer.1.has_keys(name)),
            Sorted::Initiator(key) => peers.position(|peer| peer.0 == key),
            Sorted::Refused { answer, .. } => return (None, answer),
            Sorted::Dropped => None,
        };
        if let Some((_, tunnel)) = whose.and_then(|at| self.peers.get_mut(at)) {
            tunnel.receive(self.now, from, datagram);
        }
        (whose, None)
    }

    /// Carries datagrams between branches at their addresses and the socket for so many milliseconds.
    fn carry(&mut self, branches: &mut [(Endpoint, Tunnel)], millis: u64) {
        let mut buffer = Vec::new();
        for _ in 0..millis {
            for (from, tunnel) in branches.iter_mut() {
                while tunnel.poll_transmit(self.now, &mut buffer).is_some() {
                    if let (_, Some(mut answer)) = self.receive(*from, &mut buffer) {
                        tunnel.receive(self.now, CORE, &mut answer);
                    }
                }
            }
            for (_, tunnel) in &mut self.peers {
                while let Some(to) = tunnel.poll_transmit(self.now, &mut buffer) {
                    for (_, branch) in branches.iter_mut().filter(|it| it.0 == to) {
                        branch.receive(self.now, CORE, &mut buffer);
                    }
                }
            }
            self.now += Duration::from_millis(1);
        }
    }
}

/// A stream of the branch carries its own bytes, and its own only.
fn carries(socket: &mut Socket, branches: &mut [(Endpoint, Tunnel)], which: usize, peer: usize) {
    let text = vec![which as u8; 3000];
    let stream = branches[which].1.open_stream().unwrap();
    assert_eq!(branches[which].1.write(stream, &text), text.len());
    socket.carry(branches, 200);
    let tunnel = &mut socket.peers[peer].1;
    let mut opened = None;
    while let Some(event) = tunnel.poll_event() {
        if let Event::Opened(id) = event {
            opened = Some(id);
        }
    }
    let mut got = vec![0; 4000];
    let read = tunnel.read(opened.expect("a stream"), &mut got);
    assert_eq!(got[..read.len], text[..]);
}

#[test]
fn three_branches_come_up_on_one_socket_and_each_has_its_own_tunnel() {
    let mut socket = Socket::new();
    let now = socket.now;
    let mut branches: Vec<_> = [1, 2, 3]
        .map(|own| (at(own), branch(own, CORE_KEY, 20 + own, now)))
        .into();
    socket.carry(&mut branches, 300);
    for which in 0..3 {
        assert_eq!(branches[which].1.state(), State::Up);
        assert_eq!(socket.peers[which].1.peer(), Some(at(1 + which as u8)));
        carries(&mut socket, &mut branches, which, which);
    }
    assert_eq!(
        socket.reception.statistics(),
        ReceptionStatistics::default()
    );
}

#[test]
fn branches_are_told_apart_by_their_keys_and_not_by_their_address() {
    let mut socket = Socket::new();
    let now = socket.now;
    // Two behind one router that gives them one address, each by its own port.
    let nat = |port| Endpoint::new(Ipv4Addr::new(203, 0, 113, 1), port);
    let mut branches = vec![
        (nat(1000), branch(2, CORE_KEY, 31, now)),
        (nat(1001), branch(1, CORE_KEY, 32, now)),
    ];
    socket.carry(&mut branches, 300);
    carries(&mut socket, &mut branches, 0, 1);
    carries(&mut socket, &mut branches, 1, 0);
    // The router gives them each other's port.
    branches[0].0 = nat(1001);
    branches[1].0 = nat(1000);
    carries(&mut socket, &mut branches, 0, 1);
    carries(&mut socket, &mut branches, 1, 0);
    assert_eq!(socket.peers[1].1.peer(), Some(nat(1001)));
    assert_eq!(socket.peers[1].1.statistics().connections, 1);
}

#[test]
fn a_branch_that_starts_again_takes_the_place_of_its_former_self_and_of_nobody_else() {
    let mut socket = Socket::new();
    let now = socket.now;
    let mut branches = vec![
        (at(1), branch(1, CORE_KEY, 41, now)),
        (at(2), branch(2, CORE_KEY, 42, now)),
    ];
    socket.carry(&mut branches, 300);
    branches[0] = (at(7), branch(1, CORE_KEY, 43, socket.now));
    socket.carry(&mut branches, 300);
    let connections = [0, 1].map(|peer| socket.peers[peer].1.statistics().connections);
    assert_eq!(connections, [2, 1]);
    carries(&mut socket, &mut branches, 0, 0);
    carries(&mut socket, &mut branches, 1, 1);
}

#[test]
fn a_stranger_is_told_so_each_time_and_spoken_of_once_an_hour() {
    let mut socket = Socket::new();
    let stranger = public_key(&[7; 32]);
    let mut said = 0;
    for minute in 0..150 {
        socket.now = millis(1) + Duration::from_secs(60 * minute);
        let datagram = first(7, CORE_KEY, minute as u8);
        let Sorted::Refused { wrong, answer } = socket.sort(at(7), &datagram) else {
            panic!("handed on");
        };
        let mut answer = answer.expect("an answer");
        if let Some(wrong) = wrong {
            said += 1;
            assert_eq!(minute % 60, 0, "each hour");
            assert_eq!(
                wrong,
                WrongKey::NotPinned {
                    from: at(7),
                    key: stranger
                }
            );
        }
        if minute == 0 {
            let mut tunnel = branch(7, CORE_KEY, 0, millis(1));
            tunnel.poll_transmit(millis(1), &mut Vec::new());
            tunnel.receive(millis(1), CORE, &mut answer);
            let told = Event::WrongKey(WrongKey::RefusedByPeer { from: CORE });
            assert_eq!(tunnel.poll_event(), Some(told));
        }
    }
    assert_eq!(said, 3);
    assert_eq!(socket.reception.statistics().wrong_key, 150);
}

#[test]
fn who_looks_for_another_core_is_answered_once_a_second_and_spoken_of_once() {
    let mut socket = Socket::new();
    let datagram = first(1, [8; 32], 1);
    let (mut said, mut answered) = (0, 0);
    for tenth in 0..100 {
        socket.now = millis(1 + 100 * tenth);
        let Sorted::Refused { wrong, answer } = socket.sort(at(5), &datagram) else {
            panic!("handed on");
        };
        said += u32::from(wrong == Some(WrongKey::NotOurs { from: at(5) }));
        answered += u32::from(answer.is_some());
    }
    assert_eq!((said, answered), (1, 10));
    let counted = socket.reception.statistics();
    assert_eq!((counted.wrong_key, counted.excess), (100, 0));
}

#[test]
fn many_strangers_make_neither_a_long_list_nor_a_long_log() {
    let mut socket = Socket::new();
    let mut said = 0;
    for host in 0..200 {
        socket.now += Duration::from_millis(100);
        let Sorted::Refused { wrong, .. } = socket.sort(at(host), &first(1, [8; 32], 1)) else {
            panic!("handed on");
        };
        said += u32::from(wrong.is_some());
        assert!(socket.reception.said.len() <= SAID);
    }
    assert_eq!(said, 20, "one a second");
    // The list is full in the end, and the newest are those that are remembered.
    for host in 0..200 {
        socket.now += WRONG_KEY_INTERVAL;
        socket.sort(at(host), &first(1, [8; 32], 1));
    }
    assert_eq!(socket.reception.said.len(), SAID);
    let newest = Stranger::Address(at(199).address);
    assert!(socket.reception.said.iter().any(|said| said.0 == newest));
}

#[test]
fn a_flood_of_first_messages_is_cut_and_the_branches_come_up_all_the_same() {
    let mut socket = Socket::new();
    let datagrams: Vec<_> = (0..100).map(|seed| first(7, CORE_KEY, seed)).collect();
    let mut worked_on = 0;
    for datagram in &datagrams {
        worked_on += u32::from(socket.sort(at(7), datagram) != Sorted::Dropped);
    }
    assert_eq!(worked_on, BUCKET + 2 * 3);
    assert_eq!(
        socket.reception.statistics().excess,
        u64::from(100 - worked_on)
    );
    // Half of what may be worked on in a second is taken by the stranger; a branch tries once a second.
    let now = socket.now;
    let mut branches = vec![(at(1), branch(1, CORE_KEY, 51, now))];
    for seed in 100..200 {
        if seed % 10 == 0 {
            socket.sort(at(7), &first(7, CORE_KEY, seed));
        }
        socket.carry(&mut branches, 50);
    }
    assert_eq!(branches[0].1.state(), State::Up);
}

#[test]
fn a_replay_costs_one_look() {
    let mut socket = Socket::new();
    let datagram = first(1, CORE_KEY, 1);
    let key = public_key(&[1; 32]);
    assert_eq!(socket.sort(at(1), &datagram), Sorted::Initiator(key));
    for _ in 0..1000 {
        assert_eq!(socket.sort(at(1), &datagram), Sorted::Dropped);
    }
    assert_eq!(socket.reception.statistics().excess, 1000);
    // And takes nothing of what others may have worked on.
    for own in [2, 3] {
        let key = public_key(&[own; 32]);
        let sorted = socket.sort(at(own), &first(own, CORE_KEY, own));
        assert_eq!(sorted, Sorted::Initiator(key));
    }
}

#[test]
fn what_is_remembered_grows_with_the_peers_and_no_further() {
    let mut socket = Socket::new();
    socket.reception.set_peers(socket.now, 2);
    for seed in 0..200 {
        socket.now += Duration::from_secs(1);
        socket.sort(at(1), &first(1, CORE_KEY, seed));
        assert!(socket.reception.remembered.len() <= REMEMBERED + 8);
    }
    assert_eq!(socket.reception.remembered.len(), REMEMBERED + 8);
    // Fewer peers: what is too much goes with the next message.
    socket.reception.set_peers(socket.now, 0);
    socket.sort(at(1), &first(1, CORE_KEY, 201));
    assert_eq!(socket.reception.remembered.len(), REMEMBERED);
}

#[test]
fn noise_is_counted_as_what_it_is() {
    let mut socket = Socket::new();
    let mut forged = first(1, CORE_KEY, 1);
    let mac_key = noise::mac_key(&public_key(&CORE_KEY));
    let signed = forged.len() - 16;
    forged[20] ^= 1;
    let mac = noise::mac(&mac_key, &forged[..signed]);
    forged[signed..].copy_from_slice(&mac);
    assert_eq!(socket.sort(at(1), &forged), Sorted::Dropped);
    for noise in [&b""[..], b"x", &[1; 40], &[0xff; 1400], &vec![0x41; 70_000]] {
        assert_eq!(socket.sort(at(1), noise), Sorted::Dropped);
    }
    let counted = socket.reception.statistics();
    assert_eq!((counted.forged, counted.malformed), (1, 5));
    // What names keys that nobody has is for nobody, and no reason to answer.
    let mut data = vec![0x41, 1, 2, 3, 4];
    data.extend([5; 40]);
    assert_eq!(socket.sort(at(1), &data), Sorted::Keys(0x0102_0304));
    assert_eq!(socket.receive(at(1), &mut data), (None, None));
}
