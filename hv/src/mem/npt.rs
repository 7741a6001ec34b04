//! Nested page tables: what the CPU walks from guest-physical to host-physical addresses.
//!
//! AMD's are ordinary four-level long-mode tables (APM vol. 2, 15.25) in which every entry is a user page, since nested walks count as user
//! accesses. Leaves are 1 GiB or 2 MiB. The CPU sets accessed and dirty bits in them, so entries are atomics. A change
//! gives a [`FlushNeeded`] that only entering the guest with a flush uses up. EPT will be a second builder beside this one.

use super::{GuestMemory, Region};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// 2 MiB, a level-2 leaf.
const SIZE_2M: u64 = 2 << 20;
/// 1 GiB, a level-3 leaf.
const SIZE_1G: u64 = 1 << 30;
/// Where the tables end (256 TiB: four levels).
const LIMIT: u64 = 1 << 48;

/// Cached translations are stale until the guest is entered with a flush. Hand it to the vCPU.
#[must_use = "the CPU may hold stale translations until the next flush"]
#[derive(Debug)]
pub struct FlushNeeded(());

impl FlushNeeded {
    /// For the back end alone: the next entry flushes.
    pub(crate) fn discharge(self) {
        let Self(()) = self;
    }
}

/// Why a mapping cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Guest and host addresses and the length must be multiples of 2 MiB, below 256 TiB.
    Unaligned(Region),
    /// Something is mapped there already.
    Overlap(Region),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, region) = match self {
            Self::Unaligned(region) => ("is not aligned to 2 MiB", region),
            Self::Overlap(region) => ("overlaps what is mapped", region),
        };
        write!(
            f,
            "nested mapping {:#x}+{:#x} {what}",
            region.guest, region.length
        )
    }
}

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    fn new() -> Box<Self> {
        Box::new(Self([const { AtomicU64::new(0) }; 512]))
    }

    /// Host-physical address: memory is identity-mapped.
    fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }
}

/// Four-level nested tables. Their pages stay where they are until this is dropped.
pub struct NestedTables {
    /// `pages[0]` is the root.
    pages: Vec<Box<Table>>,
    gigabyte_pages: bool,
    leaves: [u64; 2],
}

/// What the tables hold, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStatistics {
    /// 4 KiB pages that the tables take.
    pub table_pages: usize,
    /// 2 MiB leaves.
    pub leaves_2m: u64,
    /// 1 GiB leaves.
    pub leaves_1g: u64,
}

impl NestedTables {
    /// Empty tables. `gigabyte_pages` says whether the CPU has 1 GiB pages (CPUID 0x80000001 EDX bit 26).
    pub fn new(gigabyte_pages: bool) -> Self {
        Self {
            pages: vec![Table::new()],
            gigabyte_pages,
            leaves: [0; 2],
        }
    }

    /// Tables that map all of `memory`.
    ///
    /// # Errors
    /// As [`NestedTables::map`]; `GuestMemory`'s own alignment excludes it below 256 TiB.
    pub fn of(memory: &GuestMemory, gigabyte_pages: bool) -> Result<(Self, FlushNeeded), MapError> {
        let mut tables = Self::new(gigabyte_pages);
        for region in memory.regions() {
            // One obligation for all of them.
            tables.map(*region)?.discharge();
        }
        Ok((tables, FlushNeeded(())))
    }

    /// Host-physical address of the root, for the VMCB's nested CR3.
    pub fn root(&self) -> u64 {
        self.pages.first().map_or(0, |root| root.address())
    }

    /// What the tables hold.
    pub fn statistics(&self) -> TableStatistics {
        TableStatistics {
            table_pages: self.pages.len(),
            leaves_2m: self.leaves[0],
            leaves_1g: self.leaves[1],
        }
    }

    /// Maps a region, writable and executable, with the largest pages that its alignment allows.
    ///
    /// # Errors
    /// [`MapError`]; what was mapped before the overlap stays mapped.
    pub fn map(&mut self, region: Region) -> Result<FlushNeeded, MapError> {
        let end = region
            .guest
            .checked_add(region.length)
            .filter(|end| *end <= LIMIT);
        let aligned = (region.guest | region.host | region.length).is_multiple_of(SIZE_2M)
            && region.host & !ADDRESS == 0;
        if end.is_none() || !aligned {
            return Err(MapError::Unaligned(region));
        }
        let mut done = 0;
        while done < region.length {
            let (guest, host) = (region.guest + done, region.host + done);
            let large = self.gigabyte_pages
                && (guest | host).is_multiple_of(SIZE_1G)
                && region.length - done >= SIZE_1G;
            let (size, level) = if large { (SIZE_1G, 3) } else { (SIZE_2M, 2) };
            let entry = self.entry(guest, level).ok_or(MapError::Overlap(region))?;
            let leaf = host | PRESENT | WRITABLE | USER | LARGE;
            if entry
                .compare_exchange(0, leaf, Ordering::SeqCst, Ordering::SeqCst)
                .is_err()
            {
                return Err(MapError::Overlap(region));
            }
            self.leaves[level - 2] += 1;
            done += size;
        }
        Ok(FlushNeeded(()))
    }

    /// Where `guest` is mapped, walked as the CPU walks.
    pub fn translate(&self, guest: u64) -> Option<u64> {
        let mut table = 0;
        for level in (2..=4).rev() {
            let entry = self
                .pages
                .get(table)?
                .0
                .get(index(guest, level))?
                .load(Ordering::Acquire);
            if entry & (PRESENT | USER) != PRESENT | USER {
                return None;
            }
            if entry & LARGE != 0 && level < 4 {
                let mask = if level == 3 { SIZE_1G - 1 } else { SIZE_2M - 1 };
                return Some(entry & ADDRESS & !mask | guest & mask);
            }
            table = self.page_at(entry & ADDRESS)?;
        }
        None
    }

    /// The entry for `guest` in the table of `level` (2 or 3), making the tables above it. None if a leaf is in the way.
    fn entry(&mut self, guest: u64, level: usize) -> Option<&AtomicU64> {
        let mut table = 0;
        for above in (level + 1..=4).rev() {
            let slot = index(guest, above);
            let entry = self.pages.get(table)?.0.get(slot)?.load(Ordering::Acquire);
            table = if entry == 0 {
                let page = Table::new();
                let link = page.address() | PRESENT | WRITABLE | USER;
                self.pages.push(page);
                self.pages
                    .get(table)?
                    .0
                    .get(slot)?
                    .store(link, Ordering::Release);
                self.pages.len() - 1
            } else if entry & LARGE != 0 {
                return None;
            } else {
                self.page_at(entry & ADDRESS)?
            };
        }
        self.pages.get(table)?.0.get(index(guest, level))
    }

    fn page_at(&self, address: u64) -> Option<usize> {
        self.pages.iter().position(|page| page.address() == address)
    }
}

/// Index of `address` in a table of `level` (1 to 4).
fn index(address: u64, level: usize) -> usize {
    (address >> (12 + 9 * (level - 1)) & 0x1FF) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_decides_the_page_size() {
        let mut tables = NestedTables::new(true);
        // 1 GiB + 4 MiB, host aligned to 1 GiB: one large page and two small ones.
        let _flush = tables
            .map(Region {
                guest: 0,
                host: 4 << 30,
                length: (1 << 30) + (4 << 20),
            })
            .unwrap();
        assert_eq!(
            tables.statistics(),
            TableStatistics {
                table_pages: 3,
                leaves_2m: 2,
                leaves_1g: 1
            }
        );
        assert_eq!(tables.translate(0x1234_5678), Some((4 << 30) + 0x1234_5678));
        assert_eq!(
            tables.translate((1 << 30) + 0x20_0042),
            Some((5 << 30) + 0x20_0042)
        );
        assert_eq!(tables.translate((1 << 30) + (4 << 20)), None);
        // The same without 1 GiB pages, and with a host address that is only 2 MiB aligned.
        for (gigabyte_pages, host) in [(false, 4 << 30), (true, (4 << 30) + (2 << 20))] {
            let mut tables = NestedTables::new(gigabyte_pages);
            let _flush = tables
                .map(Region {
                    guest: 0,
                    host,
                    length: 1 << 30,
                })
                .unwrap();
            assert_eq!(
                tables.statistics(),
                TableStatistics {
                    table_pages: 3,
                    leaves_2m: 512,
                    leaves_1g: 0
                }
            );
            assert_eq!(tables.translate(0x3FFF_FFFF), Some(host + 0x3FFF_FFFF));
        }
    }

    #[test]
    fn every_entry_is_a_user_entry() {
        let mut tables = NestedTables::new(true);
        let _flush = tables
            .map(Region {
                guest: 0,
                host: 1 << 30,
                length: (1 << 30) + (2 << 20),
            })
            .unwrap();
        let entries = tables
            .pages
            .iter()
            .flat_map(|page| &page.0)
            .map(|entry| entry.load(Ordering::Relaxed));
        let present: Vec<u64> = entries.filter(|entry| *entry != 0).collect();
        assert_eq!(present.len(), 4);
        assert!(present.iter().all(|entry| entry & 7 == 7));
    }

    #[test]
    fn a_gibibyte_of_guest_takes_few_pages() {
        let memory = GuestMemory::allocate(64 << 20).unwrap();
        let (tables, _flush) = NestedTables::of(&memory, true).unwrap();
        assert_eq!(
            tables.statistics(),
            TableStatistics {
                table_pages: 3,
                leaves_2m: 32,
                leaves_1g: 0
            }
        );
        assert_eq!(
            tables.translate(0x10_0000),
            Some(memory.regions()[0].host + 0x10_0000)
        );
    }

    #[test]
    fn bad_mappings_are_refused() {
        let mut tables = NestedTables::new(true);
        let odd = Region {
            guest: 0x1000,
            host: 0,
            length: 2 << 20,
        };
        assert_eq!(tables.map(odd).err(), Some(MapError::Unaligned(odd)));
        let far = Region {
            guest: LIMIT - SIZE_2M,
            host: 0,
            length: 4 << 20,
        };
        assert_eq!(tables.map(far).err(), Some(MapError::Unaligned(far)));
        let large = Region {
            guest: 0,
            host: 1 << 30,
            length: 1 << 30,
        };
        let _flush = tables.map(large).unwrap();
        let inside = Region {
            guest: 4 << 20,
            host: 0,
            length: 2 << 20,
        };
        assert_eq!(tables.map(inside).err(), Some(MapError::Overlap(inside)));
        assert_eq!(tables.map(large).err(), Some(MapError::Overlap(large)));
    }
}
