//! Devices on PCI and their drivers.

pub mod nic;
pub mod pci;
mod virtio;
