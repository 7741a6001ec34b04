//! Where operands may not be, and what may not be written; and bytes that are no instructions at all.

use super::*;
use crate::cpu::STACK_FAULT;

fn fault(run: &Run) -> Option<Event> {
    match run.result {
        Err(Trouble::Inject(event, None)) => Some(event),
        _ => None,
    }
}

#[test]
fn the_other_operand_must_be_canonical() {
    // movsb from the device to an address that is not canonical; the low 48 bits alone would be RAM.
    let run = run_with(&flat(64), &[0xA4], |registers, _| {
        registers.set(Gpr::Rsi, DEVICE);
        registers.set(Gpr::Rdi, 1 << 63 | 0x3000);
    });
    assert_eq!(
        (fault(&run), run.log.as_str()),
        (Some(GENERAL_PROTECTION), "")
    );
    // The last byte counts: movsq to the end of the lower half.
    let run = run_with(&flat(64), &[0x48, 0xA5], |registers, _| {
        registers.set(Gpr::Rsi, DEVICE);
        registers.set(Gpr::Rdi, (1 << 47) - 4);
    });
    assert_eq!(fault(&run), Some(GENERAL_PROTECTION));
    // push [rbx] with a stack that is nowhere.
    let run = run_with(&flat(64), &[0xFF, 0x33], |registers, _| {
        registers.set(Gpr::Rsp, 1 << 62);
    });
    assert_eq!((fault(&run), run.log.as_str()), (Some(STACK_FAULT), ""));
}

#[test]
fn segments_end_at_their_limit() {
    let mut system = flat(32);
    system.es.limit = 0x4FFF;
    // movsd from the device to the last bytes of ES, and one byte further.
    let copy = |to: u64| {
        run_with(&system, &[0xA5], |registers, _| {
            registers.set(Gpr::Rsi, DEVICE);
            registers.set(Gpr::Rdi, to);
        })
    };
    assert_eq!(copy(0x4FFC).result, Ok(CODE + 1));
    assert_eq!(fault(&copy(0x4FFD)), Some(GENERAL_PROTECTION));
    // A stack that expands down begins above its limit.
    let mut system = flat(32);
    system.ss.attributes = 0x97 | 1 << 10;
    system.ss.limit = 0x7FFB;
    assert_eq!(
        run_with(&system, &[0xFF, 0x33], |_, _| ()).result,
        Ok(CODE + 2)
    );
    system.ss.limit = 0x7FFC;
    assert_eq!(
        fault(&run_with(&system, &[0xFF, 0x33], |_, _| ())),
        Some(STACK_FAULT)
    );
    // A word at the end of a real-mode segment: lodsw.
    let run = run_with(&real_mode(), &[0xAD], |registers, _| {
        registers.set(Gpr::Rsi, 0xFFFF);
    });
    assert_eq!(fault(&run), Some(GENERAL_PROTECTION));
}

#[test]
fn the_task_priority_is_the_kernels_and_four_bits() {
    let write = |system: &System, value: u64| {
        run_with(system, &[0x44, 0x0F, 0x22, 0xC1], |registers, _| {
            registers.set(Gpr::Rcx, value);
        })
    };
    let wide = write(&flat(64), 0x10);
    assert_eq!((fault(&wide), wide.priority), (Some(GENERAL_PROTECTION), 5));
    let mut user = flat(64);
    user.ss.set_dpl(3);
    let user = write(&user, 1);
    assert_eq!((fault(&user), user.priority), (Some(GENERAL_PROTECTION), 5));
}

/// Any bytes at all: an answer, never a panic.
#[test]
fn random_bytes_are_survived() {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for bits in [16, 32, 64] {
        let system = if bits == 16 { real_mode() } else { flat(bits) };
        let memory = GuestMemory::allocate(2 << 20).unwrap();
        for _ in 0..20_000 {
            let code: Vec<u8> = (0..2).flat_map(|_| next().to_le_bytes()).collect();
            memory.write(CODE, &code).unwrap();
            let mut registers = Registers {
                rip: CODE,
                rflags: next() & 0xCD7 | 2,
                ..Registers::default()
            };
            registers
                .gpr
                .iter_mut()
                .for_each(|register| *register = next() >> (next() % 64));
            let _ = step(&memory, &mut registers, &system, &mut Nothing);
        }
    }
}

struct Nothing;

impl Bus for Nothing {
    fn read(&mut self, _: u64, width: u8) -> u64 {
        alu::mask(width)
    }
    fn write(&mut self, _: u64, _: u8, _: u64) {}
    fn port_read(&mut self, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&mut self, _: u16, _: u8, _: u32) {}
    fn task_priority(&mut self) -> u64 {
        0
    }
    fn set_task_priority(&mut self, _: u64) {}
    fn xmm(&mut self, index: usize) -> u128 {
        [0; 16][index]
    }
    fn set_xmm(&mut self, _: usize, _: u128) {}
}
