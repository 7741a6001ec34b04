//! The virtio-mmio transport, version 2 (Virtual I/O Device 1.2, 4.2): registers, negotiation, device status.

use alloc::vec::Vec;

use serde::Serialize;

use super::queue::{Chain, Queue, QueueError, Ring};
use super::{Access, Backend, feature};
use crate::host::Host;
use crate::mem::GuestMemory;

/// Register offsets (4.2.2).
mod register {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const VENDOR_ID: u64 = 0x0C;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
    pub const QUEUE_SELECT: u64 = 0x30;
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const DESCRIPTORS_LOW: u64 = 0x80;
    pub const DESCRIPTORS_HIGH: u64 = 0x84;
    pub const AVAILABLE_LOW: u64 = 0x90;
    pub const AVAILABLE_HIGH: u64 = 0x94;
    pub const USED_LOW: u64 = 0xA0;
    pub const USED_HIGH: u64 = 0xA4;
    pub const SHARED_LENGTH_LOW: u64 = 0xB0;
    pub const SHARED_BASE_HIGH: u64 = 0xBC;
    pub const GENERATION: u64 = 0xFC;
    pub const CONFIG: u64 = 0x100;
}

/// Offset of the register by which the driver says what it has seen of the interrupt status.
pub const INTERRUPT_ACKNOWLEDGE: u64 = register::INTERRUPT_ACKNOWLEDGE;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// "QEMU": some drivers know their devices by it, none mind it.
const VENDOR: u32 = u32::from_le_bytes(*b"QEMU");

/// Device status bits (2.1).
mod status {
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
}

/// Interrupt status bits.
const INTERRUPT_QUEUE: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// After this many log lines about a device's driver, the counter alone goes on.
const LOG_LIMIT: u64 = 8;

/// What has happened to a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TransportCounters {
    /// Notifications by the driver (each an exit).
    pub notifications: u64,
    /// Interrupts to the driver.
    pub interrupts: u64,
    /// Times the device stopped because of what its driver did.
    pub stopped: u64,
}

/// A device with its registers.
#[derive(Debug)]
pub struct MmioDevice<B> {
    backend: B,
    queues: Vec<Queue>,
    chain: Chain,
    status: u32,
    interrupt_status: u32,
    features: u64,
    device_select: u32,
    driver_select: u32,
    queue_select: u32,
    counters: TransportCounters,
}

impl<B: Backend> MmioDevice<B> {
    /// A device in its reset state.
    pub fn new(backend: B) -> Self {
        let longest = B::QUEUES.iter().copied().max().unwrap_or(0);
        Self {
            backend,
            queues: B::QUEUES.iter().map(|limit| Queue::new(*limit)).collect(),
            chain: Chain::with_limit(longest),
            status: 0,
            interrupt_status: 0,
            features: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            counters: TransportCounters::default(),
        }
    }

    /// The device behind the registers.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The device behind the registers.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// What has happened to it.
    pub fn counters(&self) -> TransportCounters {
        self.counters
    }

    /// True while its driver works with it.
    pub fn is_running(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// The interrupt line. Edge-triggered: it rises when the driver has something new to see and has acknowledged what came before; the
    /// platform lowers it for a moment at each acknowledgement.
    pub fn interrupt(&self) -> bool {
        self.interrupt_status != 0
    }

    const fn offered() -> u64 {
        B::FEATURES | feature::EVENT_INDEX | feature::VERSION_1
    }

    /// Reads `width` bytes at `offset` of the window.
    pub fn read(&self, offset: u64, width: u8) -> u64 {
        if offset >= register::CONFIG {
            let mut value = 0;
            for index in 0..u64::from(width.min(8)) {
                let byte = self.backend.config(offset - register::CONFIG + index);
                value |= u64::from(byte) << (8 * index);
            }
            return value;
        }
        if width != 4 {
            return 0; // drivers must use 32-bit accesses (4.2.2.2)
        }
        u64::from(match offset {
            register::MAGIC => MAGIC,
            register::VERSION => 2,
            register::DEVICE_ID => B::DEVICE_ID,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => match self.device_select {
                0 => Self::offered() as u32,
                1 => (Self::offered() >> 32) as u32,
                _ => 0,
            },
            register::QUEUE_SIZE_MAX => self.selected().map_or(0, |queue| u32::from(queue.limit())),
            register::QUEUE_READY => self
                .selected()
                .map_or(0, |queue| u32::from(queue.is_ready())),
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::STATUS => self.status,
            register::SHARED_LENGTH_LOW..=register::SHARED_BASE_HIGH => u32::MAX, // none
            register::GENERATION => 0, // the configuration never changes
            _ => 0,
        })
    }

    /// Writes `width` bytes at `offset` of the window.
    pub fn write(
        &mut self,
        offset: u64,
        width: u8,
        value: u64,
        mem: &GuestMemory,
        host: &dyn Host,
    ) {
        if width != 4 {
            return; // nothing in the configuration space is writable either
        }
        let value = value as u32;
        match offset {
            register::DEVICE_FEATURES_SELECT => self.device_select = value,
            register::DRIVER_FEATURES_SELECT => self.driver_select = value,
            register::DRIVER_FEATURES if self.status & status::FEATURES_OK == 0 => {
                let shift = match self.driver_select {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                self.features = self.features & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
            }
            register::QUEUE_SELECT => self.queue_select = value,
            register::QUEUE_NOTIFY => self.notified(value as usize, mem, host),
            register::INTERRUPT_ACKNOWLEDGE => self.interrupt_status &= !value,
            register::STATUS => self.write_status(value, mem, host),
            _ => self.write_queue(offset, value, mem),
        }
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(self.queue_select as usize)
    }

    fn write_queue(&mut self, offset: u64, value: u32, mem: &GuestMemory) {
        let phase = self.status & (status::FEATURES_OK | status::NEEDS_RESET);
        let event_index = self.features & feature::EVENT_INDEX != 0;
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else {
            return;
        };
        let (ring, high) = match offset {
            register::QUEUE_SIZE => return queue.set_size(value),
            register::QUEUE_READY => {
                if value & 1 == 0 {
                    queue.reset();
                } else if phase == status::FEATURES_OK
                    && !queue.is_ready()
                    && let Err(error) = queue.enable(mem, event_index)
                {
                    self.stop(error);
                }
                return;
            }
            register::DESCRIPTORS_LOW => (Ring::Descriptors, false),
            register::DESCRIPTORS_HIGH => (Ring::Descriptors, true),
            register::AVAILABLE_LOW => (Ring::Available, false),
            register::AVAILABLE_HIGH => (Ring::Available, true),
            register::USED_LOW => (Ring::Used, false),
            register::USED_HIGH => (Ring::Used, true),
            _ => return,
        };
        queue.set_address(ring, high, value);
    }

    fn write_status(&mut self, value: u32, mem: &GuestMemory, host: &dyn Host) {
        if value == 0 {
            // What the driver was not asked to notify of had been sent when it could have been notified of.
            self.settle(mem, host);
            self.reset();
            return;
        }
        // Bits are only ever added, and NEEDS_RESET is the device's (2.1.1).
        let mut new = self.status | value & 0xBF;
        if new & !self.status & status::FEATURES_OK != 0 {
            let acceptable =
                self.features & !Self::offered() == 0 && self.features & feature::VERSION_1 != 0;
            if !acceptable {
                new &= !status::FEATURES_OK;
            }
        }
        if new & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        let starts = new & !self.status & status::DRIVER_OK != 0;
        self.status = new;
        if starts {
            self.backend.activate();
            self.service(mem, host);
        }
    }

    fn reset(&mut self) {
        for queue in &mut self.queues {
            queue.reset();
        }
        self.status = 0;
        self.interrupt_status = 0;
        self.features = 0;
        self.device_select = 0;
        self.driver_select = 0;
        self.queue_select = 0;
        self.backend.reset();
    }

    fn notified(&mut self, index: usize, mem: &GuestMemory, host: &dyn Host) {
        self.counters.notifications = self.counters.notifications.wrapping_add(1);
        self.work(mem, host, |backend, access| backend.notified(index, access));
    }

    /// Lets the device do what it can do now.
    pub fn service(&mut self, mem: &GuestMemory, host: &dyn Host) {
        self.work(mem, host, |backend, access| backend.service(access));
    }

    /// True if [`MmioDevice::service`] should be called again soon.
    pub fn has_backlog(&self) -> bool {
        self.is_running() && self.backend.has_backlog()
    }

    /// When [`MmioDevice::service`] is wanted for what the driver does not notify of, by [`Host::now_ns`].
    pub fn deadline_ns(&self) -> Option<u64> {
        self.backend.deadline_ns().filter(|_| self.is_running())
    }

    /// Nobody will be there at [`MmioDevice::deadline_ns`]: has the driver notify again.
    pub fn settle(&mut self, mem: &GuestMemory, host: &dyn Host) {
        self.work(mem, host, |backend, access| backend.settle(access));
    }

    fn work(
        &mut self,
        mem: &GuestMemory,
        host: &dyn Host,
        work: impl FnOnce(&mut B, &mut Access<'_>) -> Result<(), QueueError>,
    ) {
        if !self.is_running() {
            return;
        }
        let mut access = Access {
            queues: &mut self.queues,
            chain: &mut self.chain,
            mem,
            host,
            interrupt: false,
        };
        let result = work(&mut self.backend, &mut access);
        if access.interrupt {
            self.raise(INTERRUPT_QUEUE);
        }
        if let Err(error) = result {
            self.stop(error);
        }
    }

    fn raise(&mut self, bit: u32) {
        if self.interrupt_status == 0 {
            self.counters.interrupts = self.counters.interrupts.wrapping_add(1);
        }
        self.interrupt_status |= bit;
    }

    /// The driver did something wrong: the device does nothing more until it is reset.
    fn stop(&mut self, error: QueueError) {
        self.counters.stopped = self.counters.stopped.saturating_add(1);
        if self.counters.stopped <= LOG_LIMIT {
            log::warn!(
                "guest's {}: {error}; it is stopped until the guest resets it",
                B::NAME
            );
        }
        self.status |= status::NEEDS_RESET;
        self.raise(INTERRUPT_CONFIG);
    }
}

#[cfg(test)]
mod tests;
