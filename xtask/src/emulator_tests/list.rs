//! The list of tests. Each says in its function what must be seen; what must not be seen is in [`super::boxes`].

use std::time::Duration;

use super::{Test, config, dmesg, guest, once, pages, pair, plain, probes, program, store};

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
        run: plain::engine,
    },
    Test {
        name: "forwarding",
        about: "boots, bridges both ways, answers ARP and ping",
        deadline: SHORT,
        run: plain::forwarding,
    },
    Test {
        name: "partitions",
        about: "makes its partitions once, and keeps them",
        deadline: SHORT,
        run: plain::partitions,
    },
    Test {
        name: "wrong-digest",
        about: "a guest that is not the pinned one does not run",
        deadline: SHORT,
        run: plain::wrong_digest,
    },
    Test {
        name: "damaged-guest",
        about: "a guest file with a flipped bit does not run",
        deadline: SHORT,
        run: plain::damaged_guest,
    },
    Test {
        name: "cut-short",
        about: "an image cut short still forwards",
        deadline: SHORT,
        run: plain::cut_short,
    },
    Test {
        name: "no-svm",
        about: "without virtualisation it still forwards",
        deadline: SHORT,
        run: plain::no_svm,
    },
    Test {
        name: "one-nic",
        about: "with one network port it still runs the guest",
        deadline: SHORT,
        run: plain::one_nic,
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
        run: plain::noise,
    },
    Test {
        name: "probe-hello",
        about: "CPUID, MSRs and timer are as a guest wants them",
        deadline: SHORT,
        run: |trial| probes::probe_passes(trial, "hello"),
    },
    Test {
        name: "probe-mmio",
        about: "forms of device access of 32-bit code work, also across pages",
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
        about: "2 vCPUs in a box of 2 CPUs, that is on one, load x87 and SSE registers all the time and keep their own",
        deadline: SHORT,
        run: |trial| probes::probe_fxrstor(trial, 2),
    },
    Test {
        name: "probe-fxrstor-moves",
        about: "3 vCPUs that move between 2 CPUs do the same",
        deadline: SHORT,
        run: |trial| probes::probe_fxrstor(trial, 3),
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
        name: "probe-paravirt",
        about: "PV EOI spares each write of an end, an interrupt and a kick go by hypercall, polling control is kept",
        deadline: SHORT,
        run: |trial| probes::probe_passes(trial, "paravirt"),
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
        run: |trial| probes::probe_passes_on_two(trial, "wake 15"),
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
        about: "two vCPUs that spin with interrupts off take nothing from the network, and `restart` ends them",
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
        name: "probe-hang",
        about: "two vCPUs that hang with interrupts off are ended by the watchdog and start again",
        deadline: SHORT,
        run: probes::probe_hang,
    },
    Test {
        name: "probe-gibibyte",
        about: "a guest's memory of 1 GiB is one page where the box's memory allows it",
        deadline: SHORT,
        run: probes::probe_gibibyte,
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
