//! I/O ports: which device a port belongs to.
//!
//! The chipset's own registers take accesses of every width. The devices of the ISA bus are eight bits wide: a wider access
//! to them is that many accesses to consecutive ports, as the bus did it.

use super::layout::port;
use super::{InputTo, Platform};
use crate::mem::GuestMemory;

impl Platform<'_> {
    /// Reads `width` (1, 2 or 4) bytes from `port`. Where nothing is, every bit is one.
    pub fn port_read(&mut self, _mem: &GuestMemory, port: u16, width: u8) -> u32 {
        self.devices_touched = true;
        match port {
            port::PM1_EVENT..=0x603 => self.pm.read_event(port - port::PM1_EVENT, width),
            port::PM1_CONTROL..=0x605 => self.pm.read_control(port - port::PM1_CONTROL, width),
            port::PM_TIMER..=0x60B => {
                let now = self.now();
                self.pm.read_timer(port - port::PM_TIMER, width, now)
            }
            port::GPE0..=0x623 => self.pm.read_gpe(port - port::GPE0, width),
            port::WATCHDOG..=0x63F => {
                let now = self.now();
                self.watchdog.read(port - port::WATCHDOG, width, now)
            }
            port::RESET_CONTROL if width == 1 => u32::from(self.reset.read_control()),
            port::PCI_ADDRESS..=0xCFB => self.pci.read_address(port - port::PCI_ADDRESS, width),
            port::PCI_DATA..=0xCFF => self.pci.read_data(port - port::PCI_DATA, width),
            _ => {
                let mut value = 0;
                for index in 0..u16::from(width.min(4)) {
                    let byte = self.read_byte(port.wrapping_add(index));
                    value |= u32::from(byte) << (8 * index);
                }
                value
            }
        }
    }

    /// Writes `width` (1, 2 or 4) bytes to `port`.
    pub fn port_write(&mut self, _mem: &GuestMemory, port: u16, width: u8, value: u32) {
        self.devices_touched = true;
        match port {
            port::PM1_EVENT..=0x603 => {
                self.pm.write_event(port - port::PM1_EVENT, width, value);
                self.update_lines();
            }
            port::PM1_CONTROL..=0x605 => {
                let event = self
                    .pm
                    .write_control(port - port::PM1_CONTROL, width, value);
                self.note_power(event);
            }
            port::PM_TIMER..=0x60B => {}
            port::GPE0..=0x623 => self.pm.write_gpe(port - port::GPE0, width, value),
            port::WATCHDOG..=0x63F => {
                let now = self.now();
                self.watchdog
                    .write(port - port::WATCHDOG, width, value, now);
            }
            port::RESET_CONTROL if width == 1 => {
                let event = self.reset.write_control(value as u8);
                self.note_power(event);
            }
            port::PCI_ADDRESS..=0xCFB => {
                self.pci
                    .write_address(port - port::PCI_ADDRESS, width, value);
            }
            port::PCI_DATA..=0xCFF => {}
            port::DEBUG_EXIT if self.debug_exit => {
                let event = self.reset.write_debug_exit(value);
                self.note_power(Some(event));
            }
            _ => {
                for index in 0..u16::from(width.min(4)) {
                    self.write_byte(port.wrapping_add(index), (value >> (8 * index)) as u8);
                }
            }
        }
    }

    fn read_byte(&mut self, port: u16) -> u8 {
        match port {
            port::COM1..=0x3FF => {
                let value = self.serial.read(port - port::COM1);
                self.update_lines();
                value
            }
            port::RTC => 0xFF, // the index is write-only
            0x71 => {
                let now = self.now();
                let value = self.rtc.read_data(now);
                self.update_lines();
                value
            }
            port::PIC_MASTER..=0x21 => self.pic.read(false, port & 1 != 0),
            port::PIC_SLAVE..=0xA1 => self.pic.read(true, port & 1 != 0),
            port::PIC_EDGE_LEVEL..=0x4D1 => self.pic.read_edge_level(port & 1 != 0),
            port::KEYBOARD_COMMAND => self.reset.read_keyboard_status(),
            port::SYSTEM_CONTROL_A => self.reset.read_system_control(),
            port::POST_CODE => self.counters.post_code,
            _ => {
                self.note_unclaimed(port);
                0xFF
            }
        }
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        match port {
            port::COM1..=0x3FF => {
                let before = self.serial.bytes_written();
                self.serial.write(port - port::COM1, value, self.host);
                if self.serial.bytes_written() != before {
                    self.input_to = InputTo::Serial;
                }
                self.update_lines();
            }
            port::RTC => self.rtc.write_index(value),
            0x71 => {
                let now = self.now();
                self.rtc.write_data(value, now);
                self.update_lines();
            }
            port::PIC_MASTER..=0x21 => self.pic.write(false, port & 1 != 0, value),
            port::PIC_SLAVE..=0xA1 => self.pic.write(true, port & 1 != 0, value),
            port::PIC_EDGE_LEVEL..=0x4D1 => self.pic.write_edge_level(port & 1 != 0, value),
            port::KEYBOARD_COMMAND => {
                let event = self.reset.write_keyboard_command(value);
                self.note_power(event);
            }
            port::SYSTEM_CONTROL_A => {
                let event = self.reset.write_system_control(value);
                self.note_power(event);
            }
            port::POST_CODE => self.counters.post_code = value,
            _ => self.note_unclaimed(port),
        }
    }

    fn note_unclaimed(&mut self, port: u16) {
        self.counters.unclaimed_ports = self.counters.unclaimed_ports.wrapping_add(1);
        self.counters.last_unclaimed_port = port;
    }

    /// Keeps the guest's first wish: what it does afterwards no longer counts.
    pub(super) fn note_power(&mut self, event: Option<super::PowerEvent>) {
        self.power = self.power.or(event);
    }
}
