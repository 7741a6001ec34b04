//! Threads as CPUs: tasks hand each other one message as fast as they can. A single call that is lost leaves it lying.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex as StdMutex};
use std::time::{Duration, Instant};

use outpost_hv::sched::{Kind, Nice, Policy, Tuning};

use super::*;

thread_local! {
    static THIS: Cell<usize> = const { Cell::new(0) };
    static GAPS: Cell<u64> = const { Cell::new(0x5EED) };
}

/// The kicks of a CPU that it has not noticed.
#[derive(Debug, Default)]
struct Bell(StdMutex<bool>, Condvar);

impl Bell {
    fn ring(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }

    /// Waits for a kick, but not beyond `limit`.
    fn wait(&self, limit: Duration) {
        let rung = self.0.lock().unwrap();
        let (mut rung, _) = self
            .1
            .wait_timeout_while(rung, limit, |rung| !*rung)
            .unwrap();
        *rung = false;
    }
}

#[derive(Debug)]
struct Threads {
    start: Instant,
    bells: Vec<Bell>,
}

impl Cpus for Arc<Threads> {
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
    fn this(&self) -> usize {
        THIS.get()
    }
    fn kick(&self, cpu: usize) {
        self.bells[cpu].ring();
    }
    fn gap(&self) {
        let mut numbers = Numbers(GAPS.get());
        if numbers.below(4) == 0 {
            let until = self.now_ns() + numbers.below(30_000) as u64;
            while self.now_ns() < until {
                std::hint::spin_loop();
            }
        }
        GAPS.set(numbers.0);
    }
}

/// Numbers from a seed (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

const TASKS: usize = 5;
/// Far beyond what a busy machine makes it wait.
const PATIENCE: Duration = Duration::from_secs(30);

struct Scene {
    threads: Arc<Threads>,
    roster: Roster<Arc<Threads>>,
    letters: [AtomicUsize; TASKS],
    delivered: AtomicUsize,
    wanted: usize,
    over: AtomicBool,
}

impl Scene {
    fn new(policy: Policy, cpus: usize, wanted: usize) -> Self {
        let mut scheduler = Scheduler::new(policy, Tuning::default(), cpus);
        for task in 0..TASKS {
            let kind = if task == 0 { Kind::Service } else { Kind::Vcpu };
            scheduler.add(kind, Nice::default(), CpuSet::below(cpus));
        }
        let threads = Arc::new(Threads {
            start: Instant::now(),
            bells: (0..cpus).map(|_| Bell::default()).collect(),
        });
        Scene {
            roster: Roster::new(Arc::clone(&threads), cpus, scheduler, TASKS),
            threads,
            letters: Default::default(),
            delivered: AtomicUsize::new(0),
            wanted,
            over: AtomicBool::new(false),
        }
    }

    fn send(&self, task: usize) {
        self.letters[task].fetch_add(1, Ordering::SeqCst);
        // The service does not leave what it does; vCPUs do.
        self.roster.call(TaskId(task), task != 0);
    }

    /// Like a vCPU: it looks, is in the guest until it is kicked or has to make room, and rests now and then.
    fn run(&self, task: usize, index: usize, numbers: &mut Numbers) {
        while !self.roster.must_ask(index) && !self.over.load(Ordering::SeqCst) {
            let letters = self.letters[task].swap(0, Ordering::SeqCst);
            for _ in 0..letters {
                if self.delivered.fetch_add(1, Ordering::SeqCst) >= self.wanted {
                    self.over.store(true, Ordering::SeqCst);
                    self.threads.bells.iter().for_each(Bell::ring);
                    return;
                }
                self.send(numbers.below(TASKS));
            }
            if letters > 0 {
                continue;
            }
            if task == 0 || numbers.below(3) == 0 {
                let until = (numbers.below(50) == 0).then(|| self.threads.now_ns() + 20_000);
                return self.roster.rest(index, TaskId(task), until);
            }
            self.wait(index);
        }
    }

    /// Until a kick or this CPU's timer.
    fn wait(&self, index: usize) {
        let now = self.threads.now_ns();
        let left = Duration::from_nanos(self.roster.until(index).saturating_sub(now));
        self.threads.bells[index].wait(left.min(PATIENCE));
    }

    fn cpu(&self, index: usize, seed: u64) {
        THIS.set(index);
        let mut numbers = Numbers(seed);
        while !self.over.load(Ordering::SeqCst) {
            match self.roster.next(index) {
                Some(task) => self.run(task.0, index, &mut numbers),
                None => self.wait(index),
            }
        }
    }
}

fn play(policy: Policy, cpus: usize, wanted: usize) {
    const SEED: u64 = 0x5EED;
    let scene = Scene::new(policy, cpus, wanted);
    std::thread::scope(|scope| {
        for index in 0..cpus {
            let scene = &scene;
            scope.spawn(move || scene.cpu(index, SEED + index as u64));
        }
        // Somebody who is no CPU of the roster begins, as a device does.
        THIS.set(usize::MAX);
        scene.send(0);
        let mut before = 0;
        let mut last = Instant::now();
        while !scene.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
            let delivered = scene.delivered.load(Ordering::SeqCst);
            if delivered != before {
                (before, last) = (delivered, Instant::now());
            }
            if last.elapsed() > PATIENCE {
                scene.over.store(true, Ordering::SeqCst);
                scene.threads.bells.iter().for_each(Bell::ring);
                panic!("{policy}, {cpus} CPUs: the message is left lying after {delivered}");
            }
        }
    });
    assert!(scene.delivered.load(Ordering::SeqCst) > wanted);
}

#[test]
fn no_call_is_lost() {
    for policy in [Policy::Fair, Policy::Balance, Policy::Gang] {
        // On one CPU every vCPU has its slice before the next one looks.
        for (cpus, messages) in [(1, 200), (2, 4_000), (3, 8_000)] {
            play(policy, cpus, messages);
        }
    }
}

#[test]
fn a_task_that_runs_is_kicked_and_not_woken() {
    let scene = Scene::new(Policy::Balance, 2, 0);
    THIS.set(1);
    let rung = |cpu: usize| std::mem::take(&mut *scene.threads.bells[cpu].0.lock().unwrap());
    scene.roster.call(TaskId(1), true);
    THIS.set(0);
    let first = (0..2).find(|cpu| scene.roster.next(*cpu) == Some(TaskId(1)));
    let home = first.expect("the task that was called runs");
    rung(0);
    rung(1);
    THIS.set(1 - home);
    scene.roster.call(TaskId(1), true);
    assert!(rung(home) && !rung(1 - home));
    // It hears, and nobody calls again: it may rest. A call that came between is not lost.
    assert!(!scene.roster.must_ask(home));
    scene.roster.call(TaskId(1), false);
    assert!(!rung(home), "a service is not interrupted");
    THIS.set(home);
    scene.roster.rest(home, TaskId(1), None);
    assert_eq!(scene.roster.next(home), Some(TaskId(1)), "it was called");
    scene.roster.hears(TaskId(1));
    scene.roster.rest(home, TaskId(1), Some(u64::MAX - 1));
    assert_eq!(scene.roster.next(home), None);
    assert_eq!(scene.roster.until(home), u64::MAX - 1);
    assert_eq!(
        scene
            .roster
            .scheduler()
            .statistics(TaskId(1), u64::MAX / 2)
            .wakes,
        2
    );
}

/// One thread that plays all CPUs, at times that it sets.
#[derive(Debug)]
struct Still;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
    /// What is done at each gap until it says that it is through.
    static ACTION: Cell<Option<fn() -> bool>> = const { Cell::new(None) };
    static STILL: Cell<Option<&'static Roster<Still>>> = const { Cell::new(None) };
}

impl Cpus for Still {
    fn now_ns(&self) -> u64 {
        NOW.get()
    }
    fn this(&self) -> usize {
        THIS.get()
    }
    fn kick(&self, _: usize) {}
    fn gap(&self) {
        if let Some(action) = ACTION.take()
            && !action()
        {
            ACTION.set(Some(action));
        }
    }
}

#[test]
fn a_seat_never_says_that_a_task_runs_which_has_left_it() {
    const MOVES: TaskId = TaskId(0);
    const STAYS: TaskId = TaskId(1);
    let mut scheduler = Scheduler::new(Policy::Balance, Tuning::default(), 2);
    scheduler.add(Kind::Vcpu, Nice::default(), CpuSet::below(2));
    scheduler.add(Kind::Service, Nice::default(), CpuSet::only(0));
    let roster: &'static _ = Box::leak(Box::new(Roster::new(Still, 2, scheduler, 2)));
    STILL.set(Some(roster));
    roster.call(MOVES, true);
    assert_eq!(roster.next(0), Some(MOVES));
    NOW.set(10_000_000);
    THIS.set(2);
    roster.call(STAYS, false);
    // While CPU 0 passes on to the other task, CPU 1 takes the first one, which rests there and is called.
    ACTION.set(Some(|| {
        let roster = STILL.get().unwrap();
        if roster.is_locked() {
            return false;
        }
        THIS.set(1);
        assert_eq!(roster.next(1), Some(MOVES));
        assert!(!roster.must_ask(1));
        roster.rest(1, MOVES, None);
        THIS.set(2);
        roster.call(MOVES, true);
        true
    }));
    assert_eq!(roster.next(0), Some(STAYS));
    assert!(ACTION.take().is_none(), "nothing came between");
    assert_eq!(roster.next(1), Some(MOVES), "the call was lost");
}
