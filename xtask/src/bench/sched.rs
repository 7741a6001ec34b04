//! `cargo xtask bench sched`: the scheduling policies side by side, in the simulator, where the same seed gives the same figures, and then the same mix
//! on the emulator, in boxes with the probe as guest.

use std::path::PathBuf;

use anyhow::Result;
use outpost_hv::sched::sim::{Simulation, Work};
use outpost_hv::sched::{CpuSet, Kind, Nice, Policy, TaskId, Tuning, place_guest};

use super::probed::{Stage, VCPUS, latency as packet_latency, locks, shares};
use super::report::{Limit, Report, Row};
use crate::process::{self, Graceful};
use crate::setup::{self, Group};

const SECOND: u64 = 1_000_000_000;
const POLICIES: [(Policy, &str); 4] = [
    (Policy::Fair, "fair"),
    (Policy::Balance, "balance"),
    (Policy::Gang, "gang"),
    (Policy::Placed, "placed"),
];

/// `cargo xtask bench sched`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds that are simulated for each figure
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    seconds: u64,
    /// What the simulator's random numbers start from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only simulate
    #[arg(long)]
    skip_emulator: bool,
    /// How often the lock is run on the emulator with each policy; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Also write the rows to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Interrupted, or it could not be measured, or the report cannot be written.
pub fn run(arguments: &Args) -> Result<bool> {
    println!(
        "Simulated: 2 CPUs, {} s for each figure, seed {}. The service wants all of CPU 0, at nice 0 like the guest.",
        arguments.seconds, arguments.seed
    );
    let mut report = Report::new("sched");
    for (policy, name) in POLICIES {
        process::check_interrupted()?;
        locks(arguments, policy, name, &mut report);
        barrier(arguments, policy, name, &mut report);
    }
    for (policy, name) in POLICIES {
        process::check_interrupted()?;
        weights(arguments, policy, name, &mut report);
        latency(arguments, policy, name, &mut report);
    }
    for (policy, name) in POLICIES {
        process::check_interrupted()?;
        interactive(arguments, policy, name, &mut report);
    }
    if !arguments.skip_emulator {
        println!("\nOn QEMU's translator: a box of 2 CPUs, the probe with {VCPUS} vCPUs.");
        emulated(arguments, &mut report)?;
    }
    report.finish(arguments.report.as_deref())
}

fn emulated(arguments: &Args, report: &mut Report) -> Result<()> {
    setup::ensure(&[Group::Emulator, Group::FirmwareToolchain])?;
    let stage = Stage::build()?;
    // A signal ends the run that it finds, which leaves nothing behind.
    let _graceful = Graceful::new();
    let names = POLICIES.map(|(_, name)| name);
    locks::rows(&stage, &names, arguments.rounds, report)?;
    for name in names {
        shares::rows(&stage, name, report)?;
        packet_latency::rows(&stage, name, 0, report)?;
    }
    Ok(())
}

fn simulation(arguments: &Args, policy: Policy) -> Simulation {
    Simulation::new(policy, Tuning::default(), 2, arguments.seed)
}

/// A box of two CPUs whose guest's vCPUs have this work, where the box would let them run.
fn with_guest<const VCPUS: usize>(
    arguments: &Args,
    policy: Policy,
    tuning: Tuning,
    works: [Work; VCPUS],
) -> (Simulation, [TaskId; VCPUS]) {
    let (policy, places) = place_guest(policy, CpuSet::below(2), VCPUS);
    let mut simulation = Simulation::new(policy, tuning, 2, arguments.seed);
    let mut places = places.into_iter();
    let ids = works.map(|work| {
        let place = places.next().unwrap_or_default();
        simulation.add(Kind::Vcpu, Nice::default(), place, work)
    });
    (simulation, ids)
}

/// Two vCPUs, and a service that wants all it can get of CPU 0.
fn contended(arguments: &Args, policy: Policy, work: Work) -> (Simulation, [TaskId; 2], TaskId) {
    let (mut simulation, vcpus) = with_guest(arguments, policy, Tuning::default(), [work; 2]);
    let greedy = Work::BurnInPieces { piece_ns: 50_000 };
    let service = simulation.add(Kind::Service, Nice::default(), CpuSet::only(0), greedy);
    simulation.run(arguments.seconds * SECOND);
    (simulation, vcpus, service)
}

fn locks(arguments: &Args, policy: Policy, name: &str, report: &mut Report) {
    let work = Work::Lock {
        mean_outside_ns: 20_000,
        mean_inside_ns: 10_000,
    };
    let (mut simulation, vcpus, service) = contended(arguments, policy, work);
    let outcomes = vcpus.map(|id| simulation.outcome(id));
    let ran: u64 = outcomes.iter().map(|it| it.times.run_ns).sum();
    let in_vain: u64 = outcomes.iter().map(|it| it.spun_in_vain_ns).sum();
    let rounds: u64 = outcomes.iter().map(|it| it.rounds).sum();
    let row = Row::new(
        format!("simulated lock, {name}: guest time spun for a holder that does not run"),
        "%",
        percent(in_vain, ran),
    );
    report.add(match policy {
        Policy::Gang => row.limited(Limit::AtMost(5.0)),
        _ => row,
    });
    let seconds = arguments.seconds as f64;
    report.add(Row::new(
        format!("simulated lock, {name}: locks taken"),
        "1/s",
        rounds as f64 / seconds,
    ));
    let share = percent(
        simulation.outcome(service).times.run_ns,
        arguments.seconds * SECOND,
    );
    let row = Row::new(
        format!("simulated lock, {name}: the service's share of CPU 0"),
        "%",
        share,
    );
    report.add(row.limited(Limit::AtLeast(48.0)));
    if policy == Policy::Gang {
        let gang = simulation.gang();
        let lost = percent(gang.idle_lost_ns, 2 * arguments.seconds * SECOND);
        report.add(Row::new(
            "simulated lock, gang: idle lost to the gang, of both CPUs",
            "%",
            lost,
        ));
        let skew = gang.skew_ns as f64 / gang.slots.max(1) as f64 / 1e3;
        report.add(Row::new("simulated lock, gang: skew of a slot", "µs", skew));
        report.add(Row::new(
            "simulated lock, gang: rendezvous missed",
            "",
            gang.missed as f64,
        ));
    }
}

fn barrier(arguments: &Args, policy: Policy, name: &str, report: &mut Report) {
    let work = Work::Barrier { mean_ns: 200_000 };
    let (mut simulation, vcpus, _) = contended(arguments, policy, work);
    let outcomes = vcpus.map(|id| simulation.outcome(id));
    let rounds = outcomes.iter().map(|it| it.rounds).sum::<u64>() / 2;
    report.add(Row::new(
        format!("simulated barrier, {name}: barriers passed"),
        "1/s",
        rounds as f64 / arguments.seconds as f64,
    ));
}

/// A vCPU and a greedy service on each CPU.
fn weights(arguments: &Args, policy: Policy, name: &str, report: &mut Report) {
    for (guest, services) in [(0, 0), (0, 5), (-5, 10)] {
        let nice = |value| Nice::new(value).unwrap_or_default();
        let mut simulation = simulation(arguments, policy);
        let mut ids = Vec::new();
        for cpu in 0..2 {
            let only = CpuSet::only(cpu);
            ids.push(simulation.add(Kind::Vcpu, nice(guest), only, Work::Burn));
            let greedy = Work::BurnInPieces { piece_ns: 20_000 };
            simulation.add(Kind::Service, nice(services), only, greedy);
        }
        simulation.run(arguments.seconds * SECOND);
        let ran: u64 = ids
            .iter()
            .map(|id| simulation.outcome(*id).times.run_ns)
            .sum();
        let share = percent(ran, 2 * arguments.seconds * SECOND);
        let (ours, theirs) = (nice(guest).weight(), nice(services).weight());
        let due = percent(u64::from(ours), u64::from(ours + theirs));
        let mut row = Row::new(
            format!("simulated nice {guest}/{services}, {name}: the guest's share"),
            "%",
            share,
        )
        .beside("by weight", due);
        row.holds = (share - due).abs() <= 2.0;
        row.limit = Some(String::from("within 2"));
        report.add(row);
    }
}

/// Packets for a service while the guest burns every CPU, and while it sleeps.
fn latency(arguments: &Args, policy: Policy, name: &str, report: &mut Report) {
    fn measure<const VCPUS: usize>(arguments: &Args, policy: Policy) -> f64 {
        let burn = [Work::Burn; VCPUS];
        let (mut simulation, _) = with_guest(arguments, policy, Tuning::default(), burn);
        let work = Work::Packets {
            mean_apart_ns: 200_000,
            cost_ns: 15_000,
        };
        let stack = simulation.add(Kind::Service, Nice::default(), CpuSet::only(0), work);
        simulation.run(arguments.seconds * SECOND);
        simulation.outcome(stack).percentile_ns(99) as f64 / 1e6
    }
    let (idle, busy) = (
        measure::<0>(arguments, policy),
        measure::<2>(arguments, policy),
    );
    let mut row = Row::new(
        format!("simulated packet latency, {name}, guest burning: p99"),
        "ms",
        busy,
    )
    .beside("guest asleep", idle);
    row.holds = busy <= idle + 2.0;
    row.limit = Some(String::from("at most 2 more"));
    report.add(row);
}

/// A vCPU that sleeps, wakes every 2 ms or so and has 0.05 ms to do, beside vCPUs that burn, so that each CPU has two tasks already: from its wake-up until it has done
/// that. With two of those, a greedy service is on each CPU as well. Beside it the same where who wakes waits for the end of the others' slices.
fn interactive(arguments: &Args, policy: Policy, name: &str, report: &mut Report) {
    let tunings = [
        Tuning::default(),
        // A minute: no task is ever so far behind.
        Tuning {
            wake_ns: 60 * SECOND,
            ..Tuning::default()
        },
    ];
    let rests = Work::Packets {
        mean_apart_ns: 2_000_000,
        cost_ns: 50_000,
    };
    let ms = |ns: u64| ns as f64 / 1e6;
    let [with, without] = tunings.map(|tuning| {
        let works = [Work::Burn, Work::Burn, rests];
        let (mut simulation, [_, _, vcpu]) = with_guest(arguments, policy, tuning, works);
        for cpu in 0..2 {
            let greedy = Work::BurnInPieces { piece_ns: 50_000 };
            simulation.add(Kind::Service, Nice::default(), CpuSet::only(cpu), greedy);
        }
        simulation.run(arguments.seconds * SECOND);
        ms(simulation.outcome(vcpu).percentile_ns(99))
    });
    report.add(
        Row::new(
            format!("simulated interactive vCPU, {name}, two vCPUs and services burning: p99"),
            "ms",
            with,
        )
        .beside("without preemption", without),
    );
    let [with, without] = tunings.map(|tuning| {
        let works = [Work::Burn, Work::Burn, Work::Burn, Work::Burn, rests];
        let (mut simulation, [_, _, _, _, vcpu]) = with_guest(arguments, policy, tuning, works);
        simulation.run(arguments.seconds * SECOND);
        ms(simulation.outcome(vcpu).percentile_ns(99))
    });
    report.add(
        Row::new(
            format!("simulated interactive vCPU, {name}, four vCPUs burning: p99"),
            "ms",
            with,
        )
        .beside("without preemption", without),
    );
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}
