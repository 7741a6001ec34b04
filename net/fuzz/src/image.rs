//! A target for the slot image, which the box reads from its disk before anything has vouched for it.

use outpost_image_format::{
    Digest, HEADER_BYTES, Header, KERNEL, MAX_COMMAND_LINE_BYTES, MAX_ENTRIES, MAX_NAME_BYTES,
    RAMDISK, Slot, SlotError, SlotWriter,
};

use crate::Target;

/// Where a header has the manifest's digest.
const MANIFEST_DIGEST: usize = 24;

/// Whatever is taken lies within the image, within its bounds, and is what its digests say.
fn check(image: &[u8]) {
    let slot = match Slot::parse(image) {
        Ok(slot) => slot,
        Err(error) => {
            let message = error.to_string();
            assert!(!message.is_empty() && message.len() < 1_000, "{message}");
            return;
        }
    };
    let manifest = slot.manifest();
    assert!((1..=MAX_NAME_BYTES).contains(&manifest.guest.len()));
    assert!(manifest.command_line.len() <= MAX_COMMAND_LINE_BYTES);
    assert!(manifest.entries.len() <= MAX_ENTRIES);
    let header = Header::parse(image, image.len() as u64).expect("a header that was taken before");
    for (index, entry) in manifest.entries.iter().enumerate() {
        let range = entry.range().expect("a place");
        assert!(header.manifest_range().end <= range.start);
        assert!(range.end <= header.image_bytes());
        for other in manifest.entries.iter().take(index) {
            let other = other.range().expect("a place");
            assert!(range.end <= other.start || other.end <= range.start);
        }
        match slot.read(&entry.name) {
            Ok(bytes) => assert!(bytes.len() as u64 == entry.length && entry.check(bytes).is_ok()),
            Err(error) => assert!(matches!(error, SlotError::EntryDigest { .. }), "{error}"),
        }
    }
}

/// Slot images, as they are and with the digest of the manifest that they have.
pub const SLOT: Target = Target {
    name: "image_slot",
    about: "slot images: what is taken lies in the image, each by itself, and has its digest; a wrong one is refused in words",
    run: |input| {
        check(input);
        if let Ok(header) = Header::parse(input, input.len() as u64) {
            let range = header.manifest_range();
            let mut image = input.to_vec();
            let digest = Digest::of(&input[range.start as usize..range.end as usize]);
            image[MANIFEST_DIGEST..MANIFEST_DIGEST + 32].copy_from_slice(&digest.0);
            check(&image);
        }
    },
    honest: || {
        let image = |writer: SlotWriter<'_>| writer.finish().expect("an honest slot image");
        vec![
            (
                "both",
                image(
                    SlotWriter::new("directory", "console=ttyS0 quiet")
                        .entry(KERNEL, &[0x5a; 100])
                        .entry(RAMDISK, b"a ramdisk"),
                ),
            ),
            (
                "kernel",
                image(SlotWriter::new("probe", "").entry(KERNEL, b"kernel")),
            ),
            ("empty", vec![0; HEADER_BYTES]),
        ]
    },
    cases: 3_000,
    memory: 1 << 20,
};
