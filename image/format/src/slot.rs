//! A slot image: one guest with its kernel, initial ramdisk and command line, that describes and proves itself.
//!
//! ```text
//! 0    magic "OUTPSLOT"
//! 8    version (u32, little-endian, as all numbers here)
//! 12   length of the manifest (u32)
//! 16   length of the whole image (u64)
//! 24   SHA-256 of the manifest
//! 56   zeros
//! 512  manifest (postcard)
//! …    entries, each at a multiple of 4096, zeros between them
//! ```
//! The digests say that the image is whole. Whether the guest may run is the pin's business ([`crate::Pin`]).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// The first eight bytes.
pub const MAGIC: [u8; 8] = *b"OUTPSLOT";
/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// Bytes before the manifest.
pub const HEADER_BYTES: usize = 512;
/// The longest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: usize = 16 * 1024;
/// The most entries.
pub const MAX_ENTRIES: usize = 16;
/// The longest name of a guest or an entry, in bytes.
pub const MAX_NAME_BYTES: usize = 32;
/// The longest kernel command line, in bytes. The box adds its own words; Linux reads 2,047 bytes on x86 in all.
pub const MAX_COMMAND_LINE_BYTES: usize = 1024;
/// Entries begin at multiples of this, in bytes.
pub const ENTRY_ALIGNMENT: u64 = 4096;
/// The entry that is the guest's kernel.
pub const KERNEL: &str = "kernel";
/// The entry that is the guest's initial ramdisk, if it has one.
pub const RAMDISK: &str = "ramdisk";

/// Why a slot image cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// The slot begins with zeros: nothing has been installed.
    Empty,
    /// The slot begins with something else.
    NotASlot,
    /// A version that this program does not read.
    Version(u32),
    /// The image is longer than what is there.
    CutShort {
        /// Bytes that the image has by its header.
        need: u64,
        /// Bytes that are there.
        have: u64,
    },
    /// The manifest's length is zero or over [`MAX_MANIFEST_BYTES`], or the image's is too small for it.
    Lengths,
    /// The manifest's digest is not the one in the header.
    ManifestDigest,
    /// The manifest is not one, with what is wrong.
    Manifest(&'static str),
    /// An entry lies outside the image or over another, or is misaligned.
    Place(String),
    /// No entry of that name.
    Missing(String),
    /// The entry's bytes have another digest.
    EntryDigest {
        /// The entry's name.
        entry: String,
        /// What the manifest says.
        expected: Digest,
        /// What is there.
        found: Digest,
    },
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotError::Empty => {
                f.write_str("the slot is empty: the image was built without a guest")
            }
            SlotError::NotASlot => {
                f.write_str("the slot does not begin with a slot image: write the disk image again")
            }
            SlotError::Version(found) => {
                write!(
                    f,
                    "the slot image has version {found}; this program reads version {VERSION}"
                )
            }
            SlotError::CutShort { need, have } => write!(
                f,
                "the slot image is cut short: it has {need} bytes by its header, {have} are there; write the disk image again"
            ),
            SlotError::Lengths => f.write_str(
                "the slot image's header gives impossible lengths: write the disk image again",
            ),
            SlotError::ManifestDigest => f.write_str(
                "the slot image's manifest is damaged (wrong SHA-256): write the disk image again",
            ),
            SlotError::Manifest(what) => {
                write!(f, "the slot image's manifest is malformed: {what}")
            }
            SlotError::Place(entry) => {
                write!(
                    f,
                    "the slot image's entry {entry} is misaligned, outside the image or over another entry"
                )
            }
            SlotError::Missing(entry) => write!(f, "the slot image has no entry {entry}"),
            SlotError::EntryDigest {
                entry,
                expected,
                found,
            } => {
                write!(
                    f,
                    "the slot image's {entry} is damaged: SHA-256 {found}, expected {expected}"
                )
            }
        }
    }
}

impl core::error::Error for SlotError {}

/// The fixed first part, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub(crate) manifest_bytes: u32,
    pub(crate) image_bytes: u64,
    pub(crate) manifest_digest: Digest,
}

impl Header {
    /// Checks the first [`HEADER_BYTES`] bytes of a slot that has room for `slot_bytes`.
    ///
    /// # Errors
    /// [`SlotError::Empty`], [`SlotError::NotASlot`], [`SlotError::Version`], [`SlotError::CutShort`] or
    /// [`SlotError::Lengths`].
    pub fn parse(bytes: &[u8], slot_bytes: u64) -> Result<Header, SlotError> {
        let short = SlotError::CutShort {
            need: HEADER_BYTES as u64,
            have: slot_bytes.min(bytes.len() as u64),
        };
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(short);
        };
        let (magic, rest) = take::<8>(header).ok_or(SlotError::NotASlot)?;
        let (version, rest) = take::<4>(rest).ok_or(SlotError::NotASlot)?;
        let (manifest_bytes, rest) = take::<4>(rest).ok_or(SlotError::NotASlot)?;
        let (image_bytes, rest) = take::<8>(rest).ok_or(SlotError::NotASlot)?;
        let (manifest_digest, zeros) = take::<32>(rest).ok_or(SlotError::NotASlot)?;
        if header.iter().all(|&byte| byte == 0) {
            return Err(SlotError::Empty);
        }
        if magic != MAGIC {
            return Err(SlotError::NotASlot);
        }
        let version = u32::from_le_bytes(version);
        if version != VERSION {
            return Err(SlotError::Version(version));
        }
        let header = Header {
            manifest_bytes: u32::from_le_bytes(manifest_bytes),
            image_bytes: u64::from_le_bytes(image_bytes),
            manifest_digest: Digest(manifest_digest),
        };
        if header.manifest_bytes == 0
            || header.manifest_bytes > MAX_MANIFEST_BYTES as u32
            || header.image_bytes < header.manifest_range().end
            || zeros.iter().any(|&byte| byte != 0)
        {
            return Err(SlotError::Lengths);
        }
        if header.image_bytes > slot_bytes {
            return Err(SlotError::CutShort {
                need: header.image_bytes,
                have: slot_bytes,
            });
        }
        Ok(header)
    }

    /// The bytes of the image that hold the manifest.
    pub fn manifest_range(&self) -> Range<u64> {
        HEADER_BYTES as u64..HEADER_BYTES as u64 + u64::from(self.manifest_bytes)
    }

    /// The length of the whole image.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields = MAGIC
            .into_iter()
            .chain(VERSION.to_le_bytes())
            .chain(self.manifest_bytes.to_le_bytes())
            .chain(self.image_bytes.to_le_bytes())
            .chain(self.manifest_digest.0);
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        bytes
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    bytes
        .split_first_chunk::<N>()
        .map(|(head, tail)| (*head, tail))
}

/// What is in a slot image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The guest's name: lower-case letters, digits and hyphens.
    pub guest: String,
    /// The guest kernel's command line, to which the box adds addresses. Printable ASCII.
    pub command_line: String,
    /// The files.
    pub entries: Vec<Entry>,
}

/// One file in a slot image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// [`KERNEL`], [`RAMDISK`] or something that this version does not know.
    pub name: String,
    /// Where it begins, in bytes from the beginning of the image.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its digest.
    pub sha256: Digest,
}

impl Manifest {
    /// Checks the bytes at [`Header::manifest_range`].
    ///
    /// # Errors
    /// [`SlotError::ManifestDigest`], [`SlotError::Manifest`] or [`SlotError::Place`].
    pub fn parse(header: &Header, bytes: &[u8]) -> Result<Manifest, SlotError> {
        if bytes.len() as u64 != u64::from(header.manifest_bytes)
            || Digest::of(bytes) != header.manifest_digest
        {
            return Err(SlotError::ManifestDigest);
        }
        let (manifest, rest) = postcard::take_from_bytes::<Manifest>(bytes)
            .map_err(|_| SlotError::Manifest("it cannot be decoded"))?;
        if !rest.is_empty() {
            return Err(SlotError::Manifest("bytes follow it"));
        }
        manifest.check(header)?;
        Ok(manifest)
    }

    fn check(&self, header: &Header) -> Result<(), SlotError> {
        self.check_words()?;
        for (index, entry) in self.entries.iter().enumerate() {
            let place = || SlotError::Place(entry.name.clone());
            let range = entry.range().ok_or_else(place)?;
            let outside =
                range.start < header.manifest_range().end || range.end > header.image_bytes;
            let others = self.entries.iter().take(index);
            let overlaps = |other: &Entry| {
                other
                    .range()
                    .is_none_or(|other| range.start < other.end && other.start < range.end)
            };
            if outside
                || !range.start.is_multiple_of(ENTRY_ALIGNMENT)
                || others.into_iter().any(overlaps)
            {
                return Err(place());
            }
        }
        Ok(())
    }

    /// What can be checked before the entries have their places.
    pub(crate) fn check_words(&self) -> Result<(), SlotError> {
        if !is_name(&self.guest) {
            return Err(SlotError::Manifest(
                "a guest's name has 1 to 32 lower-case letters, digits and hyphens",
            ));
        }
        if self.command_line.len() > MAX_COMMAND_LINE_BYTES
            || !self
                .command_line
                .bytes()
                .all(|byte| matches!(byte, b' '..=b'~'))
        {
            return Err(SlotError::Manifest(
                "a kernel command line has at most 1024 printable ASCII characters",
            ));
        }
        if self.entries.len() > MAX_ENTRIES {
            return Err(SlotError::Manifest("it has more than 16 entries"));
        }
        for (index, entry) in self.entries.iter().enumerate() {
            if !is_name(&entry.name) {
                return Err(SlotError::Manifest(
                    "an entry's name has 1 to 32 lower-case letters, digits and hyphens",
                ));
            }
            if self
                .entries
                .iter()
                .take(index)
                .any(|other| other.name == entry.name)
            {
                return Err(SlotError::Manifest("two entries have the same name"));
            }
        }
        Ok(())
    }

    /// The entry of that name.
    ///
    /// # Errors
    /// [`SlotError::Missing`].
    pub fn entry(&self, name: &str) -> Result<&Entry, SlotError> {
        self.entries
            .iter()
            .find(|entry| entry.name == name)
            .ok_or_else(|| SlotError::Missing(name.into()))
    }
}

impl Entry {
    /// Its bytes of the image; `None` if they would end after the last number.
    pub fn range(&self) -> Option<Range<u64>> {
        Some(self.offset..self.offset.checked_add(self.length)?)
    }

    /// Checks the entry's bytes.
    ///
    /// # Errors
    /// [`SlotError::EntryDigest`], also for the wrong number of bytes.
    pub fn check(&self, bytes: &[u8]) -> Result<(), SlotError> {
        self.check_digest(Digest::of(bytes))
    }

    /// The same, by what was found as the digest of its bytes.
    ///
    /// # Errors
    /// As [`Entry::check`].
    pub fn check_digest(&self, found: Digest) -> Result<(), SlotError> {
        if found == self.sha256 {
            Ok(())
        } else {
            Err(SlotError::EntryDigest {
                entry: self.name.clone(),
                expected: self.sha256,
                found,
            })
        }
    }
}

/// A slot image that is in memory as a whole.
#[derive(Clone, Debug)]
pub struct Slot<'a> {
    image: &'a [u8],
    manifest: Manifest,
}

impl<'a> Slot<'a> {
    /// Checks everything but the entries' digests. Bytes after the image are ignored.
    ///
    /// # Errors
    /// As [`Header::parse`] and [`Manifest::parse`].
    pub fn parse(bytes: &'a [u8]) -> Result<Slot<'a>, SlotError> {
        let header = Header::parse(bytes, bytes.len() as u64)?;
        let manifest = Manifest::parse(&header, slice(bytes, header.manifest_range())?)?;
        Ok(Slot {
            image: slice(bytes, 0..header.image_bytes)?,
            manifest,
        })
    }

    /// What is in it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bytes of an entry, their digest checked.
    ///
    /// # Errors
    /// [`SlotError::Missing`] or [`SlotError::EntryDigest`].
    pub fn read(&self, name: &str) -> Result<&'a [u8], SlotError> {
        let entry = self.manifest.entry(name)?;
        let range = entry.range().ok_or_else(|| SlotError::Place(name.into()))?;
        let bytes = slice(self.image, range)?;
        entry.check(bytes)?;
        Ok(bytes)
    }
}

fn slice(bytes: &[u8], range: Range<u64>) -> Result<&[u8], SlotError> {
    let short = SlotError::CutShort {
        need: range.end,
        have: bytes.len() as u64,
    };
    let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
        return Err(short);
    };
    bytes.get(start..end).ok_or(short)
}

/// Names of guests and entries: lower-case letters, digits and hyphens.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}
