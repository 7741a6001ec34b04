//! What vCPUs and scheduler have counted, for the pages and the console.

use core::fmt::{self, Write};

use outpost::json;
use outpost_hv::sched::{GangStatistics, Policy, TaskStatistics};
use outpost_net::report::Exposition;
use serde::{Serialize, Serializer};

use crate::appliance::cpus::{Counted, Task};
use crate::appliance::guest;
use crate::machine::cpu;

/// What the scheduler has counted, for the telemetry.
#[derive(Serialize)]
pub struct Report<'a> {
    #[serde(serialize_with = "json::as_text")]
    policy: Policy,
    asleep_ns: Asleep,
    tasks: Tasks<'a>,
    gang: GangStatistics,
}

/// How long each CPU has slept.
struct Asleep;

impl Serialize for Asleep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(cpu::asleep_ns())
    }
}

struct Tasks<'a>(&'a Counted);

impl Serialize for Tasks<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.tasks())
    }
}

impl Serialize for Task {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Report<'_> {
    /// Of what has been counted.
    pub fn new(counted: &Counted) -> Report<'_> {
        Report {
            policy: counted.policy(),
            asleep_ns: Asleep,
            tasks: Tasks(counted),
            gang: *counted.gang(),
        }
    }
}

/// What each vCPU did, and what the scheduler did with it, for `/metrics`.
pub fn append(out: &mut Exposition, counted: Option<&Counted>) {
    let exits = guest::exits_by_vcpu();
    for (vcpu, counts) in exits.iter().enumerate() {
        for (reason, count) in counts.iter() {
            out.counter(
                "outpost_guest_vcpu_exits_total",
                "Times that a vCPU left for the hypervisor, by reason.",
                &[("vcpu", &vcpu), ("reason", &reason)],
                count,
            );
        }
    }
    for (cpu, asleep_ns) in cpu::asleep_ns().enumerate() {
        out.counter(
            "outpost_cpu_asleep_nanoseconds_total",
            "How long a CPU of the box had nothing to do and slept.",
            &[("cpu", &cpu)],
            asleep_ns,
        );
    }
    let Some(counted) = counted else {
        return;
    };
    type Part = fn(&TaskStatistics) -> u64;
    let parts: [(&str, &str, Part); 4] = [
        (
            "outpost_task_run_nanoseconds_total",
            "CPU time that a task had.",
            |task| task.run_ns,
        ),
        (
            "outpost_task_wait_nanoseconds_total",
            "How long a task could have run and had no CPU: a vCPU's steal time.",
            |task| task.wait_ns,
        ),
        (
            "outpost_task_wakes_total",
            "Times that a task woke from its rest.",
            |task| task.wakes,
        ),
        (
            "outpost_task_migrations_total",
            "Times that a task moved to another CPU.",
            |task| task.migrations,
        ),
    ];
    for (name, help, part) in parts {
        for (task, statistics) in counted.tasks() {
            out.counter(name, help, &[("task", &task)], part(statistics));
        }
    }
    for (task, statistics) in counted.tasks() {
        out.gauge(
            "outpost_task_longest_wait_nanoseconds",
            "The longest time that a task could have run and had no CPU.",
            &[("task", &task)],
            statistics.longest_wait_ns,
        );
    }
    let gang = counted.gang();
    for (name, help, value) in [
        (
            "outpost_gang_slots_total",
            "Times that the guest's vCPUs were started together.",
            gang.slots,
        ),
        (
            "outpost_gang_missed_total",
            "vCPUs that came too late to such a start.",
            gang.missed,
        ),
        (
            "outpost_gang_broken_total",
            "Starts that ended early for a service.",
            gang.broken,
        ),
        (
            "outpost_gang_fallbacks_total",
            "Times that the vCPUs did not fit and were scheduled one by one.",
            gang.fallbacks,
        ),
        (
            "outpost_gang_skew_nanoseconds_total",
            "Between the first vCPU of a start and the last.",
            gang.skew_ns,
        ),
        (
            "outpost_gang_idle_nanoseconds_total",
            "CPU time left unused so that vCPUs could start together.",
            gang.idle_lost_ns,
        ),
    ] {
        out.counter(name, help, &[], value);
    }
    out.gauge(
        "outpost_gang_longest_skew_nanoseconds",
        "The longest time between the first vCPU of a start and another.",
        &[],
        gang.longest_skew_ns,
    );
}

/// The same in lines for a person.
pub fn describe(out: &mut impl Write, counted: Option<&Counted>) -> fmt::Result {
    for (vcpu, counts) in guest::exits_by_vcpu().iter().enumerate() {
        writeln!(out, "vCPU {vcpu}: {counts}")?;
    }
    let Some(counted) = counted else {
        return Ok(());
    };
    let ms = |ns: u64| ns / 1_000_000;
    for (task, of) in counted.tasks() {
        let (ran, waited) = (ms(of.run_ns), ms(of.wait_ns));
        let at_most = of.longest_wait_ns / 1000;
        match task {
            Task::Network => writeln!(
                out,
                "policy {}; network ran {ran} ms, waited {waited} ms (at most {at_most} us)",
                counted.policy()
            )?,
            Task::Vcpu(vcpu) => writeln!(
                out,
                "vCPU {vcpu} ran {ran} ms, waited {waited} ms (at most {at_most} us), woke {} times, moved {} times",
                of.wakes, of.migrations
            )?,
            Task::Load(cpu) => writeln!(
                out,
                "load on CPU {cpu} ran {ran} ms, waited {waited} ms (at most {at_most} us; [services] load: for measurement)"
            )?,
        }
    }
    let gang = counted.gang();
    if counted.policy() == Policy::Gang {
        writeln!(
            out,
            "gang: {} starts, {} missed, {} broken, {} fallbacks, skew {} us on average (at most {} us), idle {} ms",
            gang.slots,
            gang.missed,
            gang.broken,
            gang.fallbacks,
            gang.skew_ns / gang.slots.max(1) / 1000,
            gang.longest_skew_ns / 1000,
            ms(gang.idle_lost_ns)
        )?;
    }
    Ok(())
}
