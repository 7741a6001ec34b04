//! The guest's instruction at its RIP: fetched through its own page tables and decoded. Used where the CPU does not say what the hypervisor has
//! to know: the length of an instruction, and what an access to a device was. `emulate` carries it out.

use crate::cpu::{Registers, System};
use crate::mem::GuestMemory;
use crate::mem::walk::{Intent, WalkError};
use core::fmt;
use iced_x86::{Decoder, DecoderOptions, Instruction};

/// Longest instruction, in bytes.
pub const MAX_LENGTH: usize = 15;
const PAGE: u64 = 4096;

/// Instruction bytes as far as they could be fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    bytes: [u8; MAX_LENGTH],
    length: usize,
}

impl Bytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Reads up to 15 bytes at RIP. Fewer if the page after does not exist.
///
/// # Errors
/// [`WalkError`] if not even the first byte is there.
pub fn fetch(
    memory: &GuestMemory,
    registers: &Registers,
    system: &System,
) -> Result<Bytes, WalkError> {
    let (paging, user) = (system.paging(), system.cpl() == 3);
    let start = linear_rip(registers, system);
    let first = (PAGE - start % PAGE).min(MAX_LENGTH as u64) as usize;
    let mut out = Bytes {
        length: first,
        ..Bytes::default()
    };
    let (here, after) = out.bytes.split_at_mut(first);
    memory.read(paging.translate(memory, start, Intent::Fetch, user)?, here)?;
    if !after.is_empty() {
        let next = paging.translate(
            memory,
            start.wrapping_add(first as u64),
            Intent::Fetch,
            user,
        );
        if next.is_ok_and(|next| memory.read(next, after).is_ok()) {
            out.length = MAX_LENGTH;
        }
    }
    Ok(out)
}

/// Decodes the instruction that `bytes` begin with. None if they are not one (or too short).
pub fn decode(bytes: &Bytes, registers: &Registers, system: &System) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(
        system.code_bits(),
        bytes.as_slice(),
        registers.rip,
        DecoderOptions::NONE,
    );
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// Makes the decoder's tables, which it allocates at first use.
pub fn warm_up() {
    let _ = Decoder::new(64, &[0x90], DecoderOptions::NONE).decode();
}

/// Where the instruction after the current one is, wrapped to the code's width.
pub fn after(registers: &Registers, system: &System, length: usize) -> u64 {
    let next = registers.rip.wrapping_add(length as u64);
    match system.code_bits() {
        64 => next,
        32 => next & 0xFFFF_FFFF,
        _ => next & 0xFFFF,
    }
}

/// Where the instruction after the current one is, which is known to be `opcode` without operands, perhaps with prefixes.
pub fn after_opcode(
    memory: &GuestMemory,
    registers: &Registers,
    system: &System,
    opcode: &[u8],
) -> u64 {
    if begins_with(memory, registers, system, opcode) {
        return after(registers, system, opcode.len());
    }
    let length = fetch(memory, registers, system)
        .ok()
        .and_then(|bytes| decode(&bytes, registers, system))
        .map(|instruction| instruction.len());
    after(registers, system, length.unwrap_or(opcode.len()))
}

/// True if the instruction at RIP begins with these bytes, all in one page: the usual case, found out with less work than by fetching all of it.
fn begins_with(
    memory: &GuestMemory,
    registers: &Registers,
    system: &System,
    opcode: &[u8],
) -> bool {
    let start = linear_rip(registers, system);
    let user = system.cpl() == 3;
    PAGE - start % PAGE >= opcode.len() as u64
        && system
            .paging()
            .translate(memory, start, Intent::Fetch, user)
            .is_ok_and(|first| {
                (first..)
                    .zip(opcode)
                    .all(|(at, byte)| memory.read_u8(at) == Ok(*byte))
            })
}

/// RIP as a linear address.
fn linear_rip(registers: &Registers, system: &System) -> u64 {
    match system.code_bits() {
        64 => registers.rip,
        _ => system.cs.base.wrapping_add(registers.rip) & 0xFFFF_FFFF,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Segment;
    use crate::mem::walk::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA};

    fn real_mode(base: u64) -> System {
        System {
            cs: Segment {
                base,
                limit: 0xFFFF,
                ..Segment::default()
            },
            ..System::default()
        }
    }

    fn at(rip: u64) -> Registers {
        Registers {
            rip,
            ..Registers::default()
        }
    }

    #[test]
    fn prefixes_count() {
        let memory = GuestMemory::allocate(2 << 20).unwrap();
        memory
            .write(0x1000, &[0x0F, 0xA2, 0xF3, 0xF4, 0x66, 0x0F, 0x30])
            .unwrap();
        let next = |rip, opcode: &[u8]| after_opcode(&memory, &at(rip), &real_mode(0), opcode);
        assert_eq!(next(0x1000, &[0x0F, 0xA2]), 0x1002);
        assert_eq!(next(0x1002, &[0xF4]), 0x1004);
        assert_eq!(next(0x1004, &[0x0F, 0x30]), 0x1007);
    }

    #[test]
    fn real_mode_addresses_have_a_base_and_wrap() {
        let memory = GuestMemory::allocate(2 << 20).unwrap();
        memory.write(0x1_FFFF, &[0xF4]).unwrap();
        assert_eq!(
            after_opcode(&memory, &at(0xFFFF), &real_mode(0x1_0000), &[0xF4]),
            0
        );
    }

    #[test]
    fn a_missing_second_page_shortens_the_bytes() {
        let memory = GuestMemory::allocate(2 << 20).unwrap();
        for (place, entry) in [
            (0x1000, 0x2007_u64),
            (0x2000, 0x3007),
            (0x3000, 0x4007),
            (0x4000, 0x8007),
        ] {
            memory.write_u64(place, entry).unwrap();
        }
        memory.write(0x8FFE, &[0x0F, 0xA2]).unwrap();
        let system = System {
            cs: Segment {
                attributes: 1 << 9,
                ..Segment::default()
            },
            cr0: CR0_PE | CR0_PG,
            cr3: 0x1000,
            cr4: CR4_PAE,
            efer: EFER_LMA,
            ..System::default()
        };
        let bytes = fetch(&memory, &at(0xFFE), &system).unwrap();
        assert_eq!(bytes.as_slice(), [0x0F, 0xA2]);
        assert!(fetch(&memory, &at(0x1000), &system).is_err());
    }
}
