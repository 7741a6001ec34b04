//! The list of tests. Each says what must be seen; what must not be seen is in [`super::boxes`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outpost_engine_bench::Figures;
use outpost_image_format::{Digest, Partition, RAMDISK, Slot};

use super::boxes::{CONFIG, Setup, TestBox, config_with_guest};
use super::{Test, Trial, config, dmesg, frames, guest, once, pages, pair, probes, program, store};
use crate::bench::engine as bench;
use crate::image;

/// A boot and a little more.
const SHORT: Duration = Duration::from_secs(180);
/// A boot and a Linux guest's.
const LONG: Duration = Duration::from_secs(420);
/// Several builds of the box and as many boots.
const BUILDS: Duration = Duration::from_secs(1800);

/// All tests: the long ones first, so that the end is not one of them alone.
pub const ALL: &[Test] = &[
    Test {
        name: "directory",
        about: "the directory guest starts, answers on the LAN, and its console is a key away",
        deadline: LONG,
        run: guest::directory,
    },
    Test {
        name: "once",
        about: "boot --once: the guest's serial port on stdout, its status as the exit status",
        deadline: BUILDS,
        run: once::once_command,
    },
    Test {
        name: "dmesg",
        about: "Debian's stock kernel warns of nothing in a box that it does not warn of on QEMU itself",
        deadline: BUILDS,
        run: dmesg::stock_kernel,
    },
    Test {
        name: "guest-disk",
        about: "what the guest wrote to its disk is there after a reset and after a power cut",
        deadline: LONG,
        run: guest::disk,
    },
    Test {
        name: "power-button",
        about: "the guest shuts down when its power button is pressed, and the box says so",
        deadline: LONG,
        run: guest::power_button,
    },
    Test {
        name: "box-power-button",
        about: "the box's power button shuts the guest down and switches the box off",
        deadline: LONG,
        run: guest::box_power_button,
    },
    Test {
        name: "memory",
        about: "the box stays within 48 MiB, and once started allocates nothing",
        deadline: LONG,
        run: guest::memory_is_bounded,
    },
    Test {
        name: "bursts",
        about: "the answers to many pings leave the guest together, with few exits and interrupts",
        deadline: LONG,
        run: guest::bursts,
    },
    Test {
        name: "linux-smp",
        about: "Linux with two vCPUs takes KVM's interface, and CPUs with nothing to do sleep",
        deadline: LONG,
        run: guest::linux_smp,
    },
    Test {
        name: "watchdog",
        about: "a guest that does not answer its watchdog is started again",
        deadline: LONG,
        run: guest::watchdog,
    },
    Test {
        name: "steal-time",
        about: "what others had of the guest's CPU is in the guest's own /proc/stat",
        deadline: LONG,
        run: guest::steal_time,
    },
    Test {
        name: "power-button-unheard",
        about: "a guest that does not heed its power button is told of, and goes on",
        deadline: SHORT,
        run: guest::power_button_unheard,
    },
    Test {
        name: "no-guest-disk",
        about: "without a partition for it the guest runs without a disk",
        deadline: SHORT,
        run: guest::no_guest_disk,
    },
    Test {
        name: "tunnel",
        about: "two boxes make a tunnel, and bridge the rest",
        deadline: SHORT,
        run: pair::tunnel,
    },
    Test {
        name: "store",
        about: "what two boxes have carried costs next to nothing again after both were restarted",
        deadline: LONG,
        run: store::survives,
    },
    Test {
        name: "no-disk",
        about: "without room on the disk, or a disk to write, the dictionary is in memory",
        deadline: SHORT,
        run: store::no_disk,
    },
    Test {
        name: "disk-hangs",
        about: "a disk that stops to answer costs the dictionary its place, and no flow",
        deadline: SHORT,
        run: store::disk_hangs,
    },
    Test {
        name: "disk-slow",
        about: "while a slow disk's store is opened, the box is a cable",
        deadline: SHORT,
        run: store::disk_slow,
    },
    Test {
        name: "pages",
        about: "/metrics and /flows are for the LAN, and for nobody on the line",
        deadline: SHORT,
        run: pages::pages,
    },
    Test {
        name: "program",
        about: "a branch works with outpost-peer at head office",
        deadline: SHORT,
        run: program::program,
    },
    Test {
        name: "wrong-key",
        about: "a peer with the wrong key is refused by both, with a reason",
        deadline: SHORT,
        run: pair::wrong_key,
    },
    Test {
        name: "engine",
        about: "the dedup engine, built for the firmware, sends the same bytes as on the host",
        deadline: SHORT,
        run: engine,
    },
    Test {
        name: "forwarding",
        about: "boots, bridges both ways, answers ARP and ping",
        deadline: SHORT,
        run: forwarding,
    },
    Test {
        name: "partitions",
        about: "makes its partitions once, and keeps them",
        deadline: SHORT,
        run: partitions,
    },
    Test {
        name: "wrong-digest",
        about: "a guest that is not the pinned one does not run",
        deadline: SHORT,
        run: wrong_digest,
    },
    Test {
        name: "damaged-guest",
        about: "a guest file with a flipped bit does not run",
        deadline: SHORT,
        run: damaged_guest,
    },
    Test {
        name: "cut-short",
        about: "an image cut short still forwards",
        deadline: SHORT,
        run: cut_short,
    },
    Test {
        name: "no-svm",
        about: "without virtualisation it still forwards",
        deadline: SHORT,
        run: no_svm,
    },
    Test {
        name: "one-nic",
        about: "with one network port it still runs the guest",
        deadline: SHORT,
        run: one_nic,
    },
    Test {
        name: "config-unknown-key",
        about: "an unknown key is named with its line",
        deadline: SHORT,
        run: config::unknown_key,
    },
    Test {
        name: "config-bad-prefix",
        about: "a bad prefix is named with its line",
        deadline: SHORT,
        run: config::bad_prefix,
    },
    Test {
        name: "config-missing-key",
        about: "a missing key is named",
        deadline: SHORT,
        run: config::missing_key,
    },
    Test {
        name: "noise",
        about: "malformed frames on both sides do no harm",
        deadline: SHORT,
        run: noise,
    },
    Test {
        name: "probe-hello",
        about: "CPUID, MSRs and timer are as a guest wants them",
        deadline: SHORT,
        run: |trial| probes::probe_passes(trial, "hello"),
    },
    Test {
        name: "probe-mmio",
        about: "every form of device access works",
        deadline: SHORT,
        run: |trial| probes::probe_passes(trial, "mmio"),
    },
    Test {
        name: "probe-bad-msr",
        about: "what must fault in a guest does",
        deadline: SHORT,
        run: |trial| probes::probe_passes(trial, "bad-msr"),
    },
    Test {
        name: "probe-garbage-virtio",
        about: "garbage in virtio queues stops at the device",
        deadline: SHORT,
        run: |trial| probes::probe_passes(trial, "garbage-virtio"),
    },
    Test {
        name: "probe-smp-1",
        about: "a guest of one vCPU that looks for more finds none",
        deadline: SHORT,
        run: |trial| probes::probe_smp(trial, 1, 2),
    },
    Test {
        name: "probe-smp-2",
        about: "2 vCPUs on 2 CPUs: INIT and SIPI back to back, IPIs, NMIs, xAPIC and x2APIC",
        deadline: SHORT,
        run: |trial| probes::probe_smp(trial, 2, 2),
    },
    Test {
        name: "probe-smp-4",
        about: "4 vCPUs on 2 CPUs: the same",
        deadline: SHORT,
        run: |trial| probes::probe_smp(trial, 4, 2),
    },
    Test {
        name: "probe-smp-16",
        about: "16 vCPUs on 2 CPUs: the same",
        deadline: SHORT,
        run: |trial| probes::probe_smp(trial, 16, 2),
    },
    Test {
        name: "probe-smp-one",
        about: "3 vCPUs on a box of one CPU: the same",
        deadline: SHORT,
        run: |trial| probes::probe_smp(trial, 3, 1),
    },
    Test {
        name: "probe-smp-wide",
        about: "5 vCPUs on 4 CPUs: the same",
        deadline: SHORT,
        run: |trial| probes::probe_smp(trial, 5, 4),
    },
    Test {
        name: "probe-lock",
        about: "2 vCPUs that fight for a lock both get it",
        deadline: SHORT,
        run: |trial| probes::probe_passes_on_two(trial, "lock 2"),
    },
    Test {
        name: "probe-burn",
        about: "2 vCPUs that compute both run",
        deadline: SHORT,
        run: |trial| probes::probe_passes_on_two(trial, "burn 2"),
    },
    Test {
        name: "probe-fxrstor",
        about: "2 vCPUs in a box of 2 CPUs that load x87 state all the time keep their state",
        deadline: SHORT,
        run: |trial| probes::probe_passes_with(trial, "fxrstor 5", "vcpus = 2\n"),
    },
    Test {
        name: "probe-debug",
        about: "2 vCPUs that share a CPU have their own debug registers",
        deadline: SHORT,
        run: |trial| probes::probe_passes_with(trial, "debug 2", "vcpus = 2\ncpus = [1]\n"),
    },
    Test {
        name: "probe-nmi",
        about: "an NMI waits for the end of the one before",
        deadline: SHORT,
        run: |trial| probes::probe_passes(trial, "nmi"),
    },
    Test {
        name: "probe-real",
        about: "a guest drops to real mode, takes an interrupt there, and comes back",
        deadline: SHORT,
        run: |trial| probes::probe_passes(trial, "real"),
    },
    Test {
        name: "probe-wake",
        about: "no interrupt that wakes a halted vCPU is lost",
        deadline: SHORT,
        run: |trial| probes::probe_passes_with(trial, "wake 15", "vcpus = 2\n"),
    },
    Test {
        name: "probe-apicmove",
        about: "a guest cannot move its local APIC, and the box says that it tried",
        deadline: SHORT,
        run: |trial| {
            const SAID: &str = "guest: it may not give its local APIC base 0xfef00900";
            probes::probe_passes_and_the_box_says(trial, "apicmove", SAID)
        },
    },
    Test {
        name: "probe-romwrite",
        about: "a guest that writes to ROM changes nothing, and the box says that it tried",
        deadline: SHORT,
        run: |trial| {
            const SAID: &str = "at 0xfffffff0, where it has neither memory nor a device";
            probes::probe_passes_and_the_box_says(trial, "romwrite", SAID)
        },
    },
    Test {
        name: "probe-flood",
        about: "a flood of notifications is counted and takes nothing from the network",
        deadline: SHORT,
        run: probes::probe_flood,
    },
    Test {
        name: "probe-nowhere",
        about: "a queue where there is no memory stops its device only, with a reason",
        deadline: SHORT,
        run: |trial| {
            const SAID: &str = "it is stopped until the guest resets it";
            probes::probe_passes_and_the_box_says(trial, "nowhere", SAID)
        },
    },
    Test {
        name: "probe-selfinit",
        about: "a guest that sends INIT to its last running CPU is stopped with a reason",
        deadline: SHORT,
        run: probes::probe_self_init,
    },
    Test {
        name: "probe-spin-2",
        about: "two vCPUs that spin with interrupts off take nothing from the network",
        deadline: SHORT,
        run: probes::probe_spin_all,
    },
    Test {
        name: "probe-load",
        about: "services and vCPUs that want everything share the CPUs, and frames go through",
        deadline: SHORT,
        run: probes::probe_load,
    },
    Test {
        name: "probe-placed",
        about: "placed vCPUs stay on CPUs of their own",
        deadline: SHORT,
        run: probes::probe_placed,
    },
    Test {
        name: "probe-unplaced",
        about: "a guest with more vCPUs than CPUs is not placed, and the box says so",
        deadline: SHORT,
        run: probes::probe_unplaced,
    },
    Test {
        name: "config-vcpus",
        about: "a number of vCPUs that there cannot be is named with its line",
        deadline: SHORT,
        run: config::vcpus,
    },
    Test {
        name: "config-cpus",
        about: "a CPU for the guest that the box does not have is named, and the guest runs on the others",
        deadline: SHORT,
        run: config::cpus,
    },
    Test {
        name: "config-memory",
        about: "a guest that wants more memory than there is does not run, and the box says how much there is",
        deadline: SHORT,
        run: config::memory,
    },
    Test {
        name: "probe-exit",
        about: "a guest may end with a status",
        deadline: SHORT,
        run: probes::probe_exit,
    },
    Test {
        name: "probe-triple-fault",
        about: "a guest that crashes is stopped with evidence",
        deadline: SHORT,
        run: probes::probe_triple_fault,
    },
    Test {
        name: "probe-spin",
        about: "a guest that spins with interrupts off takes nothing from the network",
        deadline: SHORT,
        run: probes::probe_spin,
    },
    Test {
        name: "probe-silent",
        about: "a guest that never starts is noticed",
        deadline: SHORT,
        run: probes::probe_silent,
    },
];

/// What the benchmark measures at length (`cargo xtask bench engine`), with a small pair.
fn engine(trial: &mut Trial<'_>) -> Result<()> {
    let (old, new) = bench::generated(1, 256 * 1024);
    let here = bench::Machine::build()?.measure(&old, &new, &trial.folder)?;
    let host = bench::on_host(&old, &new)?;
    let bytes = |all: &[Figures]| -> Vec<_> {
        all.iter()
            .map(|it| (it.case, it.bytes, it.line, it.back))
            .collect()
    };
    ensure!(
        bytes(&here.cases) == bytes(&host),
        "the engine in the emulator and on the host differ: {:?} and {host:?}",
        here.cases
    );
    ensure!(
        here.cases
            .iter()
            .all(|it| it.encoding > 0 && it.decoding > 0),
        "no instructions were counted: {:?}",
        here.cases
    );
    Ok(())
}

fn forwarding(trial: &mut Trial<'_>) -> Result<()> {
    let mut machine = Setup::new(CONFIG).start(trial)?;
    machine.forwards()?;
    machine.answers_itself()?;
    machine.goes_on(2)?;
    let order = ["start", "firmware-left", "cpus", "devices", "forwarding"];
    let times = machine.said(|said| order.map(|name| said.milestone(name)));
    ensure!(
        times.iter().all(Option::is_some) && times.is_sorted(),
        "the milestones are not in order: {order:?} at {times:?} ms"
    );
    machine.guest("off")
}

fn partitions(trial: &mut Trial<'_>) -> Result<()> {
    let mut first = Setup::new(CONFIG).start(trial)?;
    first.console("disk: made partitions")?;
    first.milestone("forwarding")?;
    let disk = first.unplug();
    let made = image::contents(&disk)?;
    for partition in [Partition::Guest, Partition::Store] {
        let found = made.iter().find(|item| item.what == partition.label());
        ensure!(
            found.is_some_and(|item| item.bytes > 0),
            "the disk has no partition {} after the first boot",
            partition.label()
        );
    }
    let mut second = Setup::new(CONFIG).start_from(trial, disk, "again")?;
    second.milestone("forwarding")?;
    ensure!(
        second.said(|said| !said
            .console
            .iter()
            .any(|line| line.contains("made partitions"))),
        "the second boot made partitions again"
    );
    Ok(())
}

/// The box goes on without the guest.
pub fn without_guest(mut machine: TestBox, problem: &str) -> Result<()> {
    machine.problem(problem)?;
    machine.forwards()?;
    machine.answers_itself()?;
    machine.goes_on(1)?;
    ensure!(
        machine.said(|said| said.milestone("guest-started").is_none()),
        "the guest was started all the same"
    );
    Ok(())
}

fn wrong_digest(trial: &mut Trial<'_>) -> Result<()> {
    // Whole in itself, but another kernel than the one pinned.
    let mut guest = trial.stage.probe("hello");
    guest.kernel.push(0);
    let mut setup = Setup::new(config_with_guest("probe", ""));
    setup.slot = Some(guest.slot()?);
    setup.problems = vec!["is not the pinned one".into()];
    let machine = setup.start(trial)?;
    without_guest(machine, &Digest::of(&guest.kernel).to_string())
}

fn damaged_guest(trial: &mut Trial<'_>) -> Result<()> {
    let mut slot = trial.stage.directory.slot()?;
    let entry = Slot::parse(&slot)?.manifest().entry(RAMDISK)?.clone();
    let at = usize::try_from(entry.offset + entry.length / 2)?;
    *slot
        .get_mut(at)
        .context("the slot is shorter than its manifest says")? ^= 0x40;
    let mut setup = Setup::new(config_with_guest("directory", ""));
    setup.slot = Some(slot);
    setup.problems = vec!["ramdisk is damaged".into()];
    let machine = setup.start(trial)?;
    without_guest(machine, "SHA-256")
}

fn cut_short(trial: &mut Trial<'_>) -> Result<()> {
    let slot = trial.stage.directory.slot()?;
    let mut setup = Setup::new(config_with_guest("directory", ""));
    setup.slot = Some(slot);
    // In the middle of slot A, as when a copy was broken off.
    setup.cut = Some(50 << 20);
    setup.problems = vec![
        "guest:".into(),
        "disk".into(),
        "partition".into(),
        "slot".into(),
    ];
    let mut machine = setup.start(trial)?;
    machine.forwards()?;
    machine.answers_itself()?;
    machine.problem("cut short")?;
    machine.guest("stopped")
}

fn no_svm(trial: &mut Trial<'_>) -> Result<()> {
    let mut setup = Setup::new(config_with_guest("probe", ""));
    setup.slot = Some(trial.stage.probe("hello").slot()?);
    setup.cpu_features = vec!["svm=off".into()];
    setup.problems = vec!["no virtualisation extension".into()];
    let machine = setup.start(trial)?;
    without_guest(machine, "no virtualisation extension")
}

fn one_nic(trial: &mut Trial<'_>) -> Result<()> {
    let mut setup = Setup::new(config_with_guest("probe", "debug_exit = true\n"));
    setup.slot = Some(trial.stage.probe("hello").slot()?);
    setup.nics = 1;
    setup.problems = vec!["only one network port".into()];
    let mut machine = setup.start(trial)?;
    machine.problem("only one network port")?;
    machine.console("probe: hello: passed")?;
    machine.answers_itself()
}

fn noise(trial: &mut Trial<'_>) -> Result<()> {
    let peer = "\n[[peer]]\nname = \"head-office\"\npublic_key = \"AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"\n\
                endpoint = \"10.77.2.1:3301\"\nprefixes = [\"10.77.2.0/24\"]\n";
    let mut machine = Setup::new(format!("{CONFIG}{peer}")).start(trial)?;
    machine.forwards()?;
    for (index, frame) in frames::malformed().iter().enumerate() {
        machine.lan.send(frame);
        machine.wan.send(frame);
        if index % 64 == 0 {
            // So that the box has read what came before, and its rings do not just overflow.
            machine.answers_itself()?;
        }
    }
    machine.forwards()?;
    machine.answers_itself()?;
    machine.goes_on(2)
}
