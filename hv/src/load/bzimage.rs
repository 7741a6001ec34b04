//! Linux by the 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL").
//!
//! Loads a `bzImage`, its initial ramdisk and its command line and makes the zero page, a GDT and identity page tables. The
//! kernel's real-mode code is not run and no firmware is needed.

use super::memory_map::memory_map;
use super::{
    EntryState, Fields, LoadError, Segment, TableRegister, align_up, check_command_line,
    write_c_string,
};
use crate::mem::{GuestMemory, OutOfGuest};
use crate::platform::layout::{CONVENTIONAL_END, EXTENDED_START};

/// Boot GDT: above the real-mode vectors and the BIOS data area.
const GDT: u64 = 0x500;
/// The zero page (`struct boot_params`).
const ZERO_PAGE: u64 = 0x7000;
/// Identity page tables: one PML4, one PDPT, four page directories.
const PAGE_TABLES: u64 = 0x9000;
/// Initial stack, below the zero page. The kernel brings its own.
const STACK_TOP: u64 = 0x6FF0;
/// The command line.
const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line that has room there, in bytes, without the terminating zero.
const COMMAND_LINE_ROOM: u64 = CONVENTIONAL_END - COMMAND_LINE - 1;

/// Offset of the 64-bit entry point from the protected-mode kernel's start.
const ENTRY_64: u64 = 0x200;

/// The setup header's fields, by their place in the file and in the zero page alike (boot.rst, "The Real-Mode Kernel Header").
mod field {
    pub const SETUP_SECTORS: u64 = 0x1F1;
    pub const SYSTEM_SIZE: u64 = 0x1F4;
    pub const BOOT_FLAG: u64 = 0x1FE;
    pub const HEADER_END: u64 = 0x201;
    pub const MAGIC: u64 = 0x202;
    pub const VERSION: u64 = 0x206;
    pub const LOADER_TYPE: u64 = 0x210;
    pub const LOAD_FLAGS: u64 = 0x211;
    pub const RAMDISK_IMAGE: u64 = 0x218;
    pub const RAMDISK_SIZE: u64 = 0x21C;
    pub const COMMAND_LINE: u64 = 0x228;
    pub const RAMDISK_MAX: u64 = 0x22C;
    pub const ALIGNMENT: u64 = 0x230;
    pub const RELOCATABLE: u64 = 0x234;
    pub const EXTENDED_LOAD_FLAGS: u64 = 0x236;
    pub const COMMAND_LINE_SIZE: u64 = 0x238;
    pub const PREFERRED_ADDRESS: u64 = 0x258;
    pub const INIT_SIZE: u64 = 0x260;
    /// Only in the zero page: the ACPI root pointer.
    pub const ACPI_ROOT: u64 = 0x070;
    /// Only in the zero page: how many entries the memory map has.
    pub const MAP_ENTRIES: u64 = 0x1E8;
    /// Only in the zero page: the memory map, 20 bytes an entry.
    pub const MAP: u64 = 0x2D0;
}

const BOOT_FLAG: u16 = 0xAA55;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// First version with `xloadflags` (Linux 3.8).
const OLDEST_VERSION: u16 = 0x020C;
/// `xloadflags`: there is a 64-bit entry point at [`ENTRY_64`].
const HAS_ENTRY_64: u16 = 1;
/// "Unknown boot loader", which is what the protocol gives to those without a number of their own.
const LOADER_UNDEFINED: u8 = 0xFF;

/// What to start.
#[derive(Clone, Copy, Debug)]
pub struct LinuxImage<'a> {
    /// The whole `bzImage` file.
    pub kernel: &'a [u8],
    /// The initial ramdisk; empty for none.
    pub ramdisk: &'a [u8],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Guest-physical address of the ACPI root pointer.
    pub acpi_root: u64,
}

/// Says whether `file` looks like a `bzImage` at all: boot flag and magic are there.
pub fn is_bzimage(file: &[u8]) -> bool {
    let fields = Fields(file);
    fields.u16("boot flag", field::BOOT_FLAG) == Ok(BOOT_FLAG)
        && fields.u32("header magic", field::MAGIC) == Ok(MAGIC)
}

/// The parts of the setup header that loading depends on, checked against the file.
struct Header<'a> {
    /// The header as it goes to the zero page, from [`field::SETUP_SECTORS`].
    bytes: &'a [u8],
    /// The protected-mode kernel.
    kernel: &'a [u8],
    load_address: u64,
    init_size: u64,
    command_line_size: u64,
    /// The ramdisk must end at or below this.
    ramdisk_end_max: u64,
}

impl<'a> Header<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        let fields = Fields(file);
        const PART: &str = "the setup header";
        if fields.u16(PART, field::BOOT_FLAG)? != BOOT_FLAG {
            return Err(LoadError::WrongKind("no Linux boot flag at offset 0x1fe"));
        }
        if fields.u32(PART, field::MAGIC)? != MAGIC {
            return Err(LoadError::WrongKind("no HdrS at offset 0x202"));
        }
        if fields.u16(PART, field::VERSION)? < OLDEST_VERSION {
            return Err(LoadError::Unsupported(
                "its boot protocol is older than 2.12 (Linux 3.8)",
            ));
        }
        if fields.u16(PART, field::EXTENDED_LOAD_FLAGS)? & HAS_ENTRY_64 == 0 {
            return Err(LoadError::Unsupported("it has no 64-bit entry point"));
        }
        let end = field::MAGIC + u64::from(fields.u8(PART, field::HEADER_END)?);
        if end < field::INIT_SIZE + 4 {
            return Err(LoadError::Malformed("its setup header ends too early"));
        }
        let bytes = fields.slice(PART, field::SETUP_SECTORS, end - field::SETUP_SECTORS)?;

        let sectors = match fields.u8(PART, field::SETUP_SECTORS)? {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let start = (sectors + 1) * 512;
        let size = u64::from(fields.u32(PART, field::SYSTEM_SIZE)?) * 16;
        if size <= ENTRY_64 {
            return Err(LoadError::Malformed(
                "its size field (syssize) is too small",
            ));
        }
        let kernel = fields.slice("the protected-mode kernel", start, size)?;

        let alignment = u64::from(fields.u32(PART, field::ALIGNMENT)?);
        let preferred = fields.u64(PART, field::PREFERRED_ADDRESS)?;
        let relocatable = fields.u8(PART, field::RELOCATABLE)? != 0;
        let load_address = if relocatable {
            if !alignment.is_power_of_two() {
                return Err(LoadError::Malformed("its alignment is not a power of two"));
            }
            align_up(preferred.max(EXTENDED_START), alignment)
                .ok_or(LoadError::Malformed("its preferred address wraps around"))?
        } else {
            preferred
        };
        if load_address < EXTENDED_START {
            return Err(LoadError::Malformed("it wants to be loaded below 1 MiB"));
        }
        let init_size = u64::from(fields.u32(PART, field::INIT_SIZE)?).max(size);
        Ok(Self {
            bytes,
            kernel,
            load_address,
            init_size,
            command_line_size: u64::from(fields.u32(PART, field::COMMAND_LINE_SIZE)?),
            ramdisk_end_max: u64::from(fields.u32(PART, field::RAMDISK_MAX)?) + 1,
        })
    }
}

/// Puts `image` into guest memory and says how its first CPU starts.
///
/// # Errors
/// [`LoadError`]; guest memory may hold parts of the image then.
pub fn load(mem: &GuestMemory, image: &LinuxImage<'_>) -> Result<EntryState, LoadError> {
    let header = Header::parse(image.kernel)?;
    let limit = header.command_line_size.min(COMMAND_LINE_ROOM) as usize;
    check_command_line(image.command_line, limit)?;

    let low = mem.low_size();
    let no_room = |part, need| LoadError::NoRoom {
        part,
        need,
        have: low,
    };
    let kernel_end = header
        .load_address
        .checked_add(header.init_size)
        .ok_or(LoadError::Malformed("its load address wraps around"))?;
    if kernel_end > low {
        return Err(no_room("the kernel", kernel_end));
    }
    mem.write(header.load_address, header.kernel)?;

    // As high as the kernel takes it, so that it does not lie where the kernel unpacks itself.
    let size = image.ramdisk.len() as u64;
    let mut ramdisk = 0;
    if size > 0 {
        let top = low.min(header.ramdisk_end_max);
        ramdisk = match top.checked_sub(size) {
            Some(start) if start & !0xFFF >= kernel_end => start & !0xFFF,
            _ if low > header.ramdisk_end_max => {
                return Err(LoadError::NoRoom {
                    part: "the initial ramdisk",
                    need: kernel_end.saturating_add(size),
                    have: header.ramdisk_end_max,
                });
            }
            _ => {
                return Err(no_room(
                    "the initial ramdisk",
                    kernel_end.saturating_add(size).saturating_add(0xFFF),
                ));
            }
        };
        mem.write(ramdisk, image.ramdisk)?;
    }
    write_c_string(mem, COMMAND_LINE, image.command_line)?;
    write_zero_page(mem, &header, image, ramdisk)?;
    write_page_tables(mem)?;
    for (index, descriptor) in [
        0,
        0,
        Segment::CODE_64.descriptor(),
        Segment::DATA.descriptor(),
    ]
    .into_iter()
    .enumerate()
    {
        mem.write_u64(GDT + 8 * index as u64, descriptor)?;
    }

    Ok(EntryState {
        rip: header.load_address + ENTRY_64,
        rsp: STACK_TOP,
        rflags: 0x2,
        rax: 0,
        rbx: 0,
        rsi: ZERO_PAGE,
        cr0: 0x8000_0033, // PG, NE, ET, MP, PE
        cr3: PAGE_TABLES,
        cr4: 0x20,   // PAE
        efer: 0x500, // LME, LMA
        cs: Segment::CODE_64,
        data: Segment::DATA,
        tr: Segment::TASK,
        ldtr: Segment::NO_LDT,
        gdtr: TableRegister {
            base: GDT,
            limit: 31,
        },
        idtr: TableRegister { base: 0, limit: 0 },
    })
}

fn write_zero_page(
    mem: &GuestMemory,
    header: &Header<'_>,
    image: &LinuxImage<'_>,
    ramdisk: u64,
) -> Result<(), OutOfGuest> {
    mem.fill(ZERO_PAGE, 0x1000, 0)?;
    mem.write(ZERO_PAGE + field::SETUP_SECTORS, header.bytes)?;
    mem.write_u8(ZERO_PAGE + field::LOADER_TYPE, LOADER_UNDEFINED)?;
    // LOADED_HIGH is the kernel's own word; KEEP_SEGMENTS, QUIET and CAN_USE_HEAP concern code that is not run.
    mem.write_u8(ZERO_PAGE + field::LOAD_FLAGS, 1)?;
    mem.write_u32(ZERO_PAGE + field::RAMDISK_IMAGE, ramdisk as u32)?;
    mem.write_u32(ZERO_PAGE + field::RAMDISK_SIZE, image.ramdisk.len() as u32)?;
    mem.write_u32(ZERO_PAGE + field::COMMAND_LINE, COMMAND_LINE as u32)?;
    mem.write_u64(ZERO_PAGE + field::ACPI_ROOT, image.acpi_root)?;

    let map = memory_map(mem);
    mem.write_u8(ZERO_PAGE + field::MAP_ENTRIES, map.len() as u8)?;
    for (index, range) in map.iter().enumerate() {
        let entry = ZERO_PAGE + field::MAP + 20 * index as u64;
        mem.write_u64(entry, range.start)?;
        mem.write_u64(entry + 8, range.length)?;
        mem.write_u32(entry + 16, range.kind as u32)?;
    }
    Ok(())
}

/// Maps the first 4 GiB to themselves with 2 MiB pages.
fn write_page_tables(mem: &GuestMemory) -> Result<(), OutOfGuest> {
    const TABLE: u64 = 0x3; // present, writable
    const LARGE: u64 = 0x83; // and 2 MiB
    mem.fill(PAGE_TABLES, 6 * 0x1000, 0)?;
    let pointers = PAGE_TABLES + 0x1000;
    mem.write_u64(PAGE_TABLES, pointers | TABLE)?;
    for gibibyte in 0..4 {
        let directory = pointers + 0x1000 * (gibibyte + 1);
        mem.write_u64(pointers + 8 * gibibyte, directory | TABLE)?;
        for entry in 0..512 {
            let address = gibibyte << 30 | entry << 21;
            mem.write_u64(directory + 8 * entry, address | LARGE)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A file that is a kernel as far as the protocol can tell: 4 setup sectors, 64 KiB of code counting up.
    fn kernel() -> Vec<u8> {
        let mut file = alloc::vec![0; 5 * 512];
        let mut put = |offset: u64, bytes: &[u8]| {
            file[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        };
        put(field::SETUP_SECTORS, &[4]);
        put(field::SYSTEM_SIZE, &4096_u32.to_le_bytes());
        put(field::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
        put(field::HEADER_END, &[0x6A]);
        put(field::MAGIC, b"HdrS");
        put(field::VERSION, &0x020F_u16.to_le_bytes());
        put(field::RAMDISK_MAX, &0x7FFF_FFFF_u32.to_le_bytes());
        put(field::ALIGNMENT, &0x20_0000_u32.to_le_bytes());
        put(field::RELOCATABLE, &[1]);
        put(field::EXTENDED_LOAD_FLAGS, &0x3F_u16.to_le_bytes());
        put(field::COMMAND_LINE_SIZE, &2047_u32.to_le_bytes());
        put(field::PREFERRED_ADDRESS, &(16 * MIB).to_le_bytes());
        put(field::INIT_SIZE, &(8 * MIB as u32).to_le_bytes());
        file.extend((0..65536_u32).map(|byte| byte as u8));
        file
    }

    fn image<'a>(kernel: &'a [u8], ramdisk: &'a [u8]) -> LinuxImage<'a> {
        LinuxImage {
            kernel,
            ramdisk,
            command_line: "console=ttyS0 quiet",
            acpi_root: 0xE_0000,
        }
    }

    #[test]
    fn everything_is_where_the_protocol_wants_it() {
        let mem = GuestMemory::allocate(64 * MIB).unwrap();
        let file = kernel();
        assert!(is_bzimage(&file));
        let ramdisk = alloc::vec![0x5A; 5000];
        let entry = load(&mem, &image(&file, &ramdisk)).unwrap();
        assert_eq!(entry.rip, 16 * MIB + 0x200);
        let mut code = [0; 4];
        mem.read(entry.rip + 1, &mut code).unwrap();
        assert_eq!(code, [1, 2, 3, 4]);

        let zero_page = entry.rsi;
        let at = u64::from(mem.read_u32(zero_page + field::RAMDISK_IMAGE).unwrap());
        assert_eq!(at % 4096, 0);
        assert!(at + 5000 <= 64 * MIB && at > 63 * MIB);
        assert_eq!(mem.read_u8(at + 4999), Ok(0x5A));
        assert_eq!(mem.read_u32(zero_page + field::RAMDISK_SIZE), Ok(5000));
        assert_eq!(mem.read_u32(zero_page + field::MAGIC), Ok(MAGIC));
        assert_eq!(mem.read_u64(zero_page + 0x70), Ok(0xE_0000));
        let line = u64::from(mem.read_u32(zero_page + field::COMMAND_LINE).unwrap());
        let mut text = [0; 20];
        mem.read(line, &mut text).unwrap();
        assert_eq!(&text, b"console=ttyS0 quiet\0");
        assert_eq!(mem.read_u8(zero_page + field::MAP_ENTRIES), Ok(6));

        // The page tables map the entry point to itself.
        let pml4 = mem.read_u64(entry.cr3).unwrap();
        let pdpt = mem.read_u64(pml4 & !0xFFF).unwrap();
        let page = mem
            .read_u64((pdpt & !0xFFF) + 8 * (entry.rip >> 21))
            .unwrap();
        assert_eq!(page, (entry.rip & !0x1F_FFFF) | 0x83);
        assert_eq!(
            mem.read_u64(entry.gdtr.base + 0x10),
            Ok(Segment::CODE_64.descriptor())
        );
    }

    #[test]
    fn a_file_cut_short_is_refused_with_the_missing_part() {
        let mem = GuestMemory::allocate(64 * MIB).unwrap();
        let file = kernel();
        let have = file.len() as u64 - 1;
        assert_eq!(
            load(&mem, &image(&file[..have as usize], &[])),
            Err(LoadError::CutShort {
                part: "the protected-mode kernel",
                need: have + 1,
                have
            })
        );
        assert_eq!(
            load(&mem, &image(&file[..0x200], &[])),
            Err(LoadError::CutShort {
                part: "the setup header",
                need: 0x206,
                have: 0x200
            })
        );
        assert_eq!(
            load(&mem, &image(&[], &[])),
            Err(LoadError::CutShort {
                part: "the setup header",
                need: 0x200,
                have: 0
            })
        );
    }

    #[test]
    fn foreign_and_old_files_are_refused() {
        let mem = GuestMemory::allocate(64 * MIB).unwrap();
        let elf = alloc::vec![0x7F; 4096];
        assert!(matches!(
            load(&mem, &image(&elf, &[])),
            Err(LoadError::WrongKind(_))
        ));
        let mut old = kernel();
        old[field::VERSION as usize] = 0x0B;
        assert!(matches!(
            load(&mem, &image(&old, &[])),
            Err(LoadError::Unsupported(_))
        ));
        let mut narrow = kernel();
        narrow[field::EXTENDED_LOAD_FLAGS as usize] = 0;
        assert!(matches!(
            load(&mem, &image(&narrow, &[])),
            Err(LoadError::Unsupported(_))
        ));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let file = kernel();
        let small = GuestMemory::allocate(22 * MIB).unwrap();
        assert_eq!(
            load(&small, &image(&file, &[])),
            Err(LoadError::NoRoom {
                part: "the kernel",
                need: 24 * MIB,
                have: 22 * MIB
            })
        );
        let mem = GuestMemory::allocate(26 * MIB).unwrap();
        let fits = alloc::vec![1; 2 * MIB as usize];
        assert!(load(&mem, &image(&file, &fits)).is_ok());
        let large = alloc::vec![1; 2 * MIB as usize + 1];
        assert!(matches!(
            load(&mem, &image(&file, &large)),
            Err(LoadError::NoRoom {
                part: "the initial ramdisk",
                ..
            })
        ));
        let long = "x".repeat(2048);
        let mut too_long = image(&file, &[]);
        too_long.command_line = &long;
        assert_eq!(
            load(&mem, &too_long),
            Err(LoadError::CommandLineTooLong {
                length: 2048,
                limit: 2047
            })
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever a damaged header says, loading ends with an entry state or an error.
        #[test]
        fn mutated_headers_never_panic(
            edits in proptest::collection::vec((0x1F0_usize..0x270, any::<u8>()), 1..12),
            cut in 0_usize..70000,
            ramdisk in 0_usize..100_000,
        ) {
            let mem = GuestMemory::allocate(32 * MIB).unwrap();
            let mut file = kernel();
            for (offset, value) in edits {
                file[offset] = value;
            }
            file.truncate(cut.max(0x100));
            let ramdisk = alloc::vec![0; ramdisk];
            let _ = load(&mem, &image(&file, &ramdisk));
        }
    }
}
