//! What would be overwritten: read from sysfs and the mount table.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::stat::{major, minor};

use crate::image::human;

/// A disk, or a file that stands for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The device's path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Maker and model, as far as known.
    pub model: String,
    /// A stick or card, or on USB. A file counts as one.
    pub removable: bool,
    /// Cannot be written.
    pub read_only: bool,
    /// The disk's name if this is only a partition of it.
    pub partition_of: Option<String>,
    /// Partitions: name and size in bytes.
    pub partitions: Vec<(String, u64)>,
    /// What uses it: mount points, swap, device-mapper.
    pub uses: Vec<String>,
    /// False for a file.
    pub is_block_device: bool,
}

impl Target {
    /// Looks at a device or file.
    ///
    /// # Errors
    /// When it is not there, or neither a block device nor a file.
    pub fn inspect(path: &Path) -> Result<Target> {
        let path = fs::canonicalize(path).with_context(|| {
            format!(
                "there is no {}; `lsblk` lists the disks of this machine",
                path.display()
            )
        })?;
        let metadata = fs::metadata(&path)?;
        if metadata.file_type().is_file() {
            return Ok(Target {
                bytes: metadata.len(),
                model: "file".into(),
                removable: true,
                read_only: metadata.permissions().readonly(),
                partition_of: None,
                partitions: Vec::new(),
                uses: Vec::new(),
                is_block_device: false,
                path,
            });
        }
        if !metadata.file_type().is_block_device() {
            bail!(
                "{} is neither a disk nor a file; `lsblk` lists the disks of this machine",
                path.display()
            );
        }
        let device = metadata.rdev();
        let sysfs = fs::canonicalize(format!(
            "/sys/dev/block/{}:{}",
            major(device),
            minor(device)
        ))
        .with_context(|| format!("the kernel does not know {}", path.display()))?;
        Target::from_sysfs(path, &sysfs, &Tables::read())
    }

    /// From the device's folder in sysfs.
    fn from_sysfs(path: PathBuf, sysfs: &Path, tables: &Tables) -> Result<Target> {
        let partition_of = sysfs
            .join("partition")
            .exists()
            .then(|| sysfs.parent().map(name_of).unwrap_or_default());
        let mut partitions = Vec::new();
        let mut folders = vec![sysfs.to_owned()];
        for entry in fs::read_dir(sysfs)
            .with_context(|| format!("cannot read {}", sysfs.display()))?
            .flatten()
        {
            if entry.path().join("partition").exists() {
                let name = entry.file_name().to_string_lossy().into_owned();
                partitions.push((name, sectors(&entry.path())));
                folders.push(entry.path());
            }
        }
        partitions.sort();
        let mut uses = Vec::new();
        for folder in &folders {
            uses.extend(tables.uses_of(&read(folder, "dev"), &name_of(folder)));
            for holder in fs::read_dir(folder.join("holders"))
                .into_iter()
                .flatten()
                .flatten()
            {
                uses.push(format!(
                    "{} holds {}",
                    holder.file_name().to_string_lossy(),
                    name_of(folder)
                ));
            }
        }
        uses.sort();
        let model = [
            read(sysfs, "device/vendor"),
            read(sysfs, "device/model"),
            read(sysfs, "device/name"),
        ];
        let model: Vec<String> = model.into_iter().filter(|part| !part.is_empty()).collect();
        Ok(Target {
            bytes: sectors(sysfs),
            model: if model.is_empty() {
                "unknown model".into()
            } else {
                model.join(" ")
            },
            removable: read(sysfs, "removable") == "1"
                || sysfs
                    .components()
                    .any(|part| part.as_os_str().to_string_lossy().starts_with("usb")),
            read_only: read(sysfs, "ro") == "1",
            partition_of,
            partitions,
            uses,
            is_block_device: true,
            path,
        })
    }

    /// What will be overwritten, for people.
    pub fn describe(&self) -> String {
        let mut text = format!(
            "{}: {}, {}",
            self.path.display(),
            self.model,
            human(self.bytes)
        );
        if self.is_block_device {
            text.push_str(if self.removable {
                ", removable"
            } else {
                ", NOT removable"
            });
            if self.partitions.is_empty() {
                text.push_str("\n  no partitions");
            }
        }
        for (name, bytes) in &self.partitions {
            text.push_str(&format!("\n  partition {name}: {}", human(*bytes)));
        }
        for used in &self.uses {
            text.push_str(&format!("\n  IN USE: {used}"));
        }
        text
    }
}

/// The kernel's tables of what is in use.
struct Tables {
    mounts: String,
    swaps: String,
}

impl Tables {
    fn read() -> Tables {
        Tables {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
            swaps: fs::read_to_string("/proc/swaps").unwrap_or_default(),
        }
    }

    /// Uses of the device with that number (`8:1`) and name (`sda1`). proc(5): in mountinfo the third field is the device, the fifth
    /// the mount point; in swaps the first is the path.
    fn uses_of(&self, number: &str, name: &str) -> Vec<String> {
        let mounts = self.mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(2);
            let device = fields.next()?;
            let place = fields.nth(1)?;
            (device == number).then(|| format!("{name} is mounted at {place}"))
        });
        let swaps = self.swaps.lines().filter_map(|line| {
            let path = line.split_whitespace().next()?;
            (path == format!("/dev/{name}")).then(|| format!("{name} is swap space"))
        });
        mounts.chain(swaps).collect()
    }
}

fn name_of(folder: &Path) -> String {
    folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn read(folder: &Path, file: &str) -> String {
    fs::read_to_string(folder.join(file))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// `size` in sysfs is in units of 512 bytes, whatever the disk's sectors are.
fn sectors(folder: &Path) -> u64 {
    read(folder, "size")
        .parse::<u64>()
        .unwrap_or(0)
        .saturating_mul(512)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs of a stick `sdz` with two partitions.
    fn stick(bus: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join(bus).join("sdz");
        let write = |file: &str, text: &str| {
            let path = disk.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("dev", "8:400\n");
        write("size", "8388608\n");
        write("removable", "0\n");
        write("ro", "0\n");
        write("device/vendor", "Acme    \n");
        write("device/model", "Stick 4000  \n");
        for (name, number) in [("sdz1", "8:401"), ("sdz2", "8:402")] {
            write(&format!("{name}/partition"), "1\n");
            write(&format!("{name}/dev"), number);
            write(&format!("{name}/size"), "2048\n");
            write(&format!("{name}/holders/.keep"), "");
        }
        fs::remove_file(disk.join("sdz1/holders/.keep")).unwrap();
        fs::remove_file(disk.join("sdz2/holders/.keep")).unwrap();
        (folder, disk)
    }

    fn unused() -> Tables {
        Tables {
            mounts: String::new(),
            swaps: String::new(),
        }
    }

    #[test]
    fn a_stick_is_seen_whole() {
        let (_folder, disk) = stick("usb2");
        let target = Target::from_sysfs("/dev/sdz".into(), &disk, &unused()).unwrap();
        assert_eq!(
            (target.bytes, target.model.as_str()),
            (4 << 30, "Acme Stick 4000")
        );
        assert!(target.removable && target.uses.is_empty() && target.partition_of.is_none());
        assert_eq!(
            target.partitions,
            [("sdz1".to_owned(), 1 << 20), ("sdz2".to_owned(), 1 << 20)]
        );
        let text = target.describe();
        assert!(
            text.contains("Acme Stick 4000") && text.contains("partition sdz2: 1.00 MiB"),
            "{text}"
        );
    }

    #[test]
    fn the_bus_decides_when_the_disk_does_not_say() {
        let (_folder, disk) = stick("ata1");
        assert!(
            !Target::from_sysfs("/dev/sdz".into(), &disk, &unused())
                .unwrap()
                .removable
        );
        fs::write(disk.join("removable"), "1\n").unwrap();
        assert!(
            Target::from_sysfs("/dev/sdz".into(), &disk, &unused())
                .unwrap()
                .removable
        );
    }

    #[test]
    fn every_use_is_found() {
        let (_folder, disk) = stick("usb2");
        fs::write(disk.join("sdz2/holders/dm-3"), "").unwrap();
        let tables = Tables {
            mounts: "36 35 8:401 / /media/stick rw,noatime - vfat /dev/sdz1 rw\n40 35 8:1 / / rw - ext4 /dev/sda1 rw\n".into(),
            swaps: "Filename Type Size Used Priority\n/dev/sdz2 partition 1000 0 -2\n".into(),
        };
        let target = Target::from_sysfs("/dev/sdz".into(), &disk, &tables).unwrap();
        assert_eq!(
            target.uses,
            [
                "dm-3 holds sdz2",
                "sdz1 is mounted at /media/stick",
                "sdz2 is swap space"
            ]
        );
    }

    #[test]
    fn a_partition_is_recognised() {
        let (_folder, disk) = stick("usb2");
        let target = Target::from_sysfs("/dev/sdz1".into(), &disk.join("sdz1"), &unused()).unwrap();
        assert_eq!(target.partition_of.as_deref(), Some("sdz"));
    }

    #[test]
    fn the_disk_under_our_feet_is_in_use() {
        let root = fs::metadata("/").unwrap().dev();
        let Ok(sysfs) = fs::canonicalize(format!("/sys/dev/block/{}:{}", major(root), minor(root)))
        else {
            eprintln!("skipped: / is not on a block device here");
            return;
        };
        let target = Target::from_sysfs("/dev/x".into(), &sysfs, &Tables::read()).unwrap();
        assert!(
            target
                .uses
                .iter()
                .any(|used| used.ends_with("is mounted at /")),
            "{:?}",
            target.uses
        );
    }
}
