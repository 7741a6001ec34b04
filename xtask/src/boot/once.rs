//! `cargo xtask boot --once`: one run of a guest of the user's in a box, as other tools run kernels in an emulator.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Args, DISK_BYTES};
use crate::process::{self, Scratch};
use crate::qemu::{self, Disk, Nic, Qemu, Serial};
use crate::setup::{self, Group};
use crate::sharing::Sharing;
use crate::{accel, image};

/// After the timeout, as of `timeout` (GNU coreutils).
const TIMED_OUT: u8 = 124;
const POLL: Duration = Duration::from_millis(20);

/// What the box reports on its telemetry port, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Event {
    event: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    status: Option<u32>,
    #[serde(default)]
    guest: String,
    #[serde(default)]
    sharing: Option<Sharing>,
}

/// The scheduler's counters over the guest's life.
#[derive(Default)]
struct Tasks {
    first: Option<Sharing>,
    last: Option<Sharing>,
}

impl Tasks {
    fn note(&mut self, status: Event) {
        let runs = ["init", "ready"].contains(&status.guest.as_str());
        if let Some(sharing) = status.sharing.filter(|_| runs) {
            self.first.get_or_insert_with(|| sharing.clone());
            self.last = Some(sharing);
        }
    }

    /// Between the first and the last report, which are up to a second from the guest's beginning and end.
    fn show(&self) {
        match self.first.as_ref().zip(self.last.as_ref()) {
            Some((first, last)) if first != last => eprint!("{}", last.since(first)),
            _ => eprintln!("the guest did not run for long enough to say what CPU time it had"),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// As for `cargo xtask boot`.
pub fn run(arguments: &Args) -> Result<ExitCode> {
    setup::ensure(&[Group::Emulator])?;
    let scratch = Scratch::new("once")?;
    let disk = scratch.path().join("disk.img");
    let ports = "debug_exit = true\ncom3 = true\n";
    let config = super::default_config(Some("custom"), arguments, ports)?;
    let built = image::build_with(arguments.own_guest()?, None, None)?;
    image::with_config(&built.path, &config, &disk, Some(DISK_BYTES))?;

    let telemetry = scratch.path().join("telemetry");
    let output = scratch.path().join("output");
    let mut machine = Qemu::new("box", accel::best(), Disk::new(disk));
    machine.memory_mib = arguments.box_memory();
    machine.cpus = arguments.cpus();
    machine.nics = Nic::unplugged();
    machine.com1 = Serial::File(scratch.path().join("console"));
    machine.com2 = Serial::Socket {
        path: telemetry.clone(),
        wait: true,
    };
    machine.com3 = Some(output.clone());
    let mut qemu = machine.start(scratch.path())?;
    let stream = qemu::connect(
        &telemetry,
        &mut qemu,
        scratch.path(),
        "box",
        Instant::now() + super::OPENS,
    )?;
    stream.set_read_timeout(Some(POLL))?;
    let mut guest = Guest {
        telemetry: stream,
        unread: Vec::new(),
        output: None,
    };
    let mut tasks = Tasks::default();
    let end = Instant::now() + Duration::from_secs(arguments.timeout);
    loop {
        process::check_interrupted()?;
        // The order matters: what the guest wrote is in the file before the box says that it stopped.
        let events = guest.events()?;
        guest.copy_output(&output)?;
        for event in events {
            match event.event.as_str() {
                "guest-stop" => {
                    if arguments.tasks {
                        tasks.show();
                    }
                    return Ok(verdict(&event));
                }
                "problem" => eprintln!("box: {}", event.text),
                "status" => tasks.note(event),
                _ => {}
            }
        }
        if let Some(status) = qemu.try_wait()? {
            bail!(
                "QEMU ended with {status}: {}",
                qemu::log_of(scratch.path(), "box")
            );
        }
        if Instant::now() > end {
            eprintln!("the guest has not ended after {} s", arguments.timeout);
            if arguments.tasks {
                tasks.show();
            }
            return Ok(ExitCode::from(TIMED_OUT));
        }
    }
}

/// The exit status for how the guest stopped. As with QEMU's isa-debug-exit, the system keeps the low eight bits.
fn verdict(stop: &Event) -> ExitCode {
    match stop.status {
        Some(status) => ExitCode::from(status as u8),
        None => {
            eprintln!("{}", stop.reason);
            ExitCode::FAILURE
        }
    }
}

/// The events in whole lines; what is left is the beginning of another.
fn take_events(unread: &mut Vec<u8>) -> Vec<Event> {
    let Some(end) = unread.iter().rposition(|byte| *byte == b'\n') else {
        return Vec::new();
    };
    let lines: Vec<u8> = unread.drain(..=end).collect();
    let text = String::from_utf8_lossy(&lines);
    // What the firmware wrote last has no end: the object may begin within the line.
    let event = |line: &str| serde_json::from_str(line.get(line.find("{\"event\"")?..)?).ok();
    text.lines().filter_map(event).collect()
}

/// What comes from the box.
struct Guest {
    telemetry: UnixStream,
    unread: Vec<u8>,
    output: Option<File>,
}

impl Guest {
    /// The events that have come, after a short wait for one.
    fn events(&mut self) -> Result<Vec<Event>> {
        let mut buffer = [0; 4096];
        match self.telemetry.read(&mut buffer) {
            Ok(length) => self
                .unread
                .extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock
                        | std::io::ErrorKind::TimedOut
                        | std::io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error).context("the telemetry port broke"),
        }
        Ok(take_events(&mut self.unread))
    }

    /// Copies what the guest has written since to stdout.
    fn copy_output(&mut self, path: &std::path::Path) -> Result<()> {
        let file = match &mut self.output {
            Some(file) => file,
            None => match File::open(path) {
                Ok(file) => self.output.insert(file),
                Err(_) => return Ok(()),
            },
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut out = std::io::stdout();
        // A pipe that was closed behind us (`| head`) is no failure of the guest's.
        let _ = out.write_all(&bytes).and_then(|()| out.flush());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_pieces_and_after_what_the_firmware_left() {
        let mut unread =
            b"\x1b[2J{\"event\":\"boot\",\"milestone\":\"x\",\"ms\":1}\n{\"event\":\"guest-stop\","
                .to_vec();
        let events = take_events(&mut unread);
        assert_eq!((events.len(), events[0].event.as_str()), (1, "boot"));
        unread.extend_from_slice(b"\"reason\":\"done\",\"status\":85}\n");
        let events = take_events(&mut unread);
        assert_eq!(
            (events[0].reason.as_str(), events[0].status),
            ("done", Some(85))
        );
        assert!(unread.is_empty());
    }

    #[test]
    fn the_exit_status_is_the_guests() {
        let stop = |status| Event {
            event: "guest-stop".into(),
            reason: "why".into(),
            text: String::new(),
            status,
            guest: String::new(),
            sharing: None,
        };
        let shown = |status| format!("{:?}", verdict(&stop(status)));
        assert_eq!(shown(Some(85)), format!("{:?}", ExitCode::from(85)));
        assert_eq!(shown(Some(0)), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(shown(None), format!("{:?}", ExitCode::FAILURE));
    }
}
