//! Split virtqueues (Virtual I/O Device 1.2, 2.7), the device's side.
//!
//! Everything in a ring is the guest's claim. A descriptor is copied once, checked, and used only in its copy; chains are
//! bounded by the queue's size; the buffers' addresses go through [`GuestMemory`] again when they are used.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{Ordering, fence};

use crate::mem::{GuestMemory, GuestPtr, OutOfGuest};

/// Descriptor flags (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The driver wants no interrupts (2.7.7).
const NO_INTERRUPT: u16 = 1;
/// The device wants no notifications (2.7.8).
const NO_NOTIFY: u16 = 1;

/// Most bytes that one chain may describe. Bounds the work that one descriptor chain can cause.
const CHAIN_BYTES: u64 = 1 << 20;

/// What a driver can do wrong with a queue. The device stops until the driver resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The queue's size is no power of two, or more than the device has.
    Size(u16),
    /// A ring is not where rings may be: alignment.
    Unaligned(u64),
    /// Something is not in guest RAM.
    OutOfGuest(OutOfGuest),
    /// The available ring runs ahead of itself: more entries than the queue has.
    Overrun {
        /// Index that the driver wrote.
        available: u16,
        /// Index of the next entry that the device would take.
        next: u16,
    },
    /// A descriptor number that is not below the queue's size.
    Index(u16),
    /// A chain longer than the queue: it has a loop.
    Loop,
    /// An indirect descriptor, which was not offered.
    Indirect,
    /// A readable buffer after a writable one.
    Order,
    /// A chain that describes more than a mebibyte, or a buffer that wraps around.
    TooLong,
    /// A chain of a form that this device does not take.
    Form(&'static str),
}

impl From<OutOfGuest> for QueueError {
    fn from(error: OutOfGuest) -> Self {
        Self::OutOfGuest(error)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "queue size {size} is not a power of two it can have"),
            Self::Unaligned(address) => write!(f, "a ring at {address:#x} is not aligned"),
            Self::OutOfGuest(error) => write!(f, "{error}"),
            Self::Overrun { available, next } => write!(
                f,
                "the available ring jumped to {available}, the next entry is {next}"
            ),
            Self::Index(index) => write!(f, "there is no descriptor {index}"),
            Self::Loop => write!(f, "a descriptor chain has a loop"),
            Self::Indirect => write!(f, "an indirect descriptor was not offered"),
            Self::Order => write!(f, "a readable buffer follows a writable one"),
            Self::TooLong => write!(f, "a descriptor chain is longer than 1 MiB"),
            Self::Form(what) => write!(f, "{what}"),
        }
    }
}

/// A chain of buffers, copied from the ring and checked. Reused, so that taking one allocates nothing.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<GuestPtr>,
    writable: Vec<GuestPtr>,
}

impl Chain {
    /// An empty chain with room for `limit` buffers.
    pub fn with_limit(limit: u16) -> Self {
        Self {
            head: 0,
            readable: Vec::with_capacity(usize::from(limit)),
            writable: Vec::with_capacity(usize::from(limit)),
        }
    }

    /// How many buffers it has: what it costs to take it.
    pub fn buffers(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// Bytes that the device may read.
    pub fn readable_length(&self) -> u64 {
        self.readable.iter().map(|buffer| buffer.length).sum()
    }

    /// Bytes that the device may write.
    pub fn writable_length(&self) -> u64 {
        self.writable.iter().map(|buffer| buffer.length).sum()
    }

    /// Copies readable bytes from `offset` on; gives how many there were for `out`.
    ///
    /// # Errors
    /// [`QueueError::OutOfGuest`].
    pub fn read(
        &self,
        mem: &GuestMemory,
        offset: u64,
        out: &mut [u8],
    ) -> Result<usize, QueueError> {
        let mut done = 0;
        for (address, length) in pieces(&self.readable, offset) {
            let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            let now = rest.len().min(length);
            if let Some(target) = rest.get_mut(..now) {
                mem.read(address, target)?;
            }
            done += now;
        }
        Ok(done)
    }

    /// Copies `bytes` to the writable buffers from `offset` on; gives how many had room.
    ///
    /// # Errors
    /// [`QueueError::OutOfGuest`].
    pub fn write(&self, mem: &GuestMemory, offset: u64, bytes: &[u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for (address, length) in pieces(&self.writable, offset) {
            let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            let now = rest.len().min(length);
            if let Some(source) = rest.get(..now) {
                mem.write(address, source)?;
            }
            done += now;
        }
        Ok(done)
    }
}

/// The parts of `buffers` after the first `offset` bytes, none of them empty.
fn pieces(buffers: &[GuestPtr], offset: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut skip = offset;
    buffers.iter().filter_map(move |buffer| {
        let skipped = skip.min(buffer.length);
        skip -= skipped;
        let length = buffer.length - skipped;
        // At most `CHAIN_BYTES`, and `Queue::pop` has checked that the sum does not wrap.
        (length > 0).then_some((buffer.address + skipped, length as usize))
    })
}

/// One virtqueue.
#[derive(Debug)]
pub struct Queue {
    // Configuration.
    limit: u16,
    // Volatile state, as the driver sets it.
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    // The device's own.
    event_index: bool,
    next_available: u16,
    next_used: u16,
    /// Value of `next_used` at the last decision about an interrupt.
    signalled: u16,
}

impl Queue {
    /// A queue of at most `limit` entries, not set up.
    pub fn new(limit: u16) -> Self {
        Self {
            limit,
            size: limit,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
            event_index: false,
            next_available: 0,
            next_used: 0,
            signalled: 0,
        }
    }

    /// Forgets everything the driver has set.
    pub fn reset(&mut self) {
        *self = Self::new(self.limit);
    }

    /// Most entries.
    pub fn limit(&self) -> u16 {
        self.limit
    }

    /// True if the driver has set it up.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Sets the number of entries; checked by [`Queue::enable`].
    pub fn set_size(&mut self, size: u32) {
        if !self.ready {
            self.size = u16::try_from(size).unwrap_or(0);
        }
    }

    /// Sets half of a ring's address; checked by [`Queue::enable`].
    pub fn set_address(&mut self, ring: Ring, high: bool, value: u32) {
        if self.ready {
            return;
        }
        let address = match ring {
            Ring::Descriptors => &mut self.descriptors,
            Ring::Available => &mut self.available,
            Ring::Used => &mut self.used,
        };
        let shift = if high { 32 } else { 0 };
        *address = *address & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
    }

    /// Starts using the queue as set up. `event_index`: VIRTIO_F_EVENT_IDX was negotiated.
    ///
    /// # Errors
    /// [`QueueError`] if its size, alignment or place is wrong.
    pub fn enable(&mut self, mem: &GuestMemory, event_index: bool) -> Result<(), QueueError> {
        if !self.size.is_power_of_two() || self.size > self.limit {
            return Err(QueueError::Size(self.size));
        }
        let entries = u64::from(self.size);
        // Ring lengths with the event words at their ends (2.7.6, 2.7.8).
        for (address, length, alignment) in [
            (self.descriptors, 16 * entries, 16),
            (self.available, 6 + 2 * entries, 2),
            (self.used, 6 + 8 * entries, 4),
        ] {
            if address % alignment != 0 {
                return Err(QueueError::Unaligned(address));
            }
            let claim = GuestPtr { address, length };
            if !mem.contains(claim) {
                return Err(OutOfGuest(claim).into());
            }
        }
        self.event_index = event_index;
        self.next_available = 0;
        self.next_used = 0;
        self.signalled = 0;
        self.ready = true;
        Ok(())
    }

    /// How many chains wait.
    ///
    /// # Errors
    /// [`QueueError::Overrun`] if there are more than the queue can hold.
    fn waiting(&self, mem: &GuestMemory) -> Result<u16, QueueError> {
        if !self.ready {
            return Ok(0);
        }
        let available = mem.read_u16(self.available + 2)?;
        let waiting = available.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(QueueError::Overrun {
                available,
                next: self.next_available,
            });
        }
        Ok(waiting)
    }

    /// True if a chain waits.
    ///
    /// # Errors
    /// [`QueueError`] if the ring is not sane.
    pub fn has_available(&self, mem: &GuestMemory) -> Result<bool, QueueError> {
        Ok(self.waiting(mem)? > 0)
    }

    /// Takes the next chain. False if there is none.
    ///
    /// # Errors
    /// [`QueueError`] if the chain is not sane.
    pub fn pop(&mut self, mem: &GuestMemory, chain: &mut Chain) -> Result<bool, QueueError> {
        chain.readable.clear();
        chain.writable.clear();
        if self.waiting(mem)? == 0 {
            return Ok(false);
        }
        let slot = u64::from(self.next_available % self.size);
        let head = mem.read_u16(self.available + 4 + 2 * slot)?;
        self.next_available = self.next_available.wrapping_add(1);
        chain.head = head;

        let mut index = head;
        let mut total = 0;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(QueueError::Index(index));
            }
            let mut bytes = [0; 16];
            mem.read(self.descriptors + 16 * u64::from(index), &mut bytes)?;
            let descriptor = Descriptor::parse(bytes);
            if descriptor.flags & INDIRECT != 0 {
                return Err(QueueError::Indirect);
            }
            let buffer = descriptor.buffer;
            total += buffer.length;
            if total > CHAIN_BYTES {
                return Err(QueueError::TooLong);
            }
            if !mem.contains(buffer) {
                return Err(OutOfGuest(buffer).into());
            }
            if descriptor.flags & WRITE != 0 {
                chain.writable.push(buffer);
            } else if chain.writable.is_empty() {
                chain.readable.push(buffer);
            } else {
                return Err(QueueError::Order);
            }
            if descriptor.flags & NEXT == 0 {
                return Ok(true);
            }
            index = descriptor.next;
        }
        Err(QueueError::Loop)
    }

    /// Gives the chain back, `written` bytes of it written.
    ///
    /// # Errors
    /// [`QueueError::OutOfGuest`].
    pub fn push(
        &mut self,
        mem: &GuestMemory,
        chain: &Chain,
        written: usize,
    ) -> Result<(), QueueError> {
        let slot = u64::from(self.next_used % self.size.max(1));
        let entry = self.used + 4 + 8 * slot;
        mem.write_u32(entry, u32::from(chain.head))?;
        mem.write_u32(entry + 4, written as u32)?;
        self.next_used = self.next_used.wrapping_add(1);
        // A releasing store: the driver sees the entry before the index.
        mem.write_u16(self.used + 2, self.next_used)?;
        Ok(())
    }

    /// True if the driver wants an interrupt for what was given back since the last call.
    ///
    /// # Errors
    /// [`QueueError::OutOfGuest`].
    pub fn wants_interrupt(&mut self, mem: &GuestMemory) -> Result<bool, QueueError> {
        let (old, new) = (self.signalled, self.next_used);
        if !self.ready || old == new {
            return Ok(false);
        }
        self.signalled = new;
        // The index must be visible before the driver's wish is read (2.7.7.2).
        fence(Ordering::SeqCst);
        if !self.event_index {
            return Ok(mem.read_u16(self.available)? & NO_INTERRUPT == 0);
        }
        let event = mem.read_u16(self.available + 4 + 2 * u64::from(self.size))?;
        Ok(is_crossed(event, new, old))
    }

    /// Tells the driver that no notifications are wanted. It may notify all the same.
    ///
    /// # Errors
    /// [`QueueError::OutOfGuest`].
    pub fn refuse_notifications(&mut self, mem: &GuestMemory) -> Result<(), QueueError> {
        // By index, the one that the driver has passed stands: it comes there again after 65,536 chains (2.7.10).
        if self.ready && !self.event_index {
            mem.write_u16(self.used, NO_NOTIFY)?;
        }
        Ok(())
    }

    /// Asks for a notification of the next chain. True if one came in the meantime, so that none may follow.
    ///
    /// # Errors
    /// [`QueueError`] if the ring is not sane.
    pub fn request_notification(&mut self, mem: &GuestMemory) -> Result<bool, QueueError> {
        if !self.ready {
            return Ok(false);
        }
        if self.event_index {
            let event = self.used + 4 + 8 * u64::from(self.size);
            mem.write_u16(event, self.next_available)?;
        } else {
            mem.write_u16(self.used, 0)?;
        }
        fence(Ordering::SeqCst);
        self.has_available(mem)
    }
}

/// `vring_need_event` (2.7.7.1): true if an index moving from `old` to `new` passes `event`.
fn is_crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The parts of a split virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// The descriptor table.
    Descriptors,
    /// The available ring ("driver area").
    Available,
    /// The used ring ("device area").
    Used,
}

/// `struct virtq_desc` (2.7.5).
struct Descriptor {
    buffer: GuestPtr,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn parse(bytes: [u8; 16]) -> Self {
        let whole = u128::from_le_bytes(bytes);
        Self {
            buffer: GuestPtr {
                address: whole as u64,
                length: u64::from((whole >> 64) as u32),
            },
            flags: (whole >> 96) as u16,
            next: (whole >> 112) as u16,
        }
    }
}

#[cfg(test)]
mod tests;
