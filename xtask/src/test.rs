//! `cargo xtask test`: formatting, clippy with warnings as errors, host tests, the image, and the emulator tests.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::emulator_tests::{self, Stage, Tally};
use crate::process::{self, Process};
use crate::setup::{self, Group};
use crate::toolchain::Toolchain;
use crate::{firmware, image, paths, progress};

/// `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only the emulator tests whose names contain one of these
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Run the emulator tests only
    #[arg(long)]
    emulator: bool,
    /// Run everything but the emulator tests
    #[arg(long, conflicts_with_all = ["emulator", "names"])]
    host: bool,
    /// List the emulator tests
    #[arg(long)]
    list: bool,
    /// Emulator tests at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    jobs: usize,
}

/// Runs the command.
///
/// # Errors
/// When something failed. Everything that can be run is run all the same.
pub fn run(arguments: &Args) -> Result<()> {
    if arguments.list {
        for (name, about) in emulator_tests::names() {
            println!("{name:24} {about}");
        }
        return Ok(());
    }
    let started = Instant::now();
    setup::ensure(&[
        Group::Emulator,
        Group::Namespaces,
        Group::FirmwareToolchain,
        Group::FirmwareClippy,
    ])?;
    let mut tally = Tally::default();
    let emulator_only = arguments.emulator || !arguments.names.is_empty();
    if !emulator_only {
        for (name, check) in checks() {
            println!("== {name}");
            let began = Instant::now();
            let result = check();
            process::check_interrupted()?;
            tally.count(name, &result);
            match result {
                Ok(()) => println!("  ok    {name} ({} s)", began.elapsed().as_secs()),
                Err(error) => println!(
                    "  FAIL  {name} ({} s): {error:#}",
                    began.elapsed().as_secs()
                ),
            }
        }
    }
    if !arguments.host {
        println!("== emulator tests");
        match Stage::build()
            .and_then(|stage| emulator_tests::run(&stage, &arguments.names, arguments.jobs))
        {
            Ok(emulator) => tally.add(emulator),
            Err(error) => {
                process::check_interrupted()?;
                tally.failed.push("emulator tests");
                println!("  FAIL  emulator tests: {error:#}");
            }
        }
    }
    let minutes = started.elapsed().as_secs() / 60;
    println!(
        "\n{} passed, {} failed ({minutes} min {} s)",
        tally.passed,
        tally.failed.len(),
        started.elapsed().as_secs() % 60
    );
    if !tally.failed.is_empty() {
        bail!("failed: {}", tally.failed.join(", "));
    }
    Ok(())
}

impl Tally {
    fn count(&mut self, name: &'static str, result: &Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(_) => self.failed.push(name),
        }
    }

    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
    }
}

type Check = fn() -> Result<()>;

fn checks() -> [(&'static str, Check); 6] {
    [
        ("formatting", formatting),
        ("clippy, host", clippy_host),
        ("clippy, firmware", clippy_firmware),
        ("host tests", host_tests),
        ("documentation tests", documentation_tests),
        ("the image is the same when built again", reproducible),
    ]
}

fn cargo(arguments: &[&str]) -> Result<Command> {
    let mut command =
        process::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))?;
    command.current_dir(paths::workspace()).args(arguments);
    Ok(command)
}

fn succeed(command: Command, name: &str, advice: &str) -> Result<()> {
    let status = Process::start(command, name)?.wait()?;
    if !status.success() {
        bail!("{name} ended with {status}: see its messages above{advice}");
    }
    Ok(())
}

fn formatting() -> Result<()> {
    succeed(
        cargo(&["fmt", "--all", "--check"])?,
        "cargo fmt",
        "; `cargo fmt --all` puts it right",
    )
}

/// The crates that are built for the host, and the parts of `image` that touch no hardware.
fn clippy_host() -> Result<()> {
    succeed(
        cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--keep-going",
            "--",
            "-D",
            "warnings",
        ])?,
        "cargo clippy",
        "",
    )
}

fn clippy_firmware() -> Result<()> {
    let target = paths::target().join("firmware");
    let mut command = Toolchain::find()?.cargo("clippy", &paths::workspace(), &target, true)?;
    for program in ["outpost", "outpost-engine-bench"] {
        command.args(["--package", program, "--bin", program]);
    }
    succeed(command, "cargo clippy", "")
}

fn host_tests() -> Result<()> {
    if process::find_program("cargo-nextest").is_some() {
        return succeed(
            cargo(&[
                "nextest",
                "run",
                "--workspace",
                "--no-fail-fast",
                "--status-level",
                "fail",
            ])?,
            "cargo nextest",
            "",
        );
    }
    succeed(
        cargo(&[
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
            "--quiet",
        ])?,
        "cargo test",
        "",
    )
}

fn documentation_tests() -> Result<()> {
    succeed(
        cargo(&["test", "--workspace", "--doc", "--quiet"])?,
        "cargo test --doc",
        "",
    )
}

/// Builds the binary in another build directory and puts the image together twice.
fn reproducible() -> Result<()> {
    // The binary that the emulator tests run, so that it is built no more often than this needs.
    let guests = emulator_tests::guests()?;
    let pins = guests.each_ref().map(image::GuestFiles::pin);
    let one = firmware::build(&pins)?;
    let other = firmware::build_in(&pins, &paths::target().join("firmware-again"))?;
    if one.digest != other.digest {
        bail!(
            "the box's binary differs when it is built again: SHA-256 {} and {}",
            one.digest,
            other.digest
        );
    }
    let spinner = progress::spinner("Putting the disk image together twice");
    let folder = tempfile::tempdir()?;
    let [directory, _] = guests;
    let slot = directory.slot()?;
    let mut digests = Vec::new();
    for name in ["one.img", "other.img"] {
        let path = folder.path().join(name);
        image::assemble(&one.bytes, image::TEMPLATE, Some(&slot), &path)?;
        digests.push(image::digest_of_file(&path)?);
    }
    spinner.finish_and_clear();
    if digests.first() != digests.last() {
        bail!("the image differs when it is put together again: SHA-256 {digests:?}");
    }
    Ok(())
}
