//! What the client fetches: two versions of one thing as text, the same thing compressed, and noise.
//!
//! By default the two versions are releases of a crate, fetched by exact version through cargo and checked against their
//! SHA-256, as tar archives of their source. Everything is made once and kept in cargo's build directory.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::line::Dice;
use crate::releases::{self, Release};

/// SQLite's and SQLCipher's source in C: 20 MB.
const CRATE: &str = "libsqlite3-sys";
const OLD: Release = Release {
    name: CRATE,
    version: "0.30.1",
    sha256: "2e99fb7a497b1e3339bc746195567ed8d3e24945ecd636e3619d20b9de9e9149",
};
const NEW: Release = Release {
    name: CRATE,
    version: "0.31.0",
    sha256: "ad8935b44e7c13394a179a438e0cebba0fe08fe01b54f152e29a93b5cf993fd4",
};

/// Bytes of noise: some seven seconds of the default line, so that there is time to do something in the middle of it.
const NOISE_BYTES: usize = 8 << 20;

/// A file that the server offers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Served {
    /// Its name in the URL.
    pub name: String,
    /// What it is, for people.
    pub what: String,
    /// Where it is on this machine.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its digest, in hexadecimal.
    pub sha256: String,
    /// It does not shrink to half when compressed.
    pub dense: bool,
}

/// All that the server offers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Files {
    /// The version that is fetched directly, cold and warm.
    pub old: Served,
    /// The next version of it.
    pub new: Served,
    /// A compressed file.
    pub compressed: Served,
    /// Bytes that no one has ever sent.
    pub noise: Served,
}

impl Files {
    /// Every file.
    pub fn all(&self) -> [&Served; 4] {
        [&self.old, &self.new, &self.compressed, &self.noise]
    }
}

/// The two releases, and what goes with them, in `directory`.
///
/// # Errors
/// When they cannot be fetched, or are not what their digests say.
pub fn published(directory: &Path) -> Result<Files> {
    let [old, new] = releases::fetch(directory, [OLD, NEW])?;
    let unpack = |release: &Release, archive: &Path| -> Result<Served> {
        let name = format!("{CRATE}-{}.tar", release.version);
        let path = directory.join(&name);
        let what = format!("{CRATE} {}, its source as a tar", release.version);
        copy_through(&mut GzDecoder::new(File::open(archive)?), &path)
            .with_context(|| format!("cannot unpack {}", archive.display()))?;
        served(name, what, path)
    };
    let archive_name = format!("{CRATE}-{}.tar.gz", OLD.version);
    let archive = directory.join(&archive_name);
    copy_through(&mut File::open(&old)?, &archive)?;
    Ok(Files {
        old: unpack(&OLD, &old)?,
        new: unpack(&NEW, &new)?,
        compressed: served(
            archive_name,
            format!("{CRATE} {} as published (compressed)", OLD.version),
            archive,
        )?,
        noise: noise(directory)?,
    })
}

/// The user's own two files, and what goes with them.
///
/// # Errors
/// When one cannot be read.
pub fn own(old: &Path, new: &Path, directory: &Path) -> Result<Files> {
    let own = |prefix: &str, path: &Path| -> Result<Served> {
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(path.is_file(), "{} is not a file", path.display());
        served(prefix.to_owned(), path.display().to_string(), path)
    };
    let old = own("old", old)?;
    let path = directory.join("own.gz");
    copy_through(
        &mut GzEncoder::new(File::open(&old.path)?, Compression::default()),
        &path,
    )?;
    let compressed = served("old.gz".into(), format!("{}, compressed", old.what), path)?;
    Ok(Files {
        new: own("new", new)?,
        compressed,
        noise: noise(directory)?,
        old,
    })
}

fn noise(directory: &Path) -> Result<Served> {
    let mut dice = Dice::new(0x006f_7574_706f_7374);
    let bytes: Vec<u8> = (0..NOISE_BYTES / 8)
        .flat_map(|_| dice.next().to_le_bytes())
        .collect();
    let path = directory.join("noise.bin");
    copy_through(&mut bytes.as_slice(), &path)?;
    served("noise.bin".into(), "noise".into(), path)
}

/// Writes all of `source` to a new file at `path`, so that a half-written file is never taken for a whole one.
fn copy_through(source: &mut dyn Read, path: &Path) -> Result<()> {
    let parent = path.parent().context("a file has a parent")?;
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    std::io::copy(source, &mut file)?;
    file.flush()?;
    file.persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

fn served(name: String, what: String, path: PathBuf) -> Result<Served> {
    let mut file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let length = file.metadata()?.len();
    let bar = match length {
        0..0x1000_0000 => ProgressBar::hidden(),
        _ => ProgressBar::new(length).with_message(format!("reading {what}")),
    };
    bar.set_style(ProgressStyle::with_template(
        "{msg} {wide_bar} {bytes}/{total_bytes} {eta}",
    )?);
    let mut digest = Sha256::new();
    let mut packed = flate2::write::DeflateEncoder::new(Count(0), Compression::fast());
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0u64;
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        let part = buffer.get(..length).unwrap_or_default();
        digest.update(part);
        packed.write_all(part)?;
        bytes += length as u64;
        bar.set_position(bytes);
    }
    bar.finish_and_clear();
    let dense = packed.finish()?.0 * 2 > bytes;
    Ok(Served {
        name,
        what,
        path,
        bytes,
        sha256: hex::encode(digest.finalize()),
        dense,
    })
}

/// Counts what is written to it.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_files_are_offered_with_a_compressed_one_and_noise() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (
            directory.path().join("a.txt"),
            directory.path().join("b.txt"),
        );
        std::fs::write(&old, "the same again ".repeat(10_000)).unwrap();
        std::fs::write(&new, "abc").unwrap();
        let files = own(&old, &new, directory.path()).unwrap();
        assert_eq!(
            files.new.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!((files.old.bytes, files.old.dense), (150_000, false));
        assert!(files.compressed.bytes < 2000);
        assert_eq!((files.noise.bytes, files.noise.dense), (8 << 20, true));
        let names: std::collections::BTreeSet<_> =
            files.all().iter().map(|file| file.name.clone()).collect();
        assert_eq!(names.len(), 4);
    }

    #[test]
    fn what_is_no_file_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = format!(
            "{:#}",
            own(&missing, directory.path(), directory.path()).unwrap_err()
        );
        assert!(error.contains("missing"), "{error}");
    }
}
