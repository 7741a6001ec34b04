//! `cargo xtask boot`: one box in QEMU with its console in this terminal, or (`--once`) one run of a guest in it.

mod keyboard;
mod modules;
mod once;
mod sharing;

use std::io::{IsTerminal, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::termios::{self, OutputFlags, SetArg};
use outpost_config::{Config, MAX_VCPUS};

use crate::image::{self, BuiltImage, GuestFiles};
use crate::keys::KeyPair;
use crate::process::{self, AtExit, Graceful, Process, Scratch};
use crate::qemu::{self, Disk, Nic, Qemu, Serial, Wire};
use crate::setup::{self, Group};
use crate::{accel, progress};
use keyboard::{Keyboard, Typed, without_screen_control};
use sharing::Sharing;

/// The guest's address unless a configuration says otherwise.
const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 5);
/// The disk of the emulated box, with room for the partitions that the first boot makes.
const DISK_BYTES: u64 = 1 << 30;
/// What a box has beside its guest's memory, in MiB.
const BOX_MEMORY: u32 = 512;

/// `cargo xtask boot`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest to pin: a folder of guests/, `probe` (a test guest), or `none`
    #[arg(
        long,
        default_value = "directory",
        value_name = "NAME",
        conflicts_with = "guest_kernel"
    )]
    guest: String,
    /// A guest kernel of your own instead: a Linux bzImage or a Multiboot ELF file
    #[arg(long, value_name = "FILE")]
    guest_kernel: Option<PathBuf>,
    /// A Multiboot module for it, or an initial ramdisk; may be given several times. "FILE WORDS" gives the module that text
    #[arg(
        long,
        alias = "guest-ramdisk",
        value_name = "FILE",
        requires = "guest_kernel"
    )]
    module: Vec<String>,
    /// The command line for it
    #[arg(
        long,
        value_name = "TEXT",
        requires = "guest_kernel",
        default_value = "console=ttyS0"
    )]
    guest_cmdline: String,
    /// Only run the guest: its serial port on stdout and nothing else there; ends when the guest ends, with its debug-exit
    /// status, 0 after a power-off, 1 when it fails, 124 after the timeout
    #[arg(long, requires = "guest_kernel", conflicts_with = "config")]
    once: bool,
    /// With --once: seconds that the guest may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "once")]
    timeout: u64,
    /// With --once: what CPU time each task of the box had while the guest ran, on stderr at the end
    #[arg(long, requires = "once")]
    tasks: bool,
    #[command(flatten)]
    sharing: Sharing,
    /// The guest's virtual CPUs, unless --config says it
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u32,
    /// The guest's memory in MiB, unless --config says it
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u32,
    /// The box's outpost.toml [default: a branch with new keys, no peer, and the guest]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Boot this image instead of building one; it keeps its own guest, and its own outpost.toml unless --config is given
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guest", "guest_kernel"])]
    image: Option<PathBuf>,
    /// The box's memory in MiB [default: 512 more than the guest's]
    #[arg(long, value_name = "MIB")]
    box_memory: Option<u32>,
    /// The box's CPUs [default: 2, or 3 with several vCPUs: on QEMU's translator they must stay off the first one]
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<u8>,
}

impl Args {
    fn cpus(&self) -> u8 {
        self.cpus.unwrap_or(if self.vcpus > 1 { 3 } else { 2 })
    }
}

/// Runs the command.
///
/// # Errors
/// When the image cannot be built or QEMU not started, or QEMU ends with an error.
pub fn run(arguments: &Args) -> Result<ExitCode> {
    if arguments.once {
        return once::run(arguments);
    }
    let config = match &arguments.config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            // A wrong one is booted all the same: the box goes on without it, and that can be what someone wants to see.
            if let Err(error) = Config::parse(&text) {
                eprintln!("note: {}: {error}", path.display());
            }
            Some(text)
        }
        None => None,
    };
    setup::ensure(&[Group::Emulator])?;
    let scratch = Scratch::new("boot")?;
    let disk = scratch.path().join("disk.img");
    prepare_disk(arguments, config.as_deref(), &disk)?;

    let accelerator = accel::best();
    let console = scratch.path().join("com1");
    let mut machine = Qemu::new("box", accelerator, Disk::new(disk));
    machine.memory_mib = arguments.box_memory();
    machine.cpus = arguments.cpus();
    machine.graphics = true;
    let guest_address = guest_address(config.as_deref());
    let port = free_port()?;
    machine.nics = vec![
        Nic {
            mac: [0x52, 0x54, 0, 0, 0, 1],
            wire: Wire::User {
                network: "10.77.0.0/16".into(),
                gateway: Ipv4Addr::new(10, 77, 0, 1),
                forwards: guest_address
                    .map(|address| (port, address, 389))
                    .into_iter()
                    .collect(),
            },
        },
        Nic {
            mac: [0x52, 0x54, 0, 0, 0, 2],
            wire: Wire::Unplugged,
        },
    ];
    machine.com1 = Serial::Socket {
        path: console.clone(),
        wait: true,
    };
    machine.com2 = Serial::File(scratch.path().join("telemetry"));
    let directory = guest_address.is_some() && holds_directory(&machine)?;
    let mut qemu = machine.start(scratch.path())?;

    eprintln!(
        "One box in QEMU ({}, {} CPUs, {} MiB). Its console:",
        accelerator.name(),
        machine.cpus,
        machine.memory_mib
    );
    eprintln!("  Ctrl-T           the guest's console, and back");
    eprintln!(
        "  Ctrl-C           quit (so does Ctrl-A X); Ctrl-A C sends Ctrl-C to the box, Ctrl-A A sends Ctrl-A"
    );
    if directory {
        eprintln!(
            "  from another terminal, once the guest is ready:  ldapsearch -x -H ldap://127.0.0.1:{port} -b dc=branch,dc=example"
        );
    }
    eprintln!();
    let deadline = Instant::now() + OPENS;
    let stream = qemu::connect(&console, &mut qemu, scratch.path(), "box", deadline)?;
    converse(stream, &mut qemu)?;
    let status = qemu.try_wait()?;
    drop(qemu);
    match status {
        Some(status) if !status.success() => bail!(
            "QEMU ended with {status}: {}",
            qemu::log_of(scratch.path(), "box")
        ),
        Some(_) => eprintln!("\nThe box is switched off."),
        None => eprintln!("\nQuit: the box is gone, and its disk with it."),
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn box_memory(&self) -> u32 {
        self.box_memory
            .unwrap_or_else(|| self.memory.saturating_add(BOX_MEMORY))
    }

    /// The guest of `--guest-kernel`.
    fn own_guest(&self) -> Result<Option<GuestFiles>> {
        let Some(path) = &self.guest_kernel else {
            return Ok(None);
        };
        let kernel = std::fs::read(path)
            .with_context(|| format!("cannot read the kernel {}", path.display()))?;
        Ok(Some(GuestFiles {
            name: "custom".into(),
            command_line: self.guest_cmdline.clone(),
            ramdisk: modules::join(&kernel, &self.module)?,
            kernel,
        }))
    }
}

fn prepare_disk(arguments: &Args, config: Option<&str>, disk: &Path) -> Result<()> {
    if let Some(image) = &arguments.image {
        return match config {
            Some(config) => image::with_config(image, config, disk, Some(DISK_BYTES)),
            None => image::copy(image, disk, Some(DISK_BYTES)),
        };
    }
    let built: BuiltImage = match arguments.own_guest()? {
        Some(guest) => image::build_with(Some(guest), None, None)?,
        None => image::build(&arguments.guest, None, None)?,
    };
    let config = match config {
        Some(config) => config.to_owned(),
        None => default_config(built.guest.as_deref(), arguments, "")?,
    };
    let spinner = progress::spinner("Preparing the box's disk");
    image::with_config(&built.path, &config, disk, Some(DISK_BYTES))?;
    spinner.finish_and_clear();
    Ok(())
}

/// Whether the directory guest is in the box's image.
fn holds_directory(machine: &Qemu) -> Result<bool> {
    let mut found = false;
    for disk in &machine.disks {
        found |= image::contents(&disk.path)?
            .iter()
            .any(|item| item.what.trim() == "guest directory");
    }
    Ok(found)
}

/// A branch by itself: new keys, no peer. `more` are lines for `[guest]`.
fn default_config(guest: Option<&str>, arguments: &Args, more: &str) -> Result<String> {
    let (memory_mib, vcpus) = (arguments.memory, arguments.vcpus);
    let mut text = format!(
        "role = \"branch\"\nprivate_key = \"{}\"\n\n[management]\naddress = \"10.77.1.1/16\"\ngateway = \"10.77.0.1\"\n",
        KeyPair::generate()?.private
    );
    if let Some(name) = guest {
        text.push_str(&format!(
            "\n[guest]\nname = \"{name}\"\naddress = \"{GUEST_ADDRESS}/16\"\nmemory = \"{memory_mib}M\"\nvcpus = {vcpus}\n{}{more}",
            arguments.sharing.guest()
        ));
    }
    text.push_str(&arguments.sharing.services());
    if let Err(error) = Config::parse(&text) {
        bail!("the box does not take what these options make: {error}");
    }
    Ok(text)
}

/// Where the guest is: as the configuration says, if it can be read.
fn guest_address(config: Option<&str>) -> Option<Ipv4Addr> {
    match config {
        None => Some(GUEST_ADDRESS),
        Some(text) => Config::parse(text)
            .ok()?
            .guest?
            .address
            .map(|interface| interface.address()),
    }
}

/// QEMU opens its ports at once; a busy machine may take a while.
const OPENS: Duration = Duration::from_secs(30);

/// A TCP port on 127.0.0.1 that is free now: 3890 if it can be had.
fn free_port() -> Result<u16> {
    let listener =
        TcpListener::bind(("127.0.0.1", 3890)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
    Ok(listener
        .and_then(|listener| listener.local_addr())
        .context("no free TCP port on 127.0.0.1")?
        .port())
}

/// Joins terminal and console until the user quits or QEMU ends.
fn converse(mut console: UnixStream, qemu: &mut Process) -> Result<()> {
    let _graceful = Graceful::new();
    let _restored = raw_terminal()?;
    let typed = read_keyboard(console.try_clone()?);
    console.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut filter = Some(Vec::new());
    let mut buffer = [0; 4096];
    let mut out = std::io::stdout();
    loop {
        if process::interrupted() || typed.as_ref().is_some_and(|quit| quit.try_recv().is_ok()) {
            return Ok(());
        }
        match console.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                // A pipe that was closed behind us (`| head`) ends it too.
                if out
                    .write_all(&without_screen_control(&mut filter, bytes))
                    .and_then(|()| out.flush())
                    .is_err()
                {
                    return Ok(());
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("the console broke"),
        }
    }
    // The console closed: QEMU is ending.
    qemu.wait_for(Duration::from_secs(5))?;
    Ok(())
}

/// Every key comes at once and unchanged; output stays as it is. Undone when the guard goes, or on a forced end.
fn raw_terminal() -> Result<Option<AtExit>> {
    let terminal = std::io::stdin();
    if !terminal.is_terminal() {
        return Ok(None);
    }
    let before =
        termios::tcgetattr(terminal.as_fd()).context("cannot read the terminal's settings")?;
    let mut raw = before.clone();
    termios::cfmakeraw(&mut raw);
    raw.output_flags |= before.output_flags & (OutputFlags::OPOST | OutputFlags::ONLCR);
    termios::tcsetattr(terminal.as_fd(), SetArg::TCSANOW, &raw)
        .context("cannot change the terminal's settings")?;
    let before = std::sync::Mutex::new(nix::libc::termios::from(before));
    Ok(Some(AtExit::new(move || {
        let before = before
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &before.into());
    })))
}

/// Sends what is typed to the console; the channel says when the user quits. `None` if nobody types here.
fn read_keyboard(mut console: UnixStream) -> Option<std::sync::mpsc::Receiver<()>> {
    if !std::io::stdin().is_terminal() {
        return None;
    }
    let (quit, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut keyboard = Keyboard::default();
        let mut buffer = [0; 256];
        while let Ok(length) = std::io::stdin().read(&mut buffer) {
            let mut send = Vec::new();
            for &byte in buffer.get(..length).unwrap_or_default() {
                match keyboard.typed(byte) {
                    Typed::Send(byte) => send.push(byte),
                    Typed::Nothing => {}
                    Typed::Quit => {
                        let _ = quit.send(());
                        return;
                    }
                }
            }
            if length == 0 || console.write_all(&send).is_err() {
                return;
            }
        }
    });
    Some(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_configuration_is_right_with_and_without_a_guest() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Args,
        }
        let line = <Line as clap::Parser>::try_parse_from(["x", "--memory", "64", "--vcpus", "3"]);
        let arguments = line.map(|line| line.arguments).unwrap();
        for guest in [None, Some("directory")] {
            let text = default_config(guest, &arguments, "").unwrap();
            let config = Config::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(config.guest.map(|it| it.vcpus), guest.map(|_| 3));
            assert_eq!(guest_address(Some(&text)), guest.map(|_| GUEST_ADDRESS));
        }
        assert_eq!(guest_address(Some("nonsense")), None);
    }
}
