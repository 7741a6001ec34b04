//! The guest on its own CPU: checked, started, restarted by policy. What it does or fails to do never stops the network.

mod host;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use core::time::Duration;

use outpost::console::GuestSays;
use outpost::memory::Run;
use outpost::restart::{Ended, RestartPolicy};
use outpost_config::{Config, Guest};
use outpost_hv::cpu::svm::SvmVcpu;
use outpost_hv::exit::{ExitCounters, ExitCounts};
use outpost_hv::machine::{GuestImage, Machine, MachineConfig, Stop, StopReason};
use outpost_hv::mem::{GuestMemory, HostRange};
use spin::Mutex;

use super::GUEST_CPU;
use super::budget::Shares;
use crate::firmware::{Findings, GuestFiles};
use crate::machine::{clock, cpu, panic};
use crate::output::{self, telemetry};

pub use host::{Wire, console_input, console_output, has_console_output};

/// What the guest's CPU can make ready before it is told to start.
struct Material {
    files: GuestFiles,
    memory: Vec<Run>,
}

/// The word to start.
struct Order {
    /// What the box adds to the kernel's command line.
    words: String,
    machine: MachineConfig,
}

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
static EXITS: Mutex<Option<Arc<ExitCounters>>> = Mutex::new(None);
static RESTART: AtomicBool = AtomicBool::new(false);

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

/// The guest's state in a word or a line, for the telemetry.
pub fn state() -> String {
    if panic::lost_expendable() {
        return String::from(
            "stopped: its CPU is lost to a fault of the hypervisor; reset the box",
        );
    }
    match PHASE.load(Ordering::Acquire) {
        phase if phase == Phase::Starting as u8 => String::from("starting"),
        phase if phase == Phase::Init as u8 => String::from("init"),
        phase if phase == Phase::Ready as u8 => String::from("ready"),
        phase if phase == Phase::Stopped as u8 => format!("stopped: {}", REASON.lock()),
        _ => String::from("off"),
    }
}

/// How often the guest left for the hypervisor since it was started, by reason.
pub fn exits() -> ExitCounts {
    EXITS
        .lock()
        .as_ref()
        .map_or_else(ExitCounts::default, |counters| counters.snapshot())
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
    cpu::kick(GUEST_CPU);
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
pub fn start(findings: &Findings, cpus: usize, lan_mac: [u8; 6]) {
    let Ok(config) = &findings.config else {
        return;
    };
    let Some(guest) = &config.guest else {
        return;
    };
    if PHASE.load(Ordering::Acquire) == Phase::Stopped as u8 {
        let why = REASON.lock().clone();
        output::problem(&format!("guest: {why}"));
        telemetry::guest_stopped(&why, None);
        return;
    }
    if cpus <= GUEST_CPU {
        let why = "it needs a CPU of its own and the box has only one: use a box with two or more";
        output::problem(&format!("guest: {why}"));
        stopped(why);
        telemetry::guest_stopped(why, None);
        return;
    }
    set_phase(Phase::Starting);
    if guest.com3 {
        host::copy_output_to_com3();
    }
    *ORDER.lock() = Some(Order {
        words: words(config, guest),
        machine: MachineConfig {
            mac: Some(mac(lan_mac)),
            debug_exit: guest.debug_exit,
        },
    });
    cpu::kick(GUEST_CPU);
}

/// The box's words for the kernel's command line, then the configuration's.
fn words(config: &Config, guest: &Guest) -> String {
    let mut words = String::new();
    if let Some(address) = guest.address {
        let _ = write!(words, " outpost.address={address}");
    }
    if let Some(gateway) = config.management.gateway {
        let _ = write!(words, " outpost.gateway={gateway}");
    }
    let _ = write!(words, " outpost.name={}", guest.name);
    if !guest.cmdline.is_empty() {
        let _ = write!(words, " {}", guest.cmdline);
    }
    words
}

/// The guest's MAC address: locally administered, made from the LAN port's.
fn mac(lan: [u8; 6]) -> [u8; 6] {
    let [_, _, a, b, c, d] = lan;
    [0x02, 0x6f, a, b, c, d]
}

/// The life of the guest's CPU: make ready what can be, wait for the word, then run the guest for ever.
pub fn run() -> ! {
    let material = MATERIAL.lock().take();
    let checked = material.as_ref().map(|material| {
        clear(&material.memory);
        let started = clock::now_ms();
        let result = material.files.check();
        (result, clock::now_ms() - started)
    });
    let order = loop {
        if let Some(order) = ORDER.lock().take() {
            break order;
        }
        cpu::sleep();
    };
    panic::set_expendable(GUEST_CPU);
    let Some((material, (checked, took_ms))) = material.zip(checked) else {
        give_up("its files or its memory are missing: a mistake of this version");
    };
    match checked {
        Ok(()) => log::info!(
            "guest: {} is the pinned one (checked in {took_ms} ms)",
            material.files.name
        ),
        Err(why) => give_up(&why),
    }
    live(&material, &order)
}

/// Starts the guest again and again, as the policy has it.
fn live(material: &Material, order: &Order) -> ! {
    let mut policy = RestartPolicy::default();
    loop {
        RESTART.store(false, Ordering::Release);
        set_phase(Phase::Starting);
        let started = clock::now_ns();
        let ended = match run_once(material, order) {
            Ok(stop) => report(&stop),
            Err(why) => give_up(&why),
        };
        let ran = Duration::from_nanos(clock::now_ns() - started);
        match policy.after(ended, ran) {
            Some(wait) => {
                if !wait.is_zero() {
                    log::info!("guest: starts again in {} s", wait.as_secs());
                }
                wait_for_restart(Some(clock::now_ns() + wait.as_nanos() as u64));
            }
            None => {
                log::info!("guest: stays off until `restart` on the console");
                wait_for_restart(None);
            }
        }
        clear(&material.memory);
    }
}

/// There will be no guest until the box is reset.
fn give_up(why: &str) -> ! {
    output::problem(&format!("guest: {why}"));
    stopped(why);
    telemetry::guest_stopped(why, None);
    cpu::kick(super::NETWORK_CPU);
    cpu::arm_timer(None);
    loop {
        cpu::sleep();
    }
}

fn wait_for_restart(until_ns: Option<u64>) {
    while !restart_requested() && until_ns.is_none_or(|until| clock::now_ns() < until) {
        cpu::arm_timer(until_ns);
        cpu::sleep();
    }
}

/// Clears the guest's memory: what the firmware or an earlier run left there is none of the guest's business. Pages that are
/// zero already are only read: on a machine whose memory is made as it is written to, that is most of them.
fn clear(memory: &[Run]) {
    const PAGE: usize = 4096;
    for run in memory {
        for start in (run.start..run.end).step_by(PAGE) {
            // SAFETY: the run is the guest's alone (`budget`), and no guest runs.
            let page = unsafe { &mut *(start as *mut [u64; PAGE / 8]) };
            if page.iter().fold(0, |all, word| all | word) != 0 {
                page.fill(0);
            }
        }
    }
}

fn run_once(material: &Material, order: &Order) -> Result<Stop, String> {
    let ranges: Vec<HostRange> = material
        .memory
        .iter()
        .map(|run| HostRange {
            start: run.start,
            length: run.bytes(),
        })
        .collect();
    // SAFETY: the ranges are the guest's alone and mapped one to one; the only `GuestMemory` made of them before is gone.
    let memory = unsafe { GuestMemory::new(&ranges) }.map_err(|error| error.to_string())?;
    // SAFETY: this is ring 0 with all memory mapped one to one, and stays so; the machine takes memory and vCPU together.
    let vcpu = unsafe { SvmVcpu::of(&memory) }.map_err(|error| error.to_string())?;
    let tables = vcpu.tables();
    let mut machine = Machine::new(&order.machine, memory, Box::new(vcpu), host::get());
    let command_line = format!("{}{}", material.files.command_line, order.words);
    let image = GuestImage {
        kernel: material.files.kernel(),
        ramdisk: material.files.ramdisk(),
        command_line: &command_line,
    };
    machine
        .load(&order.machine, &image)
        .map_err(|error| error.to_string())?;
    log::info!(
        "guest: {} MiB in {} pages of 1 GiB and {} of 2 MiB, {} pages of nested tables",
        ranges.iter().map(|range| range.length).sum::<u64>() >> 20,
        tables.leaves_1g,
        tables.leaves_2m,
        tables.table_pages
    );
    *EXITS.lock() = Some(machine.counters());
    telemetry::milestone("guest-started");
    host::set_running(true);
    let stop = machine.run();
    host::set_running(false);
    Ok(stop)
}

/// Says why the guest stopped, with evidence if something is wrong.
fn report(stop: &Stop) -> Ended {
    let reason = stop.reason.to_string();
    stopped(&reason);
    let status = match stop.reason {
        StopReason::DebugExit(status) => Some(status),
        StopReason::PowerOff => Some(0),
        _ => None,
    };
    telemetry::guest_stopped(&reason, status);
    if stop.reason.is_orderly() {
        log::info!("guest: {reason}");
        log::info!("guest: {}", stop.evidence.counts);
    } else {
        output::problem(&format!("guest: {reason}"));
        for line in stop.evidence.to_string().lines() {
            log::error!("guest: {line}");
        }
    }
    match stop.reason {
        StopReason::PowerOff | StopReason::DebugExit(_) => Ended::Off,
        StopReason::Reset => Ended::Reset,
        StopReason::Requested => Ended::Requested,
        _ => Ended::Failed,
    }
}
