//! The guest's life: checked, started, run where the scheduler says, restarted by policy. What it does or fails to do never stops the network.

mod disk;
mod host;
mod make;

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use core::time::Duration;

use outpost::console::GuestSays;
use outpost::restart::{Ended, RestartPolicy};
use outpost_config::Services;
use outpost_hv::device::virtio::block::BlockConfig;
use outpost_hv::exit::{ExitCounters, ExitCounts};
use outpost_hv::machine::{Left, Machine, MachineConfig, Stop, StopReason};
use outpost_hv::platform::layout::MAX_VCPUS;
use outpost_hv::platform::{DEVICE_VCPU, PlatformCounters};
use outpost_hv::sched::{CpuSet, Nice, Policy};
use spin::Mutex;

use super::budget::Shares;
use super::cpus::{self, Sharing, Turn};
use crate::firmware::{Findings, GuestCheck};
use crate::machine::cpu::{self, Path};
use crate::machine::{clock, panic};
use crate::output::{self, telemetry};

pub use disk::Disk;
pub use host::{Wire, console_input, console_output, has_console_output};
use make::{Material, Order, clear, collect_micros, mac, make, words};

/// Where the guest is in its life. Kept as one byte, so that the network's CPU never waits for the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Off,
    Starting,
    Init,
    Ready,
    Stopped,
}

static PHASE: AtomicU8 = AtomicU8::new(Phase::Off as u8);
/// Why it stopped, while it is stopped.
static REASON: Mutex<String> = Mutex::new(String::new());
static MATERIAL: Mutex<Option<Material>> = Mutex::new(None);
static ORDER: Mutex<Option<Order>> = Mutex::new(None);
/// Counters of the guest that runs or ran last.
static EXITS: Mutex<Vec<Arc<ExitCounters>>> = Mutex::new(Vec::new());
/// The guest that runs.
static MACHINE: Mutex<Option<Arc<Machine<'static>>>> = Mutex::new(None);
/// vCPUs that have seen its end.
static GONE: AtomicU64 = AtomicU64::new(0);
static RESTART: AtomicBool = AtomicBool::new(false);
static SHUT_DOWN: AtomicBool = AtomicBool::new(false);

/// A guest that has not shut down so long after its power button was pressed does not do it. (Debian's services get 90 s to stop, and need few.)
pub const BUTTON_PATIENCE_NS: u64 = 60_000_000_000;

fn set_phase(phase: Phase) {
    PHASE.store(phase as u8, Ordering::Release);
}

fn stopped(why: &str) {
    let mut reason = REASON.lock();
    reason.clear();
    reason.push_str(why);
    drop(reason);
    set_phase(Phase::Stopped);
}

/// The guest's state in a word or a line: what it is when it is shown.
#[derive(Clone, Copy, Debug)]
pub struct State;

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if panic::lost_expendable() {
            return f
                .write_str("stopped: its CPU is lost to a fault of the hypervisor; reset the box");
        }
        match PHASE.load(Ordering::Acquire) {
            phase if phase == Phase::Starting as u8 => f.write_str("starting"),
            phase if phase == Phase::Init as u8 => f.write_str("init"),
            phase if phase == Phase::Ready as u8 => f.write_str("ready"),
            phase if phase == Phase::Stopped as u8 => write!(f, "stopped: {}", REASON.lock()),
            _ => f.write_str("off"),
        }
    }
}

/// Something of each vCPU.
pub type EachVcpu<T> = heapless::Vec<T, MAX_VCPUS>;

/// How often the guest left for the hypervisor since it was started, by reason.
pub fn exits() -> ExitCounts {
    let each = exits_by_vcpu();
    each.into_iter()
        .fold(ExitCounts::default(), ExitCounts::with)
}

/// The same for each vCPU.
pub fn exits_by_vcpu() -> EachVcpu<ExitCounts> {
    let exits = EXITS.lock();
    let counts = exits.iter().map(|counters| counters.snapshot());
    counts.take(MAX_VCPUS).collect()
}

/// What happened to the devices of the guest that runs, and whether it has a disk; none if no guest runs.
pub fn device_counters() -> Option<(PlatformCounters, bool)> {
    let machine = MACHINE.lock().clone()?;
    Some(machine.with_platform(|platform| (platform.counters(), platform.has_block())))
}

/// Notes what the guest said on its console.
pub fn note(says: GuestSays) {
    let (phase, milestone) = match says {
        GuestSays::Init => (Phase::Init, "guest-init"),
        GuestSays::Ready => (Phase::Ready, "guest-ready"),
    };
    // What a guest said before it stopped must not bring it back to life.
    if PHASE.load(Ordering::Acquire) != Phase::Stopped as u8 {
        set_phase(phase);
        telemetry::milestone(milestone);
    }
}

/// Asks for the guest to be stopped and started again.
pub fn request_restart() {
    RESTART.store(true, Ordering::Release);
    cpus::call_keeper();
    cpus::call_vcpu(DEVICE_VCPU);
}

/// True while the guest runs, or is about to.
pub fn is_running() -> bool {
    let phase = PHASE.load(Ordering::Acquire);
    phase != Phase::Off as u8 && phase != Phase::Stopped as u8 && !panic::lost_expendable()
}

/// Has the guest's power button pressed; a guest that is to start again after a pause stays off. False if it does not run.
pub fn shut_down() -> bool {
    SHUT_DOWN.store(true, Ordering::Release);
    cpus::call_keeper();
    is_running()
}

/// True when the guest is to stop.
fn restart_requested() -> bool {
    RESTART.load(Ordering::Acquire)
}

/// Puts the guest's files and memory where its CPU finds them as soon as it runs. Says later, in [`start`], what is missing.
pub fn lay_out(findings: &mut Findings, shares: &mut Shares) {
    let files = findings.guest.take();
    let memory = shares.guest.take();
    match (files, memory) {
        (Some(Ok(files)), Some(Ok(memory))) => *MATERIAL.lock() = Some(Material { files, memory }),
        (Some(Err(why)), _) => stopped(&why),
        (_, Some(Err(why))) => stopped(&why.to_string()),
        _ => {}
    }
}

/// Tells the guest's CPU to start it, or says why there will be no guest.
pub fn start(findings: &Findings, lan_mac: [u8; 6], block: Option<BlockConfig>) {
    let Ok(config) = &findings.config else {
        return;
    };
    let Some(guest) = &config.guest else {
        return;
    };
    if PHASE.load(Ordering::Acquire) == Phase::Stopped as u8 {
        let why = REASON.lock().clone();
        output::problem(format_args!("guest: {why}"));
        telemetry::guest_stopped(&why, None);
        return;
    }
    set_phase(Phase::Starting);
    if guest.com3 {
        host::copy_output_to_com3();
    }
    *ORDER.lock() = Some(Order {
        words: words(config, guest),
        cmdline: guest.cmdline.clone(),
        machine: MachineConfig {
            mac: Some(mac(lan_mac)),
            block,
            debug_exit: guest.debug_exit,
            wake_micros: cpus::wake_micros(),
            collect_micros: collect_micros(),
        },
        vcpus: guest.vcpus as usize,
    });
    cpus::call_keeper();
}

/// How the guest shares the CPUs with the box.
pub fn sharing(findings: &Findings) -> Sharing {
    let config = findings.config.as_ref().ok();
    let nice = |value: i8| Nice::new(value).unwrap_or_default();
    let guest = config.and_then(|config| config.guest.as_ref());
    let services = config.map_or_else(Services::default, |config| config.services.clone());
    Sharing {
        policy: guest.map_or(Policy::Balance, |guest| match guest.policy {
            outpost_config::Policy::Fair => Policy::Fair,
            outpost_config::Policy::Balance => Policy::Balance,
            outpost_config::Policy::Gang => Policy::Gang,
            outpost_config::Policy::Placed => Policy::Placed,
        }),
        vcpus: guest.map_or(0, |guest| guest.vcpus as usize),
        guest: guest.map_or(Nice::default(), |guest| nice(guest.nice)),
        services: nice(services.nice),
        cpus: guest.map_or(CpuSet::default(), |guest| set_of(&guest.cpus)),
        load: set_of(&services.load),
    }
}

fn set_of(cpus: &[u8]) -> CpuSet {
    cpus.iter().fold(CpuSet::default(), |set, cpu| {
        set.with(CpuSet::only(usize::from(*cpu)))
    })
}

/// Where the keeper is.
enum Stage {
    /// The files are to be checked; since when that is under way, in milliseconds.
    Check { since: u64 },
    /// The memory is to be cleared, from this byte of this run on.
    Clear { run: usize, offset: u64 },
    /// Ready; waits for the word.
    AwaitOrder,
    /// The guest runs.
    Watch,
    /// The guest is off, until then or until somebody wants it back.
    Pause(Option<u64>),
    /// There will be no guest until the box is reset.
    Off,
}

/// Starts the guest again and again, as the policy has it.
struct Keeper {
    stage: Stage,
    material: Option<Material>,
    order: Option<Order>,
    policy: RestartPolicy,
    check: GuestCheck,
    started_ns: u64,
    /// The power button was pressed, and is to be answered by then.
    answer_by_ns: Option<u64>,
}

static KEEPER: Mutex<Option<Keeper>> = Mutex::new(None);

/// How long a piece of the keeper's work takes, in nanoseconds: the network waits for its end, where both have one CPU.
const PIECE_NS: u64 = 100_000;
/// Between two looks at the clock so much is checked, or cleared.
const CHECK_BYTES: usize = 4 << 10;
const CLEAR_BYTES: u64 = 64 << 10;

/// One piece of the keeper's work.
pub fn keep() -> Turn {
    let mut place = KEEPER.lock();
    let keeper = place.get_or_insert_with(|| Keeper {
        stage: Stage::Check {
            since: clock::now_ms(),
        },
        material: MATERIAL.lock().take(),
        order: None,
        policy: RestartPolicy::default(),
        check: GuestCheck::default(),
        started_ns: 0,
        answer_by_ns: None,
    });
    keeper.turn()
}

impl Keeper {
    fn turn(&mut self) -> Turn {
        match self.stage {
            Stage::Check { since } => self.check(since),
            Stage::Clear { run, offset } => self.clear(run, offset),
            Stage::AwaitOrder => self.await_order(),
            Stage::Watch => self.watch(),
            Stage::Pause(until) => {
                if SHUT_DOWN.swap(false, Ordering::AcqRel) && until.is_some() {
                    self.stay_off();
                    return Turn::Busy;
                }
                if restart_requested() || until.is_some_and(|until| clock::now_ns() >= until) {
                    self.stage = Stage::Clear { run: 0, offset: 0 };
                    return Turn::Busy;
                }
                Turn::Idle(until)
            }
            Stage::Off => Turn::Idle(None),
        }
    }

    fn check(&mut self, since: u64) -> Turn {
        let Some(material) = &self.material else {
            // Why is known already, and said when the box is told to start it.
            self.stage = Stage::Off;
            return Turn::Idle(None);
        };
        let end = clock::now_ns() + PIECE_NS;
        loop {
            match material.files.check(&mut self.check, CHECK_BYTES) {
                Ok(true) => break,
                Ok(false) if clock::now_ns() < end => {}
                Ok(false) => return Turn::Busy,
                Err(why) => return self.give_up(&why),
            }
        }
        log::info!(
            "guest: {} is the pinned one (checked in {} ms)",
            material.files.name,
            clock::now_ms() - since
        );
        self.stage = Stage::Clear { run: 0, offset: 0 };
        Turn::Busy
    }

    fn clear(&mut self, run: usize, offset: u64) -> Turn {
        let runs = self.material.as_ref().map(|material| &material.memory);
        let Some(this) = runs.and_then(|runs| runs.get(run)) else {
            self.stage = Stage::AwaitOrder;
            return Turn::Busy;
        };
        let mut start = this.start + offset;
        let until = clock::now_ns() + PIECE_NS;
        while start < this.end && clock::now_ns() < until {
            let end = this.end.min(start + CLEAR_BYTES);
            clear(start, end);
            start = end;
        }
        self.stage = if start == this.end {
            Stage::Clear {
                run: run + 1,
                offset: 0,
            }
        } else {
            Stage::Clear {
                run,
                offset: start - this.start,
            }
        };
        Turn::Busy
    }

    fn await_order(&mut self) -> Turn {
        if self.order.is_none() {
            self.order = ORDER.lock().take();
        }
        let (Some(material), Some(order)) = (&self.material, &self.order) else {
            return Turn::Idle(None);
        };
        panic::set_expendable();
        RESTART.store(false, Ordering::Release);
        SHUT_DOWN.store(false, Ordering::Release);
        set_phase(Phase::Starting);
        match make(material, order) {
            Ok(machine) => {
                *EXITS.lock() = machine.counters();
                GONE.store(0, Ordering::Release);
                *MACHINE.lock() = Some(Arc::new(machine));
                self.started_ns = clock::now_ns();
                self.stage = Stage::Watch;
                telemetry::milestone("guest-started");
                host::set_running(true);
                cpus::call_vcpu(0);
                Turn::Idle(None)
            }
            Err(why) => self.give_up(&why),
        }
    }

    fn watch(&mut self) -> Turn {
        let vcpus = MACHINE.lock().as_ref().map_or(0, |machine| machine.vcpus());
        let all = CpuSet::below(vcpus).0;
        if vcpus > 0 && GONE.load(Ordering::Acquire) & all != all {
            return Turn::Idle(self.press());
        }
        self.answer_by_ns = None;
        host::set_running(false);
        let stop = MACHINE.lock().take().and_then(|machine| {
            // The CPU that said so last lets go of it in a moment.
            while Arc::strong_count(&machine) > 1 {
                core::hint::spin_loop();
            }
            machine.stop()
        });
        let Some(stop) = stop else {
            return self.give_up("it ended without a reason: a mistake of this version");
        };
        let ended = report(&stop);
        let ran = Duration::from_nanos(clock::now_ns() - self.started_ns);
        let until = match self.policy.after(ended, ran) {
            Some(wait) => {
                if !wait.is_zero() {
                    log::info!("guest: starts again in {} s", wait.as_secs());
                }
                Some(clock::now_ns() + wait.as_nanos() as u64)
            }
            None => {
                self.stay_off();
                return Turn::Busy;
            }
        };
        self.stage = Stage::Pause(until);
        Turn::Busy
    }

    fn stay_off(&mut self) {
        log::info!("guest: stays off until `restart` on the console");
        self.stage = Stage::Pause(None);
    }

    /// Presses the power button of the guest that runs, if someone wants that, and sees whether it is answered. Gives when to look again.
    fn press(&mut self) -> Option<u64> {
        let now = clock::now_ns();
        if SHUT_DOWN.swap(false, Ordering::AcqRel)
            && let Some(machine) = MACHINE.lock().clone()
        {
            machine.with_platform(|platform| platform.press_power_button());
            log::info!("guest: its power button is pressed");
            self.answer_by_ns = Some(now + BUTTON_PATIENCE_NS);
        }
        let answer_by = self.answer_by_ns?;
        if now < answer_by {
            return Some(answer_by);
        }
        self.answer_by_ns = None;
        output::problem(format_args!(
            "guest: it has not shut down within {} s of its power button being pressed: it goes on; `restart` on the console stops it without asking. \
             Does it run something that heeds the button (acpid, systemd-logind)?",
            BUTTON_PATIENCE_NS / 1_000_000_000
        ));
        None
    }

    /// There will be no guest until the box is reset.
    fn give_up(&mut self, why: &str) -> Turn {
        output::problem(format_args!("guest: {why}"));
        stopped(why);
        telemetry::guest_stopped(why, None);
        cpus::call_network();
        self.stage = Stage::Off;
        Turn::Idle(None)
    }
}

/// Runs a vCPU on this CPU, number `index`, until it leaves it.
pub fn run(vcpu: usize, index: usize) -> Turn {
    let machine = MACHINE.lock().clone();
    let Some(machine) = machine.filter(|_| !panic::lost_expendable()) else {
        return Turn::Idle(None);
    };
    match cpu::on_path(Path::Exits, || machine.run(vcpu, index)) {
        Left::Resting(until) => Turn::Idle(until),
        Left::Preempted => Turn::Busy,
        Left::Stopped => {
            machine.release(vcpu, index);
            let all = CpuSet::below(machine.vcpus()).0;
            drop(machine);
            let bit = CpuSet::only(vcpu).0;
            if (GONE.fetch_or(bit, Ordering::AcqRel) | bit) & all == all {
                cpus::call_keeper();
            }
            Turn::Idle(None)
        }
    }
}

/// Unloads a vCPU from this CPU, number `index`.
pub fn release(vcpu: usize, index: usize) {
    let machine = MACHINE.lock().clone();
    if let Some(machine) = machine {
        machine.release(vcpu, index);
    }
}

/// True if a CPU is at work on the guest's devices at this moment.
pub fn is_locked() -> bool {
    MACHINE.is_locked()
        || disk::is_locked()
        || MACHINE
            .lock()
            .as_ref()
            .is_some_and(|machine| machine.is_locked())
}

/// Says why the guest stopped, with evidence if something is wrong. A box that waits for its guest's end goes when all is said.
fn report(stop: &Stop) -> Ended {
    let reason = stop.reason.to_string();
    let status = match stop.reason {
        StopReason::DebugExit(status) => Some(status),
        StopReason::PowerOff => Some(0),
        _ => None,
    };
    telemetry::guest_stopped(&reason, status);
    if stop.reason.is_orderly() {
        log::info!("guest: {reason}");
        let each = exits_by_vcpu();
        log::info!("guest: {}", exits());
        for (vcpu, counts) in each.iter().enumerate().filter(|_| each.len() > 1) {
            log::info!("guest: vCPU {vcpu}: {counts}");
        }
    } else {
        output::problem(format_args!("guest: {reason}"));
        for line in stop.evidence.to_string().lines() {
            log::error!("guest: {line}");
        }
    }
    stopped(&reason);
    match stop.reason {
        StopReason::PowerOff | StopReason::DebugExit(_) => Ended::Off,
        StopReason::Reset => Ended::Reset,
        StopReason::Requested => Ended::Requested,
        _ => Ended::Failed,
    }
}
