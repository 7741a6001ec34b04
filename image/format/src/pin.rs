//! The pinned guests: whose kernel and initial ramdisk a binary runs. A guest with another digest does not run.
//!
//! The text form goes from the build into the binary in `OUTPOST_PINNED_GUESTS`:
//! `directory:<sha256 of kernel>:<sha256 of ramdisk>,probe:<sha256 of kernel>:-`

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
