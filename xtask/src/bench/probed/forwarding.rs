//! How many frames go through the box in a second while the guest spins with interrupts off on every vCPU (`cli; jmp $`), and whether the console answers.
//!
//! Beside two boxes whose guest is halted: one with CPU 1 idle, and one where a service burns it. This machine, and the emulator's own threads, are slower
//! where two emulated CPUs are at work than where one is, whoever has the other; and how fast this machine is changes within seconds. So what the guest takes
//! from the network is told by the second one, span beside span.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::in_turn::{HALTED, InTurn, SPINS};
use super::packets::{LENGTH, frames_a_second};
use super::{CPUS, ProbedBox, Setting, Stage};
use crate::bench::report::{Limit, Report, Row};
use crate::process;

/// Spans of each box in each round.
const SPANS: usize = 24;
/// The CPU time of the same is accounted for so long, after so long: the box reports it once a second.
const ACCOUNT: Duration = Duration::from_secs(4);
const SETTLE: Duration = Duration::from_secs(2);
/// The share of the rate with the guest halted that counts as full.
const FULL: f64 = 0.95;
/// And where this machine has only one emulated CPU to execute then.
const FULL_BESIDE_IDLE: f64 = 0.8;

/// Frames through the box in a second with the guest in `cli; jmp $`, and whether the console answers beside it. The rate must be full with `limited`; at equal
/// nice values a service that could use all of its CPU has half of it, as the weights say.
///
/// # Errors
/// It could not be measured.
pub fn rows(
    stage: &Stage,
    policy: &'static str,
    services_nice: i8,
    limited: bool,
    rounds: u32,
    report: &mut Report,
) -> Result<()> {
    let settings = [(HALTED, &[][..]), (HALTED, &[1]), (SPINS, &[])].map(|((mode, says), load)| {
        let setting = Setting {
            services_nice,
            load,
            ..Setting::new(mode, policy)
        };
        (setting, says)
    });
    let mut spans = Vec::new();
    let mut last = None;
    for _ in 0..rounds {
        process::check_interrupted()?;
        // Two sets of boxes are too many for a machine that has little memory.
        drop(last.take());
        let mut boxes = InTurn::start(stage, settings)?;
        spans.extend(boxes.measure(SPANS, frames_a_second)?);
        last = Some(boxes);
    }
    let setting = format!("{policy}, services at nice {services_nice}, guest in cli; jmp $");
    let name = format!("frames of {LENGTH} bytes forwarded, {setting}");
    let burns = spans.iter().map(|[_, burns, spins]| (*spins, *burns));
    let idle = spans.iter().map(|[idle, _, spins]| (*spins, *idle));
    for (peer, pairs, least) in [
        (
            "halted, a service burns CPU 1",
            burns.collect::<Vec<_>>(),
            FULL,
        ),
        ("halted, CPU 1 idle", idle.collect(), FULL_BESIDE_IDLE),
    ] {
        let row = Row::new(name.clone(), "1/s", 0.0).side_by_side(peer, &pairs);
        report.add(match limited {
            true => row.limited_by_ratio(Limit::AtLeast(least)),
            false => row,
        });
    }
    match last {
        Some(InTurn([.., mut spins])) => account(&mut spins, &setting, report),
        None => Ok(()),
    }
}

/// What of CPU 0 the network has while frames come as fast as they can, and whether the console answers beside the guest.
fn account(machine: &mut ProbedBox, setting: &str, report: &mut Report) -> Result<()> {
    machine.go_on()?;
    // Both reports are of a second in which frames came.
    forward(machine, SETTLE)?;
    let reported = "the box has reported nothing";
    let first = machine.last_sharing().context(reported)?;
    forward(machine, ACCOUNT)?;
    let between = machine.last_sharing().context(reported)?.since(&first);
    let network = between.tasks.get("network").copied().unwrap_or_default();
    // Beside a guest that spins on all of them no CPU is idle: what all tasks had is what there was.
    let had: u64 = between.tasks.values().map(|times| times.run_ns).sum();
    let all = (had / u64::from(CPUS)).max(1) as f64;
    for (name, ns) in [("had", network.run_ns), ("waited for", network.wait_ns)] {
        report.add(Row::new(
            format!("share of CPU 0 that the network {name}, {setting}"),
            "%",
            100.0 * ns as f64 / all,
        ));
    }
    let before = machine.lines();
    let asked = Instant::now();
    machine.type_keys(b"status\r")?;
    machine.wait_for("the console's answer", |said| {
        let mut new = said.console.iter().skip(before);
        new.find(|line| line.contains("vCPU 1 ran")).map(|_| ())
    })?;
    let answer = asked.elapsed().as_secs_f64();
    report.add(
        Row::new(
            format!("the console's answer to `status`, {setting}"),
            "s",
            answer,
        )
        .limited(Limit::AtMost(1.0)),
    );
    Ok(())
}

/// Has frames go through as fast as they can for so long.
fn forward(machine: &mut ProbedBox, time: Duration) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < time {
        frames_a_second(machine)?;
    }
    Ok(())
}
