//! `cargo xtask flash`: an image onto a stick or disk. It refuses what is mounted, in use or not removable unless told, shows what
//! it will overwrite, asks, writes, reads back and verifies.

mod target;
mod write;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use outpost_config::Config;

use crate::image::{self, human};
use crate::process::{self, Scratch};
use target::Target;

/// `cargo xtask flash`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The whole disk to overwrite, such as /dev/sdX (or a file to try it on)
    device: PathBuf,
    /// The image to write [default: built now, with the guest directory]
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// The outpost.toml to put on it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Allow a disk that is not removable
    #[arg(long)]
    allow_fixed: bool,
    /// Allow a disk that is mounted or in use
    #[arg(long)]
    allow_mounted: bool,
}

/// Runs the command.
///
/// # Errors
/// When the device is refused, the user says no, or writing or verifying fails.
pub fn run(arguments: &Args) -> Result<()> {
    // What can be refused is refused before anything is built.
    let target = Target::inspect(&arguments.device)?;
    check(&target, arguments)?;
    let image = match &arguments.image {
        Some(image) => image.clone(),
        None => image::build("directory", None, None)?.path,
    };
    let scratch;
    let image = match &arguments.config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Config::parse(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
            scratch = Scratch::new("flash")?;
            let configured = scratch.path().join("outpost.img");
            image::with_config(&image, &text, &configured, None)?;
            configured
        }
        None => {
            // Refuses what is not an image of ours.
            image::contents(&image)?;
            image
        }
    };
    let length = std::fs::metadata(&image)?.len();
    if length > target.bytes {
        bail!(
            "{} has {}; the image needs {}",
            arguments.device.display(),
            human(target.bytes),
            human(length)
        );
    }
    println!("{}", target.describe());
    println!(
        "All of it will be overwritten by {} ({}).",
        image.display(),
        human(length)
    );
    if !arguments.yes && !confirmed()? {
        bail!("nothing was written");
    }
    if !nix::unistd::geteuid().is_root()
        && nix::unistd::access(&target.path, nix::unistd::AccessFlags::W_OK).is_err()
    {
        return as_root(arguments, &image);
    }
    write::write(&image, &target, arguments.allow_mounted)?;
    write::verify(&image, &target)?;
    if target.is_block_device
        && let Ok(mut command) = process::command("blockdev")
    {
        // The kernel still shows the old partitions; it does no harm if it goes on doing so.
        command.arg("--rereadpt").arg(&target.path);
        let _ = process::output(command, "blockdev");
    }
    println!(
        "Written and verified: {} (SHA-256 {}).",
        target.path.display(),
        image::digest_of_file(&image)?
    );
    Ok(())
}

fn check(target: &Target, arguments: &Args) -> Result<()> {
    let name = target.path.display();
    if let Some(disk) = &target.partition_of {
        bail!("{name} is a partition; an image is a whole disk: name /dev/{disk}");
    }
    if !target.uses.is_empty() && !arguments.allow_mounted {
        bail!(
            "{name} is in use: {}. Unmount it first, or say --allow-mounted if you know better",
            target.uses.join(", ")
        );
    }
    if !target.removable && !arguments.allow_fixed {
        bail!(
            "{name} ({}) is not removable. If it is the right disk, say --allow-fixed",
            target.model
        );
    }
    if target.read_only {
        bail!("{name} is write-protected");
    }
    Ok(())
}

fn confirmed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to confirm; say --yes to write without asking");
    }
    print!("Write it? Type yes: ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// Does the writing as root; everything has been built and confirmed.
fn as_root(arguments: &Args, image: &Path) -> Result<()> {
    let Some(sudo) = process::find_program("sudo") else {
        bail!(
            "writing to {} needs root: run this as root, or install sudo",
            arguments.device.display()
        );
    };
    println!(
        "Writing to {} needs root: asking sudo",
        arguments.device.display()
    );
    let mut command = Command::new(sudo);
    command
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(["flash", "--yes", "--image"])
        .arg(image);
    for (flag, given) in [
        ("--allow-fixed", arguments.allow_fixed),
        ("--allow-mounted", arguments.allow_mounted),
    ] {
        if given {
            command.arg(flag);
        }
    }
    let status = command
        .arg(&arguments.device)
        .status()
        .context("cannot start sudo")?;
    if !status.success() {
        bail!("writing as root failed: see the message above");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
