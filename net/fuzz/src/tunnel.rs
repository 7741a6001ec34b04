//! Targets for the tunnel: datagrams of strangers, handshakes at a core with several branches, frames, and what a peer with
//! the right key may put into its packets.

use core::net::Ipv4Addr;
use core::time::Duration;

use outpost_net::time::Instant;
use outpost_net::tunnel::{
    Endpoint, Event, Reception, Sorted, State, Tunnel, TunnelConfig, TunnelStatistics, fuzzing,
    public_key,
};

use crate::Target;
use crate::mutate::leb128;
use crate::script::{Script, put_piece};

pub(crate) const BRANCH: Endpoint = Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), 3301);
pub(crate) const CORE: Endpoint = Endpoint::new(Ipv4Addr::new(10, 0, 0, 2), 3301);
const ELSEWHERE: Endpoint = Endpoint::new(Ipv4Addr::new(192, 0, 2, 1), 9);
pub(crate) const BRANCH_KEY: [u8; 32] = [1; 32];
pub(crate) const CORE_KEY: [u8; 32] = [2; 32];
const STRANGER_KEY: [u8; 32] = [3; 32];
/// Bytes of a `REJECT`.
const REJECT: usize = 6;

/// One end's configuration, with small buffers.
pub(crate) fn config(own: [u8; 32], peer: [u8; 32]) -> TunnelConfig {
    TunnelConfig {
        receive_memory: 256 * 1024,
        send_memory: 256 * 1024,
        max_streams: 64,
        ..TunnelConfig::new(own, public_key(&peer))
    }
}

/// Two ends and the time.
struct Pair {
    branch: Tunnel,
    core: Tunnel,
    now: Instant,
    /// Bytes that the core sent to [`ELSEWHERE`].
    elsewhere: usize,
}

impl Pair {
    /// Both ends, not connected. Their keys and names follow from the seeds.
    fn new(seed: u8) -> Pair {
        let now = Instant::from_millis(1);
        Pair {
            branch: Tunnel::initiator(config(BRANCH_KEY, CORE_KEY), CORE, [seed; 32], now),
            core: Tunnel::responder(config(CORE_KEY, BRANCH_KEY), [seed ^ 0xff; 32], now),
            now,
            elsewhere: 0,
        }
    }

    fn connected() -> Pair {
        let mut pair = Pair::new(1);
        pair.run(20);
        assert!(pair.is_up(), "an honest handshake");
        pair
    }

    fn is_up(&self) -> bool {
        self.branch.state() == State::Up && self.core.state() == State::Up
    }

    /// Carries datagrams for so many milliseconds, on a line without delay.
    fn run(&mut self, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        let mut buffer = Vec::new();
        loop {
            // Whatever an input has brought about, an end does not talk without end.
            for turn in 0.. {
                assert!(turn < 5000, "the ends never fall silent");
                let mut sent = false;
                if self.branch.poll_transmit(self.now, &mut buffer).is_some() {
                    sent = true;
                    self.core.receive(self.now, BRANCH, &mut buffer);
                }
                if let Some(to) = self.core.poll_transmit(self.now, &mut buffer) {
                    sent = true;
                    if to == ELSEWHERE {
                        self.elsewhere += buffer.len();
                    } else {
                        self.branch.receive(self.now, CORE, &mut buffer);
                    }
                }
                if !sent {
                    break;
                }
            }
            let wakes = [&self.branch, &self.core].map(|end| end.next_wakeup(self.now));
            let next = wakes.into_iter().flatten().min();
            let next = next.map(|at| at.max(self.now + Duration::from_micros(50)));
            match next.filter(|at| *at < until) {
                Some(at) => self.now = at,
                None => break,
            }
        }
        self.now = until;
    }

    /// A stream of the branch carries its bytes.
    fn must_work(&mut self) {
        let text: Vec<u8> = (0..5000).map(|at: u32| at as u8).collect();
        let stream = self
            .branch
            .open_stream()
            .expect("a tunnel that is up has room for a stream");
        assert_eq!(self.branch.write(stream, &text), text.len());
        self.branch.finish(stream);
        let (mut got, mut buffer) = (Vec::new(), vec![0; 8192]);
        let mut at_core = None;
        for _ in 0..400 {
            self.run(10);
            while let Some(event) = self.core.poll_event() {
                if let Event::Opened(id) = event
                    && id.number() == stream.number()
                {
                    at_core = Some(id);
                }
            }
            let Some(id) = at_core else { continue };
            let read = self.core.read(id, &mut buffer);
            got.extend_from_slice(&buffer[..read.len]);
            if read.finished {
                assert!(got == text, "wrong bytes");
                return;
            }
        }
        panic!("{} of {} bytes arrive", got.len(), text.len());
    }
}

fn dropped(it: &TunnelStatistics) -> u64 {
    it.dropped_malformed
        + it.dropped_unknown
        + it.dropped_forged
        + it.dropped_replayed
        + it.dropped_handshakes
        + it.rejected_wrong_key
        + it.handshakes_received
}

/// Strangers' datagrams at both ends of a tunnel that is up. Pieces: how (a byte), then the datagram.
pub const DATAGRAMS: Target = Target {
    name: "tunnel_datagrams",
    about: "datagrams of strangers at both ends: each is counted, none takes the tunnel down, answers are no longer than questions",
    run: datagrams,
    honest: || {
        // Of ends with other seeds than those of the target: nothing of it is to be believed.
        let mut pair = Pair::new(77);
        let (mut all, mut buffer, mut script) = (vec![], vec![], vec![]);
        let names = ["first", "second", "confirmation", "data", "later"];
        for name in names {
            let from_branch = pair.branch.poll_transmit(pair.now, &mut buffer).is_some();
            if !from_branch && pair.core.poll_transmit(pair.now, &mut buffer).is_none() {
                pair.now += Duration::from_millis(30);
                continue;
            }
            for how in [u8::from(!from_branch), 2, 4 | 8] {
                put_piece(&mut script, &[&[how], buffer.as_slice()].concat());
            }
            all.push((name, script.clone()));
            script.clear();
            if from_branch {
                pair.core.receive(pair.now, BRANCH, &mut buffer);
            } else {
                pair.branch.receive(pair.now, CORE, &mut buffer);
            }
        }
        all
    },
    cases: 1000,
    memory: 8 << 20,
};

fn datagrams(input: &[u8]) {
    let mut pair = Pair::connected();
    let before = [&pair.branch, &pair.core].map(|end| dropped(&end.statistics()));
    let (mut taken, mut asked) = ([0, 0], 0);
    let mut script = Script(input);
    while !script.is_empty() && taken[0] + taken[1] < 100 {
        let piece = script.piece();
        let (how, datagram) = piece.split_first().unwrap_or((&0, &[]));
        let mut datagram = datagram.to_vec();
        if how & 4 != 0 {
            fuzzing::pay(&mut datagram, &public_key(&CORE_KEY));
        }
        let to_core = how & 1 == 0;
        let end = if to_core {
            &mut pair.core
        } else {
            &mut pair.branch
        };
        if how & 8 != 0
            && let Some(place) = datagram.get_mut(1..5)
            && let Some(index) = fuzzing::index(end)
        {
            place.copy_from_slice(&index.to_be_bytes());
        }
        let from = if how & 2 != 0 {
            ELSEWHERE
        } else if to_core {
            BRANCH
        } else {
            CORE
        };
        asked += if from == ELSEWHERE { datagram.len() } else { 0 };
        taken[usize::from(to_core)] += 1;
        end.receive(pair.now, from, &mut datagram);
        pair.run(2);
    }
    assert!(
        pair.elsewhere <= asked,
        "{} bytes for {asked}",
        pair.elsewhere
    );
    let after = [&pair.branch, &pair.core].map(|end| dropped(&end.statistics()));
    // The branch also gets the core's answers to what looks as if it came from it.
    assert!(after[0] - before[0] >= taken[0], "each is counted");
    assert_eq!(after[1] - before[1], taken[1], "each is counted once");
    assert!(pair.is_up(), "a stranger has taken the tunnel down");
    let (branch, core) = (pair.branch.statistics(), pair.core.statistics());
    assert_eq!((branch.connections, core.connections), (1, 1));
    assert_eq!((branch.address_changes, core.address_changes), (0, 0));
    pair.must_work();
}

/// Datagrams at the socket of a core with several branches. Pieces: how (a byte), then the datagram.
pub const HANDSHAKES: Target = Target {
    name: "tunnel_handshakes",
    about: "first messages at a core with several branches: only a peer's is handed on, work and answers are bounded",
    run: handshakes,
    honest: || {
        let first = |own: [u8; 32], core: [u8; 32], seed: u8| {
            let mut buffer = vec![];
            let mut tunnel =
                Tunnel::initiator(config(own, core), CORE, [seed; 32], Instant::from_millis(1));
            tunnel.poll_transmit(Instant::from_millis(1), &mut buffer);
            buffer
        };
        let mut all = vec![];
        for (name, datagram) in [
            ("peer", first(BRANCH_KEY, CORE_KEY, 7)),
            ("stranger", first(STRANGER_KEY, CORE_KEY, 8)),
            ("another_core", first(BRANCH_KEY, STRANGER_KEY, 9)),
            ("data", [&[0x41][..], &[9; 40]].concat()),
            ("reject", vec![3, 1, 2, 3, 4, 1]),
        ] {
            let mut script = vec![];
            for how in [0, 0, 1, 2] {
                put_piece(&mut script, &[&[how], datagram.as_slice()].concat());
            }
            all.push((name, script));
        }
        let (mut flood, mut one) = (vec![], first(STRANGER_KEY, CORE_KEY, 8));
        for count in 0..60 {
            one[100] = count;
            put_piece(&mut flood, &[&[1], one.as_slice()].concat());
        }
        all.push(("flood", flood));
        all
    },
    cases: 3000,
    memory: 2 << 20,
};

fn handshakes(input: &[u8]) {
    let mut now = Instant::from_millis(1);
    let mut reception = Reception::new(CORE_KEY, [5; 32], now);
    reception.set_peers(now, 2);
    let peers = [public_key(&BRANCH_KEY), public_key(&[9; 32])];
    let mut script = Script(input);
    let (mut initiators, mut refused, mut keys, mut dropped) = (0, 0, 0, 0);
    let mut said = 0;
    for count in 1..200 {
        if script.is_empty() {
            break;
        }
        let piece = script.piece();
        let (how, datagram) = piece.split_first().unwrap_or((&0, &[]));
        let mut datagram = datagram.to_vec();
        if how & 1 != 0 {
            fuzzing::pay(&mut datagram, &public_key(&CORE_KEY));
        }
        now += Duration::from_millis(u64::from(how >> 1));
        match reception.sort(now, ELSEWHERE, &datagram, |key| peers.contains(key)) {
            Sorted::Keys(index) => {
                keys += 1;
                assert_eq!(datagram.get(1..5), Some(&index.to_be_bytes()[..]));
            }
            Sorted::Initiator(key) => {
                initiators += 1;
                assert!(peers.contains(&key), "a stranger is handed on");
            }
            Sorted::Refused { wrong, answer } => {
                refused += 1;
                said += u64::from(wrong.is_some());
                assert!(answer.is_none_or(|it| it.len() == REJECT && it.len() < datagram.len()));
            }
            Sorted::Dropped => dropped += 1,
        }
        let counted = reception.statistics();
        assert_eq!(counted.malformed + counted.forged + counted.excess, dropped);
        assert_eq!(counted.wrong_key, refused);
        // Twenty at once and two for each peer, then ten a second: no more are decrypted.
        let most = 24 + now.as_micros() / 100_000;
        assert!(
            initiators + counted.forged <= most,
            "{initiators} are worked on"
        );
        assert_eq!(initiators + refused + keys + dropped, count);
    }
    assert!(
        said <= 1 + now.as_micros() / 1_000_000,
        "{said} lines in the log"
    );
}

/// A packet's payload: written again, it reads the same.
pub const FRAMES: Target = Target {
    name: "tunnel_frames",
    about: "frames of one packet: what is read and written again reads the same",
    run: |input| {
        let Some(first) = fuzzing::frames(input) else {
            return;
        };
        let second = fuzzing::frames(&first.again).expect("what is written can be read");
        assert_eq!(second.shown, first.shown);
        assert_eq!(second.again, first.again);
        // These have one form; others may be written shorter than they came.
        let kinds = ["Ping", "Reset", "Max", "Settled", "Close"];
        let has_one_form = |shown: &String| kinds.iter().any(|kind| shown.starts_with(kind));
        assert!(first.again == input || !first.shown.iter().all(has_one_form));
        assert!(
            first.again.len() <= input.len(),
            "{} bytes",
            first.again.len()
        );
    },
    honest: payload_seeds,
    cases: 20_000,
    memory: 4 << 20,
};

/// What honest packets hold, and some that break one rule.
fn payload_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let with = |kind: u8, numbers: &[u64]| {
        let mut frame = vec![kind];
        for number in numbers {
            frame.extend(leb128(*number));
        }
        frame
    };
    let stream = |kind, numbers: &[u64], data: &[u8]| [with(kind, numbers), data.to_vec()].concat();
    vec![
        ("ping", vec![1]),
        ("ack", with(2, &[9, 100, 2, 1, 0, 1, 0, 1])),
        ("reset", with(3, &[2, 7, 0])),
        (
            "limits",
            [with(4, &[1 << 20]), with(5, &[2, 1 << 19]), with(6, &[100])].concat(),
        ),
        ("settled", [with(7, &[3]), vec![1]].concat()),
        ("stream", stream(0x17, &[2, 0x100, 5], b"hello")),
        (
            "stream_to_end",
            stream(0x10, &[2], b"hello, this is all that there is"),
        ),
        (
            "two_streams",
            [stream(0x12, &[2, 3], b"abc"), stream(0x12, &[4, 3], b"def")].concat(),
        ),
        ("finished", stream(0x13, &[2, 0], b"")),
        ("close", vec![8, 0]),
        ("padded_number", vec![4, 0x85, 0]),
        (
            "too_many_ranges",
            [with(2, &[9000, 1, 300, 1]), vec![1; 600]].concat(),
        ),
    ]
}

/// Payloads that a peer with the right key sends, one packet each.
pub const PAYLOADS: Target = Target {
    name: "tunnel_payloads",
    about: "payloads of an authenticated peer that keeps no rule: bounded memory, a reason when the tunnel ends, and the next one works",
    run: payloads,
    honest: || {
        let mut all = vec![];
        for (name, frames) in payload_seeds() {
            let mut script = vec![];
            put_piece(&mut script, &frames);
            put_piece(&mut script, &[&frames[..], &[0; 9]].concat());
            all.push((name, script));
        }
        all
    },
    cases: 600,
    memory: 16 << 20,
};

fn payloads(input: &[u8]) {
    let mut pair = Pair::connected();
    let stream = pair.core.open_stream().expect("a tunnel that is up");
    pair.core.write(stream, &[5; 3000]);
    let mut script = Script(input);
    let (mut opened, mut downs) = (vec![], 0);
    for _ in 0..100 {
        let piece = script.piece();
        if !fuzzing::inject(&mut pair.core, pair.now, piece) || script.is_empty() {
            break;
        }
        pair.run(1);
        while let Some(event) = pair.core.poll_event() {
            match event {
                Event::Opened(id) => opened.push(id),
                Event::Down(_) => downs += 1,
                _ => {}
            }
        }
        let held: usize = opened.iter().map(|id| pair.core.readable(*id)).sum();
        // 256 may always be open. One is the core's.
        let streams = pair.core.statistics().streams;
        assert!(
            held <= 256 * 1024 && streams <= 257,
            "{held} bytes, {streams} streams"
        );
        if downs > 0 {
            break;
        }
    }
    // The peer starts anew and keeps to the rules now.
    let branch = config(BRANCH_KEY, CORE_KEY);
    pair.branch = Tunnel::initiator(branch, CORE, [99; 32], pair.now);
    for _ in 0..400 {
        pair.run(10);
        if pair.is_up() && pair.core.statistics().connections > 1 {
            break;
        }
    }
    assert!(pair.is_up(), "the next connection is not made");
    pair.must_work();
}
