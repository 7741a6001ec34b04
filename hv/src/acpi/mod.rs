//! The guest's ACPI tables, made with the crate `acpi_tables`: RSDP, XSDT, FADT with FACS and DSDT, MADT, WDAT.
//!
//! The hardware is not of the reduced kind: docs/platform.md says why. The tables lie where a kernel without firmware looks for them, in
//! the last 128 KiB below 1 MiB, and describe exactly the machine of `platform::layout`.

mod dsdt;
mod wdat;

use alloc::vec::Vec;

use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml_as_bytes};
use zerocopy::{Immutable, IntoBytes};

use crate::device::rtc;
use crate::mem::{GuestMemory, OutOfGuest};
use crate::platform::layout::{self, VirtioSlot, gsi, port};

const OEM: [u8; 6] = *b"OUTPST";
const OEM_TABLE: [u8; 8] = *b"OUTPOST ";
const OEM_REVISION: u32 = 1;

/// What of the machine may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Number of vCPUs, 1 to [`layout::MAX_VCPUS`]; their local APIC identifiers are 0, 1, ….
    pub vcpus: usize,
    /// Microseconds from a wake-up to the first instruction of a halted vCPU, as its idle state says.
    pub wake_micros: u16,
    /// The virtio devices that there are.
    pub virtio: Vec<VirtioSlot>,
}

/// The tables as they go to memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// All of them, in the order of their addresses.
    bytes: Vec<u8>,
}

/// Interrupt source override (ACPI 6.5, 5.2.12.5), which the crate does not have.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
struct InterruptOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: [u8; 4],
    flags: [u8; 2],
}

aml_as_bytes!(InterruptOverride);

/// Local APIC NMI (5.2.12.7): LINT1 of every CPU.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
struct LocalApicNmi {
    kind: u8,
    length: u8,
    processor: u8,
    flags: [u8; 2],
    lint: u8,
}

aml_as_bytes!(LocalApicNmi);

impl Tables {
    /// Makes the tables.
    pub fn new(config: &AcpiConfig) -> Self {
        // The RSDP is first, padded so that the FACS is 64-byte aligned.
        let mut bytes = alloc::vec![0; 64];
        let facs = append(&mut bytes, &FACS::new());
        let processors = config.vcpus.clamp(1, layout::MAX_VCPUS) as u8;
        let dsdt = append_bytes(
            &mut bytes,
            &dsdt::dsdt(processors, config.wake_micros, &config.virtio),
        );
        let fadt = append(&mut bytes, &fadt(facs, dsdt));
        let madt = append_bytes(&mut bytes, &madt(processors));
        let wdat = append_bytes(&mut bytes, &wdat::wdat());
        let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
        xsdt.add_entry(fadt);
        xsdt.add_entry(madt);
        xsdt.add_entry(wdat);
        let xsdt = append(&mut bytes, &xsdt);
        let rsdp = Rsdp::new(OEM, xsdt);
        for (target, byte) in bytes.iter_mut().zip(rsdp.as_bytes()) {
            *target = *byte;
        }
        Self { bytes }
    }

    /// Guest-physical address of the root pointer.
    pub fn root(&self) -> u64 {
        layout::TABLES
    }

    /// Writes the tables to guest memory.
    ///
    /// # Errors
    /// [`OutOfGuest`] if the guest has less than a mebibyte.
    pub fn install(&self, mem: &GuestMemory) -> Result<(), OutOfGuest> {
        mem.write(layout::TABLES, &self.bytes)
    }
}

/// Appends a table, 16-byte aligned, and gives its guest-physical address.
fn append(bytes: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    let mut new = Vec::new();
    table.to_aml_bytes(&mut new);
    append_bytes(bytes, &new)
}

fn append_bytes(bytes: &mut Vec<u8>, table: &[u8]) -> u64 {
    let start = bytes.len();
    bytes.extend_from_slice(table);
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    layout::TABLES + start as u64
}

/// An I/O port register of `bits` bits.
fn io(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(address))
}

fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    /// There are devices of the ISA kind (COM1); there is no VGA. No 8042, no PCIe ASPM.
    const LEGACY_DEVICES: u16 = 1;
    const NO_VGA: u16 = 1 << 2;

    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is a fixed one; there is no sleep button.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(gsi::SCI).into();
    fadt.pm1a_evt_blk = u32::from(port::PM1_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = io(port::PM1_EVENT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(port::PM1_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = io(port::PM1_CONTROL, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(port::PM_TIMER).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = io(port::PM_TIMER, 32, AccessSize::DwordAccess);
    fadt.gpe0_blk = u32::from(port::GPE0).into();
    fadt.gpe0_blk_len = 4;
    fadt.x_gpe0_blk = io(port::GPE0, 32, AccessSize::ByteAccess);
    // No C2 and no C3: latencies beyond 100 and 1000 µs mean that.
    fadt.p_lvl2_lat = 0xFFFF.into();
    fadt.p_lvl3_lat = 0xFFFF.into();
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
    fadt.reset_reg = io(port::RESET_CONTROL, 8, AccessSize::ByteAccess);
    fadt.reset_value = 6;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"Outpost\0").into();
    fadt.finalize()
}

fn madt(processors: u8) -> Vec<u8> {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC as u32);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local);
    for id in 0..processors {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC as u32, 0));
    madt.add_structure(InterruptOverride {
        kind: 2,
        length: 10,
        bus: 0,
        source: gsi::SCI,
        gsi: u32::from(gsi::SCI).to_le_bytes(),
        flags: 0b1101_u16.to_le_bytes(), // active high, level
    });
    madt.add_structure(LocalApicNmi {
        kind: 4,
        length: 6,
        processor: 0xFF,
        flags: [0, 0],
        lint: 1,
    });
    let mut bytes = Vec::new();
    madt.to_aml_bytes(&mut bytes);
    // PCAT_COMPAT: there is a pair of 8259s. The crate cannot say it.
    const FLAGS: usize = 40;
    const CHECKSUM: usize = 9;
    if let Some(flags) = bytes.get_mut(FLAGS) {
        *flags |= 1;
    }
    if let Some(checksum) = bytes.get_mut(CHECKSUM) {
        *checksum = checksum.wrapping_sub(1);
    }
    bytes
}

#[cfg(test)]
mod tests;
