//! The three ways to run the bench guest in an emulated machine: directly on its CPUs, under KVM in Debian's kernel, in a
//! box. Each gives QEMU running and the ports to read.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use outpost_config::Config;

use crate::accel::Accelerator;
use crate::guest::ramdisk::Tree;
use crate::image::{self, GuestFiles};
use crate::keys::KeyPair;
use crate::process::{self, Process, Scratch};
use crate::qemu::{self, Disk, Nic, Qemu, Serial};

/// What a host has beside its guest's memory, in MiB: the box, or Debian with QEMU in its initial ramdisk.
const BOX_MEMORY: u32 = 512;
const KVM_MEMORY: u32 = 768;
/// The box's disk, with room for the partitions that the first boot makes.
const DISK_BYTES: u64 = 512 << 20;
/// QEMU opens its ports at once; a busy machine may take a while.
const OPENS: Duration = Duration::from_secs(60);
/// Name of the machine for messages and files.
const NAME: &str = "machine";

/// How the guest is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// On the emulated CPUs themselves.
    Direct,
    /// Under KVM in Debian's kernel.
    Kvm,
    /// In a box.
    Outpost,
}

impl Way {
    /// For rows and messages.
    pub fn name(self) -> &'static str {
        match self {
            Way::Direct => "direct",
            Way::Kvm => "KVM",
            Way::Outpost => "Outpost",
        }
    }
}

/// What is the same in every run.
pub struct Bench {
    /// The guest, with the command line that tells it what to do.
    pub guest: GuestFiles,
    /// The same without what only matters under a hypervisor.
    pub direct_cmdline: String,
    /// Debian with KVM; none when it is left out.
    pub kvm: Option<GuestFiles>,
    /// The box's image.
    pub image: PathBuf,
    /// The box's `outpost.toml`.
    pub config: String,
    /// CPUs of the emulated machine under a hypervisor.
    pub cpus: u8,
    /// CPUs of the guest.
    pub vcpus: u8,
    /// The guest's memory in MiB.
    pub memory: u32,
    /// What the emulated CPU has or has not beside its model, in QEMU's notation, whatever runs on it.
    pub cpu_features: Vec<String>,
}

/// A guest that runs.
pub struct Running {
    /// QEMU.
    pub qemu: Process,
    /// The guest's serial port.
    pub guest: UnixStream,
    /// The box's telemetry.
    pub telemetry: Option<UnixStream>,
    /// Sockets, logs and disks.
    pub scratch: Scratch,
}

impl Running {
    /// What QEMU said.
    pub fn log(&self) -> String {
        qemu::log_of(self.scratch.path(), NAME)
    }

    /// What the box said on its console.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(self.scratch.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Bench {
    /// Starts the guest.
    ///
    /// # Errors
    /// QEMU is not there, or does not start.
    pub fn start(&self, way: Way) -> Result<Running> {
        let scratch = Scratch::new("hv")?;
        match way {
            Way::Direct => {
                let guest = GuestFiles {
                    command_line: self.direct_cmdline.clone(),
                    ..self.guest.clone()
                };
                let machine = LinuxMachine {
                    files: guest,
                    more: Vec::new(),
                    cpus: self.vcpus,
                    memory: self.memory,
                    counts_instructions: false,
                    cpu_features: self.cpu_features.clone(),
                };
                machine.start(scratch)
            }
            Way::Kvm => {
                let host = self.kvm.as_ref().context("KVM is left out")?;
                let mut machine = kvm_machine(host, &self.guest, self.vcpus, self.memory)?;
                machine.cpus = self.cpus;
                machine.cpu_features.clone_from(&self.cpu_features);
                machine.start(scratch)
            }
            Way::Outpost => self.start_box(scratch),
        }
    }

    fn start_box(&self, scratch: Scratch) -> Result<Running> {
        let folder = scratch.path();
        let disk = folder.join("disk.img");
        image::with_config(&self.image, &self.config, &disk, Some(DISK_BYTES))?;
        let [telemetry, guest] = ["telemetry", "guest"].map(|name| folder.join(name));
        let mut machine = Qemu::new(NAME, Accelerator::Tcg, Disk::new(disk));
        machine.cpus = self.cpus;
        machine.memory_mib = self.memory + BOX_MEMORY;
        machine.cpu_features.clone_from(&self.cpu_features);
        machine.nics = Nic::unplugged();
        machine.com1 = Serial::File(folder.join("console"));
        machine.com2 = Serial::Socket {
            path: telemetry.clone(),
            wait: true,
        };
        // The third port as a socket: what comes from it is stamped when it comes.
        machine.more = [
            "-chardev",
            &socket("com2", &guest)?,
            "-device",
            "isa-serial,chardev=com2,index=2",
        ]
        .map(str::to_owned)
        .into();
        let mut qemu = machine.start(folder)?;
        let telemetry = qemu::connect(&telemetry, &mut qemu, folder, NAME, Instant::now() + OPENS)?;
        let guest = qemu::connect(&guest, &mut qemu, folder, NAME, Instant::now() + OPENS)?;
        Ok(Running {
            qemu,
            guest,
            telemetry: Some(telemetry),
            scratch,
        })
    }
}

/// The box's configuration: no peer, and the bench guest, on the first `cpus` CPUs or where the box thinks best.
///
/// # Errors
/// The box's guests cannot have so many vCPUs, or so much memory.
pub fn box_config(guest: &str, vcpus: u8, memory: u32, cpus: Option<u8>) -> Result<String> {
    let cpus = cpus.map_or_else(String::new, |cpus| {
        format!("cpus = {:?}\n", Vec::from_iter(0..cpus))
    });
    let text = format!(
        "role = \"branch\"\nprivate_key = \"{}\"\n\n[management]\naddress = \"10.77.1.1/16\"\n\n\
         [guest]\nname = \"{guest}\"\nvcpus = {vcpus}\nmemory = \"{memory}M\"\n{cpus}com3 = true\n",
        KeyPair::generate()?.private
    );
    match Config::parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => {
            bail!("the box does not take a guest of {vcpus} vCPUs and {memory} MiB: {error}")
        }
    }
}

/// A machine that boots a Linux kernel; its serial port is a socket.
pub struct LinuxMachine {
    /// Kernel, ramdisk and command line.
    pub files: GuestFiles,
    /// An archive that is unpacked over the ramdisk.
    pub more: Vec<u8>,
    /// Its CPUs.
    pub cpus: u8,
    /// Its memory in MiB.
    pub memory: u32,
    /// Time in it is the number of instructions executed (see [`Qemu::counts_instructions`]): one CPU.
    pub counts_instructions: bool,
    /// See [`Bench::cpu_features`].
    pub cpu_features: Vec<String>,
}

/// Debian with KVM, `host`, that runs `guest` with so many CPUs and so much memory in MiB. It has as many CPUs itself.
///
/// # Errors
/// The guest's files do not go into an archive.
pub fn kvm_machine(
    host: &GuestFiles,
    guest: &GuestFiles,
    vcpus: u8,
    memory: u32,
) -> Result<LinuxMachine> {
    Ok(LinuxMachine {
        files: GuestFiles {
            command_line: format!(
                "{} bench.vcpus={vcpus} bench.memory={memory}",
                host.command_line
            ),
            ..host.clone()
        },
        more: guest_archive(guest)?,
        cpus: vcpus,
        memory: memory + KVM_MEMORY,
        counts_instructions: false,
        cpu_features: Vec::new(),
    })
}

impl LinuxMachine {
    /// Starts it.
    ///
    /// # Errors
    /// QEMU is not there, or does not start.
    pub fn start(&self, scratch: Scratch) -> Result<Running> {
        let LinuxMachine {
            files,
            more,
            cpus,
            memory,
            ..
        } = self;
        let folder = scratch.path();
        let [kernel, ramdisk, port] = ["kernel", "ramdisk", "port"].map(|name| folder.join(name));
        let mut bytes = files.ramdisk.clone().unwrap_or_default();
        // The kernel takes archives one after another (its Documentation/driver-api/early-userspace/buffer-format).
        bytes.extend_from_slice(more);
        std::fs::write(&kernel, &files.kernel)
            .and_then(|()| std::fs::write(&ramdisk, bytes))
            .with_context(|| format!("cannot write to {}", folder.display()))?;
        let log = std::fs::File::create(folder.join(format!("{NAME}.qemu.log")))
            .context("cannot write QEMU's log")?;
        let mut command = process::command(qemu::PROGRAM)?;
        command
            .args(["-name", NAME, "-no-user-config", "-nodefaults"])
            .args(["-display", "none", "-no-reboot", "-M", "q35"])
            .args(["-cpu", &qemu::cpu(Accelerator::Tcg, &self.cpu_features)])
            .args(["-smp", &cpus.to_string(), "-m", &memory.to_string()])
            .arg("-kernel")
            .arg(&kernel)
            .arg("-initrd")
            .arg(&ramdisk)
            .args(["-append", &files.command_line])
            .args(["-chardev", &socket("com0", &port)?])
            .args(["-device", "isa-serial,chardev=com0,index=0"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        for (option, value) in qemu::execution(Accelerator::Tcg, self.counts_instructions) {
            command.arg(option).arg(value);
        }
        let mut qemu = Process::start(command, &format!("QEMU ({NAME})"))?;
        let guest = qemu::connect(&port, &mut qemu, folder, NAME, Instant::now() + OPENS)?;
        Ok(Running {
            qemu,
            guest,
            telemetry: None,
            scratch,
        })
    }
}

/// For `-chardev`: QEMU waits until someone has connected.
fn socket(id: &str, path: &Path) -> Result<String> {
    let path = path
        .to_str()
        .filter(|path| !path.contains(','))
        .context("the directory for temporary files has a name that QEMU's options do not take")?;
    Ok(format!("socket,id={id},server=on,wait=on,path={path}"))
}

/// The guest as files of the host that runs it under KVM.
fn guest_archive(guest: &GuestFiles) -> Result<Vec<u8>> {
    let ramdisk = guest.ramdisk.clone().unwrap_or_default();
    Tree::of_files([
        ("guest/kernel", guest.kernel.clone()),
        ("guest/ramdisk", ramdisk),
        ("guest/cmdline", guest.command_line.clone().into_bytes()),
    ])
    .to_cpio()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_box_takes_the_configuration() {
        let text = box_config("bench", 2, 1024, Some(2)).unwrap();
        let guest = Config::parse(&text).unwrap().guest.unwrap();
        assert_eq!((guest.vcpus, guest.com3), (2, true));
        assert!(box_config("bench", 255, 1024, None).is_err());
    }
}
