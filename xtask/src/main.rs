//! Builds, runs, tests and flashes Outpost. `cargo xtask --help` lists the commands; docs/building.md explains them.

mod accel;
mod paths;
mod process;
mod qemu;
mod qmp;
mod run;

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
    /// Boot two sites with a slow line between them, and fetch files through them
    Run(run::Args),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = process::catch_signals().and_then(|()| match arguments.command {
        Command::Run(arguments) => run::run(arguments),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<process::Interrupted>() => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
