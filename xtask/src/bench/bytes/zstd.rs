//! The tool that Outpost is compared with, as its command line program.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};

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

/// Bytes a second of `zstd -1` on one thread: what its own benchmark says by the clock, or its program needs of CPU time,
/// whichever is more. On a busy machine the clock tells of the others.
///
/// # Errors
/// As [`size`], or its answer is not understood.
pub fn speed(file: &Path) -> Result<f64> {
    let mut command = process::command("zstd")?;
    command
        .args(["-q", "-b1", "-i1", "--single-thread"])
        .arg(file);
    let text = String::from_utf8(process::output(command, "zstd")?)?;
    let by_clock = parse_speed(&text).with_context(|| format!("zstd -b1 said {text:?}"))?;
    let mut command = process::command("zstd")?;
    command
        .args(["-q", "-1", "--single-thread", "-f", "-o", "/dev/null"])
        .arg(file);
    // No other child ends meanwhile.
    let before = children_cpu_time()?;
    process::output(command, "zstd")?;
    let took = children_cpu_time()?.saturating_sub(before);
    let bytes = file.metadata()?.len() as f64;
    Ok(by_clock.max(bytes / took.as_secs_f64().max(1e-6)))
}

/// CPU time of all children that have ended.
fn children_cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |part: nix::sys::time::TimeVal| {
        let micros = part.tv_sec() * 1_000_000 + part.tv_usec();
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
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
