//! What vCPUs and scheduler have counted, for the pages and the console.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;

use outpost_hv::sched::{Policy, TaskStatistics};
use outpost_net::report::Exposition;
use serde_json::{Value, json};

use crate::appliance::cpus::Counted;
use crate::appliance::{cpus, guest};
use crate::machine::cpu;

/// Each task with its name.
fn named(counted: &Counted) -> Vec<(String, &TaskStatistics)> {
    let vcpus = counted.vcpus.iter().enumerate();
    let loads = counted.loads.iter();
    core::iter::once((String::from("network"), &counted.network))
        .chain(vcpus.map(|(vcpu, task)| (format!("vcpu{vcpu}"), task)))
        .chain(loads.map(|(cpu, task)| (format!("load{cpu}"), task)))
        .collect()
}

/// The same for the telemetry.
pub fn report() -> Value {
    let Some(counted) = cpus::counted() else {
        return Value::Null;
    };
    let tasks: serde_json::Map<_, _> = named(&counted)
        .into_iter()
        .map(|(name, task)| {
            let times = json!({
                "run_ns": task.run_ns,
                "wait_ns": task.wait_ns,
                "longest_wait_ns": task.longest_wait_ns,
                "wakes": task.wakes,
                "migrations": task.migrations,
            });
            (name, times)
        })
        .collect();
    let gang = &counted.gang;
    json!({
        "policy": counted.policy.to_string(),
        "asleep_ns": cpu::asleep_ns().collect::<Vec<_>>(),
        "tasks": tasks,
        "gang": {
            "slots": gang.slots,
            "missed": gang.missed,
            "broken": gang.broken,
            "fallbacks": gang.fallbacks,
            "skew_ns": gang.skew_ns,
            "longest_skew_ns": gang.longest_skew_ns,
            "idle_ns": gang.idle_lost_ns,
        },
    })
}

/// What each vCPU did, and what the scheduler did with it, for `/metrics`.
pub fn append(out: &mut Exposition) {
    let exits = guest::exits_by_vcpu();
    for (vcpu, counts) in exits.iter().enumerate() {
        let vcpu = vcpu.to_string();
        for (reason, count) in counts.iter() {
            out.counter(
                "outpost_guest_vcpu_exits_total",
                "Times that a vCPU left for the hypervisor, by reason.",
                &[("vcpu", &vcpu), ("reason", reason)],
                count,
            );
        }
    }
    for (cpu, asleep_ns) in cpu::asleep_ns().enumerate() {
        out.counter(
            "outpost_cpu_asleep_nanoseconds_total",
            "How long a CPU of the box had nothing to do and slept.",
            &[("cpu", &cpu.to_string())],
            asleep_ns,
        );
    }
    let Some(counted) = cpus::counted() else {
        return;
    };
    let tasks = named(&counted);
    type Part = fn(&TaskStatistics) -> u64;
    let parts: [(&str, &str, Part); 4] = [
        (
            "outpost_task_run_nanoseconds_total",
            "CPU time that a task had.",
            |task| task.run_ns,
        ),
        (
            "outpost_task_wait_nanoseconds_total",
            "How long a task could have run and had no CPU.",
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
        for (task, statistics) in &tasks {
            out.counter(name, help, &[("task", task)], part(statistics));
        }
    }
    for (task, statistics) in &tasks {
        out.gauge(
            "outpost_task_longest_wait_nanoseconds",
            "The longest time that a task could have run and had no CPU.",
            &[("task", task)],
            statistics.longest_wait_ns,
        );
    }
    let gang = &counted.gang;
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
pub fn describe() -> String {
    let mut text = String::new();
    for (vcpu, counts) in guest::exits_by_vcpu().iter().enumerate() {
        let _ = writeln!(text, "vCPU {vcpu}: {counts}");
    }
    let Some(counted) = cpus::counted() else {
        return text;
    };
    let ms = |ns: u64| ns / 1_000_000;
    let _ = writeln!(
        text,
        "policy {}; network ran {} ms, waited {} ms (at most {} us)",
        counted.policy,
        ms(counted.network.run_ns),
        ms(counted.network.wait_ns),
        counted.network.longest_wait_ns / 1000
    );
    for (vcpu, task) in counted.vcpus.iter().enumerate() {
        let _ = writeln!(
            text,
            "vCPU {vcpu} ran {} ms, waited {} ms (at most {} us), woke {} times, moved {} times",
            ms(task.run_ns),
            ms(task.wait_ns),
            task.longest_wait_ns / 1000,
            task.wakes,
            task.migrations
        );
    }
    for (cpu, task) in &counted.loads {
        let _ = writeln!(
            text,
            "load on CPU {cpu} ran {} ms, waited {} ms (at most {} us; [services] load: for measurement)",
            ms(task.run_ns),
            ms(task.wait_ns),
            task.longest_wait_ns / 1000
        );
    }
    let gang = &counted.gang;
    if counted.policy == Policy::Gang {
        let _ = writeln!(
            text,
            "gang: {} starts, {} missed, {} broken, {} fallbacks, skew {} us on average (at most {} us), idle {} ms",
            gang.slots,
            gang.missed,
            gang.broken,
            gang.fallbacks,
            gang.skew_ns / gang.slots.max(1) / 1000,
            gang.longest_skew_ns / 1000,
            ms(gang.idle_lost_ns)
        );
    }
    text
}
