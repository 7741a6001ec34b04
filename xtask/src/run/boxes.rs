//! A box: its configuration, its machine, and what it says of itself on its two serial ports.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::line::Site;
use super::live::{BoxView, Live};
use super::wires::{self, Port, Wires};
use crate::accel::Accelerator;
use crate::image;
use crate::keys::KeyPair;
use crate::process::Process;
use crate::qemu::{self, Disk, Nic, Qemu, Serial, Wire};

/// Size of a box's disk: the image, and room for the partitions that the first boot makes.
const DISK_BYTES: u64 = 1 << 30;

/// The branch's configuration. The guest is the branch's directory server.
fn branch_config(own: &KeyPair, peer: &KeyPair) -> String {
    format!(
        "role = \"branch\"\nprivate_key = \"{}\"\n\n[management]\naddress = \"{}/16\"\n\n[[peer]]\nname = \"head-office\"\n\
         public_key = \"{}\"\nendpoint = \"{}:3301\"\nprefixes = [\"{}\"]\n\n[guest]\nname = \"directory\"\naddress = \"{}/16\"\n\
         memory = \"256M\"\n",
        own.private,
        super::BRANCH_BOX,
        peer.public,
        super::CORE_BOX,
        super::SERVED_PREFIX,
        super::GUEST,
    )
}

/// The core's configuration.
fn core_config(own: &KeyPair, peer: &KeyPair) -> String {
    format!(
        "role = \"core\"\nprivate_key = \"{}\"\n\n[management]\naddress = \"{}/16\"\n\n[[peer]]\nname = \"branch\"\npublic_key = \"{}\"\n",
        own.private,
        super::CORE_BOX,
        peer.public,
    )
}

/// Makes both boxes' disks, from the same image, with new keys.
///
/// # Errors
/// When a copy cannot be written, or the system gives no random numbers.
pub fn make_disks(image: &Path, directory: &Path) -> Result<[PathBuf; 2]> {
    let (branch, core) = (KeyPair::generate()?, KeyPair::generate()?);
    let disks = Site::ALL.map(|site| directory.join(format!("{}.img", site.name())));
    let [branch_disk, core_disk] = &disks;
    image::with_config(
        image,
        &branch_config(&branch, &core),
        branch_disk,
        Some(DISK_BYTES),
    )?;
    image::with_config(
        image,
        &core_config(&core, &branch),
        core_disk,
        Some(DISK_BYTES),
    )?;
    Ok(disks)
}

/// Where a box's console is kept.
pub fn console_log(directory: &Path, site: Site) -> PathBuf {
    directory.join(format!("{}.console", site.name()))
}

/// A box whose machine runs.
pub struct Machine {
    process: Process,
    directory: PathBuf,
    site: Site,
}

impl Machine {
    /// Switches a box on and puts it between its wires.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn power_on(
        site: Site,
        accelerator: Accelerator,
        directory: &Path,
        disk: &Path,
        wires: &Wires,
        live: &Live,
    ) -> Result<Machine> {
        let mut machine = Qemu::new(site.name(), accelerator, Disk::new(disk));
        let number = match site {
            Site::Branch => 1,
            Site::Core => 2,
        };
        machine.nics = [Port::Lan, Port::Wan]
            .into_iter()
            .zip(1..)
            .map(|(port, which)| {
                let (local, remote) = wires::sockets(directory, site, port);
                Nic {
                    mac: [0x52, 0x54, 0x00, 0x4d, number, which],
                    wire: Wire::Datagram { local, remote },
                }
            })
            .collect();
        let [com1, com2] =
            ["com1", "com2"].map(|port| directory.join(format!("{}.{port}", site.name())));
        machine.com1 = Serial::Socket {
            path: com1.clone(),
            wait: true,
        };
        machine.com2 = Serial::Socket {
            path: com2.clone(),
            wait: true,
        };
        for stale in [&com1, &com2] {
            let _ = std::fs::remove_file(stale);
        }
        *live.state().site_mut(site) = BoxView {
            power: true,
            since: Some(Instant::now()),
            ..BoxView::default()
        };
        wires.power(site, true)?;
        let mut process = machine.start(directory)?;
        // QEMU waits on each port in turn.
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut connect =
            |path| qemu::connect(path, &mut process, directory, site.name(), deadline);
        let (console, telemetry) = (connect(&com1)?, connect(&com2)?);
        let machine = Machine {
            process,
            directory: directory.to_owned(),
            site,
        };
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(console_log(directory, site))
            .context("cannot keep the console")?;
        std::thread::spawn(move || keep_console(console, log));
        let live = live.clone();
        std::thread::spawn(move || listen(site, telemetry, &live));
        Ok(machine)
    }

    /// An error if the machine has ended by itself.
    ///
    /// # Errors
    /// With what QEMU said.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!(
                    "the {} box's machine ended ({status}): {}",
                    self.site.name(),
                    qemu::log_of(&self.directory, self.site.name())
                )
            }
        }
    }

    /// Pulls the box's mains plug. Its wires are joined.
    ///
    /// # Errors
    /// When the thread that moves frames has died.
    pub fn power_off(mut self, wires: &Wires, live: &Live) -> Result<()> {
        self.process.kill();
        wires.power(self.site, false)?;
        *live.state().site_mut(self.site) = BoxView::default();
        Ok(())
    }
}

fn keep_console(mut console: UnixStream, mut log: std::fs::File) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = console.read(&mut buffer) {
        if log
            .write_all(buffer.get(..length).unwrap_or_default())
            .is_err()
        {
            return;
        }
    }
}

/// Reads telemetry until the machine ends.
fn listen(site: Site, telemetry: UnixStream, live: &Live) {
    let born = live.state().site(site).since;
    for line in BufReader::new(telemetry).split(b'\n').map_while(Result::ok) {
        let Ok(event) = serde_json::from_slice::<Value>(&line) else {
            continue;
        };
        let said = {
            let mut state = live.state();
            let view = state.site_mut(site);
            // The box may have been switched off and on again since.
            if view.since != born {
                return;
            }
            take(view, &event)
        };
        if let Some(said) = said {
            live.say(format!("{} box: {said}", site.name()));
        }
    }
}

/// Takes one event into the view. Gives what is worth a line.
fn take(view: &mut BoxView, event: &Value) -> Option<String> {
    match event["event"].as_str()? {
        "boot" => {
            let milestone = event["milestone"].as_str()?;
            let ms = event["ms"].as_u64()?;
            view.milestones.insert(milestone.to_owned(), ms);
            Some(format!("{milestone} after {ms} ms"))
        }
        "problem" => {
            let text = event["text"].as_str()?.to_owned();
            view.problems.push(text.clone());
            Some(text)
        }
        "status" => {
            let (before, now) = (
                view.tunnel_up(),
                event
                    .pointer("/net/tunnel/up")
                    .and_then(Value::as_bool)
                    .unwrap_or(false),
            );
            let guest_before = view.guest().to_owned();
            view.status = event.clone();
            match (before, now) {
                (false, true) => Some("tunnel up".into()),
                (true, false) => Some("tunnel down".into()),
                _ if view.guest() != guest_before => Some(format!("guest {}", view.guest())),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outpost_config::{Config, Role};
    use serde_json::json;

    #[test]
    fn both_configurations_are_right_and_fit_together() {
        let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let branch = Config::parse(&branch_config(&one, &two)).unwrap();
        let core = Config::parse(&core_config(&two, &one)).unwrap();
        assert_eq!((branch.role, core.role), (Role::Branch, Role::Core));
        let endpoint = branch.peers[0].endpoint.unwrap();
        assert_eq!(
            (*endpoint.ip(), endpoint.port()),
            (core.management.address.address(), core.listen.port())
        );
        let prefix = &branch.peers[0].prefixes[0];
        assert!(prefix.contains(super::super::SERVER.parse().unwrap()));
        assert!(!prefix.contains(super::super::DIRECT.parse().unwrap()));
        assert!(branch.guest.is_some() && core.guest.is_none());
    }

    #[test]
    fn telemetry_is_taken_in() {
        let mut view = BoxView {
            power: true,
            ..BoxView::default()
        };
        assert_eq!(
            take(
                &mut view,
                &json!({"event": "boot", "milestone": "forwarding", "ms": 12})
            )
            .unwrap(),
            "forwarding after 12 ms"
        );
        assert!(view.reached("forwarding") && !view.reached("guest-ready"));
        let status = |up: bool| json!({"event": "status", "ms": 1, "guest": "ready", "net": {"tunnel": {"up": up, "rtt_micros": 100_000}}});
        assert_eq!(take(&mut view, &status(true)).unwrap(), "tunnel up");
        assert!(view.tunnel_up());
        assert_eq!(
            (view.guest(), view.number("/net/tunnel/rtt_micros")),
            ("ready", Some(100_000))
        );
        assert_eq!(take(&mut view, &status(true)), None);
        assert_eq!(take(&mut view, &status(false)).unwrap(), "tunnel down");
        assert_eq!(
            take(&mut view, &json!({"event": "problem", "text": "no AMD-V"})).unwrap(),
            "no AMD-V"
        );
        assert_eq!(view.problems, ["no AMD-V"]);
        assert_eq!(take(&mut view, &json!({"event": "other"})), None);
        assert_eq!(take(&mut view, &json!([1])), None);
    }
}
