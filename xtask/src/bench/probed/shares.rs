//! CPU time of the guest against that of services that want all they can get, by nice value: from the scheduler's own counters, which
//! tell what it gave to whom exactly, however busy this machine is.

use anyhow::{Result, ensure};
use outpost_hv::sched::Nice;

use super::{Setting, Stage, again};
use crate::bench::report::{Report, Row};

/// Reports, one a second, between the first and the last.
const SECONDS: usize = 6;
/// How far the guest's share may be from what the weights say, in percent of all.
const WITHIN: f64 = 2.0;
/// Nice values of the guest and of the services.
const PAIRS: [(i8, i8); 3] = [(0, 0), (0, 5), (-5, 10)];

/// A row for each pair of nice values: two vCPUs that compute, and a greedy service on each of two CPUs.
///
/// # Errors
/// It could not be measured.
pub fn rows(stage: &Stage, policy: &'static str, report: &mut Report) -> Result<()> {
    for (guest, services) in PAIRS {
        let share = again(|| measure(stage, policy, guest, services))?;
        report.add(row(policy, guest, services, share));
    }
    Ok(())
}

/// The guest's share, in percent.
fn measure(stage: &Stage, policy: &'static str, guest: i8, services: i8) -> Result<f64> {
    let mut machine = stage.start(&Setting {
        nice: guest,
        services_nice: services,
        load: &[0, 1],
        ..Setting::new("burn 30", policy)
    })?;
    let first = machine.next_sharing()?;
    let mut last = first.clone();
    for _ in 0..SECONDS {
        last = machine.next_sharing()?;
    }
    let between = last.since(&first);
    let (ours, theirs) = (between.ran("vcpu"), between.ran("load"));
    ensure!(
        ours > 0 && theirs > 0,
        "the guest had {ours} ns and the services {theirs} ns: one of them did not run"
    );
    Ok(100.0 * ours as f64 / (ours + theirs) as f64)
}

fn row(policy: &str, guest: i8, services: i8, share: f64) -> Row {
    let weight = |nice| Nice::new(nice).unwrap_or_default().weight();
    let (ours, theirs) = (weight(guest), weight(services));
    let due = 100.0 * f64::from(ours) / f64::from(ours + theirs);
    let mut row = Row::new(
        format!("nice {guest}/{services}, {policy}: the guest's share"),
        "%",
        share,
    )
    .beside("by weight", due);
    row.holds = (share - due).abs() <= WITHIN;
    row.limit = Some(format!("within {WITHIN}"));
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_must_be_near_the_weights() {
        // 1,024 to 335: 75.35%.
        assert!(row("balance", 0, 5, 76.0).holds && row("balance", 0, 5, 74.0).holds);
        assert!(!row("balance", 0, 5, 77.5).holds && !row("balance", 0, 5, 73.0).holds);
    }
}
