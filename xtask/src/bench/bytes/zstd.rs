//! The tool that Outpost is compared with, as its command line program.

use std::path::Path;

use anyhow::{Context, Result};

use crate::process;

/// Bytes that `file` becomes, at a level from 1 to 19.
///
/// # Errors
/// zstd is missing or fails.
pub fn size(level: u8, file: &Path) -> Result<u64> {
    compressed(level, &[], file)
}

/// Bytes that `file` becomes where `old` is known: a window over all of it, matched to the byte.
///
/// # Errors
/// As [`size`].
pub fn patch_size(level: u8, old: &Path, file: &Path) -> Result<u64> {
    let from = format!("--patch-from={}", old.display());
    compressed(level, &["--long=31", &from], file)
}

fn compressed(level: u8, options: &[&str], file: &Path) -> Result<u64> {
    let mut command = process::command("zstd")?;
    command
        .args(["-q", "-c", &format!("-{level}")])
        .args(options)
        .arg(file);
    Ok(process::output(command, "zstd")?.len() as u64)
}

/// Bytes a second of `zstd -1` on one thread, in memory.
///
/// # Errors
/// As [`size`], or its answer is not understood.
pub fn speed(file: &Path) -> Result<f64> {
    let mut command = process::command("zstd")?;
    command
        .args(["-q", "-b1", "-i1", "--single-thread"])
        .arg(file);
    let text = String::from_utf8(process::output(command, "zstd")?)?;
    parse_speed(&text).with_context(|| format!("zstd -b1 said {text:?}"))
}

/// The first figure before `MB/s`: compressing. The second is decompressing.
fn parse_speed(text: &str) -> Option<f64> {
    let (before, _) = text.split_once("MB/s")?;
    let megabytes: f64 = before.split_whitespace().next_back()?.parse().ok()?;
    Some(megabytes * 1e6)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_speed_of_compressing_is_read() {
        let said = " 1#ts1.tar  :  32471040 ->   6545100 (x4.961),  329.1 MB/s,  972.0 MB/s\n";
        assert_eq!(super::parse_speed(said), Some(329.1e6));
        assert_eq!(super::parse_speed("no"), None);
    }
}
