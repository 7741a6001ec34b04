//! Resetting the box, its power button, and switching it off.

use core::sync::atomic::{AtomicU64, Ordering};

use outpost::acpi::Register;
use outpost::power_switch::PowerSwitch;
use spin::Once;

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

static SWITCH: Once<PowerSwitch> = Once::new();

/// Power button, in PM1's status and enable registers (ACPI 6.5, 4.8.3.1).
const POWER_BUTTON: u16 = 1 << 8;

/// Takes the power button over from the firmware. Without this call, or without a switch, the firmware does with it what it likes.
pub fn watch_button(switch: Option<PowerSwitch>) {
    /// PM1 control: ACPI's events are ours, not the firmware's.
    const SCI_ENABLED: u16 = 1;
    /// Firmware answers at once, or never.
    const TRIES: u32 = 1000;
    let Some(switch) = switch else {
        return;
    };
    let is_ours = || port::read_u16(switch.controls.0) & SCI_ENABLED != 0;
    if let (false, Some((command, enable))) = (is_ours(), switch.take_over) {
        port::write_u8(command, enable);
        for _ in 0..TRIES {
            if is_ours() {
                break;
            }
            clock::spin_us(100);
        }
    }
    if is_ours() {
        port::write_u16(switch.status, POWER_BUTTON);
        // No interrupt comes of it: the I/O APIC is left as after reset.
        port::write_u16(switch.enable, POWER_BUTTON);
        SWITCH.call_once(|| switch);
    }
}

/// True if the button was pressed since the last look.
pub fn button_was_pressed() -> bool {
    let Some(switch) = SWITCH.get() else {
        return false;
    };
    let pressed = port::read_u16(switch.status) & POWER_BUTTON != 0;
    if pressed {
        port::write_u16(switch.status, POWER_BUTTON);
    }
    pressed
}

/// Switches the box off; resets it if that does not work.
pub fn off() -> ! {
    const SLEEP: u16 = 1 << 13;
    if let Some(switch) = SWITCH.get() {
        let write = |control: u16, kind: u8, more: u16| {
            const KEPT: u16 = 0x0203;
            let kept = port::read_u16(control) & KEPT;
            port::write_u16(control, kept | u16::from(kind) << 10 | more);
        };
        let (first, second) = switch.controls;
        write(first, switch.off.0, 0);
        write(first, switch.off.0, SLEEP);
        if let Some(second) = second {
            write(second, switch.off.1, SLEEP);
        }
        clock::spin_us(1_000_000);
    }
    reset()
}
