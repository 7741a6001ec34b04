//! Frames through the box, from the LAN's wire to the WAN's, while the guest spins with interrupts off on every vCPU (`cli; jmp $`) and
//! while it is halted: how long one takes, how many go through in a second, and whether the console answers. Two boxes are up,
//! and one of them is held still (SIGSTOP) while the other is measured, in turn.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{CPUS, ProbedBox, Setting, Stage, again, percentile};
use crate::bench::hv::load::Load;
use crate::bench::report::{Limit, Report, Row};
use crate::emulator_tests::frames;
use crate::process;

/// Frames of each box for latency: so many at a time, so often in turn.
const FRAMES: usize = 250;
const TURNS: usize = 8;
/// A turn is good if other programs had at most this share of the machine; of so many times as many turns as are wanted the best count.
const QUIET: f64 = 0.05;
const MOST: usize = 3;
/// What the 99th percentile may be above that with the guest halted, in milliseconds.
const ABOVE_MS: f64 = 2.0;
/// For the rate: frames under way at most, their length, and how long and how often each box is measured.
const WINDOW: usize = 32;
const LENGTH: usize = 1514;
const SPAN: Duration = Duration::from_millis(1000);
const SPANS: usize = 6;
/// The CPU time of the same is accounted for so long, after so long: the box reports it once a second.
const ACCOUNT: Duration = Duration::from_secs(4);
const SETTLE: Duration = Duration::from_secs(2);
/// Pairs of boxes for each round, where there is a limit: one emulator's process is faster than another of the same, and stays so.
const PAIRS: u32 = 2;
/// The share of the rate with the guest halted that counts as full; and of the median, of which the far ends of the wires have their part.
const FULL: f64 = 0.95;
const MOSTLY_FULL: f64 = 0.8;
/// A span in which the far ends of the wires, which are no part of the box, took CPU 0's thread its time is a fifth slower than the others, however the guest
/// rests: this percentile of the spans is of those that nothing disturbed.
const UNDISTURBED: usize = 75;
/// A frame that has not come by then is lost.
const LOST: Duration = Duration::from_secs(2);

/// Two boxes that differ in what the guest does.
pub struct Pair {
    halted: ProbedBox,
    spins: ProbedBox,
    policy: &'static str,
}

impl Pair {
    /// Starts both under this policy, with the services at this nice value.
    ///
    /// # Errors
    /// One does not start.
    pub fn start(stage: &Stage, policy: &'static str, services_nice: i8) -> Result<Pair> {
        again(|| Pair::start_once(stage, policy, services_nice))
    }

    fn start_once(stage: &Stage, policy: &'static str, services_nice: i8) -> Result<Pair> {
        let setting = |mode| Setting {
            services_nice,
            ..Setting::new(mode, policy)
        };
        let mut halted = stage.start(&setting("hello"))?;
        halted.console("probe: hello: passed")?;
        reaches(&mut halted)?;
        halted.pause()?;
        let mut spins = stage.start(&setting("spin"))?;
        spins.console("2 CPUs spinning with interrupts off")?;
        reaches(&mut spins)?;
        spins.pause()?;
        Ok(Pair {
            halted,
            spins,
            policy,
        })
    }

    /// Measures one after the other, while the other one is held still, until so many turns found this machine quiet. Where that takes too long,
    /// the quietest ones count.
    fn in_turn<T>(
        &mut self,
        wanted: usize,
        mut measure: impl FnMut(&mut ProbedBox) -> Result<Vec<T>>,
    ) -> Result<[Vec<T>; 2]> {
        let mut turns = Vec::new();
        while turns.len() < MOST * wanted {
            let mut busy = 0.0_f64;
            let mut both = [Vec::new(), Vec::new()];
            for (machine, all) in [&mut self.halted, &mut self.spins]
                .into_iter()
                .zip(&mut both)
            {
                machine.go_on()?;
                // What a still machine missed (timers, a status line) is made up for first.
                reaches(machine)?;
                let load = Load::begin(machine.qemu.id())?;
                let result = measure(machine);
                busy = busy.max(load.others()?);
                machine.pause()?;
                *all = result?;
            }
            turns.push((busy, both));
            if turns.iter().filter(|(busy, _)| *busy <= QUIET).count() >= wanted {
                break;
            }
        }
        turns.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        turns.truncate(wanted);
        if let Some((busy, _)) = turns.last().filter(|(busy, _)| *busy > QUIET) {
            println!(
                "Other programs had up to {:.0}% of this machine's CPUs meanwhile: they keep the emulated ones waiting, most of all those that spin.",
                100.0 * busy
            );
        }
        let mut all = [Vec::new(), Vec::new()];
        for (_, both) in turns {
            for (all, one) in all.iter_mut().zip(both) {
                all.extend(one);
            }
        }
        Ok(all)
    }

    /// Latency of frames, one at a time.
    ///
    /// # Errors
    /// It could not be measured, or a frame was lost.
    pub fn latency(&mut self, report: &mut Report) -> Result<()> {
        let mut number = 0;
        let [halted, spins] = self.in_turn(TURNS, |machine| latencies(machine, &mut number))?;
        let name = format!(
            "packet latency, {}, guest spinning on every vCPU",
            self.policy
        );
        for percent in [50, 99] {
            let of = |all: &Vec<f64>| percentile(all.clone(), percent).unwrap_or_default();
            let (idle, busy) = (of(&halted), of(&spins));
            let mut row =
                Row::new(format!("{name}: p{percent}"), "ms", busy).beside("halted", idle);
            if percent == 99 {
                row.holds = busy <= idle + ABOVE_MS;
                row.limit = Some(format!("at most {ABOVE_MS} more"));
            }
            report.add(row);
        }
        // What of it the scheduler is to blame for; the rest is the emulator's own threads, which two spinning CPUs leave little.
        self.spins.go_on()?;
        reaches(&mut self.spins)?;
        let first = self.spins.next_sharing()?;
        latencies(&mut self.spins, &mut number)?;
        let between = self.spins.next_sharing()?.since(&first);
        self.spins.pause()?;
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

    /// What of CPU 0 the network has while frames come as fast as they can, and whether the console answers beside the guest.
    fn account(&mut self, setting: &str, report: &mut Report) -> Result<()> {
        self.spins.go_on()?;
        // Both reports are of a second in which frames came.
        forward(&mut self.spins, SETTLE)?;
        let first = self
            .spins
            .last_sharing()
            .context("the box has reported nothing")?;
        forward(&mut self.spins, ACCOUNT)?;
        let last = self
            .spins
            .last_sharing()
            .context("the box has reported nothing")?;
        let between = last.since(&first);
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
        let before = self.spins.lines();
        let asked = Instant::now();
        self.spins.type_keys(b"status\r")?;
        self.spins.wait_for("the console's answer", |said| {
            let mut new = said.console.iter().skip(before);
            new.find(|line| line.contains("vCPU 1 ran")).map(|_| ())
        })?;
        let answer = asked.elapsed().as_secs_f64();
        self.spins.pause()?;
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
}

/// Frames through the box in a second with the guest in `cli; jmp $`, and whether the console answers beside it. The rate must be full with `limited`; at equal
/// nice values a service that could use all of its CPU has half of it, as the weights say.
///
/// # Errors
/// It could not be measured.
pub fn forwarding(
    stage: &Stage,
    policy: &'static str,
    services_nice: i8,
    limited: bool,
    rounds: u32,
    report: &mut Report,
) -> Result<()> {
    let setting = format!("{policy}, services at nice {services_nice}, guest in cli; jmp $");
    let mut rates = [Vec::new(), Vec::new()];
    let mut last = None;
    let pairs = if limited { rounds * PAIRS } else { rounds };
    for _ in 0..pairs {
        process::check_interrupted()?;
        drop(last.take());
        let mut pair = Pair::start(stage, policy, services_nice)?;
        let both = pair.in_turn(SPANS, |machine| Ok(vec![frames_a_second(machine)?]))?;
        for (all, one) in rates.iter_mut().zip(both) {
            all.extend(one);
        }
        last = Some(pair);
    }
    let name = format!("frames of {LENGTH} bytes forwarded, {setting}");
    for (what, percent, least) in [("", UNDISTURBED, FULL), (": median", 50, MOSTLY_FULL)] {
        let of = |all: &Vec<f64>| percentile(all.clone(), percent).unwrap_or_default();
        let [halted, spins] = rates.each_ref().map(of);
        let row = Row::new(format!("{name}{what}"), "1/s", spins).beside("halted", halted);
        report.add(match limited {
            true => row.limited_by_ratio(Limit::AtLeast(least)),
            false => row,
        });
    }
    match last {
        Some(mut pair) => pair.account(&setting, report),
        None => Ok(()),
    }
}

fn frame(number: usize, length: usize) -> Vec<u8> {
    // Always as long, so that what a frame of another number looks like is known.
    let tag = format!("outpost bench {number:010}        ");
    frames::raw(
        frames::LAN_STATION,
        frames::WAN_STATION,
        tag.as_bytes(),
        length,
    )
}

/// Waits until frames cross in both directions, so that the box has learnt where both stations are.
fn reaches(machine: &mut ProbedBox) -> Result<()> {
    let back = frames::raw(
        frames::WAN_STATION,
        frames::LAN_STATION,
        b"outpost bench back",
        60,
    );
    let there = frame(usize::MAX >> 40, 60);
    for (from, to, frame) in [
        (&machine.wan, &machine.lan, &back),
        (&machine.lan, &machine.wan, &there),
    ] {
        let deadline = Instant::now() + super::PATIENCE;
        loop {
            process::check_interrupted()?;
            from.send(frame);
            if to.wait(Duration::from_millis(100))? && drain(|| to.receive(), frame) {
                break;
            }
            if Instant::now() > deadline {
                bail!("no frame crosses the box");
            }
        }
    }
    // Those that were sent more than once.
    while machine.wan.wait(Duration::from_millis(50))? {
        let _ = machine.wan.receive();
    }
    Ok(())
}

/// Takes what has come. True if `wanted` was there.
fn drain(mut receive: impl FnMut() -> Option<Vec<u8>>, wanted: &[u8]) -> bool {
    let mut found = false;
    while let Some(frame) = receive() {
        found |= frame == wanted;
    }
    found
}

/// How long each of some frames takes, in milliseconds. They come at times that no slice knows.
fn latencies(machine: &mut ProbedBox, number: &mut usize) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    let mut state = 0x9e37_79b9_u32;
    for _ in 0..FRAMES {
        process::check_interrupted()?;
        // xorshift32 (Marsaglia, 2003)
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        std::thread::sleep(Duration::from_micros(500 + u64::from(state % 4_000)));
        *number += 1;
        let frame = frame(*number, 100);
        let sent = Instant::now();
        machine.lan.send(&frame);
        loop {
            if machine.wan.wait(Duration::from_millis(100))?
                && machine.wan.receive().is_some_and(|it| it == frame)
            {
                break;
            }
            ensure!(
                sent.elapsed() < LOST,
                "a frame went in and did not come out"
            );
        }
        all.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    Ok(all)
}

/// Has frames go through as fast as they can for so long.
fn forward(machine: &mut ProbedBox, time: Duration) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < time {
        frames_a_second(machine)?;
    }
    Ok(())
}

/// How many frames go through in a second while [`WINDOW`] of them are always under way.
fn frames_a_second(machine: &mut ProbedBox) -> Result<f64> {
    let frame = frame(0, LENGTH);
    let mut buffer = vec![0; 2048];
    let (mut under_way, mut came) = (0, 0);
    let begin = Instant::now();
    while begin.elapsed() < SPAN {
        process::check_interrupted()?;
        while under_way < WINDOW && machine.lan.try_send(&frame) {
            under_way += 1;
        }
        let mut new = 0;
        while machine.wan.receive_into(&mut buffer) == Some(LENGTH) {
            new += 1;
        }
        came += new;
        under_way = under_way.saturating_sub(new);
        // Lost ones are not waited for.
        if new == 0 && !machine.wan.wait(Duration::from_millis(20))? {
            under_way = 0;
        }
    }
    let rate = f64::from(u32::try_from(came)?) / begin.elapsed().as_secs_f64();
    while machine.wan.wait(Duration::from_millis(50))? {
        let _ = machine.wan.receive();
    }
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_differ_by_their_number_only() {
        assert_eq!(frame(1, LENGTH).len(), LENGTH);
        assert_ne!(frame(1, 100), frame(2, 100));
        assert_eq!(
            frame(7, 100)[frames::TAGGED..],
            frame(8, 100)[frames::TAGGED..]
        );
    }
}
