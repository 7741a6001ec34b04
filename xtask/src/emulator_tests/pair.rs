//! Two boxes with a wire between their WAN ports, on which the test looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::boxes::{Setup, TestBox};
use super::wire::WireEnd;
use super::{Trial, frames};
use crate::keys::KeyPair;

/// Carries frames between two wires until it is dropped.
struct Line {
    stop: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    fn between(one: Arc<WireEnd>, other: Arc<WireEnd>) -> Line {
        let stop = Arc::new(AtomicBool::new(false));
        let carried = Arc::new(AtomicU64::new(0));
        let (stopped, counter) = (stop.clone(), carried.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let mut idle = true;
                for (from, to) in [(&one, &other), (&other, &one)] {
                    while let Some(frame) = from.receive() {
                        to.send(&frame);
                        counter.fetch_add(1, Ordering::SeqCst);
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
            carried,
            thread: Some(thread),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Pair {
    branch: TestBox,
    core: TestBox,
    line: Line,
}

/// Two boxes; the branch has `branch`, and the core expects it to have `expected`.
fn start(trial: &Trial<'_>, branch: &KeyPair, expected: &KeyPair) -> Result<Pair> {
    let core_keys = KeyPair::generate()?;
    let branch_config = format!(
        "role = \"branch\"\nprivate_key = \"{}\"\n[management]\naddress = \"10.77.1.1/16\"\n[[peer]]\nname = \"head-office\"\n\
         public_key = \"{}\"\nendpoint = \"10.77.2.1:3301\"\nprefixes = [\"10.77.2.0/24\"]\n",
        branch.private, core_keys.public
    );
    let core_config = format!(
        "role = \"core\"\nprivate_key = \"{}\"\n[management]\naddress = \"10.77.2.1/16\"\n[[peer]]\nname = \"branch\"\npublic_key = \"{}\"\n",
        core_keys.private, expected.public
    );
    let branch = Setup::new(branch_config).start_as(trial, "branch")?;
    let mut core = Setup::new(core_config);
    core.number = 1;
    let core = core.start_as(trial, "core")?;
    let line = Line::between(branch.wan.clone(), core.wan.clone());
    Ok(Pair { branch, core, line })
}

impl Pair {
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
    let keys = KeyPair::generate()?;
    let mut pair = start(trial, &keys, &keys)?;
    for side in [&mut pair.branch, &mut pair.core] {
        side.wait_for("the tunnel to come up", |said| {
            tunnel_is_up(said).then_some(())
        })?;
    }
    pair.bridges()?;
    ensure!(
        pair.line.carried.load(Ordering::SeqCst) > 0,
        "nothing crossed the line"
    );
    Ok(())
}

/// With another key than the core expects, both say so, nothing is tunnelled, and the boxes are a cable.
pub fn wrong_key(trial: &mut Trial<'_>) -> Result<()> {
    let (keys, expected) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut pair = start(trial, &keys, &expected)?;
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
