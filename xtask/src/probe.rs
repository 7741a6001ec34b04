//! Builds the probe guest (`guests/probe`), the tiny kernel that the emulator tests run.

use anyhow::{Result, bail};

use crate::image::GuestFiles;

/// What the probe does when nothing else is said.
pub const DEFAULT: &str = "ready";

/// Assembles it, to do what `mode` says.
///
/// # Errors
/// When the assembler is missing or fails.
pub fn build(mode: &str) -> Result<GuestFiles> {
    bail!("guests/probe is not there yet ({mode})")
}
