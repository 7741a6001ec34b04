//! SSE moves: what registers get, what the device sees, and what must fault.

use super::*;
use crate::cpu::fpu::{CR0_EM, CR0_TS};
use crate::cpu::{DEVICE_NOT_AVAILABLE, INVALID_OPCODE};

/// The device's first 16 bytes.
const BYTES: u128 = 0xFFFE_FDFC_FBFA_F9F8_F7F6_F5F4_F3F2_F1F0;
const UPPER: u128 = !0 << 64;

/// `op xmm1,[rbx]`.
#[test]
fn loads() {
    let low = XMM0 + 1;
    for (code, value, log) in [
        (&[0x0F, 0x10, 0x0B][..], BYTES, "r8@0 r8@8 "), // movups
        (&[0x66, 0x0F, 0x10, 0x0B], BYTES, "r8@0 r8@8 "), // movupd
        (&[0x0F, 0x28, 0x0B], BYTES, "r8@0 r8@8 "),     // movaps
        (&[0x66, 0x0F, 0x28, 0x0B], BYTES, "r8@0 r8@8 "), // movapd
        (&[0xF3, 0x0F, 0x6F, 0x0B], BYTES, "r8@0 r8@8 "), // movdqu
        (&[0x66, 0x0F, 0x6F, 0x0B], BYTES, "r8@0 r8@8 "), // movdqa
        (&[0xF2, 0x0F, 0xF0, 0x0B], BYTES, "r8@0 r8@8 "), // lddqu
        (&[0x66, 0x0F, 0x38, 0x2A, 0x0B], BYTES, "r8@0 r8@8 "), // movntdqa
        (&[0xF3, 0x0F, 0x10, 0x0B], BYTES & 0xFFFF_FFFF, "r4@0 "), // movss
        (&[0xF2, 0x0F, 0x10, 0x0B], BYTES & !UPPER, "r8@0 "), // movsd
        (&[0x66, 0x0F, 0x6E, 0x0B], BYTES & 0xFFFF_FFFF, "r4@0 "), // movd
        (&[0x66, 0x48, 0x0F, 0x6E, 0x0B], BYTES & !UPPER, "r8@0 "), // movq, 66 REX.W 0F 6E
        (&[0xF3, 0x0F, 0x7E, 0x0B], BYTES & !UPPER, "r8@0 "), // movq, F3 0F 7E
        (&[0x0F, 0x12, 0x0B], low & UPPER | BYTES & !UPPER, "r8@0 "), // movlps
        (
            &[0x66, 0x0F, 0x12, 0x0B],
            low & UPPER | BYTES & !UPPER,
            "r8@0 ",
        ), // movlpd
        (&[0x0F, 0x16, 0x0B], low & !UPPER | BYTES << 64, "r8@0 "), // movhps
        (
            &[0x66, 0x0F, 0x16, 0x0B],
            low & !UPPER | BYTES << 64,
            "r8@0 ",
        ), // movhpd
        (
            &[0xF2, 0x0F, 0x12, 0x0B],
            BYTES << 64 | BYTES & !UPPER,
            "r8@0 ",
        ), // movddup
        (
            &[0x66, 0x0F, 0x3A, 0x20, 0x0B, 0xF2],
            low & !0xFF_0000 | 0xF0_0000,
            "r1@0 ",
        ), // pinsrb 2
        (
            &[0x66, 0x0F, 0xC4, 0x0B, 0x01],
            low & !0xFFFF_0000 | 0xF1F0_0000,
            "r2@0 ",
        ), // pinsrw 1
        (
            &[0x66, 0x0F, 0x3A, 0x22, 0x0B, 0x03],
            low & !0 >> 32 | BYTES << 96,
            "r4@0 ",
        ), // pinsrd 3
        (
            &[0x66, 0x48, 0x0F, 0x3A, 0x22, 0x0B, 0x01],
            low & !UPPER | BYTES << 64,
            "r8@0 ",
        ), // pinsrq 1
        (&[0x66, 0x0F, 0xDB, 0x0B], low & BYTES, "r8@0 r8@8 "), // pand
        (&[0x66, 0x0F, 0xDF, 0x0B], !low & BYTES, "r8@0 r8@8 "), // pandn
        (&[0x66, 0x0F, 0xEB, 0x0B], low | BYTES, "r8@0 r8@8 "), // por
        (&[0x66, 0x0F, 0xEF, 0x0B], low ^ BYTES, "r8@0 r8@8 "), // pxor
        (&[0x0F, 0x54, 0x0B], low & BYTES, "r8@0 r8@8 "), // andps
        (&[0x66, 0x0F, 0x55, 0x0B], !low & BYTES, "r8@0 r8@8 "), // andnpd
        (&[0x66, 0x0F, 0x56, 0x0B], low | BYTES, "r8@0 r8@8 "), // orpd
        (&[0x0F, 0x57, 0x0B], low ^ BYTES, "r8@0 r8@8 "), // xorps
    ] {
        let run = run(64, code);
        assert_eq!(run.xmm[1], value, "{code:02x?}: {:x}", run.xmm[1]);
        assert_eq!(run.log, log, "{code:02x?}");
        for (index, other) in run.xmm.iter().enumerate() {
            assert!(index == 1 || *other == XMM0 + index as u128, "{code:02x?}");
        }
    }
    let high = run(64, &[0x44, 0x0F, 0x10, 0x3B]);
    assert_eq!(high.xmm[15], BYTES, "movups xmm15,[rbx]");
}

/// `op [rbx],xmm1`.
#[test]
fn stores() {
    let all = "w8@0=706050403020101 w8@8=f0e0d0c0b0a0908 ";
    let eight = "w8@0=706050403020101 ";
    for (code, log) in [
        (&[0x0F, 0x11, 0x0B][..], all),                           // movups
        (&[0x66, 0x0F, 0x11, 0x0B], all),                         // movupd
        (&[0x0F, 0x29, 0x0B], all),                               // movaps
        (&[0x66, 0x0F, 0x29, 0x0B], all),                         // movapd
        (&[0xF3, 0x0F, 0x7F, 0x0B], all),                         // movdqu
        (&[0x66, 0x0F, 0x7F, 0x0B], all),                         // movdqa
        (&[0x0F, 0x2B, 0x0B], all),                               // movntps
        (&[0x66, 0x0F, 0x2B, 0x0B], all),                         // movntpd
        (&[0x66, 0x0F, 0xE7, 0x0B], all),                         // movntdq
        (&[0xF3, 0x0F, 0x11, 0x0B], "w4@0=3020101 "),             // movss
        (&[0xF2, 0x0F, 0x11, 0x0B], eight),                       // movsd
        (&[0xF3, 0x0F, 0x2B, 0x0B], "w4@0=3020101 "),             // movntss
        (&[0xF2, 0x0F, 0x2B, 0x0B], eight),                       // movntsd
        (&[0x66, 0x0F, 0x7E, 0x0B], "w4@0=3020101 "),             // movd
        (&[0x66, 0x48, 0x0F, 0x7E, 0x0B], eight),                 // movq, 66 REX.W 0F 7E
        (&[0x66, 0x0F, 0xD6, 0x0B], eight),                       // movq, 66 0F D6
        (&[0x0F, 0x13, 0x0B], eight),                             // movlps
        (&[0x66, 0x0F, 0x13, 0x0B], eight),                       // movlpd
        (&[0x0F, 0x17, 0x0B], "w8@0=f0e0d0c0b0a0908 "),           // movhps
        (&[0x66, 0x0F, 0x17, 0x0B], "w8@0=f0e0d0c0b0a0908 "),     // movhpd
        (&[0x66, 0x0F, 0x3A, 0x14, 0x0B, 0x0F], "w1@0=f "),       // pextrb 15
        (&[0x66, 0x0F, 0x3A, 0x15, 0x0B, 0x03], "w2@0=706 "),     // pextrw 3
        (&[0x66, 0x0F, 0x3A, 0x16, 0x0B, 0x02], "w4@0=b0a0908 "), // pextrd 2
        (
            &[0x66, 0x48, 0x0F, 0x3A, 0x16, 0x0B, 0x01],
            "w8@0=f0e0d0c0b0a0908 ",
        ), // pextrq 1
        (&[0x66, 0x0F, 0x3A, 0x17, 0x0B, 0x01], "w4@0=7060504 "), // extractps 1
        (&[0x48, 0x0F, 0xC3, 0x03], "w8@0=1122334455667788 "),    // movnti, of RAX
    ] {
        let run = run(64, code);
        assert_eq!(run.log, log, "{code:02x?}");
        for (index, register) in run.xmm.iter().enumerate() {
            assert_eq!(*register, XMM0 + index as u128, "{code:02x?}");
        }
    }
    assert_eq!(run(32, &[0x0F, 0x11, 0x0B]).log, all, "in 32-bit code");
}

#[test]
fn aligned_moves_must_be_aligned() {
    // movaps, movapd, movdqa, movntps, movntpd, movntdq and movntdqa, each 8 bytes further.
    for code in [
        &[0x0F, 0x28, 0x4B, 0x08][..],
        &[0x0F, 0x29, 0x4B, 0x08],
        &[0x66, 0x0F, 0x28, 0x4B, 0x08],
        &[0x66, 0x0F, 0x6F, 0x4B, 0x08],
        &[0x66, 0x0F, 0x7F, 0x4B, 0x08],
        &[0x0F, 0x2B, 0x4B, 0x08],
        &[0x66, 0x0F, 0x2B, 0x4B, 0x08],
        &[0x66, 0x0F, 0xE7, 0x4B, 0x08],
        &[0x66, 0x0F, 0x38, 0x2A, 0x4B, 0x08],
    ] {
        let run = run_with(&flat(64), code, |_, _| ());
        assert_eq!(
            (run.result, run.log.as_str(), run.xmm[1]),
            (Err(Trouble::Inject(GENERAL_PROTECTION, None)), "", XMM0 + 1),
            "{code:02x?}"
        );
    }
    assert_eq!(
        run(64, &[0x0F, 0x10, 0x4B, 0x04]).log,
        "r8@4 r8@c ",
        "movups need not be"
    );
}

#[test]
fn sixteen_bytes_may_cross_a_page() {
    let scratch = GuestMemory::allocate(2 << 20).unwrap();
    let system = paged(&scratch, &[]);
    // Page 200000h is the device's first, 201000h RAM at 9000h.
    let cross = |code: &[u8], at: u64| {
        run_with(&system, code, |registers, memory| {
            paged(memory, &[DEVICE, 0x9000]);
            memory.write(0x9000, b"ABCDEFGHIJKLMNO").unwrap();
            registers.set(Gpr::Rbx, at);
        })
    };
    let value = |run: &Run| run.xmm[1].to_le_bytes();
    // The device's bytes at FF0h are 00 01 .. 0F.
    let late = cross(&[0x0F, 0x10, 0x0B], 0x20_0FFE);
    assert_eq!(late.log, "r1@fff r1@ffe ");
    assert_eq!(&value(&late), b"\x0e\x0fABCDEFGHIJKLMN");
    let middle = cross(&[0x0F, 0x10, 0x0B], 0x20_0FF8);
    assert_eq!(middle.log, "r8@ff8 ");
    assert_eq!(&value(&middle)[8..], b"ABCDEFGH");
    let early = cross(&[0x0F, 0x10, 0x0B], 0x20_0FF4);
    assert_eq!(early.log, "r8@ff4 r1@fff r1@ffe r1@ffd r1@ffc ");
    assert_eq!(
        &value(&early)[..14],
        b"\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0fAB"
    );
    let store = cross(&[0x0F, 0x11, 0x0B], 0x20_0FFD);
    assert_eq!(store.log, "w1@ffd=1 w1@ffe=1 w1@fff=2 ");
    assert_eq!(store.memory.read_u64(0x9000), Ok(0x0A09_0807_0605_0403));
    assert_eq!(store.memory.read_u32(0x9008), Ok(0x0E0D_0C0B));
    assert_eq!(store.memory.read_u16(0x900C), Ok(0x4E0F));
    // The second page is not there: a fault before anything.
    let missing = run_with(&system, &[0x0F, 0x11, 0x0B], |registers, memory| {
        paged(memory, &[DEVICE]);
        registers.set(Gpr::Rbx, 0x20_0FF8);
    });
    let fault = Event::Exception(PAGE_FAULT, Some(2));
    assert_eq!(
        (missing.result, missing.log.as_str()),
        (Err(Trouble::Inject(fault, Some(0x20_1000))), "")
    );
}

#[test]
fn registers_that_the_guest_has_put_away_are_not_touched() {
    let store = |change: fn(&mut System)| {
        let mut system = flat(64);
        change(&mut system);
        let run = run_with(&system, &[0x0F, 0x11, 0x0B], |_, _| ());
        assert_eq!(run.log, "");
        run.result
    };
    let undefined = Err(Trouble::Inject(INVALID_OPCODE, None));
    assert_eq!(store(|system| system.cr0 |= CR0_EM), undefined);
    assert_eq!(store(|system| system.cr4 = 0), undefined);
    assert_eq!(
        store(|system| system.cr0 |= CR0_TS),
        Err(Trouble::Inject(DEVICE_NOT_AVAILABLE, None))
    );
}
