//! A box under test: what it is made of, what is expected of it, and what must never be seen.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Trial;
use super::frames;
use super::watch::{Said, Watch};
use super::wire::WireEnd;
use crate::image;
use crate::process::{self, Process, Scratch};
use crate::qemu::{self, Disk, Nic, Qemu, Serial};

/// The box's own address in [`CONFIG`].
pub const BOX_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
/// The guest's address in [`config_with_guest`].
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 5);
/// A station on the LAN.
const STATION: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 10);
/// The disk, with room for the partitions that the first boot makes.
const DISK_BYTES: u64 = 512 << 20;
/// How long to wait between two sendings of the same frame.
const AGAIN: Duration = Duration::from_millis(300);

/// A branch without peer or guest. The key is nobody's.
pub const CONFIG: &str = "role = \"branch\"\nprivate_key = \"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"\n\n[management]\naddress = \"10.77.1.1/16\"\n";

/// [`CONFIG`] with a guest.
pub fn config_with_guest(name: &str, more: &str) -> String {
    format!("{CONFIG}{}", guest_table(name, more))
}

/// The lines for a guest.
pub fn guest_table(name: &str, more: &str) -> String {
    format!("\n[guest]\nname = \"{name}\"\naddress = \"{GUEST_ADDRESS}/16\"\n{more}")
}

/// What a box is made of. Change the fields, then [`Setup::start`].
pub struct Setup {
    /// Its `outpost.toml`.
    pub config: String,
    /// The slot image in slot A.
    pub slot: Option<Vec<u8>>,
    /// Cuts the disk off after so many bytes.
    pub cut: Option<u64>,
    /// How many CPUs.
    pub cpus: u8,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// CPU features in QEMU's notation.
    pub cpu_features: Vec<String>,
    /// The disk cannot be written.
    pub read_only: bool,
    /// [`TestBox::hang_disk`] can be used.
    pub disk_can_hang: bool,
    /// Requests that the disk answers in a second.
    pub disk_requests: Option<u32>,
    /// Where the WAN card's wire leads; none: to the test.
    pub wan: Option<qemu::Wire>,
    /// How many network cards.
    pub nics: usize,
    /// Tells this box's MAC addresses from another box's on the same network.
    pub number: u8,
    /// Text that a problem must contain to be expected. Any other problem fails the test at once.
    pub problems: Vec<String>,
    /// Text that a console line with "FAILED" or "panicked" must contain to be expected.
    pub alarms: Vec<String>,
}

impl Setup {
    /// A box with a configuration, no guest and no expected problems.
    pub fn new(config: impl Into<String>) -> Setup {
        Setup {
            config: config.into(),
            slot: None,
            cut: None,
            cpus: 2,
            memory_mib: qemu::MEMORY_MIB,
            cpu_features: Vec::new(),
            read_only: false,
            disk_can_hang: false,
            disk_requests: None,
            wan: None,
            nics: 2,
            number: 0,
            problems: Vec::new(),
            alarms: Vec::new(),
        }
    }

    /// Makes the disk and starts the box.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(self, trial: &Trial<'_>) -> Result<TestBox> {
        self.start_as(trial, "box")
    }

    /// As [`Setup::start`]; `name` tells the box's disk and logs from another's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_as(self, trial: &Trial<'_>, name: &str) -> Result<TestBox> {
        let disk = trial.folder.join(format!("{name}.img"));
        image::assemble(&trial.stage.efi, &self.config, self.slot.as_deref(), &disk)?;
        let file = std::fs::File::options().write(true).open(&disk)?;
        file.set_len(self.cut.unwrap_or(DISK_BYTES))?;
        self.start_from(trial, disk, name)
    }

    /// Starts a box from a disk that is there. `name` is for its logs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_from(self, trial: &Trial<'_>, disk: PathBuf, name: &str) -> Result<TestBox> {
        // Unix sockets need short paths.
        let sockets = Scratch::new("test")?;
        let folder = sockets.path();
        let mut machine = Qemu::new(
            name,
            trial.stage.accelerator,
            Disk {
                read_only: self.read_only,
                can_hang: self.disk_can_hang,
                requests_per_second: self.disk_requests,
                ..Disk::new(disk.clone())
            },
        );
        machine.cpus = self.cpus;
        machine.memory_mib = self.memory_mib;
        machine.cpu_features = self.cpu_features.clone();
        machine.exit_on_reset = true;
        let wires = [WireEnd::new(folder, "lan")?, WireEnd::new(folder, "wan")?];
        machine.nics = [("lan", 1), ("wan", 2)]
            .into_iter()
            .zip(&wires)
            .take(self.nics)
            .map(|((name, last), wire)| Nic {
                mac: [0x52, 0x54, 0, 0, self.number, last],
                wire: wire.qemu_side(folder, name),
            })
            .collect();
        if let (Some(wire), Some(card)) = (&self.wan, machine.nics.get_mut(1)) {
            card.wire = wire.clone();
        }
        let monitor = folder.join("monitor");
        machine.monitor = Some(monitor.clone());
        let ports = [folder.join("com1"), folder.join("com2")];
        machine.com1 = Serial::Socket {
            path: ports[0].clone(),
            wait: true,
        };
        machine.com2 = Serial::Socket {
            path: ports[1].clone(),
            wait: true,
        };
        let mut qemu = machine.start(folder)?;
        // QEMU waits for someone at the first port before it makes the second.
        let console = qemu::connect(&ports[0], &mut qemu, folder, name, trial.deadline)?;
        let telemetry = qemu::connect(&ports[1], &mut qemu, folder, name, trial.deadline)?;
        let watch = Watch::default();
        let keyboard = watch.follow(console, telemetry, &trial.folder, name)?;
        let [lan, wan] = wires.map(Arc::new);
        Ok(TestBox {
            setup: self,
            disk,
            watch,
            keyboard,
            lan,
            wan,
            qemu,
            monitor,
            deadline: trial.deadline,
            _sockets: sockets,
        })
    }
}

/// A box that runs.
pub struct TestBox {
    setup: Setup,
    disk: PathBuf,
    watch: Watch,
    keyboard: UnixStream,
    /// The LAN's wire.
    pub lan: Arc<WireEnd>,
    /// The WAN's wire.
    pub wan: Arc<WireEnd>,
    qemu: Process,
    monitor: PathBuf,
    deadline: Instant,
    _sockets: Scratch,
}

impl TestBox {
    /// Waits until `seen` finds what it looks for. Fails at the first line that must not be there, when the box is gone, and at the
    /// deadline; `what` says what was waited for.
    ///
    /// # Errors
    /// As said.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        mut seen: impl FnMut(&Said) -> Option<T>,
    ) -> Result<T> {
        loop {
            let said = self.watch.lock();
            self.check(&said)?;
            if let Some(found) = seen(&said) {
                return Ok(found);
            }
            self.check_alive(what, &said)?;
            drop(self.watch.wait(said, Duration::from_millis(200)));
            process::check_interrupted()?;
        }
    }

    fn check_alive(&self, what: &str, said: &Said) -> Result<()> {
        if said.closed > 0 {
            bail!("the box is gone; waited for {what}{}", last_lines(said));
        }
        if Instant::now() > self.deadline {
            bail!(
                "the deadline is over; waited for {what}{}",
                last_lines(said)
            );
        }
        Ok(())
    }

    /// Fails if something was said that must not be.
    fn check(&self, said: &Said) -> Result<()> {
        let expected =
            |text: &str, among: &[String]| among.iter().any(|part| text.contains(part.as_str()));
        for problem in said.problems() {
            if !expected(problem, &self.setup.problems) {
                bail!("unexpected problem: {problem}{}", last_lines(said));
            }
        }
        for line in &said.console {
            if (line.contains("panicked") || line.contains("FAILED"))
                && !expected(line, &self.setup.alarms)
            {
                bail!("unexpected line: {line}{}", last_lines(said));
            }
        }
        if let Some(line) = said.malformed.first() {
            bail!("telemetry that is not JSON: {line}");
        }
        Ok(())
    }

    /// Waits for a milestone of the boot.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`].
    pub fn milestone(&mut self, name: &str) -> Result<u64> {
        self.wait_for(&format!("milestone {name}"), |said| said.milestone(name))
    }

    /// Waits for a problem with this text.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`].
    pub fn problem(&mut self, part: &str) -> Result<String> {
        self.wait_for(&format!("a problem with {part:?}"), |said| {
            said.problems()
                .find(|text| text.contains(part))
                .map(str::to_owned)
        })
    }

    /// Waits for a console line with this text.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`].
    pub fn console(&mut self, part: &str) -> Result<String> {
        self.wait_for(&format!("a console line with {part:?}"), |said| {
            said.console
                .iter()
                .find(|line| line.contains(part))
                .cloned()
        })
    }

    /// Waits until the guest's state, as last reported, has this text. Fails if the guest stops for another reason.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`].
    pub fn guest(&mut self, part: &str) -> Result<()> {
        let state = self.wait_for(&format!("the guest to be {part:?}"), |said| {
            said.guest()
                .filter(|guest| guest.contains(part) || guest.starts_with("stopped"))
                .map(str::to_owned)
        })?;
        ensure!(
            state.contains(part),
            "the guest should be {part:?} and is {state:?}"
        );
        Ok(())
    }

    /// Waits until so many more status lines have come: the box goes on.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`].
    pub fn goes_on(&mut self, statuses: usize) -> Result<()> {
        let target = self.watch.lock().statuses() + statuses;
        self.wait_for("more status lines", |said| {
            (said.statuses() >= target).then_some(())
        })
    }

    /// What was said so far.
    pub fn said<T>(&self, look: impl FnOnce(&Said) -> T) -> T {
        look(&self.watch.lock())
    }

    /// Types at the console.
    ///
    /// # Errors
    /// When the box is gone.
    pub fn type_keys(&mut self, keys: &[u8]) -> Result<()> {
        self.keyboard.write_all(keys).context("the box is gone")
    }

    /// Sends `frame` on the LAN, again and again, until `seen` finds what it looks for in a frame that comes out there.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`].
    pub fn ask<T>(
        &mut self,
        what: &str,
        frame: &[u8],
        mut seen: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T> {
        let mut next = Instant::now();
        loop {
            if Instant::now() >= next {
                self.lan.send(frame);
                next = Instant::now() + AGAIN;
            }
            while let Some(frame) = self.lan.receive() {
                if let Some(found) = seen(&frame) {
                    return Ok(found);
                }
            }
            self.pause(what)?;
        }
    }

    fn pause(&mut self, what: &str) -> Result<()> {
        self.alive(what)?;
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }

    /// Fails as [`TestBox::wait_for`] does, and does not wait.
    ///
    /// # Errors
    /// As said.
    pub fn alive(&mut self, what: &str) -> Result<()> {
        let said = self.watch.lock();
        self.check(&said)?;
        self.check_alive(what, &said)?;
        drop(said);
        process::check_interrupted()
    }

    /// The LAN's station asks for an address and pings it.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`].
    pub fn answers(&mut self, address: Ipv4Addr, who: &str) -> Result<()> {
        let request = frames::arp_request(STATION, address)?;
        let mac = self.ask(&format!("{who}'s answer to ARP"), &request, |frame| {
            frames::arp_answer(frame, address)
        })?;
        let ping = frames::ping(STATION, address, mac, 1)?;
        self.ask(&format!("{who}'s answer to ping"), &ping, |frame| {
            frames::is_pong(frame, address, 1).then_some(())
        })
    }

    /// The LAN's station pings an address with all these numbers at once, each once, and every one is answered.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`], or when some are not.
    pub fn answers_all(&mut self, address: Ipv4Addr, numbers: Range<u16>) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let request = frames::arp_request(STATION, address)?;
        let mac = self.ask("an answer to ARP", &request, |frame| {
            frames::arp_answer(frame, address)
        })?;
        for number in numbers.clone() {
            let ping = frames::ping(STATION, address, mac, number)?;
            // QEMU's socket holds few.
            while !self.lan.try_send(&ping) {
                self.alive("room for a ping")?;
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let mut missing: BTreeSet<u16> = numbers.collect();
        let until = Instant::now() + PATIENCE;
        while !missing.is_empty() {
            while let Some(frame) = self.lan.receive() {
                missing.retain(|number| !frames::is_pong(&frame, address, *number));
                // Who does not hear that the station is still there does not answer it either, after some seconds.
                if let Some(reply) = frames::arp_reply_to(&frame, STATION) {
                    self.lan.send(&reply);
                }
            }
            ensure!(
                Instant::now() < until,
                "these pings are not answered: {missing:?}"
            );
            self.pause("the answers to all pings")?;
        }
        Ok(())
    }

    /// The box itself answers.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`].
    pub fn answers_itself(&mut self) -> Result<()> {
        self.answers(BOX_ADDRESS, "the box")
    }

    /// Frames of several lengths cross the box in both directions, and come out as they went in.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`], or when a frame comes out changed.
    pub fn forwards(&mut self) -> Result<()> {
        self.milestone("forwarding")?;
        for length in [60, 1514] {
            self.crosses(true, length)?;
            self.crosses(false, length)?;
        }
        Ok(())
    }

    /// A frame of `length` bytes crosses the box, and comes out as it went in.
    ///
    /// # Errors
    /// As [`TestBox::forwards`].
    pub fn crosses(&mut self, lan_to_wan: bool, length: usize) -> Result<()> {
        let (lan, wan) = (self.lan.clone(), self.wan.clone());
        let (inside, outside, tag) = if lan_to_wan {
            (lan, wan, "from LAN to WAN")
        } else {
            (wan, lan, "from WAN to LAN")
        };
        let (from, to) = if lan_to_wan {
            (frames::LAN_STATION, frames::WAN_STATION)
        } else {
            (frames::WAN_STATION, frames::LAN_STATION)
        };
        let frame = frames::raw(
            from,
            to,
            format!("outpost test {tag} {length} ").as_bytes(),
            length,
        );
        self.carries(
            &inside,
            &outside,
            &frame,
            &format!("a frame of {length} bytes to cross {tag}"),
        )
    }

    /// Sends `frame` into one wire, again and again, until it comes out of the other as it was.
    ///
    /// # Errors
    /// As [`TestBox::wait_for`], or when it comes out changed.
    pub fn carries(
        &mut self,
        inside: &WireEnd,
        outside: &WireEnd,
        frame: &[u8],
        what: &str,
    ) -> Result<()> {
        let mut next = Instant::now();
        loop {
            if Instant::now() >= next {
                inside.send(frame);
                next = Instant::now() + AGAIN;
            }
            while let Some(found) = outside.receive() {
                if found == frame {
                    return Ok(());
                }
                if found.get(..frames::TAGGED) == frame.get(..frames::TAGGED) {
                    bail!("{what}: it came out changed: {}", hex::encode(found));
                }
            }
            self.pause(what)?;
        }
    }

    /// From now on the disk answers no write.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub fn hang_disk(&mut self) -> Result<()> {
        // qemu-io(1): the next request of this kind stops at a break point that has a name.
        let hang = "qemu-io disk0 \"break write_aio writes\"";
        self.tell_qemu(
            json!({"execute": "human-monitor-command", "arguments": {"command-line": hang}}),
        )
    }

    /// Presses the box's power button.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub fn press_power_button(&mut self) -> Result<()> {
        self.tell_qemu(json!({"execute": "system_powerdown"}))
    }

    /// Has QEMU do something.
    fn tell_qemu(&mut self, command: serde_json::Value) -> Result<()> {
        let monitor = UnixStream::connect(&self.monitor).context("QEMU's monitor")?;
        monitor.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut answers = BufReader::new(monitor.try_clone()?).lines();
        for command in [json!({"execute": "qmp_capabilities"}), command] {
            writeln!(&monitor, "{command}").context("QEMU's monitor")?;
            loop {
                let line = answers.next().context("QEMU's monitor is gone")??;
                let answer: serde_json::Value = serde_json::from_str(&line)?;
                // A human's command has its complaints in what it prints.
                match answer.get("return") {
                    Some(printed) if printed.as_str().unwrap_or_default().is_empty() => break,
                    None if answer.get("error").is_none() => {}
                    _ => bail!("QEMU says to {command}: {answer}"),
                }
            }
        }
        Ok(())
    }

    /// Resets the box from its console, and gives the disk. (The emulator ends at a reset.)
    ///
    /// # Errors
    /// When it says something that must not be, or does not reset.
    pub fn reset(mut self) -> Result<PathBuf> {
        self.type_keys(b"reset\r")?;
        self.ends()
    }

    /// Waits for the end of the emulator, which a reset or switching off brings, and gives the disk.
    ///
    /// # Errors
    /// When the box says something that must not be, or does not end.
    pub fn ends(mut self) -> Result<PathBuf> {
        while self.qemu.try_wait()?.is_none() {
            self.check(&self.watch.lock())?;
            process::check_interrupted()?;
            ensure!(Instant::now() < self.deadline, "the box does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.check(&self.watch.lock())?;
        Ok(self.disk.clone())
    }

    /// Pulls the plug and gives the disk.
    pub fn unplug(mut self) -> PathBuf {
        self.qemu.kill();
        self.disk.clone()
    }
}

fn last_lines(said: &Said) -> String {
    let first = said.console.len().saturating_sub(15);
    let mut text = String::from("\nlast console lines:");
    for line in said.console.iter().skip(first) {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text
}
