//! The guest's own page tables, walked by the hypervisor: for the bytes and operands of instructions that it emulates.
//!
//! Unpaged, 32-bit, PAE and four-level paging (APM vol. 2, chapter 5). The CPU has begun each such instruction itself, so this checks
//! presence, write, user and no-execute permission and sets accessed and dirty bits; it checks neither reserved bits nor SMAP.

use super::{GuestMemory, GuestPtr, OutOfGuest};

/// CR0.PE: protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// CR0.WP: the supervisor, too, respects read-only pages.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.PG: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.PSE: 4 MiB pages in 32-bit paging.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE: 64-bit entries.
pub const CR4_PAE: u64 = 1 << 5;
/// EFER.LMA: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE: no-execute bits count.
pub const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// The registers that decide how the guest translates addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Read data.
    Read,
    /// Write data.
    Write,
    /// Fetch an instruction.
    Fetch,
}

/// Why an address has no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest is to get a page fault (#PF) with this linear address and error code.
    PageFault {
        /// For CR2.
        address: u64,
        /// The error code (APM vol. 2, 8.4.2).
        code: u32,
    },
    /// A page table of the guest is not in its RAM.
    TableOutOfGuest(GuestPtr),
}

impl From<OutOfGuest> for WalkError {
    fn from(OutOfGuest(claim): OutOfGuest) -> Self {
        Self::TableOutOfGuest(claim)
    }
}

/// One way of paging: how entries are laid out.
struct Shape {
    levels: u32,
    entry_bytes: u64,
    index_bits: u32,
}

impl Paging {
    fn shape(&self) -> Shape {
        if self.efer & EFER_LMA != 0 {
            Shape {
                levels: 4,
                entry_bytes: 8,
                index_bits: 9,
            }
        } else if self.cr4 & CR4_PAE != 0 {
            Shape {
                levels: 3,
                entry_bytes: 8,
                index_bits: 9,
            }
        } else {
            Shape {
                levels: 2,
                entry_bytes: 4,
                index_bits: 10,
            }
        }
    }

    /// Translates `linear` to a guest-physical address, for code at privilege level 3 if `user`.
    ///
    /// # Errors
    /// [`WalkError`]. What it gives need not be RAM: the caller checks that.
    pub fn translate(
        &self,
        memory: &GuestMemory,
        linear: u64,
        intent: Intent,
        user: bool,
    ) -> Result<u64, WalkError> {
        if self.cr0 & CR0_PG == 0 {
            return Ok(linear & 0xFFFF_FFFF);
        }
        let Shape {
            levels,
            entry_bytes,
            index_bits,
        } = self.shape();
        let fault = |present: bool| {
            let fetch = intent == Intent::Fetch && self.efer & EFER_NXE != 0;
            let bits = [present, intent == Intent::Write, user, false, fetch];
            let code = bits
                .iter()
                .rev()
                .fold(0, |code, bit| code << 1 | u32::from(*bit));
            WalkError::PageFault {
                address: linear,
                code,
            }
        };
        let root_mask = if levels == 3 { 0xFFFF_FFE0 } else { ADDRESS };
        let mut table = self.cr3 & root_mask;
        let mut allowed = WRITABLE | USER;
        let mut no_execute = false;
        for level in (1..=levels).rev() {
            let shift = 12 + index_bits * (level - 1);
            // The topmost PAE table has four entries.
            let mask = if levels == 3 && level == 3 {
                3
            } else {
                (1 << index_bits) - 1
            };
            let place = table + (linear >> shift & mask) * entry_bytes;
            let entry = read_entry(memory, place, entry_bytes)?;
            if entry & PRESENT == 0 {
                return Err(fault(false));
            }
            let has_rights = !(levels == 3 && level == 3);
            if has_rights {
                allowed &= entry;
                no_execute |= entry & NO_EXECUTE != 0 && self.efer & EFER_NXE != 0;
            }
            let large = entry & LARGE != 0
                && match (levels, level) {
                    (2, 2) => self.cr4 & CR4_PSE != 0,
                    (3 | 4, 2) | (4, 3) => true,
                    _ => false,
                };
            if !(large || level == 1) {
                if has_rights {
                    mark(memory, place, entry_bytes, entry, ACCESSED)?;
                }
                table = entry & ADDRESS;
                continue;
            }
            let write_denied = intent == Intent::Write
                && allowed & WRITABLE == 0
                && (user || self.cr0 & CR0_WP != 0);
            if write_denied || user && allowed & USER == 0 || intent == Intent::Fetch && no_execute
            {
                return Err(fault(true));
            }
            let marks = if intent == Intent::Write {
                ACCESSED | DIRTY
            } else {
                ACCESSED
            };
            mark(memory, place, entry_bytes, entry, marks)?;
            let offset_mask = (1 << shift) - 1;
            let mut frame = entry & ADDRESS & !offset_mask;
            if levels == 2 && level == 2 {
                // PSE-36: bits 13 to 20 are address bits 32 to 39.
                frame = entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32;
            }
            return Ok(frame | linear & offset_mask);
        }
        Err(fault(false))
    }
}

fn read_entry(memory: &GuestMemory, place: u64, bytes: u64) -> Result<u64, OutOfGuest> {
    if bytes == 4 {
        memory.read_u32(place).map(u64::from)
    } else {
        memory.read_u64(place)
    }
}

/// Sets accessed and dirty bits. If the guest changed the entry meanwhile, its change stands.
fn mark(
    memory: &GuestMemory,
    place: u64,
    bytes: u64,
    entry: u64,
    bits: u64,
) -> Result<(), OutOfGuest> {
    if entry & bits == bits {
        return Ok(());
    }
    if bytes == 4 {
        memory.compare_exchange_u32(place, entry as u32, (entry | bits) as u32)?;
    } else {
        memory.compare_exchange_u64(place, entry, entry | bits)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Paging = Paging {
        cr0: CR0_PG | CR0_PE | CR0_WP,
        cr3: 0x1000,
        cr4: CR4_PAE,
        efer: EFER_LMA | EFER_NXE,
    };

    fn memory(entries: &[(u64, u64)]) -> GuestMemory {
        let memory = GuestMemory::allocate(2 << 20).unwrap();
        for (place, entry) in entries {
            memory.write_u64(*place, *entry).unwrap();
        }
        memory
    }

    #[test]
    fn without_paging_addresses_are_physical() {
        let paging = Paging {
            cr0: CR0_PE,
            ..Paging::default()
        };
        assert_eq!(
            paging.translate(&memory(&[]), 0x1_0000_1234, Intent::Read, true),
            Ok(0x1234)
        );
    }

    #[test]
    fn four_levels_with_all_page_sizes() {
        let memory = memory(&[
            (0x1000 + 8 * 0x1FF, 0x2007),
            (0x2000, 0x3007),
            (0x2008, 0x4000_0000 | LARGE | 7),
            (0x3000, 0x4007),
            (0x3008, 0xFEE0_0000 | LARGE | 7),
            (0x4008, 0xFEC0_0003),
        ]);
        let walk = |linear, intent, user| LONG.translate(&memory, linear, intent, user);
        let base = 0xFFFF_FF80_0000_0000;
        assert_eq!(walk(base + 0x1010, Intent::Read, false), Ok(0xFEC0_0010));
        assert_eq!(
            walk(base + 0x20_0000 + 0x1_2345, Intent::Write, true),
            Ok(0xFEE1_2345)
        );
        assert_eq!(
            walk(base + 0x4012_3456, Intent::Read, false),
            Ok(0x4012_3456)
        );
        assert_eq!(
            walk(base + 0x1010, Intent::Read, true),
            Err(WalkError::PageFault {
                address: base + 0x1010,
                code: 5
            })
        );
        assert_eq!(
            walk(base, Intent::Write, false),
            Err(WalkError::PageFault {
                address: base,
                code: 2
            })
        );
        assert_eq!(memory.read_u64(0x4008), Ok(0xFEC0_0003 | ACCESSED));
        assert_eq!(
            memory.read_u64(0x3008),
            Ok(0xFEE0_0000 | LARGE | 7 | ACCESSED | DIRTY)
        );
        assert_eq!(memory.read_u64(0x2000), Ok(0x3007 | ACCESSED));
    }

    #[test]
    fn rights_are_the_least_on_the_way() {
        let entries = [
            (0x1000, 0x2007),
            (0x2000, 0x3005 | NO_EXECUTE),
            (0x3000, LARGE | 7),
        ];
        let memory = memory(&entries);
        let write = |paging: Paging, user| paging.translate(&memory, 0x42, Intent::Write, user);
        assert_eq!(
            write(LONG, false),
            Err(WalkError::PageFault {
                address: 0x42,
                code: 3
            })
        );
        assert_eq!(
            write(LONG, true),
            Err(WalkError::PageFault {
                address: 0x42,
                code: 7
            })
        );
        let no_wp = Paging {
            cr0: CR0_PG | CR0_PE,
            ..LONG
        };
        assert_eq!(write(no_wp, false), Ok(0x42));
        assert_eq!(
            write(no_wp, true),
            Err(WalkError::PageFault {
                address: 0x42,
                code: 7
            })
        );
        let fetch = |paging: Paging| paging.translate(&memory, 0x42, Intent::Fetch, false);
        assert_eq!(
            fetch(LONG),
            Err(WalkError::PageFault {
                address: 0x42,
                code: 0x11
            })
        );
        assert_eq!(
            fetch(Paging {
                efer: EFER_LMA,
                ..LONG
            }),
            Ok(0x42)
        );
    }

    #[test]
    fn pae_and_32_bit_paging() {
        let pae = Paging {
            cr0: CR0_PG | CR0_PE,
            cr3: 0x1020,
            cr4: CR4_PAE,
            efer: 0,
        };
        // A PAE directory-pointer entry has no rights and is not marked.
        let tables = memory(&[
            (0x1020 + 8 * 3, 0x3001),
            (0x3000 + 8, 0x20_0000 | LARGE | 3),
            (0x3000, 0x4003),
            (0x4000, 0x9003),
        ]);
        assert_eq!(
            pae.translate(&tables, 0xC020_0123, Intent::Write, false),
            Ok(0x20_0123)
        );
        assert_eq!(
            pae.translate(&tables, 0xC000_0FFF, Intent::Read, false),
            Ok(0x9FFF)
        );
        assert_eq!(tables.read_u64(0x1020 + 8 * 3), Ok(0x3001));

        let legacy = Paging {
            cr0: CR0_PG | CR0_PE,
            cr3: 0x1000,
            cr4: CR4_PSE,
            efer: 0,
        };
        let tables = GuestMemory::allocate(2 << 20).unwrap();
        tables
            .write_u32(0x1000 + 4 * 0x3FB, 0xFEC0_0083 | 1 << 13)
            .unwrap();
        tables.write_u32(0x1000, 0x2003).unwrap();
        tables.write_u32(0x2004, 0x7003).unwrap();
        assert_eq!(
            legacy.translate(&tables, 0xFEC0_1234, Intent::Read, false),
            Ok(0x1_FEC0_1234)
        );
        assert_eq!(
            legacy.translate(&tables, 0x1FFF, Intent::Write, false),
            Ok(0x7FFF)
        );
        assert_eq!(tables.read_u32(0x2004), Ok(0x7003 | 0x60));
    }

    #[test]
    fn tables_outside_ram_are_reported() {
        let wild = Paging {
            cr3: 0x7FFF_F000,
            ..LONG
        };
        let claim = GuestPtr {
            address: 0x7FFF_F000,
            length: 8,
        };
        assert_eq!(
            wild.translate(&memory(&[]), 0, Intent::Read, false),
            Err(WalkError::TableOutOfGuest(claim))
        );
    }
}
