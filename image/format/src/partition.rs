//! The partitions of an Outpost disk (DESIGN §6), found by type GUID and label, so that a stick and an internal disk are the same.

use core::fmt;

/// A GUID in the byte order of the disk: the first three fields little-endian (UEFI 2.10, appendix A).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// From the five groups of the text form, the last two as bytes.
    pub const fn new(a: u32, b: u16, c: u16, d: [u8; 8]) -> Guid {
        let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        Guid([
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5],
            d[6], d[7],
        ])
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f1, g, h, rest @ ..] = self.0;
        write!(
            f,
            "{d:02x}{c:02x}{b:02x}{a:02x}-{f1:02x}{e:02x}-{h:02x}{g:02x}-"
        )?;
        for (index, byte) in rest.iter().enumerate() {
            if index == 2 {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// The GUID of every Outpost disk as it is built. Images are reproducible, so it cannot be drawn at random.
pub const DISK_GUID: Guid = outpost_guid(0x00);

/// A partition of an Outpost disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Partition {
    /// EFI system partition, FAT32: `\EFI\BOOT\BOOTX64.EFI` and `\outpost.toml`.
    Esp,
    /// A slot image (see [`crate::Slot`]).
    SlotA,
    /// The other slot image.
    SlotB,
    /// Two alternating records: active slot, tries left, lowest version.
    State,
    /// The guest's data. Made at first boot.
    Guest,
    /// The dictionary. Made at first boot.
    Store,
}

const MIB: u64 = 1024 * 1024;

impl Partition {
    /// All of them, in the order of the disk.
    pub const ALL: [Partition; 6] = [
        Partition::Esp,
        Partition::SlotA,
        Partition::SlotB,
        Partition::State,
        Partition::Guest,
        Partition::Store,
    ];

    /// Its name in the partition table.
    pub const fn label(self) -> &'static str {
        match self {
            Partition::Esp => "esp",
            Partition::SlotA => "slot-a",
            Partition::SlotB => "slot-b",
            Partition::State => "state",
            Partition::Guest => "guest",
            Partition::Store => "store",
        }
    }

    /// Its type in the partition table. The two slots have the same type and are told apart by their labels.
    pub const fn type_guid(self) -> Guid {
        match self {
            // UEFI 2.10, table 5.7
            Partition::Esp => Guid::new(
                0xc12a_7328,
                0xf81f,
                0x11d2,
                [0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b],
            ),
            Partition::SlotA | Partition::SlotB => outpost_guid(0x11),
            Partition::State => outpost_guid(0x12),
            Partition::Guest => outpost_guid(0x13),
            Partition::Store => outpost_guid(0x14),
        }
    }

    /// The GUID of the partition itself, the same on every disk as it is built.
    pub const fn unique_guid(self) -> Guid {
        match self {
            Partition::Esp => outpost_guid(0x20),
            Partition::SlotA => outpost_guid(0x21),
            Partition::SlotB => outpost_guid(0x22),
            Partition::State => outpost_guid(0x23),
            Partition::Guest => outpost_guid(0x24),
            Partition::Store => outpost_guid(0x25),
        }
    }

    /// Its size in bytes in an image, a multiple of 1 MiB; `None` if it is made at first boot on what the disk has free.
    pub const fn image_bytes(self) -> Option<u64> {
        match self {
            // FAT32 needs at least 65,525 clusters; with one sector each, that is a little over 32 MiB.
            Partition::Esp => Some(34 * MIB),
            Partition::SlotA | Partition::SlotB => Some(40 * MIB),
            Partition::State => Some(MIB),
            Partition::Guest | Partition::Store => None,
        }
    }
}

/// Outpost's own GUIDs differ in one byte.
const fn outpost_guid(which: u8) -> Guid {
    Guid::new(
        0x3f0d_91c4,
        0x7a52,
        0x4e6b,
        [0x9c, 0x18, 0x5d, 0xe2, 0x64, 0xb7, 0xa1, which],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_have_the_text_form_of_the_standard() {
        assert_eq!(
            Partition::Esp.type_guid().to_string(),
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
        );
        assert_eq!(
            Partition::Esp.type_guid().0[..4],
            [0x28, 0x73, 0x2a, 0xc1],
            "little-endian on disk"
        );
    }

    #[test]
    fn partitions_can_be_told_apart() {
        for a in Partition::ALL {
            for b in Partition::ALL {
                assert_eq!(a == b, a.unique_guid() == b.unique_guid());
                assert_eq!(
                    a == b,
                    (a.label(), a.type_guid()) == (b.label(), b.type_guid())
                );
                assert_ne!(a.unique_guid(), b.type_guid());
            }
        }
    }

    #[test]
    fn the_image_fits_in_128_mib() {
        let partitions: u64 = Partition::ALL.iter().filter_map(|p| p.image_bytes()).sum();
        assert!(
            partitions + 2 * MIB <= 128 * MIB,
            "with the partition tables at both ends"
        );
    }
}
