//! The engine's figures of the files OLD and NEW. As a UEFI program: of those in the top folder of the volume it was started from,
//! on the serial port, counted by the TSC, which under QEMU's `-icount` goes on by the same for each instruction.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod firmware;

/// On the host nothing is counted from inside: callgrind counts from outside.
#[cfg(not(target_os = "uefi"))]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [old, new] = &arguments[..] else {
        eprintln!(
            "usage: outpost-engine-bench OLD NEW (`cargo xtask bench engine` is what calls it)"
        );
        return ExitCode::from(2);
    };
    let read = |path| std::fs::read(path).map_err(|error| format!("cannot read {path:?}: {error}"));
    let run = || -> Result<(), String> {
        let (old, new) = (read(old)?, read(new)?);
        outpost_engine_bench::run(&old, &new, &mut || 0, &mut end_of_case)
            .map_err(|error| error.to_string())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where callgrind writes what it has counted, and starts anew.
#[cfg(not(target_os = "uefi"))]
#[inline(never)]
fn end_of_case(figures: outpost_engine_bench::Figures) {
    println!("{} {figures}", outpost_engine_bench::MARK);
}
