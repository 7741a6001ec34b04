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
    RotateLeftCarry,
    RotateRightCarry,
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
        Shift::RotateLeftCarry | Shift::RotateRightCarry => {
            // CF is one bit more of the ring (APM vol. 3, RCL and RCR).
            let ring = wide | u128::from(flags & CF) << bits;
            let by = count % (bits + 1);
            let left = match kind {
                Shift::RotateLeftCarry => by,
                _ => bits + 1 - by,
            };
            let ring = ring << left | ring >> (bits + 1 - left);
            (ring as u64, ring >> bits & 1 != 0)
        }
    };
    let result = result & mask(width);
    let overflow = match kind {
        Shift::Left | Shift::RotateLeft | Shift::RotateLeftCarry => top(result) != carry,
        Shift::Right => top(value),
        Shift::RightSigned => false,
        Shift::RotateRight | Shift::RotateRightCarry => top(result) != top(result << 1),
    };
    let kept = match kind {
        Shift::Left | Shift::Right | Shift::RightSigned => of_result(result, width),
        _ => flags & ARITHMETIC & !(CF | OF),
    };
    (
        result,
        kept | if carry { CF } else { 0 } | if overflow { OF } else { 0 },
    )
}

/// SHLD and SHRD: shifts `value` by `count` (masked as the CPU does) and fills up from `other`; gives the result and the new flags, of which `flags` are
/// the old ones. Undefined on the CPU: AF; OF unless by one; all of it when 16 bits are shifted by more.
pub fn double_shift(
    left: bool,
    value: u64,
    other: u64,
    count: u8,
    width: u8,
    flags: u64,
) -> (u64, u64) {
    let bits = u32::from(width) * 8;
    let count = u32::from(count) & if width == 8 { 63 } else { 31 };
    let (value, other) = (value & mask(width), other & mask(width));
    if count == 0 {
        return (value, flags & ARITHMETIC);
    }
    let (result, carry) = if left {
        let wide = u128::from(value) << bits | u128::from(other);
        (wide << count >> bits, wide >> (2 * bits - count) & 1 != 0)
    } else {
        let wide = u128::from(other) << bits | u128::from(value);
        (wide >> count, wide >> (count - 1) & 1 != 0)
    };
    let result = result as u64 & mask(width);
    let mut flags = of_result(result, width);
    if carry {
        flags |= CF;
    }
    if (value ^ result) & sign_bit(width) != 0 {
        flags |= OF;
    }
    (result, flags)
}

/// The product: its lower and its upper half, and the flags: CF and OF if the lower half alone is another number. ZF, SF and PF, undefined on the CPU, are
/// the lower half's.
pub fn multiply(signed: bool, a: u64, b: u64, width: u8) -> (u64, u64, u64) {
    let extend = |value: u64| match signed {
        true => i128::from(sign_extend(value, width) as i64) as u128,
        false => u128::from(value & mask(width)),
    };
    let wide = extend(a).wrapping_mul(extend(b));
    let low = wide as u64 & mask(width);
    let high = (wide >> (8 * width)) as u64 & mask(width);
    let lost = extend(low) != wide;
    (
        low,
        high,
        of_result(low, width) | if lost { CF | OF } else { 0 },
    )
}

/// Divides `high:low`: quotient and remainder, or none if the divisor is zero or the quotient too big, which is #DE.
pub fn divide(signed: bool, high: u64, low: u64, divisor: u64, width: u8) -> Option<(u64, u64)> {
    let dividend = u128::from(high & mask(width)) << (8 * width) | u128::from(low & mask(width));
    if !signed {
        let divisor = u128::from(divisor & mask(width));
        let quotient = dividend.checked_div(divisor)?;
        return (quotient <= u128::from(mask(width)))
            .then(|| (quotient as u64, (dividend % divisor) as u64));
    }
    let unused = 128 - 16 * u32::from(width);
    let dividend = (dividend << unused) as i128 >> unused;
    let divisor = i128::from(sign_extend(divisor, width) as i64);
    let quotient = dividend.checked_div(divisor)?;
    (i128::from(sign_extend(quotient as u64, width) as i64) == quotient).then(|| {
        let remainder = (dividend % divisor) as u64;
        (quotient as u64 & mask(width), remainder & mask(width))
    })
}

/// What is looked for or counted in a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// BSF: the lowest one.
    Forward,
    /// BSR: the highest one.
    Reverse,
    /// TZCNT.
    TrailingZeros,
    /// LZCNT.
    LeadingZeros,
    /// POPCNT.
    Ones,
}

/// The result, none if the destination stays as it is (BSF and BSR of zero), and all six flags. Of BSF and BSR only ZF is defined, of TZCNT and
/// LZCNT only ZF and CF.
pub fn scan(kind: Scan, value: u64, width: u8) -> (Option<u64>, u64) {
    let value = value & mask(width);
    let bits = u32::from(width) * 8;
    let leading = value.leading_zeros() - (64 - bits);
    let trailing = value.trailing_zeros().min(bits);
    match kind {
        Scan::Forward | Scan::Reverse => {
            let found = match kind {
                Scan::Forward => trailing,
                _ => (bits - 1).wrapping_sub(leading),
            };
            let result = (value != 0).then_some(found.into());
            (result, of_result(value, width))
        }
        Scan::TrailingZeros | Scan::LeadingZeros => {
            let count = match kind {
                Scan::TrailingZeros => trailing,
                _ => leading,
            };
            let carry = if value == 0 { CF } else { 0 };
            let zero = if count == 0 { ZF } else { 0 };
            (Some(count.into()), carry | zero)
        }
        Scan::Ones => {
            let zero = if value == 0 { ZF } else { 0 };
            (Some(value.count_ones().into()), zero)
        }
    }
}

/// The instructions of BMI1 and BMI2 that change flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// ANDN: what is in the number and not in the other.
    AndNot,
    /// BEXTR: as many bits as bits 8 to 15 of the other say, from the one that its bits 0 to 7 say.
    Extract,
    /// BZHI: the bits below the one that bits 0 to 7 of the other say.
    Below,
    /// BLSI: the lowest one alone.
    LowestOne,
    /// BLSMSK: the lowest one and all below it.
    ToLowestOne,
    /// BLSR: all but the lowest one.
    WithoutLowestOne,
}

/// The result and all six flags, of which AF and PF are undefined on the CPU, for BEXTR SF too. The last three have no other number.
pub fn manipulate(kind: Bits, value: u64, other: u64, width: u8) -> (u64, u64) {
    let value = value & mask(width);
    let below = |value: u64, bit: u64| match bit {
        0..64 => value & ((1 << bit) - 1),
        _ => value,
    };
    let (number, length) = (other & 0xFF, other >> 8 & 0xFF);
    let (result, carry) = match kind {
        Bits::AndNot => (value & !other, false),
        Bits::Extract => {
            let from = value.checked_shr(number as u32).unwrap_or(0);
            (below(from, length), false)
        }
        Bits::Below => (below(value, number), number >= u64::from(width) * 8),
        Bits::LowestOne => (value & value.wrapping_neg(), value != 0),
        Bits::ToLowestOne => (value ^ value.wrapping_sub(1), value == 0),
        Bits::WithoutLowestOne => (value & value.wrapping_sub(1), value == 0),
    };
    let result = result & mask(width);
    (
        result,
        of_result(result, width) | if carry { CF } else { 0 },
    )
}

/// PDEP: the lowest bits of `value`, in turn, where `places` has ones.
pub fn deposit(value: u64, places: u64) -> u64 {
    ones(places).enumerate().fold(0, |result, (nth, place)| {
        result | (value >> nth & 1) << place
    })
}

/// PEXT: the bits of `value` where `places` has ones, side by side.
pub fn gather(value: u64, places: u64) -> u64 {
    ones(places).enumerate().fold(0, |result, (nth, place)| {
        result | (value >> place & 1) << nth
    })
}

fn ones(places: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |place| places >> place & 1 != 0)
}

/// CRC32: the checksum with the low `width` bytes of `value` added (polynomial 11EDC6F41h, bits reflected).
pub fn crc32(checksum: u32, value: u64, width: u8) -> u32 {
    const REFLECTED: u32 = 0x82F6_3B78;
    let bytes = value.to_le_bytes();
    bytes
        .iter()
        .take(width.into())
        .fold(checksum, |checksum, byte| {
            (0..8).fold(checksum ^ u32::from(*byte), |rest, _| {
                rest >> 1 ^ if rest & 1 != 0 { REFLECTED } else { 0 }
            })
        })
}

#[cfg(test)]
mod tests;
