//! PCI: configuration space through memory (ECAM) or ports, finding functions on all buses, message-signalled interrupts.

use alloc::vec::Vec;

use outpost::acpi::Ecam;
use virtio_drivers::transport::pci::bus::{
    Command, ConfigurationAccess, DeviceFunction, DeviceFunctionInfo, HeaderType, PciRoot,
};

use crate::machine::{cpu, paging, port};

/// Configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2).
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

const CAPABILITY_MSIX: u8 = 0x11;
/// Type 1 header: the secondary bus number is the second byte of this word.
const BUS_NUMBERS: u8 = 0x18;

/// A way to configuration space.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// In memory, from this address on.
    Memory(u64),
    /// Through ports.
    Ports,
}

impl Access {
    fn in_memory(base: u64, function: DeviceFunction, register: u8) -> *mut u32 {
        let offset = u64::from(function.bus) << 20
            | u64::from(function.device & 31) << 15
            | u64::from(function.function & 7) << 12
            | u64::from(register & !3);
        (base + offset) as *mut u32
    }

    fn select(function: DeviceFunction, register: u8) {
        let address = 1 << 31
            | u32::from(function.bus) << 16
            | u32::from(function.device & 31) << 11
            | u32::from(function.function & 7) << 8
            | u32::from(register & !3);
        port::write_u32(CONFIG_ADDRESS, address);
    }
}

impl ConfigurationAccess for Access {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        match *self {
            // SAFETY: `Pci::new` mapped the space of every bus that ACPI names, and `functions` visits no other.
            Access::Memory(base) => unsafe {
                Self::in_memory(base, function, register).read_volatile()
            },
            Access::Ports => {
                Self::select(function, register);
                port::read_u32(CONFIG_DATA)
            }
        }
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        match *self {
            // SAFETY: as `read_word`.
            Access::Memory(base) => unsafe {
                Self::in_memory(base, function, register).write_volatile(data);
            },
            Access::Ports => {
                Self::select(function, register);
                port::write_u32(CONFIG_DATA, data);
            }
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// A function that was found.
#[derive(Clone, Debug)]
pub struct Function {
    /// Where it is.
    pub place: DeviceFunction,
    /// What it says it is.
    pub info: DeviceFunctionInfo,
}

/// The PCI root. Used by the boot CPU only, during start-up.
pub struct Pci {
    access: Access,
    last_bus: u8,
}

impl Pci {
    /// Configuration space in memory if ACPI says where, else through ports.
    pub fn new(ecam: Option<Ecam>) -> Self {
        match ecam.filter(|ecam| ecam.first_bus == 0) {
            Some(ecam) => {
                paging::map_device(ecam.base, (u64::from(ecam.last_bus) + 1) << 20);
                Pci {
                    access: Access::Memory(ecam.base),
                    last_bus: ecam.last_bus,
                }
            }
            None => Pci {
                access: Access::Ports,
                last_bus: u8::MAX,
            },
        }
    }

    /// The root in the form that the virtio drivers want.
    pub fn root(&self) -> PciRoot<Access> {
        PciRoot::new(self.access)
    }

    /// Every function on every bus that can be reached from bus 0, in order.
    pub fn functions(&self) -> Vec<Function> {
        let root = self.root();
        let mut found = Vec::new();
        let mut buses = alloc::vec![0_u8];
        let mut next = 0;
        while let Some(&bus) = buses.get(next) {
            next += 1;
            for (place, info) in root.enumerate_bus(bus) {
                if info.header_type == HeaderType::PciPciBridge {
                    let secondary = (self.access.read_word(place, BUS_NUMBERS) >> 8) as u8;
                    if secondary <= self.last_bus && !buses.contains(&secondary) {
                        buses.push(secondary);
                    }
                }
                found.push(Function { place, info });
            }
        }
        found
    }

    /// Lets the function answer in memory and master the bus, without its interrupt line.
    pub fn enable(&self, place: DeviceFunction) {
        let mut root = self.root();
        let (_, command) = root.get_status_command(place);
        root.set_command(
            place,
            command | Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE,
        );
    }

    /// A word of the function's configuration space.
    pub fn read(&self, place: DeviceFunction, register: u8) -> u32 {
        self.access.read_word(place, register)
    }

    /// Physical address of a memory BAR, as the firmware set it; none if it is absent or in I/O space.
    pub fn memory_bar(&self, place: DeviceFunction, bar: u8) -> Option<u64> {
        const BAR_0: u8 = 0x10;
        const IN_IO_SPACE: u32 = 1;
        const WIDTH: u32 = 0b110;
        const WIDTH_64: u32 = 0b100;
        if bar > 5 {
            return None;
        }
        let low = self.read(place, BAR_0 + 4 * bar);
        if low & IN_IO_SPACE != 0 {
            return None;
        }
        let high = if low & WIDTH == WIDTH_64 && bar < 5 {
            self.read(place, BAR_0 + 4 * (bar + 1))
        } else {
            0
        };
        Some(u64::from(high) << 32 | u64::from(low & !0xf)).filter(|&address| address != 0)
    }

    /// Makes entry 0 of the function's MSI-X table interrupt CPU 0 with `vector` (PCI Express 5.0, 7.7.2). False if it has none.
    pub fn enable_msix(&self, place: DeviceFunction, vector: u8) -> bool {
        /// Message address of the local APIC, destination in bits 12 to 19 (Intel SDM vol. 3, 11.11).
        const MESSAGE_ADDRESS: u32 = 0xfee0_0000;
        const ENABLE: u32 = 1 << 31;
        const MASK_ALL: u32 = 1 << 30;
        const ENTRY_BYTES: u64 = 16;
        let root = self.root();
        let Some(capability) = root
            .capabilities(place)
            .find(|capability| capability.id == CAPABILITY_MSIX)
        else {
            return false;
        };
        let control = self.read(place, capability.offset);
        let table = self.read(place, capability.offset + 4);
        let Some(bar) = self.memory_bar(place, (table & 7) as u8) else {
            return false;
        };
        let offset = u64::from(table & !7);
        let Some(destination) = cpu::apic_id(0).filter(|&id| id < 256) else {
            return false;
        };
        paging::map_device(bar + offset, ENTRY_BYTES);
        let entry = (bar + offset) as *mut u32;
        // SAFETY: the entry lies in the table that the function's capability describes, and has just been mapped.
        unsafe {
            entry.write_volatile(MESSAGE_ADDRESS | destination << 12);
            entry.add(1).write_volatile(0);
            entry.add(2).write_volatile(u32::from(vector));
            entry.add(3).write_volatile(0);
        }
        let mut access = self.access;
        access.write_word(place, capability.offset, (control | ENABLE) & !MASK_ALL);
        true
    }
}
