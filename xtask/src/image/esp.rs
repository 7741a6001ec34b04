//! The EFI system partition (crate `fatfs`): the loader where firmware looks for it, and the configuration at the top.

use std::io::{Cursor, Read, Seek, Write};

use anyhow::{Context, Result};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use outpost_image_format::Digest;

use super::Item;

/// Where firmware looks on a disk that no boot entry names (UEFI 2.10, 3.5.1.1).
const LOADER: &str = "EFI/BOOT/BOOTX64.EFI";
/// The box's configuration.
const CONFIG: &str = "outpost.toml";

/// A FAT32 file system of `bytes` with the loader and the configuration. The same inputs give the same bytes: the serial number is
/// fixed, and without fatfs's feature `chrono` every file has FAT's first date.
///
/// # Errors
/// When they do not fit.
pub fn make(efi: &[u8], config: &str, bytes: u64) -> Result<Vec<u8>> {
    volume(&[(LOADER, efi), (CONFIG, config.as_bytes())], bytes)
}

/// A FAT32 file system of `bytes` with these files, and the folder that holds the loader. The same inputs give the same bytes.
///
/// # Errors
/// When they do not fit.
pub fn volume(files: &[(&str, &[u8])], bytes: u64) -> Result<Vec<u8>> {
    let mut volume = vec![0; usize::try_from(bytes)?];
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(512)
        .volume_id(0x4f75_7470)
        .volume_label(*b"OUTPOST    ");
    fatfs::format_volume(Cursor::new(&mut volume), options)
        .context("cannot make the FAT file system")?;
    let system = FileSystem::new(Cursor::new(&mut volume), FsOptions::new())
        .context("cannot open the FAT file system")?;
    {
        let root = system.root_dir();
        root.create_dir("EFI")?.create_dir("BOOT")?;
        for (path, bytes) in files {
            write(&system, path, bytes)?;
        }
    }
    system
        .unmount()
        .context("cannot finish the FAT file system")?;
    Ok(volume)
}

/// Replaces the configuration.
///
/// # Errors
/// When the partition holds no FAT file system, or is full.
pub fn set_config(esp: &mut (impl Read + Write + Seek), config: &str) -> Result<()> {
    let system =
        FileSystem::new(esp, FsOptions::new()).context("the esp holds no FAT file system")?;
    write(&system, CONFIG, config.as_bytes())?;
    system
        .unmount()
        .context("cannot finish the FAT file system")
}

fn write<D: Read + Write + Seek>(system: &FileSystem<D>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut file = system
        .root_dir()
        .create_file(path)
        .with_context(|| format!("cannot make {path} on the esp"))?;
    file.truncate()?;
    file.write_all(bytes)
        .with_context(|| format!("{path} does not fit on the esp"))?;
    file.flush()?;
    Ok(())
}

/// What is on the ESP, for the table of contents.
///
/// # Errors
/// When it holds no FAT file system.
pub fn contents(esp: &mut (impl Read + Write + Seek)) -> Result<Vec<Item>> {
    let system =
        FileSystem::new(esp, FsOptions::new()).context("the esp holds no FAT file system")?;
    let mut items = Vec::new();
    for path in [LOADER, CONFIG] {
        let mut content = Vec::new();
        match system.root_dir().open_file(path) {
            Ok(mut file) => file.read_to_end(&mut content)?,
            Err(_) => {
                items.push(Item {
                    what: format!("  {path}"),
                    bytes: 0,
                    note: "missing".into(),
                });
                continue;
            }
        };
        items.push(Item {
            what: format!("  {path}"),
            bytes: content.len() as u64,
            note: format!("SHA-256 {}", Digest::of(&content)),
        });
    }
    Ok(items)
}

/// The configuration.
///
/// # Errors
/// When it is not there.
#[cfg(test)]
pub fn config(esp: &mut (impl Read + Write + Seek)) -> Result<String> {
    let system = FileSystem::new(esp, FsOptions::new())?;
    let mut text = String::new();
    system
        .root_dir()
        .open_file(CONFIG)?
        .read_to_string(&mut text)?;
    Ok(text)
}
