//! The bare machine once the firmware is gone: memory, CPUs, interrupts, time. No devices.

pub mod apic;
pub mod clock;
pub mod cpu;
pub mod emulator;
pub mod entropy;
pub mod entry;
pub mod heap;
pub mod interrupts;
pub mod paging;
pub mod panic;
pub mod port;
pub mod power;
pub mod smp;
