//! Boxes with the probe as their guest: what it finds, and that the network does not notice what it does.

use anyhow::{Context, Result, ensure};

use super::boxes::{Setup, TestBox, config_with_guest};
use super::{Trial, guest, pages};
use crate::sharing::Sharing;

/// Two vCPUs on two CPUs of a box of three. The first is left alone: FXRSTOR on another CPU, which the box executes wherever a vCPU begins to run,
/// spoils its state on QEMU's translator (`image/src/machine/emulator.rs`).
const TWO: &str = "vcpus = 2\ncpus = [1, 2]\n";
const CPUS_FOR_TWO: u8 = 3;

/// Starts a box with the probe in this mode.
fn probe(trial: &mut Trial<'_>, mode: &str, problems: &[&str]) -> Result<TestBox> {
    probe_with(trial, mode, "", problems)
}

/// Starts a box with the probe in this mode, and more keys for the guest.
fn probe_with(trial: &mut Trial<'_>, mode: &str, keys: &str, problems: &[&str]) -> Result<TestBox> {
    probe_on(trial, 2, mode, keys, problems)
}

/// The same in a box with so many CPUs.
fn probe_on(
    trial: &mut Trial<'_>,
    cpus: u8,
    mode: &str,
    keys: &str,
    problems: &[&str],
) -> Result<TestBox> {
    let keys = format!("debug_exit = true\n{keys}");
    let mut setup = Setup::new(config_with_guest("probe", &keys));
    setup.slot = Some(trial.stage.probe(mode).slot()?);
    setup.cpus = cpus;
    setup.problems = problems.iter().map(|&part| part.to_owned()).collect();
    let mut machine = setup.start(trial)?;
    machine.milestone("guest-started")?;
    Ok(machine)
}

/// How the box reports that a guest wrote `value` to the debug-exit port: the status is what QEMU's isa-debug-exit makes of it.
fn status(value: u32) -> String {
    format!("ended with status {}", value << 1 | 1)
}

/// The probe ends with "passed" and value 0, and the network goes on.
pub fn probe_passes(trial: &mut Trial<'_>, mode: &str) -> Result<()> {
    probe_passes_with(trial, mode, "")
}

/// The same with more keys for the guest.
pub fn probe_passes_with(trial: &mut Trial<'_>, mode: &str, keys: &str) -> Result<()> {
    let mut machine = probe_with(trial, mode, keys, &[])?;
    passes(&mut machine, mode)
}

/// The same with two vCPUs on a CPU each.
pub fn probe_passes_on_two(trial: &mut Trial<'_>, mode: &str) -> Result<()> {
    let mut machine = probe_on(trial, CPUS_FOR_TWO, mode, TWO, &[])?;
    passes(&mut machine, mode)
}

fn passes(machine: &mut TestBox, mode: &str) -> Result<()> {
    // While it is busy, if it is.
    machine.forwards()?;
    let name = mode.split(' ').next().unwrap_or_default();
    machine.console(&format!("probe: {name}: passed"))?;
    machine.guest(&status(0))?;
    machine.forwards()?;
    machine.answers_itself()
}

/// The same, and the box says `message` in its log.
pub fn probe_passes_and_the_box_says(
    trial: &mut Trial<'_>,
    mode: &str,
    message: &str,
) -> Result<()> {
    let mut machine = probe_with(trial, mode, "", &[])?;
    machine.console(&format!("probe: {mode}: passed"))?;
    machine.guest(&status(0))?;
    machine.console(message)?;
    machine.forwards()?;
    machine.answers_itself()
}

/// The vCPUs start each other and talk to each other, on so many CPUs: all that a box has, or, where several vCPUs have several CPUs, one fewer. Afterwards /metrics and the console have the exits of each by reason.
pub fn probe_smp(trial: &mut Trial<'_>, vcpus: u32, cpus: u8) -> Result<()> {
    let apart = u8::from(vcpus > 1 && cpus > 1);
    let theirs: Vec<u8> = (apart..apart + cpus).collect();
    let keys = format!("vcpus = {vcpus}\ncpus = {theirs:?}\n");
    let mut machine = probe_on(trial, apart + cpus, &format!("smp {vcpus}"), &keys, &[])?;
    for mode in ["xAPIC", "x2APIC"] {
        machine.console(&format!("smp: {vcpus} cpus, ipis ok ({mode})"))?;
    }
    machine.guest(&status(0))?;
    machine.forwards()?;
    // What is shown is at most a second old.
    machine.goes_on(2)?;
    let metrics = pages::get_from(&mut machine, "/metrics")?;
    for vcpu in 0..vcpus {
        for reason in ["read-msr", "write-msr"] {
            let wanted =
                format!("outpost_guest_vcpu_exits_total{{vcpu=\"{vcpu}\",reason=\"{reason}\"}} ");
            ensure!(
                metrics.lines().any(|line| line.starts_with(&wanted)),
                "{wanted:?} is not in /metrics:\n{metrics}"
            );
        }
    }
    machine.type_keys(b"status\r")?;
    machine.console(&format!("vCPU {}: ", vcpus - 1))?;
    if (vcpus, cpus) == (4, 2) {
        moved(&machine)?;
    }
    Ok(())
}

/// Each vCPU has its own x87 and SSE registers, also after another one's turn on the same CPU. The box has a CPU for each, and by itself keeps them
/// off the first one (as [`TWO`] does): two vCPUs share one CPU, three share two and move.
pub fn probe_fxrstor(trial: &mut Trial<'_>, vcpus: u8) -> Result<()> {
    let keys = format!("vcpus = {vcpus}\n");
    let mut machine = probe_on(trial, vcpus, "fxrstor 5", &keys, &[])?;
    passes(&mut machine, "fxrstor 5")?;
    // "probe: fxrstor: 1234 looks at the registers, 56 of them after another CPU's turn"
    let line = machine.console("after another CPU's turn")?;
    let turns = line
        .split(", ")
        .nth(1)
        .and_then(|part| part.split(' ').next()?.parse().ok());
    ensure!(
        turns > Some(10_u32),
        "hardly any other vCPU had its turn: {line:?}"
    );
    if vcpus > 2 {
        // What is reported is at most a second old.
        machine.goes_on(2)?;
        moved(&machine)?;
    }
    Ok(())
}

/// Some vCPU has moved from one CPU to another.
fn moved(machine: &TestBox) -> Result<()> {
    let tasks = sharing(machine)?.tasks;
    let mut vcpus = tasks.iter().filter(|(name, _)| name.starts_with("vcpu"));
    ensure!(
        vcpus.any(|(_, times)| times.migrations > 0),
        "more vCPUs than CPUs share these, and none ever moved: {tasks:?}"
    );
    Ok(())
}

/// A guest that does nothing but notify its devices: counted, and the network does not notice.
pub fn probe_flood(trial: &mut Trial<'_>) -> Result<()> {
    let mut machine = probe(trial, "flood 10", &[])?;
    machine.forwards()?;
    machine.wait_for("many notifications to be counted", |said| {
        let net = &said.status()?["net"];
        let many = |device: &str| {
            let device = &net["guest_devices"][device];
            device["notifications"].as_u64() > Some(1_000) && device["stopped"] == 0
        };
        let all = ["net", "console", "entropy", "disk"].into_iter().all(many);
        (all && net["guest_disk"]["refused"].as_u64() > Some(1_000)).then_some(())
    })?;
    machine.console("probe: flood: passed")?;
    machine.guest(&status(0))?;
    machine.forwards()?;
    machine.answers_itself()
}

pub fn probe_self_init(trial: &mut Trial<'_>) -> Result<()> {
    const WHY: &str = "INIT to its last running CPU";
    // The second vCPU was never started: it cannot start the first one.
    let mut machine = probe_on(trial, CPUS_FOR_TWO, "selfinit", TWO, &[WHY])?;
    machine.problem(WHY)?;
    machine.console("starts again in 1 s")?;
    machine.forwards()?;
    machine.answers_itself()?;
    machine.console("starts again in 2 s")?;
    Ok(())
}

pub fn probe_spin_all(trial: &mut Trial<'_>) -> Result<()> {
    let mut machine = probe_on(trial, CPUS_FOR_TWO, "spin", TWO, &[])?;
    machine.console("2 CPUs spinning with interrupts off")?;
    machine.forwards()?;
    machine.answers_itself()?;
    machine.goes_on(3)?;
    // The box's console answers.
    let before = machine.said(|said| said.console.len());
    machine.type_keys(b"help\r")?;
    machine.wait_for("the console's answer", |said| {
        let mut new = said.console.iter().skip(before);
        new.find(|line| line.contains("restart")).map(|_| ())
    })?;
    machine.forwards()?;
    // And ends them.
    machine.type_keys(b"restart\r")?;
    guest::says(&mut machine, "2 CPUs spinning with interrupts off", 2)?;
    machine.forwards()
}

/// What a guest that hangs has against it: its watchdog.
pub fn probe_hang(trial: &mut Trial<'_>) -> Result<()> {
    const WHY: &str = "it has not answered its watchdog for 2 s";
    const HANGS: &str = "2 CPUs spinning with interrupts off";
    let mut machine = probe_on(trial, CPUS_FOR_TWO, "hang", TWO, &[WHY])?;
    machine.console(HANGS)?;
    machine.forwards()?;
    machine.problem(WHY)?;
    machine.console("starts again in 1 s")?;
    guest::says(&mut machine, HANGS, 2)?;
    machine.console("starts again in 2 s")?;
    machine.forwards()?;
    machine.answers_itself()
}

/// A gibibyte that begins at a multiple of one in the box's memory, which then has one page of that size, and two tables.
pub fn probe_gibibyte(trial: &mut Trial<'_>) -> Result<()> {
    let keys = "debug_exit = true\nmemory = \"1G\"\n";
    let mut setup = Setup::new(config_with_guest("probe", keys));
    setup.slot = Some(trial.stage.probe("hello").slot()?);
    setup.memory_mib = 2560;
    let mut machine = setup.start(trial)?;
    machine.console("1024 MiB in 1 pages of 1 GiB and 0 of 2 MiB")?;
    machine.console("probe: hello: passed")?;
    machine.guest(&status(0))?;
    machine.forwards()
}

/// A guest and a service that want everything on every CPU: both have some of it, and the network what it needs.
pub fn probe_load(trial: &mut Trial<'_>) -> Result<()> {
    let keys =
        format!("{TWO}policy = \"gang\"\nnice = 10\n[services]\nnice = 0\nload = [0, 1, 2, 7]\n");
    // The last CPU of the list is not there, and the box says so.
    let mut machine = probe_on(
        trial,
        CPUS_FOR_TWO,
        "burn 60",
        &keys,
        &["there is no CPU 7"],
    )?;
    machine.problem("[services] load: there is no CPU 7")?;
    machine.forwards()?;
    machine.answers_itself()?;
    machine.goes_on(2)?;
    machine.type_keys(b"status\r")?;
    machine.console("load on CPU 1 ran")?;
    let line = machine.console("gang: ")?;
    for part in ["starts", "missed", "broken", "fallbacks", "at most", "idle"] {
        ensure!(line.contains(part), "{part:?} is not in {line:?}");
    }
    let metrics = pages::get_from(&mut machine, "/metrics")?;
    for wanted in [
        "outpost_task_run_nanoseconds_total{task=\"vcpu1\"} ",
        "outpost_task_wait_nanoseconds_total{task=\"vcpu1\"} ",
        "outpost_task_wakes_total{task=\"vcpu1\"} ",
        "outpost_task_migrations_total{task=\"vcpu1\"} ",
        "outpost_task_longest_wait_nanoseconds{task=\"vcpu1\"} ",
        "outpost_gang_slots_total ",
        "outpost_gang_missed_total ",
        "outpost_gang_broken_total ",
        "outpost_gang_fallbacks_total ",
        "outpost_gang_skew_nanoseconds_total ",
        "outpost_gang_longest_skew_nanoseconds ",
        "outpost_gang_idle_nanoseconds_total ",
    ] {
        ensure!(
            metrics.lines().any(|line| line.starts_with(wanted)),
            "{wanted:?} is not in /metrics:\n{metrics}"
        );
    }
    let sharing = sharing(&machine)?;
    for task in ["network", "vcpu0", "vcpu1", "load0", "load1"] {
        let times = sharing.tasks.get(task).copied().unwrap_or_default();
        ensure!(times.run_ns > 0 && times.wait_ns > 0, "{task}: {times:?}");
    }
    ensure!(sharing.gang.slots > 0, "the gang never ran as one");
    // By the weights it is 110 to 1024: nice values are the guest's and the services', and not the other way round.
    let ran =
        |tasks: [&str; 2]| -> u64 { tasks.iter().map(|task| sharing.tasks[*task].run_ns).sum() };
    let (guest, services) = (ran(["vcpu0", "vcpu1"]), ran(["load1", "load2"]));
    ensure!(
        guest < services / 4,
        "with nice 10 beside 0 the guest ran {guest} ns, the services {services} ns"
    );
    machine.forwards()
}

/// What the box's scheduler has counted, as last reported.
fn sharing(machine: &TestBox) -> Result<Sharing> {
    let sharing = machine.said(|said| said.status().map(|status| status["sharing"].clone()));
    Ok(serde_json::from_value(sharing.context("no status")?)?)
}

/// Placed vCPUs run on a CPU each and never move.
pub fn probe_placed(trial: &mut Trial<'_>) -> Result<()> {
    let keys = "vcpus = 2\ncpus = [1, 2]\npolicy = \"placed\"\n";
    let mut machine = probe_on(trial, 3, "burn 5", keys, &[])?;
    machine.console("probe: burn: passed")?;
    machine.guest(&status(0))?;
    // What is reported is at most a second old.
    machine.goes_on(2)?;
    let sharing = sharing(&machine)?;
    ensure!(sharing.policy == "placed", "the policy: {sharing:?}");
    for task in ["vcpu0", "vcpu1"] {
        let times = sharing.tasks.get(task).copied().unwrap_or_default();
        ensure!(
            times.run_ns > 0 && times.migrations == 0,
            "{task}: {times:?}"
        );
    }
    machine.forwards()
}

/// More vCPUs than CPUs cannot be placed: the box says so, and they share what there is.
pub fn probe_unplaced(trial: &mut Trial<'_>) -> Result<()> {
    const WHAT: &str =
        "needs a CPU for each of the guest's 3 vCPUs, and they may use 2: it is \"balance\"";
    let keys = "vcpus = 3\ncpus = [1, 2]\npolicy = \"placed\"\n";
    let mut machine = probe_on(trial, 3, "smp 3", keys, &[WHAT])?;
    machine.problem(WHAT)?;
    machine.guest(&status(0))?;
    machine.goes_on(2)?;
    let sharing = sharing(&machine)?;
    ensure!(sharing.policy == "balance", "the policy: {sharing:?}");
    machine.forwards()
}

pub fn probe_exit(trial: &mut Trial<'_>) -> Result<()> {
    let mut machine = probe(trial, "exit 42", &[])?;
    machine.guest(&status(42))?;
    machine.forwards()
}

pub fn probe_triple_fault(trial: &mut Trial<'_>) -> Result<()> {
    let mut machine = probe(trial, "triple-fault", &["triple fault"])?;
    machine.problem("triple fault")?;
    // It is started again, with back-off, and the rest goes on meanwhile.
    machine.console("starts again in 1 s")?;
    machine.forwards()?;
    machine.answers_itself()?;
    // What its machine had of the heap is given back each time.
    let mut off = Vec::new();
    for pause in ["starts again in 2 s", "starts again in 4 s"] {
        machine.console(pause)?;
        machine.goes_on(1)?;
        off.push(guest::heap_in_use(&machine)?);
    }
    ensure!(
        off[0] == off[1],
        "{off:?} bytes are in use while the guest is off, the second and the third time"
    );
    machine.goes_on(2)
}

pub fn probe_spin(trial: &mut Trial<'_>) -> Result<()> {
    const SPINS: &str = "spinning with interrupts off";
    let mut machine = probe(trial, "spin", &[])?;
    machine.console(SPINS)?;
    machine.forwards()?;
    machine.answers_itself()?;
    machine.goes_on(3)?;
    machine.type_keys(b"restart\r")?;
    guest::says(&mut machine, SPINS, 2)?;
    machine.forwards()
}

pub fn probe_silent(trial: &mut Trial<'_>) -> Result<()> {
    let mut machine = probe(trial, "silent", &["halted with interrupts off"])?;
    machine.problem("halted with interrupts off")?;
    machine.forwards()?;
    machine.answers_itself()?;
    ensure!(
        machine.said(|said| said.milestone("guest-init").is_none()),
        "a guest that says nothing was taken to have started"
    );
    Ok(())
}
