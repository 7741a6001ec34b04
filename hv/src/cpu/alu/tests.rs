//! Each operation against the CPU that runs the tests.

use super::*;

/// The CPU that runs the test is the oracle: the same operation, natively, with flags.
macro_rules! native {
    ($instruction:literal, $a:expr, $b:expr, $flags:expr) => {{
        let (mut result, mut flags): (u64, u64) = ($a, $flags);
        // SAFETY: arithmetic on registers, and flags that are put back by the compiler's own clobber of them.
        unsafe {
            core::arch::asm!(
                "push {f}", "popfq", $instruction, "pushfq", "pop {f}",
                f = inout(reg) flags, inout("rax") result, in("rcx") $b,
            );
        }
        (result, flags & ARITHMETIC)
    }};
}

const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0x7FFF_FFFF,
    0x8000_0000,
    0x0123_4567_89AB_CDEF,
    0x8000_0000_0000_0000,
    u64::MAX,
];

fn pairs() -> impl Iterator<Item = (u64, u64)> {
    NUMBERS
        .iter()
        .flat_map(|a| NUMBERS.iter().map(move |b| (*a, *b)))
}

#[test]
fn addition_and_subtraction_match_the_cpu() {
    for (a, b) in pairs() {
        for carry in [false, true] {
            let flags = 2 | u64::from(carry);
            for (ours, theirs, width) in [
                (add(a, b, carry, 8), native!("adc rax, rcx", a, b, flags), 8),
                (add(a, b, carry, 4), native!("adc eax, ecx", a, b, flags), 4),
                (add(a, b, carry, 2), native!("adc ax, cx", a, b, flags), 2),
                (add(a, b, carry, 1), native!("adc al, cl", a, b, flags), 1),
                (sub(a, b, carry, 8), native!("sbb rax, rcx", a, b, flags), 8),
                (sub(a, b, carry, 4), native!("sbb eax, ecx", a, b, flags), 4),
                (sub(a, b, carry, 2), native!("sbb ax, cx", a, b, flags), 2),
                (sub(a, b, carry, 1), native!("sbb al, cl", a, b, flags), 1),
            ] {
                assert_eq!(
                    (ours.0, ours.1),
                    (theirs.0 & mask(width), theirs.1),
                    "{a:#x} {b:#x} {carry} {width}"
                );
            }
        }
    }
}

#[test]
fn logic_matches_the_cpu() {
    for (a, b) in pairs() {
        for (ours, theirs, width) in [
            (logic(a & b, 8), native!("and rax, rcx", a, b, 2), 8),
            (logic(a ^ b, 4), native!("xor eax, ecx", a, b, 2), 4),
            (logic(a | b, 2), native!("or ax, cx", a, b, 2), 2),
            (logic(a & b, 1), native!("and al, cl", a, b, 2), 1),
        ] {
            // AF is undefined.
            assert_eq!(
                (ours.0, ours.1),
                (theirs.0 & mask(width), theirs.1 & !AF),
                "{a:#x} {b:#x} {width}"
            );
        }
    }
}

#[test]
fn shifts_match_the_cpu() {
    for a in NUMBERS {
        for count in [0_u64, 1, 2, 7, 8, 15, 16, 31, 33, 63] {
            for old in [2, 2 | CF | OF | ZF] {
                for (kind, ours_of, theirs, width) in [
                    (Shift::Left, a, native!("shl rax, cl", a, count, old), 8),
                    (Shift::Left, a, native!("shl eax, cl", a, count, old), 4),
                    (Shift::Right, a, native!("shr rax, cl", a, count, old), 8),
                    (Shift::Right, a, native!("shr ax, cl", a, count, old), 2),
                    (
                        Shift::RightSigned,
                        a,
                        native!("sar eax, cl", a, count, old),
                        4,
                    ),
                    (
                        Shift::RightSigned,
                        a,
                        native!("sar al, cl", a, count, old),
                        1,
                    ),
                    (
                        Shift::RotateLeft,
                        a,
                        native!("rol rax, cl", a, count, old),
                        8,
                    ),
                    (
                        Shift::RotateLeft,
                        a,
                        native!("rol ax, cl", a, count, old),
                        2,
                    ),
                    (
                        Shift::RotateRight,
                        a,
                        native!("ror eax, cl", a, count, old),
                        4,
                    ),
                    (
                        Shift::RotateRight,
                        a,
                        native!("ror al, cl", a, count, old),
                        1,
                    ),
                ] {
                    let (result, flags) = shift(kind, ours_of, count as u8, width, old);
                    assert_eq!(
                        result,
                        theirs.0 & mask(width),
                        "{kind:?} {a:#x} by {count} width {width}"
                    );
                    let masked = count & if width == 8 { 63 } else { 31 };
                    let bits = u64::from(width) * 8;
                    // Undefined on the CPU: AF; OF unless by one; CF of a shift by the width or more.
                    let mut defined = ARITHMETIC & !AF;
                    if masked != 1 && masked != 0 {
                        defined &= !OF;
                    }
                    if masked >= bits {
                        defined &= !CF;
                    }
                    assert_eq!(
                        flags & defined,
                        theirs.1 & defined,
                        "{kind:?} {a:#x} by {count} width {width}"
                    );
                }
            }
        }
    }
}

#[test]
fn rotations_through_carry_match_the_cpu() {
    use Shift::{RotateLeftCarry as Left, RotateRightCarry as Right};
    for a in NUMBERS {
        for count in [0_u64, 1, 2, 7, 8, 9, 10, 15, 16, 17, 18, 31, 32, 33, 63] {
            for old in [2, 2 | CF, 2 | OF | ZF | AF] {
                for (kind, theirs, width) in [
                    (Left, native!("rcl rax, cl", a, count, old), 8),
                    (Left, native!("rcl eax, cl", a, count, old), 4),
                    (Left, native!("rcl ax, cl", a, count, old), 2),
                    (Left, native!("rcl al, cl", a, count, old), 1),
                    (Right, native!("rcr rax, cl", a, count, old), 8),
                    (Right, native!("rcr eax, cl", a, count, old), 4),
                    (Right, native!("rcr ax, cl", a, count, old), 2),
                    (Right, native!("rcr al, cl", a, count, old), 1),
                ] {
                    let (result, flags) = shift(kind, a, count as u8, width, old);
                    let masked = count & if width == 8 { 63 } else { 31 };
                    // Undefined on the CPU: OF unless by one.
                    let defined = if masked <= 1 {
                        ARITHMETIC
                    } else {
                        ARITHMETIC & !OF
                    };
                    assert_eq!(
                        (result, flags & defined),
                        (theirs.0 & mask(width), theirs.1 & defined),
                        "{kind:?} {a:#x} by {count} width {width}"
                    );
                }
            }
        }
    }
}

#[test]
fn double_shifts_match_the_cpu() {
    // The count is the low byte of what is shifted in.
    for (a, b) in pairs() {
        for count in [0_u64, 1, 2, 15, 16, 31, 33, 63] {
            let b = b & !0xFF | count;
            for (left, theirs, width) in [
                (true, native!("shld rax, rcx, cl", a, b, 2), 8),
                (true, native!("shld eax, ecx, cl", a, b, 2), 4),
                (true, native!("shld ax, cx, cl", a, b, 2), 2),
                (false, native!("shrd rax, rcx, cl", a, b, 2), 8),
                (false, native!("shrd eax, ecx, cl", a, b, 2), 4),
                (false, native!("shrd ax, cx, cl", a, b, 2), 2),
            ] {
                let masked = count & if width == 8 { 63 } else { 31 };
                if masked > u64::from(width) * 8 {
                    continue;
                }
                let (result, flags) = double_shift(left, a, b, count as u8, width, 2);
                let defined = match masked {
                    0 | 1 => ARITHMETIC & !AF,
                    _ => ARITHMETIC & !AF & !OF,
                };
                assert_eq!(
                    (result, flags & defined),
                    (theirs.0 & mask(width), theirs.1 & defined),
                    "left {left} {a:#x} {b:#x} by {count} width {width}"
                );
            }
        }
    }
}

#[test]
fn products_match_the_cpu() {
    for (a, b) in pairs() {
        for (theirs, width) in [
            (native!("imul rax, rcx", a, b, 2), 8),
            (native!("imul eax, ecx", a, b, 2), 4),
            (native!("imul ax, cx", a, b, 2), 2),
        ] {
            let (low, _, flags) = multiply(true, a, b, width);
            assert_eq!(
                (low, flags & (CF | OF)),
                (theirs.0 & mask(width), theirs.1 & (CF | OF)),
                "{a:#x} {b:#x} {width}"
            );
        }
        // The byte's product is in AX, both halves of it.
        for (signed, theirs) in [
            (true, native!("imul cl", a, b, 2)),
            (false, native!("mul cl", a, b, 2)),
        ] {
            let (low, high, flags) = multiply(signed, a, b, 1);
            assert_eq!(
                (high << 8 | low, flags & (CF | OF)),
                (theirs.0 & 0xFFFF, theirs.1 & (CF | OF)),
                "{signed} {a:#x} {b:#x}"
            );
        }
        let (low, high, _) = multiply(false, a, b, 8);
        assert_eq!(
            u128::from(high) << 64 | u128::from(low),
            u128::from(a) * u128::from(b)
        );
        let (low, high, _) = multiply(true, a, b, 8);
        assert_eq!(
            (u128::from(high) << 64 | u128::from(low)) as i128,
            i128::from(a as i64) * i128::from(b as i64)
        );
    }
}

#[test]
fn quotients_fit_or_are_none() {
    for width in [1, 2, 4, 8] {
        for (low, divisor) in pairs() {
            for high in [0, 1, u64::MAX] {
                assert_eq!(divide(false, high, low, 0, width), None);
                assert_eq!(divide(true, high, low, 0, width), None);
            }
            // A dividend that is a product and a rest gives both back.
            let divisor = divisor & mask(width);
            if divisor > 1 {
                let (product, carry, _) = multiply(false, low, divisor, width);
                let (sum, flags) = add(product, divisor - 1, false, width);
                let high = carry + (flags & CF);
                let expected = (low & mask(width), divisor - 1);
                assert_eq!(divide(false, high, sum, divisor, width), Some(expected));
            }
        }
        let (most, least) = (mask(width) >> 1, sign_bit(width));
        assert_eq!(divide(false, 1, 0, 1, width), None, "too big");
        assert_eq!(
            divide(false, 0, mask(width), 1, width),
            Some((mask(width), 0))
        );
        assert_eq!(
            divide(true, mask(width), least, mask(width), width),
            None,
            "one too big"
        );
        assert_eq!(divide(true, 0, least, 1, width), None, "one too big");
        assert_eq!(divide(true, mask(width), least, 1, width), Some((least, 0)));
        assert_eq!(
            divide(true, 0, most, mask(width), width),
            Some((least + 1, 0))
        );
        // -7 / 2 is -3, and -1 remains.
        let seven = 0_u64.wrapping_sub(7);
        let expected = (0_u64.wrapping_sub(3) & mask(width), mask(width));
        assert_eq!(divide(true, u64::MAX, seven, 2, width), Some(expected));
    }
    assert_eq!(
        divide(true, 1 << 63, 0, u64::MAX, 8),
        None,
        "the least of all by -1"
    );
}

#[test]
fn scans_match_the_cpu() {
    for a in NUMBERS {
        for (kind, theirs, defined, width) in [
            (Scan::Forward, native!("bsf rax, rcx", 0x55, a, 2), ZF, 8),
            (Scan::Forward, native!("bsf ax, cx", 0x55, a, 2), ZF, 2),
            (Scan::Reverse, native!("bsr rax, rcx", 0x55, a, 2), ZF, 8),
            (Scan::Reverse, native!("bsr ax, cx", 0x55, a, 2), ZF, 2),
        ] {
            let (result, flags) = scan(kind, a, width);
            assert_eq!(
                (result.unwrap_or(0x55), flags & defined),
                (theirs.0, theirs.1 & defined),
                "{kind:?} {a:#x} {width}"
            );
        }
    }
    if std::is_x86_feature_detected!("lzcnt")
        && std::is_x86_feature_detected!("bmi1")
        && std::is_x86_feature_detected!("popcnt")
    {
        let all = ARITHMETIC;
        for a in NUMBERS {
            for (kind, theirs, defined, width) in [
                (
                    Scan::LeadingZeros,
                    native!("lzcnt rax, rcx", 0, a, 2),
                    CF | ZF,
                    8,
                ),
                (
                    Scan::LeadingZeros,
                    native!("lzcnt eax, ecx", 0, a, 2),
                    CF | ZF,
                    4,
                ),
                (
                    Scan::LeadingZeros,
                    native!("lzcnt ax, cx", 0, a, 2),
                    CF | ZF,
                    2,
                ),
                (
                    Scan::TrailingZeros,
                    native!("tzcnt rax, rcx", 0, a, 2),
                    CF | ZF,
                    8,
                ),
                (
                    Scan::TrailingZeros,
                    native!("tzcnt ax, cx", 0, a, 2),
                    CF | ZF,
                    2,
                ),
                (
                    Scan::Ones,
                    native!("popcnt rax, rcx", 0, a, 2 | all),
                    all,
                    8,
                ),
                (Scan::Ones, native!("popcnt ax, cx", 0, a, 2 | all), all, 2),
            ] {
                let (result, flags) = scan(kind, a, width);
                assert_eq!(
                    (result, flags & defined),
                    (Some(theirs.0), theirs.1 & defined),
                    "{kind:?} {a:#x} {width}"
                );
            }
        }
    }
}

#[test]
fn checksums_are_those_of_iscsi() {
    // "123456789": the check value of CRC-32C, with its inversions before and after.
    let sum = crc32(!0, u64::from_le_bytes(*b"12345678"), 8);
    assert_eq!(!crc32(sum, u64::from(b'9'), 1), 0xE306_9283);
    if std::is_x86_feature_detected!("sse4.2") {
        for (a, b) in pairs() {
            for (theirs, width) in [
                (native!("crc32 rax, rcx", a, b, 2), 8),
                (native!("crc32 eax, ecx", a, b, 2), 4),
                (native!("crc32 eax, cx", a, b, 2), 2),
                (native!("crc32 eax, cl", a, b, 2), 1),
            ] {
                assert_eq!(u64::from(crc32(a as u32, b, width)), theirs.0);
            }
        }
    }
}

/// One instruction with one or two sources and a destination of its own, natively, of both widths.
macro_rules! native_bits {
    ($name:literal, $a:expr, $b:expr) => {{
        let wide = native_bits!(@one concat!($name, " {r:r}, {a:r}, {b:r}"), $a, $b);
        let narrow = native_bits!(@one concat!($name, " {r:e}, {a:e}, {b:e}"), $a, $b);
        [(wide, 8), (narrow, 4)]
    }};
    ($name:literal, $a:expr) => {{
        let wide = native_bits!(@one concat!($name, " {r:r}, {a:r} /* {b} */"), $a, 0_u64);
        let narrow = native_bits!(@one concat!($name, " {r:e}, {a:e} /* {b} */"), $a, 0_u64);
        [(wide, 8), (narrow, 4)]
    }};
    (@one $code:expr, $a:expr, $b:expr) => {{
        let (mut result, mut flags): (u64, u64) = (0, 2);
        // SAFETY: arithmetic on registers, and flags that are put back by the compiler's own clobber of them.
        unsafe {
            core::arch::asm!(
                "push {f}", "popfq", $code, "pushfq", "pop {f}",
                f = inout(reg) flags, r = inout(reg) result, a = in(reg) $a, b = in(reg) $b,
            );
        }
        (result, flags & ARITHMETIC)
    }};
}

#[test]
fn bit_manipulation_matches_the_cpu() {
    if !std::is_x86_feature_detected!("bmi1") || !std::is_x86_feature_detected!("bmi2") {
        eprintln!("this CPU has no BMI: not compared");
        return;
    }
    let defined = CF | ZF | SF | OF;
    let with_other = |a: u64, b: u64| {
        [
            (Bits::AndNot, native_bits!("andn", b, a), defined),
            (Bits::Extract, native_bits!("bextr", a, b), defined & !SF),
            (Bits::Below, native_bits!("bzhi", a, b), defined),
        ]
    };
    let alone = |a: u64| {
        [
            (Bits::LowestOne, native_bits!("blsi", a), defined),
            (Bits::ToLowestOne, native_bits!("blsmsk", a), defined),
            (Bits::WithoutLowestOne, native_bits!("blsr", a), defined),
        ]
    };
    let controls = [
        0x0004, 0x0804, 0x2000, 0x2020, 0x1F1F, 0x4000, 0x0140, 0xFFFF, 0x3F,
    ];
    let pairs = pairs().chain(NUMBERS.iter().flat_map(|a| controls.map(|b| (*a, b))));
    for (a, b) in pairs {
        for (kind, theirs, flags) in with_other(a, b).into_iter().chain(alone(a)) {
            for (theirs, width) in theirs {
                let ours = manipulate(kind, a, b, width);
                assert_eq!(
                    (ours.0, ours.1 & flags),
                    (theirs.0, theirs.1 & flags),
                    "{kind:?} {a:#x} {b:#x} {width}"
                );
            }
        }
        for (theirs, width) in native_bits!("pdep", a, b) {
            let ours = deposit(a, b & mask(width));
            assert_eq!(ours, theirs.0, "pdep {a:#x} {b:#x} {width}");
        }
        for (theirs, width) in native_bits!("pext", a, b) {
            let ours = gather(a, b & mask(width));
            assert_eq!(ours, theirs.0, "pext {a:#x} {b:#x} {width}");
        }
    }
}
