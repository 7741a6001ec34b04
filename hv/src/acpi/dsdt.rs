//! The DSDT: how the guest finds COM1, the real-time clock and its virtio devices, how its processors idle, and how it switches
//! itself off.

use alloc::format;
use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::aml::{
    BufferData, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE, Package,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use crate::device::pm::SLEEP_TYPE_OFF;
use crate::platform::layout::{VIRTIO_STRIDE, VirtioSlot, gsi, port};

/// An edge-triggered, active high, exclusive interrupt.
fn edge(gsi: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, u32::from(gsi))
}

/// A device in `\_SB` with these objects.
fn device(name: &str, objects: &[Name]) -> Vec<u8> {
    let children = objects.iter().map(|object| object as &dyn Aml).collect();
    let device = Device::new(name.into(), children);
    let mut aml = Vec::new();
    Scope::new("_SB_".into(), alloc::vec![&device]).to_aml_bytes(&mut aml);
    aml
}

fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(name.into(), value)
}

/// `_CRS`: where a device is, and its interrupt.
fn resources(place: &dyn Aml, gsi: u8) -> Name {
    let interrupt = edge(gsi);
    let list = ResourceTemplate::new(alloc::vec![place, &interrupt]);
    name("_CRS", &list)
}

/// A resource template with the register of the state that HLT enters: fixed hardware, all else zero, as for any processor without MWAIT (ACPI 6.5, 6.4.3.7
/// and 6.4.2.9). The crate gives such a register a wrong length.
const HALT_REGISTER: [u8; 17] = [
    0x82, 0x0C, 0, 0x7F, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x79, 0,
];

/// A processor that halts, and does nothing deeper (ACPI 6.5, 8.4.1.1). A kernel that is told of an idle state predicts how long
/// it will be idle, and leaves its timer alone when that is short: two exits less for each. When it expects less than the latency, Linux does not
/// halt at all but watches for work, for twice as long at most: then it needs neither an exit to rest nor an interrupt to be woken.
fn processor(id: u8, wake_micros: u16) -> Vec<u8> {
    let halt = BufferData::new(HALT_REGISTER.to_vec());
    let c1 = Package::new(alloc::vec![&halt, &ONE, &wake_micros, &ZERO]);
    let states = Package::new(alloc::vec![&ONE, &c1]);
    device(
        &format!("CPU{id:X}"),
        &[
            name("_HID", &"ACPI0007"),
            name("_UID", &id),
            name("_CST", &states),
        ],
    )
}

/// The whole table.
pub(super) fn dsdt(processors: u8, wake_micros: u16, virtio: &[VirtioSlot]) -> Vec<u8> {
    let mut aml = Vec::new();
    let sleep_type = SLEEP_TYPE_OFF;
    let sleep = Package::new(alloc::vec![&sleep_type, &sleep_type, &ZERO, &ZERO]);
    name("_S5_", &sleep).to_aml_bytes(&mut aml);
    for id in 0..processors {
        aml.extend(processor(id, wake_micros));
    }
    aml.extend(device(
        "COM1",
        &[
            name("_HID", &EISAName::new("PNP0501")),
            name("_UID", &ZERO),
            name("_DDN", &"COM1"),
            resources(&IO::new(port::COM1, port::COM1, 1, 8), gsi::COM1),
        ],
    ));
    aml.extend(device(
        "RTC_",
        &[
            name("_HID", &EISAName::new("PNP0B00")),
            resources(&IO::new(port::RTC, port::RTC, 1, 2), gsi::RTC),
        ],
    ));
    for slot in virtio {
        let window = Memory32Fixed::new(true, slot.address() as u32, VIRTIO_STRIDE as u32);
        aml.extend(device(
            &format!("VIO{:X}", *slot as u8),
            &[
                // What Linux' virtio_mmio driver and QEMU have agreed on.
                name("_HID", &"LNRO0005"),
                name("_UID", &(*slot as u8)),
                resources(&window, slot.gsi()),
            ],
        ));
    }
    let (oem, table, revision) = (super::OEM, super::OEM_TABLE, super::OEM_REVISION);
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, oem, table, revision);
    sdt.append_slice(&aml);
    sdt.as_slice().to_vec()
}
