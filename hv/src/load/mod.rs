//! Guest loading: puts a kernel and what belongs to it into guest memory and says in which state its first CPU starts.
//!
//! Nothing here trusts a file: every offset and length in it is checked against the file and against guest memory, and a
//! file that is cut short or of another kind gives an error that says so.

use core::fmt;

use crate::mem::{GuestMemory, OutOfGuest};

pub use crate::cpu::Segment;

pub mod bzimage;
pub mod memory_map;
pub mod multiboot;

impl Segment {
    /// Flat code, 64 bits, ring 0, accessed.
    pub const CODE_64: Self = Self::flat(0x10, 0xA9B);
    /// Flat code, 32 bits, ring 0, accessed.
    pub const CODE_32: Self = Self::flat(0x10, 0xC9B);
    /// Flat writable data, ring 0, accessed.
    pub const DATA: Self = Self::flat(0x18, 0xC93);
    /// Busy 64-bit (or 32-bit) task state at 0. The CPU wants one; nothing uses it.
    pub const TASK: Self = Self {
        selector: 0,
        attributes: 0x08B,
        limit: 0x67,
        base: 0,
    };
    /// No local descriptor table: not present.
    pub const NO_LDT: Self = Self {
        selector: 0,
        attributes: 0x002,
        limit: 0,
        base: 0,
    };

    const fn flat(selector: u16, attributes: u16) -> Self {
        Self {
            selector,
            attributes,
            limit: 0xFFFF_FFFF,
            base: 0,
        }
    }

    /// The descriptor that a guest would find in its GDT for this segment (32-bit base).
    pub const fn descriptor(self) -> u64 {
        let granular = self.attributes & 0x800 != 0;
        let limit = if granular {
            self.limit >> 12
        } else {
            self.limit
        } as u64;
        (limit & 0xFFFF)
            | (self.base & 0xFF_FFFF) << 16
            | (self.attributes as u64 & 0xFF) << 40
            | (limit >> 16 & 0xF) << 48
            | (self.attributes as u64 >> 8 & 0xF) << 52
            | (self.base >> 24 & 0xFF) << 56
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// The first CPU's state at the guest's first instruction. What is not here is as after reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// RFLAGS: interrupts off.
    pub rflags: u64,
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RSI.
    pub rsi: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER as the guest sees it (SVME is the back end's business).
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Global descriptor table register.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table register.
    pub idtr: TableRegister,
}

/// Why a guest cannot be loaded. The texts name the file's part and the numbers, so that a person can act on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The file ends before `need` bytes; it has `have`.
    CutShort {
        /// Which part is missing.
        part: &'static str,
        /// Bytes that the file must have for it.
        need: u64,
        /// Bytes that it has.
        have: u64,
    },
    /// The file is not what was asked for; says what is missing.
    WrongKind(&'static str),
    /// The file is of the right kind but asks for something that is not supported.
    Unsupported(&'static str),
    /// A number in the file contradicts another one or the format.
    Malformed(&'static str),
    /// `part` does not fit: it needs guest memory up to `need` bytes, and there are `have`.
    NoRoom {
        /// What does not fit.
        part: &'static str,
        /// Guest-physical end that it would need.
        need: u64,
        /// Guest-physical end of what there is.
        have: u64,
    },
    /// The kernel command line is longer (in bytes) than the kernel takes.
    CommandLineTooLong {
        /// Its length.
        length: usize,
        /// What the kernel takes.
        limit: usize,
    },
    /// The kernel command line holds a zero byte.
    CommandLineHasZero,
    /// A piece would lie outside guest memory.
    OutOfGuest(OutOfGuest),
}

impl From<OutOfGuest> for LoadError {
    fn from(error: OutOfGuest) -> Self {
        Self::OutOfGuest(error)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutShort { part, need, have } => write!(
                f,
                "the guest kernel is cut short: {part} ends at byte {need}, the file has {have}"
            ),
            Self::WrongKind(what) => write!(f, "not a guest kernel of this kind: {what}"),
            Self::Unsupported(what) => write!(f, "the guest kernel is not supported: {what}"),
            Self::Malformed(what) => write!(f, "the guest kernel is damaged: {what}"),
            Self::NoRoom { part, need, have } => write!(
                f,
                "the guest's memory is too small: {part} needs it up to {need:#x}, it ends at {have:#x}"
            ),
            Self::CommandLineTooLong { length, limit } => write!(
                f,
                "the guest's command line has {length} bytes, its kernel takes {limit}"
            ),
            Self::CommandLineHasZero => {
                write!(f, "the guest's command line contains a zero byte")
            }
            Self::OutOfGuest(error) => write!(f, "{error}"),
        }
    }
}

/// Bounds-checked little-endian fields of a file.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn slice(self, part: &'static str, start: u64, length: u64) -> Result<&'a [u8], LoadError> {
        let have = self.0.len() as u64;
        let need = start
            .checked_add(length)
            .ok_or(LoadError::Malformed("a length that wraps around"))?;
        if need > have {
            return Err(LoadError::CutShort { part, need, have });
        }
        // Both are at most `have`, which is a `usize`.
        Ok(&self.0[start as usize..need as usize])
    }

    fn u8(self, part: &'static str, offset: u64) -> Result<u8, LoadError> {
        Ok(self.slice(part, offset, 1)?[0])
    }

    fn u16(self, part: &'static str, offset: u64) -> Result<u16, LoadError> {
        let bytes = self.slice(part, offset, 2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(self, part: &'static str, offset: u64) -> Result<u32, LoadError> {
        let bytes = self.slice(part, offset, 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(self, part: &'static str, offset: u64) -> Result<u64, LoadError> {
        Ok(u64::from(self.u32(part, offset)?) | u64::from(self.u32(part, offset + 4)?) << 32)
    }
}

/// Checks that `command_line` fits into `limit` bytes without its terminating zero.
fn check_command_line(command_line: &str, limit: usize) -> Result<(), LoadError> {
    if command_line.len() > limit {
        return Err(LoadError::CommandLineTooLong {
            length: command_line.len(),
            limit,
        });
    }
    if command_line.bytes().any(|byte| byte == 0) {
        return Err(LoadError::CommandLineHasZero);
    }
    Ok(())
}

/// Writes `text` and a zero byte.
fn write_c_string(mem: &GuestMemory, address: u64, text: &str) -> Result<(), OutOfGuest> {
    mem.write(address, text.as_bytes())?;
    mem.write_u8(address + text.len() as u64, 0)
}

/// Rounds up to a multiple of `alignment` (a power of two); none past the end of the address space.
fn align_up(value: u64, alignment: u64) -> Option<u64> {
    Some(value.checked_add(alignment - 1)? & !(alignment - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_ones_of_the_manuals() {
        assert_eq!(Segment::CODE_64.descriptor(), 0x00AF_9B00_0000_FFFF);
        assert_eq!(Segment::CODE_32.descriptor(), 0x00CF_9B00_0000_FFFF);
        assert_eq!(Segment::DATA.descriptor(), 0x00CF_9300_0000_FFFF);
        let small = Segment {
            selector: 8,
            attributes: 0x08B,
            limit: 0x67,
            base: 0x1234_5678,
        };
        assert_eq!(small.descriptor(), 0x1200_8B34_5678_0067);
    }
}
