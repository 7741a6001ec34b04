//! Writes slot images. The same input gives the same bytes.

use alloc::string::String;
use alloc::vec::Vec;

use crate::slot::{Entry, Header, MAX_MANIFEST_BYTES, Manifest, SlotError};
use crate::{Digest, ENTRY_ALIGNMENT, HEADER_BYTES};

/// Collects what goes into a slot image.
#[derive(Clone, Debug)]
pub struct SlotWriter<'a> {
    manifest: Manifest,
    contents: Vec<&'a [u8]>,
}

impl<'a> SlotWriter<'a> {
    /// Begins an image for the guest of that name, with its kernel's command line.
    pub fn new(guest: impl Into<String>, command_line: impl Into<String>) -> SlotWriter<'a> {
        SlotWriter {
            manifest: Manifest {
                guest: guest.into(),
                command_line: command_line.into(),
                entries: Vec::new(),
            },
            contents: Vec::new(),
        }
    }

    /// Adds a file.
    pub fn entry(mut self, name: impl Into<String>, bytes: &'a [u8]) -> SlotWriter<'a> {
        self.manifest.entries.push(Entry {
            name: name.into(),
            offset: 0,
            length: bytes.len() as u64,
            sha256: Digest::of(bytes),
        });
        self.contents.push(bytes);
        self
    }

    /// The image.
    ///
    /// # Errors
    /// [`SlotError::Manifest`] when a name, the command line or the number of entries is not allowed.
    pub fn finish(mut self) -> Result<Vec<u8>, SlotError> {
        self.manifest.check_words()?;
        // Every manifest that is allowed fits in these bytes, so the places do not depend on its length.
        let mut end = (HEADER_BYTES + MAX_MANIFEST_BYTES) as u64;
        for entry in &mut self.manifest.entries {
            entry.offset = end.next_multiple_of(ENTRY_ALIGNMENT);
            end = entry.offset + entry.length;
        }
        let manifest = postcard::to_allocvec(&self.manifest)
            .map_err(|_| SlotError::Manifest("it cannot be encoded"))?;
        let header = Header {
            manifest_bytes: u32::try_from(manifest.len()).map_err(|_| SlotError::Lengths)?,
            image_bytes: end,
            manifest_digest: Digest::of(&manifest),
        };
        let mut image = Vec::with_capacity(usize::try_from(end).map_err(|_| SlotError::Lengths)?);
        image.extend_from_slice(&header.to_bytes());
        image.extend_from_slice(&manifest);
        for (entry, bytes) in self.manifest.entries.iter().zip(&self.contents) {
            image.resize(
                usize::try_from(entry.offset).map_err(|_| SlotError::Lengths)?,
                0,
            );
            image.extend_from_slice(bytes);
        }
        image.resize(usize::try_from(end).map_err(|_| SlotError::Lengths)?, 0);
        Ok(image)
    }
}
