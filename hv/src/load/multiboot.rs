//! Multiboot version 1 kernels (Multiboot Specification 0.6.96): ELF32 or the header's own addresses, modules, command line.
//!
//! Meant for small test kernels. They start in 32-bit protected mode without paging, as the specification says (3.2).

use alloc::vec::Vec;

use super::memory_map::{Range, RangeKind, memory_map};
use super::{
    EntryState, Fields, LoadError, Segment, TableRegister, align_up, check_command_line,
    write_c_string,
};
use crate::mem::GuestMemory;
use crate::platform::layout::{CONVENTIONAL_END, EXTENDED_START};

mod modules;

pub use modules::{pack, unpack};

/// The header must lie within this many bytes of the file (3.1).
const SEARCHED: usize = 8192;
const HEADER_MAGIC: u32 = 0x1BAD_B002;
/// What the kernel finds in EAX.
const LOADER_MAGIC: u32 = 0x2BAD_B002;
/// Header flags that can be satisfied: page-aligned modules, memory information, and the address fields.
const FLAG_ADDRESSES: u32 = 1 << 16;
const FLAGS_KNOWN: u32 = 0b11;
/// Flags below this bit must be understood by the loader (3.1.2).
const FLAGS_REQUIRED: u32 = 0xFFFF;

/// Information flags (3.3): memory, command line, modules, memory map, loader name.
const INFORMATION: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
const INFORMATION_SIZE: u64 = 0x78;

/// Boot GDT; the kernel must load its own.
const GDT: u64 = 0x500;
/// Kernels stay above the real-mode vectors, the BIOS data area and the GDT.
const LOWEST_ADDRESS: u64 = 0x1000;
/// Where the information goes if the kernel leaves room there, which is where QEMU puts it.
const INFORMATION_ADDRESS: u64 = 0x9000;
/// Longest command line for the kernel or a module, in bytes.
const COMMAND_LINE_LIMIT: usize = 4096;
/// Most modules.
const MODULE_LIMIT: usize = 64;
/// Most program headers.
const SEGMENT_LIMIT: u16 = 256;

const NAME: &str = "Outpost";

/// A module: a file that the kernel finds in memory, with a text.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Its text, by convention its file name and arguments.
    pub command_line: &'a str,
}

/// What to start.
#[derive(Clone, Copy, Debug)]
pub struct MultibootImage<'a> {
    /// The whole kernel file.
    pub kernel: &'a [u8],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Modules, in the order in which the kernel sees them.
    pub modules: &'a [Module<'a>],
}

/// Says whether `file` has a multiboot header.
pub fn is_multiboot(file: &[u8]) -> bool {
    find_header(file).is_some()
}

/// The header's offset: 4-byte aligned, in the first 8 KiB, its three first words adding up to zero.
fn find_header(file: &[u8]) -> Option<u64> {
    let fields = Fields(&file[..file.len().min(SEARCHED)]);
    let word = |offset| fields.u32("the multiboot header", offset).ok();
    (0..SEARCHED as u64).step_by(4).find(|&offset| {
        word(offset) == Some(HEADER_MAGIC)
            && match (word(offset + 4), word(offset + 8)) {
                (Some(flags), Some(check)) => {
                    HEADER_MAGIC.wrapping_add(flags).wrapping_add(check) == 0
                }
                _ => false,
            }
    })
}

/// A piece of the kernel: bytes of the file, then zeros.
struct Piece<'a> {
    address: u64,
    bytes: &'a [u8],
    /// Length in memory, at least that of `bytes`.
    length: u64,
}

impl Piece<'_> {
    fn end(&self) -> u64 {
        self.address + self.length
    }
}

/// Puts `image` into guest memory and says how its first CPU starts.
///
/// # Errors
/// [`LoadError`]; guest memory may hold parts of the image then.
pub fn load(mem: &GuestMemory, image: &MultibootImage<'_>) -> Result<EntryState, LoadError> {
    let header = find_header(image.kernel).ok_or(LoadError::WrongKind(
        "neither a bzImage nor, without a header in its first 8 KiB, a Multiboot kernel",
    ))?;
    let flags = Fields(image.kernel).u32("the multiboot header", header + 4)?;
    if flags & FLAGS_REQUIRED & !FLAGS_KNOWN != 0 {
        return Err(LoadError::Unsupported(
            "it requires a multiboot feature other than aligned modules and memory information",
        ));
    }
    check_command_line(image.command_line, COMMAND_LINE_LIMIT)?;
    if image.modules.len() > MODULE_LIMIT {
        return Err(LoadError::Unsupported("it is given more than 64 modules"));
    }
    for module in image.modules {
        check_command_line(module.command_line, COMMAND_LINE_LIMIT)?;
    }
    let (pieces, entry) = if flags & FLAG_ADDRESSES != 0 {
        pieces_of_addresses(image.kernel, header)?
    } else {
        pieces_of_elf(image.kernel)?
    };

    let low = mem.low_size();
    let mut end = EXTENDED_START;
    for piece in &pieces {
        if piece.address < LOWEST_ADDRESS {
            return Err(LoadError::Unsupported("it wants to be loaded below 4 KiB"));
        }
        if piece.end() > low {
            return Err(LoadError::NoRoom {
                part: "the kernel",
                need: piece.end(),
                have: low,
            });
        }
        mem.write(piece.address, piece.bytes)?;
        let loaded = piece.bytes.len() as u64;
        mem.fill(piece.address + loaded, piece.length - loaded, 0)?;
        end = end.max(piece.end());
    }

    let mut modules = Vec::with_capacity(image.modules.len());
    for module in image.modules {
        let length = module.bytes.len() as u64;
        let start = align_up(end, 0x1000).unwrap_or(u64::MAX);
        end = start.saturating_add(length);
        if end > low {
            return Err(LoadError::NoRoom {
                part: "a module",
                need: end,
                have: low,
            });
        }
        mem.write(start, module.bytes)?;
        modules.push((start, end, module.command_line));
    }
    let information = write_information(mem, image.command_line, &modules, &pieces, end)?;

    for (index, descriptor) in [
        0,
        0,
        Segment::CODE_32.descriptor(),
        Segment::DATA.descriptor(),
    ]
    .into_iter()
    .enumerate()
    {
        mem.write_u64(GDT + 8 * index as u64, descriptor)?;
    }
    Ok(EntryState {
        rip: entry,
        rsp: 0,
        rflags: 0x2,
        rax: u64::from(LOADER_MAGIC),
        rbx: information,
        rsi: 0,
        cr0: 0x11, // ET, PE
        cr3: 0,
        cr4: 0,
        efer: 0,
        cs: Segment::CODE_32,
        data: Segment::DATA,
        tr: Segment::TASK,
        ldtr: Segment::NO_LDT,
        gdtr: TableRegister {
            base: GDT,
            limit: 31,
        },
        idtr: TableRegister {
            base: 0,
            limit: 0x3FF,
        },
    })
}

/// The kernel as the header's address fields say (3.1.3).
fn pieces_of_addresses(file: &[u8], header: u64) -> Result<(Vec<Piece<'_>>, u64), LoadError> {
    let fields = Fields(file);
    let word = |offset| -> Result<u64, LoadError> {
        Ok(u64::from(
            fields.u32("the multiboot header", header + offset)?,
        ))
    };
    let (header_address, load, load_end, bss_end, entry) =
        (word(12)?, word(16)?, word(20)?, word(24)?, word(28)?);
    let before = header_address
        .checked_sub(load)
        .ok_or(LoadError::Malformed(
            "its multiboot header lies before its load address",
        ))?;
    let start = header.checked_sub(before).ok_or(LoadError::Malformed(
        "its load address lies before the file",
    ))?;
    let length = if load_end == 0 {
        file.len() as u64 - start
    } else {
        load_end.checked_sub(load).ok_or(LoadError::Malformed(
            "its load end lies before its load address",
        ))?
    };
    let bytes = fields.slice("the kernel", start, length)?;
    let length = length.max(bss_end.saturating_sub(load));
    let piece = Piece {
        address: load,
        bytes,
        length,
    };
    Ok((alloc::vec![piece], entry))
}

/// The kernel as its ELF program headers say (ELF specification, 2-2).
fn pieces_of_elf(file: &[u8]) -> Result<(Vec<Piece<'_>>, u64), LoadError> {
    const PART: &str = "the ELF header";
    const PROGRAM_HEADER: &str = "an ELF program header";
    const PT_LOAD: u32 = 1;
    let fields = Fields(file);
    if fields.slice(PART, 0, 4)? != b"\x7FELF" {
        return Err(LoadError::WrongKind(
            "a multiboot kernel without load addresses that is not ELF",
        ));
    }
    // ELFCLASS32, little-endian, executable, for the 80386.
    if fields.slice(PART, 4, 2)? != [1, 1] {
        return Err(LoadError::Unsupported("it is not 32-bit little-endian ELF"));
    }
    if fields.u16(PART, 0x10)? != 2 || fields.u16(PART, 0x12)? != 3 {
        return Err(LoadError::Unsupported(
            "it is not an executable for the 80386",
        ));
    }
    let entry = u64::from(fields.u32(PART, 0x18)?);
    let table = u64::from(fields.u32(PART, 0x1C)?);
    let size = fields.u16(PART, 0x2A)?;
    let count = fields.u16(PART, 0x2C)?;
    if size < 32 {
        return Err(LoadError::Malformed("its program headers are too small"));
    }
    if count > SEGMENT_LIMIT {
        return Err(LoadError::Malformed("it has more than 256 program headers"));
    }
    let mut pieces = Vec::new();
    let mut entry_address = None;
    for index in 0..count {
        let at = table + u64::from(index) * u64::from(size);
        let word = |offset| fields.u32(PROGRAM_HEADER, at + offset).map(u64::from);
        if word(0)? != u64::from(PT_LOAD) {
            continue;
        }
        let (offset, virtual_address, address) = (word(4)?, word(8)?, word(12)?);
        let (in_file, length) = (word(16)?, word(20)?);
        if length == 0 {
            continue;
        }
        if in_file > length {
            return Err(LoadError::Malformed(
                "a segment is longer in the file than in memory",
            ));
        }
        // The entry point is a virtual address; without paging the CPU needs the physical one.
        if (virtual_address..virtual_address + length).contains(&entry) {
            entry_address = Some(entry - virtual_address + address);
        }
        pieces.push(Piece {
            address,
            bytes: fields.slice("a segment of the kernel", offset, in_file)?,
            length,
        });
    }
    if pieces.is_empty() {
        return Err(LoadError::Malformed("it has nothing to load"));
    }
    let entry = entry_address.ok_or(LoadError::Malformed("its entry point is in no segment"))?;
    Ok((pieces, entry))
}

/// Writes the information structure with all it points to (3.3), and gives its address.
fn write_information(
    mem: &GuestMemory,
    command_line: &str,
    modules: &[(u64, u64, &str)],
    pieces: &[Piece<'_>],
    loaded_end: u64,
) -> Result<u64, LoadError> {
    let map = memory_map(mem);
    let text = |text: &str| text.len() as u64 + 1;
    let mut size = INFORMATION_SIZE + 24 * map.len() as u64 + text(NAME) + text(command_line);
    for (_, _, line) in modules {
        size += 16 + text(line);
    }
    // In conventional memory below or above the kernel's own pieces there, else behind the modules.
    let conventional_end = pieces
        .iter()
        .filter(|piece| piece.address < CONVENTIONAL_END)
        .map(Piece::end)
        .fold(INFORMATION_ADDRESS, u64::max);
    let start = match align_up(conventional_end, 16) {
        Some(start) if start + size <= CONVENTIONAL_END => start,
        _ => align_up(loaded_end, 0x1000).unwrap_or(u64::MAX),
    };
    let end = start.saturating_add(size);
    if end > mem.low_size() {
        return Err(LoadError::NoRoom {
            part: "the multiboot information",
            need: end,
            have: mem.low_size(),
        });
    }

    let module_table = start + INFORMATION_SIZE;
    let map_table = module_table + 16 * modules.len() as u64;
    let mut free = map_table + 24 * map.len() as u64;
    let mut put_text = |line: &str| -> Result<u32, LoadError> {
        let address = free;
        write_c_string(mem, address, line)?;
        free += line.len() as u64 + 1;
        Ok(address as u32)
    };
    for (index, (first, last, line)) in modules.iter().enumerate() {
        let at = module_table + 16 * index as u64;
        mem.write_u32(at, *first as u32)?;
        mem.write_u32(at + 4, *last as u32)?;
        mem.write_u32(at + 8, put_text(line)?)?;
        mem.write_u32(at + 12, 0)?;
    }
    for (index, range) in map.iter().enumerate() {
        let at = map_table + 24 * index as u64;
        mem.write_u32(at, 20)?; // of what follows
        mem.write_u64(at + 4, range.start)?;
        mem.write_u64(at + 12, range.length)?;
        mem.write_u32(at + 20, range.kind as u32)?;
    }
    mem.fill(start, INFORMATION_SIZE, 0)?;
    mem.write_u32(start, INFORMATION)?;
    mem.write_u32(start + 4, (CONVENTIONAL_END >> 10) as u32)?;
    mem.write_u32(start + 8, upper_kibibytes(&map))?;
    mem.write_u32(start + 16, put_text(command_line)?)?;
    mem.write_u32(start + 20, modules.len() as u32)?;
    mem.write_u32(start + 24, module_table as u32)?;
    mem.write_u32(start + 44, 24 * map.len() as u32)?;
    mem.write_u32(start + 48, map_table as u32)?;
    mem.write_u32(start + 64, put_text(NAME)?)?;
    Ok(start)
}

/// RAM from 1 MiB to the first hole, in KiB.
fn upper_kibibytes(map: &[Range]) -> u32 {
    map.iter()
        .find(|range| range.start == EXTENDED_START && range.kind == RangeKind::Ram)
        .map_or(0, |range| (range.length >> 10) as u32)
}

#[cfg(test)]
mod tests;
