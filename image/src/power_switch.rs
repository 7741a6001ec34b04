//! The box's own power switch, as ACPI's fixed hardware has it (ACPI 6.5, 4.8.3): where the button shows, and how the machine is switched off.
//! No AML is executed: the object `_S5` is looked for in the bytes of the DSDT (7.4.2).

/// Ports and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerSwitch {
    /// PM1a event block: the status register.
    pub status: u16,
    /// The enable register behind it.
    pub enable: u16,
    /// PM1a and PM1b control registers; the second may be absent.
    pub controls: (u16, Option<u16>),
    /// `SLP_TYPa` and `SLP_TYPb` of "off".
    pub off: (u8, u8),
    /// Port and value by which firmware hands the hardware over, if it must be asked.
    pub take_over: Option<(u16, u8)>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A port number; none if it is zero or no port.
fn port_at(bytes: &[u8], at: usize) -> Option<u16> {
    u16::try_from(u32_at(bytes, at)?)
        .ok()
        .filter(|port| *port != 0)
}

impl PowerSwitch {
    /// From the whole tables FADT (5.2.9) and DSDT; none if the machine has no fixed power button or does not say how it is switched off.
    pub fn read(fadt: &[u8], dsdt: &[u8]) -> Option<PowerSwitch> {
        /// FADT flags: the button is no fixed one; there is no fixed hardware.
        const NOT_FIXED: u32 = 1 << 4 | 1 << 20;
        if u32_at(fadt, 112)? & NOT_FIXED != 0 {
            return None;
        }
        let status = port_at(fadt, 56)?;
        let half = u16::from(*fadt.get(88)?) / 2;
        Some(PowerSwitch {
            status,
            enable: status.checked_add(half).filter(|_| half >= 2)?,
            controls: (port_at(fadt, 64)?, port_at(fadt, 68)),
            off: sleep_types(dsdt)?,
            take_over: port_at(fadt, 48).zip(fadt.get(52).copied()),
        })
    }
}

/// The first two elements of the package `_S5`.
fn sleep_types(dsdt: &[u8]) -> Option<(u8, u8)> {
    /// Encodings (20.2.5.1, 20.2.5.4).
    const NAME: u8 = 0x08;
    const PACKAGE: u8 = 0x12;
    let at = dsdt.windows(5).position(|window| {
        let [before, name @ ..] = window else {
            return false;
        };
        name == b"_S5_" && (*before == NAME || *before == b'\\')
    })?;
    let rest = dsdt.get(at + 5..)?;
    let (&PACKAGE, rest) = rest.split_first()? else {
        return None;
    };
    // The package's length takes up to four bytes (20.2.4), the number of its elements one.
    let length_bytes = 1 + usize::from(rest.first()? >> 6);
    let elements = rest.get(length_bytes + 1..)?;
    let (first, rest) = byte_constant(elements)?;
    let (second, _) = byte_constant(rest)?;
    Some((first, second))
}

fn byte_constant(bytes: &[u8]) -> Option<(u8, &[u8])> {
    const BYTE: u8 = 0x0A;
    let value = match bytes {
        [value @ (0 | 1), rest @ ..] | [BYTE, value, rest @ ..] => (*value, rest),
        _ => return None,
    };
    (value.0 < 8).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fadt() -> Vec<u8> {
        let mut fadt = vec![0; 244];
        for (at, value) in [(48, 0xb2), (56, 0x600), (64, 0x604)] {
            fadt[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        fadt[52] = 2;
        fadt[88] = 4;
        fadt
    }

    /// `Name (\_S5, Package (4) {5, Zero, 0, 0})` among other things.
    const DSDT: &[u8] = b"DSDT....\x5b\x82_S5_\x10\x08_S5_\x12\x08\x04\x0a\x05\x00\x00\x00more";

    #[test]
    fn says_where_the_button_is_and_how_to_switch_off() {
        let expected = PowerSwitch {
            status: 0x600,
            enable: 0x602,
            controls: (0x604, None),
            off: (5, 0),
            take_over: Some((0xb2, 2)),
        };
        assert_eq!(PowerSwitch::read(&fadt(), DSDT), Some(expected));
        let rooted = b"\x08\\_S5_\x12\x47\x00\x04\x01\x0a\x07\x00\x00";
        assert_eq!(sleep_types(rooted), Some((1, 7)), "a length of two bytes");
    }

    #[test]
    fn what_is_not_there_is_not_made_up() {
        for flag in [4, 20] {
            let mut other = fadt();
            other[112..116].copy_from_slice(&(1_u32 << flag).to_le_bytes());
            assert_eq!(PowerSwitch::read(&other, DSDT), None);
        }
        for at in [56, 64, 88] {
            let mut without = fadt();
            without[at..at + 2].fill(0);
            assert_eq!(PowerSwitch::read(&without, DSDT), None);
        }
        assert_eq!(PowerSwitch::read(&fadt(), b"no such name"), None);
        // A value that SLP_TYP has no room for.
        assert_eq!(
            sleep_types(b"\x08_S5_\x12\x08\x04\x0a\x08\x00\x00\x00"),
            None
        );
    }

    #[test]
    fn tables_that_are_cut_short_are_harmless() {
        for length in 0..244 {
            let _ = PowerSwitch::read(&fadt()[..length], DSDT);
        }
        for length in 0..DSDT.len() {
            let _ = sleep_types(&DSDT[..length]);
        }
    }
}
