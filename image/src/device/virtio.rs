//! What `virtio-drivers` needs of the box: memory one to one, and a PCI transport.
//!
//! The crate's own transport would do, but for three things: this one has message-signalled interrupts; it rings a device's
//! bell once for a batch instead of once for each buffer; and it does not size BARs again and again, which costs an emulated
//! machine a rebuild of its memory map each time.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering, fence};

use alloc::boxed::Box;
use virtio_drivers::transport::pci::bus::DeviceFunction;
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

/// Capabilities of virtio over PCI (virtio 1.2, 4.1.4).
const CAPABILITY_VENDOR: u8 = 0x09;
const COMMON_CONFIGURATION: u8 = 1;
const NOTIFICATIONS: u8 = 2;
const INTERRUPT_STATUS: u8 = 3;
const DEVICE_CONFIGURATION: u8 = 4;

/// The common configuration structure (virtio 1.2, 4.1.4.3).
#[repr(C)]
struct Common {
    device_feature_select: u32,
    device_feature: u32,
    driver_feature_select: u32,
    driver_feature: u32,
    config_msix_vector: u16,
    num_queues: u16,
    device_status: u8,
    config_generation: u8,
    queue_select: u16,
    queue_size: u16,
    queue_msix_vector: u16,
    queue_enable: u16,
    queue_notify_off: u16,
    queue_desc: [u32; 2],
    queue_driver: [u32; 2],
    queue_device: [u32; 2],
}

/// Reads a register of the common configuration.
macro_rules! get {
    ($self:ident.$field:ident) => {
        // SAFETY: the structure was mapped by `BoxTransport::new`, which checked that it is long enough; it is the device's for
        // as long as the transport lives.
        unsafe { (&raw const (*$self.common).$field).read_volatile() }
    };
}

/// Writes a register of the common configuration.
macro_rules! set {
    ($self:ident.$field:ident, $value:expr) => {
        // SAFETY: as for `get!`.
        unsafe { (&raw mut (*$self.common).$field).write_volatile($value) }
    };
}

const QUEUES: usize = 4;

/// virtio 1.2, 6: the driver says at which place in a queue it wants to be told, and so does the device.
const FEATURE_EVENT_INDEX: u64 = 1 << 29;

/// A queue's bell and where its rings lie.
#[derive(Default)]
struct Bell {
    address: AtomicU64,
    /// The available ring: flags, index, entries.
    available: AtomicU64,
    /// The used ring: flags, index, entries of eight bytes, event index.
    used: AtomicU64,
    size: AtomicU16,
    /// The available index at the last look.
    seen: AtomicU16,
}

/// A device's bells.
#[derive(Default)]
pub struct Doorbell {
    bells: [Bell; QUEUES],
    event_index: AtomicBool,
}

impl Doorbell {
    /// Rings the bells of the queues that have something new, if the device wants to be told (virtio 1.2, 2.7.13).
    ///
    /// The drivers' own test lacks the barrier between writing the index and reading what the device wants.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        for (queue, bell) in (0_u16..).zip(&self.bells) {
            let address = bell.address.load(Ordering::Relaxed);
            if address == 0 {
                continue;
            }
            let available = bell.available.load(Ordering::Relaxed);
            let used = bell.used.load(Ordering::Relaxed);
            // SAFETY: `queue_set` noted where the queue's rings lie; they live as long as the box.
            let index = unsafe { ((available + 2) as *const u16).read_volatile() };
            let seen = bell.seen.swap(index, Ordering::Relaxed);
            if index == seen {
                continue;
            }
            let wanted = if self.event_index.load(Ordering::Relaxed) {
                let at = used + 4 + 8 * u64::from(bell.size.load(Ordering::Relaxed));
                // SAFETY: as above.
                let event = unsafe { (at as *const u16).read_volatile() };
                outpost::virtqueue::needs_event(event, index, seen)
            } else {
                const NO_NOTIFY: u16 = 1;
                // SAFETY: as above.
                unsafe { (used as *const u16).read_volatile() & NO_NOTIFY == 0 }
            };
            if wanted {
                // SAFETY: the address lies in the notification region that the device's capability describes; it was mapped
                // when the transport was made.
                unsafe { (address as *mut u16).write_volatile(queue) };
            }
        }
    }
}

/// Why a function is no virtio device that this transport can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotVirtio {
    /// A capability is missing, or points where the device has no memory.
    Capability(u8),
}

impl fmt::Display for NotVirtio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotVirtio::Capability(kind) => write!(
                f,
                "virtio capability {kind} is missing or damaged (is the device virtio 1.0 or newer?)"
            ),
        }
    }
}

/// A structure in a device's memory.
#[derive(Clone, Copy)]
struct Structure {
    address: u64,
    bytes: u64,
    /// Where its capability lies in configuration space.
    capability: u8,
}

/// Finds the structure of the given kind and maps it.
fn structure(
    pci: &Pci,
    place: DeviceFunction,
    kind: u8,
    least: u64,
) -> Result<Structure, NotVirtio> {
    pci.root()
        .capabilities(place)
        .find_map(|capability| {
            let found = capability.id == CAPABILITY_VENDOR
                && (capability.private_header >> 8) as u8 == kind;
            found.then_some(())?;
            let bar = pci.read(place, capability.offset + 4) as u8;
            let offset = u64::from(pci.read(place, capability.offset + 8));
            let bytes = u64::from(pci.read(place, capability.offset + 12));
            let address = pci.memory_bar(place, bar)? + offset;
            (bytes >= least).then_some(())?;
            paging::map_device(address, bytes);
            Some(Structure {
                address,
                bytes,
                capability: capability.offset,
            })
        })
        .ok_or(NotVirtio::Capability(kind))
}

/// The transport.
pub struct BoxTransport {
    kind: DeviceType,
    common: *mut Common,
    notifications: Structure,
    notify_multiplier: u32,
    interrupt_status: Structure,
    configuration: Option<Structure>,
    /// Queue that interrupts when it has something.
    interrupting_queue: Option<u16>,
    doorbell: &'static Doorbell,
}

// SAFETY: the device's registers can be used from any CPU, and the transport is used by one at a time.
unsafe impl Send for BoxTransport {}

impl BoxTransport {
    /// A transport for the function at `place`, whose queue `interrupting_queue`, if any, uses entry 0 of its MSI-X table.
    ///
    /// # Errors
    /// If the function is no virtio device of version 1.
    pub fn new(
        pci: &Pci,
        place: DeviceFunction,
        kind: DeviceType,
        interrupting_queue: Option<u16>,
    ) -> Result<Self, NotVirtio> {
        let common = structure(pci, place, COMMON_CONFIGURATION, size_of::<Common>() as u64)?;
        let notifications = structure(pci, place, NOTIFICATIONS, 2)?;
        Ok(BoxTransport {
            kind,
            common: common.address as *mut Common,
            notifications,
            notify_multiplier: pci.read(place, notifications.capability + 16),
            interrupt_status: structure(pci, place, INTERRUPT_STATUS, 1)?,
            configuration: structure(pci, place, DEVICE_CONFIGURATION, 1).ok(),
            interrupting_queue,
            doorbell: Box::leak(Box::default()),
        })
    }

    /// The device's bells.
    pub fn doorbell(&self) -> &'static Doorbell {
        self.doorbell
    }

    /// Address of `bytes` bytes at `offset` of the device's own configuration.
    pub fn configuration(&self, offset: u64, bytes: u64) -> Option<u64> {
        self.configuration
            .filter(|structure| offset + bytes <= structure.bytes)
            .map(|structure| structure.address + offset)
    }
}

/// The halves of an address, as the device wants them written.
fn halves(address: PhysAddr) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

impl Transport for BoxTransport {
    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn read_device_features(&mut self) -> u64 {
        set!(self.device_feature_select, 0);
        let low = get!(self.device_feature);
        set!(self.device_feature_select, 1);
        u64::from(get!(self.device_feature)) << 32 | u64::from(low)
    }

    fn write_driver_features(&mut self, features: u64) {
        self.doorbell
            .event_index
            .store(features & FEATURE_EVENT_INDEX != 0, Ordering::Relaxed);
        set!(self.driver_feature_select, 0);
        set!(self.driver_feature, features as u32);
        set!(self.driver_feature_select, 1);
        set!(self.driver_feature, (features >> 32) as u32);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        set!(self.queue_select, queue);
        u32::from(get!(self.queue_size))
    }

    fn notify(&mut self, _: u16) {
        // [`Doorbell::ring`] finds out by itself what is new.
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(u32::from(get!(self.device_status)))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        set!(self.device_status, status.bits() as u8);
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
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
        set!(self.queue_select, queue);
        set!(self.queue_size, size as u16);
        set!(self.queue_msix_vector, vector);
        set!(self.queue_desc, halves(descriptors));
        set!(self.queue_driver, halves(driver_area));
        set!(self.queue_device, halves(device_area));
        let bell = u64::from(get!(self.queue_notify_off)) * u64::from(self.notify_multiplier);
        if bell + 2 <= self.notifications.bytes
            && let Some(slot) = self.doorbell.bells.get(usize::from(queue))
        {
            slot.available.store(driver_area, Ordering::Relaxed);
            slot.used.store(device_area, Ordering::Relaxed);
            slot.size.store(size as u16, Ordering::Relaxed);
            slot.address
                .store(self.notifications.address + bell, Ordering::Relaxed);
        }
        set!(self.queue_enable, 1);
    }

    fn queue_unset(&mut self, _: u16) {
        // A queue that is set up stays so until the device is reset.
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        set!(self.queue_select, queue);
        get!(self.queue_enable) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        // SAFETY: the structure was mapped by `new` and has at least one byte.
        let status = unsafe { (self.interrupt_status.address as *const u8).read_volatile() };
        InterruptStatus::from_bits_retain(u32::from(status))
    }

    fn read_config_generation(&self) -> u32 {
        u32::from(get!(self.config_generation))
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let address = self
            .configuration(offset as u64, size_of::<T>() as u64)
            .ok_or(Error::ConfigSpaceTooSmall)?;
        // SAFETY: the bytes lie in the device's configuration, which `new` mapped; any bytes are a `T`. Drivers read fields of
        // up to four bytes at multiples of their size.
        Ok(unsafe { (address as *const T).read_volatile() })
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        let address = self
            .configuration(offset as u64, size_of::<T>() as u64)
            .ok_or(Error::ConfigSpaceTooSmall)?;
        // SAFETY: as `read_config_space`.
        unsafe { (address as *mut T).write_volatile(value) };
        Ok(())
    }
}

impl Drop for BoxTransport {
    /// Resets the device, so that it no longer touches queues that may be gone.
    fn drop(&mut self) {
        self.set_status(DeviceStatus::empty());
    }
}
