//! The guest's files: read from the slot into memory here, checked against their pins before the guest starts.
//!
//! Checking ([`GuestFiles::check`]) is left to the guest's keeper, because it takes a while.

use alloc::format;
use alloc::string::{String, ToString};

use outpost::disk::Extent;
use outpost_image_format::{
    Entry, HEADER_BYTES, Hasher, Header, KERNEL, MAX_MANIFEST_BYTES, Manifest, Pin, PinBlock,
    RAMDISK, SlotError, parse_pins,
};
use uefi::boot::{self, AllocateType};
use uefi::mem::memory_map::MemoryType;

use super::PAGE;
use super::disk::{self, FirmwareDisk, Prepared};

/// The guests this binary runs, written here when it is linked (`xtask/src/firmware.rs`).
#[used]
static PINNED: PinBlock = PinBlock::EMPTY;

/// A file of the slot in memory, and what the slot says of it.
struct File {
    entry: Entry,
    bytes: &'static [u8],
}

/// The guest as it was read.
pub struct GuestFiles {
    /// Its name.
    pub name: String,
    /// Its kernel command line, without the box's own words.
    pub command_line: String,
    pin: Pin,
    kernel: File,
    ramdisk: Option<File>,
}

/// How far a check of the files has come.
#[derive(Default)]
pub struct Check {
    file: usize,
    offset: usize,
    hasher: Hasher,
}

/// Reads the guest called `name`.
///
/// # Errors
/// In one line, that a person can act on.
pub fn load(name: &str, prepared: &mut Prepared) -> Result<GuestFiles, String> {
    let slot = disk::active_slot(&prepared.table)?;
    let disk = &mut prepared.disk;
    let manifest = read_manifest(disk, slot)?;
    if manifest.guest != name {
        return Err(format!(
            "outpost.toml asks for guest \"{name}\", the slot holds \"{}\": change [guest] name, or build an image with that guest",
            manifest.guest
        ));
    }
    // SAFETY: it is a static that nothing writes while we run. Volatile, since it is not what the compiler has seen.
    let pinned = unsafe { (&raw const PINNED).read_volatile() };
    let pins = parse_pins(pinned.text()).map_err(|error| error.to_string())?;
    let pin = pins
        .into_iter()
        .find(|pin| pin.guest == name)
        .ok_or_else(|| {
            format!("this binary has no pinned guest \"{name}\": build binary and image together")
        })?;
    let kernel = manifest.entry(KERNEL).map_err(|error| error.to_string())?;
    let kernel = read_file(disk, slot, kernel)?;
    let ramdisk = match (manifest.entry(RAMDISK), &pin.ramdisk) {
        (Ok(entry), _) => Some(read_file(disk, slot, entry)?),
        (Err(SlotError::Missing(_)), None) => None,
        (Err(error), _) => return Err(error.to_string()),
    };
    log::info!(
        "guest: read {name} from the slot: kernel {} KiB, initial ramdisk {} KiB",
        kernel.bytes.len() >> 10,
        ramdisk.as_ref().map_or(0, |file| file.bytes.len()) >> 10
    );
    Ok(GuestFiles {
        name: manifest.guest,
        command_line: manifest.command_line,
        pin,
        kernel,
        ramdisk,
    })
}

fn read_manifest(disk: &mut FirmwareDisk, slot: Extent) -> Result<Manifest, String> {
    let mut bytes = alloc::vec![0; HEADER_BYTES + MAX_MANIFEST_BYTES];
    let there = usize::try_from(slot.bytes).map_or(bytes.len(), |slot| slot.min(bytes.len()));
    bytes.truncate(there);
    disk.read_at(slot, 0, &mut bytes)
        .map_err(|_| unreadable("slot-a"))?;
    let parse = || {
        let header = Header::parse(&bytes, slot.bytes)?;
        let range = header.manifest_range();
        let manifest = bytes
            .get(range.start as usize..range.end as usize)
            .ok_or(SlotError::Lengths)?;
        Manifest::parse(&header, manifest)
    };
    parse().map_err(|error| error.to_string())
}

fn unreadable(what: &str) -> String {
    format!("the disk does not read {what}: replace the disk")
}

fn read_file(disk: &mut FirmwareDisk, slot: Extent, entry: &Entry) -> Result<File, String> {
    let length = usize::try_from(entry.length).map_err(|_| unreadable(&entry.name))?;
    let pages = length.div_ceil(PAGE).max(1);
    let start = boot::allocate_pages(AllocateType::AnyPages, MemoryType::LOADER_DATA, pages)
        .map_err(|_| {
            format!(
                "there is no memory for the guest's {} of {} MiB: add memory",
                entry.name,
                length >> 20
            )
        })?;
    // SAFETY: the firmware has just given us these pages; they are never given back.
    let bytes: &'static mut [u8] =
        unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), length) };
    disk.read_at(slot, entry.offset, bytes)
        .map_err(|_| unreadable(&entry.name))?;
    Ok(File {
        entry: entry.clone(),
        bytes,
    })
}

impl GuestFiles {
    /// The kernel file.
    pub fn kernel(&self) -> &'static [u8] {
        self.kernel.bytes
    }

    /// The initial ramdisk; empty if there is none.
    pub fn ramdisk(&self) -> &'static [u8] {
        self.ramdisk.as_ref().map_or(&[], |file| file.bytes)
    }

    /// Bytes of memory the files take.
    pub fn bytes(&self) -> u64 {
        (self.kernel().len() + self.ramdisk().len()) as u64
    }

    /// Checks up to so many bytes more of the files, against the slot's manifest and against the digests that are built into this binary. True when all
    /// are checked. A guest that fails must not run.
    ///
    /// # Errors
    /// In one line: which file, and the digests expected and found.
    pub fn check(&self, check: &mut Check, most: usize) -> Result<bool, String> {
        let files = [
            (Some(&self.kernel), Some(self.pin.kernel)),
            (self.ramdisk.as_ref(), self.pin.ramdisk),
        ];
        let Some((file, pinned)) = files.get(check.file) else {
            return Ok(true);
        };
        if let Some(file) = file {
            let left = file.bytes.get(check.offset..).unwrap_or_default();
            let piece = left.get(..most).unwrap_or(left);
            check.hasher.update(piece);
            check.offset += piece.len();
            if piece.len() < left.len() {
                return Ok(false);
            }
            let found = core::mem::take(&mut check.hasher).finish();
            file.entry
                .check_digest(found)
                .map_err(|error| error.to_string())?;
            // The manifest's digest is what was found.
            if *pinned != Some(found) {
                return Err(format!(
                    "the guest's {} is not the pinned one, so it does not run: SHA-256 expected {}, found {found}",
                    file.entry.name,
                    pinned.map_or_else(|| String::from("none"), |digest| digest.to_string()),
                ));
            }
        }
        check.file += 1;
        check.offset = 0;
        Ok(check.file == files.len())
    }
}
