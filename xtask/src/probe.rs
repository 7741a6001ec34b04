//! Builds the probe guest (`guests/probe`), the tiny kernel that the emulator tests run. Its head comment says what it can do.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::accel::Accelerator;
use crate::image::GuestFiles;
use crate::process::Process;
use crate::qemu::PROGRAM;
use crate::{paths, process};

/// Far beyond what any of its modes takes.
const ENDS: Duration = Duration::from_secs(120);

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

/// Runs the probe on QEMU itself, without a hypervisor, and gives its status and what it wrote.
///
/// # Errors
/// QEMU does not start, or the probe does not end.
pub fn run_on_qemu(kernel: &[u8], cpus: u8, mode: &str) -> Result<(Option<i32>, String)> {
    let folder = tempfile::tempdir().context("cannot make a temporary directory")?;
    let (file, output) = (
        folder.path().join("probe.elf"),
        folder.path().join("output"),
    );
    std::fs::write(&file, kernel).context("cannot write the probe")?;
    let mut command = process::command(PROGRAM)?;
    command
        .args(["-M", "q35", "-accel", Accelerator::Tcg.qemu_option()])
        .args(["-cpu", "max", "-m", "64"])
        .args(["-smp", &cpus.to_string(), "-append", mode, "-kernel"])
        .arg(&file)
        .arg("-serial")
        .arg(format!("file:{}", output.display()))
        .args(["-display", "none", "-monitor", "none", "-no-reboot"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .stdin(Stdio::null());
    let mut process = Process::start(command, "QEMU (probe)")?;
    let status = process
        .wait_for(ENDS)?
        .with_context(|| format!("the probe does not end: {mode}"))?;
    let text = std::fs::read_to_string(&output).unwrap_or_default();
    Ok((status.code(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_passes_on_qemu_itself() {
        if [PROGRAM, "as", "ld"]
            .iter()
            .any(|program| process::find_program(program).is_none())
        {
            eprintln!("skipped: QEMU or binutils are not installed");
            return;
        }
        let kernel = build("").unwrap().kernel;
        for (cpus, mode, line) in [
            (1, "smp 1", "smp: 1 cpus, ipis ok (xAPIC)"),
            (4, "smp 4", "smp: 4 cpus, ipis ok (xAPIC)"),
            (2, "lock 1", "lock: passed"),
            (2, "burn 1", "burn: passed"),
            (2, "fxrstor 1", "fxrstor: passed"),
            (2, "debug 1", "debug: passed"),
            (1, "nmi", "nmi: passed"),
            (1, "real", "real: passed"),
            (2, "wake 1", "wake: passed"),
            (1, "romwrite", "romwrite: passed"),
        ] {
            let (status, text) = run_on_qemu(&kernel, cpus, mode).unwrap();
            assert_eq!(status, Some(1), "{mode}: {text}");
            assert!(text.contains(line), "{mode}: {text}");
        }
        assert_eq!(run_on_qemu(&kernel, 1, "exit 42").unwrap().0, Some(85));
    }
}
