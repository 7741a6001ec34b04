//! What each CPU knows about itself, how it sleeps, and how another wakes it.

use alloc::boxed::Box;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

use x86_64::registers::model_specific::GsBase;
use x86_64::{VirtAddr, instructions::interrupts};

use super::apic;

/// The most CPUs that are started.
pub const MAX_CPUS: usize = 64;

/// The timer went off.
pub const WAKE_TIMER: u32 = 1;
/// Another CPU kicked this one.
pub const WAKE_KICK: u32 = 2;
/// A device interrupted.
pub const WAKE_DEVICE: u32 = 4;

/// What a CPU is doing, as far as it matters whether it may allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Path {
    /// Anything: boot, housekeeping, the console, the guest's keeper.
    Other = 0,
    /// It runs a vCPU.
    Exits = 1,
    /// It takes frames from ports and guest.
    Frames = 2,
    /// It sees to the flows, and to who reads a page: what frames and time have led to.
    Flows = 3,
}

impl Path {
    /// Every path, in order.
    pub const ALL: [Path; 4] = [Path::Other, Path::Exits, Path::Frames, Path::Flows];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Path::Other => "other",
            Path::Exits => "exits",
            Path::Frames => "frames",
            Path::Flows => "flows",
        }
    }
}

/// One CPU. Reached by its own code through the GS base, by others through [`by_index`].
#[repr(C)]
pub struct Cpu {
    /// Where this structure is: `gs:[0]`.
    this: AtomicPtr<Cpu>,
    /// 0 is the boot CPU.
    index: usize,
    apic_id: u32,
    /// `WAKE_` bits noted by interrupt handlers since the CPU last looked.
    wakes: AtomicU32,
    /// A kick is on its way that the CPU has not taken yet.
    kicked: AtomicBool,
    /// The time for which the timer is armed; `u64::MAX` for none.
    armed_ns: AtomicU64,
    /// Nanoseconds spent asleep; while it sleeps, [`SLEEPS`] and the time less those, so that both change at once.
    asleep_ns: AtomicU64,
    /// A [`Path`].
    path: AtomicU8,
}

/// The CPU sleeps.
const SLEEPS: u64 = 1 << 63;

static CPUS: [AtomicPtr<Cpu>; MAX_CPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];
static ARRIVED: AtomicBool = AtomicBool::new(false);

/// Where the GS base points on a CPU that has not registered: `gs:[0]` then says "nobody".
static NOBODY: AtomicPtr<Cpu> = AtomicPtr::new(core::ptr::null_mut());

/// First thing on a CPU: from here on it can ask who it is.
pub fn arrive() {
    GsBase::write(VirtAddr::from_ptr(&raw const NOBODY));
    ARRIVED.store(true, Ordering::Release);
}

/// Makes the calling CPU number `index`. Called once on each CPU, after its APIC is on.
pub fn register(index: usize) {
    let cpu = Box::leak(Box::new(Cpu {
        this: AtomicPtr::new(core::ptr::null_mut()),
        index,
        apic_id: apic::id(),
        wakes: AtomicU32::new(0),
        kicked: AtomicBool::new(false),
        armed_ns: AtomicU64::new(u64::MAX),
        asleep_ns: AtomicU64::new(0),
        path: AtomicU8::new(Path::Other as u8),
    }));
    let pointer = &raw mut *cpu;
    cpu.this.store(pointer, Ordering::Relaxed);
    GsBase::write(VirtAddr::from_ptr(pointer));
    if let Some(slot) = CPUS.get(index) {
        slot.store(pointer, Ordering::Release);
    }
}

/// The CPU with this number, if it has registered.
pub fn by_index(index: usize) -> Option<&'static Cpu> {
    let pointer = CPUS.get(index)?.load(Ordering::Acquire);
    // SAFETY: null or a leaked `Cpu`, whose fields are atomics or never change after registration.
    unsafe { pointer.as_ref() }
}

/// The calling CPU. None before it has registered.
fn this() -> Option<&'static Cpu> {
    if !ARRIVED.load(Ordering::Relaxed) {
        return None;
    }
    let pointer: *const Cpu;
    // SAFETY: once the boot CPU has arrived, every CPU that runs Rust code has, from `arrive` on, its GS base at `NOBODY` or at
    // its leaked `Cpu`; both begin with a pointer.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) pointer, options(nostack, preserves_flags, readonly))
    };
    // SAFETY: as above.
    unsafe { pointer.as_ref() }
}

/// The calling CPU's number; 0 before it has registered.
pub fn index() -> usize {
    this().map_or(0, |cpu| cpu.index)
}

/// Does something on a path.
pub fn on_path<T>(path: Path, act: impl FnOnce() -> T) -> T {
    let Some(cpu) = this() else {
        return act();
    };
    let before = cpu.path.swap(path as u8, Ordering::Relaxed);
    let result = act();
    cpu.path.store(before, Ordering::Relaxed);
    result
}

/// The path that the calling CPU is on.
pub fn path() -> Path {
    let path = this().map_or(0, |cpu| cpu.path.load(Ordering::Relaxed));
    Path::ALL
        .get(usize::from(path))
        .copied()
        .unwrap_or(Path::Other)
}

/// Notes, in an interrupt handler, why the CPU was woken.
pub fn note_wake(why: u32) {
    if let Some(cpu) = this() {
        if why == WAKE_KICK {
            cpu.kicked.store(false, Ordering::Release);
        }
        if why == WAKE_TIMER {
            cpu.armed_ns.store(u64::MAX, Ordering::Relaxed);
        }
        cpu.wakes.fetch_or(why, Ordering::AcqRel);
    }
}

/// Wakes another CPU, or makes it leave guest execution. Cheap if a kick is already on its way.
pub fn kick(index: usize) {
    if let Some(cpu) = by_index(index)
        && !cpu.kicked.swap(true, Ordering::AcqRel)
    {
        apic::send_ipi(cpu.apic_id, super::interrupts::KICK);
    }
}

/// Arms the calling CPU's timer for `deadline_ns` (as [`super::clock::now_ns`] counts), or stops it.
pub fn arm_timer(deadline_ns: Option<u64>) {
    let Some(cpu) = this() else {
        return;
    };
    let deadline = deadline_ns.unwrap_or(u64::MAX);
    if cpu.armed_ns.swap(deadline, Ordering::Relaxed) != deadline {
        apic::arm_timer(deadline_ns);
    }
}

/// Takes the interrupts that are pending. Returns the `WAKE_` bits noted since the last look.
pub fn take_interrupts() -> u32 {
    // SAFETY: handlers only note and acknowledge; STI holds interrupts off for one instruction, so that NOP is where they come.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
    this().map_or(0, |cpu| cpu.wakes.swap(0, Ordering::AcqRel))
}

/// Sleeps until an interrupt. Returns at once if one was noted since the last look: no wake-up is lost. Returns its `WAKE_` bits.
pub fn sleep() -> u32 {
    let Some(cpu) = this() else {
        return 0;
    };
    if cpu.wakes.load(Ordering::Acquire) == 0 {
        let awake_ns = super::clock::now_ns().saturating_sub(cpu.asleep_ns.load(Ordering::Relaxed));
        cpu.asleep_ns.store(SLEEPS | awake_ns, Ordering::Relaxed);
        // SAFETY: interrupts are off until STI, whose shadow covers HLT: one that is pending wakes it.
        unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
        let asleep_ns = super::clock::now_ns().saturating_sub(awake_ns);
        cpu.asleep_ns.store(asleep_ns, Ordering::Relaxed);
    }
    cpu.wakes.swap(0, Ordering::AcqRel)
}

/// Nanoseconds that each CPU has slept, the sleep that one is in included.
pub fn asleep_ns() -> impl Iterator<Item = u64> {
    (0..).map_while(by_index).map(|cpu| {
        let noted = cpu.asleep_ns.load(Ordering::Relaxed);
        match noted & SLEEPS {
            0 => noted,
            _ => super::clock::now_ns().saturating_sub(noted & !SLEEPS),
        }
    })
}

/// APIC identifier of CPU `index`.
pub fn apic_id(index: usize) -> Option<u32> {
    by_index(index).map(|cpu| cpu.apic_id)
}

/// Stops the calling CPU for good.
pub fn halt_for_ever() -> ! {
    loop {
        interrupts::disable();
        x86_64::instructions::hlt();
    }
}
