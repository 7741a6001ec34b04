//! The client's and the server's computers: one network namespace each, with one Ethernet card (a TAP device) that ends in this
//! process. Names carry the process id, so that runs do not meet; what a killed run left behind is removed at the next start.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::NETWORK;
use crate::process::{self, AtExit};

/// The card's name inside the namespace.
pub const CARD: &str = "lan0";
/// Where `ip netns` keeps its names.
const DIRECTORY: &str = "/run/netns";
const PREFIX: &str = "outpost";

/// Kernel settings inside the namespaces, so that a transfer shows the line and not this machine's habits: no IPv6 chatter on the
/// line, and no memory of how earlier connections went.
const SETTINGS: [(&str, &str); 3] = [
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv4/tcp_no_metrics_save", "1"),
];

/// The congestion control of client and server: Linux's default, whatever this machine's is.
pub const CONGESTION_CONTROL: &str = "cubic";

/// A network namespace. Removed, with all that runs in it, when dropped or when the program is forced to end.
pub struct Namespace {
    name: String,
    _remove: AtExit,
}

impl Namespace {
    /// Makes the namespace `outpost-PID-ROLE` with a card that has `addresses` (with prefix length), and gives the card's other end.
    ///
    /// # Errors
    /// When this process may not, or the kernel lacks network namespaces or TAP devices.
    pub fn new(role: &str, mac: &str, addresses: &[String]) -> Result<(Namespace, SyncDevice)> {
        let name = format!("{PREFIX}-{}-{role}", std::process::id());
        ip(&["netns", "add", &name])?;
        let doomed = name.clone();
        let namespace = Namespace {
            name,
            _remove: AtExit::new(move || remove(&doomed)),
        };
        let card = namespace.make_card()?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        namespace.ip(&["link", "set", CARD, "address", mac, "mtu", "1500", "up"])?;
        for address in addresses {
            namespace.ip(&["address", "add", address, "dev", CARD])?;
        }
        // A namespace may not make an algorithm its default that the machine keeps from ordinary users, but a route may ask for it.
        namespace.ip(&[
            "route",
            "replace",
            NETWORK,
            "dev",
            CARD,
            "congctl",
            CONGESTION_CONTROL,
        ])?;
        Ok((namespace, card))
    }

    /// For `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command, for [`process::Process::start`], that runs `program` inside.
    ///
    /// # Errors
    /// When `ip` or `program` is not installed.
    pub fn command(&self, program: &str) -> Result<Command> {
        let Some(program) = process::find_program(program) else {
            bail!("{program} is not installed; `cargo xtask setup` installs what is needed");
        };
        let mut command = process::command("ip")?;
        command.args(["netns", "exec", &self.name]).arg(program);
        Ok(command)
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// A thread enters the namespace, makes the card there, and ends.
    fn make_card(&self) -> Result<SyncDevice> {
        let path = Path::new(DIRECTORY).join(&self.name);
        let thread = std::thread::spawn(move || -> Result<SyncDevice> {
            let namespace =
                File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            setns(&namespace, CloneFlags::CLONE_NEWNET)
                .context("cannot enter the network namespace")?;
            for (setting, value) in SETTINGS {
                // A kernel without IPv6 lacks the first two, which is as good.
                let _ = std::fs::write(Path::new("/proc/sys").join(setting), value);
            }
            let card = DeviceBuilder::new()
                .name(CARD)
                .layer(Layer::L2)
                .build_sync()
                .context("cannot make a TAP device (the kernel module tun)")?;
            card.set_nonblocking(true)?;
            Ok(card)
        });
        thread
            .join()
            .unwrap_or_else(|_| bail!("the thread that makes a TAP device panicked"))
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let mut command = process::command("ip")?;
    command.args(arguments);
    process::output(command, &format!("ip {}", arguments.join(" "))).map(drop)
}

/// Kills what runs in the namespace and removes its name; the kernel then removes the rest.
fn remove(name: &str) {
    let run = |arguments: &[&str]| {
        Command::new(process::find_program("ip").unwrap_or_else(|| "ip".into()))
            .args(arguments)
            .stderr(std::process::Stdio::null())
            .output()
    };
    if let Ok(output) = run(&["netns", "pids", name]) {
        for pid in String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.trim().parse().ok())
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let _ = run(&["netns", "delete", name]);
}

/// Removes the namespaces of runs that no longer run. Gives their names.
pub fn remove_leftovers() -> Vec<String> {
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !is_a_run(pid)) {
            remove(&name);
            removed.push(name);
        }
    }
    removed
}

/// The process that made a namespace of ours with that name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?
        .strip_prefix('-')?
        .split_once('-')?
        .0
        .parse()
        .ok()
}

/// Is the process alive and of this very program (not another one that got the same id later)?
pub fn is_a_run(pid: u32) -> bool {
    let program = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    program(&pid.to_string()).is_some_and(|name| Some(name) == program("self"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_from_names() {
        assert_eq!(owner("outpost-123-client"), Some(123));
        assert_eq!(owner("outpost-x-client"), None);
        assert_eq!(owner("outposts-123-client"), None);
        assert_eq!(owner("other"), None);
    }

    #[test]
    fn this_process_runs_and_init_is_another_program() {
        assert!(is_a_run(std::process::id()));
        assert!(!is_a_run(1));
        assert!(!is_a_run(u32::MAX));
    }
}
