//! A typed builder for the QEMU command line of one box: firmware, disk, network wires, the two serial ports.
//!
//! It knows QEMU's options and nothing of what runs inside.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::accel::Accelerator;
use crate::process::{self, Process};

/// The emulator, from Debian's `qemu-system-x86`.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Memory of a machine, unless something else is wanted, in MiB.
pub const MEMORY_MIB: u32 = 768;

/// Nanoseconds, and ticks of the TSC, that an instruction takes where they are counted. One would do, but then each second
/// that the firmware waits would be 10⁹ instructions.
pub const TICKS_PER_INSTRUCTION: u64 = 1 << TICKS_SHIFT;
const TICKS_SHIFT: u32 = 5;

/// For `-cpu`: the model, and features in QEMU's notation.
pub fn cpu(accelerator: Accelerator, features: &[String]) -> String {
    let features = features.iter().map(String::as_str);
    core::iter::once(accelerator.cpu_model())
        .chain(features)
        .collect::<Vec<_>>()
        .join(",")
}

/// The options that say what executes a machine's instructions, and whether the time in it is their number, times [`TICKS_PER_INSTRUCTION`].
pub fn execution(
    accelerator: Accelerator,
    counts_instructions: bool,
) -> Vec<(&'static str, String)> {
    if counts_instructions {
        let ticks = format!("shift={TICKS_SHIFT},sleep=off");
        vec![
            ("-accel", "tcg,thread=single".to_owned()),
            ("-icount", ticks),
        ]
    } else {
        vec![("-accel", accelerator.qemu_option().to_owned())]
    }
}

/// Where Debian's and others' packages put the firmware: code and variables.
const FIRMWARE: [(&str, &str); 4] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
];

/// Where a serial port leads.
#[derive(Clone, Debug)]
pub enum Serial {
    /// Nowhere, but the port is there.
    Null,
    /// To a file, from its beginning.
    File(PathBuf),
    /// To a Unix socket on which QEMU listens; what is written before someone connects is lost, unless `wait`.
    Socket {
        /// The socket's path (at most 107 bytes).
        path: PathBuf,
        /// Does not start the machine before someone has connected.
        wait: bool,
    },
}

/// Where a network card's wire leads.
#[derive(Clone, Debug)]
pub enum Wire {
    /// One Ethernet frame a datagram: QEMU binds `local` and sends to `remote`.
    Datagram {
        /// The socket that QEMU makes.
        local: PathBuf,
        /// The socket that the other end of the wire has bound.
        remote: PathBuf,
    },
    /// QEMU's user-mode network: no root needed, for playing.
    User {
        /// The network, as `10.77.0.0/16`.
        network: String,
        /// What QEMU itself is in it.
        gateway: Ipv4Addr,
        /// TCP ports on 127.0.0.1 that lead to addresses and ports in the network.
        forwards: Vec<(u16, Ipv4Addr, u16)>,
    },
    /// Nowhere.
    Unplugged,
}

/// A virtio network card.
#[derive(Clone, Debug)]
pub struct Nic {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Where its wire leads.
    pub wire: Wire,
}

impl Nic {
    /// The two ports of a box, with nothing behind them.
    pub fn unplugged() -> Vec<Nic> {
        let port = |last| Nic {
            mac: [0x52, 0x54, 0, 0, 0, last],
            wire: Wire::Unplugged,
        };
        [1, 2].map(port).into()
    }
}

/// A disk image file on a virtio block device.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The raw image.
    pub path: PathBuf,
    /// Keeps what the machine writes out of the file, and forgets it at the end.
    pub snapshot: bool,
    /// The machine cannot write to it.
    pub read_only: bool,
    /// Its requests can be held back (see [`Qemu::monitor`]).
    pub can_hang: bool,
    /// Requests that it answers in a second; as many as it can, if there is none.
    pub requests_per_second: Option<u32>,
}

impl Disk {
    /// A disk that can be written and does what it is asked to.
    pub fn new(path: impl Into<PathBuf>) -> Disk {
        Disk {
            path: path.into(),
            snapshot: false,
            read_only: false,
            can_hang: false,
            requests_per_second: None,
        }
    }
}

/// One emulated box. The fields are public: change what [`Qemu::new`] sets.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// For messages, and for `ps`.
    pub name: String,
    /// What executes the instructions.
    pub accelerator: Accelerator,
    /// CPU features in QEMU's notation after the model: `svm=off`, say.
    pub cpu_features: Vec<String>,
    /// Number of CPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disks in the order of PCI addresses; the first is booted.
    pub disks: Vec<Disk>,
    /// Network cards in the order of PCI addresses: LAN, WAN.
    pub nics: Vec<Nic>,
    /// COM1: the console for people.
    pub com1: Serial,
    /// COM2: telemetry.
    pub com2: Serial,
    /// COM3: the guest's serial port, where the configuration asks for it.
    pub com3: Option<PathBuf>,
    /// A virtio source of entropy.
    pub entropy: bool,
    /// A graphics card, so that the firmware offers a framebuffer. (No window is opened in any case.)
    pub graphics: bool,
    /// A Unix socket for QEMU's own commands (QMP).
    pub monitor: Option<PathBuf>,
    /// Ends QEMU when the machine resets.
    pub exit_on_reset: bool,
    /// Time in the machine is the number of instructions executed, times [`TICKS_PER_INSTRUCTION`]. One CPU, TCG only.
    pub counts_instructions: bool,
    /// More arguments.
    pub more: Vec<String>,
}

impl Qemu {
    /// A box as the plan has it (q35, 2 CPUs, 768 MiB) that boots `disk`, with no network cards yet.
    pub fn new(name: &str, accelerator: Accelerator, disk: Disk) -> Qemu {
        Qemu {
            name: name.to_owned(),
            accelerator,
            cpu_features: Vec::new(),
            cpus: 2,
            memory_mib: MEMORY_MIB,
            disks: vec![disk],
            nics: Vec::new(),
            com1: Serial::Null,
            com2: Serial::Null,
            com3: None,
            entropy: true,
            graphics: false,
            monitor: None,
            exit_on_reset: false,
            counts_instructions: false,
            more: Vec::new(),
        }
    }

    /// The arguments after the program's name. `variables` is a writable copy of the firmware's variables.
    pub fn arguments(&self, firmware: &Path, variables: &Path) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        let mut add = |option: &str, value: String| {
            arguments.push(option.to_owned());
            if !value.is_empty() {
                arguments.push(value);
            }
        };
        add("-name", option_value(&self.name)?);
        add("-no-user-config", String::new());
        add("-nodefaults", String::new());
        if self.counts_instructions && (self.accelerator != Accelerator::Tcg || self.cpus != 1) {
            bail!("QEMU counts instructions only with TCG and one CPU");
        }
        for (option, value) in execution(self.accelerator, self.counts_instructions) {
            add(option, value);
        }
        add("-M", "q35".to_owned());
        add("-cpu", cpu(self.accelerator, &self.cpu_features));
        add("-smp", self.cpus.to_string());
        add("-m", self.memory_mib.to_string());
        add("-display", "none".to_owned());
        add(
            "-drive",
            format!(
                "if=pflash,format=raw,unit=0,readonly=on,file={}",
                path_value(firmware)?
            ),
        );
        add(
            "-drive",
            format!(
                "if=pflash,format=raw,unit=1,file={}",
                path_value(variables)?
            ),
        );
        if self.graphics {
            add("-device", "VGA".to_owned());
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let snapshot = if disk.snapshot { "on" } else { "off" };
            let read_only = if disk.read_only { ",readonly=on" } else { "" };
            let file = path_value(&disk.path)?;
            // An interposed driver without rules of its own; it takes them from the monitor.
            let file = if disk.can_hang {
                format!("blkdebug::{file}")
            } else {
                file
            };
            let rate = disk
                .requests_per_second
                .map(|rate| format!(",throttling.iops-total={rate}"))
                .unwrap_or_default();
            add(
                "-drive",
                format!(
                    "if=none,id=disk{index},format=raw,snapshot={snapshot}{read_only}{rate},file={file}"
                ),
            );
            add(
                "-device",
                format!("virtio-blk-pci,drive=disk{index},bootindex={}", index + 1),
            );
        }
        for (index, nic) in self.nics.iter().enumerate() {
            match &nic.wire {
                Wire::Datagram { local, remote } => add(
                    "-netdev",
                    format!(
                        "dgram,id=net{index},local.type=unix,local.path={},remote.type=unix,remote.path={}",
                        path_value(local)?,
                        path_value(remote)?
                    ),
                ),
                Wire::User {
                    network,
                    gateway,
                    forwards,
                } => {
                    let mut value = format!(
                        "user,id=net{index},net={},host={gateway}",
                        option_value(network)?
                    );
                    for (here, address, there) in forwards {
                        value.push_str(&format!(",hostfwd=tcp:127.0.0.1:{here}-{address}:{there}"));
                    }
                    add("-netdev", value);
                }
                // A hub port without a hub partner: the card is there and its frames go nowhere.
                Wire::Unplugged => add(
                    "-netdev",
                    format!("hubport,id=net{index},hubid={}", index + 100),
                ),
            }
            let [a, b, c, d, e, f] = nic.mac;
            add(
                "-device",
                format!(
                    "virtio-net-pci,netdev=net{index},romfile=,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
                ),
            );
        }
        for (index, serial) in [&self.com1, &self.com2].into_iter().enumerate() {
            let backend = match serial {
                Serial::Null => format!("null,id=com{index}"),
                Serial::File(path) => format!("file,id=com{index},path={}", path_value(path)?),
                Serial::Socket { path, wait } => {
                    let wait = if *wait { "on" } else { "off" };
                    format!(
                        "socket,id=com{index},server=on,wait={wait},path={}",
                        path_value(path)?
                    )
                }
            };
            add("-chardev", backend);
            add(
                "-device",
                format!("isa-serial,chardev=com{index},index={index}"),
            );
        }
        if let Some(path) = &self.com3 {
            add(
                "-chardev",
                format!("file,id=com2,path={}", path_value(path)?),
            );
            add("-device", "isa-serial,chardev=com2,index=2".to_owned());
        }
        if let Some(path) = &self.monitor {
            add(
                "-qmp",
                format!("unix:{},server=on,wait=off", path_value(path)?),
            );
        }
        if self.entropy {
            add("-device", "virtio-rng-pci".to_owned());
        }
        if self.exit_on_reset {
            add("-no-reboot", String::new());
        }
        arguments.extend(self.more.iter().cloned());
        Ok(arguments)
    }

    /// Starts the machine. Its firmware variables and what QEMU has to say (`NAME.qemu.log`) go to `directory`.
    ///
    /// # Errors
    /// When QEMU or the firmware is not installed, or QEMU cannot be started. An error of QEMU's own shows when it ends: see
    /// [`log_of`].
    pub fn start(&self, directory: &Path) -> Result<Process> {
        let Some((code, variables)) = FIRMWARE.iter().find(|(code, _)| Path::new(code).exists())
        else {
            bail!(
                "no OVMF firmware found; `cargo xtask setup` installs it (Debian's package ovmf)"
            );
        };
        let own_variables = directory.join(format!("{}.vars.fd", self.name));
        std::fs::copy(variables, &own_variables)
            .with_context(|| format!("cannot copy {variables} to {}", own_variables.display()))?;
        let mut command: Command = process::command(PROGRAM)?;
        command.args(self.arguments(Path::new(code), &own_variables)?);
        let log = std::fs::File::create(log_path(directory, &self.name))
            .context("cannot write QEMU's log")?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Process::start(command, &format!("QEMU ({})", self.name))
    }
}

fn log_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.qemu.log"))
}

/// What QEMU wrote about the machine `name` that was started in `directory`.
pub fn log_of(directory: &Path, name: &str) -> String {
    std::fs::read_to_string(log_path(directory, name))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Connects to a socket that QEMU, run as machine `name` in `directory`, opens when it has come so far.
///
/// # Errors
/// QEMU has ended, the deadline is over, or the user has interrupted.
pub fn connect(
    path: &Path,
    qemu: &mut Process,
    directory: &Path,
    name: &str,
    deadline: Instant,
) -> Result<UnixStream> {
    loop {
        if let Ok(stream) = UnixStream::connect(path) {
            return Ok(stream);
        }
        if let Some(status) = qemu.try_wait()? {
            bail!("QEMU ended with {status}: {}", log_of(directory, name));
        }
        process::check_interrupted()?;
        if Instant::now() > deadline {
            bail!(
                "QEMU does not open {}: {}",
                path.display(),
                log_of(directory, name)
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// QEMU's option syntax doubles a comma to mean one.
fn option_value(value: &str) -> Result<String> {
    if value.is_empty() || value.contains('\n') {
        bail!("{value:?} cannot be given to QEMU");
    }
    Ok(value.replace(',', ",,"))
}

fn path_value(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => option_value(text),
        None => bail!(
            "the path {} is not UTF-8; QEMU's options need that",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Qemu {
        let mut qemu = Qemu::new(
            "branch",
            Accelerator::Tcg,
            Disk {
                snapshot: true,
                ..Disk::new("/a,b/disk.img")
            },
        );
        qemu.nics = vec![
            Nic {
                mac: [0x52, 0x54, 0, 0, 0, 1],
                wire: Wire::Datagram {
                    local: "/t/lan.box".into(),
                    remote: "/t/lan".into(),
                },
            },
            Nic {
                mac: [0x52, 0x54, 0, 0, 0, 2],
                wire: Wire::Unplugged,
            },
        ];
        qemu.com1 = Serial::Socket {
            path: "/t/com1".into(),
            wait: true,
        };
        qemu.com2 = Serial::File("/t/com2".into());
        qemu
    }

    #[test]
    fn the_command_line_says_what_the_box_has() {
        let line = example()
            .arguments(Path::new("/code.fd"), Path::new("/vars.fd"))
            .unwrap()
            .join(" ");
        for part in [
            "-accel tcg,thread=multi",
            "-cpu max",
            "-smp 2",
            "-m 768",
            "file=/a,,b/disk.img",
            "snapshot=on",
            "bootindex=1",
            "dgram,id=net0,local.type=unix,local.path=/t/lan.box,remote.type=unix,remote.path=/t/lan",
            "mac=52:54:00:00:00:01",
            "netdev=net1",
            "socket,id=com0,server=on,wait=on,path=/t/com1",
            "file,id=com1,path=/t/com2",
            "isa-serial,chardev=com1,index=1",
            "virtio-rng-pci",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn cpu_features_follow_the_model() {
        let mut qemu = example();
        qemu.cpu_features = vec!["svm=off".into()];
        let arguments = qemu.arguments(Path::new("/c"), Path::new("/v")).unwrap();
        assert!(arguments.contains(&"max,svm=off".to_owned()));
    }

    #[test]
    fn instructions_are_counted_on_one_cpu_only() {
        let mut qemu = example();
        qemu.counts_instructions = true;
        let line = |qemu: &Qemu| qemu.arguments(Path::new("/c"), Path::new("/v"));
        assert!(line(&qemu).is_err());
        qemu.cpus = 1;
        let line = line(&qemu).unwrap().join(" ");
        assert!(line.contains("-accel tcg,thread=single -icount shift=5,sleep=off"));
    }

    #[test]
    fn values_that_qemu_would_misread_are_refused() {
        assert!(option_value("").is_err());
        assert!(option_value("a\nb").is_err());
        assert_eq!(option_value("a,b").unwrap(), "a,,b");
    }
}
