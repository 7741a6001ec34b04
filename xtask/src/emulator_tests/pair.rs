//! Two boxes with a wire between their WAN ports, on which the test looks.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::boxes::{BOX_ADDRESS, Setup, TestBox};
use super::station::Station;
use super::wire::WireEnd;
use super::{Trial, frames};
use crate::keys::KeyPair;

/// The server at head office, in the prefix that the core serves.
pub const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 2, 10), 80);

/// Carries frames between two wires until it is dropped. A third host hangs on it: the test.
pub struct Line {
    stop: Arc<AtomicBool>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counters {
    frames: AtomicU64,
    bytes: AtomicU64,
    /// Frames for the host on the line.
    to_host: Mutex<Vec<Vec<u8>>>,
    /// Frames that it sends to the branch.
    from_host: Mutex<Vec<Vec<u8>>>,
}

impl Line {
    fn between(branch: Arc<WireEnd>, core: Arc<WireEnd>) -> Line {
        let stop = Arc::new(AtomicBool::new(false));
        let counters = Arc::new(Counters::default());
        let (stopped, counted) = (stop.clone(), counters.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let mut idle = true;
                for frame in lock(&counted.from_host).drain(..) {
                    branch.send(&frame);
                }
                for (from, to) in [(&branch, &core), (&core, &branch)] {
                    while let Some(frame) = from.receive() {
                        counted.frames.fetch_add(1, Ordering::SeqCst);
                        counted
                            .bytes
                            .fetch_add(frame.len() as u64, Ordering::SeqCst);
                        if frame.starts_with(&frames::LINE_STATION) {
                            lock(&counted.to_host).push(frame);
                        } else {
                            to.send(&frame);
                        }
                        idle = false;
                    }
                }
                if idle {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        });
        Line {
            stop,
            counters,
            thread: Some(thread),
        }
    }

    /// Frames carried so far, both directions together.
    pub fn frames(&self) -> u64 {
        self.counters.frames.load(Ordering::SeqCst)
    }

    /// Their bytes, Ethernet headers included.
    pub fn bytes(&self) -> u64 {
        self.counters.bytes.load(Ordering::SeqCst)
    }

    /// Sends a frame to the branch from the host on the line.
    pub fn send_to_branch(&self, frame: Vec<u8>) {
        lock(&self.counters.from_host).push(frame);
    }

    /// Frames that have come for the host on the line since the last call.
    pub fn take_frames(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *lock(&self.counters.to_host))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The two boxes' configurations.
pub struct Configs {
    branch: String,
    core: String,
}

impl Configs {
    /// The branch has the keys `branch`, and the core expects it to have `expected`.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(branch: &KeyPair, expected: &KeyPair) -> Result<Configs> {
        let core_keys = KeyPair::generate()?;
        let branch = format!(
            "role = \"branch\"\nprivate_key = \"{}\"\n[management]\naddress = \"10.77.1.1/16\"\n[[peer]]\nname = \"head-office\"\n\
             public_key = \"{}\"\nendpoint = \"10.77.2.1:3301\"\nprefixes = [\"10.77.2.0/24\"]\n",
            branch.private, core_keys.public
        );
        let core = format!(
            "role = \"core\"\nprivate_key = \"{}\"\n[management]\naddress = \"10.77.2.1/16\"\n[[peer]]\nname = \"branch\"\npublic_key = \"{}\"\n",
            core_keys.private, expected.public
        );
        Ok(Configs { branch, core })
    }

    /// Of two boxes that know each other.
    ///
    /// # Errors
    /// As [`Configs::new`].
    pub fn matching() -> Result<Configs> {
        let keys = KeyPair::generate()?;
        Configs::new(&keys, &keys)
    }

    /// Starts both boxes with disks as they are flashed, and the line between them.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(&self, trial: &Trial<'_>) -> Result<Pair> {
        let [branch, core] = self.setups();
        let branch = branch.start_as(trial, "branch")?;
        let core = core.start_as(trial, "core")?;
        Ok(Pair::of(branch, core))
    }

    /// As [`Configs::start`], from disks that are there: the branch's and the core's.
    ///
    /// # Errors
    /// As [`Configs::start`].
    pub fn start_from(&self, trial: &Trial<'_>, disks: [PathBuf; 2]) -> Result<Pair> {
        let [branch, core] = self.setups();
        let [branch_disk, core_disk] = disks;
        let branch = branch.start_from(trial, branch_disk, "branch-again")?;
        let core = core.start_from(trial, core_disk, "core-again")?;
        Ok(Pair::of(branch, core))
    }

    /// What the branch and the core are made of.
    pub fn setups(&self) -> [Setup; 2] {
        let branch = Setup::new(self.branch.clone());
        let mut core = Setup::new(self.core.clone());
        core.number = 1;
        [branch, core]
    }
}

/// Two boxes and their line.
pub struct Pair {
    /// The branch's.
    pub branch: TestBox,
    /// Head office's.
    pub core: TestBox,
    /// Between their WAN ports.
    pub line: Line,
}

impl Pair {
    /// Puts a line between two boxes.
    pub fn of(branch: TestBox, core: TestBox) -> Pair {
        let line = Line::between(branch.wan.clone(), core.wan.clone());
        Pair { branch, core, line }
    }

    /// Waits until the tunnel is up on both sides.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`].
    pub fn is_up(&mut self) -> Result<()> {
        for side in [&mut self.branch, &mut self.core] {
            side.wait_for("the tunnel to come up", |said| {
                tunnel_is_up(said).then_some(())
            })?;
        }
        Ok(())
    }

    /// A client at the branch and a server at head office.
    pub fn stations(&self) -> [Station; 2] {
        let address = |site| Ipv4Addr::new(10, 77, site, 10);
        [
            Station::new(
                &self.branch.lan,
                frames::LAN_STATION,
                address(1),
                BOX_ADDRESS,
            ),
            Station::new(
                &self.core.lan,
                frames::WAN_STATION,
                address(2),
                Ipv4Addr::new(10, 77, 2, 1),
            ),
        ]
    }

    /// Lets both stations and the test go on until `is_done`; `what` says what is waited for.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`], or what `is_done` says.
    pub fn until(
        &mut self,
        stations: &mut [Station; 2],
        what: &str,
        mut is_done: impl FnMut(&mut [Station; 2]) -> Result<bool>,
    ) -> Result<()> {
        while !is_done(stations)? {
            let busy = stations.iter_mut().fold(false, |busy, it| it.poll() | busy);
            self.branch.alive(what)?;
            self.core.alive(what)?;
            if !busy {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// The client asks the server at [`SERVER`], which sends `file`. Gives what the client received.
    ///
    /// # Errors
    /// As [`Pair::until`].
    pub fn fetch(&mut self, stations: &mut [Station; 2], file: &[u8]) -> Result<Vec<u8>> {
        let [client, server] = stations;
        let mut serving = server.listen(SERVER.port())?;
        let mut asking = client.connect(SERVER)?;
        asking.send(b"the file, please\n");
        serving.send(file);
        serving.close();
        self.until(stations, "the file", |[client, server]| {
            serving.turn(server)?;
            asking.turn(client)
        })?;
        asking.close();
        let mut ended = (false, false);
        self.until(stations, "the end of the connection", |[client, server]| {
            ended.0 |= serving.turn(server)?;
            ended.1 |= asking.turn(client)?;
            Ok(ended == (true, true))
        })?;
        Ok(asking.received)
    }

    /// Frames of no protocol cross both boxes and the line, both ways.
    fn bridges(&mut self) -> Result<()> {
        self.branch.milestone("forwarding")?;
        self.core.milestone("forwarding")?;
        let (near, far) = (self.branch.lan.clone(), self.core.lan.clone());
        let (one, other) = (frames::LAN_STATION, frames::WAN_STATION);
        let out = frames::raw(one, other, b"outpost test through two boxes, out ", 1514);
        self.branch
            .carries(&near, &far, &out, "a frame to cross two boxes")?;
        let back = frames::raw(other, one, b"outpost test through two boxes, back", 1514);
        self.core
            .carries(&far, &near, &back, "a frame to cross two boxes back")
    }
}

/// True while the last status says that the tunnel is up.
fn tunnel_is_up(said: &super::watch::Said) -> bool {
    said.status()
        .is_some_and(|status| status["net"]["tunnel"]["up"] == true)
}

/// With the right keys the tunnel comes up on both sides.
pub fn tunnel(trial: &mut Trial<'_>) -> Result<()> {
    let mut pair = Configs::matching()?.start(trial)?;
    pair.is_up()?;
    pair.bridges()?;
    ensure!(pair.line.frames() > 0, "nothing crossed the line");
    Ok(())
}

/// With another key than the core expects, both say so, nothing is tunnelled, and the boxes are a cable.
pub fn wrong_key(trial: &mut Trial<'_>) -> Result<()> {
    let (keys, expected) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut pair = Configs::new(&keys, &expected)?.start(trial)?;
    pair.core
        .console("which is not the [[peer]] public_key configured here")?;
    pair.branch.console("does not accept this box's key")?;
    pair.bridges()?;
    for side in [&mut pair.branch, &mut pair.core] {
        side.goes_on(2)?;
        ensure!(
            !side.said(tunnel_is_up),
            "the tunnel is up with the wrong key"
        );
    }
    Ok(())
}
