//! One run of the guest from its start to its last mark: reads what it and the box say, and stamps it.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::load::Load;
use super::marks::{self, Event, Line, Seen};
use super::ways::{Bench, Running, Way};
use crate::process;

/// Far beyond what any piece of the work takes, even on a busy machine.
const SILENCE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(100);
/// The box says by then what it knows of a guest that it has stopped.
const EVIDENCE: Duration = Duration::from_secs(1);
/// What it says when the guest's state is the hypervisor's own (`Place` in `hv/src/cpu/mod.rs`).
const HOSTS: &str = "RIP and CR3 ARE THE HYPERVISOR'S";
/// Lines that are shown when something went wrong.
const SHOWN: usize = 12;

/// The box has stopped the guest in the middle of its work.
#[derive(Debug)]
pub struct GuestStopped {
    why: String,
    /// Its state was not its own: a crash out of nothing, the hypervisor's state in place of its, or, under KVM, standing still.
    pub lost_state: bool,
}

impl std::fmt::Display for GuestStopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the guest stopped: {}", self.why)
    }
}

impl std::error::Error for GuestStopped {}

enum Port {
    Guest,
    Telemetry,
}

/// A line and when it came.
struct Said {
    port: Port,
    line: String,
    at: Instant,
}

/// Runs the guest once. `doing` is told what it does.
///
/// # Errors
/// QEMU fails, the guest or its host says that something is wrong, or says nothing for too long, or the user interrupts.
pub fn measure(bench: &Bench, way: Way, doing: &dyn Fn(&str)) -> Result<Seen> {
    let mut running = bench.start(way)?;
    let load = Load::begin(running.qemu.id())?;
    let mut last = Vec::new();
    let mut result = follow(way, &mut running, &load, doing, &mut last);
    if let Some(stopped) = result.as_mut().err().and_then(|why| why.downcast_mut()) {
        let GuestStopped { why, lost_state } = stopped;
        // The evidence comes behind the reason.
        std::thread::sleep(EVIDENCE);
        *lost_state |= why.contains("triple fault") || running.console().contains(HOSTS);
    }
    let mut seen = result
        .and_then(|seen| seen.check(usize::from(bench.vcpus)).map(|()| seen))
        .with_context(|| {
            let mut text = format!("{}: the last lines were", way.name());
            if way == Way::Outpost {
                last.extend(tail(running.console().lines().map(str::to_owned)));
            }
            for line in &last {
                text.push_str("\n    ");
                text.push_str(line);
            }
            text
        })?;
    seen.others = load.others()?;
    seen.table_pages = marks::table_pages(&running.console());
    Ok(seen)
}

fn follow(
    way: Way,
    running: &mut Running,
    load: &Load,
    doing: &dyn Fn(&str),
    last: &mut Vec<String>,
) -> Result<Seen> {
    let (sender, lines) = mpsc::channel();
    read(running.guest.try_clone()?, sender.clone(), || Port::Guest)?;
    if let Some(telemetry) = &running.telemetry {
        read(telemetry.try_clone()?, sender.clone(), || Port::Telemetry)?;
    }
    drop(sender);
    let mut seen = Seen::default();
    let mut heard = Instant::now();
    while !seen.is_done() {
        process::check_interrupted()?;
        match lines.recv_timeout(POLL) {
            Ok(Said { port, line, at }) => {
                let shown = match port {
                    Port::Guest => {
                        let parsed = Line::parse(&line);
                        // A kernel that hangs may still say so, again and again.
                        if parsed != Line::Other {
                            heard = at;
                        }
                        guest_line(&mut seen, parsed, at, load, doing)?;
                        !line.trim().is_empty()
                    }
                    Port::Telemetry => box_line(&mut seen, &line, at)?,
                };
                if shown {
                    last.push(line);
                    if last.len() > SHOWN {
                        last.remove(0);
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                bail!("QEMU ended before the guest was done: {}", running.log())
            }
        }
        if let Some(status) = running.qemu.try_wait()?
            && !seen.is_done()
        {
            bail!("QEMU ended with {status}: {}", running.log());
        }
        if heard.elapsed() > SILENCE {
            // The emulator's faults meet KVM too, and it has nothing that notices.
            let stopped = GuestStopped {
                why: format!("it has done nothing for {} s", SILENCE.as_secs()),
                lost_state: way == Way::Kvm,
            };
            return Err(stopped.into());
        }
    }
    Ok(seen)
}

fn guest_line(
    seen: &mut Seen,
    parsed: Line,
    at: Instant,
    load: &Load,
    doing: &dyn Fn(&str),
) -> Result<()> {
    match &parsed {
        Line::Mark {
            work, end: false, ..
        } => doing(work),
        Line::HostFails(what) => bail!("the host under the guest: {what}"),
        _ => {}
    }
    seen.line(parsed, at, load.own()?);
    Ok(())
}

/// True if the line is worth showing when something goes wrong.
fn box_line(seen: &mut Seen, line: &str, at: Instant) -> Result<bool> {
    let Some(event) = Event::parse(line) else {
        return Ok(false);
    };
    seen.event(&event, at);
    if event.event == "guest-stop" && !seen.is_done() {
        let why = event.reason.clone();
        let stopped = GuestStopped {
            why,
            lost_state: false,
        };
        return Err(stopped.into());
    }
    Ok(!event.text.is_empty())
}

fn read(
    stream: UnixStream,
    lines: Sender<Said>,
    port: impl Fn() -> Port + Send + 'static,
) -> Result<()> {
    std::thread::Builder::new()
        .name("port".into())
        .spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut bytes = Vec::new();
            while reader
                .read_until(b'\n', &mut bytes)
                .is_ok_and(|length| length > 0)
            {
                let said = Said {
                    port: port(),
                    line: String::from_utf8_lossy(&bytes).trim_end().to_owned(),
                    at: Instant::now(),
                };
                bytes.clear();
                if lines.send(said).is_err() {
                    return;
                }
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

fn tail(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = lines.collect();
    lines.split_off(lines.len().saturating_sub(SHOWN))
}
