//! Time: nanoseconds since the binary's first instruction, from the time-stamp counter.
//!
//! The counter's frequency comes from CPUID when it says, else it is measured against the ACPI timer or the PIT: once shortly
//! at the start, and again over the whole firmware phase, which makes it exact to a few parts per million.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};

use outpost::acpi::Register;
use raw_cpuid::CpuId;

use super::port;

static START: AtomicU64 = AtomicU64::new(0);
static HZ: AtomicU64 = AtomicU64::new(1_000_000_000);
/// Nanoseconds for each tick, times 2^32.
static SCALE: AtomicU64 = AtomicU64::new(1 << 32);
/// Unix time in seconds at the first instruction.
static BOOT_UNIX_SECONDS: AtomicU64 = AtomicU64::new(0);

/// ACPI 6.5, 4.8.2.1: the power management timer's frequency in hertz.
const PM_TIMER_HZ: u64 = 3_579_545;
/// The PIT's frequency in hertz.
const PIT_HZ: u64 = 1_193_182;

/// The time-stamp counter now.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// Notes the counter at the first instruction.
pub fn set_start(first: u64) {
    START.store(first, Ordering::Relaxed);
}

fn set_frequency(hz: u64) {
    let hz = hz.max(1_000_000);
    HZ.store(hz, Ordering::Relaxed);
    let scale = (1_000_000_000_u128 << 32) / u128::from(hz);
    SCALE.store(u64::try_from(scale).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// The time-stamp counter's frequency in hertz.
pub fn tsc_hz() -> u64 {
    HZ.load(Ordering::Relaxed)
}

/// Nanoseconds since the first instruction, for a reading of the counter.
pub fn ns_at(tsc: u64) -> u64 {
    let ticks = tsc.saturating_sub(START.load(Ordering::Relaxed));
    ((u128::from(ticks) * u128::from(SCALE.load(Ordering::Relaxed))) >> 32) as u64
}

/// Nanoseconds since the first instruction.
pub fn now_ns() -> u64 {
    ns_at(tsc())
}

/// Milliseconds since the first instruction.
pub fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// The counter's reading `ns` nanoseconds after the first instruction.
pub fn tsc_at(ns: u64) -> u64 {
    let ticks = u128::from(ns) * u128::from(tsc_hz()) / 1_000_000_000;
    START.load(Ordering::Relaxed).saturating_add(ticks as u64)
}

/// Notes that it is `unix_seconds` now.
pub fn set_wall_clock(unix_seconds: u64) {
    BOOT_UNIX_SECONDS.store(
        unix_seconds.saturating_sub(now_ns() / 1_000_000_000),
        Ordering::Relaxed,
    );
}

/// Unix time in seconds at the first instruction; zero if unknown.
pub fn boot_unix_seconds() -> u64 {
    BOOT_UNIX_SECONDS.load(Ordering::Relaxed)
}

/// Waits, without sleeping, for `micros` microseconds. For start-up and for the way down only.
pub fn spin_us(micros: u64) {
    let end = now_ns() + micros * 1000;
    while now_ns() < end {
        core::hint::spin_loop();
    }
}

/// Where the counter's frequency comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// CPUID leaf 15H, or KVM's leaf 4000_0010H.
    Cpuid,
    /// Measured against the ACPI timer.
    PmTimer,
    /// Measured against the PIT.
    Pit,
}

/// A measurement of the time-stamp counter that has begun.
pub struct Calibration {
    timer: Option<(Register, u32, u64)>,
    source: Source,
}

/// Finds a first value of the frequency, within 50 ms, and begins a longer measurement.
pub fn calibrate(pm_timer: Option<Register>) -> Calibration {
    if let Some(hz) = frequency_from_cpuid() {
        set_frequency(hz);
        return Calibration {
            timer: None,
            source: Source::Cpuid,
        };
    }
    if let Some(timer) = pm_timer.filter(|&timer| pm_timer_runs(timer)) {
        let (count, tsc) = sample(timer);
        let ticks = PM_TIMER_HZ / 200;
        let (mut later, mut later_tsc) = (count, tsc);
        while u64::from(later.wrapping_sub(count) & 0xff_ffff) < ticks {
            (later, later_tsc) = sample(timer);
        }
        let elapsed = u64::from(later.wrapping_sub(count) & 0xff_ffff);
        set_frequency((later_tsc - tsc) * PM_TIMER_HZ / elapsed.max(1));
        return Calibration {
            timer: Some((timer, count, tsc)),
            source: Source::PmTimer,
        };
    }
    set_frequency(frequency_from_pit());
    Calibration {
        timer: None,
        source: Source::Pit,
    }
}

impl Calibration {
    /// Ends the measurement. Gives the source of the frequency that holds from now on.
    pub fn finish(self) -> Source {
        if let Some((timer, count, tsc)) = self.timer {
            let (later, later_tsc) = sample(timer);
            let ticks = later_tsc.saturating_sub(tsc);
            // The timer has 24 bits, 4.7 s: the first value of the frequency tells how often it went round.
            let rough = (u128::from(ticks) * u128::from(PM_TIMER_HZ) / u128::from(tsc_hz())) as u64;
            let low = u64::from(later.wrapping_sub(count) & 0xff_ffff);
            let rounds = (rough.saturating_sub(low) + (1 << 23)) >> 24;
            let elapsed = low + (rounds << 24);
            if elapsed > PM_TIMER_HZ / 100 {
                let hz = u128::from(ticks) * u128::from(PM_TIMER_HZ) / u128::from(elapsed);
                set_frequency(hz as u64);
            }
        }
        self.source
    }
}

fn frequency_from_cpuid() -> Option<u64> {
    let cpuid = CpuId::new();
    if let Some(hz) = cpuid.get_tsc_info().and_then(|info| info.tsc_frequency()) {
        return Some(hz);
    }
    let hypervisor = cpuid.get_hypervisor_info()?;
    if hypervisor.identify() == raw_cpuid::Hypervisor::KVM {
        return hypervisor
            .tsc_frequency()
            .filter(|&khz| khz > 0)
            .map(|khz| u64::from(khz) * 1000);
    }
    None
}

fn read_pm_timer(timer: Register) -> u32 {
    match timer {
        Register::Port(number) => port::read_u32(number),
        // SAFETY: ACPI says that the timer's register is there, and memory is mapped one to one.
        Register::Memory(address) => unsafe { (address as *const u32).read_volatile() },
    }
}

fn pm_timer_runs(timer: Register) -> bool {
    let first = read_pm_timer(timer);
    (0..10_000).any(|_| read_pm_timer(timer) != first)
}

/// The ACPI timer and the time-stamp counter at the same moment: the closest of several pairs.
fn sample(timer: Register) -> (u32, u64) {
    let mut best = (0, 0);
    let mut best_width = u64::MAX;
    for _ in 0..8 {
        let before = tsc();
        let count = read_pm_timer(timer);
        let width = tsc().saturating_sub(before);
        if width < best_width {
            best_width = width;
            best = (count, before + width / 2);
        }
    }
    best
}

/// Counts time-stamp ticks while the PIT's channel 2 counts down 50 ms (8254 data sheet, mode 0; gate and output in port 61H).
fn frequency_from_pit() -> u64 {
    const CHANNEL_2: u16 = 0x42;
    const COMMAND: u16 = 0x43;
    const GATE: u16 = 0x61;
    let count = (PIT_HZ / 20) as u16;
    let gate = port::read_u8(GATE);
    port::write_u8(GATE, (gate & !0x02) | 0x01);
    port::write_u8(COMMAND, 0xb0);
    port::write_u8(CHANNEL_2, count as u8);
    port::write_u8(CHANNEL_2, (count >> 8) as u8);
    let before = tsc();
    let mut polls = 0_u32;
    while port::read_u8(GATE) & 0x20 == 0 && polls < 10_000_000 {
        polls += 1;
    }
    let ticks = tsc() - before;
    port::write_u8(GATE, gate);
    ticks * 20
}
