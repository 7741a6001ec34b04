//! Devices on PCI and their drivers.

pub mod disk;
pub mod nic;
pub mod pci;
mod virtio;
