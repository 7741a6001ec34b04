//! Where everything is in the guest's machine: memory, ports and interrupts, in one place. docs/platform.md says why.
//!
//! The chipset's addresses are those of a q35 board, so that a kernel which guesses instead of reading tables guesses right.

use crate::mem::LOW_RAM_END;

/// Ports and registers of the chipset, one constant for each first port.
pub mod port {
    /// Master and slave 8259 (two ports each).
    pub const PIC_MASTER: u16 = 0x20;
    /// See [`PIC_MASTER`].
    pub const PIC_SLAVE: u16 = 0xA0;
    /// Edge/level control registers of the 8259 pair (two ports).
    pub const PIC_EDGE_LEVEL: u16 = 0x4D0;
    /// Keyboard controller, command and status: only its reset pulse exists.
    pub const KEYBOARD_COMMAND: u16 = 0x64;
    /// Index register of the real-time clock; its data register is the next port.
    pub const RTC: u16 = 0x70;
    /// Power-on self test codes; also Linux's I/O delay.
    pub const POST_CODE: u16 = 0x80;
    /// System control port A: fast reset and the A20 gate (always open).
    pub const SYSTEM_CONTROL_A: u16 = 0x92;
    /// Ends the guest with a status, if the configuration has it.
    pub const DEBUG_EXIT: u16 = 0xF4;
    /// First of the eight ports of the 16550 at COM1.
    pub const COM1: u16 = 0x3F8;
    /// ACPI PM1a event block: status and enable, two bytes each.
    pub const PM1_EVENT: u16 = 0x600;
    /// ACPI PM1a control block, two bytes.
    pub const PM1_CONTROL: u16 = 0x604;
    /// ACPI PM timer, four bytes.
    pub const PM_TIMER: u16 = 0x608;
    /// ACPI general-purpose event block 0: status and enable, two bytes each.
    pub const GPE0: u16 = 0x620;
    /// The watchdog's four registers, four bytes each.
    pub const WATCHDOG: u16 = 0x630;
    /// PCI configuration address, four bytes.
    pub const PCI_ADDRESS: u16 = 0xCF8;
    /// Reset control register: byte accesses only, in the middle of [`PCI_ADDRESS`].
    pub const RESET_CONTROL: u16 = 0xCF9;
    /// PCI configuration data, four bytes.
    pub const PCI_DATA: u16 = 0xCFC;
}

/// Global system interrupts: pins of the I/O APIC.
pub mod gsi {
    /// COM1, edge, active high.
    pub const COM1: u8 = 4;
    /// Real-time clock, edge, active high.
    pub const RTC: u8 = 8;
    /// ACPI's system control interrupt, level, active high.
    pub const SCI: u8 = 9;
    /// The first virtio device; the others follow. Edge, active high.
    pub const VIRTIO_FIRST: u8 = 16;
}

/// The I/O APIC's registers (one page).
pub const IO_APIC: u64 = 0xFEC0_0000;

/// The local APIC's registers while it is in xAPIC mode (one page).
pub const LOCAL_APIC: u64 = 0xFEE0_0000;

/// First virtio-mmio window.
pub const VIRTIO_FIRST: u64 = 0xD000_0000;

/// Distance of one virtio-mmio window from the next, and its length.
pub const VIRTIO_STRIDE: u64 = 0x1000;

/// The virtio devices: each has a window and an interrupt by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VirtioSlot {
    /// The network interface.
    Net = 0,
    /// The console, `hvc0` in Linux.
    Console = 1,
    /// The entropy source.
    Entropy = 2,
    /// The disk.
    Block = 3,
}

impl VirtioSlot {
    /// Every slot, in order.
    pub const ALL: [Self; 4] = [Self::Net, Self::Console, Self::Entropy, Self::Block];

    /// Guest-physical address of the register window.
    pub const fn address(self) -> u64 {
        VIRTIO_FIRST + self as u64 * VIRTIO_STRIDE
    }

    /// The interrupt's GSI.
    pub const fn gsi(self) -> u8 {
        gsi::VIRTIO_FIRST + self as u8
    }
}

/// Most vCPUs: local APIC identifiers stay below 16, one x2APIC cluster and far from the 8-bit limit of the I/O APIC.
pub const MAX_VCPUS: usize = 16;

/// Conventional memory ends here; a kilobyte for the extended BIOS data area follows, as every PC has it.
pub const CONVENTIONAL_END: u64 = 0x9_FC00;

/// The video window's start: no RAM from here to [`TABLES`], as far as the guest is told.
pub const VIDEO_START: u64 = 0xA_0000;

/// ACPI tables, from the root pointer on: in the area that kernels search for it.
pub const TABLES: u64 = 0xE_0000;

/// End of the area for tables; extended memory starts here.
pub const EXTENDED_START: u64 = 0x10_0000;

/// Start of the device hole.
pub const DEVICE_HOLE: u64 = LOW_RAM_END;
