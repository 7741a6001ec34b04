//! Integer arithmetic with x86 flags, for emulated instructions. Pure functions; widths are 1, 2, 4 or 8 bytes.

/// Carry.
pub const CF: u64 = 1 << 0;
/// Parity of the low byte.
pub const PF: u64 = 1 << 2;
/// Carry out of the low nibble.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// All six.
pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// Ones in the low `width` bytes.
pub fn mask(width: u8) -> u64 {
    if width >= 8 {
        u64::MAX
    } else {
        (1 << (width * 8)) - 1
    }
}

fn sign_bit(width: u8) -> u64 {
    mask(width) ^ mask(width) >> 1
}

/// Extends the sign of a number of `width` bytes to 64 bits.
pub fn sign_extend(value: u64, width: u8) -> u64 {
    let value = value & mask(width);
    if value & sign_bit(width) != 0 {
        value | !mask(width)
    } else {
        value
    }
}

/// ZF, SF and PF of a result.
fn of_result(result: u64, width: u8) -> u64 {
    let mut flags = 0;
    if result & mask(width) == 0 {
        flags |= ZF;
    }
    if result & sign_bit(width) != 0 {
        flags |= SF;
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

/// `a + b + carry` and all six flags.
pub fn add(a: u64, b: u64, carry: bool, width: u8) -> (u64, u64) {
    let (a, b) = (a & mask(width), b & mask(width));
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = wide as u64 & mask(width);
    let mut flags = of_result(result, width) | (a ^ b ^ result) & AF;
    if wide > u128::from(mask(width)) {
        flags |= CF;
    }
    if (a ^ result) & (b ^ result) & sign_bit(width) != 0 {
        flags |= OF;
    }
    (result, flags)
}

/// `a - b - borrow` and all six flags.
pub fn sub(a: u64, b: u64, borrow: bool, width: u8) -> (u64, u64) {
    let (a, b) = (a & mask(width), b & mask(width));
    let result = a.wrapping_sub(b).wrapping_sub(u64::from(borrow)) & mask(width);
    let mut flags = of_result(result, width) | (a ^ b ^ result) & AF;
    if u128::from(a) < u128::from(b) + u128::from(borrow) {
        flags |= CF;
    }
    if (a ^ b) & (a ^ result) & sign_bit(width) != 0 {
        flags |= OF;
    }
    (result, flags)
}

/// The flags after AND, OR, XOR, TEST with this result: CF, OF and AF are clear.
pub fn logic(result: u64, width: u8) -> (u64, u64) {
    (result & mask(width), of_result(result, width))
}

/// The shifts and rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shift {
    Left,
    Right,
    RightSigned,
    RotateLeft,
    RotateRight,
}

/// Shifts or rotates by `count` (masked as the CPU does); gives the result and the new flags, of which `flags` are the old ones. OF for counts other than
/// one, undefined on the CPU, follows the same formula.
pub fn shift(kind: Shift, value: u64, count: u8, width: u8, flags: u64) -> (u64, u64) {
    let bits = u32::from(width) * 8;
    let count = u32::from(count) & if width == 8 { 63 } else { 31 };
    let value = value & mask(width);
    if count == 0 {
        return (value, flags & ARITHMETIC);
    }
    let top = |number: u64| number & sign_bit(width) != 0;
    let wide = u128::from(value);
    let (result, carry) = match kind {
        Shift::Left => ((wide << count) as u64, wide << count >> bits & 1 != 0),
        Shift::Right => ((wide >> count) as u64, wide << 1 >> count & 1 != 0),
        Shift::RightSigned => {
            let wide = i128::from(sign_extend(value, width) as i64);
            ((wide >> count) as u64, wide << 1 >> count & 1 != 0)
        }
        Shift::RotateLeft => {
            let by = count % bits;
            let result = (wide << by | wide >> (bits - by)) as u64 & mask(width);
            (result, result & 1 != 0)
        }
        Shift::RotateRight => {
            let by = count % bits;
            let result = (wide >> by | wide << (bits - by)) as u64 & mask(width);
            (result, top(result))
        }
    };
    let result = result & mask(width);
    let overflow = match kind {
        Shift::Left | Shift::RotateLeft => top(result) != carry,
        Shift::Right => top(value),
        Shift::RightSigned => false,
        Shift::RotateRight => top(result) != top(result << 1),
    };
    let kept = match kind {
        Shift::RotateLeft | Shift::RotateRight => flags & ARITHMETIC & !(CF | OF),
        _ => of_result(result, width),
    };
    (
        result,
        kept | if carry { CF } else { 0 } | if overflow { OF } else { 0 },
    )
}

/// Signed product and its flags: CF and OF if it does not fit.
pub fn signed_multiply(a: u64, b: u64, width: u8) -> (u64, u64) {
    let wide = i128::from(sign_extend(a, width) as i64) * i128::from(sign_extend(b, width) as i64);
    let result = wide as u64 & mask(width);
    let lost = i128::from(sign_extend(result, width) as i64) != wide;
    (
        result,
        of_result(result, width) | if lost { CF | OF } else { 0 },
    )
}

#[cfg(test)]
mod tests {
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
    fn products_match_the_cpu() {
        for (a, b) in pairs() {
            for (ours, theirs, width) in [
                (
                    signed_multiply(a, b, 8),
                    native!("imul rax, rcx", a, b, 2),
                    8,
                ),
                (
                    signed_multiply(a, b, 4),
                    native!("imul eax, ecx", a, b, 2),
                    4,
                ),
                (signed_multiply(a, b, 2), native!("imul ax, cx", a, b, 2), 2),
            ] {
                assert_eq!(ours.0, theirs.0 & mask(width));
                assert_eq!(
                    ours.1 & (CF | OF),
                    theirs.1 & (CF | OF),
                    "{a:#x} {b:#x} {width}"
                );
            }
        }
    }
}
