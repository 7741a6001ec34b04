//! A guest's virtio driver for tests: negotiates through the registers and works the rings in guest memory.

use alloc::vec::Vec;

use super::Backend;
use super::feature;
use super::mmio::MmioDevice;
use crate::mem::GuestMemory;
use crate::platform::test_host::TestHost;

/// Entries of each queue.
pub(crate) const ENTRIES: u16 = 8;
/// Distance of one queue's rings from the next one's.
const RINGS: u64 = 0x1_0000;
const FIRST_RINGS: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;

/// What a driver writes to which registers to have the network interface run, with a transmit queue of 8 entries: for tests that have no [`Driver`].
pub(crate) const START_TRANSMIT: [(u64, u64); 11] = [
    (0x70, 3),
    (0x24, 1),
    (0x20, 1), // VERSION_1
    (0x70, 11),
    (0x30, 1),
    (0x38, ENTRIES as u64),
    (0x80, FIRST_RINGS),
    (0x90, FIRST_RINGS + 0x1000),
    (0xA0, FIRST_RINGS + 0x2000),
    (0x44, 1),
    (0x70, 15),
];

/// Makes each entry of that queue a frame of 60 bytes.
pub(crate) fn fill_transmit(mem: &GuestMemory) {
    for index in 0..u64::from(ENTRIES) {
        let descriptor = FIRST_RINGS + 16 * index;
        mem.write_u64(descriptor, BUFFERS).unwrap();
        mem.write_u32(descriptor + 8, 72).unwrap();
        let entry = FIRST_RINGS + 0x1004 + 2 * index;
        mem.write_u16(entry, index as u16).unwrap();
    }
}

/// Makes so many of them available, counted from the first.
pub(crate) fn send_up_to(mem: &GuestMemory, count: u16) {
    mem.write_u16(FIRST_RINGS + 0x1002, count).unwrap();
}

#[derive(Clone, Copy, Default)]
struct DriverQueue {
    available: u16,
    used: u16,
    next_descriptor: u16,
}

pub(crate) struct Driver<'h, B> {
    pub mem: GuestMemory,
    pub device: MmioDevice<B>,
    pub host: &'h TestHost,
    queues: [DriverQueue; 2],
    next_buffer: u64,
}

impl<'h, B: Backend> Driver<'h, B> {
    /// A driver that has its device running with every feature offered.
    pub fn new(backend: B, host: &'h TestHost) -> Self {
        Self::with_features(backend, host, u64::MAX)
    }

    /// A driver that accepts only `features` of what is offered (and VERSION_1).
    pub fn with_features(backend: B, host: &'h TestHost, features: u64) -> Self {
        let mut driver = Self {
            mem: GuestMemory::allocate(4 << 20).unwrap(),
            device: MmioDevice::new(backend),
            host,
            queues: [DriverQueue::default(); 2],
            next_buffer: BUFFERS,
        };
        driver.negotiate(features | feature::VERSION_1);
        for index in 0..B::QUEUES.len() as u32 {
            driver.set_up_queue(index, u32::from(ENTRIES));
        }
        driver.set(0x70, 1 | 2 | 8 | 4);
        assert!(driver.device.is_running());
        driver
    }

    pub fn set(&mut self, offset: u64, value: u32) {
        self.device
            .write(offset, 4, u64::from(value), &self.mem, self.host);
    }

    pub fn get(&self, offset: u64) -> u32 {
        self.device.read(offset, 4) as u32
    }

    pub fn negotiate(&mut self, features: u64) {
        self.set(0x70, 0);
        self.set(0x70, 1);
        self.set(0x70, 3);
        for half in 0..2 {
            self.set(0x14, half);
            let offered = self.get(0x10);
            self.set(0x24, half);
            self.set(0x20, offered & (features >> (32 * half)) as u32);
        }
        self.set(0x70, 1 | 2 | 8);
    }

    fn rings(index: u32) -> u64 {
        FIRST_RINGS + RINGS * u64::from(index)
    }

    pub fn set_up_queue(&mut self, index: u32, entries: u32) {
        let base = Self::rings(index) as u32;
        self.set(0x30, index);
        self.set(0x38, entries);
        self.set(0x80, base);
        self.set(0x90, base + 0x1000);
        self.set(0xA0, base + 0x2000);
        self.set(0x44, 1);
    }

    pub fn service(&mut self) {
        self.device.service(&self.mem, self.host);
    }

    /// Writes a descriptor.
    pub fn describe(
        &self,
        queue: u32,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let at = Self::rings(queue) + 16 * u64::from(index);
        self.mem.write_u64(at, address).unwrap();
        self.mem.write_u32(at + 8, length).unwrap();
        self.mem.write_u16(at + 12, flags).unwrap();
        self.mem.write_u16(at + 14, next).unwrap();
    }

    /// Makes the chain at `head` available.
    pub fn publish(&mut self, queue: u32, head: u16) {
        let ring = Self::rings(queue) + 0x1000;
        let state = &mut self.queues[queue as usize];
        let slot = u64::from(state.available % ENTRIES);
        self.mem.write_u16(ring + 4 + 2 * slot, head).unwrap();
        state.available = state.available.wrapping_add(1);
        self.mem.write_u16(ring + 2, state.available).unwrap();
    }

    pub fn set_available_index(&mut self, queue: u32, value: u16) {
        self.queues[queue as usize].available = value;
        self.mem
            .write_u16(Self::rings(queue) + 0x1002, value)
            .unwrap();
    }

    /// Index at which the driver wants an interrupt.
    pub fn set_used_event(&self, queue: u32, value: u16) {
        let at = Self::rings(queue) + 0x1000 + 4 + 2 * u64::from(ENTRIES);
        self.mem.write_u16(at, value).unwrap();
    }

    /// Index at which the device wants a notification.
    pub fn available_event(&self, queue: u32) -> u16 {
        let at = Self::rings(queue) + 0x2000 + 4 + 8 * u64::from(ENTRIES);
        self.mem.read_u16(at).unwrap()
    }

    /// The flags of the device's ring.
    pub fn used_flags(&self, queue: u32) -> u16 {
        self.mem.read_u16(Self::rings(queue) + 0x2000).unwrap()
    }

    pub fn notify(&mut self, queue: u32) {
        self.set(0x50, queue);
    }

    fn next_descriptor(&mut self, queue: u32) -> u16 {
        let state = &mut self.queues[queue as usize];
        let index = state.next_descriptor;
        state.next_descriptor = (index + 1) % ENTRIES;
        index
    }

    /// Sends one chain of `parts`.
    pub fn send(&mut self, queue: u32, parts: &[&[u8]]) {
        let indices: Vec<u16> = parts.iter().map(|_| self.next_descriptor(queue)).collect();
        for (position, part) in parts.iter().enumerate() {
            let address = self.next_buffer;
            self.next_buffer += part.len() as u64;
            self.mem.write(address, part).unwrap();
            let next = indices.get(position + 1).copied();
            self.describe(
                queue,
                indices[position],
                address,
                part.len() as u32,
                u16::from(next.is_some()),
                next.unwrap_or(0),
            );
        }
        self.publish(queue, indices[0]);
        self.notify(queue);
    }

    /// Sends one buffer that is anywhere.
    pub fn send_at(&mut self, queue: u32, address: u64, length: u32) {
        let index = self.next_descriptor(queue);
        self.describe(queue, index, address, length, 0, 0);
        self.publish(queue, index);
        self.notify(queue);
    }

    /// Offers a buffer to be written to; gives its address.
    pub fn offer(&mut self, queue: u32, length: u32) -> u64 {
        let index = self.next_descriptor(queue);
        let address = self.next_buffer;
        self.next_buffer += u64::from(length);
        self.describe(queue, index, address, length, 2, 0);
        self.publish(queue, index);
        self.notify(queue);
        address
    }

    /// The lengths of the chains that came back since the last call.
    pub fn take_used(&mut self, queue: u32) -> Vec<u32> {
        let ring = Self::rings(queue) + 0x2000;
        let end = self.mem.read_u16(ring + 2).unwrap();
        let state = &mut self.queues[queue as usize];
        let mut lengths = Vec::new();
        while state.used != end {
            let slot = u64::from(state.used % ENTRIES);
            lengths.push(self.mem.read_u32(ring + 4 + 8 * slot + 4).unwrap());
            state.used = state.used.wrapping_add(1);
        }
        lengths
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = alloc::vec![0; length];
        self.mem.read(address, &mut bytes).unwrap();
        bytes
    }
}
