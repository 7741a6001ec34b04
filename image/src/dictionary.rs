//! The dictionary on the disk: how much of its partition is used, and the partition as the block device that the WAN stack
//! wants. The disk itself is a [`Blocks`]; which one, and how it is driven, is not decided here.

use alloc::rc::Rc;
use core::cell::RefCell;

use outpost_net::store::{BlockDevice, DeviceError};

use crate::disk::{Blocks, DiskFailed, Extent};

/// The index takes this share of the partition: 1/32 of what the sending direction may hold, which is half of it.
const INDEX_SHARE: u64 = 64;
/// What is known of the segments takes this share at most: less than 512 bytes for each, of 1 MiB (`what_is_known_of_a_segment_takes_less_than_half_a_kibibyte` in
/// `net/src/store/tests`).
const TABLE_SHARE: u64 = 2048;

/// How memory and partition are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of the partition that are used, from its start.
    pub used: u64,
    /// Bytes of memory for the parts of the dictionary that are in use.
    pub parts: u64,
}

impl Plan {
    /// For a partition of `partition` bytes and `memory` bytes of memory. At most half of the memory is for the index: it bounds
    /// what can be used of the partition.
    pub fn new(partition: u64, memory: u64) -> Plan {
        let used = partition.min((memory / 2).saturating_mul(INDEX_SHARE));
        Plan {
            used,
            parts: memory - used / INDEX_SHARE - used / TABLE_SHARE,
        }
    }
}

/// A disk whose flush need not be waited for.
pub trait Flushes: Blocks {
    /// Begins a flush of what was written before.
    ///
    /// # Errors
    /// If the disk does not take it, or has not ended the last one.
    fn begin_flush(&mut self) -> Result<(), DiskFailed>;

    /// How the flush that was begun has ended, once; none while it is under way, and if there is none. One that takes too long
    /// has failed.
    fn end_flush(&mut self) -> Option<Result<(), DiskFailed>>;
}

/// A part of a disk as a block device.
pub struct Partition<D> {
    disk: Rc<RefCell<D>>,
    extent: Extent,
}

impl<D: Blocks> Partition<D> {
    /// The first `used` bytes of `extent`. Others may use the disk too, in turns.
    pub fn new(disk: Rc<RefCell<D>>, extent: Extent, used: u64) -> Partition<D> {
        let bytes = used.min(extent.bytes);
        Partition {
            disk,
            extent: Extent { bytes, ..extent },
        }
    }

    /// Asks the disk for something.
    pub fn with_disk<T>(&self, ask: impl FnOnce(&mut D) -> T) -> Option<T> {
        self.disk
            .try_borrow_mut()
            .ok()
            .map(|mut disk| ask(&mut disk))
    }

    /// The block of the disk at which an access begins, if it lies within the partition and is made of whole blocks.
    fn block(&self, offset: u64, length: usize, block_bytes: u64) -> Result<u64, DeviceError> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.extent.bytes) {
            return Err(DeviceError::OutOfRange);
        }
        if !offset.is_multiple_of(block_bytes) || !(length as u64).is_multiple_of(block_bytes) {
            return Err(DeviceError::OutOfRange);
        }
        (self.extent.first_lba)
            .checked_add(offset / block_bytes)
            .ok_or(DeviceError::OutOfRange)
    }

    fn access(
        &self,
        offset: u64,
        length: usize,
        access: impl FnOnce(&mut D, u64) -> Result<(), DiskFailed>,
    ) -> Result<(), DeviceError> {
        let mut disk = self
            .disk
            .try_borrow_mut()
            .map_err(|_| DeviceError::Failed)?;
        let block = self.block(offset, length, u64::from(disk.block_bytes()).max(1))?;
        if length == 0 {
            return Ok(());
        }
        access(&mut disk, block).map_err(|DiskFailed| DeviceError::Failed)
    }
}

impl<D: Blocks> BlockDevice for Partition<D> {
    fn size(&self) -> u64 {
        self.extent.bytes
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.access(offset, bytes.len(), |disk, block| disk.read(block, bytes))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.access(offset, bytes.len(), |disk, block| disk.write(block, bytes))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let mut disk = self
            .disk
            .try_borrow_mut()
            .map_err(|_| DeviceError::Failed)?;
        disk.flush().map_err(|DiskFailed| DeviceError::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_small_partition_is_used_whole() {
        let plan = Plan::new(512 * MIB, 192 * MIB);
        assert_eq!((plan.used, plan.parts), (512 * MIB, 184 * MIB - MIB / 4));
    }

    #[test]
    fn the_index_takes_at_most_half_of_the_memory() {
        for (partition, memory) in [
            (100 * GIB, 192 * MIB),
            (GIB, 4 * MIB),
            (1, 1),
            (0, 0),
            (u64::MAX, 3),
        ] {
            let plan = Plan::new(partition, memory);
            assert!(plan.used <= partition, "{partition} {memory}");
            assert!(
                plan.used / INDEX_SHARE <= memory / 2,
                "{partition} {memory}"
            );
            assert!(plan.parts >= memory * 15 / 32, "{partition} {memory}");
        }
        assert_eq!(Plan::new(100 * GIB, 192 * MIB).used, 6 * GIB);
    }

    /// Four blocks of 512 bytes before the partition, eight in it, four after.
    #[derive(Clone)]
    struct Ram {
        bytes: Vec<u8>,
        fails: bool,
        flushes: usize,
    }

    impl Blocks for Ram {
        fn block_bytes(&self) -> u32 {
            512
        }
        fn blocks(&self) -> u64 {
            16
        }
        fn read(&mut self, lba: u64, out: &mut [u8]) -> Result<(), DiskFailed> {
            let at = lba as usize * 512;
            out.copy_from_slice(self.bytes.get(at..at + out.len()).ok_or(DiskFailed)?);
            if self.fails { Err(DiskFailed) } else { Ok(()) }
        }
        fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), DiskFailed> {
            let at = lba as usize * 512;
            self.bytes
                .get_mut(at..at + bytes.len())
                .ok_or(DiskFailed)?
                .copy_from_slice(bytes);
            if self.fails { Err(DiskFailed) } else { Ok(()) }
        }
        fn flush(&mut self) -> Result<(), DiskFailed> {
            self.flushes += 1;
            if self.fails { Err(DiskFailed) } else { Ok(()) }
        }
    }

    fn partition(used: u64) -> Partition<Ram> {
        let disk = Ram {
            bytes: vec![0; 16 * 512],
            fails: false,
            flushes: 0,
        };
        let extent = Extent {
            first_lba: 4,
            bytes: 8 * 512,
        };
        Partition::new(Rc::new(RefCell::new(disk)), extent, used)
    }

    #[test]
    fn accesses_stay_within_the_partition() {
        let partition = partition(8 * 512);
        assert_eq!(partition.size(), 4096);
        partition.write(0, &[7; 4096]).unwrap();
        let mut back = [0; 1024];
        partition.read(3072, &mut back).unwrap();
        assert_eq!(back, [7; 1024]);
        for (offset, length) in [
            (0, 4608),
            (512, 4096),
            (4096, 512),
            (u64::MAX, 512),
            (u64::MAX - 511, 512),
        ] {
            assert_eq!(
                partition.write(offset, &vec![9; length]),
                Err(DeviceError::OutOfRange),
                "{offset} {length}"
            );
            assert_eq!(
                partition.read(offset, &mut vec![9; length]),
                Err(DeviceError::OutOfRange),
                "{offset} {length}"
            );
        }
        let bytes = partition.with_disk(|disk| disk.bytes.clone()).unwrap();
        assert!(
            bytes[..2048]
                .iter()
                .chain(&bytes[2048 + 4096..])
                .all(|&byte| byte == 0)
        );
        assert!(bytes[2048..2048 + 4096].iter().all(|&byte| byte == 7));
    }

    #[test]
    fn parts_of_blocks_are_refused() {
        let partition = partition(8 * 512);
        for (offset, length) in [(1, 512), (0, 511), (256, 256)] {
            assert_eq!(
                partition.write(offset, &vec![9; length]),
                Err(DeviceError::OutOfRange)
            );
        }
        assert_eq!(partition.read(0, &mut []), Ok(()));
    }

    #[test]
    fn a_partition_may_be_used_in_part() {
        let partition = partition(1024);
        assert_eq!(partition.size(), 1024);
        assert_eq!(
            partition.write(1024, &[1; 512]),
            Err(DeviceError::OutOfRange)
        );
        assert_eq!(self::partition(1 << 40).size(), 4096);
    }

    #[test]
    fn failures_are_passed_on() {
        let partition = partition(4096);
        partition.flush().unwrap();
        partition.with_disk(|disk| disk.fails = true);
        assert_eq!(partition.write(0, &[1; 512]), Err(DeviceError::Failed));
        assert_eq!(partition.read(0, &mut [1; 512]), Err(DeviceError::Failed));
        assert_eq!(partition.flush(), Err(DeviceError::Failed));
        assert_eq!(partition.with_disk(|disk| disk.flushes), Some(2));
    }
}
