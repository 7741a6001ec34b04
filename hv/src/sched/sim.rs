//! A simulator for the scheduler: CPUs, tasks with something to do, and a clock that jumps from event to event. Hours pass in
//! milliseconds, and the same seed gives the same hours. It knows of no cache and no cost of switching.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{
    CpuSet, Decision, GangStatistics, Kind, Nice, Policy, Scheduler, TaskId, TaskStatistics, Tuning,
};

/// How long an interrupt from one CPU to another takes, in nanoseconds.
const KICK_NS: u64 = 5_000;

/// What a task does. All times are in nanoseconds; those called `mean` are drawn anew each time, between nothing and twice as much.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Wants all it can get.
    Burn,
    /// A service that wants all it can get, in pieces that are not interrupted.
    BurnInPieces {
        /// The length of a piece.
        piece_ns: u64,
    },
    /// Computes, then spins for a lock that all tasks with this work share, holds it for a while, and so on.
    Lock {
        /// Computing without the lock.
        mean_outside_ns: u64,
        /// Holding it.
        mean_inside_ns: u64,
    },
    /// Computes, then spins until all tasks with this work have come as far.
    Barrier {
        /// Computing.
        mean_ns: u64,
    },
    /// Sleeps until something arrives, and handles it without interruption.
    Packets {
        /// Between arrivals.
        mean_apart_ns: u64,
        /// Handling one.
        cost_ns: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// So many nanoseconds of work are left; what comes then depends.
    Computing(u64),
    Spinning,
    Holding(u64),
    Sleeping,
}

struct Actor {
    kind: Kind,
    work: Work,
    doing: Doing,
    arrivals: VecDeque<u64>,
    next_arrival: u64,
    outcome: Outcome,
}

/// What came of one task's work.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The scheduler's times.
    pub times: TaskStatistics,
    /// Nanoseconds spent spinning.
    pub spun_ns: u64,
    /// Of these, while the one that was waited for was not running.
    pub spun_in_vain_ns: u64,
    /// Rounds of the work that were finished.
    pub rounds: u64,
    /// For packets: nanoseconds from arrival to the end of handling, sorted.
    pub latencies_ns: Vec<u64>,
}

impl Outcome {
    /// The latency that `percent` of all packets do not exceed; zero without packets.
    pub fn percentile_ns(&self, percent: usize) -> u64 {
        let last = self.latencies_ns.len().saturating_sub(1);
        self.latencies_ns
            .get(last * percent.min(100) / 100)
            .copied()
            .unwrap_or(0)
    }
}

/// A small box with tasks.
pub struct Simulation {
    scheduler: Scheduler,
    now: u64,
    decisions: Vec<Decision>,
    /// When each CPU is to ask again because another said so.
    kicks: Vec<Option<u64>>,
    actors: Vec<Actor>,
    /// Who has the lock.
    holder: Option<usize>,
    random: u64,
    idle_ns: u64,
}

impl Simulation {
    /// A box with `cpus` CPUs and nothing to do. `seed` is not zero.
    pub fn new(policy: Policy, tuning: Tuning, cpus: usize, seed: u64) -> Simulation {
        Simulation {
            scheduler: Scheduler::new(policy, tuning, cpus),
            now: 0,
            decisions: alloc::vec![Decision::default(); cpus],
            kicks: alloc::vec![Some(0); cpus],
            actors: Vec::new(),
            holder: None,
            random: seed.max(1),
            idle_ns: 0,
        }
    }

    /// Adds a task.
    pub fn add(&mut self, kind: Kind, nice: Nice, allowed: CpuSet, work: Work) -> TaskId {
        let id = self.scheduler.add(kind, nice, allowed);
        let mut actor = Actor {
            kind,
            work,
            doing: Doing::Sleeping,
            arrivals: VecDeque::new(),
            next_arrival: u64::MAX,
            outcome: Outcome::default(),
        };
        if let Work::Packets { mean_apart_ns, .. } = work {
            actor.next_arrival = self.now + self.draw(mean_apart_ns);
        } else {
            actor.doing = self.next_round(work);
        }
        let wakes = actor.doing != Doing::Sleeping;
        self.actors.push(actor);
        if wakes {
            let kick = self.scheduler.wake(self.now, id);
            self.kick(kick);
        }
        id
    }

    /// Lets `ns` nanoseconds pass.
    pub fn run(&mut self, ns: u64) {
        let end = self.now + ns;
        while self.now < end {
            let next = self.next_event().clamp(self.now, end);
            self.advance(next - self.now);
            self.now = next;
            self.arrive();
            for cpu in 0..self.decisions.len() {
                self.step(cpu);
            }
        }
    }

    /// What came of a task's work so far.
    pub fn outcome(&mut self, id: TaskId) -> Outcome {
        let times = self.scheduler.statistics(id, self.now);
        let mut outcome = self
            .actors
            .get(id.0)
            .map(|actor| actor.outcome.clone())
            .unwrap_or_default();
        outcome.times = times;
        outcome.latencies_ns.sort_unstable();
        outcome
    }

    /// Whether a task waits for a CPU, and nothing will happen any more that could give it one: no timer, no kick, no end of work.
    pub fn is_stuck(&self) -> bool {
        self.next_event() == u64::MAX && self.scheduler.tasks.iter().any(super::Task::is_waiting)
    }

    /// What the gang cost so far.
    pub fn gang(&self) -> GangStatistics {
        self.scheduler.gang_statistics()
    }

    /// Nanoseconds of all CPUs together in which they did nothing.
    pub fn idle_ns(&self) -> u64 {
        self.idle_ns
    }

    /// What runs where.
    pub fn running(&self) -> impl Iterator<Item = Option<TaskId>> {
        self.decisions.iter().map(|decision| decision.run)
    }

    fn draw(&mut self, mean: u64) -> u64 {
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let number = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        1 + number % (2 * mean).max(1)
    }

    fn next_round(&mut self, work: Work) -> Doing {
        match work {
            Work::Burn => Doing::Computing(u64::MAX),
            Work::BurnInPieces { piece_ns } => Doing::Computing(piece_ns),
            Work::Lock {
                mean_outside_ns, ..
            } => Doing::Computing(self.draw(mean_outside_ns)),
            Work::Barrier { mean_ns } => Doing::Computing(self.draw(mean_ns)),
            Work::Packets { cost_ns, .. } => Doing::Computing(cost_ns),
        }
    }

    fn kick(&mut self, cpus: CpuSet) {
        for cpu in cpus.iter() {
            if let Some(kick) = self.kicks.get_mut(cpu) {
                *kick = Some(kick.map_or(self.now + KICK_NS, |at| at.min(self.now + KICK_NS)));
            }
        }
    }

    fn is_running(&self, actor: usize) -> bool {
        self.decisions
            .iter()
            .any(|decision| decision.run == Some(TaskId(actor)))
    }

    /// A service in the middle of a piece of work, which nothing interrupts.
    fn is_uninterruptible(&self, cpu: usize) -> bool {
        let actor = self
            .decisions
            .get(cpu)
            .and_then(|decision| self.actors.get(decision.run?.0));
        actor.is_some_and(|actor| {
            let pieces = matches!(actor.work, Work::BurnInPieces { .. } | Work::Packets { .. });
            actor.kind == Kind::Service
                && pieces
                && matches!(actor.doing, Doing::Computing(left) if left > 0)
        })
    }

    fn next_event(&self) -> u64 {
        let mut next = u64::MAX;
        for (cpu, decision) in self.decisions.iter().enumerate() {
            if !self.is_uninterruptible(cpu) {
                next = next.min(decision.until.unwrap_or(u64::MAX));
                next = next.min(self.kicks.get(cpu).copied().flatten().unwrap_or(u64::MAX));
            }
            if let Some(actor) = decision.run.and_then(|id| self.actors.get(id.0))
                && let Doing::Computing(left) | Doing::Holding(left) = actor.doing
            {
                next = next.min(self.now.saturating_add(left));
            }
        }
        for actor in &self.actors {
            next = next.min(actor.next_arrival);
        }
        next
    }

    /// Lets those that run do what they do.
    fn advance(&mut self, ns: u64) {
        for cpu in 0..self.decisions.len() {
            let Some(id) = self.decisions.get(cpu).and_then(|decision| decision.run) else {
                self.idle_ns += ns;
                continue;
            };
            let in_vain = self.waits_in_vain(id.0);
            let Some(actor) = self.actors.get_mut(id.0) else {
                continue;
            };
            match &mut actor.doing {
                Doing::Computing(left) | Doing::Holding(left) => *left = left.saturating_sub(ns),
                Doing::Spinning => {
                    actor.outcome.spun_ns += ns;
                    actor.outcome.spun_in_vain_ns += if in_vain { ns } else { 0 };
                }
                Doing::Sleeping => {}
            }
        }
    }

    /// Whether a spinning task waits for one that is not running.
    fn waits_in_vain(&self, index: usize) -> bool {
        let Some(actor) = self
            .actors
            .get(index)
            .filter(|actor| actor.doing == Doing::Spinning)
        else {
            return false;
        };
        match actor.work {
            Work::Lock { .. } => self.holder.is_some_and(|holder| !self.is_running(holder)),
            _ => self.actors.iter().enumerate().any(|(other, it)| {
                matches!(it.work, Work::Barrier { .. })
                    && it.doing != Doing::Spinning
                    && !self.is_running(other)
            }),
        }
    }

    fn arrive(&mut self) {
        for index in 0..self.actors.len() {
            let Some(actor) = self.actors.get_mut(index) else {
                continue;
            };
            let Work::Packets {
                mean_apart_ns,
                cost_ns,
            } = actor.work
            else {
                continue;
            };
            if actor.next_arrival > self.now {
                continue;
            }
            actor.arrivals.push_back(self.now);
            let sleeps = actor.doing == Doing::Sleeping;
            if sleeps {
                actor.doing = Doing::Computing(cost_ns);
            }
            let apart = self.draw(mean_apart_ns);
            if let Some(actor) = self.actors.get_mut(index) {
                actor.next_arrival = self.now + apart;
            }
            if sleeps {
                let kick = self.scheduler.wake(self.now, TaskId(index));
                self.kick(kick);
            }
        }
    }

    /// What a CPU does now: the next thing of the task that runs, or another decision.
    fn step(&mut self, cpu: usize) {
        let mut ask = false;
        if let Some(id) = self.decisions.get(cpu).and_then(|decision| decision.run) {
            ask |= self.progress(cpu, id.0);
        }
        let due = |at: Option<u64>| at.is_some_and(|at| at <= self.now);
        let kicked = due(self.kicks.get(cpu).copied().flatten());
        let timed_out = due(self.decisions.get(cpu).and_then(|decision| decision.until));
        ask |= (kicked || timed_out) && !self.is_uninterruptible(cpu);
        if !ask {
            return;
        }
        if let Some(kick) = self.kicks.get_mut(cpu)
            && kicked
        {
            *kick = None;
        }
        let decision = self.scheduler.schedule(self.now, cpu);
        self.kick(decision.kick.without(CpuSet::only(cpu)));
        if let Some(place) = self.decisions.get_mut(cpu) {
            *place = decision;
        }
    }

    /// Goes on with a task that may have come to the end of something. True if its CPU needs another decision.
    fn progress(&mut self, cpu: usize, index: usize) -> bool {
        let Some((work, doing)) = self
            .actors
            .get(index)
            .map(|actor| (actor.work, actor.doing))
        else {
            return false;
        };
        let mut ask = false;
        let mut done = 0;
        let next = match (work, doing) {
            (Work::Lock { mean_inside_ns, .. }, Doing::Computing(0) | Doing::Spinning) => {
                if self.holder.is_none() {
                    self.holder = Some(index);
                    Doing::Holding(self.draw(mean_inside_ns))
                } else {
                    Doing::Spinning
                }
            }
            (_, Doing::Holding(0)) => {
                self.holder = None;
                done = 1;
                self.next_round(work)
            }
            (Work::Barrier { .. }, Doing::Computing(0)) => {
                let all_came = self.actors.iter().enumerate().all(|(other, actor)| {
                    other == index
                        || !matches!(actor.work, Work::Barrier { .. })
                        || actor.doing == Doing::Spinning
                });
                if all_came {
                    self.open_barrier();
                    return false;
                }
                Doing::Spinning
            }
            (Work::BurnInPieces { .. }, Doing::Computing(0)) => {
                done = 1;
                ask = self.wants_decision(cpu);
                self.next_round(work)
            }
            (Work::Packets { cost_ns, .. }, Doing::Computing(0)) => {
                done = 1;
                let now = self.now;
                let more = self.actors.get_mut(index).is_some_and(|actor| {
                    if let Some(at) = actor.arrivals.pop_front() {
                        actor.outcome.latencies_ns.push(now - at);
                    }
                    !actor.arrivals.is_empty()
                });
                if more {
                    ask = self.wants_decision(cpu);
                    Doing::Computing(cost_ns)
                } else {
                    ask = true;
                    let kick = self.scheduler.block(now, cpu);
                    self.kick(kick);
                    Doing::Sleeping
                }
            }
            (_, same) => same,
        };
        if let Some(actor) = self.actors.get_mut(index) {
            actor.doing = next;
            actor.outcome.rounds += done;
        }
        ask
    }

    /// Whether a CPU should have asked while a piece of work was not to be interrupted.
    fn wants_decision(&self, cpu: usize) -> bool {
        let kick = self.kicks.get(cpu).copied().flatten();
        let until = self.decisions.get(cpu).and_then(|decision| decision.until);
        [kick, until].into_iter().flatten().any(|at| at <= self.now)
    }

    fn open_barrier(&mut self) {
        for index in 0..self.actors.len() {
            let Some(work) = self.actors.get(index).map(|actor| actor.work) else {
                continue;
            };
            if matches!(work, Work::Barrier { .. }) {
                let doing = self.next_round(work);
                if let Some(actor) = self.actors.get_mut(index) {
                    actor.doing = doing;
                    actor.outcome.rounds += 1;
                }
            }
        }
    }
}
