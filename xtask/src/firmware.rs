//! Builds the box's binary, `outpost.efi`, and writes the pinned guests' digests into it.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use outpost_image_format::{Digest, Pin, write_pins};

use crate::paths;
use crate::process::Process;
use crate::toolchain::{TARGET, Toolchain};

/// The most that the binary may have.
pub const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// The box's binary.
pub struct Firmware {
    /// The PE file.
    pub bytes: Vec<u8>,
    /// Its digest.
    pub digest: Digest,
}

/// Builds the binary.
///
/// # Errors
/// When there is no toolchain for it, it does not compile, it is larger than [`MAX_BYTES`], or there are too many pins.
pub fn build(pins: &[Pin]) -> Result<Firmware> {
    build_in(pins, &paths::target().join("firmware"))
}

/// Builds the binary in another build directory (for the test of reproducibility).
///
/// # Errors
/// As [`build`].
pub fn build_in(pins: &[Pin], target: &Path) -> Result<Firmware> {
    let mut bytes = compile("outpost", "the box's binary", target)?;
    write_pins(&mut bytes, pins)?;
    let digest = Digest::of(&bytes);
    Ok(Firmware { bytes, digest })
}

/// Builds the UEFI program of another package with the toolchain, the profile and the flags of the box's binary.
///
/// # Errors
/// As [`build`].
pub fn build_program(package: &str, what: &str) -> Result<Vec<u8>> {
    compile(package, what, &paths::target().join("firmware"))
}

fn compile(package: &str, what: &str, target: &Path) -> Result<Vec<u8>> {
    let toolchain = Toolchain::find()?;
    std::fs::create_dir_all(target).with_context(|| format!("cannot make {}", target.display()))?;
    // Cargo's own lock ends before the result is read.
    let lock = File::create(target.join(".outpost-lock"))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", target.display()))?;

    eprintln!("Building {what} with {}", toolchain.describe());
    let mut command = toolchain.cargo("build", &paths::workspace(), target, false)?;
    command.args(["--profile", "image", "--package", package]);
    // Cargo draws its own progress bar.
    let status = Process::start(command, "cargo")?.wait()?;
    if !status.success() {
        bail!("{what} does not build: see cargo's messages above");
    }
    let path = target
        .join(TARGET)
        .join("image")
        .join(package)
        .with_extension("efi");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    check(&bytes)?;
    Ok(bytes)
}

/// Checks that it is an EFI application for x86-64 that is not too large (PE/COFF specification 8.3).
fn check(bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 > MAX_BYTES {
        bail!(
            "the box's binary has {} bytes; at most {MAX_BYTES} (4 MiB) are allowed",
            bytes.len()
        );
    }
    let field = |at: usize, length: usize| {
        bytes
            .get(at..at + length)
            .map(|field| field.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b)))
    };
    let pe = field(0x3c, 4)
        .and_then(|at| usize::try_from(at).ok())
        .unwrap_or(usize::MAX / 2);
    let sound = bytes.starts_with(b"MZ")
        && field(pe, 4) == Some(u64::from(u32::from_le_bytes(*b"PE\0\0")))
        && field(pe + 4, 2) == Some(0x8664)
        && field(pe + 24 + 68, 2) == Some(10);
    if !sound {
        bail!("what cargo built is not an EFI application for x86-64");
    }
    Ok(())
}
