//! Files with holes: what is zero takes no room.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};

/// Granularity of holes, in bytes: a block of the usual file systems.
const BLOCK: usize = 4096;
/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// A file that is written with holes.
pub struct Sparse {
    file: File,
}

impl Sparse {
    /// Makes (or replaces) the file, `bytes` long and all zero.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path, bytes: u64) -> Result<Sparse> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        file.set_len(bytes)
            .with_context(|| format!("no room for {bytes} bytes in {}", path.display()))?;
        Ok(Sparse { file })
    }

    /// Writes `bytes` at `offset` of a file that is zero there.
    ///
    /// # Errors
    /// When the disk is full, say.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        for (index, block) in bytes.chunks(BLOCK).enumerate() {
            if block.iter().any(|&byte| byte != 0) {
                self.file
                    .seek(SeekFrom::Start(offset + (index * BLOCK) as u64))?;
                self.file
                    .write_all(block)
                    .context("cannot write the image")?;
            }
        }
        Ok(())
    }

    /// Makes the file at least `bytes` long.
    ///
    /// # Errors
    /// When there is no room.
    pub fn grow(&mut self, bytes: u64) -> Result<()> {
        if self.file.metadata()?.len() < bytes {
            self.file.set_len(bytes)?;
        }
        Ok(())
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Copies a file, keeping it sparse.
///
/// # Errors
/// When one cannot be read or the other not be written.
pub fn copy(from: &Path, to: &Path) -> Result<Sparse> {
    let mut source = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let length = source.metadata()?.len();
    let mut copy = Sparse::create(to, length)?;
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        let got = source
            .read(&mut buffer)
            .with_context(|| format!("cannot read {}", from.display()))?;
        if got == 0 {
            return Ok(copy);
        }
        copy.write_at(offset, buffer.get(..got).unwrap_or_default())?;
        offset += got as u64;
    }
}
