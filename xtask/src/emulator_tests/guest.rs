//! The Linux guest's machine from outside: its power button, its disk.

use anyhow::{Context, Result, ensure};

use super::Trial;
use super::boxes::{GUEST_ADDRESS, Setup, TestBox, config_with_guest, guest_table};
use super::pair::{Configs, Pair};
use super::store;
use super::watch::Said;

/// A box with the directory guest, that serves.
fn serving(trial: &Trial<'_>) -> Result<TestBox> {
    let mut setup = Setup::new(config_with_guest("directory", ""));
    setup.slot = Some(trial.stage.directory.slot()?);
    let mut machine = setup.start(trial)?;
    machine.milestone("guest-ready")?;
    Ok(machine)
}

/// The directory guest starts, answers on the LAN, and its console is a key away.
pub fn directory(trial: &mut Trial<'_>) -> Result<()> {
    let mut setup = Setup::new(config_with_guest("directory", ""));
    setup.slot = Some(trial.stage.directory.slot()?);
    let mut machine = setup.start(trial)?;
    machine.forwards()?;
    machine.milestone("guest-init")?;
    machine.milestone("guest-ready")?;
    machine.guest("ready")?;
    machine.answers(GUEST_ADDRESS, "the guest")?;
    // Ctrl-T, then a line whose answer is not in it.
    machine.type_keys(b"\x14\r")?;
    machine.type_keys(b"echo answer-$((6 * 7))\r")?;
    machine.console("answer-42")?;
    // Its paravirtual console: what it writes there is shown, and what is typed then goes there.
    machine.type_keys(
        b"(echo asks-$((6 * 7)); read -r word; echo heard-$word) </dev/hvc0 >/dev/hvc0\r",
    )?;
    machine.console("asks-42")?;
    machine.type_keys(b"this\r")?;
    machine.console("heard-this")?;
    machine.type_keys(b"\x14")?;
    machine.console("the box's console")?;
    machine.forwards()
}

/// A guest that answers many pings at once has few notifications, interrupts and exits for them, and answers every one.
pub fn bursts(trial: &mut Trial<'_>) -> Result<()> {
    const BURSTS: u16 = 100;
    // No ring between the LAN and the guest is full then.
    const PINGS: u16 = 100;
    // With a notification of each answer it is one notification, one interrupt and three exits for each.
    const TOGETHER: u64 = 2;
    let mut machine = serving(trial)?;
    machine.answers(GUEST_ADDRESS, "the guest")?;
    machine.goes_on(2)?;
    let before = machine.said(Traffic::of).context("no status")?;
    for burst in 0..BURSTS {
        machine.answers_all(GUEST_ADDRESS, burst * PINGS..(burst + 1) * PINGS)?;
    }
    machine.goes_on(2)?;
    let after = machine.said(Traffic::of).context("no status")?;
    let pings = u64::from(BURSTS * PINGS);
    let made = after.since(&before);
    ensure!(
        made.notifications <= pings / TOGETHER
            && made.interrupts <= pings / TOGETHER
            && made.exits <= pings,
        "for {pings} pings: {made:?}"
    );
    machine.answers(GUEST_ADDRESS, "the guest")
}

/// What the guest's network interface and its driver have told each other, and how often the guest was left, as last reported.
#[derive(Debug)]
struct Traffic {
    notifications: u64,
    interrupts: u64,
    exits: u64,
}

impl Traffic {
    fn of(said: &Said) -> Option<Traffic> {
        let status = said.status()?;
        let net = &status["net"]["guest_devices"]["net"];
        Some(Traffic {
            notifications: net["notifications"].as_u64()?,
            interrupts: net["interrupts"].as_u64()?,
            exits: status["guest_exits"].as_u64()?,
        })
    }

    fn since(&self, before: &Traffic) -> Traffic {
        Traffic {
            notifications: self.notifications - before.notifications,
            interrupts: self.interrupts - before.interrupts,
            exits: self.exits - before.exits,
        }
    }
}

/// The power button shuts the guest down, the box says so; `restart` brings it back, and its own reset starts it anew at once.
pub fn power_button(trial: &mut Trial<'_>) -> Result<()> {
    let mut machine = serving(trial)?;
    machine.type_keys(b"shutdown\r")?;
    machine.console("the guest is asked to shut down")?;
    machine.console("outpost-guest: the power button was pressed: switching off")?;
    machine.console("guest: the guest switched itself off")?;
    machine.console("guest: stays off until `restart` on the console")?;
    machine.guest("stopped: the guest switched itself off")?;
    machine.type_keys(b"shutdown\r")?;
    machine.console("the guest does not run")?;
    machine.type_keys(b"restart\r")?;
    serves_again(&mut machine)?;
    machine.forwards()?;
    machine.type_keys(b"\x14\r")?;
    machine.type_keys(b"reboot -f\r")?;
    machine.type_keys(b"\x14")?;
    machine.console("guest: the guest reset itself")?;
    // The last report may be of the guest before it.
    says(&mut machine, "outpost-guest: ready", 3)?;
    machine.forwards()
}

/// The guest says this for the so-manieth time.
pub fn says(machine: &mut TestBox, part: &str, times: usize) -> Result<()> {
    machine.wait_for(&format!("{part:?}, {times} times"), |said| {
        let lines = said.console.iter();
        (lines.filter(|line| line.contains(part)).count() >= times).then_some(())
    })
}

fn serves_again(machine: &mut TestBox) -> Result<()> {
    machine.wait_for("the guest to serve again", |said| {
        (said.guest() == Some("ready")).then_some(())
    })
}

/// The box's own power button shuts the guest down and then switches the box off.
pub fn box_power_button(trial: &mut Trial<'_>) -> Result<()> {
    let mut machine = serving(trial)?;
    machine.press_power_button()?;
    machine.console("the box's power button was pressed")?;
    machine.console("outpost-guest: the power button was pressed: switching off")?;
    machine.console("guest: the guest switched itself off")?;
    // The last that is said of the guest: the box has it written before it goes.
    machine.console(" exits: ")?;
    machine.ends()?;
    Ok(())
}

/// A guest that does not heed its power button is told of, and goes on.
pub fn power_button_unheard(trial: &mut Trial<'_>) -> Result<()> {
    let mut setup = Setup::new(config_with_guest("probe", ""));
    setup.slot = Some(trial.stage.probe("spin").slot()?);
    setup.problems = vec!["has not shut down".into()];
    let mut machine = setup.start(trial)?;
    machine.console("spinning with interrupts off")?;
    machine.type_keys(b"shutdown\r")?;
    machine.problem("has not shut down within 60 s of its power button")?;
    machine.guest("init")?;
    machine.forwards()
}

/// What the guest has written to its disk is there after the box was reset, which shuts it down first, and after a power cut.
pub fn disk(trial: &mut Trial<'_>) -> Result<()> {
    let setup = || -> Result<Setup> {
        let mut setup = Setup::new(config_with_guest("directory", ""));
        setup.slot = Some(trial.stage.directory.slot()?);
        Ok(setup)
    };
    let mut first = serving(trial)?;
    first.console("outpost-guest: a new disk: making a file system")?;
    first.console("outpost-guest: the directory is on the disk")?;
    first.type_keys(b"\x14\r")?;
    first.type_keys(b"seq 1 200000 >/var/lib/ldap/note; echo wrote-$((6 * 7)); md5sum </var/lib/ldap/note; sync\r")?;
    first.console("wrote-42")?;
    let sum = checksum(&mut first)?;
    first.type_keys(b"echo synced-$((6 * 7))\r")?;
    first.console("synced-42")?;
    first.type_keys(b"\x14")?;
    let flushes = first.wait_for("the guest's flushes", |said| {
        said.status()?["net"]["guest_disk"]["flushes"].as_u64()
    })?;
    ensure!(flushes > 0, "nothing was flushed");
    let disk = first.reset()?;

    let mut again = setup()?.start_from(trial, disk, "again")?;
    again.console("outpost-guest: the directory was there before")?;
    again.milestone("guest-ready")?;
    again.type_keys(b"\x14\r")?;
    again.type_keys(b"md5sum </var/lib/ldap/note\r")?;
    let found = checksum(&mut again)?;
    ensure!(found == sum, "the file was {sum} and is {found}");
    again.type_keys(
        b"rm /var/lib/ldap/note; echo news >/var/lib/ldap/news; sync; echo synced-$((6 * 7))\r",
    )?;
    again.console("synced-42")?;

    let mut third = setup()?.start_from(trial, again.unplug(), "third")?;
    third.milestone("guest-ready")?;
    third.type_keys(b"\x14\r")?;
    third
        .type_keys(b"echo found-$(cat /var/lib/ldap/news) $(ls /var/lib/ldap | grep -c note)\r")?;
    third.console("found-news 0")?;
    Ok(())
}

/// The MD5 sum that the guest printed.
fn checksum(machine: &mut TestBox) -> Result<String> {
    machine.wait_for("a checksum", |said| {
        said.console.iter().rev().find_map(|line| {
            let sum = line.trim().strip_suffix("  -")?;
            let digits = sum.len() == 32 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| sum.to_owned())
        })
    })
}

/// A box whose disk has no partition for the guest says so; the guest runs without one.
pub fn no_guest_disk(trial: &mut Trial<'_>) -> Result<()> {
    let mut setup = Setup::new(config_with_guest("probe", "debug_exit = true\n"));
    setup.slot = Some(trial.stage.probe("hello").slot()?);
    setup.cut = Some(128 << 20);
    setup.problems = vec!["too little for".into(), "the guest has no disk".into()];
    let mut machine = setup.start(trial)?;
    machine.problem("the guest has no disk")?;
    machine.console("probe: hello: passed")?;
    machine.forwards()
}

/// A guest that does not answer its watchdog is started again.
pub fn watchdog(trial: &mut Trial<'_>) -> Result<()> {
    const WHY: &str = "it has not answered its watchdog for 3 s";
    let mut setup = Setup::new(config_with_guest("directory", ""));
    setup.slot = Some(trial.stage.directory.slot()?);
    setup.problems = vec![WHY.into()];
    let mut machine = setup.start(trial)?;
    machine.milestone("guest-ready")?;
    machine.type_keys(b"\x14\r")?;
    machine.type_keys(b"killall watchdog; sleep 1; watchdog -T 3 -t 1000 /dev/watchdog\r")?;
    machine.problem(WHY)?;
    machine.guest("stopped: the guest hangs")?;
    serves_again(&mut machine)?;
    machine.type_keys(b"\x14")?;
    machine.console("guest: starts again in 1 s")?;
    machine.forwards()
}

/// Beside a service that wants its CPU, the guest's own account of its time has what was stolen from it.
pub fn steal_time(trial: &mut Trial<'_>) -> Result<()> {
    const LEAST_TICKS: u64 = 20;
    let sharing = "cpus = [1]\n[services]\nnice = 0\nload = [1]\n";
    let mut setup = Setup::new(config_with_guest("directory", sharing));
    setup.slot = Some(trial.stage.directory.slot()?);
    let mut machine = setup.start(trial)?;
    machine.milestone("guest-ready")?;
    machine.type_keys(b"\x14\r")?;
    machine.type_keys(
        b"i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; read n u c s i w q f st r </proc/stat; echo stolen $st ticks\r",
    )?;
    let ticks: u64 = machine.wait_for("the guest's steal time", |said| {
        said.console.iter().rev().find_map(|line| {
            let (_, rest) = line.split_once("stolen ")?;
            rest.split_once(" ticks")?.0.parse().ok()
        })
    })?;
    // Of 10 ms each: the loop alone takes much longer, and is half of its time without a CPU.
    ensure!(ticks >= LEAST_TICKS, "{ticks} ticks were stolen");
    let waited =
        machine.said(|said| said.status()?["sharing"]["tasks"]["vcpu0"]["wait_ns"].as_u64());
    let waited = waited.context("no status")? / 10_000_000;
    ensure!(
        ticks <= waited + 200,
        "the guest says {ticks} ticks, the box {waited}"
    );
    machine.type_keys(b"\x14")?;
    machine.forwards()
}

/// Linux with two vCPUs finds KVM's interface and takes it up; and while it has nothing to do, every CPU of the box sleeps.
pub fn linux_smp(trial: &mut Trial<'_>) -> Result<()> {
    // The lines of Linux 6.1 for clock, IPIs, TLB flushes and waiting for locks by hypercall.
    const TAKEN: [&str; 4] = [
        "kvm-clock: Using msrs",
        "kvm-guest: setup PV IPIs",
        "kvm-guest: KVM setup pv remote TLB flush",
        "kvm-guest: PV spinlocks enabled",
    ];
    let mut setup = Setup::new(config_with_guest("directory", "vcpus = 2\n"));
    setup.slot = Some(trial.stage.directory.slot()?);
    setup.cpus = 3;
    let mut machine = setup.start(trial)?;
    machine.milestone("guest-ready")?;
    machine.goes_on(3)?;
    let first = machine.said(asleep).context("no status")?;
    machine.goes_on(5)?;
    let second = machine.said(asleep).context("no status")?;
    ensure!(first.1.len() == 3, "CPUs: {first:?}");
    for (cpu, (before, after)) in first.1.iter().zip(&second.1).enumerate() {
        let (slept, passed) = (after.saturating_sub(*before), second.0 - first.0);
        ensure!(
            slept / 1_000_000 > passed / 2,
            "CPU {cpu} slept {slept} ns of {passed} ms"
        );
    }
    machine.type_keys(b"\x14\r")?;
    machine.type_keys(b"dmesg | grep -e kvm-\r")?;
    for line in TAKEN {
        machine.console(line)?;
    }
    machine.type_keys(b"\x14")?;
    machine.forwards()
}

/// The box's clock in milliseconds, and how long each of its CPUs has slept, in nanoseconds, as last reported.
fn asleep(said: &Said) -> Option<(u64, Vec<u64>)> {
    let status = said.status()?;
    let slept = status["sharing"]["asleep_ns"].as_array()?;
    let slept = slept.iter().map(serde_json::Value::as_u64);
    Some((status["ms"].as_u64()?, slept.collect::<Option<_>>()?))
}

/// What the box may take beside the guest's memory and the dictionary's index.
const BOX_MIB: u32 = 48;
const BOX_BYTES: u64 = (BOX_MIB as u64) << 20;

/// A number of the last status line's memory.
fn memory(said: &Said, path: &[&str]) -> Option<u64> {
    let memory = &said.status()?["memory"];
    path.iter().fold(memory, |value, key| &value[*key]).as_u64()
}

/// Memory of a box that leaves it, beside its guest of 256 MiB and the files that came from the slot, some 48 MiB.
const SMALL_BOX_MIB: u32 = 344;

/// What a CPU may be doing while something is allocated.
const PATHS: [&str; 4] = ["exits", "frames", "flows", "other"];

/// How often something was allocated on each of [`PATHS`].
fn allocations(machine: &TestBox) -> Result<[u64; 4]> {
    let mut counts = [0; 4];
    for (count, path) in counts.iter_mut().zip(PATHS) {
        *count = memory_of(machine, &["allocations", path])?;
    }
    Ok(counts)
}

/// A box that has not more than 48 MiB beside its guest's memory and its dictionary's index does all its work in them. Once the guest has started, nothing is
/// allocated: not where the guest leaves for the hypervisor, not where frames pass, not as time goes by, not by the console, not when the dictionary is written to
/// the disk, and not by connections, which have what was set aside for them. What is bridged does not need even that.
pub fn memory_is_bounded(trial: &mut Trial<'_>) -> Result<()> {
    let [mut branch, core] = Configs::matching()?.setups();
    branch
        .config
        .push_str(&guest_table("directory", "vcpus = 2\nmemory = \"256M\"\n"));
    branch.slot = Some(trial.stage.directory.slot()?);
    branch.memory_mib = SMALL_BOX_MIB;
    let mut machine = branch.start_as(trial, "branch")?;
    machine.console("the box but guest and index")?;
    let whole = all_memory(&mut machine)?;
    ensure!(
        whole <= f64::from(BOX_MIB),
        "the box has {whole:.1} MiB beside guest and index, not {BOX_MIB} at most: a smaller one would show more"
    );
    machine.milestone("guest-ready")?;
    machine.forwards()?;
    machine.answers(GUEST_ADDRESS, "the guest")?;
    machine.goes_on(2)?;
    let begun = allocations(&machine)?;
    ensure!(
        begun[..3] == [0; 3],
        "allocations on {PATHS:?}: {begun:?} until the guest has started"
    );
    let bridged = memory_of(&machine, &["pool", "taken", "frames"])?;
    ensure!(
        bridged == 0,
        "frames that were bridged have taken {bridged} times from what is set aside for connections"
    );
    let unchanged = |machine: &TestBox, after: &str| -> Result<()> {
        let now = allocations(machine)?;
        ensure!(
            now == begun,
            "allocations on {PATHS:?}: {now:?} after {after}, {begun:?} before"
        );
        Ok(())
    };
    // The guest computes, writes to its disk and its console, and answers; frames cross the box.
    machine.type_keys(b"\x14\r")?;
    machine.type_keys(
        b"seq 1 100000 | md5sum; seq 1 100000 >/var/lib/ldap/note; sync; echo worked-$((6 * 7))\r",
    )?;
    machine.console("worked-42")?;
    machine.answers(GUEST_ADDRESS, "the guest")?;
    machine.forwards()?;
    machine.goes_on(5)?;
    machine.type_keys(b"\x14status\r")?;
    machine.console("allocations other")?;
    machine.goes_on(2)?;
    unchanged(
        &machine,
        "the guest worked, frames crossed and the console answered",
    )?;
    // A file over the line, and again.
    let file = store::noise(3 << 20);
    let mut pair = Pair::of(machine, core.start_as(trial, "core")?);
    pair.is_up()?;
    for _ in 0..2 {
        let before = memory_of(&pair.branch, &["pool", "taken", "frames"])?;
        let mut stations = pair.stations();
        let received = pair.fetch(&mut stations, &file)?;
        ensure!(
            received == file,
            "WRONG BYTES: {} of {}",
            received.len(),
            file.len()
        );
        pair.branch.goes_on(2)?;
        let taken = memory_of(&pair.branch, &["pool", "taken", "frames"])?;
        ensure!(
            taken > before,
            "a connection took nothing of what is set aside for it"
        );
    }
    let machine = &mut pair.branch;
    takes_no_more(machine)?;
    machine.answers(GUEST_ADDRESS, "the guest")?;
    unchanged(machine, "a file went over the line twice")?;
    // Nothing begins and nothing ends now.
    machine.goes_on(2)?;
    let taken = |machine: &TestBox| memory_of(machine, &["pool", "taken", "flows"]);
    let before = taken(machine)?;
    machine.type_keys(b"status\r")?;
    machine.wait_for("the second answer to `status`", |said| {
        let answers = said.console.iter();
        (answers
            .filter(|line| line.contains("allocations other"))
            .count()
            == 2)
            .then_some(())
    })?;
    machine.goes_on(2)?;
    unchanged(machine, "the tunnel rested")?;
    let now = taken(machine)?;
    ensure!(
        now == before,
        "the tunnel took {} times from what is set aside for connections while it rested",
        now - before
    );
    Ok(())
}

/// Bytes in use beside what connections have.
///
/// # Errors
/// The box does not say.
pub fn heap_in_use(machine: &TestBox) -> Result<u64> {
    let connections = memory_of(machine, &["pool", "used"])?;
    Ok(memory_of(machine, &["rest"])? - connections)
}

/// A number of the last status line's memory.
fn memory_of(machine: &TestBox, path: &[&str]) -> Result<u64> {
    let found = machine.said(|said| memory(said, path));
    found.with_context(|| format!("the box does not say its memory's {path:?}"))
}

/// MiB that the box has, by the budget it prints, beside guest, its files and the dictionary's index: whether in use or not.
fn all_memory(machine: &mut TestBox) -> Result<f64> {
    let mut line = |purpose: &str| -> Result<f64> {
        let line = machine.console(purpose)?;
        let number = line.split_whitespace().rev().nth(1);
        let number = number.and_then(|number| number.parse::<f64>().ok());
        number.with_context(|| format!("no MiB in {line:?}"))
    };
    let heap = line("memory: dictionary ")? + line("memory: rest of the heap")?;
    Ok(heap + line("memory: this binary")? - line("memory: dictionary's index")?)
}

/// Fails if the box takes more than [`BOX_BYTES`].
///
/// # Errors
/// As said.
pub fn takes_no_more(machine: &TestBox) -> Result<()> {
    let used = memory_of(machine, &["rest"])?;
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    ensure!(
        used > 0 && used <= BOX_BYTES,
        "the box takes {:.1} MiB beside guest and index, {:.1} may be",
        mib(used),
        mib(BOX_BYTES)
    );
    Ok(())
}
