//! Disk images: `cargo xtask build-image`, and copies of an image with another configuration. Needs no root; the same inputs
//! give the same bytes.

mod command;
mod disk;
mod esp;
mod sparse;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use outpost_image_format::{Digest, KERNEL, Partition, Pin, RAMDISK, Slot, SlotWriter};

pub use command::{Args, build, build_with, guest_files, human, run};
pub use disk::{Disk, DiskImage};
pub use esp::volume;
pub use sparse::Sparse;

/// The most that an image may have, in bytes.
pub const MAX_BYTES: u64 = 128 * 1024 * 1024;

/// The `outpost.toml` of an image that is built without one: every key explained, none set.
pub const TEMPLATE: &str = include_str!("outpost.toml");

/// A guest's files and command line, to go into a slot.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// The guest's name.
    pub name: String,
    /// The kernel's command line.
    pub command_line: String,
    /// The kernel's bytes.
    pub kernel: Vec<u8>,
    /// The initial ramdisk's bytes, if there is one.
    pub ramdisk: Option<Vec<u8>>,
}

impl GuestFiles {
    /// What the binary is told of the guest.
    pub fn pin(&self) -> Pin {
        Pin {
            guest: self.name.clone(),
            kernel: Digest::of(&self.kernel),
            ramdisk: self.ramdisk.as_deref().map(Digest::of),
        }
    }

    /// The guest as a slot image.
    ///
    /// # Errors
    /// When the name or command line is not allowed, or the image does not fit in a slot.
    pub fn slot(&self) -> Result<Vec<u8>> {
        let mut writer = SlotWriter::new(self.name.as_str(), self.command_line.as_str())
            .entry(KERNEL, &self.kernel);
        if let Some(ramdisk) = &self.ramdisk {
            writer = writer.entry(RAMDISK, ramdisk);
        }
        let slot = writer
            .finish()
            .with_context(|| format!("the guest {}", self.name))?;
        let room = Partition::SlotA.image_bytes().unwrap_or_default();
        if slot.len() as u64 > room {
            bail!(
                "the guest {} has {} bytes; a slot has {room}",
                self.name,
                slot.len()
            );
        }
        Ok(slot)
    }
}

/// Puts a disk image together at `out`: the loader and the configuration on the ESP, the slot image (if any) in slot A.
///
/// # Errors
/// When something does not fit or the file cannot be written.
pub fn assemble(efi: &[u8], config: &str, slot: Option<&[u8]>, out: &Path) -> Result<()> {
    let esp_bytes = Partition::Esp.image_bytes().unwrap_or_default();
    let esp = esp::make(efi, config, esp_bytes)?;
    let mut image = DiskImage::new()?;
    image.write(Partition::Esp, &esp)?;
    if let Some(slot) = slot {
        image.write(Partition::SlotA, slot)?;
    }
    image.finish(out)
}

/// Copies the image `base` to `out` with another `outpost.toml`, on a disk of `disk_bytes` if the image is smaller (so that the
/// first boot has room for the partitions it makes). The configuration is not checked: tests install wrong ones.
///
/// # Errors
/// When `base` is not an Outpost image or `out` cannot be written.
pub fn with_config(base: &Path, config: &str, out: &Path, disk_bytes: Option<u64>) -> Result<()> {
    let mut copy = sparse::copy(base, out)?;
    if let Some(bytes) = disk_bytes {
        copy.grow(bytes)?;
    }
    let mut disk = Disk::open(copy.file())?;
    let mut esp = disk.partition(Partition::Esp)?;
    esp::set_config(&mut esp, config).with_context(|| format!("cannot change {}", out.display()))
}

/// Copies the image `base` to `out`, on a disk of `disk_bytes` if the image is smaller.
///
/// # Errors
/// When `base` cannot be read or `out` not be written.
pub fn copy(base: &Path, out: &Path, disk_bytes: Option<u64>) -> Result<()> {
    let mut copy = sparse::copy(base, out)?;
    disk_bytes.map_or(Ok(()), |bytes| copy.grow(bytes))
}

/// One line of the table of what is in an image.
#[derive(Clone, Debug)]
pub struct Item {
    /// The partition, or what is in it (indented).
    pub what: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Remarks: digests, GUIDs.
    pub note: String,
}

/// What is in an image, read back from the file itself.
///
/// # Errors
/// When it is not an Outpost image.
pub fn contents(image: &Path) -> Result<Vec<Item>> {
    use std::io::Read;
    let file =
        std::fs::File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let mut disk = Disk::open(&file)?;
    let mut items = Vec::new();
    for partition in Partition::ALL {
        let Ok(mut bytes) = disk.partition(partition) else {
            items.push(Item {
                what: partition.label().into(),
                bytes: 0,
                note: "made at first boot on what the disk has free".into(),
            });
            continue;
        };
        let from = bytes.start() / (1024 * 1024);
        items.push(Item {
            what: partition.label().into(),
            bytes: bytes.len(),
            note: format!("from {from} MiB"),
        });
        match partition {
            Partition::Esp => items.extend(esp::contents(&mut bytes)?),
            Partition::SlotA | Partition::SlotB => {
                let mut content = Vec::new();
                bytes.read_to_end(&mut content)?;
                match Slot::parse(&content) {
                    Ok(slot) => items.extend(slot_items(&slot)),
                    Err(outpost_image_format::SlotError::Empty) => {
                        items.push(Item {
                            what: "  (empty)".into(),
                            bytes: 0,
                            note: String::new(),
                        });
                    }
                    Err(error) => items.push(Item {
                        what: "  (unusable)".into(),
                        bytes: 0,
                        note: error.to_string(),
                    }),
                }
            }
            _ => {}
        }
    }
    Ok(items)
}

fn slot_items(slot: &Slot<'_>) -> Vec<Item> {
    let manifest = slot.manifest();
    let mut items = vec![Item {
        what: format!("  guest {}", manifest.guest),
        bytes: manifest.entries.iter().map(|entry| entry.length).sum(),
        note: manifest.command_line.clone(),
    }];
    for entry in &manifest.entries {
        let sound = if slot.read(&entry.name).is_ok() {
            ""
        } else {
            " (damaged)"
        };
        items.push(Item {
            what: format!("    {}", entry.name),
            bytes: entry.length,
            note: format!("SHA-256 {}{sound}", entry.sha256),
        });
    }
    items
}

/// The digest of a file.
///
/// # Errors
/// When it cannot be read.
pub fn digest_of_file(path: &Path) -> Result<Digest> {
    use sha2::Digest as _;
    use std::io::Read;
    let mut file =
        std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest(hash.finalize().into())),
            length => hash.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}

/// An image that has been built.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub digest: Digest,
    /// Length of the box's binary in it.
    pub efi_bytes: u64,
    /// The guest in it, if any.
    pub guest: Option<String>,
}

#[cfg(test)]
mod tests;
