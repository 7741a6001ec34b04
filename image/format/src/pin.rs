//! The pinned guests: whose kernel and initial ramdisk a binary runs. A guest with another digest does not run.
//!
//! Their text form, `directory:<sha256 of kernel>:<sha256 of ramdisk>,probe:<sha256 of kernel>:-`, is in the binary in a [`PinBlock`], which the build
//! fills in when the binary is linked ([`write_pins`]): another guest costs no compilation.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::Digest;
use crate::slot::is_name;

/// A guest that may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The guest's name: lower-case letters, digits and hyphens.
    pub guest: String,
    /// The digest of its kernel.
    pub kernel: Digest,
    /// The digest of its initial ramdisk, if it has one.
    pub ramdisk: Option<Digest>,
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.guest, self.kernel)?;
        match &self.ramdisk {
            Some(digest) => digest.fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// One entry of a list of pins is not `name:kernel:ramdisk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinError(pub String);

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a pinned guest; it would be name:<64 hexadecimal digits>:<64 hexadecimal digits or ->",
            self.0
        )
    }
}

impl core::error::Error for PinError {}

/// Writes a list of pins as [`parse_pins`] reads it.
pub fn format_pins(pins: &[Pin]) -> String {
    pins.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// Reads a list of pins, which may be empty.
///
/// # Errors
/// The first entry that is malformed.
pub fn parse_pins(text: &str) -> Result<Vec<Pin>, PinError> {
    text.split(',')
        .filter(|entry| !entry.is_empty())
        .map(|entry| parse_pin(entry).ok_or_else(|| PinError(entry.into())))
        .collect()
}

fn parse_pin(entry: &str) -> Option<Pin> {
    let mut fields = entry.split(':');
    let (guest, kernel, ramdisk) = (fields.next()?, fields.next()?, fields.next()?);
    if fields.next().is_some() || !is_name(guest) {
        return None;
    }
    Some(Pin {
        guest: guest.into(),
        kernel: kernel.parse().ok()?,
        ramdisk: match ramdisk {
            "-" => None,
            digest => Some(digest.parse().ok()?),
        },
    })
}

/// Size of a [`PinBlock`] in bytes: pins of ten guests with short names fit.
const BLOCK_BYTES: usize = 2048;
/// What a block begins with; the text's length as two bytes (little-endian) and the text follow.
const MARKER: [u8; 32] = *b"Outpost: pinned guests follow \r\n";
const TEXT: usize = MARKER.len() + 2;

/// The place for pins in a binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PinBlock([u8; BLOCK_BYTES]);

impl PinBlock {
    /// The block as it is compiled: no guest is pinned.
    pub const EMPTY: Self = {
        let (mut bytes, mut at) = ([0; BLOCK_BYTES], 0);
        while at < MARKER.len() {
            bytes[at] = MARKER[at];
            at += 1;
        }
        Self(bytes)
    };

    /// The list of pins, for [`parse_pins`]; empty if the block is damaged.
    pub fn text(&self) -> &str {
        let text = self.0.get(MARKER.len()..TEXT).and_then(|length| {
            let length = u16::from_le_bytes(length.try_into().ok()?);
            let text = self.0.get(TEXT..TEXT + usize::from(length))?;
            core::str::from_utf8(text).ok()
        });
        text.unwrap_or_default()
    }
}

/// Why pins cannot be written into a binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinBlockError {
    /// It has so many blocks, instead of one.
    Blocks(usize),
    /// The list has so many bytes, more than [`PinBlockError::ROOM`].
    TooLong(usize),
}

impl PinBlockError {
    /// Bytes that a list of pins can have.
    pub const ROOM: usize = BLOCK_BYTES - TEXT;
}

impl fmt::Display for PinBlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(count) => write!(
                f,
                "the binary has {count} places for pinned guests instead of one: it is no Outpost binary, or of another version"
            ),
            Self::TooLong(bytes) => write!(
                f,
                "the pinned guests take {bytes} bytes in the binary, which has room for {}: pin fewer",
                Self::ROOM
            ),
        }
    }
}

impl core::error::Error for PinBlockError {}

/// Writes `pins` into the one [`PinBlock`] of a linked binary, in place of what is there.
///
/// # Errors
/// [`PinBlockError`]; the binary is as it was then.
pub fn write_pins(binary: &mut [u8], pins: &[Pin]) -> Result<(), PinBlockError> {
    let text = format_pins(pins);
    let length = u16::try_from(text.len())
        .ok()
        .filter(|length| usize::from(*length) <= PinBlockError::ROOM)
        .ok_or(PinBlockError::TooLong(text.len()))?;
    let places = || {
        binary
            .windows(BLOCK_BYTES)
            .enumerate()
            .filter(|(_, window)| window.starts_with(&MARKER))
            .map(|(at, _)| at)
    };
    let (Some(at), 1) = (places().next(), places().count()) else {
        return Err(PinBlockError::Blocks(places().count()));
    };
    let (head, rest) = binary[at + MARKER.len()..at + BLOCK_BYTES].split_at_mut(2);
    head.copy_from_slice(&length.to_le_bytes());
    let (to, unused) = rest.split_at_mut(text.len());
    to.copy_from_slice(text.as_bytes());
    unused.fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_comes_back_as_it_was_written() {
        let pins = [
            Pin {
                guest: "directory".into(),
                kernel: Digest::of(b"kernel"),
                ramdisk: Some(Digest::of(b"ramdisk")),
            },
            Pin {
                guest: "probe-1".into(),
                kernel: Digest::of(b"probe"),
                ramdisk: None,
            },
        ];
        assert_eq!(parse_pins(&format_pins(&pins)).unwrap(), pins);
        assert_eq!(parse_pins("").unwrap(), []);
    }

    fn pin(guest: &str) -> Pin {
        Pin {
            guest: guest.into(),
            kernel: Digest::of(guest.as_bytes()),
            ramdisk: Some(Digest::of(b"")),
        }
    }

    #[test]
    fn pins_are_written_into_a_binary_and_over_others() {
        let mut binary = vec![0xCC; 5000];
        binary.extend_from_slice(&PinBlock::EMPTY.0);
        binary.extend_from_slice(&[0xCC; 77]);
        let block = |binary: &[u8]| PinBlock(binary[5000..5000 + BLOCK_BYTES].try_into().unwrap());
        assert_eq!(block(&binary).text(), "");
        let empty = binary.clone();
        for pins in [vec![pin("directory"), pin("probe")], vec![pin("p")], vec![]] {
            write_pins(&mut binary, &pins).unwrap();
            assert_eq!(parse_pins(block(&binary).text()).unwrap(), pins);
        }
        assert!(binary == empty, "what was there before is gone");
    }

    #[test]
    fn pins_that_do_not_fit_and_binaries_without_a_place_are_refused() {
        let mut binary = PinBlock::EMPTY.0.to_vec();
        let many: Vec<Pin> = (0..20)
            .map(|index| pin(&format!("guest-{index}")))
            .collect();
        let bytes = format_pins(&many).len();
        assert_eq!(
            write_pins(&mut binary, &many),
            Err(PinBlockError::TooLong(bytes))
        );
        assert_eq!(write_pins(&mut binary, &many[..10]), Ok(()));
        binary.extend_from_slice(&PinBlock::EMPTY.0);
        for (bytes, blocks) in [(&mut binary[..], 2), (&mut [0; 9], 0)] {
            assert_eq!(write_pins(bytes, &[]), Err(PinBlockError::Blocks(blocks)));
        }
    }

    #[test]
    fn a_damaged_block_pins_nothing() {
        let mut block = PinBlock::EMPTY;
        block.0[MARKER.len()..TEXT].fill(0xFF);
        assert_eq!(block.text(), "");
        block.0[MARKER.len()..TEXT].copy_from_slice(&[1, 0]);
        block.0[TEXT] = 0xFF;
        assert_eq!(block.text(), "");
    }

    #[test]
    fn malformed_entries_are_named() {
        let digest = Digest::of(b"").to_string();
        for entry in [
            "directory".to_owned(),
            format!("directory:{digest}"),
            format!("directory:{digest}:-:more"),
            format!("directory:{digest}:{}", &digest[1..]),
            format!("Directory:{digest}:-"),
            format!(":{digest}:-"),
        ] {
            assert_eq!(
                parse_pins(&format!("ok:{digest}:-,{entry}")),
                Err(PinError(entry))
            );
        }
    }
}
