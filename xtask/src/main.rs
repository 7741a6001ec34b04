//! Builds, runs, tests and flashes Outpost. `cargo xtask --help` lists the commands; docs/building.md explains them.

mod accel;
mod bench;
mod boot;
mod emulator_tests;
mod firmware;
mod flash;
mod guest;
mod image;
mod keys;
mod paths;
mod probe;
mod process;
mod progress;
mod qemu;
mod releases;
mod run;
mod setup;
mod sharing;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about,
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what building, running and testing need: says what and why before it does
    Setup(setup::Args),
    /// Build the disk image, and print its path, size, SHA-256 and what is inside
    BuildImage(image::Args),
    /// Check formatting and lints, and run the host tests and the emulator tests
    Test(test::Args),
    /// Boot one box in QEMU, with its console in this terminal
    Boot(boot::Args),
    /// Write an image to a stick or disk, and verify it
    Flash(flash::Args),
    /// Check configuration files
    Config {
        #[command(subcommand)]
        command: keys::ConfigCommand,
    },
    /// Make a pair of keys for a box
    Keygen,
    /// List, lock or build the guests that can be pinned
    Guest {
        #[command(subcommand)]
        command: guest::Command,
    },
    /// Measure, beside a peer in the same run; the exit status is 1 when a row does not hold
    Bench {
        #[command(subcommand)]
        command: bench::Command,
    },
    /// Boot two sites with a slow line between them, and fetch files through them
    Run(Box<run::Args>),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = process::catch_signals().and_then(|()| run(arguments.command));
    match result {
        Ok(status) => status,
        Err(error) if error.is::<process::Interrupted>() => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Boot(arguments) => return boot::run(&arguments),
        Command::Setup(arguments) => setup::run(&arguments),
        Command::BuildImage(arguments) => image::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Flash(arguments) => flash::run(&arguments),
        Command::Config { command } => keys::config(&command),
        Command::Keygen => keys::keygen(),
        Command::Guest { command } => guest::run(&paths::workspace(), &command),
        Command::Bench { command } => bench::run(&command),
        Command::Run(arguments) => run::run(*arguments),
    }?;
    Ok(ExitCode::SUCCESS)
}
