//! The gang's rendezvous and its patience: what every CPU runs while services keep some of them from their vCPUs, and what is counted of it.

use super::super::sim::{Simulation, Work};
use super::super::*;
use alloc::vec::Vec;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const NOBODY: CpuSet = CpuSet(0);

/// As many CPUs as vCPUs, each with a vCPU and a service of its own, all at nice 0. The vCPUs can run, and the services sleep.
fn gang<const CPUS: usize>() -> (Scheduler, [TaskId; CPUS], [TaskId; CPUS]) {
    let mut scheduler = Scheduler::new(Policy::Gang, Tuning::default(), CPUS);
    let [vcpus, services] = [Kind::Vcpu, Kind::Service].map(|kind| {
        core::array::from_fn(|cpu| scheduler.add(kind, Nice::default(), CpuSet::only(cpu)))
    });
    for vcpu in vcpus {
        scheduler.wake(0, vcpu);
    }
    (scheduler, vcpus, services)
}

fn runs(task: TaskId, until: u64, kick: CpuSet) -> Decision {
    Decision {
        run: Some(task),
        until: Some(until),
        kick,
    }
}

/// CPU 0 begins a slot, and the others are there at once.
fn open<const CPUS: usize>(scheduler: &mut Scheduler, vcpus: [TaskId; CPUS]) {
    let others = CpuSet::below(CPUS).without(CpuSet::only(0));
    for (cpu, vcpu) in vcpus.into_iter().enumerate() {
        let kick = if cpu == 0 { others } else { NOBODY };
        assert_eq!(scheduler.schedule(0, cpu), runs(vcpu, 4 * MS, kick));
    }
}

/// What became of the slots: how many began, whose rendezvous were missed, which were broken.
fn counted(scheduler: &Scheduler) -> (u64, u64, u64) {
    let gang = scheduler.gang_statistics();
    (gang.slots, gang.missed, gang.broken)
}

/// A slot, a turn of the services, and another slot, which CPU 1 begins at 8 ms.
fn begin_the_second_slot() -> (Scheduler, [TaskId; 2], [TaskId; 2]) {
    let (mut scheduler, vcpus, services) = gang::<2>();
    for service in services {
        scheduler.wake(0, service);
    }
    open(&mut scheduler, vcpus);
    for (cpu, service) in services.into_iter().enumerate() {
        let turn = runs(service, 8 * MS, NOBODY);
        assert_eq!(scheduler.schedule(4 * MS, cpu), turn);
    }
    let begins = runs(vcpus[1], 12 * MS, CpuSet::only(0));
    assert_eq!(scheduler.schedule(8 * MS, 1), begins);
    (scheduler, vcpus, services)
}

#[test]
fn a_slot_begins_short_handed_when_a_piece_of_a_service_has_not_ended() {
    let Tuning {
        rendezvous_ns,
        patience_ns,
        ..
    } = Tuning::default();
    for (late, missed) in [
        (0, 0),
        (rendezvous_ns, 0),
        (rendezvous_ns + 1, 1),
        (patience_ns - 1, 1),
        // However long the piece is: the service gives the CPU back when it ends, so that there is nobody to stop for.
        (3 * patience_ns, 1),
    ] {
        let (mut scheduler, vcpus, services) = begin_the_second_slot();
        let comes = 8 * MS + late;
        // CPU 1 has its vCPU from the beginning to the end; CPU 0 the service until the piece ends, and then its vCPU.
        let on = runs(vcpus[1], 12 * MS, NOBODY);
        assert_eq!(scheduler.schedule(comes, 1), on, "{late}");
        assert_eq!(scheduler.current(0), Some(services[0]), "{late}");
        let at_last = runs(vcpus[0], 12 * MS, NOBODY);
        assert_eq!(scheduler.schedule(comes, 0), at_last, "{late}");
        assert_eq!(counted(&scheduler), (2, missed, 0), "{late}");
        assert_eq!(scheduler.gang_statistics().longest_skew_ns, late);
        // It is no longer for that. Who took more has so much less of the next turn.
        let less = runs(services[0], 16 * MS - 2 * late, NOBODY);
        assert_eq!(scheduler.schedule(12 * MS, 0), less, "{late}");
        let turn = runs(services[1], 16 * MS, NOBODY);
        assert_eq!(scheduler.schedule(12 * MS, 1), turn, "{late}");
    }
}

#[test]
fn a_service_that_keeps_a_cpu_beyond_the_patience_ends_the_slot() {
    let (mut scheduler, vcpus, services) = gang::<3>();
    scheduler.wake(0, services[1]);
    open(&mut scheduler, vcpus);
    // The first CPU's service wakes; its CPU is the only one that notices.
    assert_eq!(scheduler.wake(MS, services[0]), CpuSet::only(0));
    let patient = runs(services[0], 1_200 * US, NOBODY);
    for at in [MS, 1_100 * US, 1_200 * US - 1] {
        assert_eq!(scheduler.schedule(at, 0), patient);
        for cpu in [1, 2] {
            let on = runs(vcpus[cpu], 4 * MS, NOBODY);
            assert_eq!(scheduler.schedule(at, cpu), on);
        }
    }
    assert_eq!(counted(&scheduler), (1, 0, 0));
    // It wants more: it gets what is its due, and the others are told to stop.
    let broken = runs(services[0], 2 * MS, CpuSet(0b110));
    assert_eq!(scheduler.schedule(1_200 * US, 0), broken);
    assert_eq!(counted(&scheduler), (1, 0, 1));
    // Where a service has waited, it runs; where there is none, nothing does.
    let next = runs(services[1], 2_410 * US, NOBODY);
    assert_eq!(scheduler.schedule(1_205 * US, 1), next);
    let nothing = Decision::default();
    assert_eq!(scheduler.schedule(1_205 * US, 2), nothing);
    assert_eq!(scheduler.block(1_900 * US, 1), CpuSet(0b101));
    assert_eq!(scheduler.schedule(1_900 * US, 1), nothing);
    assert_eq!(scheduler.schedule(1_905 * US, 2), nothing);
    // As soon as the vCPU is due, all of them run.
    let begins = runs(vcpus[0], 6 * MS, CpuSet(0b110));
    assert_eq!(scheduler.schedule(2 * MS, 0), begins);
    for cpu in [1, 2] {
        let on = runs(vcpus[cpu], 6 * MS, NOBODY);
        assert_eq!(scheduler.schedule(2_005 * US, cpu), on);
    }
    assert_eq!(counted(&scheduler), (2, 0, 1));
    assert_eq!(scheduler.gang_statistics().idle_lost_ns, 905 * US);
}

#[test]
fn a_service_that_sleeps_again_ends_no_slot() {
    let patience = Tuning::default().patience_ns;
    // The second is one piece, which nothing interrupts: when the CPU asks, the vCPU can run again.
    for piece in [patience - 1, 3 * patience] {
        let (mut scheduler, vcpus, services) = gang::<2>();
        open(&mut scheduler, vcpus);
        // Each time the patience is as long.
        for wakes in [MS, 2 * MS, 3 * MS] {
            assert_eq!(scheduler.wake(wakes, services[0]), CpuSet::only(0));
            let patient = runs(services[0], wakes + patience, NOBODY);
            assert_eq!(scheduler.schedule(wakes, 0), patient);
            let sleeps = wakes + piece;
            assert_eq!(scheduler.block(sleeps, 0), NOBODY);
            let on = [0, 1].map(|cpu| scheduler.schedule(sleeps, cpu));
            assert_eq!(on, vcpus.map(|vcpu| runs(vcpu, 4 * MS, NOBODY)));
        }
        assert_eq!(counted(&scheduler), (1, 0, 0), "{piece}");
    }
}

#[test]
fn two_services_have_one_patience_between_them() {
    let (mut scheduler, vcpus, services) = gang::<3>();
    open(&mut scheduler, vcpus);
    for (at, cpu, wakes) in [(MS, 0, true), (1_100 * US, 1, true), (1_150 * US, 0, false)] {
        if wakes {
            scheduler.wake(at, services[cpu]);
        }
        let patient = runs(services[cpu], 1_200 * US, NOBODY);
        assert_eq!(scheduler.schedule(at, cpu), patient);
    }
    // The first one leaves, but the gang has not been whole since it came.
    scheduler.block(1_190 * US, 0);
    let on = runs(vcpus[0], 4 * MS, NOBODY);
    assert_eq!(scheduler.schedule(1_190 * US, 0), on);
    let broken = runs(services[1], 2_200 * US, CpuSet(0b101));
    assert_eq!(scheduler.schedule(1_200 * US, 1), broken);
    assert_eq!(counted(&scheduler), (1, 0, 1));
}

#[test]
fn a_service_that_ran_into_a_slot_has_not_woken_in_it() {
    let (mut scheduler, vcpus, services) = begin_the_second_slot();
    let packets = scheduler.add(Kind::Service, Nice::default(), CpuSet::only(0));
    let on = runs(vcpus[0], 12 * MS, NOBODY);
    assert_eq!(scheduler.schedule(8 * MS + 20 * US, 0), on);
    // One that did wake takes the CPU for a moment. The other one's turn comes after the slot all the same.
    scheduler.wake(9 * MS, packets);
    assert_eq!(scheduler.schedule(9 * MS, 0).run, Some(packets));
    scheduler.block(9 * MS + 30 * US, 0);
    assert_eq!(scheduler.schedule(9 * MS + 30 * US, 0), on);
    assert_eq!(scheduler.schedule(12 * MS, 0).run, Some(services[0]));
    assert_eq!(counted(&scheduler), (2, 0, 0));
}

#[test]
fn a_vcpu_that_wakes_in_a_slot_has_missed_no_rendezvous() {
    let (mut scheduler, vcpus, _) = gang::<3>();
    assert_eq!(scheduler.schedule(0, 2).run, Some(vcpus[2]));
    scheduler.block(0, 2);
    for (cpu, vcpu) in vcpus.into_iter().enumerate().take(2) {
        assert_eq!(scheduler.schedule(4 * MS, cpu).run, Some(vcpu));
    }
    assert!(scheduler.wake(5 * MS, vcpus[2]).has(2));
    let joins = runs(vcpus[2], 8 * MS, NOBODY);
    assert_eq!(scheduler.schedule(5 * MS, 2), joins);
    let gang = scheduler.gang_statistics();
    assert_eq!((gang.missed, gang.skew_ns), (0, 0), "{gang:?}");
}

/// Two vCPUs with this work on CPUs of their own, and services beside them, for ten seconds.
fn simulated(work: Work, services: &[(usize, Work)]) -> (Simulation, [TaskId; 2], Vec<TaskId>) {
    let mut box_ = Simulation::new(Policy::Gang, Tuning::default(), 2, 0x5EED);
    let mut add = |kind, cpu, work| box_.add(kind, Nice::default(), CpuSet::only(cpu), work);
    let vcpus = [0, 1].map(|cpu| add(Kind::Vcpu, cpu, work));
    let services = services.iter();
    let services = services.map(|(cpu, work)| add(Kind::Service, *cpu, *work));
    let services = services.collect();
    box_.run(10 * SECOND);
    (box_, vcpus, services)
}

/// A task's share of its CPU, in percent.
fn share(box_: &mut Simulation, id: TaskId) -> f64 {
    box_.outcome(id).times.run_ns as f64 / (10 * SECOND) as f64 * 100.0
}

#[test]
fn long_pieces_miss_rendezvous_and_shares_stay_as_they_are() {
    let [long, short] = [190 * US, 30 * US].map(|piece_ns| Work::BurnInPieces { piece_ns });
    for (pieces, misses) in [(long, true), (short, false)] {
        let (mut box_, vcpus, services) = simulated(Work::Burn, &[(0, pieces), (1, short)]);
        let gang = box_.gang();
        assert_eq!(gang.missed > 0, misses, "{gang:?}");
        assert_eq!(gang.broken, 0, "{gang:?}");
        assert!(gang.missed < gang.slots, "{gang:?}");
        for id in vcpus.into_iter().chain(services) {
            let share = share(&mut box_, id);
            assert!((share - 50.0).abs() < 2.0, "{id:?}: {share}%");
        }
    }
}

#[test]
fn a_service_that_often_breaks_slots_starves_nobody() {
    let often = Work::Packets {
        mean_apart_ns: 200 * US,
        cost_ns: 80 * US,
    };
    let (mut box_, vcpus, services) = simulated(Work::Burn, &[(0, often)]);
    let gang = box_.gang();
    assert!(gang.broken > 100 && gang.missed == 0, "{gang:?}");
    // The service has what it wants, which is less than half, and the vCPU beside it the rest, but for what the gang cost.
    let wants = share(&mut box_, services[0]);
    assert!((wants - 40.0).abs() < 2.0, "{wants}%");
    for (id, least) in vcpus.into_iter().zip([55.0, 95.0]) {
        let outcome = box_.outcome(id);
        assert!(outcome.times.longest_wait_ns < 10 * MS, "{outcome:?}");
        let share = share(&mut box_, id);
        assert!(share > least, "{share}%");
    }
}

#[test]
fn a_gang_beside_short_pieces_or_none_misses_and_breaks_nothing() {
    let barrier = Work::Barrier { mean_ns: 200 * US };
    let lock = Work::Lock {
        mean_outside_ns: 20 * US,
        mean_inside_ns: 10 * US,
    };
    let greedy = Work::BurnInPieces { piece_ns: 50 * US };
    let seldom = Work::Packets {
        mean_apart_ns: 2_500 * US,
        cost_ns: 30 * US,
    };
    for work in [Work::Burn, barrier, lock] {
        for services in [&[][..], &[(0, greedy)], &[(0, seldom)]] {
            let (box_, ..) = simulated(work, services);
            let gang = box_.gang();
            assert!(gang.slots > 1_000, "{gang:?}");
            assert_eq!((gang.missed, gang.broken), (0, 0), "{gang:?}");
        }
    }
}
