//! How long a frame takes through the box while the guest spins with interrupts off on every vCPU, beside a box whose guest is halted.

use anyhow::Result;

use super::in_turn::{HALTED, InTurn, SPINS};
use super::packets::{latencies, reaches};
use super::{Setting, Stage, percentile};
use crate::bench::report::{Report, Row};

/// How often each box is measured.
const TURNS: usize = 8;
/// What the 99th percentile may be above that with the guest halted, in milliseconds.
const ABOVE_MS: f64 = 2.0;

/// Latency of frames, one at a time, with the services at this nice value.
///
/// # Errors
/// It could not be measured, or a frame was lost.
pub fn rows(
    stage: &Stage,
    policy: &'static str,
    services_nice: i8,
    report: &mut Report,
) -> Result<()> {
    let settings = [HALTED, SPINS].map(|(mode, says)| {
        let setting = Setting {
            services_nice,
            ..Setting::new(mode, policy)
        };
        (setting, says)
    });
    let mut boxes = InTurn::start(stage, settings)?;
    let mut number = 0;
    let (mut halted, mut spins) = (Vec::new(), Vec::new());
    for [idle, busy] in boxes.measure(TURNS, |machine| latencies(machine, &mut number))? {
        halted.extend(idle);
        spins.extend(busy);
    }
    let name = format!("packet latency, {policy}, guest spinning on every vCPU");
    for percent in [50, 99] {
        let of = |all: &Vec<f64>| percentile(all.clone(), percent).unwrap_or_default();
        let (idle, busy) = (of(&halted), of(&spins));
        let mut row = Row::new(format!("{name}: p{percent}"), "ms", busy).beside("halted", idle);
        if percent == 99 {
            row.holds = busy <= idle + ABOVE_MS;
            row.limit = Some(format!("at most {ABOVE_MS} more"));
        }
        report.add(row);
    }
    // What of it the scheduler is to blame for; the rest is the emulator's own threads, which two spinning CPUs leave little.
    let [_, machine] = &mut boxes.0;
    machine.go_on()?;
    reaches(machine)?;
    let first = machine.next_sharing()?;
    latencies(machine, &mut number)?;
    let between = machine.next_sharing()?.since(&first);
    let network = between.tasks.get("network").copied().unwrap_or_default();
    report.add(Row::new(
        format!(
            "{name}: the network's wait for CPU 0, by the scheduler's clock, mean of its wakes"
        ),
        "ms",
        network.wait_ns as f64 / 1e6 / network.wakes.max(1) as f64,
    ));
    Ok(())
}
