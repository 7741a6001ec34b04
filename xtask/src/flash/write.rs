//! Writing and reading back.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::Target;
use crate::{process, progress};

const CHUNK: usize = 1 << 20;
/// Bytes between two waits for the device, so that the bar shows what is written and not what is buffered.
const SYNC_EVERY: u64 = 8 << 20;

/// Writes the image. A partition table that an earlier disk layout left at the end of the device is wiped: it would contradict the
/// new one.
///
/// # Errors
/// When the device is in use after all (unless `shared`), or breaks.
pub fn write(image: &Path, target: &Target, shared: bool) -> Result<()> {
    let path = &target.path;
    let mut source =
        File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let length = source.metadata()?.len();
    let mut options = File::options();
    options.write(true);
    if target.is_block_device && !shared {
        // On a block device O_EXCL fails while anything has it mounted or claimed (open(2)).
        options.custom_flags(nix::libc::O_EXCL);
    }
    let mut device = options
        .open(path)
        .with_context(|| format!("cannot write to {} (is it in use?)", path.display()))?;
    if target.bytes > length {
        let tail = (target.bytes - length).min(CHUNK as u64);
        device.seek(SeekFrom::Start(target.bytes - tail))?;
        device
            .write_all(&vec![0; usize::try_from(tail)?])
            .with_context(|| format!("{} broke", path.display()))?;
        device.seek(SeekFrom::Start(0))?;
    }
    let bar = progress::bytes(length, format!("Writing {}", path.display()));
    let mut buffer = vec![0; CHUNK];
    let mut written = 0;
    while written < length {
        process::check_interrupted()?;
        let got = source
            .read(&mut buffer)
            .with_context(|| format!("cannot read {}", image.display()))?;
        let chunk = buffer.get(..got).unwrap_or_default();
        if chunk.is_empty() {
            bail!("{} became shorter while it was written", image.display());
        }
        device
            .write_all(chunk)
            .with_context(|| format!("{} broke at byte {written}", path.display()))?;
        written += got as u64;
        if written % SYNC_EVERY < got as u64 || written == length {
            device
                .sync_data()
                .with_context(|| format!("{} broke before byte {written}", path.display()))?;
        }
        bar.set_position(written);
    }
    device
        .sync_all()
        .with_context(|| format!("{} broke", path.display()))?;
    bar.finish_and_clear();
    Ok(())
}

/// Reads the device back and compares it with the image.
///
/// # Errors
/// When a byte differs.
pub fn verify(image: &Path, target: &Target) -> Result<()> {
    let path = &target.path;
    let mut source =
        File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let length = source.metadata()?.len();
    let mut device =
        File::open(path).with_context(|| format!("cannot read {} back", path.display()))?;
    // What is read must come from the device, not from what the kernel remembers.
    let _ = posix_fadvise(&device, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    let bar = progress::bytes(length, format!("Verifying {}", path.display()));
    let (mut expected, mut found) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut compared = 0;
    while compared < length {
        process::check_interrupted()?;
        let step = usize::try_from((length - compared).min(CHUNK as u64))?;
        let (expected, found) = (
            expected.get_mut(..step).unwrap_or_default(),
            found.get_mut(..step).unwrap_or_default(),
        );
        source
            .read_exact(expected)
            .with_context(|| format!("cannot read {}", image.display()))?;
        device
            .read_exact(found)
            .with_context(|| format!("cannot read {} back at byte {compared}", path.display()))?;
        if let Some(at) = expected.iter().zip(found.iter()).position(|(a, b)| a != b) {
            bail!(
                "{} does not hold what was written: byte {} differs. Try again; if it stays so, the device is worn out or fake",
                path.display(),
                compared + at as u64
            );
        }
        compared += step as u64;
        bar.set_position(compared);
    }
    bar.finish_and_clear();
    Ok(())
}
