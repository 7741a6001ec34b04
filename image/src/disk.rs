//! The disk's partition table (GPT, UEFI 2.10 chapter 5): finding the box's partitions, and at first boot making `guest` and
//! `store` on what the disk has free. A power cut at any write leaves a table that the next boot reads and completes.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use bytemuck::{bytes_of, pod_read_unaligned};
use gpt_disk_types::{
    Crc32, GptHeader, GptPartitionEntry, GptPartitionName, GptPartitionType, Guid, LbaLe, U32Le,
};
use outpost_image_format::Partition;

/// Partitions begin at multiples of this.
const ALIGN_BYTES: u64 = 1 << 20;
/// Neither `guest` nor `store` is made smaller than this.
pub const SMALLEST_BYTES: u64 = 16 << 20;
/// `guest` gets half of what is free, but no more than this.
const LARGEST_GUEST_BYTES: u64 = 32 << 30;
/// A new `guest` begins with so many bytes of zeros, whatever the disk held there before.
const WIPED_BYTES: u64 = 64 << 10;
const PRIMARY_LBA: u64 = 1;
/// A table with more entries than this is not ours.
const MAX_ENTRIES: u32 = 1024;
const ENTRY_BYTES: usize = 128;
const HEADER_BYTES: u32 = 92;

/// The disk failed to read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskFailed;

/// A disk as blocks.
pub trait Blocks {
    /// Bytes in a block.
    fn block_bytes(&self) -> u32;
    /// Blocks on the disk.
    fn blocks(&self) -> u64;
    /// Reads whole blocks from `lba` on.
    ///
    /// # Errors
    /// If the disk does.
    fn read(&mut self, lba: u64, out: &mut [u8]) -> Result<(), DiskFailed>;
    /// Writes whole blocks from `lba` on.
    ///
    /// # Errors
    /// If the disk does.
    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), DiskFailed>;
    /// Returns when what was written before will survive a power cut.
    ///
    /// # Errors
    /// If the disk does.
    fn flush(&mut self) -> Result<(), DiskFailed>;
}

/// Why the partition table cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The disk failed.
    Disk,
    /// Neither the table at the start nor the one at the end is whole.
    NoTable,
    /// A partition that is needed goes on beyond the end of the disk.
    CutShort {
        /// Bytes that the table wants of the disk.
        need: u64,
        /// Bytes that the disk has.
        have: u64,
    },
    /// A partition begins where the table itself lies.
    OverTable,
}

impl From<DiskFailed> for TableError {
    fn from(_: DiskFailed) -> Self {
        TableError::Disk
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableError::Disk => f.write_str("the disk does not read or write: replace it"),
            TableError::NoTable => f.write_str(
                "the disk has no whole partition table (GPT): write the image to it again",
            ),
            TableError::CutShort { need, have } => write!(
                f,
                "the image on the disk is cut short: its partitions want {need} bytes, the disk has {have}: write the whole image, or use a larger disk"
            ),
            TableError::OverTable => f.write_str(
                "the disk's partition table lists a partition that lies over the table itself: write the image to it again",
            ),
        }
    }
}

/// Where a partition lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first block.
    pub first_lba: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What [`Table::provision`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioned {
    /// Nothing was to be done.
    Complete,
    /// Both partitions are there; the table was only brought up to date.
    Repaired,
    /// Partitions were made.
    Made {
        /// Bytes of `guest`.
        guest: u64,
        /// Bytes of `store`.
        store: u64,
    },
    /// The disk has too little room.
    NoRoom {
        /// Bytes that are free.
        free: u64,
    },
}

/// A partition table that has been read and checked.
#[derive(Clone, Debug)]
pub struct Table {
    header: GptHeader,
    entries: Vec<u8>,
    block_bytes: u64,
    disk_blocks: u64,
    /// The primary and the backup table are whole and in their places.
    both_whole: bool,
}

fn crc(bytes: &[u8]) -> Crc32 {
    let mut value = !0_u32;
    for &byte in bytes {
        value ^= u32::from(byte);
        for _ in 0..8 {
            value = (value >> 1) ^ (0xedb8_8320 & (value & 1).wrapping_neg());
        }
    }
    Crc32(U32Le::from_u32(!value))
}

fn read_header(disk: &mut dyn Blocks, lba: u64) -> Result<Option<GptHeader>, DiskFailed> {
    let mut block = vec![0; disk.block_bytes() as usize];
    disk.read(lba, &mut block)?;
    let Some(bytes) = block.get(..size_of::<GptHeader>()) else {
        return Ok(None);
    };
    let header: GptHeader = pod_read_unaligned(bytes);
    let whole = header.is_signature_valid()
        && header.header_size.to_u32() == HEADER_BYTES
        && header.header_crc32 == header.calculate_header_crc32()
        && header.my_lba.to_u64() == lba
        && header.size_of_partition_entry.to_u32() as usize == ENTRY_BYTES
        && (1..=MAX_ENTRIES).contains(&header.number_of_partition_entries.to_u32());
    Ok(whole.then_some(header))
}

/// Blocks that the entries take.
fn entry_blocks(header: &GptHeader, block_bytes: u64) -> u64 {
    (u64::from(header.number_of_partition_entries.to_u32()) * ENTRY_BYTES as u64)
        .div_ceil(block_bytes)
}

fn read_entries(disk: &mut dyn Blocks, header: &GptHeader) -> Result<Option<Vec<u8>>, DiskFailed> {
    let block_bytes = u64::from(disk.block_bytes());
    let blocks = entry_blocks(header, block_bytes);
    let first = header.partition_entry_lba.to_u64();
    if first
        .checked_add(blocks)
        .is_none_or(|end| end > disk.blocks())
    {
        return Ok(None);
    }
    let mut bytes = vec![0; (blocks * block_bytes) as usize];
    disk.read(first, &mut bytes)?;
    bytes.truncate(header.number_of_partition_entries.to_u32() as usize * ENTRY_BYTES);
    Ok((crc(&bytes) == header.partition_entry_array_crc32).then_some(bytes))
}

fn read_table(disk: &mut dyn Blocks, lba: u64) -> Result<Option<(GptHeader, Vec<u8>)>, DiskFailed> {
    match read_header(disk, lba)? {
        Some(header) => Ok(read_entries(disk, &header)?.map(|entries| (header, entries))),
        None => Ok(None),
    }
}

impl Table {
    /// Reads the table at the start of the disk or, if that is not whole, the one at its end.
    ///
    /// # Errors
    /// [`TableError::Disk`] or [`TableError::NoTable`].
    pub fn load(disk: &mut dyn Blocks) -> Result<Table, TableError> {
        let block_bytes = u64::from(disk.block_bytes());
        let disk_blocks = disk.blocks();
        if block_bytes < 512 || disk_blocks < 8 {
            return Err(TableError::NoTable);
        }
        let last = disk_blocks - 1;
        let primary = read_table(disk, PRIMARY_LBA)?;
        let backup = read_table(disk, last)?;
        let both_whole = matches!((&primary, &backup), (Some((header, entries)), Some((_, others)))
            if header.alternate_lba.to_u64() == last && entries == others);
        let table = primary.or(backup);
        let table = match table {
            Some(table) => Some(table),
            // The header may be whole and only its entries damaged, with a backup at the end of the image, not of the disk.
            None => match read_header(disk, PRIMARY_LBA)? {
                Some(header) if header.alternate_lba.to_u64() < disk_blocks => {
                    read_table(disk, header.alternate_lba.to_u64())?
                }
                _ => None,
            },
        };
        let (header, entries) = table.ok_or(TableError::NoTable)?;
        Ok(Table {
            header,
            entries,
            block_bytes,
            disk_blocks,
            both_whole,
        })
    }

    fn used(&self) -> impl Iterator<Item = GptPartitionEntry> + '_ {
        self.entries
            .chunks_exact(ENTRY_BYTES)
            .map(pod_read_unaligned::<GptPartitionEntry>)
            .filter(GptPartitionEntry::is_used)
    }

    /// Where `partition` lies; none if there is no such partition.
    ///
    /// # Errors
    /// [`TableError::CutShort`] if it goes on beyond the end of the disk.
    pub fn find(&self, partition: Partition) -> Result<Option<Extent>, TableError> {
        let wanted = GptPartitionType(Guid::from_bytes(partition.type_guid().0));
        let label = name(partition);
        let Some(entry) = self
            .used()
            .filter(|entry| { entry.partition_type_guid } == wanted && { entry.name } == label)
            // One that ends before it begins is none.
            .find(|entry| entry.ending_lba.to_u64() >= entry.starting_lba.to_u64())
        else {
            return Ok(None);
        };
        let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
        if last >= self.disk_blocks {
            return Err(self.cut_short(last));
        }
        Ok(Some(Extent {
            first_lba: first,
            bytes: (last - first + 1) * self.block_bytes,
        }))
    }

    fn cut_short(&self, last: u64) -> TableError {
        TableError::CutShort {
            need: last.saturating_add(1).saturating_mul(self.block_bytes),
            have: self.disk_blocks.saturating_mul(self.block_bytes),
        }
    }

    /// Sees to it that `guest` and `store` are there and that both copies of the table are whole and in their places, the
    /// backup at the end of the disk. Writes the backup first, so that one whole table is there at any time.
    ///
    /// # Errors
    /// [`TableError::Disk`]; or [`TableError::CutShort`] or [`TableError::OverTable`]: then nothing is written.
    pub fn provision(&mut self, disk: &mut dyn Blocks) -> Result<Provisioned, TableError> {
        if let Some(last) = self.used().map(|entry| entry.ending_lba.to_u64()).max()
            && last > self.last_usable()
        {
            return Err(self
                .cut_short(last.saturating_add(entry_blocks(&self.header, self.block_bytes) + 1)));
        }
        if self
            .used()
            .any(|entry| entry.starting_lba.to_u64() < self.first_usable())
        {
            return Err(TableError::OverTable);
        }
        let missing =
            self.find(Partition::Guest)?.is_none() || self.find(Partition::Store)?.is_none();
        if !missing {
            if self.both_whole {
                self.write_protective_mbr(disk)?;
                return Ok(Provisioned::Complete);
            }
            self.write(disk)?;
            return Ok(Provisioned::Repaired);
        }
        let first = self.first_free();
        let free = (self.last_usable() + 1)
            .saturating_sub(first)
            .saturating_mul(self.block_bytes);
        let need = SMALLEST_BYTES
            * [Partition::Guest, Partition::Store]
                .into_iter()
                .filter(|&partition| matches!(self.find(partition), Ok(None)))
                .count() as u64;
        if free < need || !self.has_free_entries() {
            return Ok(Provisioned::NoRoom { free });
        }
        let mut place = first;
        if self.find(Partition::Guest)?.is_none() {
            let half = (free / 2).clamp(SMALLEST_BYTES, LARGEST_GUEST_BYTES) & !(ALIGN_BYTES - 1);
            let store_is_there = self.find(Partition::Store)?.is_some();
            let bytes = if store_is_there {
                free & !(ALIGN_BYTES - 1)
            } else {
                half
            };
            // Before it has a name: a guest takes a disk that begins with zeros for a new one.
            let wiped = WIPED_BYTES.next_multiple_of(self.block_bytes) as usize;
            disk.write(place, &vec![0; wiped])?;
            place = self.add(Partition::Guest, place, bytes);
        }
        if self.find(Partition::Store)?.is_none() {
            let left = (self.last_usable() + 1).saturating_sub(place) * self.block_bytes;
            self.add(Partition::Store, place, left & !(ALIGN_BYTES - 1));
        }
        self.write(disk)?;
        let bytes = |extent: Option<Extent>| extent.map_or(0, |extent| extent.bytes);
        Ok(Provisioned::Made {
            guest: bytes(self.find(Partition::Guest)?),
            store: bytes(self.find(Partition::Store)?),
        })
    }

    /// The last block a partition may use: after it come the backup's entries and header.
    fn last_usable(&self) -> u64 {
        self.disk_blocks
            .saturating_sub(2 + entry_blocks(&self.header, self.block_bytes))
    }

    /// The first block a partition may use: before it come the protective MBR, and the primary table's header and entries.
    fn first_usable(&self) -> u64 {
        PRIMARY_LBA + 1 + entry_blocks(&self.header, self.block_bytes)
    }

    /// The first aligned block after all partitions; one beyond the disk if there is none.
    fn first_free(&self) -> u64 {
        let align = (ALIGN_BYTES / self.block_bytes).max(1);
        self.used()
            .map(|entry| entry.ending_lba.to_u64().saturating_add(1))
            .max()
            .unwrap_or(0)
            .max(self.header.first_usable_lba.to_u64())
            .max(self.first_usable())
            .checked_next_multiple_of(align)
            .unwrap_or(self.disk_blocks)
    }

    fn has_free_entries(&self) -> bool {
        self.entries.len() / ENTRY_BYTES >= self.used().count() + 2
    }

    /// Adds a partition; gives the block after it.
    fn add(&mut self, partition: Partition, first: u64, bytes: u64) -> u64 {
        let end = first + bytes / self.block_bytes;
        let entry = GptPartitionEntry {
            partition_type_guid: GptPartitionType(Guid::from_bytes(partition.type_guid().0)),
            unique_partition_guid: Guid::from_bytes(partition.unique_guid().0),
            starting_lba: LbaLe::from_u64(first),
            ending_lba: LbaLe::from_u64(end - 1),
            name: name(partition),
            ..GptPartitionEntry::default()
        };
        let free = self
            .entries
            .chunks_exact_mut(ENTRY_BYTES)
            .find(|slot| !pod_read_unaligned::<GptPartitionEntry>(slot).is_used());
        if let Some(slot) = free {
            slot.copy_from_slice(bytes_of(&entry));
        }
        end
    }

    fn write(&mut self, disk: &mut dyn Blocks) -> Result<(), TableError> {
        let last = self.disk_blocks - 1;
        let blocks = entry_blocks(&self.header, self.block_bytes);
        let mut array = self.entries.clone();
        array.resize((blocks * self.block_bytes) as usize, 0);
        self.header.last_usable_lba = LbaLe::from_u64(self.last_usable());
        self.header.partition_entry_array_crc32 = crc(&self.entries);
        for (my, alternate, entries) in [
            (last, PRIMARY_LBA, last - blocks),
            (PRIMARY_LBA, last, PRIMARY_LBA + 1),
        ] {
            self.header.my_lba = LbaLe::from_u64(my);
            self.header.alternate_lba = LbaLe::from_u64(alternate);
            self.header.partition_entry_lba = LbaLe::from_u64(entries);
            self.header.update_header_crc32();
            let mut block = vec![0; self.block_bytes as usize];
            if let Some(start) = block.get_mut(..size_of::<GptHeader>()) {
                start.copy_from_slice(bytes_of(&self.header));
            }
            disk.write(entries, &array)?;
            disk.write(my, &block)?;
            disk.flush()?;
        }
        self.both_whole = true;
        self.write_protective_mbr(disk)
    }

    /// Makes the protective MBR (UEFI 2.10, 5.2.3) span the whole disk. Other tools complain if it does not.
    fn write_protective_mbr(&self, disk: &mut dyn Blocks) -> Result<(), TableError> {
        let mut block = vec![0; self.block_bytes as usize];
        disk.read(0, &mut block)?;
        let protective =
            block.get(450) == Some(&0xee) && block.get(510..512) == Some(&[0x55, 0xaa]);
        let size = u32::try_from(self.disk_blocks - 1)
            .unwrap_or(u32::MAX)
            .to_le_bytes();
        if let Some(field) = block.get_mut(458..462)
            && protective
            && *field != size
        {
            field.copy_from_slice(&size);
            disk.write(0, &block)?;
            disk.flush()?;
        }
        Ok(())
    }
}

fn name(partition: Partition) -> GptPartitionName {
    let mut bytes = [0; 72];
    for (slot, byte) in bytes.chunks_exact_mut(2).zip(partition.label().bytes()) {
        if let Some(low) = slot.first_mut() {
            *low = byte;
        }
    }
    GptPartitionName(bytes)
}

#[cfg(test)]
mod tests;
