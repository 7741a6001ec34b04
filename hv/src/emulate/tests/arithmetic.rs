//! Flags, products, quotients, scans and exchanges, with a device as an operand.

use super::*;
use crate::cpu::DIVIDE_ERROR;
use crate::cpu::alu::{OF, PF, SF};

#[test]
fn flags_follow() {
    let flags = |code: &[u8]| run(64, code).registers.rflags & ARITHMETIC;
    assert_eq!(
        flags(&[0xF6, 0x03, 0x0F]),
        ZF | alu::PF,
        "test byte [rbx],0f"
    );
    assert_eq!(
        flags(&[0xF7, 0x03, 0, 0, 0, 0x80]),
        alu::SF | alu::PF,
        "test dword [rbx],80000000h"
    );
    assert_eq!(
        flags(&[0x81, 0x3B, 0xF0, 0xF1, 0xF2, 0xF3]),
        ZF | alu::PF,
        "cmp dword [rbx],same"
    );
    assert_eq!(flags(&[0x3B, 0x03]) & (CF | ZF), CF, "cmp eax,[rbx]: below");
    assert_eq!(
        flags(&[0x0F, 0xBA, 0x23, 0x04]) & CF,
        CF,
        "bt dword [rbx],4"
    );
    assert_eq!(flags(&[0x0F, 0xBA, 0x23, 0x00]) & CF, 0, "bt dword [rbx],0");
    let inc = run_with(&flat(64), &[0xFE, 0x03], |registers, _| {
        registers.rflags |= CF
    });
    assert_ne!(inc.registers.rflags & CF, 0, "INC leaves CF");
}

#[test]
fn exchanges() {
    let xchg = run(64, &[0x87, 0x03]);
    assert_eq!(xchg.registers.get(Gpr::Rax), 0xF3F2_F1F0);
    // cmpxchg [rbx],ecx
    let fails = run(64, &[0xF0, 0x0F, 0xB1, 0x0B]);
    assert_eq!(
        (fails.registers.get(Gpr::Rax), fails.registers.rflags & ZF),
        (0xF3F2_F1F0, 0)
    );
    let holds = run_with(&flat(64), &[0xF0, 0x0F, 0xB1, 0x0B], |registers, _| {
        registers.set(Gpr::Rax, 0xF3F2_F1F0);
        registers.set(Gpr::Rcx, 0x42);
    });
    assert_eq!(
        (holds.log.as_str(), holds.registers.rflags & ZF),
        ("r4@0 w4@0=42 ", ZF)
    );
}

#[test]
fn exchanges_of_pairs() {
    // cmpxchg8b [rbx]; RBX is the address and the low half of what is written.
    let fails = run(64, &[0xF0, 0x0F, 0xC7, 0x0B]);
    assert_eq!(fails.log, "r8@0 w8@0=f7f6f5f4f3f2f1f0 ");
    assert_eq!(
        (
            fails.registers.get(Gpr::Rdx),
            fails.registers.get(Gpr::Rax),
            fails.registers.rflags & ARITHMETIC
        ),
        (0xF7F6_F5F4, 0xF3F2_F1F0, 0)
    );
    let holds = run_with(&flat(64), &[0xF0, 0x0F, 0xC7, 0x0B], |registers, _| {
        registers.rflags |= CF;
        registers.set(Gpr::Rdx, 0x9_F7F6_F5F4);
        registers.set(Gpr::Rax, 0x9_F3F2_F1F0);
        registers.set(Gpr::Rcx, 0x42);
    });
    assert_eq!(holds.log, "r8@0 w8@0=42feb00000 ");
    assert_eq!(
        (
            holds.registers.get(Gpr::Rax),
            holds.registers.rflags & ARITHMETIC
        ),
        (0x9_F3F2_F1F0, ZF | CF)
    );
    // cmpxchg16b [rdi+10h]: two accesses of eight bytes each way.
    let wide = |rdi: u64| {
        run_with(
            &flat(64),
            &[0xF0, 0x48, 0x0F, 0xC7, 0x4F, 0x10],
            |registers, _| {
                registers.set(Gpr::Rdi, rdi);
                registers.set(Gpr::Rax, 0xE7E6_E5E4_E3E2_E1E0);
                registers.set(Gpr::Rdx, 0xEFEE_EDEC_EBEA_E9E8);
                registers.set(Gpr::Rbx, 0x1);
                registers.set(Gpr::Rcx, 0x2);
            },
        )
    };
    let holds = wide(DEVICE);
    assert_eq!(holds.log, "r8@10 r8@18 w8@10=1 w8@18=2 ");
    assert_eq!(holds.registers.rflags & ZF, ZF);
    let fails = wide(DEVICE + 0x10);
    assert_eq!(fails.registers.rflags & ZF, 0);
    assert_eq!(fails.registers.get(Gpr::Rax), 0xD7D6_D5D4_D3D2_D1D0);
    assert_eq!(fails.registers.get(Gpr::Rdx), 0xDFDE_DDDC_DBDA_D9D8);
    let crooked = wide(DEVICE + 8);
    assert_eq!(
        (crooked.result, crooked.log.as_str()),
        (Err(Trouble::Inject(GENERAL_PROTECTION, None)), "")
    );
}

#[test]
fn carries_come_in_and_go_out() {
    let with_carry = |code: &[u8]| {
        run_with(&flat(64), code, |registers, _| {
            registers.rflags |= CF | OF;
        })
    };
    for (code, log, flags) in [
        // adc dword [rbx],-1 and sbb dword [rbx],0.
        (&[0x83, 0x13, 0xFF][..], "r4@0 w4@0=f3f2f1f0 ", CF),
        (&[0x83, 0x1B, 0x00], "r4@0 w4@0=f3f2f1ef ", 0),
        // rcl dword [rbx],1 and rcr byte [rbx],1.
        (&[0xD1, 0x13], "r4@0 w4@0=e7e5e3e1 ", CF),
        (&[0xD0, 0x1B], "r1@0 w1@0=f8 ", 0),
    ] {
        let run = with_carry(code);
        assert_eq!(run.log, log, "{code:02x?}");
        assert_eq!(run.registers.rflags & (CF | OF), flags, "{code:02x?}");
    }
    // adcx eax,[rbx] and adox rax,[rbx] leave the other flags.
    let adcx = with_carry(&[0x66, 0x0F, 0x38, 0xF6, 0x03]);
    assert_eq!(
        (
            adcx.registers.get(Gpr::Rax),
            adcx.registers.rflags & ARITHMETIC
        ),
        (0x4959_6979, CF | OF)
    );
    let adox = with_carry(&[0xF3, 0x48, 0x0F, 0x38, 0xF6, 0x03]);
    assert_eq!(
        (
            adox.registers.get(Gpr::Rax),
            adox.registers.rflags & ARITHMETIC
        ),
        (0x0919_2939_4959_6979, CF | OF)
    );
}

#[test]
fn double_shifts() {
    let by = |code: &[u8]| run_with(&flat(64), code, |registers, _| registers.set(Gpr::Rcx, 8));
    // shld dword [rbx],eax,4; shrd dword [rbx],eax,4; shld qword [rbx],rax,cl; shrd word [rbx],ax,cl.
    for (code, log) in [
        (&[0x0F, 0xA4, 0x03, 0x04][..], "r4@0 w4@0=3f2f1f05 "),
        (&[0x0F, 0xAC, 0x03, 0x04], "r4@0 w4@0=8f3f2f1f "),
        (&[0x48, 0x0F, 0xA5, 0x03], "r8@0 w8@0=f6f5f4f3f2f1f011 "),
        (&[0x66, 0x0F, 0xAD, 0x03], "r2@0 w2@0=88f1 "),
    ] {
        assert_eq!(by(code).log, log, "{code:02x?}");
    }
    assert_eq!(
        by(&[0x0F, 0xA4, 0x03, 0x04]).registers.rflags & (CF | SF | ZF | PF),
        CF | PF
    );
}

#[test]
fn products() {
    let values = |code: &[u8]| {
        let run = run(64, code);
        let Run { registers, .. } = run;
        (
            registers.get(Gpr::Rdx),
            registers.get(Gpr::Rax),
            registers.rflags & (CF | OF),
        )
    };
    let both = CF | OF;
    // mul byte, mul dword, mul qword, imul byte, imul dword [rbx].
    assert_eq!(values(&[0xF6, 0x23]), (0x3F8, 0x1122_3344_5566_7F80, both));
    assert_eq!(
        values(&[0xF7, 0x23]),
        (
            (0x5566_7788 * 0xF3F2_F1F0) >> 32,
            (0x5566_7788_u64 * 0xF3F2_F1F0) & 0xFFFF_FFFF,
            both
        )
    );
    let wide = 0x1122_3344_5566_7788_u128 * 0xF7F6_F5F4_F3F2_F1F0;
    assert_eq!(
        values(&[0x48, 0xF7, 0x23]),
        ((wide >> 64) as u64, wide as u64, both)
    );
    // -120 * -16
    assert_eq!(values(&[0xF6, 0x2B]), (0x3F8, 0x1122_3344_5566_0780, both));
    let wide = i64::from(0x5566_7788_i32) * i64::from(0xF3F2_F1F0_u32 as i32);
    assert_eq!(
        values(&[0xF7, 0x2B]),
        (wide as u64 >> 32, wide as u64 & 0xFFFF_FFFF, both)
    );
    // imul eax,[rbx]; imul eax,[rbx],-1; imul ax,[rbx],2: the last two fit.
    assert_eq!(values(&[0x0F, 0xAF, 0x03]).1, wide as u64 & 0xFFFF_FFFF);
    assert_eq!(values(&[0x6B, 0x03, 0xFF]), (0x3F8, 0x0C0D_0E10, 0));
    assert_eq!(
        values(&[0x66, 0x6B, 0x03, 0x02]),
        (0x3F8, 0x1122_3344_5566_E3E0, 0)
    );
}

#[test]
fn quotients() {
    let divide = |code: &[u8], rdx: u64, rax: u64| {
        run_with(&flat(64), code, |registers, _| {
            registers.rflags |= CF | ZF;
            registers.set(Gpr::Rdx, rdx);
            registers.set(Gpr::Rax, rax);
        })
    };
    let values = |run: &Run| {
        assert!(run.result.is_ok());
        assert_eq!(run.registers.rflags & ARITHMETIC, CF | ZF);
        (run.registers.get(Gpr::Rdx), run.registers.get(Gpr::Rax))
    };
    // div byte, div dword, div qword [rbx], with 1 and a remainder of 5.
    assert_eq!(values(&divide(&[0xF6, 0x33], 9, 0xF5)), (9, 0x501));
    assert_eq!(values(&divide(&[0xF7, 0x33], 0, 0xF3F2_F1F5)), (5, 1));
    let dividend = 0xF7F6_F5F4_F3F2_F1F0_u128 * 0x1_0000 + 7;
    assert_eq!(
        values(&divide(
            &[0x48, 0xF7, 0x33],
            (dividend >> 64) as u64,
            dividend as u64
        )),
        (7, 0x1_0000)
    );
    // idiv word [rbx] = -3600 (F1F0h): -7205 / -3600 = 2, -5 remains.
    let signed = divide(
        &[0x66, 0xF7, 0x3B],
        0xFFFF,
        0_u64.wrapping_sub(7205) & 0xFFFF,
    );
    assert_eq!(values(&signed), (0xFFFB, 2));
    // Too big, and by zero: #DE, and the registers are as they were.
    for run in [
        divide(&[0xF7, 0x33], 0xF3F2_F1F0, 0),
        // div byte [rbx+0F0h] reads F0h ^ F0h = 0.
        divide(&[0xF6, 0xB3, 0xF0, 0, 0, 0], 0xF3F2_F1F0, 0),
        divide(&[0xF6, 0xBB, 0xF0, 0, 0, 0], 0xF3F2_F1F0, 0),
    ] {
        assert_eq!(run.result, Err(Trouble::Inject(DIVIDE_ERROR, None)));
        assert_eq!(
            (run.registers.get(Gpr::Rdx), run.registers.get(Gpr::Rax)),
            (0xF3F2_F1F0, 0)
        );
    }
}

#[test]
fn bits_are_found_and_counted() {
    let values = |code: &[u8]| {
        let run = run(64, code);
        (
            run.registers.get(Gpr::Rax),
            run.registers.rflags & (CF | ZF),
        )
    };
    // bsf eax, bsr rax, popcnt ax.
    assert_eq!(values(&[0x0F, 0xBC, 0x03]), (4, 0));
    assert_eq!(values(&[0x48, 0x0F, 0xBD, 0x03]), (63, 0));
    assert_eq!(
        values(&[0x66, 0xF3, 0x0F, 0xB8, 0x03]),
        (0x1122_3344_5566_0009, 0)
    );
    // tzcnt eax and lzcnt eax, or what they are on a CPU that has them not.
    assert_eq!(values(&[0xF3, 0x0F, 0xBC, 0x03]).0, 4);
    let expected = if cpu::has_lzcnt() { (0, ZF) } else { (31, 0) };
    assert_eq!(values(&[0xF3, 0x0F, 0xBD, 0x03]), expected);
    // bsf eax of zero: the register stays, its upper half too.
    let none = run_with(&flat(64), &[0x0F, 0xBC, 0x06], |_, memory| {
        memory.write_u64(0x3000, 0).unwrap();
    });
    assert_eq!(
        (none.registers.get(Gpr::Rax), none.registers.rflags & ZF),
        (0x1122_3344_5566_7788, ZF)
    );
    // bt word [rbx],ax with AX = 7788h far away is in `bit_strings`; by immediate: btr, bts, btc.
    for (code, log) in [
        (&[0x0F, 0xBA, 0x73, 0x00, 0x04][..], "r4@0 w4@0=f3f2f1e0 "),
        (&[0x0F, 0xBA, 0x6B, 0x00, 0x00], "r4@0 w4@0=f3f2f1f1 "),
        (
            &[0x48, 0x0F, 0xBA, 0x7B, 0x00, 0x3F],
            "r8@0 w8@0=77f6f5f4f3f2f1f0 ",
        ),
    ] {
        assert_eq!(run(64, code).log, log, "{code:02x?}");
    }
}

#[test]
fn checksums() {
    // crc32 eax,byte [rbx]; crc32 eax,dword [rbx]; crc32 rax,qword [rbx].
    let of = |code: &[u8]| run(64, code).registers.get(Gpr::Rax);
    let expected = |value, width| u64::from(alu::crc32(0x5566_7788, value, width));
    assert_eq!(of(&[0xF2, 0x0F, 0x38, 0xF0, 0x03]), expected(0xF0, 1));
    assert_eq!(
        of(&[0xF2, 0x0F, 0x38, 0xF1, 0x03]),
        expected(0xF3F2_F1F0, 4)
    );
    assert_eq!(
        of(&[0xF2, 0x48, 0x0F, 0x38, 0xF1, 0x03]),
        expected(0xF7F6_F5F4_F3F2_F1F0, 8)
    );
}

#[test]
fn bytes_in_the_other_order() {
    assert_eq!(
        run(64, &[0x48, 0x0F, 0x38, 0xF0, 0x03])
            .registers
            .get(Gpr::Rax),
        0xF0F1_F2F3_F4F5_F6F7
    );
    assert_eq!(run(64, &[0x0F, 0x38, 0xF1, 0x03]).log, "w4@0=88776655 ");
}

#[test]
fn cache_lines_of_devices_need_no_flush() {
    // clflush [rbx], clflushopt [rbx], clwb [rbx].
    for code in [
        &[0x0F, 0xAE, 0x3B][..],
        &[0x66, 0x0F, 0xAE, 0x3B],
        &[0x66, 0x0F, 0xAE, 0x33],
    ] {
        assert_eq!(run(64, code).log, "", "{code:02x?}");
    }
}

#[test]
fn bits_are_manipulated() {
    // RAX = 1122334455667788h, RCX is given; the device has F0h, F1h, and so on.
    let value = |code: &[u8], rcx: u64| {
        let run = run_with(&flat(64), code, |registers, _| {
            registers.rflags |= CF | OF;
            registers.set(Gpr::Rcx, rcx);
            registers.set(Gpr::Rdx, 0x1_0000_0010);
        });
        assert!(run.result.is_ok(), "{code:02x?}: {:?}", run.result);
        (
            run.registers.get(Gpr::Rax),
            run.registers.rflags & (CF | ZF | SF | OF),
            run.log,
        )
    };
    const WORD: u64 = 0xF3F2_F1F0;
    const LONG: u64 = 0xF7F6_F5F4_F3F2_F1F0;
    for (name, code, rcx, result, flags) in [
        (
            "andn eax,ecx,[rbx]",
            &[0xC4, 0xE2, 0x70, 0xF2, 0x03][..],
            0xF0,
            WORD & !0xF0,
            SF,
        ),
        (
            "bextr eax,[rbx],ecx",
            &[0xC4, 0xE2, 0x70, 0xF7, 0x03],
            0x0804,
            0x1F,
            0,
        ),
        (
            "bzhi rax,[rbx],rcx",
            &[0xC4, 0xE2, 0xF0, 0xF5, 0x03],
            12,
            0x1F0,
            0,
        ),
        (
            "bzhi eax,[rbx],ecx",
            &[0xC4, 0xE2, 0x70, 0xF5, 0x03],
            32,
            WORD,
            CF | SF,
        ),
        (
            "blsi eax,[rbx]",
            &[0xC4, 0xE2, 0x78, 0xF3, 0x1B],
            0,
            0x10,
            CF,
        ),
        (
            "blsmsk eax,[rbx]",
            &[0xC4, 0xE2, 0x78, 0xF3, 0x13],
            0,
            0x1F,
            0,
        ),
        (
            "blsr rax,[rbx]",
            &[0xC4, 0xE2, 0xF8, 0xF3, 0x0B],
            0,
            LONG & !0x10,
            SF,
        ),
        (
            "pdep eax,ecx,[rbx]",
            &[0xC4, 0xE2, 0x73, 0xF5, 0x03],
            0b11,
            0x30,
            CF | OF,
        ),
        (
            "pext eax,ecx,[rbx]",
            &[0xC4, 0xE2, 0x72, 0xF5, 0x03],
            0xFF,
            0xF,
            CF | OF,
        ),
        (
            "mulx ecx,eax,[rbx]",
            &[0xC4, 0xE2, 0x7B, 0xF6, 0x0B],
            0,
            WORD << 4 & 0xFFFF_FFFF,
            CF | OF,
        ),
        (
            "mulx eax,eax,[rbx]: the upper half",
            &[0xC4, 0xE2, 0x7B, 0xF6, 0x03],
            0,
            0xF,
            CF | OF,
        ),
        (
            "shlx eax,[rbx],ecx",
            &[0xC4, 0xE2, 0x71, 0xF7, 0x03],
            36,
            WORD << 4 & 0xFFFF_FFFF,
            CF | OF,
        ),
        (
            "shrx eax,[rbx],ecx",
            &[0xC4, 0xE2, 0x73, 0xF7, 0x03],
            4,
            WORD >> 4,
            CF | OF,
        ),
        (
            "sarx rax,[rbx],rcx",
            &[0xC4, 0xE2, 0xF2, 0xF7, 0x03],
            60,
            u64::MAX,
            CF | OF,
        ),
        (
            "rorx eax,[rbx],8",
            &[0xC4, 0xE3, 0x7B, 0xF0, 0x03, 8],
            0,
            0xF0F3_F2F1,
            CF | OF,
        ),
    ] {
        let wide = code[2] & 0x80 != 0;
        let log = if wide { "r8@0 " } else { "r4@0 " };
        assert_eq!(value(code, rcx), (result, flags, log.into()), "{name}");
    }
}
