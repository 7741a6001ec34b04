//! The host's instructions, counted by Valgrind's callgrind: one run for encoding and one for decoding. Not the box's.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{paths, process, progress};

/// The program: Debian's package of the same name.
const VALGRIND: &str = "valgrind";
const PACKAGE: &str = "outpost-engine-bench";

/// Says what to install where it is not there.
///
/// # Errors
/// It is not there.
pub fn check() -> Result<()> {
    if process::find_program(VALGRIND).is_none() {
        bail!(
            "{VALGRIND} is not installed: on Debian, `apt-get install valgrind`; or leave --callgrind out"
        );
    }
    Ok(())
}

/// Instructions that encoding and decoding took in each case, in order. The program is built with the profile of the box's binary.
///
/// # Errors
/// It does not build, or Valgrind fails.
pub fn count(old: &[u8], new: &[u8], folder: &Path) -> Result<Vec<(u64, u64)>> {
    // A build directory of its own: one that cargo holds would make us wait for ourselves.
    let target = paths::target().join("engine-bench");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = process::command(cargo)?;
    build
        .current_dir(paths::workspace())
        .args([
            "build",
            "--quiet",
            "--profile",
            "image",
            "--package",
            PACKAGE,
        ])
        .arg("--target-dir")
        .arg(&target);
    eprintln!("Building the host's program");
    process::output(build, "cargo")?;
    let program = target.join("image").join(PACKAGE);
    std::fs::write(folder.join("OLD"), old)?;
    std::fs::write(folder.join("NEW"), new)?;

    let spinner = progress::spinner("Counting the host's instructions with callgrind");
    let encoding = phase(&program, folder, "encode_piece")?;
    let decoding = phase(&program, folder, "decode_piece")?;
    spinner.finish_and_clear();
    Ok(encoding.into_iter().zip(decoding).collect())
}

/// Instructions inside of `function` in each case.
fn phase(program: &Path, folder: &Path, function: &str) -> Result<Vec<u64>> {
    let out = folder.join(function);
    let mut command = process::command(VALGRIND)?;
    command
        .current_dir(folder)
        // Else each byte that the C library copies with `rep movsb` would count as an instruction.
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.x86_rep_movsb_threshold=1000000000:glibc.cpu.x86_rep_stosb_threshold=1000000000",
        )
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(format!("--toggle-collect=*{function}*"))
        .arg("--dump-after=*end_of_case*")
        .arg(program)
        .args(["OLD", "NEW"]);
    process::output(command, VALGRIND)?;
    // OUT.1, OUT.2, … one for each case; what the end of the program adds is no case.
    let mut counts = Vec::new();
    while let Ok(text) = std::fs::read_to_string(out.with_extension((counts.len() + 1).to_string()))
    {
        if text.contains("desc: Trigger: Program termination") {
            break;
        }
        counts.push(total(&text).context("callgrind's file has no line of totals")?);
    }
    Ok(counts)
}

fn total(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("totals:"))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found() {
        assert_eq!(total("events: Ir\nfn=(1)\n3 4\ntotals: 1234\n"), Some(1234));
        assert_eq!(total("events: Ir\n"), None);
    }
}
