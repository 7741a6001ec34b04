//! The local APIC, in xAPIC mode (registers in memory) or x2APIC mode (MSRs): APM vol. 2, chapter 16.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use raw_cpuid::CpuId;
use x86_64::registers::model_specific::Msr;

use super::{clock, interrupts, paging};

/// Register offsets in xAPIC mode; divided by 16 and added to 800H they are the MSR numbers.
const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const LVT_ERROR: u32 = 0x370;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

const IA32_APIC_BASE: u32 = 0x1b;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_MSRS: u32 = 0x800;

const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ADDRESS: u64 = 0xf_ffff_ffff_f000;

const LVT_MASKED: u32 = 1 << 16;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const LVT_NMI: u32 = 4 << 8;
const SOFTWARE_ENABLE: u32 = 1 << 8;

const DELIVERY_INIT: u32 = 5 << 8;
const DELIVERY_STARTUP: u32 = 6 << 8;
const DELIVERY_NMI: u32 = 4 << 8;
const LEVEL_ASSERT: u32 = 1 << 14;
const DELIVERY_PENDING: u32 = 1 << 12;
const ALL_BUT_SELF: u32 = 3 << 18;

/// Longest time the timer is armed for, in nanoseconds; one that is farther away is armed again when this is over.
const LONGEST_NS: u64 = 10_000_000_000;

/// Address of the registers; zero in x2APIC mode.
static XAPIC: AtomicU64 = AtomicU64::new(0);
static READY: AtomicBool = AtomicBool::new(false);
static DEADLINE_MODE: AtomicBool = AtomicBool::new(false);
/// Timer ticks for each nanosecond, times 2^32.
static TICKS_PER_NS: AtomicU64 = AtomicU64::new(0);

fn read(register: u32) -> u32 {
    match XAPIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on, and `register` is one of the constants above.
        0 => unsafe { Msr::new(X2APIC_MSRS + (register >> 4)).read() as u32 },
        // SAFETY: the page at `base` is mapped uncached and is this CPU's APIC.
        base => unsafe { ((base + u64::from(register)) as *const u32).read_volatile() },
    }
}

fn write(register: u32, value: u32) {
    match XAPIC.load(Ordering::Relaxed) {
        // SAFETY: as `read`; the values written deliver only vectors that the IDT handles.
        0 => unsafe { Msr::new(X2APIC_MSRS + (register >> 4)).write(u64::from(value)) },
        // SAFETY: as above.
        base => unsafe { ((base + u64::from(register)) as *mut u32).write_volatile(value) },
    }
}

/// Finds out which mode to use. Once, on the boot CPU, before [`enable`].
pub fn detect() {
    let features = CpuId::new().get_feature_info();
    let has = |test: fn(&raw_cpuid::FeatureInfo) -> bool| features.as_ref().is_some_and(test);
    // SAFETY: every CPU with SVM or VMX has this MSR.
    let base = unsafe { Msr::new(IA32_APIC_BASE).read() };
    if !has(raw_cpuid::FeatureInfo::has_x2apic) {
        let address = base & BASE_ADDRESS;
        paging::map_device(address, 4096);
        XAPIC.store(address, Ordering::Relaxed);
    }
    DEADLINE_MODE.store(
        has(raw_cpuid::FeatureInfo::has_tsc_deadline),
        Ordering::Relaxed,
    );
}

/// Switches the calling CPU's APIC on, with everything masked but the timer.
pub fn enable() {
    // SAFETY: switching the APIC on, or to x2APIC mode where CPUID offers it, disturbs nothing that is in use.
    unsafe {
        let mut base = Msr::new(IA32_APIC_BASE).read() | BASE_ENABLE;
        if XAPIC.load(Ordering::Relaxed) == 0 {
            base |= BASE_X2APIC;
        }
        Msr::new(IA32_APIC_BASE).write(base);
    }
    write(TASK_PRIORITY, 0);
    write(LVT_LINT0, LVT_MASKED);
    write(LVT_LINT1, LVT_NMI);
    write(LVT_ERROR, LVT_MASKED);
    write(TIMER_DIVIDE, 0b1011); // by 1
    write(TIMER_INITIAL, 0);
    let mode = if DEADLINE_MODE.load(Ordering::Relaxed) {
        LVT_TSC_DEADLINE
    } else {
        0
    };
    write(LVT_TIMER, mode | u32::from(interrupts::TIMER));
    write(SPURIOUS, SOFTWARE_ENABLE | u32::from(interrupts::SPURIOUS));
    READY.store(true, Ordering::Release);
}

/// Measures the timer against the clock, for 2 ms. On the boot CPU, after [`enable`].
pub fn calibrate_timer() {
    if DEADLINE_MODE.load(Ordering::Relaxed) {
        return;
    }
    write(LVT_TIMER, LVT_MASKED | u32::from(interrupts::TIMER));
    write(TIMER_INITIAL, u32::MAX);
    let (first, from) = (read(TIMER_CURRENT), clock::now_ns());
    clock::spin_us(2000);
    let (last, to) = (read(TIMER_CURRENT), clock::now_ns());
    write(TIMER_INITIAL, 0);
    write(LVT_TIMER, u32::from(interrupts::TIMER));
    let ticks = u64::from(first.wrapping_sub(last));
    TICKS_PER_NS.store((ticks << 32) / (to - from).max(1), Ordering::Relaxed);
}

/// The calling CPU's APIC identifier.
pub fn id() -> u32 {
    let id = read(ID);
    if XAPIC.load(Ordering::Relaxed) == 0 {
        id
    } else {
        id >> 24
    }
}

/// Tells the APIC that the interrupt it delivered has been handled.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Arms the calling CPU's timer; a deadline in the past comes at once.
pub fn arm_timer(deadline_ns: Option<u64>) {
    let now = clock::now_ns();
    let deadline = deadline_ns.map(|deadline| deadline.min(now + LONGEST_NS));
    if DEADLINE_MODE.load(Ordering::Relaxed) {
        let tsc = deadline.map_or(0, |deadline| clock::tsc_at(deadline).max(1));
        // SAFETY: CPUID offers the deadline timer, and its vector has a handler.
        unsafe { Msr::new(IA32_TSC_DEADLINE).write(tsc) };
        return;
    }
    let count = deadline.map_or(0, |deadline| {
        let ns = u128::from(deadline.saturating_sub(now));
        let ticks = (ns * u128::from(TICKS_PER_NS.load(Ordering::Relaxed))) >> 32;
        u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
    });
    write(TIMER_INITIAL, count);
}

fn command(destination: u32, low: u32) {
    if XAPIC.load(Ordering::Relaxed) == 0 {
        let value = u64::from(destination) << 32 | u64::from(low);
        // Writing an MSR of the x2APIC is no barrier (Intel SDM vol. 3, 11.12.3): what the message is about comes first.
        // SAFETY: fences have no other effect.
        unsafe { core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags)) };
        // SAFETY: x2APIC mode is on; the callers send only what the IDT or the trampoline handles.
        unsafe { Msr::new(X2APIC_MSRS + (COMMAND_LOW >> 4)).write(value) };
        return;
    }
    write(COMMAND_HIGH, destination << 24);
    write(COMMAND_LOW, low);
    let mut polls = 0;
    while read(COMMAND_LOW) & DELIVERY_PENDING != 0 && polls < 100_000 {
        polls += 1;
        core::hint::spin_loop();
    }
}

/// Sends the interrupt `vector` to the CPU with APIC identifier `to`.
pub fn send_ipi(to: u32, vector: u8) {
    command(to, LEVEL_ASSERT | u32::from(vector));
}

/// Whom a start-up message is for.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// The CPU with this APIC identifier.
    One(u32),
    /// Every other CPU.
    Others,
}

fn command_to(target: Target, low: u32) {
    match target {
        Target::One(id) => command(id, low | LEVEL_ASSERT),
        Target::Others => command(0, low | LEVEL_ASSERT | ALL_BUT_SELF),
    }
}

/// Sends INIT.
pub fn send_init(target: Target) {
    command_to(target, DELIVERY_INIT);
}

/// Sends SIPI: the target starts in real mode at the page numbered `page` (below 100H).
pub fn send_startup(target: Target, page: u8) {
    command_to(target, DELIVERY_STARTUP | u32::from(page));
}

/// Sends NMI to every other CPU. Does nothing before the APIC is on.
pub fn send_nmi_to_others() {
    if READY.load(Ordering::Acquire) {
        command_to(Target::Others, DELIVERY_NMI);
    }
}
