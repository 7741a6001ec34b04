//! How much of the guest's time is burnt spinning for a lock whose holder does not run: the probe's mode `lock` on two vCPUs that share
//! two CPUs with a service that wants all of CPU 0.

use anyhow::{Context, Result, ensure};

use super::{Setting, Stage, VCPUS, again, median};
use crate::bench::hv::load::Load;
use crate::bench::report::{Limit, Report, Row};
use crate::sharing::Sharing;
use crate::{probe, process};

/// What the probe is told.
const MODE: &str = "lock 5";
/// The most that a gang may burn, in percent of the guest's time.
const MOST: f64 = 5.0;

/// What one run came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Milliseconds that all vCPUs ran, as the probe saw it.
    ran_ms: f64,
    locks: f64,
    /// Percent of that time.
    spun: f64,
    burnt: f64,
    stalled: f64,
}

impl Seen {
    /// Reads the probe's lines.
    fn parse(text: &str) -> Option<Seen> {
        let number_before = |what: &str| -> Option<f64> {
            let of_lock = |line: &&str| line.contains("probe: lock: ") && line.contains(what);
            let line = text.lines().find(of_lock)?;
            let before = line.split(what).next()?.trim_end();
            before.rsplit(' ').next()?.parse().ok()
        };
        Some(Seen {
            ran_ms: number_before(" ms, took")?,
            locks: number_before(" locks")?,
            spun: number_before(" permille spun")? / 10.0,
            burnt: number_before(" permille burnt")? / 10.0,
            stalled: number_before(" permille stalled")? / 10.0,
        })
    }
}

/// Rows for these policies, beside the probe on the emulated CPUs themselves. What is spun while the emulator did not run a holder that the
/// hypervisor had given a CPU is counted apart: it is this machine's doing, and there without a hypervisor as well.
///
/// # Errors
/// It could not be measured.
pub fn rows(
    stage: &Stage,
    policies: &[&'static str],
    rounds: u32,
    report: &mut Report,
) -> Result<()> {
    let mut direct = Vec::new();
    let mut runs: Vec<Vec<(Seen, Sharing)>> = vec![Vec::new(); policies.len()];
    let mut others = Vec::new();
    for _ in 0..rounds {
        direct.push(on_the_emulator(stage)?.stalled);
        for (policy, runs) in policies.iter().zip(&mut runs) {
            process::check_interrupted()?;
            let (seen, sharing, busy) = again(|| measure(stage, policy))?;
            runs.push((seen, sharing));
            others.push(busy);
        }
    }
    let direct = median(direct).unwrap_or_default();
    for (policy, runs) in policies.iter().zip(&runs) {
        let median = |of: &dyn Fn(&Seen) -> f64| {
            median(runs.iter().map(|(seen, _)| of(seen))).unwrap_or_default()
        };
        let row = Row::new(
            format!("lock, {policy}: guest time spun for a holder that does not run"),
            "%",
            median(&|seen| seen.burnt),
        );
        report.add(match *policy {
            "gang" => row.limited(Limit::AtMost(MOST)),
            _ => row,
        });
        report.add(Row::new(
            format!("lock, {policy}: spun in all"),
            "%",
            median(&|seen| seen.spun),
        ));
        report.add(
            Row::new(
                format!("lock, {policy}: spun while the emulator did not run the holder"),
                "%",
                median(&|seen| seen.stalled),
            )
            .beside("without hypervisor", direct),
        );
        report.add(Row::new(
            format!("lock, {policy}: locks for each second that a vCPU ran"),
            "1/s",
            median(&|seen| 1e3 * seen.locks / seen.ran_ms),
        ));
        if let Some((_, sharing)) = runs.last() {
            let (service, vcpu) = (sharing.ran("load") as f64, sharing.ran("vcpu") as f64);
            report.add(Row::new(
                format!("lock, {policy}: CPU time of the service for one of the guest's"),
                "",
                service / vcpu.max(1.0),
            ));
            if *policy == "gang" {
                let gang = &sharing.gang;
                ensure!(gang.slots > 0, "the gang never ran as one");
                let slots = gang.slots as f64;
                for (name, unit, value) in [
                    ("skew of a slot", "µs", gang.skew_ns as f64 / slots / 1e3),
                    (
                        "rendezvous missed, of all slots",
                        "%",
                        100.0 * gang.missed as f64 / slots,
                    ),
                    (
                        "slots broken, of all",
                        "%",
                        100.0 * gang.broken as f64 / slots,
                    ),
                    (
                        "CPU time left idle, for the guest's",
                        "%",
                        100.0 * gang.idle_ns as f64 / vcpu.max(1.0),
                    ),
                ] {
                    report.add(Row::new(format!("lock, gang: {name}"), unit, value));
                }
            }
        }
    }
    if let Some(busy) = median(others).filter(|busy| *busy > BUSY) {
        println!(
            "Other programs had {:.0}% of this machine's CPUs meanwhile: the emulator did not always run a lock's holder.",
            100.0 * busy
        );
    }
    Ok(())
}

/// More than this of the machine's CPU time for other programs is worth a word.
const BUSY: f64 = 0.05;

/// One run in a box; with what share of this machine other programs had.
fn measure(stage: &Stage, policy: &'static str) -> Result<(Seen, Sharing, f64)> {
    let mut machine = stage.start(&Setting {
        load: &[0],
        ..Setting::new(MODE, policy)
    })?;
    let load = Load::begin(machine.qemu.id())?;
    let first = machine.next_sharing()?;
    machine.console("probe: lock: passed")?;
    let others = load.others()?;
    let last = machine.last_sharing().unwrap_or_default();
    let seen = machine.wait_for("the probe's figures", |said| {
        Seen::parse(&said.console.join("\n"))
    })?;
    Ok((seen, last.since(&first), others))
}

/// The same on QEMU itself.
fn on_the_emulator(stage: &Stage) -> Result<Seen> {
    let (_, text) = probe::run_on_qemu(&stage.probe.kernel, VCPUS, MODE)?;
    Seen::parse(&text).with_context(|| format!("the probe on QEMU itself said {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_figures_are_read() {
        let text = "[    9.1] guest: outpost-guest: init\nprobe: lock: 2 cpus ran 9876 ms, took 12345 locks\r\n\
                    probe: lock: 210 permille spun\nprobe: lock: 37 permille burnt\n\
                    probe: lock: 9 permille stalled\nprobe: lock: passed";
        let seen = Seen {
            ran_ms: 9876.0,
            locks: 12345.0,
            spun: 21.0,
            burnt: 3.7,
            stalled: 0.9,
        };
        assert_eq!(Seen::parse(text), Some(seen));
        assert_eq!(Seen::parse("probe: lock: passed"), None);
    }
}
