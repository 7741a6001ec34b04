//! Boxes whose guest is the probe, for what is measured of the scheduler: told what to do, with the far ends of both wires and both
//! serial ports in hand. Not the figures: those are in the modules below.

pub mod cost;
pub mod forwarding;
mod in_turn;
pub mod latency;
pub mod locks;
mod packets;
pub mod shares;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outpost_config::Config;

use crate::accel::Accelerator;
use crate::emulator_tests::watch::{Said, Watch};
use crate::emulator_tests::wire::WireEnd;
use crate::image::{self, GuestFiles};
use crate::keys::KeyPair;
use crate::process::{self, Process, Scratch};
use crate::qemu::{self, Disk, Nic, Qemu, Serial};
use crate::sharing::Sharing;
use crate::{firmware, probe};

/// vCPUs of the guest, and CPUs of the box.
pub const VCPUS: u8 = 2;
const CPUS: u8 = 2;
/// The box's disk, with room for the partitions that the first boot makes.
const DISK_BYTES: u64 = 512 << 20;
/// Far beyond what anything takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// Name of the machine for messages and files.
const NAME: &str = "box";

/// How often something is measured again when the emulator has lost the guest's state.
const AGAIN: u32 = 3;

/// The guest did what it cannot do by itself: a fault out of nothing. QEMU's translator loses state of its first CPU, where one of its vCPUs runs.
#[derive(Debug)]
struct LostState(String);

impl std::fmt::Display for LostState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the box says: {}", self.0)
    }
}

impl std::error::Error for LostState {}

impl LostState {
    /// What the probe says of an exception that none of its modes raises, and the box of a guest that crashed.
    fn is_told_by(line: &str) -> bool {
        line.contains("unexpected exception or interrupt") || line.contains("triple fault")
    }
}

/// Measures, and does so again, which is said, if the emulator has lost the guest's state.
///
/// # Errors
/// As `measure`, or it was lost once more than [`AGAIN`] times.
fn again<T>(mut measure: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..AGAIN {
        match measure() {
            Err(why) if why.is::<LostState>() => println!(
                "{why}: QEMU's translator loses state of its first CPU (docs/hv.md), so this is measured again"
            ),
            result => return result,
        }
    }
    measure()
}

/// What every box is made from.
pub struct Stage {
    efi: Vec<u8>,
    probe: GuestFiles,
}

impl Stage {
    /// From the box's binary, which pins the probe (see [`Stage::guest`]).
    pub fn new(efi: Vec<u8>, probe: GuestFiles) -> Stage {
        Stage { efi, probe }
    }

    /// The probe, which the binary must pin.
    ///
    /// # Errors
    /// The assembler is missing or fails.
    pub fn guest() -> Result<GuestFiles> {
        probe::build(probe::DEFAULT)
    }

    /// Builds the box's binary.
    ///
    /// # Errors
    /// It does not build.
    pub fn build() -> Result<Stage> {
        let probe = Stage::guest()?;
        let efi = firmware::build(&[probe.pin()])?.bytes;
        Ok(Stage { efi, probe })
    }
}

/// What a box's guest does, and how it shares the CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The probe's mode, with its words.
    pub mode: &'static str,
    /// How its vCPUs are scheduled.
    pub policy: &'static str,
    /// Its nice value.
    pub nice: i8,
    /// The services'.
    pub services_nice: i8,
    /// CPUs on each of which a service wants all it can get.
    pub load: &'static [u8],
}

impl Setting {
    /// The probe in this mode under this policy, at nice 0, with nothing beside it but the box's own work.
    pub fn new(mode: &'static str, policy: &'static str) -> Setting {
        Setting {
            mode,
            policy,
            nice: 0,
            services_nice: 0,
            load: &[],
        }
    }

    fn config(&self) -> Result<String> {
        let text = format!(
            "role = \"branch\"\nprivate_key = \"{}\"\n\n[management]\naddress = \"10.77.1.1/16\"\n\n\
             [guest]\nname = \"probe\"\nmemory = \"64M\"\nvcpus = {VCPUS}\ncpus = [0, 1]\npolicy = \"{}\"\nnice = {}\n\n\
             [services]\nnice = {}\nload = {:?}\n",
            KeyPair::generate()?.private,
            self.policy,
            self.nice,
            self.services_nice,
            self.load
        );
        match Config::parse(&text) {
            Ok(_) => Ok(text),
            Err(error) => bail!("the box does not take its configuration: {error}"),
        }
    }
}

/// A box that runs.
pub struct ProbedBox {
    /// QEMU.
    pub qemu: Process,
    watch: Watch,
    keyboard: UnixStream,
    /// The LAN's wire.
    pub lan: WireEnd,
    /// The WAN's wire.
    pub wan: WireEnd,
    _scratch: Scratch,
}

impl Stage {
    /// Starts a box and waits until its guest does what it is told.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self, setting: &Setting) -> Result<ProbedBox> {
        let scratch = Scratch::new("probed")?;
        let folder = scratch.path();
        let disk = folder.join("disk.img");
        let guest = GuestFiles {
            command_line: setting.mode.to_owned(),
            ..self.probe.clone()
        };
        image::assemble(&self.efi, &setting.config()?, Some(&guest.slot()?), &disk)?;
        let file = std::fs::File::options().write(true).open(&disk)?;
        file.set_len(DISK_BYTES)?;
        let mut machine = Qemu::new(NAME, Accelerator::Tcg, Disk::new(disk));
        machine.cpus = CPUS;
        // Names the threads: see `yield_to_devices`.
        machine.more = ["-name", "debug-threads=on"].map(str::to_owned).into();
        let wires = [WireEnd::new(folder, "lan")?, WireEnd::new(folder, "wan")?];
        machine.nics = [("lan", 1), ("wan", 2)]
            .into_iter()
            .zip(&wires)
            .map(|((name, last), wire)| Nic {
                mac: [0x52, 0x54, 0, 0, 0, last],
                wire: wire.qemu_side(folder, name),
            })
            .collect();
        let ports = ["com1", "com2"].map(|name| folder.join(name));
        let [com1, com2] = ports
            .clone()
            .map(|path| Serial::Socket { path, wait: true });
        (machine.com1, machine.com2) = (com1, com2);
        let mut qemu = machine.start(folder)?;
        let deadline = Instant::now() + PATIENCE;
        let [console, telemetry] = &ports;
        let console = qemu::connect(console, &mut qemu, folder, NAME, deadline)?;
        let telemetry = qemu::connect(telemetry, &mut qemu, folder, NAME, deadline)?;
        let watch = Watch::default();
        let keyboard = watch.follow(console, telemetry, folder, NAME)?;
        let [lan, wan] = wires;
        let mut machine = ProbedBox {
            qemu,
            watch,
            keyboard,
            lan,
            wan,
            _scratch: scratch,
        };
        machine.wait_for("the guest to start", |said| said.milestone("guest-init"))?;
        yield_to_devices(&machine.qemu)?;
        Ok(machine)
    }
}

impl ProbedBox {
    /// Waits until `seen` finds what it looks for; `what` says what that is.
    ///
    /// # Errors
    /// The box or its guest says that something is wrong, is gone, or takes too long; or the user interrupts.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        mut seen: impl FnMut(&Said) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.watch.lock();
            let problem = said.problems().next();
            let wrong = |line: &&str| line.contains("panicked") || line.contains("FAILED");
            let mut lines = said.console.iter().map(String::as_str);
            if let Some(line) = problem.or_else(|| lines.find(wrong)) {
                if LostState::is_told_by(line) {
                    return Err(LostState(line.to_owned()).into());
                }
                bail!("the box says: {line}");
            }
            if let Some(found) = seen(&said) {
                return Ok(found);
            }
            if said.closed > 0 {
                bail!("the box is gone; waited for {what}");
            }
            if Instant::now() > deadline {
                bail!("waited {} s for {what} in vain", PATIENCE.as_secs());
            }
            drop(self.watch.wait(said, Duration::from_millis(200)));
            process::check_interrupted()?;
        }
    }

    /// Waits for a console line with this text.
    ///
    /// # Errors
    /// As [`ProbedBox::wait_for`].
    pub fn console(&mut self, part: &str) -> Result<String> {
        self.wait_for(&format!("a line with {part:?}"), |said| {
            let mut lines = said.console.iter();
            lines.find(|line| line.contains(part)).cloned()
        })
    }

    /// Types at the console.
    ///
    /// # Errors
    /// The box is gone.
    pub fn type_keys(&mut self, keys: &[u8]) -> Result<()> {
        self.keyboard.write_all(keys).context("the box is gone")
    }

    /// Lines of the console so far.
    pub fn lines(&self) -> usize {
        self.watch.lock().console.len()
    }

    /// What the scheduler has counted, from the next report on (they come once a second).
    ///
    /// # Errors
    /// As [`ProbedBox::wait_for`].
    pub fn next_sharing(&mut self) -> Result<Sharing> {
        let before = self.watch.lock().statuses();
        self.wait_for("the next report", |said| {
            let status = said.status().filter(|_| said.statuses() > before)?;
            serde_json::from_value(status.get("sharing")?.clone()).ok()
        })
    }

    /// The last report.
    pub fn last_sharing(&self) -> Option<Sharing> {
        let said = self.watch.lock();
        serde_json::from_value(said.status()?.get("sharing")?.clone()).ok()
    }

    /// Holds the whole emulated machine still, so that another has this one's CPUs, until [`ProbedBox::go_on`].
    ///
    /// # Errors
    /// It is gone.
    pub fn pause(&self) -> Result<()> {
        kill(self.qemu.id(), Signal::SIGSTOP).context("cannot stop QEMU")
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It is gone.
    pub fn go_on(&self) -> Result<()> {
        kill(self.qemu.id(), Signal::SIGCONT).context("cannot wake QEMU")
    }
}

/// How much nicer the emulated CPUs are than the rest.
const NICER: i64 = 10;

/// Gives the threads that execute the machine's CPUs a higher nice value than the thread of its devices, and this one, have, and a CPU of this machine
/// each, where it has as many; and those two real-time priority, where that is allowed. The far ends of the wires are no part of the box: two CPUs that spin
/// must not keep them from this machine's own, of which there may be two. By nice values alone Linux lets who spins finish its slice of some milliseconds
/// first (its EEVDF scheduler, from 6.6 on); and it moves a thread that was interrupted behind the other one that spins. (With both on the CPU that the
/// emulated CPU 0 does not have, they keep each other waiting: half of the frames.)
fn yield_to_devices(qemu: &Process) -> Result<()> {
    static OWN: OnceLock<Vec<usize>> = OnceLock::new();
    let own = OWN.get_or_init(own_cpus);
    let enough = own.len() >= usize::from(CPUS);
    let mut found = 0;
    let threads = format!("/proc/{}/task", qemu.id());
    for thread in std::fs::read_dir(&threads).with_context(|| format!("cannot read {threads}"))? {
        let thread = thread?;
        let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        if let Some(emulated) = emulated_cpu(&name) {
            let id = thread.file_name().to_string_lossy().into_owned();
            nice_as_emulated(&id)?;
            if enough && let Some(cpu) = own.get(emulated) {
                run_on(Pid::from_raw(id.parse()?), &[*cpu])?;
            }
            found += 1;
        }
    }
    if found != CPUS {
        bail!("QEMU has {found} threads for {CPUS} CPUs");
    }
    // A process's number is that of its first thread: in QEMU the one of the devices.
    let threads = [qemu.id(), nix::unistd::gettid()];
    for thread in threads {
        let mut chrt = process::command("chrt")?;
        chrt.args(["--rr", "--reset-on-fork", "--pid", "1"])
            .arg(thread.to_string());
        if let Err(why) = process::output(chrt, "chrt") {
            static TOLD: std::sync::Once = std::sync::Once::new();
            TOLD.call_once(|| {
                println!("No real-time priority for the emulator's devices, so latencies have slices of this machine's scheduler in them: {why:#}");
            });
            break;
        }
    }
    Ok(())
}

/// The number in the name of a thread of QEMU's that executes a CPU: `CPU 1/TCG`.
fn emulated_cpu(thread: &str) -> Option<usize> {
    let number = thread.strip_prefix("CPU ")?.split('/').next()?;
    number.trim().parse().ok()
}

/// The CPUs of this machine that this thread may run on.
fn own_cpus() -> Vec<usize> {
    let own = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count())
        .filter(|cpu| own.is_set(*cpu) == Ok(true))
        .collect()
}

/// Lets a thread run on these CPUs only.
fn run_on(thread: Pid, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(thread, &set).context("cannot bind a thread to CPUs")
}

/// Gives a thread the nice value of an emulated CPU.
fn nice_as_emulated(thread: &str) -> Result<()> {
    let own = std::fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    let nice = own_nice(&own).context("/proc/self/stat is not as proc(5) has it")? + NICER;
    let mut renice = process::command("renice")?;
    renice.args(["-n", &nice.to_string(), "-p", thread]);
    process::output(renice, "renice")?;
    Ok(())
}

/// The nice value in `/proc/…/stat`: the program's name is in parentheses, and may have any in it.
fn own_nice(stat: &str) -> Option<i64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(16)?.parse().ok()
}

/// The middle value; of two, their mean. `None` without any.
pub use super::hv::marks::median;

/// The value that so many percent of all do not exceed; `None` without any.
pub fn percentile(mut values: Vec<f64>, percent: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    values.get(last * percent.min(100) / 100).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_emulator_has_lost_is_measured_again_and_nothing_else_is() {
        let lost =
            || LostState::is_told_by("guest| probe: unexpected exception or interrupt 13, next");
        assert!(lost() && !LostState::is_told_by("guest| probe: lock: FAILED"));
        let mut tries = 0;
        let second = again(|| {
            tries += 1;
            match tries {
                1 => Err(LostState("triple fault".into()).into()),
                _ => Ok(tries),
            }
        });
        assert_eq!(second.unwrap(), 2);
        let mut tries = 0;
        let other = again(|| -> Result<()> {
            tries += 1;
            bail!("no frame crosses the box")
        });
        assert!(other.is_err() && tries == 1);
        let mut tries = 0;
        let always = again(|| -> Result<()> {
            tries += 1;
            Err(LostState("triple fault".into()).into())
        });
        assert!(always.is_err() && tries == AGAIN + 1);
    }

    #[test]
    fn the_box_takes_every_policy_and_load() {
        for policy in ["fair", "balance", "gang", "placed"] {
            let setting = Setting {
                nice: -5,
                services_nice: 10,
                load: &[0, 1],
                ..Setting::new("burn 8", policy)
            };
            let config = Config::parse(&setting.config().unwrap()).unwrap();
            assert_eq!(config.services.load, [0, 1]);
        }
        assert!(Setting::new("spin", "greedy").config().is_err());
    }

    #[test]
    fn the_nice_value_is_the_nineteenth_field() {
        let stat = "7 (a b) c) R 1 7 1 34816 7 4194304 98 0 0 0 1 2 3 4 20 -5 1 0 999 8";
        assert_eq!(own_nice(stat), Some(-5));
        assert_eq!(own_nice("7"), None);
    }

    #[test]
    fn the_emulated_cpus_are_known_by_their_threads() {
        assert_eq!(emulated_cpu("CPU 1/TCG\n"), Some(1));
        assert_eq!(emulated_cpu("CPU 10/KVM"), Some(10));
        assert_eq!(emulated_cpu("qemu-system-x86"), None);
        assert!(!own_cpus().is_empty());
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(values.clone(), 99), Some(99.0));
        assert_eq!(percentile(values.clone(), 0), Some(1.0));
        assert_eq!(percentile(values, 100), Some(100.0));
        assert_eq!(percentile(Vec::new(), 50), None);
    }
}
