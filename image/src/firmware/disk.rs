//! The disk the box was started from, through the firmware's Block I/O.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use outpost::disk::{Blocks, DiskFailed, Extent, Provisioned, Table};
use outpost_image_format::Partition;
use uefi::Handle;
use uefi::boot::{self, OpenProtocolAttributes, OpenProtocolParams, ScopedProtocol};
use uefi::proto::ProtocolPointer;
use uefi::proto::device_path::{DevicePath, DeviceSubType, DeviceType};
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::media::block::BlockIO;

use crate::output;

/// A whole disk.
pub struct FirmwareDisk {
    block_io: ScopedProtocol<BlockIO>,
    media_id: u32,
    block_bytes: u32,
    blocks: u64,
    is_read_only: bool,
    controller: Option<(u8, u8)>,
}

/// What there is to know of the disk once the firmware is gone.
#[derive(Clone, Copy, Debug)]
pub struct BootDisk {
    /// Device and function of the PCI controller that it hangs on, if it is one; its bus is not known.
    pub controller: Option<(u8, u8)>,
    /// Bytes in a block, as the partition table counts.
    pub block_bytes: u32,
    /// Where the partition `store` lies.
    pub store: Extent,
    /// Where the partition `guest` lies, if there is one.
    pub guest: Option<Extent>,
}

fn open<P: ProtocolPointer + ?Sized>(handle: Handle) -> Option<ScopedProtocol<P>> {
    // SAFETY: opened without exclusion, because the file system's driver has the disk open too; both use it in turns, on one
    // CPU, and nothing is unloaded meanwhile.
    unsafe {
        boot::open_protocol::<P>(
            OpenProtocolParams {
                handle,
                agent: boot::image_handle(),
                controller: None,
            },
            OpenProtocolAttributes::GetProtocol,
        )
    }
    .ok()
}

impl FirmwareDisk {
    /// The disk that holds the partition this binary was loaded from: the one whose device path is the beginning of the
    /// partition's.
    fn find() -> Option<FirmwareDisk> {
        let partition = open::<LoadedImage>(boot::image_handle())?.device()?;
        let partition_path: Vec<u8> = {
            let path = open::<DevicePath>(partition)?;
            nodes(&path).to_vec()
        };
        boot::find_handles::<BlockIO>()
            .ok()?
            .into_iter()
            .filter_map(|handle| {
                let block_io = open::<BlockIO>(handle)?;
                let path = open::<DevicePath>(handle)?;
                let media = block_io.media();
                let whole = !media.is_logical_partition() && media.is_media_present();
                (whole && partition_path.starts_with(nodes(&path))).then_some(())?;
                let (media_id, block_bytes, last) =
                    (media.media_id(), media.block_size(), media.last_block());
                let is_read_only = media.is_read_only();
                Some(FirmwareDisk {
                    block_io,
                    media_id,
                    block_bytes,
                    blocks: last.checked_add(1)?,
                    is_read_only,
                    controller: controller(&path),
                })
            })
            .next()
    }

    /// Reads `out.len()` bytes that begin `offset` bytes into `extent`; the offset is a multiple of the block size.
    pub fn read_at(
        &mut self,
        extent: Extent,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), DiskFailed> {
        /// Firmware drivers differ in how much they take at once.
        const PIECE: usize = 1 << 20;
        let block_bytes = u64::from(self.block_bytes);
        if !offset.is_multiple_of(block_bytes) || offset + out.len() as u64 > extent.bytes {
            return Err(DiskFailed);
        }
        let mut lba = extent.first_lba + offset / block_bytes;
        for piece in out.chunks_mut(PIECE) {
            let whole = piece.len() / self.block_bytes as usize * self.block_bytes as usize;
            let (blocks, rest) = piece.split_at_mut(whole);
            if !blocks.is_empty() {
                self.read(lba, blocks)?;
                lba += blocks.len() as u64 / block_bytes;
            }
            if !rest.is_empty() {
                let mut block = alloc::vec![0; self.block_bytes as usize];
                self.read(lba, &mut block)?;
                for (to, from) in rest.iter_mut().zip(block) {
                    *to = from;
                }
            }
        }
        Ok(())
    }
}

/// Device and function of the last PCI node of a device path (UEFI 2.10, 10.3.2.1): function first, then device.
fn controller(path: &DevicePath) -> Option<(u8, u8)> {
    path.node_iter()
        .filter(|node| node.full_type() == (DeviceType::HARDWARE, DeviceSubType::HARDWARE_PCI))
        .last()
        .and_then(|node| match *node.data() {
            [function, device] => Some((device, function)),
            _ => None,
        })
}

/// The bytes of a device path without the node that ends it.
fn nodes(path: &DevicePath) -> &[u8] {
    const END_BYTES: usize = 4;
    let bytes = path.as_bytes();
    bytes
        .get(..bytes.len().saturating_sub(END_BYTES))
        .unwrap_or_default()
}

impl Blocks for FirmwareDisk {
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn read(&mut self, lba: u64, out: &mut [u8]) -> Result<(), DiskFailed> {
        self.block_io
            .read_blocks(self.media_id, lba, out)
            .map_err(|_| DiskFailed)
    }

    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), DiskFailed> {
        self.block_io
            .write_blocks(self.media_id, lba, bytes)
            .map_err(|_| DiskFailed)
    }

    fn flush(&mut self) -> Result<(), DiskFailed> {
        self.block_io.flush_blocks().map_err(|_| DiskFailed)
    }
}

/// The disk the box was started from, and its table.
pub struct Prepared {
    /// The disk.
    pub disk: FirmwareDisk,
    /// Its table.
    pub table: Table,
}

impl Prepared {
    /// What remains of the disk when the firmware is gone; none without a partition `store` that can be written.
    pub fn boot_disk(&self) -> Option<BootDisk> {
        if self.disk.is_read_only {
            return None;
        }
        let store = self.table.find(Partition::Store).ok().flatten()?;
        Some(BootDisk {
            controller: self.disk.controller,
            block_bytes: self.disk.block_bytes,
            store,
            guest: self.table.find(Partition::Guest).ok().flatten(),
        })
    }
}

/// Finds the disk and its table, and makes the partitions that are made at first boot.
///
/// # Errors
/// In one line, if there is no disk or no table.
pub fn prepare() -> Result<Prepared, String> {
    let mut disk = FirmwareDisk::find().ok_or_else(|| {
        String::from(
            "the disk the box was started from cannot be found: start it from a disk or a stick",
        )
    })?;
    let mut table = Table::load(&mut disk).map_err(|error| error.to_string())?;
    if disk.is_read_only {
        output::problem(
            "the disk is write-protected: no partitions are made and the dictionary is in memory; use a disk that can be written",
        );
        return Ok(Prepared { disk, table });
    }
    match table.provision(&mut disk) {
        Ok(Provisioned::Complete) => {}
        Ok(Provisioned::Repaired) => {
            log::info!("disk: the partition table was damaged and is whole again")
        }
        Ok(Provisioned::Made { guest, store }) => log::info!(
            "disk: made partitions guest ({} MiB) and store ({} MiB)",
            guest >> 20,
            store >> 20
        ),
        Ok(Provisioned::NoRoom { free }) => output::problem(format_args!(
            "the disk has {} MiB free, too little for the guest's data and the dictionary: use a disk that is at least {} MiB larger",
            free >> 20,
            (2 * outpost::disk::SMALLEST_BYTES) >> 20
        )),
        Err(error) => output::problem(error),
    }
    Ok(Prepared { disk, table })
}

/// Where the active slot lies.
///
/// # Errors
/// In one line.
pub fn active_slot(table: &Table) -> Result<Extent, String> {
    match table.find(Partition::SlotA) {
        Ok(Some(extent)) => Ok(extent),
        Ok(None) => Err(String::from(
            "the disk has no partition slot-a: write the image to it again",
        )),
        Err(error) => Err(error.to_string()),
    }
}
