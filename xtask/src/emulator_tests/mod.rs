//! The emulator tests: the real binary in QEMU, looked at from outside through its two serial ports and its two wires. Each
//! test has a deadline far beyond what it needs; nothing is measured.

mod boxes;
mod config;
mod dmesg;
pub mod frames;
mod guest;
mod list;
mod once;
mod pages;
mod pair;
mod plain;
mod probes;
mod program;
mod station;
mod store;
pub mod watch;
pub mod wire;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::accel::{self, Accelerator};
use crate::image::GuestFiles;
use crate::{firmware, image, paths, probe, process, progress};

/// What every test starts from. The binary pins both guests.
pub struct Stage {
    efi: Vec<u8>,
    directory: GuestFiles,
    probe: GuestFiles,
    accelerator: Accelerator,
}

impl Stage {
    /// Builds what the tests run.
    ///
    /// # Errors
    /// When something does not build.
    pub fn build() -> Result<Stage> {
        let [directory, probe] = guests()?;
        let firmware = firmware::build(&[directory.pin(), probe.pin()])?;
        let spinner = progress::spinner("Finding out whether KVM works here");
        let accelerator = accel::best();
        spinner.finish_and_clear();
        Ok(Stage {
            efi: firmware.bytes,
            directory,
            probe,
            accelerator,
        })
    }

    /// The probe guest, told what to do.
    fn probe(&self, mode: &str) -> GuestFiles {
        GuestFiles {
            command_line: mode.to_owned(),
            ..self.probe.clone()
        }
    }
}

/// The guests that the binary under test pins.
///
/// # Errors
/// When one does not build.
pub fn guests() -> Result<[GuestFiles; 2]> {
    let directory = image::guest_files("directory")?.context("the directory guest has no files")?;
    Ok([directory, probe::build(probe::DEFAULT)?])
}

/// A test.
struct Test {
    name: &'static str,
    about: &'static str,
    /// Far beyond what it needs even on a busy machine.
    deadline: Duration,
    run: fn(&mut Trial<'_>) -> Result<()>,
}

/// A test as it runs.
struct Trial<'a> {
    stage: &'a Stage,
    /// For disks, sockets and logs. Kept when the test fails.
    folder: PathBuf,
    deadline: Instant,
}

/// How a list of tests ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many tests passed.
    pub passed: usize,
    /// The names of those that failed.
    pub failed: Vec<&'static str>,
}

/// Names and descriptions of all tests.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    list::ALL.iter().map(|test| (test.name, test.about))
}

/// Runs the tests whose names contain one of `filters` (all, if there are none), `jobs` at a time.
///
/// # Errors
/// When the user interrupts, or no name matches.
pub fn run(stage: &Stage, filters: &[String], jobs: usize) -> Result<Tally> {
    let wanted: Vec<&Test> = list::ALL
        .iter()
        .filter(|test| {
            filters.is_empty()
                || filters
                    .iter()
                    .any(|filter| test.name.contains(filter.as_str()))
        })
        .collect();
    if wanted.is_empty() {
        return Err(anyhow!(
            "no emulator test has such a name; `cargo xtask test --list` lists them"
        ));
    }
    println!(
        "emulator tests: {} on {}",
        wanted.len(),
        stage.accelerator.name()
    );
    let next = AtomicUsize::new(0);
    let state = Arc::new(Mutex::new((Tally::default(), Vec::<&str>::new())));
    let spinner = progress::quiet_spinner();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(&test) = wanted.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if process::interrupted() {
                        return;
                    }
                    let show = |running: &[&str]| {
                        spinner.set_message(format!("running: {}", running.join(", ")))
                    };
                    {
                        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                        state.1.push(test.name);
                        show(&state.1);
                    }
                    let started = Instant::now();
                    let result = run_one(stage, test);
                    let seconds = started.elapsed().as_secs();
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    state.1.retain(|name| *name != test.name);
                    show(&state.1);
                    match result {
                        Ok(()) => {
                            state.0.passed += 1;
                            spinner.suspend(|| {
                                println!("  ok    {:24} {} ({seconds} s)", test.name, test.about)
                            });
                        }
                        Err(error) => {
                            state.0.failed.push(test.name);
                            spinner.suspend(|| {
                                println!(
                                    "  FAIL  {:24} {} ({seconds} s)\n{}",
                                    test.name,
                                    test.about,
                                    indent(&error)
                                )
                            });
                        }
                    }
                }
            });
        }
    });
    spinner.finish_and_clear();
    process::check_interrupted()?;
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut state.0))
}

fn indent(error: &anyhow::Error) -> String {
    format!("{error:#}")
        .lines()
        .map(|line| format!("        {line}\n"))
        .collect()
}

fn run_one(stage: &Stage, test: &Test) -> Result<()> {
    let folder = tests_folder()?.join(test.name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let mut trial = Trial {
        stage,
        deadline: Instant::now() + test.deadline,
        folder: folder.clone(),
    };
    let result = (test.run)(&mut trial);
    drop_disks(&folder);
    match result {
        Ok(()) => {
            let _ = std::fs::remove_dir_all(&folder);
            Ok(())
        }
        Err(error) => Err(error.context(format!("logs are in {}", folder.display()))),
    }
}

fn tests_folder() -> Result<PathBuf> {
    Ok(paths::output()?.join("tests"))
}

/// Logs of a failed test stay; its disks do not.
fn drop_disks(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_log = entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "log");
        if !is_log {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_different_and_fit_a_folder() {
        let names: Vec<&str> = names().map(|(name, _)| name).collect();
        for (index, name) in names.iter().enumerate() {
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
                "{name}"
            );
            assert!(!names[..index].contains(name), "{name} is there twice");
        }
    }
}
