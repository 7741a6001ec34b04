//! The disk that the box was started from, once the firmware is gone: found again on PCI, opened once, and used in turns by the dictionary and
//! the guest.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::cell::RefCell;

use outpost::disk::{Extent, Table};
use outpost_image_format::Partition;

use crate::device::disk::Disk;
use crate::device::pci::{Function, Pci};
use crate::firmware::{BootDisk, Findings};

/// A disk with the box's partitions.
pub struct BoxDisk {
    /// It.
    pub disk: Rc<RefCell<Disk>>,
    /// Bytes in a block, as the partition table counts.
    pub block_bytes: u32,
    /// Where `store` lies.
    pub store: Extent,
    /// Where `guest` lies.
    pub guest: Option<Extent>,
}

/// Opens the disk, if the configuration has a use for it; none without partitions of the box's that can be written, which the firmware phase
/// has said.
///
/// # Errors
/// In words.
pub fn open(
    findings: &Findings,
    pci: &Pci,
    functions: &[Function],
) -> Result<Option<BoxDisk>, String> {
    let wanted = findings
        .config
        .as_ref()
        .is_ok_and(|config| !config.peers.is_empty() || config.guest.is_some());
    let Some(boot) = findings.disk.filter(|_| wanted) else {
        return Ok(None);
    };
    let disk = start(&boot, pci, functions)?;
    Ok(Some(BoxDisk {
        disk: Rc::new(RefCell::new(disk)),
        block_bytes: boot.block_bytes,
        store: boot.store,
        guest: boot.guest,
    }))
}

/// Starts the driver of the disk that the firmware knew.
fn start(boot: &BootDisk, pci: &Pci, functions: &[Function]) -> Result<Disk, String> {
    let (device, number) = boot
        .controller
        .ok_or("it does not hang on PCI; use a virtio disk")?;
    let mut trouble = String::from("its controller is gone from PCI; check the disk");
    // The firmware told device and function, not the bus: with several buses there may be more than one.
    for function in functions {
        if (function.place.device, function.place.function) != (device, number) {
            continue;
        }
        let started = Disk::start(pci, function, boot.block_bytes).and_then(|mut disk| {
            is_same(&mut disk, boot)?;
            Ok(disk)
        });
        match started {
            Ok(disk) => return Ok(disk),
            Err(why) => trouble = why,
        }
    }
    Err(trouble)
}

/// Nothing is written before the driver has read from this disk what the firmware has.
fn is_same(disk: &mut Disk, boot: &BootDisk) -> Result<(), String> {
    if disk.is_read_only() {
        return Err("it is write-protected; use one that can be written".into());
    }
    let table = Table::load(disk).map_err(|error| error.to_string())?;
    if table.find(Partition::Store) == Ok(Some(boot.store))
        && table.find(Partition::Guest) == Ok(boot.guest)
    {
        Ok(())
    } else {
        Err("the driver does not find on it what the firmware found; check the disk".into())
    }
}
