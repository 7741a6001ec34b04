//! PCI configuration mechanism #1 (PCI Local Bus Specification 3.0, 3.2.2.3.2) with nothing behind it but a host bridge.
//!
//! The guest has no PCI devices. A kernel that finds no mechanism at all complains; one that finds this, and no root bridge in the
//! ACPI tables, has nothing to scan and says nothing.

use super::bytes_of;

/// Bit 31 of the address: a configuration access, not an I/O access.
const ENABLE: u32 = 1 << 31;

/// The host bridge's header, in words: Red Hat's number for QEMU's generic host bridge, which no kernel has quirks for.
const HOST_BRIDGE: [u32; 16] = [
    0x0008_1B36, // device, vendor
    0x0000_0000, // status, command
    0x0600_0000, // class: host bridge
    0x0000_0000, // header type 0
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0x1100_1AF4, // subsystem
    0,
    0,
    0,
    0,
];

/// The configuration ports.
#[derive(Clone, Debug, Default)]
pub struct PciConfig {
    address: u32,
}

impl PciConfig {
    /// Reads `width` bytes at `offset` from the address port. Only whole accesses reach the register.
    pub fn read_address(&self, offset: u16, width: u8) -> u32 {
        if offset == 0 && width == 4 {
            self.address
        } else {
            bytes_of(0, 0, 0, width)
        }
    }

    /// Writes it likewise.
    pub fn write_address(&mut self, offset: u16, width: u8, value: u32) {
        if offset == 0 && width == 4 {
            self.address = value & 0x80FF_FFFC;
        }
    }

    /// Reads `width` bytes at `offset` from the data port: of the host bridge, or all ones.
    pub fn read_data(&self, offset: u16, width: u8) -> u32 {
        // Bus 0, device 0, function 0.
        if self.address & 0x80FF_FF00 != ENABLE {
            return bytes_of(0, 0, 0, width);
        }
        let register = self.address >> 2 & 0x3F;
        let word = HOST_BRIDGE.get(register as usize).copied().unwrap_or(0);
        bytes_of(word, 4, offset, width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_the_mechanism_and_one_bridge() {
        let mut pci = PciConfig::default();
        pci.write_address(3, 1, 1); // pci_check_type1
        pci.write_address(0, 4, 0x8000_0000);
        assert_eq!(pci.read_address(0, 4), 0x8000_0000);
        pci.write_address(0, 4, 0x8000_0008);
        assert_eq!(pci.read_data(2, 2), 0x0600);
        pci.write_address(0, 4, 0x8000_0800);
        assert_eq!(pci.read_data(0, 4), u32::MAX, "device 1");
        assert_eq!(pci.read_data(2, 2), 0xFFFF);
        pci.write_address(0, 4, 0x8001_0000);
        assert_eq!(pci.read_data(0, 4), u32::MAX, "bus 1");
        pci.write_address(0, 4, 0);
        assert_eq!(pci.read_data(0, 4), u32::MAX, "not enabled");
        pci.write_address(0, 4, 0x8000_00FC);
        assert_eq!(pci.read_data(0, 4), 0);
    }
}
