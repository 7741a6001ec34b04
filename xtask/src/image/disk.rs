//! The partition table (crate `gpt`), and partitions as things to read, write and seek in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{OperatingSystem, Type};
use outpost_image_format::{DISK_GUID, Guid, Partition};
use uuid::Uuid;

use super::Sparse;

const SECTOR: u64 = 512;
const MIB: u64 = 1024 * 1024;

fn uuid(guid: Guid) -> Uuid {
    Uuid::from_bytes_le(guid.0)
}

/// An image that is being put together.
pub struct DiskImage {
    places: Vec<(Partition, u64, u64)>,
    content: Vec<(u64, Vec<u8>)>,
    length: u64,
}

impl DiskImage {
    /// An image with the partitions that an image has, one after another from 1 MiB.
    ///
    /// # Errors
    /// When they would be more than [`super::MAX_BYTES`].
    pub fn new() -> Result<DiskImage> {
        let mut places = Vec::new();
        let mut end = MIB;
        for partition in Partition::ALL {
            if let Some(bytes) = partition.image_bytes() {
                places.push((partition, end, bytes));
                end += bytes;
            }
        }
        // The backup table lies in the last MiB.
        let length = end + MIB;
        if length > super::MAX_BYTES {
            bail!(
                "the image would have {length} bytes; at most {} are allowed",
                super::MAX_BYTES
            );
        }
        Ok(DiskImage {
            places,
            content: Vec::new(),
            length,
        })
    }

    /// Puts `bytes` at the beginning of a partition.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn write(&mut self, partition: Partition, bytes: &[u8]) -> Result<()> {
        let Some(&(_, start, room)) = self.places.iter().find(|place| place.0 == partition) else {
            bail!("an image has no partition {}", partition.label());
        };
        if bytes.len() as u64 > room {
            bail!(
                "{} bytes do not fit in the partition {} of {room}",
                bytes.len(),
                partition.label()
            );
        }
        self.content.push((start, bytes.to_vec()));
        Ok(())
    }

    /// Writes the image to `out`, whole or not at all.
    ///
    /// # Errors
    /// When the disk is full, say.
    pub fn finish(self, out: &Path) -> Result<()> {
        let folder = match out.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let temporary = tempfile::Builder::new()
            .prefix(".outpost-image-")
            .tempfile_in(folder)
            .with_context(|| format!("cannot write in {}", folder.display()))?
            .into_temp_path();
        let mut sparse = Sparse::create(&temporary, self.length)?;
        write_table(sparse.file(), &self.places, self.length)?;
        for (start, bytes) in &self.content {
            sparse.write_at(*start, bytes)?;
        }
        sparse.file().sync_all()?;
        temporary
            .persist(out)
            .with_context(|| format!("cannot write {}", out.display()))?;
        // A temporary file is private; an image is not.
        std::fs::set_permissions(out, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        Ok(())
    }
}

fn write_table(mut device: &File, places: &[(Partition, u64, u64)], length: u64) -> Result<()> {
    let sectors = u32::try_from(length / SECTOR - 1).context("the image is too long")?;
    ProtectiveMBR::with_lb_size(sectors)
        .overwrite_lba0(&mut device)
        .context("cannot write the protective MBR")?;
    let mut disk = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(device, Some(uuid(DISK_GUID)))
        .context("cannot make the partition table")?;
    let mut table = BTreeMap::new();
    for (index, &(partition, start, bytes)) in (1..).zip(places) {
        table.insert(
            index,
            gpt::partition::Partition {
                part_type_guid: Type {
                    guid: uuid(partition.type_guid()),
                    os: OperatingSystem::None,
                },
                part_guid: uuid(partition.unique_guid()),
                first_lba: start / SECTOR,
                last_lba: (start + bytes) / SECTOR - 1,
                flags: 0,
                name: partition.label().to_owned(),
            },
        );
    }
    disk.update_partitions(table)
        .context("cannot make the partition table")?;
    disk.write().context("cannot write the partition table")?;
    Ok(())
}

/// A disk (image) with an Outpost partition table.
pub struct Disk<'a> {
    file: &'a File,
    places: Vec<(Partition, u64, u64)>,
}

impl<'a> Disk<'a> {
    /// Reads the partition table.
    ///
    /// # Errors
    /// When there is none, or it has none of Outpost's partitions.
    pub fn open(file: &'a File) -> Result<Disk<'a>> {
        let table = gpt::GptConfig::new()
            .writable(false)
            .logical_block_size(LogicalBlockSize::Lb512)
            .open_from_device(file)
            .context("this is not a disk image with a GPT partition table")?;
        let mut places = Vec::new();
        for entry in table.partitions().values() {
            let known = Partition::ALL.into_iter().find(|partition| {
                uuid(partition.type_guid()) == entry.part_type_guid.guid
                    && partition.label() == entry.name
            });
            if let Some(partition) = known {
                places.push((
                    partition,
                    entry.bytes_start(LogicalBlockSize::Lb512)?,
                    entry.bytes_len(LogicalBlockSize::Lb512)?,
                ));
            }
        }
        if !places.iter().any(|place| place.0 == Partition::Esp) {
            bail!("this is not an Outpost disk: it has no partition named esp");
        }
        Ok(Disk { file, places })
    }

    /// A partition's bytes, from its beginning.
    ///
    /// # Errors
    /// When the disk has none of that name and type.
    pub fn partition(&mut self, partition: Partition) -> Result<Bytes<'a>> {
        match self.places.iter().find(|place| place.0 == partition) {
            Some(&(_, start, length)) => Ok(Bytes {
                file: self.file,
                start,
                length,
                position: 0,
            }),
            None => bail!("the disk has no partition {}", partition.label()),
        }
    }
}

/// A part of a file, as if it were one.
pub struct Bytes<'a> {
    file: &'a File,
    start: u64,
    length: u64,
    position: u64,
}

impl Bytes<'_> {
    /// Where it begins in the file.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// How much of `wanted` lies between the position and the end; the file is set to that place.
    fn at_position(&mut self, wanted: usize) -> io::Result<usize> {
        self.file
            .seek(SeekFrom::Start(self.start + self.position))?;
        let left = self.length.saturating_sub(self.position);
        Ok(usize::try_from(left).unwrap_or(usize::MAX).min(wanted))
    }
}

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.at_position(buffer.len())?;
        let got = self.file.read(buffer.get_mut(..room).unwrap_or_default())?;
        self.position += got as u64;
        Ok(got)
    }
}

impl Write for Bytes<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let room = self.at_position(buffer.len())?;
        let put = self.file.write(buffer.get(..room).unwrap_or_default())?;
        self.position += put as u64;
        Ok(put)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Bytes<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        match position {
            Some(position) => {
                self.position = position;
                Ok(position)
            }
            None => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }
}
