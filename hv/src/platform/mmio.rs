//! Memory-mapped registers: which window an address belongs to, and what its device takes.

use super::layout::{IO_APIC, LOCAL_APIC, VIRTIO_STRIDE, VirtioSlot};
use super::{InputTo, LOG_LIMIT, Platform};
use crate::device::virtio::mmio::INTERRUPT_ACKNOWLEDGE;
use crate::mem::GuestMemory;

/// A window of registers, with the offset in it.
enum Window {
    IoApic(u64),
    LocalApic(u64),
    Virtio(VirtioSlot, u64),
}

impl Platform<'_> {
    fn window(&self, vcpu: usize, gpa: u64) -> Option<Window> {
        let within = |start: u64, length: u64| gpa.checked_sub(start).filter(|at| *at < length);
        if let Some(offset) = within(IO_APIC, 0x1000) {
            return Some(Window::IoApic(offset));
        }
        if let Some(offset) = within(LOCAL_APIC, 0x1000) {
            let apic = self.interrupts.local(vcpu)?;
            return apic.has_mmio().then_some(Window::LocalApic(offset));
        }
        self.virtio.iter().find_map(|slot| {
            within(slot.address(), VIRTIO_STRIDE).map(|offset| Window::Virtio(*slot, offset))
        })
    }

    /// Reads `width` (1, 2, 4 or 8) bytes at guest-physical address `gpa` for `vcpu`. None, and counted, if no device is there.
    pub fn mmio_read(
        &mut self,
        _mem: &GuestMemory,
        vcpu: usize,
        gpa: u64,
        width: u8,
    ) -> Option<u64> {
        let now = self.now();
        let Some(window) = self.window(vcpu, gpa) else {
            self.note_unclaimed_memory(gpa);
            return None;
        };
        self.devices_touched |= matches!(window, Window::Virtio(..));
        Some(match window {
            Window::IoApic(offset) => u64::from(self.interrupts.read_io(offset)),
            Window::LocalApic(offset) => {
                let apic = self.interrupts.local_mut(vcpu)?;
                u64::from(apic.read_mmio(offset, now))
            }
            Window::Virtio(slot, offset) => match slot {
                VirtioSlot::Net => self.net.as_ref()?.read(offset, width),
                VirtioSlot::Console => self.console.read(offset, width),
                VirtioSlot::Entropy => self.entropy.read(offset, width),
                VirtioSlot::Block => self.block.as_ref()?.read(offset, width),
            },
        })
    }

    /// Writes `width` (1, 2, 4 or 8) bytes there. None, counted and logged, if no device is there.
    pub fn mmio_write(
        &mut self,
        mem: &GuestMemory,
        vcpu: usize,
        gpa: u64,
        width: u8,
        value: u64,
    ) -> Option<()> {
        let now = self.now();
        let Some(window) = self.window(vcpu, gpa) else {
            if self.counters.lost_writes < LOG_LIMIT {
                log::warn!(
                    "guest: it writes {value:#x} at {gpa:#x}, where it has neither memory nor a device (a PC has its ROM below 4 GiB): the write is lost"
                );
            }
            self.counters.lost_writes = self.counters.lost_writes.saturating_add(1);
            self.note_unclaimed_memory(gpa);
            return None;
        };
        self.devices_touched |= matches!(window, Window::Virtio(..));
        match window {
            Window::IoApic(offset) => self.interrupts.write_io(offset, value as u32),
            Window::LocalApic(offset) => {
                let apic = self.interrupts.local_mut(vcpu)?;
                let effect = apic.write_mmio(offset, value as u32, now);
                self.interrupts.apply(vcpu, effect);
            }
            Window::Virtio(slot, offset) => {
                let host = self.host;
                match slot {
                    VirtioSlot::Net => {
                        let net = self.net.as_mut()?;
                        let before = net.deadline_ns();
                        net.write(offset, width, value, mem, host);
                        if net.deadline_ns() != before {
                            self.net_vcpu = vcpu;
                        }
                    }
                    VirtioSlot::Console => {
                        let before = self.console.backend().bytes_written();
                        self.console.write(offset, width, value, mem, host);
                        if self.console.backend().bytes_written() != before {
                            self.input_to = InputTo::Console;
                        }
                    }
                    VirtioSlot::Entropy => self.entropy.write(offset, width, value, mem, host),
                    VirtioSlot::Block => {
                        self.block.as_mut()?.write(offset, width, value, mem, host);
                    }
                }
                if offset == INTERRUPT_ACKNOWLEDGE {
                    // What came in between is still there: it is an edge of its own.
                    self.interrupts.set_line(slot.gsi(), false);
                }
                self.update_lines();
            }
        }
        Some(())
    }

    fn note_unclaimed_memory(&mut self, gpa: u64) {
        self.counters.unclaimed_memory = self.counters.unclaimed_memory.wrapping_add(1);
        self.counters.last_unclaimed_address = gpa;
    }
}
