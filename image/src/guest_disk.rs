//! The guest's part of the disk: where a request of the guest's lies on the whole disk. The guest's device has checked requests once; here is
//! the place that nothing outside the partition gets past.

use outpost_hv::host::BlockRequest;

use crate::disk::Extent;
use crate::virtio_blk::{Request, SECTOR};

/// A partition, in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    first: u64,
    sectors: u64,
    block_bytes: u32,
}

impl Window {
    /// The partition at `extent` of a disk whose blocks have `block_bytes` bytes.
    pub fn new(extent: Extent, block_bytes: u32) -> Window {
        let first = extent
            .first_lba
            .checked_mul(u64::from(block_bytes) / SECTOR);
        Window {
            first: first.unwrap_or(u64::MAX),
            sectors: first.map_or(0, |_| extent.bytes / SECTOR),
            block_bytes,
        }
    }

    /// How many sectors it has.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The disk's own block size, in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// The request as the whole disk takes it, and how many bytes it moves; none if it does not lie in the partition.
    pub fn place(&self, request: BlockRequest) -> Option<(Request, usize)> {
        let place = |sector: u64, bytes: usize| {
            let bytes = bytes as u64;
            let end = sector.checked_add(bytes / SECTOR)?;
            let fits = bytes > 0 && bytes.is_multiple_of(SECTOR) && end <= self.sectors;
            fits.then_some(())?;
            self.first.checked_add(sector)
        };
        Some(match request {
            BlockRequest::Read { sector, bytes } => (Request::Read(place(sector, bytes)?), bytes),
            BlockRequest::Write { sector, bytes } => (Request::Write(place(sector, bytes)?), bytes),
            BlockRequest::Flush => (Request::Flush, 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(block_bytes: u32) -> Window {
        let extent = Extent {
            first_lba: 100,
            bytes: 8 * 4096,
        };
        Window::new(extent, block_bytes)
    }

    #[test]
    fn requests_are_moved_to_where_the_partition_lies() {
        let (window, large) = (window(512), window(4096));
        let read = BlockRequest::Read {
            sector: 3,
            bytes: 1024,
        };
        assert_eq!(window.place(read), Some((Request::Read(103), 1024)));
        assert_eq!(large.place(read), Some((Request::Read(803), 1024)));
        let write = BlockRequest::Write {
            sector: 63,
            bytes: 512,
        };
        assert_eq!(window.place(write), Some((Request::Write(163), 512)));
        assert_eq!(window.place(BlockRequest::Flush), Some((Request::Flush, 0)));
        assert_eq!((window.sectors(), large.sectors()), (64, 64));
    }

    #[test]
    fn nothing_lies_outside() {
        let window = window(512);
        for (sector, bytes) in [
            (64, 512),
            (63, 1024),
            (0, 0),
            (0, 100),
            (0, 513),
            (0, 65 * 512),
            (u64::MAX, 512),
            (u64::MAX - 1, 1024),
            (u64::MAX - 99, 512),
        ] {
            for request in [
                BlockRequest::Read { sector, bytes },
                BlockRequest::Write { sector, bytes },
            ] {
                assert_eq!(window.place(request), None, "{request:?}");
            }
        }
        let extent = Extent {
            first_lba: u64::MAX / 2,
            bytes: 4096,
        };
        assert_eq!(Window::new(extent, 4096).sectors(), 0);
    }
}
