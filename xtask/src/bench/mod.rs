//! `cargo xtask bench`: figures beside those of a peer in the same run. Tests are elsewhere: nothing here runs in CI.

mod bytes;
pub mod engine;
pub mod hv;
mod probed;
mod report;
mod sched;

use anyhow::{Result, ensure};

/// What can be measured.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Bytes on the line and their cost in CPU time, beside zstd: two `outpost-peer` programs on this machine
    Bytes(bytes::Args),
    /// The dedup engine in the image beside the same on the host: bytes on the line, and instructions for each byte
    Engine(engine::Args),
    /// The hypervisor beside KVM and beside no hypervisor at all: boot, exits, work
    Hv(hv::Args),
    /// The scheduling policies side by side, in the simulator and on the emulator
    Sched(sched::Args),
}

/// Runs the benchmark.
///
/// # Errors
/// It could not be measured, or a row does not hold.
pub fn run(command: &Command) -> Result<()> {
    let all_hold = match command {
        Command::Bytes(arguments) => bytes::run(arguments)?,
        Command::Engine(arguments) => engine::run(arguments)?,
        Command::Hv(arguments) => hv::run(arguments)?,
        Command::Sched(arguments) => sched::run(arguments)?,
    };
    ensure!(all_hold, "not every row holds: see above");
    Ok(())
}
