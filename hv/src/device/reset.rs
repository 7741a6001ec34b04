//! The ways to stop a PC: reset control register, keyboard controller pulse, fast reset, and the debug-exit port of test kernels.

/// Why the guest wants to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Power off (ACPI S5).
    Off,
    /// Reset.
    Reset,
    /// A write to the debug-exit port: the status of the guest, `value × 2 + 1`, as QEMU's isa-debug-exit gives it.
    DebugExit(u32),
    /// The guest has not answered its watchdog for so many seconds.
    Watchdog(u32),
}

/// System control port A: the A20 gate, always open.
const A20: u8 = 2;
const FAST_RESET: u8 = 1;
/// Reset control register: reset the CPU.
const RESET_CPU: u8 = 4;
/// Keyboard controller command: pulse output port bit 0, wired to the CPU's reset.
const PULSE_RESET: u8 = 0xFE;

/// The reset logic.
#[derive(Clone, Debug, Default)]
pub struct ResetControl {
    control: u8,
}

impl ResetControl {
    /// Reads the reset control register.
    pub fn read_control(&self) -> u8 {
        self.control
    }

    /// Writes the reset control register.
    #[must_use]
    pub fn write_control(&mut self, value: u8) -> Option<PowerEvent> {
        self.control = value & 0x0A;
        (value & RESET_CPU != 0).then_some(PowerEvent::Reset)
    }

    /// Reads system control port A.
    pub fn read_system_control(&self) -> u8 {
        A20
    }

    /// Writes system control port A.
    #[must_use]
    pub fn write_system_control(&self, value: u8) -> Option<PowerEvent> {
        (value & FAST_RESET != 0).then_some(PowerEvent::Reset)
    }

    /// Reads the keyboard controller's status: ready for commands, nothing to read. There is no keyboard.
    pub fn read_keyboard_status(&self) -> u8 {
        0
    }

    /// Writes a keyboard controller command.
    #[must_use]
    pub fn write_keyboard_command(&self, value: u8) -> Option<PowerEvent> {
        (value == PULSE_RESET).then_some(PowerEvent::Reset)
    }

    /// Writes the debug-exit port.
    #[must_use]
    pub fn write_debug_exit(&self, value: u32) -> PowerEvent {
        PowerEvent::DebugExit(value.wrapping_mul(2).wrapping_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_resets() {
        let mut reset = ResetControl::default();
        assert_eq!(reset.write_control(2), None);
        assert_eq!(reset.read_control(), 2);
        assert_eq!(reset.write_control(6), Some(PowerEvent::Reset));
        assert_eq!(reset.write_keyboard_command(0xD1), None);
        assert_eq!(reset.write_keyboard_command(0xFE), Some(PowerEvent::Reset));
        assert_eq!(reset.write_system_control(2), None);
        assert_eq!(reset.write_system_control(3), Some(PowerEvent::Reset));
        assert_eq!(reset.write_debug_exit(0x10), PowerEvent::DebugExit(0x21));
    }
}
