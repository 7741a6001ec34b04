//! What `virtio-drivers` needs of the box (memory one to one), and a PCI transport with message-signalled interrupts that rings
//! a device's bell once for a batch instead of once for each buffer.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use alloc::boxed::Box;
use virtio_drivers::transport::pci::bus::DeviceFunction;
use virtio_drivers::transport::pci::{PciTransport, VirtioPciError};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::pci::Pci;
use crate::machine::{heap, paging};

/// Memory is mapped one to one and devices see all of it.
pub struct BoxHal;

// SAFETY: `dma_alloc` gives zeroed, page-aligned memory of the heap that is used for nothing else; addresses are the same for
// CPU and devices.
unsafe impl Hal for BoxHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match heap::leak_zeroed(pages * PAGE_SIZE, PAGE_SIZE) {
            Some(start) => (start.as_ptr() as PhysAddr, start),
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        // Drivers live as long as the box; one that failed to start leaves its rings behind.
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        paging::map_device(paddr, size as u64);
        NonNull::new(paddr as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Capabilities of virtio over PCI (virtio 1.2, 4.1.4) and registers of the common configuration (4.1.4.3).
const CAPABILITY_VENDOR: u8 = 0x09;
const COMMON_CONFIGURATION: u8 = 1;
const NOTIFICATIONS: u8 = 2;
const DEVICE_CONFIGURATION: u8 = 4;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;

const QUEUES: usize = 4;

/// A device's bells: one address for each queue, and which of them want ringing.
#[derive(Default)]
pub struct Doorbell {
    addresses: [AtomicU64; QUEUES],
    wanted: AtomicU32,
}

impl Doorbell {
    /// Rings the bells of the queues that have something new.
    pub fn ring(&self) {
        if self.wanted.load(Ordering::Relaxed) == 0 {
            return;
        }
        let wanted = self.wanted.swap(0, Ordering::AcqRel);
        for (queue, address) in (0_u16..).zip(&self.addresses) {
            let address = address.load(Ordering::Relaxed);
            if wanted & (1 << queue) != 0 && address != 0 {
                // SAFETY: the address lies in the notification region that the device's capability describes; it was mapped
                // when the transport was made.
                unsafe { (address as *mut u16).write_volatile(queue) };
            }
        }
    }
}

/// The transport.
pub struct BoxTransport {
    inner: PciTransport,
    common: u64,
    notifications: u64,
    notify_multiplier: u32,
    /// Queue that interrupts when it has something.
    interrupting_queue: Option<u16>,
    /// Where the device's own configuration lies.
    device_configuration: u64,
    doorbell: &'static Doorbell,
}

/// Where a capability's structure lies: address and length.
fn structure(pci: &Pci, place: DeviceFunction, kind: u8) -> Option<(u64, u8)> {
    pci.root().capabilities(place).find_map(|capability| {
        let found =
            capability.id == CAPABILITY_VENDOR && (capability.private_header >> 8) as u8 == kind;
        found.then_some(())?;
        let bar = pci.read(place, capability.offset + 4) as u8;
        let offset = u64::from(pci.read(place, capability.offset + 8));
        let length = u64::from(pci.read(place, capability.offset + 12));
        let (address, bar_length) = pci.memory_bar(place, bar)?;
        (offset + length <= bar_length).then_some((address + offset, capability.offset))
    })
}

impl BoxTransport {
    /// A transport for the function at `place`, whose queue `interrupting_queue`, if any, uses entry 0 of its MSI-X table.
    ///
    /// # Errors
    /// If the function is no virtio device, or none of version 1.
    pub fn new(
        pci: &Pci,
        place: DeviceFunction,
        interrupting_queue: Option<u16>,
    ) -> Result<Self, VirtioPciError> {
        let inner = PciTransport::new::<BoxHal, _>(&mut pci.root(), place)?;
        let (common, _) = structure(pci, place, COMMON_CONFIGURATION)
            .ok_or(VirtioPciError::MissingCommonConfig)?;
        let (notifications, capability) =
            structure(pci, place, NOTIFICATIONS).ok_or(VirtioPciError::MissingNotifyConfig)?;
        let device_configuration =
            structure(pci, place, DEVICE_CONFIGURATION).map_or(0, |(address, _)| address);
        Ok(BoxTransport {
            inner,
            common,
            notifications,
            notify_multiplier: pci.read(place, capability + 16),
            interrupting_queue,
            device_configuration,
            doorbell: Box::leak(Box::default()),
        })
    }

    /// The device's bells.
    pub fn doorbell(&self) -> &'static Doorbell {
        self.doorbell
    }

    /// Address of the device's own configuration; zero if it has none.
    pub fn device_configuration(&self) -> u64 {
        self.device_configuration
    }
}

impl Transport for BoxTransport {
    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }
    fn read_device_features(&mut self) -> u64 {
        self.inner.read_device_features()
    }
    fn write_driver_features(&mut self, features: u64) {
        self.inner.write_driver_features(features);
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.max_queue_size(queue)
    }
    fn notify(&mut self, queue: u16) {
        self.doorbell.wanted.fetch_or(1 << queue, Ordering::Release);
    }
    fn get_status(&self) -> DeviceStatus {
        self.inner.get_status()
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.inner.set_status(status);
    }
    fn set_guest_page_size(&mut self, bytes: u32) {
        self.inner.set_guest_page_size(bytes);
    }
    fn requires_legacy_layout(&self) -> bool {
        self.inner.requires_legacy_layout()
    }
    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        const NO_VECTOR: u16 = 0xffff;
        let vector = if self.interrupting_queue == Some(queue) {
            0
        } else {
            NO_VECTOR
        };
        // SAFETY: the common configuration is mapped (`PciTransport::new`) and longer than these registers' offsets.
        let notify_offset = unsafe {
            ((self.common + QUEUE_SELECT) as *mut u16).write_volatile(queue);
            ((self.common + QUEUE_MSIX_VECTOR) as *mut u16).write_volatile(vector);
            ((self.common + QUEUE_NOTIFY_OFFSET) as *const u16).read_volatile()
        };
        let bell =
            self.notifications + u64::from(notify_offset) * u64::from(self.notify_multiplier);
        if let Some(address) = self.doorbell.addresses.get(usize::from(queue)) {
            address.store(bell, Ordering::Relaxed);
        }
        self.inner
            .queue_set(queue, size, descriptors, driver_area, device_area);
    }
    fn queue_unset(&mut self, queue: u16) {
        self.inner.queue_unset(queue);
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner.queue_used(queue)
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.inner.ack_interrupt()
    }
    fn read_config_generation(&self) -> u32 {
        self.inner.read_config_generation()
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        self.inner.read_config_space(offset)
    }
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        self.inner.write_config_space(offset, value)
    }
}
