//! What the box wants of ACPI's static tables (ACPI 6.5, chapter 5): CPUs, PCI configuration space, timer, reset. No AML.

use alloc::vec::Vec;

use crate::power_switch::PowerSwitch;

/// Reads physical memory: the bytes at an address, or none if they cannot be read.
pub type PhysicalReader<'a> = &'a dyn Fn(u64, usize) -> Option<Vec<u8>>;

/// Why there is nothing to learn from ACPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// The root pointer has no `RSD PTR ` signature or a wrong checksum.
    BadRootPointer,
    /// The root table cannot be read or has a wrong checksum.
    BadRootTable,
}

impl core::fmt::Display for AcpiError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            AcpiError::BadRootPointer => "the ACPI root pointer is damaged",
            AcpiError::BadRootTable => "the ACPI root table is damaged",
        })
    }
}

/// A register that ACPI describes (5.2.3.2, generic address structure), of the kinds that occur here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// In memory space.
    Memory(u64),
    /// In I/O space.
    Port(u16),
}

/// PCI Express configuration space in memory (MCFG).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Physical address of bus 0's configuration space, whether or not bus 0 is served.
    pub base: u64,
    /// First bus served.
    pub first_bus: u8,
    /// Last bus served.
    pub last_bus: u8,
}

/// What the tables say. Anything may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Local APIC identifiers of the CPUs that are usable, in the table's order.
    pub cpus: Vec<u32>,
    /// Physical address of the local APIC, if MADT gives one.
    pub local_apic: Option<u64>,
    /// PCI Express configuration space of segment 0.
    pub ecam: Option<Ecam>,
    /// The power management timer.
    pub pm_timer: Option<Register>,
    /// The reset register and the value to write to it.
    pub reset: Option<(Register, u8)>,
    /// The power switch.
    pub power: Option<PowerSwitch>,
}

const RSDP_BYTES_V1: usize = 20;
const RSDP_BYTES_V2: usize = 36;
const HEADER_BYTES: usize = 36;
/// No table of interest is longer; a damaged length must not make us read all of memory.
const MAX_TABLE_BYTES: usize = 1 << 20;

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)) == 0
}

fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A whole table with a good length and checksum.
fn table(read: PhysicalReader<'_>, address: u64) -> Option<Vec<u8>> {
    let header = read(address, HEADER_BYTES)?;
    let length = usize::try_from(u32_at(&header, 4)?).ok()?;
    if !(HEADER_BYTES..=MAX_TABLE_BYTES).contains(&length) {
        return None;
    }
    let bytes = read(address, length)?;
    sums_to_zero(&bytes).then_some(bytes)
}

/// Reads the tables from the root pointer at `rsdp`. Tables that are damaged are passed over.
///
/// # Errors
/// If there is no way from the root pointer to the tables.
pub fn read(rsdp: u64, read: PhysicalReader<'_>) -> Result<Tables, AcpiError> {
    let pointer = read(rsdp, RSDP_BYTES_V1)
        .filter(|bytes| bytes.starts_with(b"RSD PTR ") && sums_to_zero(bytes))
        .ok_or(AcpiError::BadRootPointer)?;
    let revision = u8_at(&pointer, 15).unwrap_or(0);
    let extended = if revision >= 2 {
        read(rsdp, RSDP_BYTES_V2).and_then(|bytes| u64_at(&bytes, 24))
    } else {
        None
    };
    let (root, width) = match extended.filter(|&address| address != 0) {
        Some(xsdt) => (xsdt, 8),
        None => (u64::from(u32_at(&pointer, 16).unwrap_or(0)), 4),
    };
    let root = table(read, root).ok_or(AcpiError::BadRootTable)?;
    let mut tables = Tables::default();
    for entry in root
        .get(HEADER_BYTES..)
        .unwrap_or_default()
        .chunks_exact(width)
    {
        let address = if width == 8 {
            u64_at(entry, 0)
        } else {
            u32_at(entry, 0).map(u64::from)
        };
        let Some(bytes) = address.and_then(|address| table(read, address)) else {
            continue;
        };
        match bytes.get(..4) {
            Some(b"APIC") => read_madt(&bytes, &mut tables),
            Some(b"MCFG") => tables.ecam = tables.ecam.or_else(|| read_mcfg(&bytes)),
            Some(b"FACP") => {
                read_fadt(&bytes, &mut tables);
                let dsdt = u64_at(&bytes, 140)
                    .filter(|&address| address != 0)
                    .or(u32_at(&bytes, 40).map(u64::from))
                    .and_then(|address| table(read, address));
                tables.power = dsdt.and_then(|dsdt| PowerSwitch::read(&bytes, &dsdt));
            }
            _ => {}
        }
    }
    Ok(tables)
}

/// MADT (5.2.12): local APICs (type 0), address override (5) and local x2APICs (9).
fn read_madt(bytes: &[u8], tables: &mut Tables) {
    /// "Enabled": the processor is ready for use.
    const ENABLED: u32 = 1;
    tables.local_apic = u32_at(bytes, 36).map(u64::from);
    let mut rest = bytes.get(44..).unwrap_or_default();
    while let (Some(kind), Some(length)) = (u8_at(rest, 0), u8_at(rest, 1)) {
        let length = usize::from(length);
        let Some(entry) = rest.get(..length).filter(|_| length >= 2) else {
            break;
        };
        let (id, flags) = match kind {
            0 => (u8_at(entry, 3).map(u32::from), u32_at(entry, 4)),
            9 => (u32_at(entry, 4), u32_at(entry, 8)),
            5 => {
                tables.local_apic = u64_at(entry, 4).or(tables.local_apic);
                (None, None)
            }
            _ => (None, None),
        };
        if let (Some(id), Some(flags)) = (id, flags)
            && flags & ENABLED != 0
            && !tables.cpus.contains(&id)
        {
            tables.cpus.push(id);
        }
        rest = rest.get(length..).unwrap_or_default();
    }
}

/// MCFG (PCI Firmware Specification 4.1.2): the entry of segment 0.
fn read_mcfg(bytes: &[u8]) -> Option<Ecam> {
    bytes
        .get(44..)?
        .chunks_exact(16)
        .find(|entry| u16_at(entry, 8) == Some(0))
        .and_then(|entry| {
            Some(Ecam {
                base: u64_at(entry, 0)?,
                first_bus: u8_at(entry, 10)?,
                last_bus: u8_at(entry, 11)?,
            })
        })
        .filter(|ecam| ecam.base != 0 && ecam.first_bus <= ecam.last_bus)
}

/// FADT (5.2.9): power management timer and reset register.
fn read_fadt(bytes: &[u8], tables: &mut Tables) {
    /// FADT flag "RESET_REG_SUP".
    const RESET_SUPPORTED: u32 = 1 << 10;
    let extended = generic_address(bytes, 208);
    let port = u32_at(bytes, 76).and_then(|port| u16::try_from(port).ok());
    tables.pm_timer = extended.or(port.filter(|&port| port != 0).map(Register::Port));
    if u32_at(bytes, 112).is_some_and(|flags| flags & RESET_SUPPORTED != 0) {
        tables.reset = generic_address(bytes, 116).zip(u8_at(bytes, 128));
    }
}

fn generic_address(bytes: &[u8], at: usize) -> Option<Register> {
    let address = u64_at(bytes, at + 4).filter(|&address| address != 0)?;
    match u8_at(bytes, at)? {
        0 => Some(Register::Memory(address)),
        1 => u16::try_from(address).ok().map(Register::Port),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Physical memory made of pieces.
    #[derive(Default)]
    struct Memory(BTreeMap<u64, Vec<u8>>);

    impl Memory {
        fn read(&self, address: u64, length: usize) -> Option<Vec<u8>> {
            let (&start, bytes) = self.0.range(..=address).next_back()?;
            let at = usize::try_from(address - start).ok()?;
            bytes.get(at..at.checked_add(length)?).map(<[u8]>::to_vec)
        }

        fn table(&mut self, address: u64, signature: &[u8; 4], body: &[u8]) {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes[..4].copy_from_slice(signature);
            bytes.extend_from_slice(body);
            let length = bytes.len() as u32;
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            seal(&mut bytes, 9);
            self.0.insert(address, bytes);
        }
    }

    fn seal(bytes: &mut [u8], at: usize) {
        bytes[at] = 0;
        let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        bytes[at] = sum.wrapping_neg();
    }

    fn machine() -> Memory {
        let mut memory = Memory::default();
        let mut madt = vec![0; 8];
        madt[..4].copy_from_slice(&0xfee0_0000_u32.to_le_bytes());
        madt.extend_from_slice(&[0, 8, 0, 0, 1, 0, 0, 0]); // CPU 0, enabled
        madt.extend_from_slice(&[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // I/O APIC
        madt.extend_from_slice(&[0, 8, 1, 1, 1, 0, 0, 0]); // CPU 1, enabled
        madt.extend_from_slice(&[0, 8, 2, 2, 0, 0, 0, 0]); // CPU 2, absent
        madt.extend_from_slice(&[9, 16, 0, 0, 0x00, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // x2APIC 256
        memory.table(0x2000, b"APIC", &madt);
        let mut mcfg = vec![0; 8];
        mcfg.extend_from_slice(&0xb000_0000_u64.to_le_bytes());
        mcfg.extend_from_slice(&[0, 0, 0, 255, 0, 0, 0, 0]);
        memory.table(0x3000, b"MCFG", &mcfg);
        let mut fadt = vec![0; 244 - HEADER_BYTES];
        fadt[76 - 36..80 - 36].copy_from_slice(&0x608_u32.to_le_bytes());
        fadt[112 - 36..116 - 36].copy_from_slice(&(1_u32 << 10).to_le_bytes());
        fadt[116 - 36] = 1;
        fadt[120 - 36..128 - 36].copy_from_slice(&0xcf9_u64.to_le_bytes());
        fadt[128 - 36] = 0x0f;
        memory.table(0x4000, b"FACP", &fadt);
        let mut xsdt = Vec::new();
        for address in [0x2000_u64, 0x3000, 0x4000, 0x9999_0000] {
            xsdt.extend_from_slice(&address.to_le_bytes());
        }
        memory.table(0x1000, b"XSDT", &xsdt);
        let mut rsdp = b"RSD PTR \0OUTPST\x02".to_vec();
        rsdp.extend_from_slice(&0_u32.to_le_bytes());
        rsdp.extend_from_slice(&36_u32.to_le_bytes());
        rsdp.extend_from_slice(&0x1000_u64.to_le_bytes());
        rsdp.extend_from_slice(&[0; 4]);
        seal(&mut rsdp[..RSDP_BYTES_V1], 8);
        memory.0.insert(0x100, rsdp);
        memory
    }

    #[test]
    fn reads_what_the_box_needs() {
        let memory = machine();
        let tables = read(0x100, &|address, length| memory.read(address, length)).unwrap();
        assert_eq!(tables.cpus, [0, 1, 256]);
        assert_eq!(tables.local_apic, Some(0xfee0_0000));
        assert_eq!(
            tables.ecam,
            Some(Ecam {
                base: 0xb000_0000,
                first_bus: 0,
                last_bus: 255
            })
        );
        assert_eq!(tables.pm_timer, Some(Register::Port(0x608)));
        assert_eq!(tables.reset, Some((Register::Port(0xcf9), 0x0f)));
    }

    #[test]
    fn passes_over_damaged_tables() {
        let mut memory = machine();
        memory.0.get_mut(&0x2000).unwrap()[40] ^= 1;
        let tables = read(0x100, &|address, length| memory.read(address, length)).unwrap();
        assert!(tables.cpus.is_empty());
        assert!(tables.ecam.is_some());
    }

    #[test]
    fn says_when_the_way_in_is_damaged() {
        let mut memory = machine();
        memory.0.get_mut(&0x1000).unwrap()[12] ^= 1;
        let reader = |address, length| memory.read(address, length);
        assert_eq!(read(0x100, &reader), Err(AcpiError::BadRootTable));
        assert_eq!(read(0x500, &reader), Err(AcpiError::BadRootPointer));
    }

    #[test]
    fn any_single_damaged_byte_is_harmless() {
        let memory = machine();
        for (&address, bytes) in &memory.0 {
            for at in 0..bytes.len() {
                let mut damaged = machine();
                damaged.0.get_mut(&address).unwrap()[at] ^= 0xff;
                // Must not panic; what it finds is up to which byte it was.
                let _ = read(0x100, &|address, length| damaged.read(address, length));
            }
        }
    }

    #[test]
    fn a_zero_length_entry_ends_the_walk() {
        let mut memory = machine();
        let mut madt = vec![0; 8];
        madt.extend_from_slice(&[0, 0, 0, 0]);
        memory.table(0x2000, b"APIC", &madt);
        let tables = read(0x100, &|address, length| memory.read(address, length)).unwrap();
        assert!(tables.cpus.is_empty());
    }
}
