//! Builds the probe guest (`guests/probe`), the tiny kernel that the emulator tests run. Its head comment says what it can do.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::image::GuestFiles;
use crate::{paths, process};

/// What the probe does when nothing else is said.
pub const DEFAULT: &str = "hello";

/// Assembles it, to do what `mode` says: the first word of its command line.
///
/// # Errors
/// When the assembler is missing or fails.
pub fn build(mode: &str) -> Result<GuestFiles> {
    let folder = paths::workspace().join("guests/probe");
    let mut sources: Vec<PathBuf> = std::fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "s"))
        .collect();
    // In the order of its build instructions: the file with the entry point first, whatever the folder's order is.
    sources.sort_by_key(|path| {
        (
            path.file_name().is_none_or(|name| name != "probe.s"),
            path.clone(),
        )
    });
    let out = tempfile::tempdir().context("cannot make a temporary directory")?;
    let (object, kernel) = (out.path().join("probe.o"), out.path().join("probe.elf"));
    let mut assembler = process::command("as")?;
    assembler.arg("--32").arg("-o").arg(&object).args(&sources);
    process::output(assembler, "as (of guests/probe)")?;
    let mut linker = process::command("ld")?;
    linker
        .args([
            "-m",
            "elf_i386",
            "--no-warn-rwx-segments",
            "-static",
            "-n",
            "-nostdlib",
            "-Ttext=0x100000",
            "-e",
            "start",
            "-o",
        ])
        .args([&kernel, &object]);
    process::output(linker, "ld (of guests/probe)")?;
    Ok(GuestFiles {
        name: "probe".into(),
        command_line: mode.to_owned(),
        kernel: std::fs::read(&kernel)
            .with_context(|| format!("cannot read {}", kernel.display()))?,
        ramdisk: None,
    })
}
