//! Encodings, each against what the CPU does: registers, flags, and the accesses that a device sees.

use super::string::REPEAT_LIMIT;
use super::*;
use crate::cpu::alu::ARITHMETIC;
use crate::cpu::fpu::CR4_OSFXSR;
use crate::cpu::{Gpr, RFLAGS_DF, Segment};
use crate::mem::walk::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

mod arithmetic;
mod bounds;
mod control;
mod pages;
mod sse;

/// RAM below 2 MiB, a device above: it holds bytes and writes down every access.
struct Board<'a> {
    memory: &'a GuestMemory,
    device: [u8; 8192],
    log: String,
    priority: u64,
    xmm: [u128; 16],
}

const DEVICE: u64 = 0xFEB0_0000;

impl Bus for Board<'_> {
    fn read(&mut self, address: u64, width: u8) -> u64 {
        let mut bytes = [0; 8];
        let part = &mut bytes[..width as usize];
        if self.memory.read(address, part).is_ok() {
            return u64::from_le_bytes(bytes);
        }
        let offset = (address - DEVICE) as usize;
        part.copy_from_slice(&self.device[offset..offset + width as usize]);
        write!(self.log, "r{width}@{offset:x} ").unwrap();
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, address: u64, width: u8, value: u64) {
        if self
            .memory
            .write(address, &value.to_le_bytes()[..width as usize])
            .is_ok()
        {
            return;
        }
        let offset = (address - DEVICE) as usize;
        self.device[offset..offset + width as usize]
            .copy_from_slice(&value.to_le_bytes()[..width as usize]);
        write!(self.log, "w{width}@{offset:x}={value:x} ").unwrap();
    }

    fn port_read(&mut self, port: u16, width: u8) -> u32 {
        write!(self.log, "in{width}@{port:x} ").unwrap();
        0x1234_5678 & alu::mask(width) as u32
    }

    fn port_write(&mut self, port: u16, width: u8, value: u32) {
        write!(self.log, "out{width}@{port:x}={value:x} ").unwrap();
    }

    fn task_priority(&mut self) -> u64 {
        self.priority
    }

    fn set_task_priority(&mut self, value: u64) {
        self.priority = value;
    }

    fn xmm(&mut self, index: usize) -> u128 {
        self.xmm[index]
    }

    fn set_xmm(&mut self, index: usize, value: u128) {
        self.xmm[index] = value;
    }
}

/// 64-bit code without paging would not exist; with CR0.PG clear the walker gives linear addresses back, which is all that is wanted.
fn flat(bits: u32) -> System {
    let segment = Segment {
        attributes: if bits == 64 { 1 << 9 } else { 1 << 10 },
        limit: u32::MAX,
        ..Segment::default()
    };
    let data = Segment {
        attributes: 1 << 10,
        ..segment
    };
    System {
        cs: segment,
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        cr0: CR0_PE,
        cr4: CR4_OSFXSR,
        efer: if bits == 64 { EFER_LMA } else { 0 },
        ..System::default()
    }
}

/// 64 KiB segments at 0.
fn real_mode() -> System {
    let segment = Segment {
        attributes: 0x93,
        limit: 0xFFFF,
        ..Segment::default()
    };
    System {
        cs: segment,
        ss: segment,
        ds: segment,
        es: segment,
        fs: segment,
        gs: segment,
        ..System::default()
    }
}

const CODE: u64 = 0x1000;

struct Run {
    registers: Registers,
    log: String,
    device: [u8; 8192],
    memory: GuestMemory,
    result: Result<u64, Trouble>,
    priority: u64,
    xmm: [u128; 16],
}

/// What XMM0 has; each next register has one more in its lowest byte.
const XMM0: u128 = 0x0F0E_0D0C_0B0A_0908_0706_0504_0302_0100;

/// Runs one instruction with RBX = RDI = device, RSI = RAM at 3000h, RAX = 1122334455667788h, RCX as given.
fn run_with(
    system: &System,
    code: &[u8],
    change: impl FnOnce(&mut Registers, &GuestMemory),
) -> Run {
    let memory = GuestMemory::allocate(2 << 20).unwrap();
    memory.write(CODE, code).unwrap();
    memory.write(0x3000, b"0123456789abcdef").unwrap();
    let mut registers = Registers {
        rip: CODE,
        rflags: 2,
        ..Registers::default()
    };
    registers.set(Gpr::Rax, 0x1122_3344_5566_7788);
    registers.set(Gpr::Rbx, DEVICE);
    registers.set(Gpr::Rdi, DEVICE);
    registers.set(Gpr::Rsi, 0x3000);
    registers.set(Gpr::Rsp, 0x8000);
    registers.set(Gpr::Rdx, 0x3F8);
    change(&mut registers, &memory);
    let mut device = [0; 8192];
    for (index, byte) in device.iter_mut().enumerate() {
        *byte = 0xF0 ^ index as u8;
    }
    let mut board = Board {
        memory: &memory,
        device,
        log: String::new(),
        priority: 5,
        xmm: core::array::from_fn(|index| XMM0 + index as u128),
    };
    let result = step(&memory, &mut registers, system, &mut board);
    let Board {
        device,
        log,
        priority,
        xmm,
        ..
    } = board;
    Run {
        registers,
        log,
        device,
        memory,
        result,
        priority,
        xmm,
    }
}

fn run(bits: u32, code: &[u8]) -> Run {
    let run = run_with(&flat(bits), code, |_, _| ());
    assert_eq!(
        run.result,
        Ok(CODE + code.len() as u64),
        "{code:02x?}: length"
    );
    run
}

/// The device reads F0 F1 F2 F3 F4 F5 F6 F7 from its start.
#[test]
fn moves() {
    let rax = |code: &[u8]| run(64, code).registers.get(Gpr::Rax);
    assert_eq!(
        rax(&[0x8B, 0x03]),
        0xF3F2_F1F0,
        "mov eax,[rbx]: zero-extends"
    );
    assert_eq!(
        rax(&[0x48, 0x8B, 0x03]),
        0xF7F6_F5F4_F3F2_F1F0,
        "mov rax,[rbx]"
    );
    assert_eq!(
        rax(&[0x66, 0x8B, 0x43, 0x02]),
        0x1122_3344_5566_F3F2,
        "mov ax,[rbx+2]"
    );
    assert_eq!(rax(&[0x8A, 0x03]), 0x1122_3344_5566_77F0, "mov al,[rbx]");
    assert_eq!(
        rax(&[0x8A, 0x63, 0x01]),
        0x1122_3344_5566_F188,
        "mov ah,[rbx+1]"
    );
    assert_eq!(rax(&[0x0F, 0xB6, 0x03]), 0xF0, "movzx eax,byte [rbx]");
    assert_eq!(rax(&[0x0F, 0xB7, 0x03]), 0xF1F0, "movzx eax,word [rbx]");
    assert_eq!(
        rax(&[0x0F, 0xBE, 0x03]),
        0xFFFF_FFF0,
        "movsx eax,byte [rbx]"
    );
    assert_eq!(
        rax(&[0x48, 0x0F, 0xBF, 0x03]),
        0xFFFF_FFFF_FFFF_F1F0,
        "movsx rax,word [rbx]"
    );
    assert_eq!(
        rax(&[0x48, 0x63, 0x03]),
        0xFFFF_FFFF_F3F2_F1F0,
        "movsxd rax,[rbx]"
    );
    assert_eq!(
        rax(&[0x0F, 0x38, 0xF0, 0x03]),
        0xF0F1_F2F3,
        "movbe eax,[rbx]"
    );
    assert_eq!(
        rax(&[0xA1, 0x04, 0, 0xB0, 0xFE, 0, 0, 0, 0]),
        0xF7F6_F5F4,
        "mov eax,moffs"
    );
    assert_eq!(
        run(32, &[0xA1, 0x04, 0, 0xB0, 0xFE])
            .registers
            .get(Gpr::Rax),
        0xF7F6_F5F4,
        "mov eax,moffs32"
    );

    for (code, log) in [
        (&[0x89, 0x03][..], "w4@0=55667788 "),
        (&[0x48, 0x89, 0x43, 0x10], "w8@10=1122334455667788 "),
        (&[0x66, 0x89, 0x03], "w2@0=7788 "),
        (&[0x88, 0x23], "w1@0=77 "),
        (&[0xC7, 0x03, 0xEF, 0xBE, 0xAD, 0xDE], "w4@0=deadbeef "),
        (
            &[0x48, 0xC7, 0x03, 0xFE, 0xFF, 0xFF, 0xFF],
            "w8@0=fffffffffffffffe ",
        ),
        (&[0xC6, 0x43, 0x05, 0x80], "w1@5=80 "),
        (&[0x0F, 0xC3, 0x03], "w4@0=55667788 "),
        (&[0x66, 0x0F, 0x38, 0xF1, 0x03], "w2@0=8877 "),
    ] {
        assert_eq!(run(64, code).log, log, "{code:02x?}");
    }
}

#[test]
fn arithmetic_on_device_registers() {
    for (code, log) in [
        (&[0x81, 0x23, 0xFF, 0, 0xFF, 0][..], "r4@0 w4@0=f200f0 "),
        (&[0x83, 0x0B, 0x0F], "r4@0 w4@0=f3f2f1ff "),
        (&[0x31, 0x03], "r4@0 w4@0=a6948678 "),
        (&[0x80, 0x03, 0x20], "r1@0 w1@0=10 "),
        (&[0x29, 0x03], "r4@0 w4@0=9e8c7a68 "),
        (&[0xFF, 0x03], "r4@0 w4@0=f3f2f1f1 "),
        (&[0x66, 0xFF, 0x0B], "r2@0 w2@0=f1ef "),
        (&[0xF7, 0x13], "r4@0 w4@0=c0d0e0f "),
        (&[0xF6, 0x1B], "r1@0 w1@0=10 "),
        (&[0xC1, 0x23, 0x04], "r4@0 w4@0=3f2f1f00 "),
        (&[0xD1, 0x2B], "r4@0 w4@0=79f978f8 "),
        (&[0x87, 0x03], "r4@0 w4@0=55667788 "),
        (&[0xF0, 0x0F, 0xC1, 0x03], "r4@0 w4@0=49596978 "),
        (&[0x0F, 0xBA, 0x33, 0x07], "r4@0 w4@0=f3f2f170 "),
        (&[0x0F, 0x94, 0x03], "w1@0=0 "),
        (&[0x3B, 0x03], "r4@0 "),
        (&[0xF7, 0x03, 0, 0, 0, 0x80], "r4@0 "),
        (&[0xF6, 0x03, 0x0F], "r1@0 "),
        (&[0x38, 0x03], "r1@0 "),
    ] {
        assert_eq!(run(64, code).log, log, "{code:02x?}");
    }
}

#[test]
fn bit_strings_reach_beyond_their_operand() {
    // bts [rbx],ecx with ECX = 100: dword 3, bit 4.
    let far = run_with(&flat(64), &[0x0F, 0xAB, 0x0B], |registers, _| {
        registers.set(Gpr::Rcx, 100)
    });
    assert_eq!(far.log, "r4@c w4@c=fffefdfc ");
    let back = run_with(
        &flat(64),
        &[0x48, 0x0F, 0xA3, 0x4B, 0x10],
        |registers, _| {
            registers.set(Gpr::Rcx, 0_u64.wrapping_sub(1));
        },
    );
    assert_eq!(
        (back.log.as_str(), back.registers.rflags & CF),
        ("r8@8 ", CF)
    );
}

#[test]
fn conditions() {
    let cmov = |flags| {
        let run = run_with(&flat(64), &[0x0F, 0x44, 0x03], |registers, _| {
            registers.rflags |= flags
        });
        run.registers.get(Gpr::Rax)
    };
    assert_eq!(cmov(ZF), 0xF3F2_F1F0);
    assert_eq!(
        cmov(0),
        0x5566_7788,
        "the upper half is cleared all the same"
    );
    let setl = run_with(&flat(64), &[0x0F, 0x9C, 0x03], |registers, _| {
        registers.rflags |= alu::SF
    });
    assert_eq!(setl.log, "w1@0=1 ");
}

#[test]
fn string_stores_and_moves() {
    let rep = |code: &[u8], count| {
        run_with(&flat(64), code, |registers, _| {
            registers.set(Gpr::Rcx, count)
        })
    };
    let stos = rep(&[0xF3, 0xAB], 3);
    assert_eq!(stos.log, "w4@0=55667788 w4@4=55667788 w4@8=55667788 ");
    assert_eq!(
        (stos.registers.get(Gpr::Rdi), stos.registers.get(Gpr::Rcx)),
        (DEVICE + 12, 0)
    );
    assert_eq!(stos.result, Ok(CODE + 2));
    let movs = rep(&[0xF3, 0xA4], 4);
    assert_eq!(&movs.device[..4], b"0123");
    assert_eq!(movs.registers.get(Gpr::Rsi), 0x3004);
    let none = rep(&[0xF3, 0x48, 0xA5], 0);
    assert_eq!((none.log.as_str(), none.result), ("", Ok(CODE + 3)));
    // Down, from the device to RAM.
    let down = run_with(&flat(64), &[0xF3, 0xA5], |registers, _| {
        registers.rflags |= RFLAGS_DF;
        registers.set(Gpr::Rcx, 2);
        registers.set(Gpr::Rsi, DEVICE + 4);
        registers.set(Gpr::Rdi, 0x3004);
    });
    assert_eq!(down.log, "r4@4 r4@0 ");
    assert_eq!(down.memory.read_u64(0x3000), Ok(0xF7F6_F5F4_F3F2_F1F0));
    assert_eq!(
        (down.registers.get(Gpr::Rsi), down.registers.get(Gpr::Rdi)),
        (DEVICE - 4, 0x2FFC)
    );
}

#[test]
fn long_repetitions_are_done_in_pieces() {
    let run = run_with(&flat(64), &[0xF3, 0xAA], |registers, _| {
        registers.set(Gpr::Rcx, 3000)
    });
    assert_eq!(
        run.result,
        Ok(CODE),
        "not through: the same instruction again"
    );
    assert_eq!(run.registers.get(Gpr::Rcx), 3000 - u64::from(REPEAT_LIMIT));
    assert_eq!(
        run.registers.get(Gpr::Rdi),
        DEVICE + u64::from(REPEAT_LIMIT)
    );
}

#[test]
fn string_comparisons_stop_where_they_should() {
    // repne scasb for F3h: found at the fourth byte.
    let scan = run_with(&flat(64), &[0xF2, 0xAE], |registers, _| {
        registers.set(Gpr::Rcx, 100);
        registers.set(Gpr::Rax, 0xF3);
    });
    assert_eq!(
        (scan.registers.get(Gpr::Rcx), scan.registers.get(Gpr::Rdi)),
        (96, DEVICE + 4)
    );
    assert_eq!(
        (scan.registers.rflags & ZF, scan.result),
        (ZF, Ok(CODE + 2))
    );
    // repe cmpsb: RAM against the device differs in the first byte.
    let compare = run_with(&flat(64), &[0xF3, 0xA6], |registers, _| {
        registers.set(Gpr::Rcx, 100)
    });
    assert_eq!(
        (
            compare.registers.get(Gpr::Rcx),
            compare.registers.rflags & ZF
        ),
        (99, 0)
    );
    let lods = run_with(&flat(64), &[0xAD], |registers, _| {
        registers.set(Gpr::Rsi, DEVICE)
    });
    assert_eq!(lods.registers.get(Gpr::Rax), 0xF3F2_F1F0);
}

#[test]
fn port_strings() {
    let outs = run_with(&flat(64), &[0xF3, 0x6E], |registers, _| {
        registers.set(Gpr::Rcx, 3)
    });
    assert_eq!(outs.log, "out1@3f8=30 out1@3f8=31 out1@3f8=32 ");
    assert_eq!(outs.registers.get(Gpr::Rsi), 0x3003);
    let ins = run_with(&flat(32), &[0xF3, 0x6D], |registers, _| {
        registers.set(Gpr::Rcx, 2);
        registers.set(Gpr::Rdi, 0x5000);
    });
    assert_eq!(ins.memory.read_u64(0x5000), Ok(0x1234_5678_1234_5678));
    // gs outsb with 16-bit addresses, in real mode.
    let system = System {
        gs: Segment {
            base: 0x2FF0,
            ..real_mode().gs
        },
        ..real_mode()
    };
    let real = run_with(&system, &[0x65, 0x6E], |registers, _| {
        registers.set(Gpr::Rsi, 0xFFFF_0010)
    });
    assert_eq!(
        (real.log.as_str(), real.registers.get(Gpr::Rsi)),
        ("out1@3f8=30 ", 0xFFFF_0011)
    );
}

/// Long mode with the pages at 0 and 200000h (the device) mapped in 4 KiB pages.
fn paged(memory: &GuestMemory, device_pages: &[u64]) -> System {
    for (place, entry) in [
        (0x1_0000, 0x1_1007_u64),
        (0x1_1000, 0x1_2007),
        (0x1_2000, 0x87),
        (0x1_2008, 0x1_3007),
    ] {
        memory.write_u64(place, entry).unwrap();
    }
    for (index, page) in device_pages.iter().enumerate() {
        memory
            .write_u64(0x1_3000 + 8 * index as u64, page | 3)
            .unwrap();
    }
    System {
        cr0: CR0_PE | CR0_PG,
        cr3: 0x1_0000,
        cr4: CR4_PAE | CR4_OSFXSR,
        ..flat(64)
    }
}

#[test]
fn faults_come_before_any_effect() {
    let scratch = GuestMemory::allocate(2 << 20).unwrap();
    let system = paged(&scratch, &[]);
    // movsb from the device to a page that is not there.
    let run = run_with(&system, &[0xA4], |registers, memory| {
        paged(memory, &[DEVICE]);
        registers.set(Gpr::Rsi, 0x20_0000);
        registers.set(Gpr::Rdi, 0x20_1234);
    });
    let fault = Event::Exception(PAGE_FAULT, Some(2));
    assert_eq!(
        (run.result, run.log.as_str()),
        (Err(Trouble::Inject(fault, Some(0x20_1234))), "")
    );
    assert_eq!(run.registers.get(Gpr::Rsi), 0x20_0000);
}

#[test]
fn what_is_not_known_stops_with_its_bytes() {
    // fld dword [rbx]; movq mm0,[rbx]; addps xmm0,[rbx]; vmovups xmm0,[rbx]; vmovdqu [rbx],ymm0; jmp far [rbx]; garbage.
    for code in [
        &[0xD9, 0x03][..],
        &[0x0F, 0x6F, 0x03],
        &[0x0F, 0x58, 0x03],
        &[0xC5, 0xF8, 0x10, 0x03],
        &[0xC5, 0xFE, 0x7F, 0x03],
        &[0xFF, 0x2B],
        &[0x0F, 0x0B],
        &[0x06],
    ] {
        let Err(Trouble::Unsupported(bytes)) = run_with(&flat(64), code, |_, _| ()).result else {
            panic!("{code:02x?} was carried out");
        };
        assert!(bytes.as_slice().starts_with(code));
    }
    let lost = run_with(&flat(64), &[], |registers, _| registers.rip = DEVICE);
    assert_eq!(lost.result, Err(Trouble::NoCode));
}
