//! The section table of a PE file (Microsoft PE/COFF specification, sections 2 to 4), so that code is mapped as code only.

use alloc::vec::Vec;

/// A section as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeSection {
    /// From the image's base.
    pub offset: u32,
    /// Its length in memory.
    pub bytes: u32,
    /// It may be executed.
    pub code: bool,
    /// It may be written to.
    pub writable: bool,
}

const EXECUTE: u32 = 0x2000_0000;
const WRITE: u32 = 0x8000_0000;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads the section table from the first bytes of an image. Empty if they are no PE headers.
pub fn sections(headers: &[u8]) -> Vec<PeSection> {
    read(headers).unwrap_or_default()
}

fn read(headers: &[u8]) -> Option<Vec<PeSection>> {
    let pe = usize::try_from(u32_at(headers, 0x3c)?).ok()?;
    if !headers.starts_with(b"MZ") || headers.get(pe..pe.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let count = u16_at(headers, pe + 6)?;
    let optional_bytes = usize::from(u16_at(headers, pe + 20)?);
    let table = headers.get(pe + 24 + optional_bytes..)?;
    table
        .chunks_exact(40)
        .take(usize::from(count))
        .map(|section| {
            let flags = u32_at(section, 36)?;
            Some(PeSection {
                offset: u32_at(section, 12)?,
                bytes: u32_at(section, 8)?,
                code: flags & EXECUTE != 0,
                writable: flags & WRITE != 0,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers() -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x80;
        bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
        bytes[0x86] = 2;
        bytes[0x94] = 16;
        for (at, offset, flags) in [
            (0xa8, 0x1000_u32, 0x6000_0020_u32),
            (0xd0, 0x3000, 0xc000_0040),
        ] {
            bytes[at + 8..at + 12].copy_from_slice(&0x1234_u32.to_le_bytes());
            bytes[at + 12..at + 16].copy_from_slice(&offset.to_le_bytes());
            bytes[at + 36..at + 40].copy_from_slice(&flags.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn reads_a_section_table() {
        let found = sections(&headers());
        assert_eq!(
            found,
            [
                PeSection {
                    offset: 0x1000,
                    bytes: 0x1234,
                    code: true,
                    writable: false
                },
                PeSection {
                    offset: 0x3000,
                    bytes: 0x1234,
                    code: false,
                    writable: true
                },
            ]
        );
    }

    #[test]
    fn nonsense_has_no_sections() {
        let good = headers();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let _ = sections(&bad);
        }
        assert!(sections(&good[..0x90]).is_empty());
        assert!(sections(b"").is_empty());
    }
}
