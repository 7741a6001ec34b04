//! ACPI fixed hardware (ACPI 6.5, 4.8): PM1 event and control registers, the PM timer, and an empty GPE block.
//!
//! The guest's power-off comes through here (SLP_EN), and the box's wish that it shut down (the power button).

use super::reset::PowerEvent;
use super::{bytes_of, merge_bytes};

/// PM1 status and enable: the power button.
const POWER_BUTTON: u16 = 1 << 8;
/// Status and enable bits that exist: global lock, power button, RTC.
const STATUS_BITS: u16 = 1 << 5 | POWER_BUTTON | 1 << 10;

/// PM1 control: the system control interrupt is enabled, always: there is no SMI to switch it.
const CONTROL_SCI: u16 = 1;
const CONTROL_SLEEP_TYPE: u16 = 7 << 10;
const CONTROL_SLEEP: u16 = 1 << 13;

/// `SLP_TYP` of S5, as the DSDT's `_S5` says. Other values do nothing.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// Frequency of the PM timer, in hertz (4.8.3.3).
const TIMER_HZ: u128 = 3_579_545;

/// The power management block.
#[derive(Clone, Debug, Default)]
pub struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
    gpe_enable: u16,
}

impl PowerManagement {
    /// Reads `width` bytes at `offset` of the event block.
    pub fn read_event(&self, offset: u16, width: u8) -> u32 {
        let both = u32::from(self.enable) << 16 | u32::from(self.status);
        bytes_of(both, 4, offset, width)
    }

    /// Writes there: ones clear status bits.
    pub fn write_event(&mut self, offset: u16, width: u8, value: u32) {
        let cleared = merge_bytes(0, 4, offset, width, value) as u16;
        self.status &= !cleared;
        let enable = merge_bytes(u32::from(self.enable) << 16, 4, offset, width, value) >> 16;
        self.enable = enable as u16 & STATUS_BITS;
    }

    /// Reads `width` bytes at `offset` of the control block.
    pub fn read_control(&self, offset: u16, width: u8) -> u32 {
        bytes_of(u32::from(self.control | CONTROL_SCI), 2, offset, width)
    }

    /// Writes there. SLP_EN with the right type powers the guest off; it reads as zero.
    #[must_use]
    pub fn write_control(&mut self, offset: u16, width: u8, value: u32) -> Option<PowerEvent> {
        let control = merge_bytes(u32::from(self.control), 2, offset, width, value) as u16;
        self.control = control & (CONTROL_SLEEP_TYPE | 2);
        let sleep_type = (control & CONTROL_SLEEP_TYPE) >> 10;
        (control & CONTROL_SLEEP != 0 && sleep_type == u16::from(SLEEP_TYPE_OFF))
            .then_some(PowerEvent::Off)
    }

    /// Reads `width` bytes at `offset` of the timer: 32 bits at 3.579545 MHz.
    pub fn read_timer(&self, offset: u16, width: u8, now_ns: u64) -> u32 {
        let ticks = u128::from(now_ns) * TIMER_HZ / 1_000_000_000;
        bytes_of(ticks as u32, 4, offset, width)
    }

    /// Reads `width` bytes at `offset` of GPE block 0: no event ever happens in it.
    pub fn read_gpe(&self, offset: u16, width: u8) -> u32 {
        bytes_of(u32::from(self.gpe_enable) << 16, 4, offset, width)
    }

    /// Writes there.
    pub fn write_gpe(&mut self, offset: u16, width: u8, value: u32) {
        let both = merge_bytes(u32::from(self.gpe_enable) << 16, 4, offset, width, value);
        self.gpe_enable = (both >> 16) as u16;
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// The system control interrupt's line.
    pub fn interrupt(&self) -> bool {
        self.status & self.enable != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_button_interrupts_until_cleared() {
        let mut pm = PowerManagement::default();
        pm.press_power_button();
        assert!(!pm.interrupt());
        pm.write_event(2, 2, 0x120);
        assert!(pm.interrupt());
        assert_eq!(pm.read_event(0, 2), 0x100);
        pm.write_event(0, 2, 0x20);
        assert!(pm.interrupt());
        pm.write_event(0, 2, 0x100);
        assert!(!pm.interrupt());
        assert_eq!(pm.read_event(0, 4), 0x120 << 16);
    }

    #[test]
    fn only_s5_powers_off() {
        let mut pm = PowerManagement::default();
        assert_eq!(pm.read_control(0, 2), 1, "ACPI mode from the start");
        assert_eq!(pm.write_control(0, 2, 1 << 13), None);
        assert_eq!(pm.write_control(0, 2, 5 << 10), None);
        assert_eq!(pm.read_control(0, 2), 5 << 10 | 1);
        assert_eq!(
            pm.write_control(0, 2, 5 << 10 | 1 << 13),
            Some(PowerEvent::Off)
        );
        assert_eq!(
            pm.write_control(1, 1, 5 << 2 | 1 << 5),
            Some(PowerEvent::Off),
            "a byte at a time"
        );
    }

    #[test]
    fn the_timer_runs_at_its_frequency() {
        let pm = PowerManagement::default();
        assert_eq!(pm.read_timer(0, 4, 1_000_000_000), 3_579_545);
        assert_eq!(pm.read_timer(1, 1, 1_000_000_000), 3_579_545 >> 8 & 0xFF);
        let wrapped = pm.read_timer(0, 4, u64::MAX);
        assert_eq!(
            wrapped,
            (u128::from(u64::MAX) * TIMER_HZ / 1_000_000_000) as u32
        );
    }

    #[test]
    fn no_general_event_ever_happens() {
        let mut pm = PowerManagement::default();
        pm.write_gpe(0, 4, u32::MAX);
        assert_eq!(pm.read_gpe(0, 4), 0xFFFF_0000);
        assert!(!pm.interrupt());
    }
}
