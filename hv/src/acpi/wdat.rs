//! WDAT: how the guest's watchdog is driven (Microsoft, "Hardware Watchdog Timers Design Specification" 1.0; `struct acpi_table_wdat` in ACPICA's
//! actbl3.h).

use alloc::vec::Vec;

use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use zerocopy::{Immutable, IntoBytes};

use crate::device::watchdog::{COUNTS, TICK_MS, register};
use crate::platform::layout::port;

/// What follows the table's header.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
struct Header {
    length: [u8; 4],
    /// 0xff for a watchdog that is no PCI device, likewise bus, device and function.
    pci_segment: [u8; 2],
    pci_place: [u8; 3],
    reserved: [u8; 3],
    period_ms: [u8; 4],
    most: [u8; 4],
    least: [u8; 4],
    flags: u8,
    reserved_too: [u8; 3],
    entries: [u8; 4],
}

/// How one thing is done.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
struct Entry {
    action: u8,
    instruction: u8,
    reserved: [u8; 2],
    place: [u8; 12],
    value: [u8; 4],
    mask: [u8; 4],
}

/// Watchdog actions.
mod action {
    pub const ANSWER: u8 = 1;
    pub const QUERY_LEFT: u8 = 4;
    pub const QUERY_COUNT: u8 = 5;
    pub const SET_COUNT: u8 = 6;
    pub const QUERY_RUNNING: u8 = 8;
    pub const SET_RUNNING: u8 = 9;
    pub const QUERY_STOPPED: u8 = 10;
    pub const SET_STOPPED: u8 = 11;
}

/// Instructions.
mod instruction {
    /// Whether the masked register is the value.
    pub const READ_VALUE: u8 = 0;
    /// The masked register.
    pub const READ_COUNTDOWN: u8 = 1;
    /// The value.
    pub const WRITE_VALUE: u8 = 2;
    /// What the caller says.
    pub const WRITE_COUNTDOWN: u8 = 3;
}

fn entry(action: u8, instruction: u8, register: u16, value: u32, mask: u32) -> Entry {
    let address = u64::from(port::WATCHDOG + register);
    let place = GAS::new(
        AddressSpace::SystemIo,
        32,
        0,
        AccessSize::DwordAccess,
        address,
    );
    let mut bytes = [0; 12];
    for (to, from) in bytes.iter_mut().zip(place.as_bytes()) {
        *to = *from;
    }
    Entry {
        action,
        instruction,
        reserved: [0; 2],
        place: bytes,
        value: value.to_le_bytes(),
        mask: mask.to_le_bytes(),
    }
}

/// The whole table.
pub(super) fn wdat() -> Vec<u8> {
    use register::{ANSWER, CONTROL, COUNT, LEFT};
    /// It is there, and software may stop it.
    const ENABLED: u8 = 1;
    let all = u32::MAX;
    let entries = [
        entry(action::ANSWER, instruction::WRITE_VALUE, ANSWER, 1, 1),
        entry(
            action::QUERY_LEFT,
            instruction::READ_COUNTDOWN,
            LEFT,
            0,
            all,
        ),
        entry(
            action::QUERY_COUNT,
            instruction::READ_COUNTDOWN,
            COUNT,
            0,
            all,
        ),
        entry(
            action::SET_COUNT,
            instruction::WRITE_COUNTDOWN,
            COUNT,
            0,
            all,
        ),
        entry(
            action::QUERY_RUNNING,
            instruction::READ_VALUE,
            CONTROL,
            1,
            1,
        ),
        entry(action::SET_RUNNING, instruction::WRITE_VALUE, CONTROL, 1, 1),
        entry(
            action::QUERY_STOPPED,
            instruction::READ_VALUE,
            CONTROL,
            0,
            1,
        ),
        entry(action::SET_STOPPED, instruction::WRITE_VALUE, CONTROL, 0, 1),
    ];
    let header = Header {
        length: (size_of::<Header>() as u32).to_le_bytes(),
        pci_segment: 0xFF_u16.to_le_bytes(),
        pci_place: [0xFF; 3],
        reserved: [0; 3],
        period_ms: TICK_MS.to_le_bytes(),
        most: COUNTS.end().to_le_bytes(),
        least: COUNTS.start().to_le_bytes(),
        flags: ENABLED,
        reserved_too: [0; 3],
        entries: (entries.len() as u32).to_le_bytes(),
    };
    let (oem, table, revision) = (super::OEM, super::OEM_TABLE, super::OEM_REVISION);
    let mut sdt = Sdt::new(*b"WDAT", 36, 1, oem, table, revision);
    sdt.append_slice(header.as_bytes());
    for entry in entries {
        sdt.append_slice(entry.as_bytes());
    }
    sdt.as_slice().to_vec()
}
