//! What each CPU does all day: ask the scheduler, run what it says, say how that ended, sleep when there is nothing.
//!
//! One scheduler under one lock for the whole box ([`Roster`], whose calls do not get lost; here is what the tasks are, and the CPUs' timers).
//! Nothing else is locked while its lock is held.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use outpost::roster::{Cpus, Roster};
use outpost_hv::sched::{
    CpuSet, GangStatistics, Kind, Nice, Policy, Scheduler, TaskId, TaskStatistics, Tuning,
    guest_cpus, place_guest,
};
use spin::Once;

use super::{guest, load, network};
use crate::machine::{clock, cpu, emulator, panic};
use crate::output;

/// The boot CPU: network ports interrupt it, and what drives them runs there.
pub const NETWORK_CPU: usize = 0;

/// How tasks share the CPUs.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// How vCPUs are placed.
    pub policy: Policy,
    /// vCPUs of the guest; 0 for no guest.
    pub vcpus: usize,
    /// The guest's nice value.
    pub guest: Nice,
    /// The services'.
    pub services: Nice,
    /// CPUs that vCPUs may use; empty: as the box sees fit.
    pub cpus: CpuSet,
    /// CPUs on each of which a service wants all it can get: for measurement only.
    pub load: CpuSet,
}

/// The CPUs that the roster speaks of.
struct Hardware;

impl Cpus for Hardware {
    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }
    fn this(&self) -> usize {
        cpu::index()
    }
    fn kick(&self, index: usize) {
        cpu::kick(index);
    }
}

/// The whole box.
struct Shared {
    /// Its tasks are network, keeper, vCPUs, loads, in this order.
    roster: Roster<Hardware>,
    vcpus: usize,
    /// There is a CPU for each vCPU.
    own_cpus: bool,
    /// The CPUs of the loads, in their order.
    loads: CpuSet,
    policy: Policy,
}

static SHARED: Once<Shared> = Once::new();

/// How long it takes a halted vCPU to be woken, about, in microseconds: an exit and an entry, here and where the interrupt comes from. The guest is told so, and
/// watches for work instead when it expects to rest for less; that is good where each of its vCPUs has a CPU, and takes from the others where they share some.
const WAKE_MICROS: u16 = 100;
/// On QEMU's translator. It has to be more than what a guest sees of its rests when it halts, which this time is part of: it would expect rests too long to
/// watch through, halt, and see such rests again (docs/bench.md).
const WAKE_MICROS_EMULATED: u16 = 400;
const WAKE_MICROS_SHARED: u16 = 10;

/// What the guest is told of the time it takes to wake a vCPU, in microseconds.
pub fn wake_micros() -> u16 {
    match SHARED.get() {
        Some(shared) if shared.own_cpus && emulator::is_translator() => WAKE_MICROS_EMULATED,
        Some(shared) if shared.own_cpus => WAKE_MICROS,
        _ => WAKE_MICROS_SHARED,
    }
}

/// The WAN stack and the console.
pub const NETWORK: TaskId = TaskId(0);
/// What starts the guest and sees to its end.
pub const KEEPER: TaskId = TaskId(1);
/// The first vCPU.
const FIRST_VCPU: usize = 2;

/// The task of a vCPU.
fn task_of(vcpu: usize) -> TaskId {
    TaskId(FIRST_VCPU + vcpu)
}

/// How a piece of a service's work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is more to do.
    Busy,
    /// Nothing to do until somebody calls, or this time.
    Idle(Option<u64>),
}

/// Makes the scheduler for `cpus` CPUs. Called once, by the boot CPU; the others may run already and wait for it.
pub fn open(cpus: usize, sharing: &Sharing) {
    SHARED.call_once(|| {
        let all = CpuSet::below(cpus);
        let others = all.without(CpuSet::only(NETWORK_CPU));
        // The network's CPU is the guest's only where the others do not do.
        let apart = cpus > 1 && sharing.vcpus > 1 && emulator::is_translator();
        let allowed = guest_cpus(all, sharing.cpus, NETWORK_CPU, sharing.vcpus, apart);
        if apart {
            announce_apart(allowed, others, sharing.vcpus);
        }
        let (policy, places) = place_guest(sharing.policy, allowed, sharing.vcpus);
        if policy != sharing.policy {
            announce_fallback(sharing.policy, policy, allowed, sharing.vcpus);
        }
        let mut scheduler = Scheduler::new(policy, Tuning::default(), cpus);
        scheduler.add(Kind::Service, sharing.services, CpuSet::only(NETWORK_CPU));
        // Long pieces of work: away from the network where there is another CPU.
        scheduler.add(Kind::Service, sharing.services, others);
        for place in places {
            scheduler.add(Kind::Vcpu, sharing.guest, place);
        }
        let loads = CpuSet(sharing.load.0 & all.0);
        for cpu in loads.iter() {
            let load = scheduler.add(Kind::Service, sharing.services, CpuSet::only(cpu));
            // It never sleeps. Its CPU is kicked below.
            scheduler.wake(clock::now_ns(), load);
        }
        let tasks = FIRST_VCPU + sharing.vcpus + loads.len();
        Shared {
            roster: Roster::new(Hardware, cpus, scheduler, tasks),
            vcpus: sharing.vcpus,
            own_cpus: allowed.len() >= sharing.vcpus,
            loads,
            policy,
        }
    });
    (1..cpus).for_each(cpu::kick);
    if sharing.vcpus > 0 {
        call_keeper();
    }
}

/// Says that there are too few CPUs for the policy that is wanted, and which one there is instead.
fn announce_fallback(wanted: Policy, policy: Policy, allowed: CpuSet, vcpus: usize) {
    output::problem(format_args!(
        "[guest] policy: \"{wanted}\" needs a CPU for each of the guest's {vcpus} vCPUs, and they may use {}: it is \"{policy}\"; name more in [guest] cpus, or have fewer vcpus",
        allowed.len()
    ));
}

/// Says what a guest of several vCPUs has to put up with where they and the boot CPU do not go together.
fn announce_apart(allowed: CpuSet, others: CpuSet, vcpus: usize) {
    if allowed.has(NETWORK_CPU) {
        log::warn!(
            "guest: it may run on CPU {NETWORK_CPU}, of which QEMU's translator loses state when another CPU executes FXRSTOR; [guest] cpus without it, and a machine of {} CPUs, are safe",
            vcpus + 1
        );
    } else if others.len() < vcpus {
        log::info!(
            "guest: its {vcpus} vCPUs share {} CPU(s), since QEMU's translator loses state of CPU {NETWORK_CPU}; a machine of {} CPUs has one for each",
            others.len(),
            vcpus + 1
        );
    }
}

/// Waits for [`open`], then does this CPU's work for ever. `network` is given on [`NETWORK_CPU`].
pub fn run(mut network: Option<Box<network::Service>>) -> ! {
    let index = cpu::index();
    let shared = loop {
        match SHARED.get() {
            Some(shared) => break shared,
            None => {
                cpu::sleep();
            }
        }
    };
    if network.is_some() {
        shared.roster.call(NETWORK, false);
    }
    let mut loaded = None;
    loop {
        let next = shared.roster.next(index);
        let vcpu = next.and_then(|task| shared.vcpu_of(task));
        if let Some(before) = loaded.filter(|before| Some(*before) != vcpu) {
            guest::release(before, index);
            loaded = None;
        }
        let Some(task) = next else {
            arm_timer(None);
            shared.noted(index, cpu::sleep());
            continue;
        };
        let turn = match (task, vcpu, network.as_mut()) {
            (_, Some(vcpu), _) => {
                loaded = Some(vcpu);
                let turn = guest::run(vcpu, index);
                if turn != Turn::Busy {
                    guest::release(vcpu, index);
                    loaded = None;
                }
                turn
            }
            (NETWORK, _, Some(network)) => {
                shared.roster.hears(task);
                network.turn()
            }
            (NETWORK, _, None) => Turn::Idle(None),
            (KEEPER, ..) => {
                shared.roster.hears(task);
                guest::keep()
            }
            _ => load::turn(),
        };
        if vcpu.is_none() && task != NETWORK {
            // Nothing else takes them while a service has one piece of work after another: frames would wait for its end.
            shared.noted(index, cpu::take_interrupts());
        }
        if let Turn::Idle(until) = turn {
            shared.roster.rest(index, task, until);
        }
    }
}

impl Shared {
    /// The vCPU that a task is.
    fn vcpu_of(&self, task: TaskId) -> Option<usize> {
        let vcpu = task.0.checked_sub(FIRST_VCPU)?;
        (vcpu < self.vcpus).then_some(vcpu)
    }

    /// Interrupts have come on this CPU.
    fn noted(&self, index: usize, wakes: u32) {
        if index == NETWORK_CPU && wakes & cpu::WAKE_DEVICE != 0 {
            self.roster.call_once(NETWORK);
        }
    }
}

/// There is something for the network's service.
pub fn call_network() {
    if let Some(shared) = SHARED.get() {
        shared.roster.call_once(NETWORK);
    }
}

/// There is something for the guest's keeper.
pub fn call_keeper() {
    if let Some(shared) = SHARED.get() {
        shared.roster.call(KEEPER, false);
    }
}

/// There is something for a vCPU: it looks at once where it runs, and runs again where it rests.
pub fn call_vcpu(vcpu: usize) {
    if let Some(shared) = SHARED.get() {
        shared.roster.call(task_of(vcpu), true);
    }
}

/// Takes the interrupts that are pending on this CPU. True if another CPU has kicked it.
pub fn take_interrupts() -> bool {
    let wakes = cpu::take_interrupts();
    if let Some(shared) = SHARED.get() {
        shared.noted(cpu::index(), wakes);
    }
    wakes & cpu::WAKE_KICK != 0
}

/// Arms this CPU's timer for what runs on it, and for what the CPU has to do itself.
pub fn arm_timer(deadline_ns: Option<u64>) {
    let until = SHARED
        .get()
        .map_or(u64::MAX, |shared| shared.roster.until(cpu::index()));
    let deadline = deadline_ns.unwrap_or(u64::MAX).min(until);
    cpu::arm_timer(Some(deadline).filter(|deadline| *deadline != u64::MAX));
}

/// Whether what runs on this CPU must make room, so that the scheduler can be asked. The task has heard all calls before this.
pub fn must_leave() -> bool {
    SHARED
        .get()
        .is_some_and(|shared| shared.roster.must_ask(cpu::index()) || panic::lost_expendable())
}

/// For how long a vCPU could have run and had no CPU, in nanoseconds.
pub fn stolen_ns(vcpu: usize) -> u64 {
    SHARED.get().map_or(0, |shared| {
        let now = clock::now_ns();
        shared
            .roster
            .scheduler()
            .statistics(task_of(vcpu), now)
            .wait_ns
    })
}

/// A task of those that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The network's service.
    Network,
    /// A vCPU, by its number.
    Vcpu(usize),
    /// A load, by its CPU.
    Load(usize),
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Network => f.write_str("network"),
            Task::Vcpu(vcpu) => write!(f, "vcpu{vcpu}"),
            Task::Load(cpu) => write!(f, "load{cpu}"),
        }
    }
}

/// What the scheduler has counted. Made once, and counted into again and again, which allocates nothing.
pub struct Counted {
    policy: Policy,
    tasks: Vec<(Task, TaskId, TaskStatistics)>,
    gang: GangStatistics,
}

impl Counted {
    /// Nothing yet of this box. None before [`open`].
    pub fn new() -> Option<Counted> {
        let shared = SHARED.get()?;
        let vcpus = (0..shared.vcpus).map(|vcpu| (Task::Vcpu(vcpu), task_of(vcpu)));
        let loads = shared.loads.iter().enumerate();
        let loads = loads.map(|(nth, cpu)| (Task::Load(cpu), task_of(shared.vcpus + nth)));
        Some(Counted {
            policy: shared.policy,
            tasks: core::iter::once((Task::Network, NETWORK))
                .chain(vcpus)
                .chain(loads)
                .map(|(task, id)| (task, id, TaskStatistics::default()))
                .collect(),
            gang: GangStatistics::default(),
        })
    }

    /// Everything as it is now.
    pub fn update(&mut self) {
        let Some(shared) = SHARED.get() else {
            return;
        };
        let now = clock::now_ns();
        let mut scheduler = shared.roster.scheduler();
        for (_, id, statistics) in &mut self.tasks {
            *statistics = scheduler.statistics(*id, now);
        }
        self.gang = scheduler.gang_statistics();
    }

    /// How vCPUs are placed.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Each task: the network, the vCPUs, the loads.
    pub fn tasks(&self) -> impl Iterator<Item = (Task, &TaskStatistics)> {
        self.tasks
            .iter()
            .map(|(task, _, statistics)| (*task, statistics))
    }

    /// What gang scheduling did.
    pub fn gang(&self) -> &GangStatistics {
        &self.gang
    }
}

/// True if a CPU holds the scheduler's lock at this moment.
pub fn is_locked() -> bool {
    SHARED.get().is_some_and(|shared| shared.roster.is_locked())
}
