//! The dictionary on a block device: larger than memory, and still there after a restart or a power cut. One device
//! holds both directions of one pair of peers. `docs/store.md` describes the layout and its rules.

mod disk;
mod layout;
mod log;
mod read;
mod segments;
#[cfg(test)]
mod tests;
mod write;

use alloc::collections::BTreeMap;

use serde::Serialize;

pub use disk::{Disk, OpenError, Opened};
pub use layout::MAGIC;
pub use log::{Direction, DiskLog};

/// Offsets and lengths of every access are multiples of this many bytes.
pub const BLOCK: usize = 4096;

/// A device did not do what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The range does not lie on the device.
    OutOfRange,
    /// There is no room for what was to be written.
    Full,
    /// Anything else that makes reading, writing or flushing fail.
    Failed,
}

impl core::fmt::Display for DeviceError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            DeviceError::OutOfRange => "the range does not lie on the device",
            DeviceError::Full => "the device is full",
            DeviceError::Failed => "the device fails",
        })
    }
}

impl core::error::Error for DeviceError {}

/// Whether what begins with the two blocks `head` is a store of another format than this version's.
pub fn is_other_format(head: &[u8]) -> bool {
    let found = [0, BLOCK].map(|at| {
        let block = head.get(at..).unwrap_or_default();
        layout::Superblock::parse(block)
    });
    let is_ours = |found: &layout::Found| matches!(found, layout::Found::Superblock(_));
    let is_other = |found: &layout::Found| matches!(found, layout::Found::OtherVersion(_));
    !found.iter().any(is_ours) && found.iter().any(is_other)
}

/// Something that keeps blocks: a partition, a file. Calls return when they are done; offsets and lengths are multiples of
/// [`BLOCK`]. Nobody else writes to it.
pub trait BlockDevice {
    /// Bytes that fit.
    fn size(&self) -> u64;

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// Nothing can be said about `bytes` then.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes `bytes` at `offset`. Until the next flush a power cut may lose the write, tear it or let later ones overtake it.
    ///
    /// # Errors
    /// What the device holds in that range is unknown then.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Returns when everything written before is safe from a power cut.
    ///
    /// # Errors
    /// It may not be.
    fn flush(&self) -> Result<(), DeviceError>;
}

/// What the store on a device did since the start, both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreStatistics {
    /// Bytes that the window of both directions holds at most; 0 without a device.
    pub store_capacity_bytes: u64,
    /// Bytes that were there when the store was opened.
    pub store_warm_bytes: u64,
    /// Bytes of segments and what belongs to them read since.
    pub store_read_bytes: u64,
    /// Bytes written.
    pub store_written_bytes: u64,
    /// Times that segments were written, wholly or what was new in them.
    pub store_segment_writes: u64,
    /// Pages that did not have their checksum: treated as not there.
    pub store_bad_pages: u64,
    /// Segments whose description was damaged when the store was opened: treated as not there.
    pub store_bad_segments: u64,
    /// Reads that the device refused.
    pub store_read_errors: u64,
    /// Writes and flushes that the device refused.
    pub store_write_errors: u64,
    /// Bytes that were dropped from memory because they could not be written.
    pub store_dropped_bytes: u64,
    /// 1 after too many writes have failed: the dictionary goes on in memory only.
    pub store_memory_only: u64,
    /// 1 when the device held no store of this pair of peers, and was started anew.
    pub store_started_anew: u64,
}

impl core::ops::AddAssign for StoreStatistics {
    fn add_assign(&mut self, other: Self) {
        for (total, more) in [
            (&mut self.store_capacity_bytes, other.store_capacity_bytes),
            (&mut self.store_warm_bytes, other.store_warm_bytes),
            (&mut self.store_read_bytes, other.store_read_bytes),
            (&mut self.store_written_bytes, other.store_written_bytes),
            (&mut self.store_segment_writes, other.store_segment_writes),
            (&mut self.store_bad_pages, other.store_bad_pages),
            (&mut self.store_bad_segments, other.store_bad_segments),
            (&mut self.store_read_errors, other.store_read_errors),
            (&mut self.store_write_errors, other.store_write_errors),
            (&mut self.store_dropped_bytes, other.store_dropped_bytes),
        ] {
            *total += more;
        }
        self.store_memory_only |= other.store_memory_only;
        self.store_started_anew |= other.store_started_anew;
    }
}

/// What was written before, if the device has been flushed since: hand it to [`DiskLog::flushed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// Anchors by the segment that they lie in.
type Anchors = BTreeMap<u64, alloc::vec::Vec<u64>>;
