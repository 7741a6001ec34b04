//! Boxes without a guest, or whose guest cannot start: frames, partitions, damaged files, hardware that is missing; and the engine's figures.

use anyhow::{Context, Result, ensure};
use outpost_engine_bench::Figures;
use outpost_image_format::{Digest, Partition, RAMDISK, Slot};

use super::boxes::{CONFIG, Setup, TestBox, config_with_guest};
use super::{Trial, frames};
use crate::bench::engine as bench;
use crate::image;

/// What the benchmark measures at length (`cargo xtask bench engine`), with a small pair.
pub fn engine(trial: &mut Trial<'_>) -> Result<()> {
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

pub fn forwarding(trial: &mut Trial<'_>) -> Result<()> {
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

pub fn partitions(trial: &mut Trial<'_>) -> Result<()> {
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

pub fn wrong_digest(trial: &mut Trial<'_>) -> Result<()> {
    // Whole in itself, but another kernel than the one pinned.
    let mut guest = trial.stage.probe("hello");
    guest.kernel.push(0);
    let mut setup = Setup::new(config_with_guest("probe", ""));
    setup.slot = Some(guest.slot()?);
    setup.problems = vec!["is not the pinned one".into()];
    let machine = setup.start(trial)?;
    without_guest(machine, &Digest::of(&guest.kernel).to_string())
}

pub fn damaged_guest(trial: &mut Trial<'_>) -> Result<()> {
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

pub fn cut_short(trial: &mut Trial<'_>) -> Result<()> {
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

pub fn no_svm(trial: &mut Trial<'_>) -> Result<()> {
    let mut setup = Setup::new(config_with_guest("probe", ""));
    setup.slot = Some(trial.stage.probe("hello").slot()?);
    setup.cpu_features = vec!["svm=off".into()];
    setup.problems = vec!["no virtualisation extension".into()];
    let machine = setup.start(trial)?;
    without_guest(machine, "no virtualisation extension")
}

pub fn one_nic(trial: &mut Trial<'_>) -> Result<()> {
    let mut setup = Setup::new(config_with_guest("probe", "debug_exit = true\n"));
    setup.slot = Some(trial.stage.probe("hello").slot()?);
    setup.nics = 1;
    setup.problems = vec!["only one network port".into()];
    let mut machine = setup.start(trial)?;
    machine.problem("only one network port")?;
    machine.console("probe: hello: passed")?;
    machine.answers_itself()
}

pub fn noise(trial: &mut Trial<'_>) -> Result<()> {
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
