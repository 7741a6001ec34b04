//! When we are broken: say so with evidence, then reset. A CPU that only ran the guest is parked instead, and the box goes on.

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{apic, clock, cpu, heap, power};
use crate::output;

static PANICKING: AtomicBool = AtomicBool::new(false);
/// Set while the box can bear the loss of the CPUs other than the boot CPU.
static EXPENDABLE: AtomicBool = AtomicBool::new(false);
static LOST: AtomicBool = AtomicBool::new(false);

/// A box that panics soon after its start will do so again: it waits longer before the reset.
const EARLY_MS: u64 = 60_000;
const EARLY_WAIT_MS: u64 = 60_000;
const LATE_WAIT_MS: u64 = 5_000;

/// True while a CPU brings the box down.
pub fn is_panicking() -> bool {
    PANICKING.load(Ordering::Acquire)
}

/// Says that the CPUs other than the boot CPU run nothing but the guest: if one panics, the rest of the box goes on.
pub fn set_expendable() {
    EXPENDABLE.store(true, Ordering::Release);
}

/// True if the expendable CPU has panicked.
pub fn lost_expendable() -> bool {
    LOST.load(Ordering::Acquire)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    x86_64::instructions::interrupts::disable();
    let index = cpu::index();
    // Locks that this CPU holds would hang the others: then the box cannot go on without it.
    let bearable = index != 0
        && EXPENDABLE.load(Ordering::Acquire)
        && !LOST.swap(true, Ordering::AcqRel)
        && !heap::is_locked()
        && !output::is_locked()
        && !crate::appliance::holds_locks();
    if bearable {
        log::error!("CPU {index}: {info}");
        output::problem(
            "a fault of the hypervisor cost the guest its CPU; the network goes on. Reset the box to have the guest back, and report the lines above",
        );
        output::telemetry::guest_stopped("its CPU is lost to a fault of the hypervisor", None);
        cpu::kick(0);
        cpu::halt_for_ever();
    }
    if PANICKING.swap(true, Ordering::AcqRel) {
        cpu::halt_for_ever();
    }
    apic::send_nmi_to_others();
    let mut port = output::Emergency::new();
    let _ = writeln!(
        port,
        "\r\n\r\n[panic on CPU {index} at {} ms] {info}\r",
        clock::now_ms()
    );
    let wait_ms = if clock::now_ms() < EARLY_MS {
        EARLY_WAIT_MS
    } else {
        LATE_WAIT_MS
    };
    let _ = writeln!(port, "[panic] the box resets in {} s\r", wait_ms / 1000);
    let end = clock::now_ms() + wait_ms;
    while clock::now_ms() < end {
        core::hint::spin_loop();
    }
    power::reset()
}
