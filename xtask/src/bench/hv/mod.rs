//! `cargo xtask bench hv`: the same kernel, ramdisk and work in the same emulated machine, directly on its CPUs, under KVM in
//! Debian's kernel, and under Outpost. Rounds go through all three, so that what slows this machine slows them alike. Then the
//! scheduler, with the probe as guest (`bench/probed`).

pub mod load;
pub mod marks;
mod measure;
mod rows;
pub mod ways;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use outpost_config::Services;

use super::probed::{Stage, VCPUS, cost, forwarding, latency, locks, shares};
use super::report::Report;
use crate::image::{self, GuestFiles};
use crate::process::{self, Graceful, Scratch};
use crate::setup::{self, Group};
use crate::{firmware, progress};
use rows::{Runs, print_run};
use ways::{Bench, Way};

/// The bench guest and the host that runs it under KVM: folders of `guests/`.
const GUEST: &str = "bench";
const KVM_HOST: &str = "kvm";
/// Times that each piece of work is done in a run, after once to warm up.
const REPETITIONS: u32 = 3;
/// What md5sum works on, in MiB.
const WORK_MIB: u32 = 64;

/// How often a run is repeated in which the emulator lost the guest's state.
const AGAIN: u32 = 3;

/// `cargo xtask bench hv`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How often each way is run, and the lock of each policy; of everything measured the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only these figures (may be given more than once)
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Figure>,
    /// Leave KVM out: the rows that compare with it are then missing, but those beside direct are there
    #[arg(long)]
    skip_kvm: bool,
    /// The guest's CPUs; the direct machine has as many
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    vcpus: u8,
    /// CPUs of the emulated machine that KVM and Outpost have; if no more than its own, Outpost's guest runs on all of them
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=17))]
    cpus: u8,
    /// The guest's memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(256..=2048))]
    memory: u32,
    /// Seconds that the guest idles
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..=600))]
    idle: u32,
    /// Take a feature from the emulated CPU, for all three ways (may be given more than once): erms and fsrm, which the box hides from its guest there
    #[arg(long, value_name = "FEATURE", value_parser = cpu_feature)]
    without: Vec<String>,
    /// Also write the rows to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Figure {
    /// Time and exits to the first process, and nested tables
    Boot,
    /// Exits of a guest that does nothing
    Idle,
    /// md5sum of a file in memory, on one vCPU
    Md5sum,
    /// The same through a pipe, on all vCPUs
    Pipe,
    /// The probe: instructions of an exit
    Exits,
    /// The probe: spinning for a lock whose holder does not run, by policy
    Lock,
    /// The probe: CPU time of guest and services by nice value
    Shares,
    /// The probe: packets through the box while the guest spins
    Latency,
    /// The probe: forwarding and console while the guest spins with interrupts off
    Spin,
}

impl Figure {
    /// Whether the guest is the probe.
    fn is_probes(self) -> bool {
        matches!(
            self,
            Figure::Exits | Figure::Lock | Figure::Shares | Figure::Latency | Figure::Spin
        )
    }
}

/// A name as QEMU has them.
fn cpu_feature(name: &str) -> Result<String, String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match !name.is_empty() && name.bytes().all(is_name) {
        true => Ok(name.to_owned()),
        false => Err("a CPU feature has a name such as erms".to_owned()),
    }
}

impl Args {
    /// What is taken from the CPU, in QEMU's notation.
    fn cpu_features(&self) -> Vec<String> {
        self.without
            .iter()
            .map(|name| format!("{name}=off"))
            .collect()
    }

    /// The same for people.
    fn without_words(&self) -> String {
        match self.without.is_empty() {
            true => String::new(),
            false => format!(" without {}", self.without.join(", ")),
        }
    }

    /// All CPUs, where the guest needs them all. The box would keep several vCPUs off the first one on this emulator.
    fn all_cpus(&self) -> Option<u8> {
        (self.cpus <= self.vcpus).then_some(self.cpus)
    }

    fn wants(&self, figure: Figure) -> bool {
        self.only.is_empty() || self.only.contains(&figure)
    }

    fn ways(&self) -> Vec<Way> {
        let mut ways = vec![Way::Direct];
        if !self.skip_kvm {
            ways.push(Way::Kvm);
        }
        ways.push(Way::Outpost);
        // Exits need no direct run.
        if !self.only.is_empty()
            && self
                .only
                .iter()
                .all(|it| *it == Figure::Idle || it.is_probes())
        {
            ways.retain(|way| *way != Way::Direct);
        }
        ways
    }

    /// The words that tell the guest what to do.
    fn words(&self, idles: bool) -> String {
        let times = |figure| match self.wants(figure) {
            true => REPETITIONS,
            false => 0,
        };
        let idle = match idles && self.wants(Figure::Idle) {
            true => self.idle,
            false => 0,
        };
        format!(
            " bench.idle={idle} bench.md5sum={} bench.pipe={} bench.mib={WORK_MIB}",
            times(Figure::Md5sum),
            times(Figure::Pipe)
        )
    }
}

/// Runs the command.
///
/// # Errors
/// It could not be measured, or the report cannot be written.
pub fn run(arguments: &Args) -> Result<bool> {
    let config = ways::box_config(
        GUEST,
        arguments.vcpus,
        arguments.memory,
        arguments.all_cpus(),
    )?;
    setup::ensure(&[Group::Emulator, Group::FirmwareToolchain])?;
    let all = arguments.only.is_empty();
    ensure!(
        arguments.without.is_empty() || !(all || arguments.only.iter().any(|it| it.is_probes())),
        "--without is for the rows of the bench guest: name them as well, with --only boot, idle, md5sum or pipe"
    );
    let linux = all || arguments.only.iter().any(|it| !it.is_probes());
    let probes = all || arguments.only.iter().any(|it| it.is_probes());
    let guest = match linux {
        true => Some(files(GUEST)?),
        false => None,
    };
    let probe = Stage::guest()?;
    let pins: Vec<_> = guest.iter().chain([&probe]).map(GuestFiles::pin).collect();
    let efi = firmware::build(&pins)?.bytes;
    // A signal ends the run that it finds, which leaves nothing behind.
    let _graceful = Graceful::new();
    let mut report = Report::new(format!("hv{}", arguments.without_words()));
    if let Some(guest) = guest {
        let scratch = Scratch::new("bench-hv")?;
        let bench = prepare(arguments, guest, &efi, config, &scratch)?;
        let runs = run_all(arguments, &bench)?;
        println!();
        rows::add(arguments, &runs, &mut report)?;
    }
    if probes {
        println!(
            "\nThe probe, with {VCPUS} vCPUs in a box of 2 CPUs, but for an exit's instructions, with one of each:"
        );
        scheduling(arguments, &Stage::new(efi, probe), &mut report)?;
    }
    report.finish(arguments.report.as_deref())
}

/// The rows of the probe.
fn scheduling(arguments: &Args, stage: &Stage, report: &mut Report) -> Result<()> {
    let by_default = Services::default().nice;
    if arguments.wants(Figure::Exits) {
        let kvm = match arguments.skip_kvm {
            true => None,
            false => Some(files(KVM_HOST)?),
        };
        cost::rows(stage, kvm.as_ref(), report)?;
    }
    if arguments.wants(Figure::Lock) {
        let policies = ["fair", "balance", "gang"];
        locks::rows(stage, &policies, arguments.rounds, report)?;
    }
    if arguments.wants(Figure::Shares) {
        shares::rows(stage, "balance", report)?;
    }
    if arguments.wants(Figure::Latency) {
        for policy in ["balance", "gang"] {
            latency::rows(stage, policy, by_default, report)?;
        }
    }
    if arguments.wants(Figure::Spin) {
        for (services_nice, limited) in [(0, false), (by_default, true)] {
            // What is only shown is shown by one.
            let rounds = if limited { arguments.rounds } else { 1 };
            forwarding::rows(stage, "balance", services_nice, limited, rounds, report)?;
        }
    }
    Ok(())
}

/// All rounds of the bench guest.
fn run_all(arguments: &Args, bench: &Bench) -> Result<Runs> {
    println!(
        "QEMU's translator{}, {} CPUs; the guest has {} vCPUs and {} MiB. Medians; rounds: {}.",
        arguments.without_words(),
        arguments.cpus,
        arguments.vcpus,
        arguments.memory,
        arguments.rounds
    );
    let mut runs = Runs::default();
    for round in 1..=arguments.rounds {
        for way in arguments.ways() {
            process::check_interrupted()?;
            let what = format!("round {round} of {}, {}", arguments.rounds, way.name());
            let spinner = progress::spinner(what.clone());
            let doing = |work: &str| spinner.set_message(format!("{what}: {work}"));
            let mut left = AGAIN;
            let seen = loop {
                let result = measure::measure(bench, way, &doing);
                match result.as_ref().map_err(|why| lost_state(bench, why)) {
                    Err(Some(stopped)) if left > 0 => {
                        left -= 1;
                        runs.lost += 1;
                        spinner.suspend(|| {
                            println!("{stopped}: QEMU's translator loses state of its first CPU (docs/hv.md), so this run is made again");
                        });
                    }
                    _ => break result?,
                }
            };
            spinner.finish_and_clear();
            print_run(round, way, &seen);
            runs.add(way, seen)?;
        }
    }
    Ok(runs)
}

/// Why the guest was stopped, if that may be the emulator's doing: it spoils the state of its first CPU, and so a guest of several vCPUs of which one may run there.
fn lost_state<'e>(bench: &Bench, why: &'e anyhow::Error) -> Option<&'e measure::GuestStopped> {
    let stopped: &measure::GuestStopped = why.downcast_ref()?;
    (bench.vcpus > 1 && stopped.lost_state).then_some(stopped)
}

fn files(name: &str) -> Result<GuestFiles> {
    image::guest_files(name)?.with_context(|| format!("the guest {name} has no files"))
}

fn prepare(
    arguments: &Args,
    plain: GuestFiles,
    efi: &[u8],
    config: String,
    scratch: &Scratch,
) -> Result<Bench> {
    let kvm = match arguments.skip_kvm {
        true => None,
        false => Some(files(KVM_HOST)?),
    };
    if let Some(kvm) = &kvm {
        ensure!(
            kvm.kernel == plain.kernel,
            "guests/{KVM_HOST} and guests/{GUEST} have different kernels; record both anew with `cargo xtask guest lock`"
        );
    }
    let guest = GuestFiles {
        command_line: plain.command_line.clone() + &arguments.words(true),
        ..plain.clone()
    };
    let image = scratch.path().join("outpost.img");
    image::assemble(efi, &config, Some(&guest.slot()?), &image)?;
    Ok(Bench {
        direct_cmdline: plain.command_line + &arguments.words(false),
        guest,
        kvm,
        image,
        config,
        cpus: arguments.cpus,
        vcpus: arguments.vcpus,
        memory: arguments.memory,
        cpu_features: arguments.cpu_features(),
    })
}
