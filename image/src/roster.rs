//! Which task runs on which CPU, and how one that rests is woken: the scheduler ([`outpost_hv::sched`] is the policy) under its lock, and a protocol
//! by which no wake-up is lost. What a task does, and how a CPU sleeps, is not here.
//!
//! Whoever has something for a task notes it first ([`Sleeper::called`]) and looks then whether the task runs, or else wakes it. Whoever puts a task to
//! rest does it the other way round: the task runs nowhere any more, and then it is seen whether somebody has called. So one of the two sees the other. That a
//! task runs on a CPU ([`Seat::task`]) is changed under the scheduler's lock: what it says is never older than the task's last rest.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use outpost_hv::sched::{CpuSet, Scheduler, TaskId};
use spin::{Mutex, MutexGuard};

/// The machine's CPUs.
pub trait Cpus {
    /// The time, in nanoseconds.
    fn now_ns(&self) -> u64;
    /// The calling CPU.
    fn this(&self) -> usize;
    /// Has another CPU look: it wakes, or leaves the vCPU that it runs.
    fn kick(&self, cpu: usize);
    /// Stands between two steps where another CPU may come in; nothing but tests, which let it.
    #[inline]
    fn gap(&self) {}
}

/// A task that is not running.
#[derive(Debug)]
struct Sleeper {
    /// Somebody has something for it that it has not looked at.
    called: AtomicBool,
    /// When it wants to be woken; `u64::MAX`: by call only. Changed under the scheduler's lock.
    due_ns: AtomicU64,
    /// The CPU whose timer does that.
    home: AtomicUsize,
}

/// What a CPU's own code and others tell each other.
#[derive(Debug)]
struct Seat {
    /// The scheduler is to be asked again.
    ask: AtomicBool,
    /// When it is to be asked at the latest.
    until_ns: AtomicU64,
    /// The task that runs, plus one.
    task: AtomicUsize,
}

/// All tasks and all CPUs.
#[derive(Debug)]
pub struct Roster<C> {
    cpus: C,
    scheduler: Mutex<Scheduler>,
    /// One for each task, in their order.
    sleepers: Vec<Sleeper>,
    seats: Vec<Seat>,
}

impl<C: Cpus> Roster<C> {
    /// With the tasks of `scheduler`, `tasks` of them, on `count` CPUs.
    pub fn new(cpus: C, count: usize, scheduler: Scheduler, tasks: usize) -> Self {
        let sleeper = |_| Sleeper {
            called: AtomicBool::new(false),
            due_ns: AtomicU64::new(u64::MAX),
            home: AtomicUsize::new(0),
        };
        let seat = |_| Seat {
            ask: AtomicBool::new(false),
            until_ns: AtomicU64::new(u64::MAX),
            task: AtomicUsize::new(0),
        };
        Roster {
            cpus,
            scheduler: Mutex::new(scheduler),
            sleepers: (0..tasks).map(sleeper).collect(),
            seats: (0..count).map(seat).collect(),
        }
    }

    /// The scheduler, for what it has counted.
    pub fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        self.scheduler.lock()
    }

    /// True if a CPU holds the scheduler's lock at this moment.
    pub fn is_locked(&self) -> bool {
        self.scheduler.is_locked()
    }

    /// What CPU `index`, the calling one, is to run now; see [`Roster::until`] for how long.
    pub fn next(&self, index: usize) -> Option<TaskId> {
        let seat = self.seats.get(index)?;
        seat.ask.store(false, Ordering::Relaxed);
        let now = self.cpus.now_ns();
        let mut scheduler = self.scheduler.lock();
        let (mut kick, mut until) = (CpuSet::default(), u64::MAX);
        for (task, sleeper) in self.sleepers.iter().enumerate() {
            let due = sleeper.due_ns.load(Ordering::Relaxed);
            if due == u64::MAX || sleeper.home.load(Ordering::Relaxed) != index {
                continue;
            }
            if due <= now {
                sleeper.due_ns.store(u64::MAX, Ordering::Relaxed);
                kick = kick.with(scheduler.wake(now, TaskId(task)));
            } else {
                until = until.min(due);
            }
        }
        let decision = scheduler.schedule(now, index);
        self.cpus.gap();
        let running = decision.run.map_or(0, |task| task.0 + 1);
        seat.task.store(running, Ordering::SeqCst);
        drop(scheduler);
        self.cpus.gap();
        until = until.min(decision.until.unwrap_or(u64::MAX));
        seat.until_ns.store(until, Ordering::Relaxed);
        self.ask(kick.with(decision.kick).without(CpuSet::only(index)));
        decision.run
    }

    /// When CPU `index` is to ask again at the latest; `u64::MAX` for never.
    pub fn until(&self, index: usize) -> u64 {
        self.seats
            .get(index)
            .map_or(u64::MAX, |seat| seat.until_ns.load(Ordering::Relaxed))
    }

    /// Whether what runs on CPU `index`, the calling one, must make room so that the scheduler can be asked. It has heard all calls before this.
    pub fn must_ask(&self, index: usize) -> bool {
        let Some(seat) = self.seats.get(index) else {
            return false;
        };
        if let Some(task) = seat.task.load(Ordering::Relaxed).checked_sub(1) {
            self.hears(TaskId(task));
        }
        seat.ask.load(Ordering::Acquire) || self.cpus.now_ns() >= self.until(index)
    }

    /// Has these CPUs ask again.
    pub fn ask(&self, cpus: CpuSet) {
        for index in cpus.iter() {
            if let Some(seat) = self.seats.get(index) {
                seat.ask.store(true, Ordering::Release);
                if index != self.cpus.this() {
                    self.cpus.kick(index);
                }
            }
        }
    }

    /// The task, which runs, looks at everything that it was called for so far.
    pub fn hears(&self, task: TaskId) {
        if let Some(sleeper) = self.sleepers.get(task.0)
            && sleeper.called.load(Ordering::Relaxed)
        {
            // What the caller has for it was there before the call: whatever is read after this sees it.
            sleeper.called.swap(false, Ordering::SeqCst);
        }
    }

    /// There is something for a task. If it rests, it runs again; if it runs, and `interrupts`, its CPU is kicked so that it looks at once.
    pub fn call(&self, task: TaskId, interrupts: bool) {
        let Some(sleeper) = self.sleepers.get(task.0) else {
            return;
        };
        self.cpus.gap();
        sleeper.called.store(true, Ordering::SeqCst);
        self.cpus.gap();
        let mut seats = self.seats.iter();
        if let Some(index) = seats.position(|seat| seat.task.load(Ordering::SeqCst) == task.0 + 1) {
            if interrupts && index != self.cpus.this() {
                self.cpus.kick(index);
            }
            return;
        }
        self.cpus.gap();
        let now = self.cpus.now_ns();
        let mut scheduler = self.scheduler.lock();
        sleeper.due_ns.store(u64::MAX, Ordering::Relaxed);
        let kick = scheduler.wake(now, task);
        drop(scheduler);
        self.ask(kick);
    }

    /// The same for a task that looks only when it begins: one call is enough until it does.
    pub fn call_once(&self, task: TaskId) {
        let sleeper = self.sleepers.get(task.0);
        if !sleeper.is_some_and(|sleeper| sleeper.called.load(Ordering::SeqCst)) {
            self.call(task, false);
        }
    }

    /// The task that runs on CPU `index`, the calling one, has nothing to do until it is called, or until then.
    pub fn rest(&self, index: usize, task: TaskId, until: Option<u64>) {
        let (Some(sleeper), Some(seat)) = (self.sleepers.get(task.0), self.seats.get(index)) else {
            return;
        };
        let now = self.cpus.now_ns();
        let mut scheduler = self.scheduler.lock();
        seat.task.store(0, Ordering::SeqCst);
        let mut kick = scheduler.block(now, index);
        self.cpus.gap();
        if sleeper.called.swap(false, Ordering::SeqCst) {
            kick = kick.with(scheduler.wake(now, task));
        } else {
            sleeper.home.store(index, Ordering::Relaxed);
            let due = until.unwrap_or(u64::MAX);
            sleeper.due_ns.store(due, Ordering::Relaxed);
        }
        self.cpus.gap();
        drop(scheduler);
        self.ask(kick.without(CpuSet::only(index)));
    }
}

#[cfg(test)]
mod tests;
