//! The guest's memory: guest-physical addresses, the host ranges behind them, and the tables that the CPU walks.
//!
//! A guest-physical address is a claim by the guest until [`GuestMemory`] has checked it, and [`GuestMemory::pieces`] is the one
//! place that does. Nothing here gives out a Rust reference to guest memory: the guest may change it at any moment, so
//! bytes are copied out once and looked at afterwards. Host memory is identity-mapped: host-physical address = pointer.

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use alloc::vec::Vec;
use core::fmt;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

pub mod npt;
pub mod walk;

/// Guest RAM starts and ends on multiples of this (2 MiB), so that large pages always fit.
pub const REGION_ALIGNMENT: u64 = 2 << 20;

/// Guest RAM below 4 GiB ends here at the latest (3 GiB); what is above belongs to devices.
pub const LOW_RAM_END: u64 = 0xC000_0000;

/// Guest RAM that does not fit below [`LOW_RAM_END`] goes on here (4 GiB).
pub const HIGH_RAM_START: u64 = 1 << 32;

/// A run of host-physical memory for the guest, in bytes. Both numbers are multiples of [`REGION_ALIGNMENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRange {
    /// First host-physical address.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

/// What the guest says is its memory: an address and a length in bytes, not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPtr {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
}

/// A guest-physical claim that reaches outside the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfGuest(pub GuestPtr);

impl fmt::Display for OutOfGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "guest-physical {:#x}+{:#x} is not guest RAM",
            self.0.address, self.0.length
        )
    }
}

/// Why host memory cannot become guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// No range, or only empty ones.
    Empty,
    /// A range that does not start and end on a multiple of [`REGION_ALIGNMENT`].
    Unaligned(HostRange),
    /// The allocator has no such run of memory, in bytes.
    NoMemory(u64),
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the guest was given no memory"),
            Self::Unaligned(range) => {
                write!(
                    f,
                    "guest memory {:#x}+{:#x} is not aligned to 2 MiB",
                    range.start, range.length
                )
            }
            Self::NoMemory(bytes) => {
                write!(f, "no run of {} MiB is free for the guest", bytes >> 20)
            }
        }
    }
}

/// A run of guest RAM that is contiguous in the host too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address.
    pub guest: u64,
    /// First host-physical address.
    pub host: u64,
    /// Length in bytes.
    pub length: u64,
}

/// The guest's RAM: from guest-physical 0 to [`LOW_RAM_END`], the rest from [`HIGH_RAM_START`].
pub struct GuestMemory {
    /// Sorted by guest address; no two overlap.
    regions: Vec<Region>,
    owned: Option<(NonNull<u8>, Layout)>,
}

// SAFETY: (1) `owned` is only touched by `drop`, which has the memory to itself; (2) guest memory itself is reached through raw
// pointers and atomics only, and holds plain bytes.
unsafe impl Send for GuestMemory {}
// SAFETY: as for `Send`; every method that takes `&self` copies bytes or uses atomics, and makes no reference.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Makes guest RAM of `ranges`, in that order, filling up to [`LOW_RAM_END`] first.
    ///
    /// # Errors
    /// [`MemoryError`] if there is nothing or a range is not aligned.
    ///
    /// # Safety
    /// Every range is identity-mapped, readable and writable, belongs to nobody else for as long as the `GuestMemory` lives, and overlaps no
    /// other one. The guest sees what is in it.
    pub unsafe fn new(ranges: &[HostRange]) -> Result<Self, MemoryError> {
        let mut regions: Vec<Region> = Vec::new();
        let mut guest = 0;
        for range in ranges {
            if !(range.start | range.length).is_multiple_of(REGION_ALIGNMENT) {
                return Err(MemoryError::Unaligned(*range));
            }
            let (mut host, mut left) = (range.start, range.length);
            while left > 0 {
                if guest == LOW_RAM_END {
                    guest = HIGH_RAM_START;
                }
                let room = if guest < LOW_RAM_END {
                    LOW_RAM_END - guest
                } else {
                    left
                };
                let length = left.min(room);
                regions.push(Region {
                    guest,
                    host,
                    length,
                });
                guest += length;
                host += length;
                left -= length;
            }
        }
        if regions.is_empty() {
            return Err(MemoryError::Empty);
        }
        Ok(Self {
            regions,
            owned: None,
        })
    }

    /// Makes guest RAM of `bytes` zeroed bytes (rounded up to 2 MiB) from the global allocator.
    ///
    /// # Errors
    /// [`MemoryError::Empty`] for zero, [`MemoryError::NoMemory`] if the allocator has no such run.
    pub fn allocate(bytes: u64) -> Result<Self, MemoryError> {
        let no_memory = MemoryError::NoMemory(bytes);
        let bytes = bytes
            .checked_next_multiple_of(REGION_ALIGNMENT)
            .ok_or(no_memory)?;
        if bytes == 0 {
            return Err(MemoryError::Empty);
        }
        let size = usize::try_from(bytes).map_err(|_| no_memory)?;
        let layout =
            Layout::from_size_align(size, REGION_ALIGNMENT as usize).map_err(|_| no_memory)?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(no_memory)?;
        let range = HostRange {
            start: start.as_ptr().expose_provenance() as u64,
            length: bytes,
        };
        // SAFETY: the allocation was just made, is of that length, and lives until `drop`.
        let mut memory = unsafe { Self::new(&[range]) }?;
        memory.owned = Some((start, layout));
        Ok(memory)
    }

    /// Bytes of guest RAM in all.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|region| region.length).sum()
    }

    /// The runs of guest RAM, sorted by guest-physical address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes of guest RAM below 4 GiB; they start at 0 without a hole.
    pub fn low_size(&self) -> u64 {
        self.regions
            .iter()
            .filter(|region| region.guest < LOW_RAM_END)
            .map(|region| region.length)
            .sum()
    }

    /// Bytes of guest RAM from [`HIGH_RAM_START`].
    pub fn high_size(&self) -> u64 {
        self.size() - self.low_size()
    }

    /// True if `claim` lies wholly in guest RAM.
    pub fn contains(&self, claim: GuestPtr) -> bool {
        self.pieces(claim).is_ok()
    }

    /// The one place where a claim becomes memory: checks all of it, then gives the host runs behind it, in order.
    fn pieces(&self, claim: GuestPtr) -> Result<Pieces<'_>, OutOfGuest> {
        let end = claim
            .address
            .checked_add(claim.length)
            .ok_or(OutOfGuest(claim))?;
        let first = self
            .regions
            .partition_point(|region| region.guest + region.length <= claim.address);
        let mut reached = claim.address;
        for region in self.regions.get(first..).unwrap_or_default() {
            if reached >= end || region.guest > reached {
                break;
            }
            reached = region.guest + region.length;
        }
        if reached < end {
            return Err(OutOfGuest(claim));
        }
        Ok(Pieces {
            regions: self.regions.get(first..).unwrap_or_default(),
            address: claim.address,
            left: claim.length,
        })
    }

    /// The host pointer of one naturally aligned object of `size` bytes. Regions are 2 MiB aligned, so it is never split.
    fn aligned(&self, address: u64, size: u64) -> Result<Option<*mut u8>, OutOfGuest> {
        let mut pieces = self.pieces(GuestPtr {
            address,
            length: size,
        })?;
        let piece = pieces.next();
        Ok(if address.is_multiple_of(size) {
            piece.map(|(host, _)| host)
        } else {
            None
        })
    }

    /// Copies guest memory at `address` to `buffer`.
    ///
    /// # Errors
    /// [`OutOfGuest`] if not all of it is guest RAM; `buffer` is untouched then.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), OutOfGuest> {
        let mut rest = buffer;
        for (host, length) in self.pieces(GuestPtr {
            address,
            length: rest.len() as u64,
        })? {
            let (now, later) = rest.split_at_mut(length);
            // SAFETY: (1) `pieces` checked that `length` bytes at `host` are guest RAM, which `new` was promised is mapped; (2) `now` is of
            // that length and, being a Rust slice, not guest memory; (3) any byte pattern is a valid `u8`.
            unsafe { core::ptr::copy_nonoverlapping(host.cast_const(), now.as_mut_ptr(), length) };
            rest = later;
        }
        Ok(())
    }

    /// Copies `bytes` to guest memory at `address`.
    ///
    /// # Errors
    /// [`OutOfGuest`] if not all of it is guest RAM; nothing is written then.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), OutOfGuest> {
        let mut rest = bytes;
        for (host, length) in self.pieces(GuestPtr {
            address,
            length: rest.len() as u64,
        })? {
            let (now, later) = rest.split_at(length);
            // SAFETY: as in `read`, the other way round; no reference to guest memory exists that this could invalidate.
            unsafe { core::ptr::copy_nonoverlapping(now.as_ptr(), host, length) };
            rest = later;
        }
        Ok(())
    }

    /// Fills `length` bytes of guest memory at `address` with `value`.
    ///
    /// # Errors
    /// [`OutOfGuest`] if not all of it is guest RAM; nothing is written then.
    pub fn fill(&self, address: u64, length: u64, value: u8) -> Result<(), OutOfGuest> {
        for (host, length) in self.pieces(GuestPtr { address, length })? {
            // SAFETY: as in `write`.
            unsafe { core::ptr::write_bytes(host, value, length) };
        }
        Ok(())
    }

    /// Reads one byte.
    ///
    /// # Errors
    /// [`OutOfGuest`] if it is not guest RAM.
    pub fn read_u8(&self, address: u64) -> Result<u8, OutOfGuest> {
        let mut byte = [0];
        self.read(address, &mut byte)?;
        Ok(byte[0])
    }

    /// Writes one byte.
    ///
    /// # Errors
    /// [`OutOfGuest`] if it is not guest RAM.
    pub fn write_u8(&self, address: u64, value: u8) -> Result<(), OutOfGuest> {
        self.write(address, &[value])
    }
}

/// Accessors of one width. Naturally aligned ones are single accesses with acquire (read) or release (write) order, as the
/// virtio rings and page tables need; others are copied byte by byte.
macro_rules! accessors {
    ($cell:ident, $read:ident, $write:ident, $exchange:ident, $int:ty, $atomic:ty) => {
        impl GuestMemory {
            /// The aligned number at `address`; none if it is not aligned.
            fn $cell(&self, address: u64) -> Result<Option<&$atomic>, OutOfGuest> {
                let Some(host) = self.aligned(address, size_of::<$int>() as u64)? else {
                    return Ok(None);
                };
                // SAFETY: (1) the pointer is to checked, mapped, aligned guest RAM, which lives as long as `self`; (2) all concurrent
                // accesses from the host are atomic, or copy bytes through raw pointers.
                let cell = unsafe { <$atomic>::from_ptr(host.cast()) };
                Ok(Some(cell))
            }

            /// Reads a little-endian number: one acquiring access if aligned.
            ///
            /// # Errors
            /// [`OutOfGuest`] if not all of it is guest RAM.
            pub fn $read(&self, address: u64) -> Result<$int, OutOfGuest> {
                if let Some(cell) = self.$cell(address)? {
                    return Ok(cell.load(Ordering::Acquire));
                }
                let mut bytes = [0; size_of::<$int>()];
                self.read(address, &mut bytes)?;
                Ok(<$int>::from_le_bytes(bytes))
            }

            /// Writes a little-endian number: one releasing access if aligned.
            ///
            /// # Errors
            /// [`OutOfGuest`] if not all of it is guest RAM; nothing is written then.
            pub fn $write(&self, address: u64, value: $int) -> Result<(), OutOfGuest> {
                if let Some(cell) = self.$cell(address)? {
                    cell.store(value, Ordering::Release);
                    return Ok(());
                }
                self.write(address, &value.to_le_bytes())
            }

            /// Writes `new` if the aligned number there is `current`, as one locked access. True if it did; false too if
            /// `address` is not aligned.
            ///
            /// # Errors
            /// [`OutOfGuest`] if not all of it is guest RAM.
            pub fn $exchange(
                &self,
                address: u64,
                current: $int,
                new: $int,
            ) -> Result<bool, OutOfGuest> {
                Ok(self.$cell(address)?.is_some_and(|cell| {
                    cell.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
                        .is_ok()
                }))
            }
        }
    };
}

accessors!(
    cell_u16,
    read_u16,
    write_u16,
    compare_exchange_u16,
    u16,
    AtomicU16
);
accessors!(
    cell_u32,
    read_u32,
    write_u32,
    compare_exchange_u32,
    u32,
    AtomicU32
);
accessors!(
    cell_u64,
    read_u64,
    write_u64,
    compare_exchange_u64,
    u64,
    AtomicU64
);

impl Drop for GuestMemory {
    fn drop(&mut self) {
        if let Some((start, layout)) = self.owned.take() {
            // SAFETY: `allocate` got it from this allocator with this layout, and nothing else frees it.
            unsafe { dealloc(start.as_ptr(), layout) };
        }
    }
}

/// The host runs behind a claim that has been checked.
struct Pieces<'a> {
    regions: &'a [Region],
    address: u64,
    left: u64,
}

impl Iterator for Pieces<'_> {
    type Item = (*mut u8, usize);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let (region, rest) = self.regions.split_first()?;
        let offset = self.address - region.guest;
        let length = self.left.min(region.length - offset);
        self.regions = rest;
        self.address += length;
        self.left -= length;
        Some((
            with_exposed_provenance_mut((region.host + offset) as usize),
            length as usize,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_reach_the_end_and_not_beyond() {
        let memory = GuestMemory::allocate(4 << 20).unwrap();
        assert_eq!(memory.size(), 4 << 20);
        memory.write((4 << 20) - 4, b"tail").unwrap();
        let mut tail = [0; 4];
        memory.read((4 << 20) - 4, &mut tail).unwrap();
        assert_eq!(&tail, b"tail");
        let claim = GuestPtr {
            address: (4 << 20) - 3,
            length: 4,
        };
        assert_eq!(memory.write(claim.address, b"over"), Err(OutOfGuest(claim)));
        memory.read((4 << 20) - 4, &mut tail).unwrap();
        assert_eq!(&tail, b"tail", "a refused write writes nothing");
        assert!(memory.read(u64::MAX - 1, &mut tail).is_err());
        assert!(memory.read_u64(u64::MAX).is_err());
        assert!(memory.read(4 << 20, &mut []).is_ok() && memory.read(5 << 20, &mut tail).is_err());
    }

    #[test]
    fn numbers_are_little_endian_aligned_or_not() {
        let memory = GuestMemory::allocate(2 << 20).unwrap();
        memory.write_u64(8, 0x1122_3344_5566_7788).unwrap();
        assert_eq!(memory.read_u16(8), Ok(0x7788));
        assert_eq!(memory.read_u32(9), Ok(0x4455_6677));
        memory.write_u32(11, 0xAABB_CCDD).unwrap();
        assert_eq!(memory.read_u64(8), Ok(0x11AA_BBCC_DD66_7788));
        assert_eq!(memory.compare_exchange_u16(8, 1, 2), Ok(false));
        assert_eq!(memory.compare_exchange_u16(8, 0x7788, 2), Ok(true));
        assert_eq!(memory.read_u8(8), Ok(2));
    }

    #[test]
    fn a_claim_may_span_host_ranges() {
        let (a, b) = (
            GuestMemory::allocate(2 << 20).unwrap(),
            GuestMemory::allocate(2 << 20).unwrap(),
        );
        let ranges = [&a, &b].map(|part| HostRange {
            start: part.regions()[0].host,
            length: 2 << 20,
        });
        // SAFETY: both allocations outlive `memory` and are used by nothing else while it lives.
        let memory = unsafe { GuestMemory::new(&ranges) }.unwrap();
        memory.write((2 << 20) - 2, b"span").unwrap();
        let mut out = [0; 4];
        memory.read((2 << 20) - 2, &mut out).unwrap();
        assert_eq!(&out, b"span");
        memory.fill((2 << 20) - 1, 2, 7).unwrap();
        assert_eq!(
            memory.read_u32((2 << 20) - 2),
            Ok(u32::from_le_bytes([b's', 7, 7, b'n']))
        );
    }

    #[test]
    fn ram_leaves_the_device_hole_free() {
        let low = HostRange {
            start: 0x1_0000_0000,
            length: 4 << 30,
        };
        // SAFETY: the memory is never touched: only the layout is looked at.
        let memory = unsafe { GuestMemory::new(&[low]) }.unwrap();
        assert_eq!(
            memory.regions(),
            [
                Region {
                    guest: 0,
                    host: 0x1_0000_0000,
                    length: LOW_RAM_END
                },
                Region {
                    guest: HIGH_RAM_START,
                    host: 0x1_0000_0000 + LOW_RAM_END,
                    length: 1 << 30
                },
            ]
        );
        assert_eq!(
            (memory.low_size(), memory.high_size()),
            (LOW_RAM_END, 1 << 30)
        );
        assert!(!memory.contains(GuestPtr {
            address: LOW_RAM_END - 1,
            length: 2
        }));
        assert!(memory.contains(GuestPtr {
            address: HIGH_RAM_START,
            length: 1 << 30
        }));
    }

    #[test]
    fn bad_ranges_are_refused() {
        let odd = HostRange {
            start: 0x1000,
            length: 2 << 20,
        };
        // SAFETY: refused before anything could be touched.
        let refused = unsafe { GuestMemory::new(&[odd]) };
        assert_eq!(refused.err(), Some(MemoryError::Unaligned(odd)));
        // SAFETY: no memory at all.
        let refused = unsafe { GuestMemory::new(&[]) };
        assert_eq!(refused.err(), Some(MemoryError::Empty));
        assert_eq!(GuestMemory::allocate(0).err(), Some(MemoryError::Empty));
    }
}
