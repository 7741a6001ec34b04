//! Slot images written, read, damaged, cut short and made of noise.

use outpost_image_format::{
    Digest, ENTRY_ALIGNMENT, HEADER_BYTES, Header, KERNEL, Manifest, RAMDISK, Slot, SlotError,
    SlotWriter,
};
use proptest::prelude::*;

fn example() -> Vec<u8> {
    SlotWriter::new("directory", "console=ttyS0 quiet")
        .entry(KERNEL, &[0x5a; 10_000])
        .entry(RAMDISK, b"a small ramdisk")
        .finish()
        .unwrap()
}

/// The example with another manifest, with digest and length as they should be.
fn with_manifest(change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
    let mut image = example();
    let mut manifest = Slot::parse(&image).unwrap().manifest().clone();
    let old = Header::parse(&image, image.len() as u64)
        .unwrap()
        .manifest_range();
    image[old.start as usize..old.end as usize].fill(0);
    change(&mut manifest);
    let bytes = postcard::to_allocvec(&manifest).unwrap();
    image[HEADER_BYTES..HEADER_BYTES + bytes.len()].copy_from_slice(&bytes);
    image[12..16].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    image[24..56].copy_from_slice(&Digest::of(&bytes).0);
    image
}

fn error(image: &[u8]) -> SlotError {
    Slot::parse(image).unwrap_err()
}

#[test]
fn what_is_written_is_read() {
    let mut image = example();
    assert_eq!(image, example(), "the same bytes each time");
    image.extend_from_slice(&[0xff; 700]); // what lies behind it in the partition
    let slot = Slot::parse(&image).unwrap();
    assert_eq!(slot.manifest().guest, "directory");
    assert_eq!(slot.manifest().command_line, "console=ttyS0 quiet");
    assert_eq!(slot.read(KERNEL).unwrap(), [0x5a; 10_000]);
    assert_eq!(slot.read(RAMDISK).unwrap(), b"a small ramdisk");
    assert_eq!(slot.read("root"), Err(SlotError::Missing("root".into())));
    for entry in &slot.manifest().entries {
        assert_eq!(entry.offset % ENTRY_ALIGNMENT, 0);
    }
}

#[test]
fn an_empty_slot_is_not_a_damaged_one() {
    assert_eq!(error(&[0; 4096]), SlotError::Empty);
    assert_eq!(error(&[1; 4096]), SlotError::NotASlot);
    let mut image = example();
    image[8] = 2;
    assert_eq!(error(&image), SlotError::Version(2));
}

#[test]
fn every_cut_is_noticed() {
    let image = example();
    for length in 0..image.len() {
        let expected = if length < HEADER_BYTES {
            HEADER_BYTES
        } else {
            image.len()
        };
        assert_eq!(
            error(&image[..length]),
            SlotError::CutShort {
                need: expected as u64,
                have: length as u64
            }
        );
    }
    assert_eq!(
        Header::parse(&image[..HEADER_BYTES], 5000),
        Err(SlotError::CutShort {
            need: image.len() as u64,
            have: 5000
        }),
        "the partition's size counts, not what has been read of it"
    );
}

#[test]
fn every_damaged_byte_that_matters_is_noticed() {
    let image = example();
    let slot = Slot::parse(&image).unwrap();
    let (kernel, ramdisk) = (
        slot.manifest().entries[0].clone(),
        slot.manifest().entries[1].clone(),
    );
    let manifest = Header::parse(&image, image.len() as u64)
        .unwrap()
        .manifest_range();
    for at in 0..image.len() {
        let mut damaged = image.clone();
        damaged[at] ^= 0x10;
        let whole = Slot::parse(&damaged).and_then(|slot| {
            slot.read(KERNEL)?;
            slot.read(RAMDISK)?;
            Ok(())
        });
        let position = at as u64;
        let padding = position >= manifest.end
            && !kernel.range().unwrap().contains(&position)
            && !ramdisk.range().unwrap().contains(&position);
        assert_eq!(whole.is_ok(), padding, "byte {at}: {whole:?}");
    }
}

#[test]
fn a_damaged_entry_says_both_digests() {
    let mut image = example();
    *image.last_mut().unwrap() ^= 1;
    let slot = Slot::parse(&image).unwrap();
    let expected = Digest::of(b"a small ramdisk");
    let Err(SlotError::EntryDigest {
        entry,
        expected: said,
        found,
    }) = slot.read(RAMDISK)
    else {
        panic!("the ramdisk was accepted");
    };
    assert_eq!((entry.as_str(), said), ("ramdisk", expected));
    assert_ne!(found, expected);
    assert!(slot.read(KERNEL).is_ok(), "the other entry is whole");
}

#[test]
fn manifests_that_lie_are_refused() {
    let place = |name: &str| SlotError::Place(name.into());
    for (change, expected) in [
        (
            (|m: &mut Manifest| m.entries[1].offset = m.entries[0].offset) as fn(&mut Manifest),
            place("ramdisk"),
        ),
        (|m| m.entries[0].offset += 1, place("kernel")),
        (|m| m.entries[0].offset = 0, place("kernel")),
        (|m| m.entries[0].length = u64::MAX, place("kernel")),
        (|m| m.entries[1].length += 1, place("ramdisk")),
        (|m| m.entries[0].offset = 1 << 40, place("kernel")),
        (
            |m| m.entries[1].name = "kernel".into(),
            SlotError::Manifest("two entries have the same name"),
        ),
        (
            |m| m.entries[1].name = String::new(),
            SlotError::Manifest(
                "an entry's name has 1 to 32 lower-case letters, digits and hyphens",
            ),
        ),
        (
            |m| m.guest = "../x".into(),
            SlotError::Manifest(
                "a guest's name has 1 to 32 lower-case letters, digits and hyphens",
            ),
        ),
        (
            |m| m.command_line = "a\nb".into(),
            SlotError::Manifest(
                "a kernel command line has at most 1024 printable ASCII characters",
            ),
        ),
        (
            |m| m.command_line = "x".repeat(1025),
            SlotError::Manifest(
                "a kernel command line has at most 1024 printable ASCII characters",
            ),
        ),
        (
            |m| {
                for index in 0..15 {
                    let entry = m.entries[0].clone();
                    m.entries.push(outpost_image_format::Entry {
                        name: format!("e{index}"),
                        ..entry
                    });
                }
            },
            SlotError::Manifest("it has more than 16 entries"),
        ),
    ] {
        assert_eq!(error(&with_manifest(change)), expected);
    }
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    assert!(SlotWriter::new("Directory", "").finish().is_err());
    assert!(SlotWriter::new("directory", "é").finish().is_err());
    assert!(
        SlotWriter::new("d", "")
            .entry("a", b"")
            .entry("a", b"")
            .finish()
            .is_err()
    );
}

#[test]
fn the_largest_manifest_fits_before_the_first_entry() {
    let names: Vec<String> = (10..26).map(|index| format!("{index:0>32}")).collect();
    let mut writer = SlotWriter::new("g".repeat(32), "x".repeat(1024));
    for name in &names {
        writer = writer.entry(name.as_str(), b"content");
    }
    let image = writer.finish().unwrap();
    let slot = Slot::parse(&image).unwrap();
    assert!(names.iter().all(|name| slot.read(name) == Ok(b"content")));
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = Slot::parse(&bytes);
    }

    #[test]
    fn a_noisy_manifest_never_panics(noise in proptest::collection::vec(any::<u8>(), 1..400)) {
        let mut image = example();
        image[HEADER_BYTES..HEADER_BYTES + noise.len()].copy_from_slice(&noise);
        image[12..16].copy_from_slice(&(noise.len() as u32).to_le_bytes());
        image[24..56].copy_from_slice(&Digest::of(&noise).0);
        if let Ok(slot) = Slot::parse(&image) {
            let _ = slot.read(KERNEL);
        }
    }

    #[test]
    fn any_guest_comes_back(
        guest in "[a-z0-9-]{1,32}",
        command_line in "[ -~]{0,1024}",
        kernel in proptest::collection::vec(any::<u8>(), 0..9000),
        ramdisk in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9000)),
    ) {
        let mut writer = SlotWriter::new(guest.as_str(), command_line.as_str()).entry(KERNEL, &kernel);
        if let Some(ramdisk) = &ramdisk {
            writer = writer.entry(RAMDISK, ramdisk);
        }
        let image = writer.finish().unwrap();
        let slot = Slot::parse(&image).unwrap();
        prop_assert_eq!(&slot.manifest().guest, &guest);
        prop_assert_eq!(&slot.manifest().command_line, &command_line);
        prop_assert_eq!(slot.read(KERNEL).unwrap(), &kernel[..]);
        prop_assert_eq!(slot.read(RAMDISK).ok(), ramdisk.as_deref());
    }
}
