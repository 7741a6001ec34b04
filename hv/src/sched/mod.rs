//! The scheduler: which task runs on which CPU, and for how long. Pure: time is handed in, nothing is switched here.
//!
//! Tasks are the guest's vCPUs and the box's services. Each CPU has a queue ordered by virtual time (CPU time had, divided by the
//! weight of the task's nice value), as Linux's CFS had it; what a task has had is counted by exact differences at every
//! switch. The policies differ in where vCPUs may wait and when they may start: see [`Policy`].

mod gang;
mod place;
#[cfg(any(test, feature = "simulator"))]
pub mod sim;
mod statistics;
#[cfg(test)]
mod tests;
mod weight;

use alloc::vec::Vec;

pub use place::{guest_cpus, place_guest};
pub use statistics::{GangStatistics, TaskStatistics};
pub use weight::{Nice, VirtualTime};

/// The most CPUs, for a set of them is a word.
pub const MAX_CPUS: usize = 64;

/// A set of CPUs, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(pub u64);

impl CpuSet {
    /// The CPUs below `count`.
    pub const fn below(count: usize) -> CpuSet {
        match count {
            0 => CpuSet(0),
            1..64 => CpuSet((1 << count) - 1),
            _ => CpuSet(u64::MAX),
        }
    }

    /// Only `cpu`.
    pub fn only(cpu: usize) -> CpuSet {
        CpuSet(1u64.checked_shl(cpu as u32).unwrap_or(0))
    }

    /// Whether `cpu` is in it.
    pub fn has(self, cpu: usize) -> bool {
        self.0 & CpuSet::only(cpu).0 != 0
    }

    /// Both together.
    pub const fn with(self, other: CpuSet) -> CpuSet {
        CpuSet(self.0 | other.0)
    }

    /// Without those of `other`.
    pub const fn without(self, other: CpuSet) -> CpuSet {
        CpuSet(self.0 & !other.0)
    }

    /// How many.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether it is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its members, lowest first.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_CPUS).filter(move |cpu| self.has(*cpu))
    }
}

/// How vCPUs share CPUs with each other and with the services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Each vCPU by itself, wherever there is least to do: two may wait for one CPU.
    Fair,
    /// No two vCPUs wait for one CPU while there are CPUs enough (Sukwong and Kim, "Is co-scheduling too expensive for SMP
    /// VMs?", EuroSys 2011).
    #[default]
    Balance,
    /// All vCPUs that can run start together and stop together, so that the holder of a guest's lock runs when another vCPU
    /// waits for it. Where they do not fit: as [`Policy::Balance`].
    Gang,
    /// vCPUs stay where their sets of CPUs say: one each, which [`place_guest`] deals out, for boxes with CPUs to spare.
    Placed,
}

impl core::fmt::Display for Policy {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Policy::Fair => "fair",
            Policy::Balance => "balance",
            Policy::Gang => "gang",
            Policy::Placed => "placed",
        })
    }
}

/// What a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A vCPU of the guest: can be taken off its CPU at any moment.
    Vcpu,
    /// A part of the box: runs to completion of a bounded piece of work, then asks again.
    Service,
}

/// A task's number, in the order of [`Scheduler::add`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(pub usize);

/// Times that rule the scheduler, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// How long a task runs while others wait for its CPU.
    pub slice_ns: u64,
    /// How much less weighted time than the running one a woken task must have had to take its CPU at once.
    pub wake_ns: u64,
    /// How much of the time for which it slept a woken vCPU may catch up.
    pub sleeper_ns: u64,
    /// The same for a service: a burst of so much, as the box's own lines once a second are, makes it wait for nobody.
    pub service_sleeper_ns: u64,
    /// Within what time the vCPUs of a gang should be together. Later ones count as missed; the slot goes on without them.
    pub rendezvous_ns: u64,
    /// How long services may keep vCPUs of a gang off their CPUs before the others stop as well.
    pub patience_ns: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            slice_ns: 4_000_000,
            wake_ns: 250_000,
            sleeper_ns: 2_000_000,
            service_sleeper_ns: 10_000_000,
            rendezvous_ns: 100_000,
            patience_ns: 200_000,
        }
    }
}

/// What a CPU is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Run this; `None`: sleep.
    pub run: Option<TaskId>,
    /// Ask again at this time, if nothing happens before. `None`: no timer is needed.
    pub until: Option<u64>,
    /// CPUs that should ask again now.
    pub kick: CpuSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Blocked,
    /// Could run, since this time.
    Waiting(u64),
    Running,
}

#[derive(Clone, Debug)]
struct Task {
    kind: Kind,
    weight: u32,
    allowed: CpuSet,
    state: State,
    /// Where it runs, waits, or was last.
    cpu: usize,
    had: VirtualTime,
    /// When it last woke.
    woke: u64,
    statistics: TaskStatistics,
}

impl Task {
    fn is_runnable(&self) -> bool {
        self.state != State::Blocked
    }

    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }
}

#[derive(Clone, Debug, Default)]
struct Cpu {
    current: Option<TaskId>,
    /// Until when `current`'s time has been counted.
    counted: u64,
    /// When `current` started.
    started: u64,
    /// The least virtual time of this queue, which never goes back: where newcomers start.
    floor: VirtualTime,
    /// Whether it will ask again by itself.
    has_timer: bool,
    /// Idle since, because the gang as a whole could not start.
    held_back: Option<u64>,
}

/// The scheduler of a box. Call it under one lock: decisions are some thousand instructions, and seldom.
#[derive(Clone, Debug)]
pub struct Scheduler {
    policy: Policy,
    tuning: Tuning,
    cpus: Vec<Cpu>,
    tasks: Vec<Task>,
    gang: gang::Gang,
}

impl Scheduler {
    /// A scheduler for `cpus` CPUs (1 to [`MAX_CPUS`]) without tasks.
    pub fn new(policy: Policy, tuning: Tuning, cpus: usize) -> Scheduler {
        Scheduler {
            policy,
            tuning,
            cpus: alloc::vec![Cpu::default(); cpus.clamp(1, MAX_CPUS)],
            tasks: Vec::new(),
            gang: gang::Gang::default(),
        }
    }

    /// Adds a task that sleeps. `allowed` are the CPUs it may run on; of those that there are none, all are allowed.
    pub fn add(&mut self, kind: Kind, nice: Nice, allowed: CpuSet) -> TaskId {
        let all = CpuSet::below(self.cpus.len());
        let allowed = match CpuSet(allowed.0 & all.0) {
            CpuSet(0) => all,
            some => some,
        };
        let id = TaskId(self.tasks.len());
        let cpu = self.first_home(kind, allowed);
        self.tasks.push(Task {
            kind,
            weight: nice.weight(),
            allowed,
            state: State::Blocked,
            cpu,
            had: self
                .cpus
                .get(cpu)
                .map_or(VirtualTime::default(), |cpu| cpu.floor),
            woke: 0,
            statistics: TaskStatistics::default(),
        });
        id
    }

    /// A task's times, those of the current run or wait up to `now` included.
    pub fn statistics(&mut self, id: TaskId, now: u64) -> TaskStatistics {
        self.count_all(now);
        let Some(task) = self.tasks.get(id.0) else {
            return TaskStatistics::default();
        };
        let mut statistics = task.statistics;
        if let State::Waiting(since) = task.state {
            let waits = now.saturating_sub(since);
            statistics.wait_ns += waits;
            statistics.longest_wait_ns = statistics.longest_wait_ns.max(waits);
        }
        statistics
    }

    /// What gang scheduling did so far.
    pub fn gang_statistics(&self) -> GangStatistics {
        self.gang.statistics
    }

    /// What runs on `cpu`.
    pub fn current(&self, cpu: usize) -> Option<TaskId> {
        self.cpus.get(cpu)?.current
    }

    /// A task can run: an interrupt for a halted vCPU, work for a service. Gives the CPUs that should ask again.
    pub fn wake(&mut self, now: u64, id: TaskId) -> CpuSet {
        let Some(task) = self.tasks.get(id.0) else {
            return CpuSet::default();
        };
        if task.is_runnable() {
            return CpuSet::default();
        }
        let before = task.cpu;
        self.count_all(now);
        // Where it ran last, it may have been counted until later than this CPU's clock said.
        let since = self.cpus.get(before).map_or(now, |cpu| cpu.counted);
        let cpu = self.place(id);
        self.move_to(id, cpu);
        let floor = self.floor(cpu);
        let tuning = self.tuning;
        if let Some(task) = self.tasks.get_mut(id.0) {
            // It catches up with some of what it slept through, but not with all of it.
            let sleeper_ns = match task.kind {
                Kind::Vcpu => tuning.sleeper_ns,
                Kind::Service => tuning.service_sleeper_ns,
            };
            task.had = task
                .had
                .max(floor.before(sleeper_ns, task.weight.max(1_024)));
            task.state = State::Waiting(since);
            task.woke = since;
            task.statistics.wakes += 1;
        }
        let mut kick = self.gang_changed(id);
        let has_timer = self.cpus.get(cpu).is_some_and(|cpu| cpu.has_timer);
        if !has_timer || self.should_preempt(id, cpu) {
            kick = kick.with(CpuSet::only(cpu));
        }
        kick
    }

    /// The task that runs on `cpu` has nothing more to do. Ask [`Scheduler::schedule`] next. Gives other CPUs that should
    /// ask as well.
    pub fn block(&mut self, now: u64, cpu: usize) -> CpuSet {
        self.count(cpu, now);
        let Some(id) = self.cpus.get_mut(cpu).and_then(|cpu| cpu.current.take()) else {
            return CpuSet::default();
        };
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.state = State::Blocked;
        }
        self.gang_changed(id).without(CpuSet::only(cpu))
    }

    /// What `cpu` is to do from `now` on. What ran there and did not block waits again.
    pub fn schedule(&mut self, now: u64, cpu: usize) -> Decision {
        if cpu >= self.cpus.len() {
            return Decision::default();
        }
        self.count_all(now);
        self.end_idle(cpu, now);
        let decision = if self.policy == Policy::Gang && self.gang_applies() {
            self.schedule_gang(now, cpu)
        } else {
            self.gang.slot = None;
            self.schedule_alone(now, cpu)
        };
        if let Some(this) = self.cpus.get_mut(cpu) {
            this.has_timer = decision.until.is_some();
        }
        decision
    }

    /// A CPU looks at its own queue only.
    fn schedule_alone(&mut self, now: u64, cpu: usize) -> Decision {
        let best = match self.first(cpu) {
            Some(best) => Some(best),
            None => self.pull(cpu, None),
        };
        let kick = self.idle_for_the_displaced(cpu, best, now);
        self.run(cpu, best, now);
        let contended = self.queue(cpu).count() > 1;
        Decision {
            run: best,
            until: contended.then_some(now + self.tuning.slice_ns),
            kick,
        }
    }

    /// An idle CPU that may take over what has run on `cpu` for its slice and now makes way for `next`. What made way earlier, for something short that woke, stays:
    /// its turn comes sooner than it would have moved.
    fn idle_for_the_displaced(&self, cpu: usize, next: Option<TaskId>, now: u64) -> CpuSet {
        let Some(this) = self.cpus.get(cpu) else {
            return CpuSet::default();
        };
        let displaced = this
            .current
            .filter(|id| {
                Some(*id) != next && now.saturating_sub(this.started) >= self.tuning.slice_ns
            })
            .and_then(|id| self.tasks.get(id.0));
        let mut idle = displaced.into_iter().flat_map(|task| {
            let others = task.allowed.without(CpuSet::only(cpu));
            others
                .iter()
                .filter(|other| self.queue(*other).next().is_none())
        });
        idle.next().map_or(CpuSet::default(), CpuSet::only)
    }

    /// The runnable tasks of a CPU.
    fn queue(&self, cpu: usize) -> impl Iterator<Item = (TaskId, &Task)> {
        let tasks = self.tasks.iter().enumerate();
        tasks
            .filter(move |(_, task)| task.cpu == cpu && task.is_runnable())
            .map(|(index, task)| (TaskId(index), task))
    }

    /// The runnable task of a CPU that has had least.
    fn first(&self, cpu: usize) -> Option<TaskId> {
        least(self.queue(cpu))
    }

    /// Puts `next` on the CPU.
    fn run(&mut self, cpu: usize, next: Option<TaskId>, now: u64) {
        let Some(this) = self.cpus.get_mut(cpu) else {
            return;
        };
        // Who read the clock before another CPU had the lock and counted is late: what was counted is not counted again.
        let now = this.counted.max(now);
        this.counted = now;
        let before = this.current;
        if before == next {
            return;
        }
        this.current = next;
        this.started = now;
        if let Some(task) = before.and_then(|id| self.tasks.get_mut(id.0))
            && task.state == State::Running
        {
            task.state = State::Waiting(now);
        }
        if let Some(task) = next.and_then(|id| self.tasks.get_mut(id.0)) {
            if let State::Waiting(since) = task.state {
                let waited = now.saturating_sub(since);
                task.statistics.wait_ns += waited;
                task.statistics.longest_wait_ns = task.statistics.longest_wait_ns.max(waited);
            }
            task.state = State::Running;
        }
    }

    /// Counts what runs on a CPU up to now.
    fn count(&mut self, cpu: usize, now: u64) {
        let Some(this) = self.cpus.get_mut(cpu) else {
            return;
        };
        let ran = now.saturating_sub(this.counted);
        this.counted = this.counted.max(now);
        if let Some(task) = this.current.and_then(|id| self.tasks.get_mut(id.0)) {
            task.had = task.had.after(ran, task.weight);
            task.statistics.run_ns += ran;
        }
        let least = self
            .first(cpu)
            .and_then(|id| self.tasks.get(id.0))
            .map(|task| task.had);
        if let (Some(this), Some(least)) = (self.cpus.get_mut(cpu), least) {
            this.floor = this.floor.max(least);
        }
    }

    fn count_all(&mut self, now: u64) {
        for cpu in 0..self.cpus.len() {
            self.count(cpu, now);
        }
    }

    fn floor(&self, cpu: usize) -> VirtualTime {
        self.cpus
            .get(cpu)
            .map_or(VirtualTime::default(), |cpu| cpu.floor)
    }

    /// Whether a woken task should not wait for the end of the slice.
    fn should_preempt(&self, id: TaskId, cpu: usize) -> bool {
        let current = self.current(cpu).and_then(|id| self.tasks.get(id.0));
        match (current, self.tasks.get(id.0)) {
            (None, _) => true,
            (Some(current), Some(task)) => {
                let handicap = task.had.after(self.tuning.wake_ns, task.weight.max(1_024));
                current.had.ahead_of(handicap) > 0
            }
            (_, None) => false,
        }
    }
}

/// The task that has had least.
fn least<'a>(tasks: impl Iterator<Item = (TaskId, &'a Task)>) -> Option<TaskId> {
    let mut best: Option<(TaskId, &Task)> = None;
    for (id, task) in tasks {
        if best.is_none_or(|(_, other)| task.had.ahead_of(other.had) < 0) {
            best = Some((id, task));
        }
    }
    best.map(|(id, _)| id)
}
