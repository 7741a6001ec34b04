//! The whole scenario: two boxes, a line between them, a client, a server.

mod line;
mod namespace;
mod observe;
mod wires;

/// What `cargo xtask run` is told.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the scenario.
///
/// # Errors
/// When something did not hold.
pub fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("`cargo xtask run` is not there yet")
}
