//! Resetting the box.

use core::sync::atomic::{AtomicU64, Ordering};

use outpost::acpi::Register;

use super::{clock, cpu, port};

/// The ACPI reset register, packed: bit 63 set, bit 62 for memory, value in bits 48 to 55, address below. Zero for none.
static REGISTER: AtomicU64 = AtomicU64::new(0);

const PRESENT: u64 = 1 << 63;
const MEMORY: u64 = 1 << 62;
const ADDRESS: u64 = (1 << 48) - 1;

/// Notes the reset register that ACPI names.
pub fn set_reset_register(reset: Option<(Register, u8)>) {
    let packed = match reset {
        Some((Register::Port(port), value)) => PRESENT | u64::from(value) << 48 | u64::from(port),
        Some((Register::Memory(address), value)) if address <= ADDRESS => {
            PRESENT | MEMORY | u64::from(value) << 48 | address
        }
        _ => 0,
    };
    REGISTER.store(packed, Ordering::Relaxed);
}

/// Resets the box: by ACPI, by the chipset's reset control register, by the keyboard controller.
pub fn reset() -> ! {
    const RESET_CONTROL: u16 = 0xcf9;
    const KEYBOARD_COMMAND: u16 = 0x64;
    let packed = REGISTER.load(Ordering::Relaxed);
    let value = (packed >> 48) as u8;
    if packed & PRESENT != 0 {
        if packed & MEMORY != 0 {
            // SAFETY: ACPI names this register for resetting the machine; devices are mapped one to one.
            unsafe { ((packed & ADDRESS) as *mut u8).write_volatile(value) };
        } else {
            port::write_u8((packed & ADDRESS) as u16, value);
        }
        clock::spin_us(100_000);
    }
    port::write_u8(RESET_CONTROL, 0x02);
    clock::spin_us(50);
    port::write_u8(RESET_CONTROL, 0x06);
    clock::spin_us(100_000);
    port::write_u8(KEYBOARD_COMMAND, 0xfe);
    clock::spin_us(100_000);
    cpu::halt_for_ever()
}
