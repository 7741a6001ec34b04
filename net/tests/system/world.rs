//! Two sites with a box each and a line between, all in one process and in simulated time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use outpost_config::Config;
use outpost_net::store::BlockDevice;
use outpost_net::time::Instant;
use outpost_net::{Engine, EngineParts, Port, Statistics};

use crate::host::{Connection, Host, Outcome, Script};
use crate::hostile::{Forge, damage};
use crate::line::{Line, LineConfig, Random};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    Branch,
    Core,
}

impl Site {
    pub fn other(self) -> Site {
        match self {
            Site::Branch => Site::Core,
            Site::Core => Site::Branch,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Box(Site, u8),
    Lan(Site),
}

const LAN_DELAY: u64 = 100;

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 10);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 10);

pub struct Keys {
    pub branch: [u8; 32],
    pub core: [u8; 32],
    /// What the core believes the branch's public key to be.
    pub branch_at_core: [u8; 32],
}

impl Keys {
    pub fn new() -> Keys {
        let (branch, core) = ([11; 32], [22; 32]);
        Keys {
            branch,
            core,
            branch_at_core: outpost_net::tunnel::public_key(&branch),
        }
    }
}

/// When (µs), in which order, where, and what.
type Arrival = (u64, u64, To, Vec<u8>);

pub struct World {
    pub now: u64,
    sequence: u64,
    events: BinaryHeap<Reverse<Arrival>>,
    pub boxes: [Option<Engine>; 2],
    pub hosts: [Host; 2],
    /// Towards the core, towards the branch.
    pub line: [Line; 2],
    pub keys: Keys,
    random: Random,
    /// Frames that entered the line, if wanted.
    pub capture: Option<Vec<Vec<u8>>>,
    pub store: &'static str,
    pub flow_memory: usize,
    /// The boxes' disks, if they have any: they outlive a power cut.
    pub disks: [Option<Rc<dyn BlockDevice>>; 2],
    /// Adds damaged copies of frames that arrive at the boxes, from a seed of their own.
    pub forge: Option<(Forge, u64)>,
    /// What each box has taken of its memory since, if wanted.
    pub taken: Option<[Taken; 2]>,
}

/// What a box has taken of its memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// How often.
    pub times: u64,
    /// Bytes, less those that it has given back.
    pub bytes: i64,
    /// The most that it was at any time.
    pub most: i64,
}

/// Does something, and counts what it takes.
fn count(taken: Option<&mut Taken>, run: impl FnOnce()) {
    let Some(taken) = taken else {
        return run();
    };
    let by_this = allocation_counter::measure(run);
    taken.times += by_this.count_total;
    taken.most = taken.most.max(taken.bytes + by_this.bytes_max as i64);
    taken.bytes += by_this.bytes_current;
}

fn index(site: Site) -> usize {
    site as usize
}

pub fn base64(bytes: &[u8; 32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0u32, |word, at| {
            word << 8 | u32::from(chunk.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            if at <= chunk.len() {
                text.push(DIGITS[(word >> (18 - 6 * at) & 63) as usize] as char);
            } else {
                text.push('=');
            }
        }
    }
    text
}

impl World {
    pub fn new(seed: u64, line: LineConfig) -> World {
        crate::start_log();
        let mut random = Random::new(seed);
        let hosts = [
            Host::new(1, CLIENT, random.number()),
            Host::new(2, SERVER, random.number()),
        ];
        let mut world = World {
            now: 1_000_000,
            sequence: 0,
            events: BinaryHeap::new(),
            boxes: [None, None],
            hosts,
            line: [
                Line::new(line, random.number()),
                Line::new(line, random.number()),
            ],
            keys: Keys::new(),
            random,
            capture: None,
            store: "16M",
            flow_memory: 64 << 20,
            disks: [None, None],
            forge: None,
            taken: None,
        };
        world.power_on(Site::Branch);
        world.power_on(Site::Core);
        world
    }

    fn config(&self, site: Site) -> Config {
        let text = match site {
            Site::Branch => format!(
                r#"role = "branch"
                private_key = "{}"
                [management]
                address = "10.77.1.1/16"
                [[peer]]
                name = "core"
                public_key = "{}"
                endpoint = "10.77.2.1:3301"
                prefixes = ["10.77.2.0/24"]
                [store]
                memory = "{}"
                "#,
                base64(&self.keys.branch),
                base64(&outpost_net::tunnel::public_key(&self.keys.core)),
                self.store,
            ),
            Site::Core => format!(
                r#"role = "core"
                private_key = "{}"
                [management]
                address = "10.77.2.1/16"
                [[peer]]
                name = "branch"
                public_key = "{}"
                [store]
                memory = "{}"
                "#,
                base64(&self.keys.core),
                base64(&self.keys.branch_at_core),
                self.store,
            ),
        };
        Config::parse(&text).unwrap()
    }

    /// Switches a box on, with nothing in its memory but what is on its disk.
    pub fn power_on(&mut self, site: Site) {
        let parts = EngineParts {
            mac: [2, 0, 0, 0, 0, 1 + site as u8],
            seed: self.random.seed(),
            store_memory: 16 << 20,
            flow_memory: self.flow_memory,
        };
        let disk = self.disks[index(site)].clone();
        let now = Instant::from_micros(self.now);
        let engine = Engine::with_store(&self.config(site), parts, disk, now);
        self.boxes[index(site)] = Some(engine);
    }

    /// Switches a box off: its ports are joined as by the relay in a real network card.
    pub fn power_off(&mut self, site: Site) {
        self.boxes[index(site)] = None;
    }

    pub fn set_line(&mut self, up: bool) {
        self.line[0].up = up;
        self.line[1].up = up;
    }

    pub fn client(&mut self) -> &mut Host {
        &mut self.hosts[0]
    }

    pub fn server(&mut self) -> &mut Host {
        &mut self.hosts[1]
    }

    pub fn statistics(&self, site: Site) -> Statistics {
        self.boxes[index(site)].as_ref().unwrap().statistics()
    }

    pub fn is_up(&self) -> bool {
        [Site::Branch, Site::Core].iter().all(|&site| {
            self.boxes[index(site)]
                .as_ref()
                .is_some_and(|engine| engine.statistics().tunnel.up)
        })
    }

    /// IP bytes that entered the line, both directions.
    pub fn line_bytes(&self) -> u64 {
        self.line[0].counters.bytes + self.line[1].counters.bytes
    }

    fn post(&mut self, at: u64, to: To, frame: Vec<u8>) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, to, frame)));
    }

    fn port_number(port: Port) -> u8 {
        match port {
            Port::Lan => 0,
            Port::Wan => 1,
            Port::Guest => 2,
        }
    }

    /// Puts a frame on the line at a site's end of it.
    pub fn send_to_line(&mut self, from: Site, frame: Vec<u8>) {
        if let Some(capture) = &mut self.capture {
            capture.push(frame.clone());
        }
        let arrivals = self.line[index(from)].send(self.now, frame.len());
        for at in arrivals {
            self.post(at, To::Box(from.other(), 1), frame.clone());
        }
    }

    /// Puts a frame on a site's LAN, for its box.
    pub fn send_to_box(&mut self, site: Site, port: Port, frame: Vec<u8>) {
        self.post(self.now, To::Box(site, World::port_number(port)), frame);
    }

    fn leave_box(&mut self, site: Site, port: Port, frame: Vec<u8>) {
        match port {
            Port::Lan => self.post(self.now + LAN_DELAY, To::Lan(site), frame),
            Port::Wan => self.send_to_line(site, frame),
            Port::Guest => {}
        }
    }

    /// Lets damaged copies of a frame arrive before it.
    fn forge(&mut self, site: Site, port: Port, frame: &[u8]) {
        let Some((forge, seed)) = self.forge else {
            return;
        };
        if (forge == Forge::Lan) != (port == Port::Lan) {
            return;
        }
        let mut random = Random::new(seed);
        if random.chance(600_000)
            && let Some(engine) = &mut self.boxes[index(site)]
        {
            for _ in 0..1 + random.below(3) {
                let damaged = damage(&mut random, frame);
                engine.receive(Instant::from_micros(self.now), port, &damaged);
            }
        }
        self.forge = Some((forge, random.number()));
    }

    fn deliver(&mut self, to: To, frame: Vec<u8>) {
        match to {
            To::Lan(site) => {
                trace(self.now, "to host", site, &frame);
                self.hosts[index(site)].receive(frame);
            }
            To::Box(site, number) => {
                if number == 0 {
                    trace(self.now, "from host", site, &frame);
                }
                let port = [Port::Lan, Port::Wan, Port::Guest][usize::from(number)];
                self.forge(site, port, &frame);
                let taken = self.taken.as_mut().map(|taken| &mut taken[index(site)]);
                match &mut self.boxes[index(site)] {
                    Some(engine) => count(taken, || {
                        engine.receive(Instant::from_micros(self.now), port, &frame);
                    }),
                    // The bypass relay.
                    None => match port {
                        Port::Lan => self.send_to_line(site, frame),
                        Port::Wan => self.post(self.now + LAN_DELAY, To::Lan(site), frame),
                        Port::Guest => {}
                    },
                }
            }
        }
    }

    fn poll_all(&mut self) {
        for site in [Site::Branch, Site::Core] {
            for frame in self.hosts[index(site)].poll(self.now) {
                self.post(self.now + LAN_DELAY, To::Box(site, 0), frame);
            }
            if let Some(mut engine) = self.boxes[index(site)].take() {
                let mut out = vec![];
                let now = Instant::from_micros(self.now);
                let taken = self.taken.as_mut().map(|taken| &mut taken[index(site)]);
                count(taken, || {
                    engine.poll(now, &mut |port, frame| {
                        // What the bench itself puts aside does not count.
                        allocation_counter::opt_out(|| out.push((port, frame.to_vec())));
                    });
                });
                if let Some(ticket) = engine.keep_store(now) {
                    engine.store_flushed(ticket);
                }
                self.boxes[index(site)] = Some(engine);
                for (port, frame) in out {
                    self.leave_box(site, port, frame);
                }
            }
        }
    }

    fn next_time(&mut self) -> Option<u64> {
        let now = self.now;
        let mut next = self.events.peek().map(|event| event.0.0);
        let mut consider = |at: Option<u64>| {
            if let Some(at) = at {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        };
        for engine in self.boxes.iter().flatten() {
            let at = engine.next_wakeup(Instant::from_micros(now));
            // An engine that has more to do now is given a moment, as the box's loop would.
            consider(at.map(|at| at.as_micros().max(now + 20)));
        }
        for host in &mut self.hosts {
            consider(host.next_wakeup(now));
        }
        next
    }

    /// Runs until `done` or for `most`; gives whether it is done.
    pub fn run_until(&mut self, most: Duration, mut done: impl FnMut(&mut World) -> bool) -> bool {
        let end = self.now + most.as_micros() as u64;
        loop {
            self.poll_all();
            if done(self) {
                return true;
            }
            let next = match self.next_time() {
                Some(next) if next <= end => next,
                _ => {
                    self.now = end;
                    return false;
                }
            };
            self.now = self.now.max(next);
            while let Some(Reverse((at, ..))) = self.events.peek() {
                if *at > self.now {
                    break;
                }
                let Reverse((_, _, to, frame)) = self.events.pop().unwrap();
                self.deliver(to, frame);
            }
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Runs until the tunnel is up.
    pub fn wait_up(&mut self) {
        assert!(
            self.run_until(Duration::from_secs(20), |world| world.is_up()),
            "the tunnel does not come up"
        );
    }

    /// A connection of the client to the server with a script for each.
    pub fn connect(&mut self, port: u16, client: Script, server: Script) -> Pair {
        let server = self.server().listen(port, server);
        let client = self.connect_only(port, client);
        Pair { client, server }
    }

    pub fn connect_only(&mut self, port: u16, client: Script) -> usize {
        let from = 40_000 + self.client().connections.len() as u16;
        self.client().connect(SERVER, port, from, client)
    }

    pub fn client_connection(&self, pair: Pair) -> &Connection {
        &self.hosts[0].connections[pair.client]
    }

    pub fn server_connection(&self, pair: Pair) -> &Connection {
        &self.hosts[1].connections[pair.server]
    }

    pub fn outcomes(&self, pair: Pair) -> (Option<Outcome>, Option<Outcome>) {
        (
            self.client_connection(pair).outcome,
            self.server_connection(pair).outcome,
        )
    }

    /// Runs until both ends of a connection are done.
    pub fn finish(&mut self, pair: Pair, most: Duration) -> (Option<Outcome>, Option<Outcome>) {
        self.run_until(most, |world| {
            let (client, server) = world.outcomes(pair);
            client.is_some() && server.is_some()
        });
        self.outcomes(pair)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub client: usize,
    pub server: usize,
}

/// With `TRACE=port` in the environment, TCP segments from or to that port are printed.
fn trace(now: u64, what: &str, site: Site, frame: &[u8]) {
    use smoltcp::wire::{EthernetFrame, Ipv4Packet, TcpPacket};
    let Some(port) = std::env::var("TRACE")
        .ok()
        .and_then(|port| port.parse::<u16>().ok())
    else {
        return;
    };
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else {
        return;
    };
    let Ok(ip) = Ipv4Packet::new_checked(ethernet.payload()) else {
        return;
    };
    let Ok(tcp) = TcpPacket::new_checked(ip.payload()) else {
        return;
    };
    if tcp.src_port() == port || tcp.dst_port() == port {
        eprintln!("{now} {site:?} {what}: {tcp}");
    }
}
