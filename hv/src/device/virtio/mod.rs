//! Virtio devices on the MMIO transport: the queues, the transport's registers, and the devices behind them.
//!
//! A device is a [`Backend`]: it sees queues, guest memory and the host, and never a register. What a driver does wrong
//! stops its device until the driver resets it, and is counted.

pub mod block;
pub mod console;
pub mod entropy;
pub mod mmio;
pub mod net;
pub mod queue;
#[cfg(test)]
pub(crate) mod test_driver;

use crate::host::Host;
use crate::mem::GuestMemory;
use queue::{Chain, Queue, QueueError};

/// Feature bits that concern the transport (Virtual I/O Device 1.2, 6).
pub mod feature {
    /// VIRTIO_F_EVENT_IDX: interrupts and notifications by index.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1: not a legacy driver. Without it the device does not work.
    pub const VERSION_1: u64 = 1 << 32;
}

/// What a device has at hand while it works.
pub struct Access<'a> {
    /// Its queues.
    pub queues: &'a mut [Queue],
    /// A chain to take buffers with.
    pub chain: &'a mut Chain,
    /// The guest's memory.
    pub mem: &'a GuestMemory,
    /// The box.
    pub host: &'a dyn Host,
    /// Set when the driver wants an interrupt.
    pub interrupt: bool,
}

impl Access<'_> {
    /// Notes whether queue `index` wants an interrupt for what was given back.
    ///
    /// # Errors
    /// [`QueueError::OutOfGuest`].
    pub fn signal(&mut self, index: usize) -> Result<(), QueueError> {
        if let Some(queue) = self.queues.get_mut(index) {
            self.interrupt |= queue.wants_interrupt(self.mem)?;
        }
        Ok(())
    }
}

/// A device behind the transport.
pub trait Backend {
    /// Its name in log lines.
    const NAME: &'static str;
    /// Virtio device identifier (Virtual I/O Device 1.2, 5).
    const DEVICE_ID: u32;
    /// Most entries of each queue.
    const QUEUES: &'static [u16];
    /// Features it offers beside those of the transport.
    const FEATURES: u64 = 0;

    /// The byte at `offset` of the configuration space; 0 beyond its end.
    fn config(&self, offset: u64) -> u8;

    /// The driver is ready.
    fn activate(&mut self) {}

    /// The driver has reset the device.
    fn reset(&mut self) {}

    /// The driver has notified queue `index`.
    ///
    /// # Errors
    /// [`QueueError`] if the driver did something wrong: the device is stopped.
    fn notified(&mut self, index: usize, access: &mut Access<'_>) -> Result<(), QueueError>;

    /// Does what can be done now: input from the host, output left over.
    ///
    /// # Errors
    /// [`QueueError`] if the driver did something wrong: the device is stopped.
    fn service(&mut self, access: &mut Access<'_>) -> Result<(), QueueError>;

    /// True if there is work left that needs another [`Backend::service`] soon.
    fn has_backlog(&self) -> bool {
        false
    }

    /// When [`Backend::service`] is wanted for what the driver does not notify of, by [`Host::now_ns`].
    fn deadline_ns(&self) -> Option<u64> {
        None
    }

    /// Nobody will be there at the deadline: has the driver notify again.
    ///
    /// # Errors
    /// [`QueueError`] if the driver did something wrong: the device is stopped.
    fn settle(&mut self, _access: &mut Access<'_>) -> Result<(), QueueError> {
        Ok(())
    }
}
