//! Operands that begin in one page and end in the next: a device's, RAM's, or one that is not there.

use super::*;

#[test]
fn an_operand_may_cross_a_page() {
    let scratch = GuestMemory::allocate(2 << 20).unwrap();
    let system = paged(&scratch, &[]);
    let cross = |code: &[u8], second: u64| {
        run_with(&system, code, |registers, memory| {
            paged(memory, &[DEVICE, second]);
            registers.set(Gpr::Rbx, 0x20_0FFE);
        })
    };
    let read = cross(&[0x8B, 0x03], DEVICE + 0x1000);
    assert_eq!(read.registers.get(Gpr::Rax), 0xF1F0_0F0E);
    assert_eq!(read.log, "r1@1001 r1@1000 r1@fff r1@ffe ");
    // The second page is RAM elsewhere.
    let write = cross(&[0x89, 0x03], 0x9000);
    assert_eq!(write.log, "w1@ffe=88 w1@fff=77 ");
    assert_eq!(write.memory.read_u16(0x9000), Ok(0x5566));
}

/// Where RAM is that the tests put before or behind the device's page.
const RAM: u64 = 0x9000;

/// The device's page behind a page of RAM, which ends with "wxyz".
const INTO_DEVICE: [u64; 2] = [RAM, DEVICE];
/// And before one, which begins with "0123".
const OUT_OF_DEVICE: [u64; 2] = [DEVICE, RAM];

/// Runs a string instruction with RSI and RDI at these addresses, RCX = 3, and the two pages from 200000h on.
fn string(code: &[u8], pages: &[u64], from: u64, to: u64, backwards: bool) -> Run {
    let scratch = GuestMemory::allocate(2 << 20).unwrap();
    let system = paged(&scratch, &[]);
    run_with(&system, code, |registers, memory| {
        paged(memory, pages);
        memory.write(RAM, b"0123").unwrap();
        memory.write(RAM + 0xFFC, b"wxyz").unwrap();
        registers.set(Gpr::Rcx, 3);
        registers.set(Gpr::Rsi, from);
        registers.set(Gpr::Rdi, to);
        if backwards {
            registers.rflags |= RFLAGS_DF;
        }
    })
}

fn bytes<const COUNT: usize>(run: &Run, at: u64) -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    run.memory.read(at, &mut bytes).unwrap();
    bytes
}

/// The first byte of the second page.
const BORDER: u64 = 0x20_1000;
const STOSD: &[u8] = &[0xAB];
const MOVSD: &[u8] = &[0xA5];
const LODSD: &[u8] = &[0xAD];
const REP_STOSD: &[u8] = &[0xF3, 0xAB];
const REP_MOVSD: &[u8] = &[0xF3, 0xA5];

#[test]
fn a_string_element_may_cross_from_ram_into_a_device() {
    let stos = string(STOSD, &INTO_DEVICE, 0, BORDER - 3, false);
    assert_eq!((stos.log.as_str(), stos.result), ("w1@0=55 ", Ok(CODE + 1)));
    assert_eq!(bytes(&stos, RAM + 0xFFC), *b"w\x88\x77\x66");
    assert_eq!(stos.registers.get(Gpr::Rdi), BORDER + 1);

    let to = string(MOVSD, &INTO_DEVICE, 0x3000, BORDER - 1, false);
    assert_eq!(to.log, "w1@0=31 w1@1=32 w1@2=33 ");
    assert_eq!(bytes(&to, RAM + 0xFFC), *b"wxy0");

    let from = string(MOVSD, &INTO_DEVICE, BORDER - 2, 0x5000, false);
    assert_eq!(from.log, "r1@1 r1@0 ");
    assert_eq!(bytes(&from, 0x5000), *b"yz\xF0\xF1");

    let lods = string(LODSD, &INTO_DEVICE, BORDER - 2, 0, false);
    assert_eq!(lods.registers.get(Gpr::Rax), 0xF1F0_7A79);
}

#[test]
fn a_string_element_may_cross_from_a_device_into_ram() {
    let stos = string(STOSD, &OUT_OF_DEVICE, 0, BORDER - 3, false);
    assert_eq!(stos.log, "w1@ffd=88 w1@ffe=77 w1@fff=66 ");
    assert_eq!(bytes(&stos, RAM), *b"\x55123");

    let to = string(MOVSD, &OUT_OF_DEVICE, 0x3000, BORDER - 1, false);
    assert_eq!(to.log, "w1@fff=30 ");
    assert_eq!(bytes(&to, RAM), *b"1233");

    let from = string(MOVSD, &OUT_OF_DEVICE, BORDER - 2, 0x5000, false);
    assert_eq!(from.log, "r1@fff r1@ffe ");
    assert_eq!(bytes(&from, 0x5000), *b"\x0E\x0F01");

    let lods = string(LODSD, &OUT_OF_DEVICE, BORDER - 2, 0, false);
    assert_eq!(lods.registers.get(Gpr::Rax), 0x3130_0F0E);
}

#[test]
fn repetitions_go_on_across_a_page_in_both_directions() {
    for (backwards, first, last) in [
        (false, BORDER - 6, BORDER + 6),
        (true, BORDER + 2, BORDER - 10),
    ] {
        let into = string(REP_STOSD, &INTO_DEVICE, 0, first, backwards);
        assert_eq!(
            into.log,
            match backwards {
                false => "w1@0=66 w1@1=55 w4@2=55667788 ",
                true => "w4@2=55667788 w1@0=66 w1@1=55 ",
            }
        );
        assert_eq!(bytes(&into, RAM + 0xFFA), *b"\x88\x77\x66\x55\x88\x77");
        assert_eq!(
            (into.registers.get(Gpr::Rdi), into.registers.get(Gpr::Rcx)),
            (last, 0)
        );

        let from = if backwards { 0x3008 } else { 0x3000 };
        let out_of = string(REP_MOVSD, &OUT_OF_DEVICE, from, first, backwards);
        assert_eq!(out_of.device[0xFFA..0x1000], *b"012345");
        assert_eq!(bytes(&out_of, RAM), *b"6789ab");

        let to = if backwards { 0x5008 } else { 0x5000 };
        let read = string(REP_MOVSD, &INTO_DEVICE, first, to, backwards);
        assert_eq!(bytes(&read, 0x5000), *b"\0\0wxyz\xF0\xF1\xF2\xF3\xF4\xF5");
    }
}

#[test]
fn of_an_element_whose_second_page_is_not_there_nothing_is_done() {
    let run = string(REP_STOSD, &[DEVICE], 0, BORDER - 6, false);
    let fault = Event::Exception(PAGE_FAULT, Some(2));
    assert_eq!(run.result, Err(Trouble::Inject(fault, Some(BORDER))));
    assert_eq!(run.log, "w4@ffa=55667788 ");
    assert_eq!(
        (run.registers.get(Gpr::Rdi), run.registers.get(Gpr::Rcx)),
        (BORDER - 2, 2)
    );
}
