//! The policies against simulated work: weights, starvation, gangs, latency.

use super::sim::{Simulation, Work};
use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const POLICIES: [Policy; 4] = [Policy::Fair, Policy::Balance, Policy::Gang, Policy::Placed];

fn nice(value: i8) -> Nice {
    Nice::new(value).unwrap()
}

fn simulation(policy: Policy, cpus: usize) -> Simulation {
    Simulation::new(policy, Tuning::default(), cpus, 0x5EED)
}

#[test]
fn a_guest_gets_the_cpus_that_it_wants_or_that_are_left() {
    let cpus = |wanted: u64, there: usize, vcpus: usize, apart: bool| {
        guest_cpus(CpuSet::below(there), CpuSet(wanted), 0, vcpus, apart).0
    };
    // All but the services' where that is enough.
    assert_eq!(cpus(0, 2, 1, false), 0b10);
    assert_eq!(cpus(0, 4, 3, false), 0b1110);
    assert_eq!(cpus(0, 2, 2, false), 0b11);
    assert_eq!(cpus(0, 4, 4, false), 0b1111);
    assert_eq!(cpus(0, 1, 1, false), 0b1);
    // Apart, even where it is not; but somewhere they must run.
    assert_eq!(cpus(0, 2, 2, true), 0b10);
    assert_eq!(cpus(0, 4, 16, true), 0b1110);
    assert_eq!(cpus(0, 1, 2, true), 0b1);
    // What is wanted comes first, as far as it is there.
    assert_eq!(cpus(0b11, 2, 2, true), 0b11);
    assert_eq!(cpus(0b101, 2, 1, false), 0b1);
    assert_eq!(cpus(0b100, 2, 2, true), 0b10);
}

#[test]
fn each_vcpu_has_a_cpu_of_its_own_when_it_is_placed() {
    let placed = |allowed: u64, vcpus: usize| {
        let (policy, places) = place_guest(Policy::Placed, CpuSet(allowed), vcpus);
        (policy, places.iter().map(|set| set.0).collect::<Vec<_>>())
    };
    let own = |places: &[u64]| (Policy::Placed, places.to_vec());
    assert_eq!(placed(0b110, 2), own(&[0b10, 0b100]));
    assert_eq!(placed(0b1011, 2), own(&[0b1, 0b10]));
    assert_eq!(placed(0b1010_0001, 3), own(&[0b1, 0b10_0000, 0b1000_0000]));
    assert_eq!(placed(0b1, 0), own(&[]));
    // Too few: all of them for all, and no two wait for one while another is free.
    let shared = |places: &[u64]| (Policy::Balance, places.to_vec());
    assert_eq!(placed(0b110, 3), shared(&[0b110; 3]));
    assert_eq!(placed(0b1, 2), shared(&[0b1; 2]));
    // No other policy places them.
    for policy in [Policy::Fair, Policy::Balance, Policy::Gang] {
        let all = (policy, alloc::vec![CpuSet(0b11); 3]);
        assert_eq!(place_guest(policy, CpuSet(0b11), 3), all);
    }
}

#[test]
fn a_placed_vcpu_stays_on_a_busy_cpu() {
    let times = |policy: Policy| {
        let (mut box_, vcpus) = with_guest(policy, 2, &[Work::Burn]);
        let pieces = Work::BurnInPieces { piece_ns: 20_000 };
        box_.add(Kind::Service, nice(0), CpuSet::only(0), pieces);
        box_.run(SECOND);
        box_.outcome(vcpus[0]).times
    };
    let placed = times(Policy::Placed);
    assert!(placed.run_ns < SECOND * 6 / 10 && placed.migrations == 0);
    // Where it may move, the CPU that idles is told of it.
    for policy in [Policy::Fair, Policy::Balance, Policy::Gang] {
        let moves = times(policy);
        assert!(
            moves.run_ns > SECOND * 95 / 100 && moves.migrations == 1,
            "{policy}: {moves:?}"
        );
    }
}

/// A box whose guest's vCPUs have this work, where the box would let them run.
fn with_guest(policy: Policy, cpus: usize, works: &[Work]) -> (Simulation, Vec<TaskId>) {
    let (policy, places) = place_guest(policy, CpuSet::below(cpus), works.len());
    let mut box_ = simulation(policy, cpus);
    let vcpus = places.into_iter().zip(works);
    let add = |(place, work): (CpuSet, &Work)| box_.add(Kind::Vcpu, nice(0), place, *work);
    let ids = vcpus.map(add).collect();
    (box_, ids)
}

#[test]
fn the_wait_that_a_task_is_in_counts_as_the_longest() {
    let mut scheduler = Scheduler::new(Policy::Fair, Tuning::default(), 1);
    let id = scheduler.add(Kind::Vcpu, nice(0), CpuSet::only(0));
    scheduler.wake(0, id);
    scheduler.schedule(10, 0);
    scheduler.block(20, 0);
    assert_eq!(scheduler.statistics(id, 20).longest_wait_ns, 10);
    scheduler.wake(30, id);
    assert_eq!(scheduler.statistics(id, 35).longest_wait_ns, 10);
    assert_eq!(scheduler.statistics(id, 80).longest_wait_ns, 50);
}

/// A CPU reads the clock before it has the lock, and another one that has it may count until later.
#[test]
fn no_time_is_counted_twice() {
    let mut scheduler = Scheduler::new(Policy::Fair, Tuning::default(), 1);
    let [first, second] = [1, 0].map(|_| scheduler.add(Kind::Service, nice(0), CpuSet::only(0)));
    scheduler.wake(0, first);
    scheduler.schedule(0, 0);
    assert_eq!(scheduler.statistics(first, 1000).run_ns, 1000);
    scheduler.schedule(400, 0);
    scheduler.schedule(1500, 0);
    assert_eq!(scheduler.statistics(first, 1500).run_ns, 1500);
    scheduler.block(1200, 0);
    scheduler.wake(1200, second);
    scheduler.schedule(1300, 0);
    scheduler.schedule(2000, 0);
    let ran = [first, second].map(|task| scheduler.statistics(task, 2000).run_ns);
    assert_eq!(ran, [1500, 500]);
    // Nor is what it ran counted as a wait.
    scheduler.block(1800, 0);
    scheduler.wake(1800, first);
    assert_eq!(scheduler.statistics(first, 2100).wait_ns, 100);
}

/// Guest and services on each CPU, both wanting everything: their CPU times.
fn shares(policy: Policy, cpus: usize, guest: Nice, services: Nice, piece_ns: u64) -> (u64, u64) {
    let mut box_ = simulation(policy, cpus);
    let mut ids = (Vec::new(), Vec::new());
    for cpu in 0..cpus {
        ids.0
            .push(box_.add(Kind::Vcpu, guest, CpuSet::only(cpu), Work::Burn));
        let work = Work::BurnInPieces { piece_ns };
        ids.1
            .push(box_.add(Kind::Service, services, CpuSet::only(cpu), work));
    }
    box_.run(5 * SECOND);
    let mut sum = |ids: &[TaskId]| ids.iter().map(|id| box_.outcome(*id).times.run_ns).sum();
    (sum(&ids.0), sum(&ids.1))
}

#[test]
fn cpu_time_follows_the_weights() {
    for policy in POLICIES {
        for (guest, services) in [(0, 0), (0, 5), (-5, 10), (10, -5), (-20, 19)] {
            let (guest, services) = (nice(guest), nice(services));
            let (ours, theirs) = shares(policy, 2, guest, services, 20_000);
            let share = ours as f64 / (ours + theirs) as f64;
            let due = f64::from(guest.weight()) / f64::from(guest.weight() + services.weight());
            assert!(
                (share - due).abs() < 0.02 * due.max(0.1),
                "{policy:?} {guest:?} {services:?}: {share} is not {due}"
            );
        }
    }
}

/// Two vCPUs with one lock between them, and a service that wants all it can get.
fn lock_holders(policy: Policy) -> (Simulation, [TaskId; 2], TaskId) {
    let work = Work::Lock {
        mean_outside_ns: 20_000,
        mean_inside_ns: 10_000,
    };
    let (mut box_, vcpus) = with_guest(policy, 2, &[work; 2]);
    let vcpus = [vcpus[0], vcpus[1]];
    let service = box_.add(
        Kind::Service,
        nice(0),
        CpuSet::only(0),
        Work::BurnInPieces { piece_ns: 50_000 },
    );
    box_.run(5 * SECOND);
    (box_, vcpus, service)
}

fn in_vain(policy: Policy) -> f64 {
    let (mut box_, vcpus, _) = lock_holders(policy);
    let outcomes = vcpus.map(|id| box_.outcome(id));
    let ran: u64 = outcomes.iter().map(|it| it.times.run_ns).sum();
    let spun: u64 = outcomes.iter().map(|it| it.spun_in_vain_ns).sum();
    spun as f64 / ran as f64
}

#[test]
fn a_gang_hardly_spins_for_a_lock_whose_holder_does_not_run() {
    let (gang, balance) = (in_vain(Policy::Gang), in_vain(Policy::Balance));
    assert!(gang < 0.05, "{gang}");
    assert!(balance > 2.0 * gang, "{balance} {gang}");
}

#[test]
fn a_gang_says_what_it_costs() {
    let (mut box_, vcpus, service) = lock_holders(Policy::Gang);
    let gang = box_.gang();
    assert!(gang.slots > 300, "{gang:?}");
    assert!(gang.idle_lost_ns > SECOND, "{gang:?}");
    assert!(gang.longest_skew_ns < 200_000, "{gang:?}");
    // The service has its half of its CPU all the same.
    let half = box_.outcome(service).times.run_ns as f64 / (5 * SECOND) as f64;
    assert!((half - 0.5).abs() < 0.02, "{half}");
    let [first, second] = vcpus.map(|id| box_.outcome(id).times.run_ns);
    assert!(first.abs_diff(second) < SECOND / 50, "{first} {second}");
}

#[test]
fn a_gang_without_rivals_never_waits() {
    let mut box_ = simulation(Policy::Gang, 2);
    let vcpus = [(); 2].map(|()| {
        box_.add(
            Kind::Vcpu,
            nice(0),
            CpuSet::below(2),
            Work::Barrier { mean_ns: 100_000 },
        )
    });
    box_.run(SECOND);
    for id in vcpus {
        assert!(box_.outcome(id).times.run_ns > SECOND - 100_000);
    }
    assert_eq!(box_.gang().idle_lost_ns, 0);
}

#[test]
fn more_vcpus_than_cpus_fall_back_to_balance() {
    let mut box_ = simulation(Policy::Gang, 2);
    let vcpus: Vec<_> = (0..3)
        .map(|_| box_.add(Kind::Vcpu, nice(0), CpuSet::below(2), Work::Burn))
        .collect();
    box_.run(SECOND);
    for id in vcpus {
        assert!(box_.outcome(id).times.run_ns > SECOND / 4);
    }
    assert!(box_.gang().fallbacks > 0);
}

#[test]
fn packets_do_not_wait_for_a_guest_that_burns_every_cpu() {
    let latency = |policy, vcpus: usize| {
        let work = Work::Packets {
            mean_apart_ns: 200_000,
            cost_ns: 15_000,
        };
        let (mut box_, _) = with_guest(policy, 2, &alloc::vec![Work::Burn; vcpus]);
        let stack = box_.add(Kind::Service, nice(0), CpuSet::only(0), work);
        box_.run(10 * SECOND);
        box_.outcome(stack).percentile_ns(99)
    };
    for policy in POLICIES {
        let (idle, busy) = (latency(policy, 0), latency(policy, 2));
        assert!(
            busy < idle + 2_000_000,
            "{policy:?}: {busy} ns, and {idle} on an idle box"
        );
    }
}

#[test]
fn a_packet_now_and_then_waits_for_no_slot() {
    for policy in POLICIES {
        let work = Work::Packets {
            mean_apart_ns: 2_500_000,
            cost_ns: 30_000,
        };
        let (mut box_, _) = with_guest(policy, 2, &[Work::Burn; 2]);
        let stack = box_.add(Kind::Service, nice(0), CpuSet::only(0), work);
        box_.run(10 * SECOND);
        let outcome = box_.outcome(stack);
        assert!(
            outcome.percentile_ns(50) < 100_000 && outcome.percentile_ns(99) < 500_000,
            "{policy:?}: {} ns, {} ns",
            outcome.percentile_ns(50),
            outcome.percentile_ns(99)
        );
    }
}

/// As the box's own lines once a second are: the next frame must not wait for a slice.
#[test]
fn a_burst_after_a_rest_makes_a_service_wait_for_nobody() {
    const MS: u64 = 1_000_000;
    for policy in POLICIES {
        let mut scheduler = Scheduler::new(policy, Tuning::default(), 1);
        let stack = scheduler.add(Kind::Service, nice(0), CpuSet::only(0));
        let vcpu = scheduler.add(Kind::Vcpu, nice(0), CpuSet::only(0));
        scheduler.wake(0, vcpu);
        assert_eq!(scheduler.schedule(0, 0).run, Some(vcpu));
        scheduler.wake(SECOND, stack);
        assert_eq!(scheduler.schedule(SECOND, 0).run, Some(stack));
        let end = SECOND + 5 * MS;
        scheduler.block(end, 0);
        assert_eq!(scheduler.schedule(end, 0).run, Some(vcpu));
        assert!(!scheduler.wake(end + MS, stack).is_empty(), "{policy:?}");
        let next = scheduler.schedule(end + MS, 0).run;
        assert_eq!(next, Some(stack), "{policy:?}");
    }
}

#[test]
fn a_task_that_joins_one_without_a_timer_gets_its_turn() {
    let mut scheduler = Scheduler::new(Policy::Fair, Tuning::default(), 1);
    let one = CpuSet::only(0);
    let first = scheduler.add(Kind::Vcpu, nice(0), one);
    let second = scheduler.add(Kind::Vcpu, nice(0), one);
    scheduler.wake(0, first);
    assert_eq!(scheduler.schedule(0, 0).until, None);
    // It has had no less than the other, so it takes nothing away at once; but the other's time must have an end now.
    assert_eq!(scheduler.wake(1, second), one);
    assert!(scheduler.schedule(1, 0).until.is_some());
}

#[test]
fn what_sleeps_costs_nothing_and_needs_no_timer() {
    for policy in POLICIES {
        let mut scheduler = Scheduler::new(policy, Tuning::default(), 2);
        let id = scheduler.add(Kind::Vcpu, nice(0), CpuSet::below(2));
        assert_eq!(scheduler.schedule(0, 0), Decision::default());
        let kick = scheduler.wake(10, id);
        let cpu = kick.iter().next().unwrap();
        // Alone on its CPU it needs no timer either.
        assert_eq!(
            scheduler.schedule(10, cpu),
            Decision {
                run: Some(id),
                until: None,
                kick: CpuSet::default()
            }
        );
        scheduler.block(20, cpu);
        assert_eq!(scheduler.schedule(20, cpu), Decision::default());
        assert_eq!(scheduler.statistics(id, 1_000).run_ns, 10);
    }
}

fn any_work() -> impl Strategy<Value = Work> {
    let ns = 20_000u64..3_000_000;
    prop_oneof![
        Just(Work::Burn),
        (ns.clone(), ns.clone()).prop_map(|(outside, inside)| Work::Lock {
            mean_outside_ns: outside,
            mean_inside_ns: inside
        }),
        ns.clone().prop_map(|mean_ns| Work::Barrier { mean_ns }),
        (ns.clone(), 1_000u64..100_000).prop_map(|(apart, cost_ns)| Work::Packets {
            mean_apart_ns: apart,
            cost_ns
        }),
        // Some work, and then a rest for longer than the simulation: whoever waits for this one's CPU waits for ever.
        (20_000u64..5_000_000).prop_map(|cost_ns| Work::Packets {
            mean_apart_ns: 20 * SECOND,
            cost_ns
        }),
    ]
}

fn any_service() -> impl Strategy<Value = Work> {
    prop_oneof![
        (20_000u64..300_000).prop_map(|piece_ns| Work::BurnInPieces { piece_ns }),
        (20_000u64..3_000_000, 1_000u64..100_000).prop_map(|(apart, cost_ns)| Work::Packets {
            mean_apart_ns: apart,
            cost_ns
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever runs beside it, under every policy: nobody starves, and no CPU has nothing to do for long while somebody waits
    /// for good, which a gang that waits for itself would look like.
    #[test]
    fn nobody_starves(
        policy in prop::sample::select(POLICIES.to_vec()),
        cpus in 1usize..6,
        vcpus in prop::collection::vec((any_work(), any::<u64>()), 1..8),
        services in prop::collection::vec((any_service(), any::<u64>(), -5i8..6), 0..5),
        guest_nice in -5i8..6,
        seed in 1u64..,
    ) {
        let (policy, places) = place_guest(policy, CpuSet::below(cpus), vcpus.len());
        let mut box_ = Simulation::new(policy, Tuning::default(), cpus, seed);
        let mut ids = Vec::new();
        for ((work, allowed), place) in vcpus.into_iter().zip(places) {
            let its = if policy == Policy::Placed { place } else { CpuSet(allowed) };
            ids.push(box_.add(Kind::Vcpu, nice(guest_nice), its, work));
        }
        for (work, allowed, service_nice) in services {
            ids.push(box_.add(Kind::Service, nice(service_nice), CpuSet(allowed), work));
        }
        box_.run(2 * SECOND);
        prop_assert!(!box_.is_stuck(), "who waits will wait for ever");
        for id in ids {
            // A wait that has no end yet counts.
            let times = box_.outcome(id).times;
            prop_assert!(times.longest_wait_ns < SECOND, "{:?}: {:?}", id, times);
        }
    }

    /// A gang that fits, beside services that want some of its CPUs now and then or all the time: none of its vCPUs is held back for the others for ever, nor a
    /// service for the gang.
    #[test]
    fn gangs_never_deadlock(
        cpus in 2usize..5,
        vcpus in prop::collection::vec(any_work(), 2..5),
        services in prop::collection::vec((any_service(), 0usize..4), 1..4),
        seed in 1u64..,
    ) {
        let mut box_ = Simulation::new(Policy::Gang, Tuning::default(), cpus, seed);
        let mut ids = Vec::new();
        for work in vcpus.into_iter().take(cpus) {
            ids.push(box_.add(Kind::Vcpu, nice(0), CpuSet::below(cpus), work));
        }
        for (work, cpu) in services {
            ids.push(box_.add(Kind::Service, nice(0), CpuSet::only(cpu % cpus), work));
        }
        box_.run(2 * SECOND);
        prop_assert!(!box_.is_stuck(), "who waits will wait for ever");
        for id in ids {
            let times = box_.outcome(id).times;
            prop_assert!(times.longest_wait_ns < SECOND / 4, "{:?}: {:?}", id, times);
        }
    }

    /// On a CPU that a vCPU and a service share, both get what their weights say.
    #[test]
    fn shares_are_within_two_percent(
        policy in prop::sample::select(POLICIES.to_vec()),
        cpus in 1usize..5,
        guest in -10i8..11,
        services in -10i8..11,
        piece_ns in 10_000u64..50_000,
    ) {
        let (guest, services) = (nice(guest), nice(services));
        let (ours, theirs) = shares(policy, cpus, guest, services, piece_ns);
        let share = ours as f64 / (ours + theirs) as f64;
        let due = f64::from(guest.weight()) / f64::from(guest.weight() + services.weight());
        prop_assert!((share - due).abs() < 0.02, "{} is not {}", share, due);
    }
}
