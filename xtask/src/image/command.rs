//! `cargo xtask build-image`, and the images that the other commands build for themselves.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use outpost_config::Config;

use super::{
    BuiltImage, GuestFiles, Item, MAX_BYTES, TEMPLATE, assemble, contents, digest_of_file,
};
use crate::setup::{self, Group};
use crate::{firmware, guest, paths, probe, progress};

/// `cargo xtask build-image`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest to pin: a folder of guests/, `probe` (a test guest), or `none`
    #[arg(long, default_value = "directory", value_name = "NAME")]
    guest: String,
    /// Where to write the image [default: target/outpost/outpost.img]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The outpost.toml to put on it [default: a template in which every key is explained and none is set]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// When something cannot be built or written.
pub fn run(arguments: &Args) -> Result<()> {
    let config = match &arguments.config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Config::parse(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
            Some(text)
        }
        None => None,
    };
    let built = build(
        &arguments.guest,
        config.as_deref(),
        arguments.out.as_deref(),
    )?;
    print(&built)
}

/// Builds the image with the guest `guest` (see [`Args`]). `config` is not checked.
///
/// # Errors
/// When something cannot be built or written, or is larger than allowed.
pub fn build(guest: &str, config: Option<&str>, out: Option<&Path>) -> Result<BuiltImage> {
    build_with(guest_files(guest)?, config, out)
}

/// Builds the image with these files of a guest. `config` is not checked.
///
/// # Errors
/// As [`build`].
pub fn build_with(
    guest: Option<GuestFiles>,
    config: Option<&str>,
    out: Option<&Path>,
) -> Result<BuiltImage> {
    setup::ensure(&[Group::FirmwareToolchain])?;
    let pins: Vec<_> = guest.iter().map(GuestFiles::pin).collect();
    let firmware = firmware::build(&pins)?;
    let out = match out {
        Some(out) => out.to_owned(),
        None => paths::output()?.join("outpost.img"),
    };
    let spinner = progress::spinner("Putting the disk image together");
    let slot = guest.as_ref().map(GuestFiles::slot).transpose()?;
    assemble(
        &firmware.bytes,
        config.unwrap_or(TEMPLATE),
        slot.as_deref(),
        &out,
    )?;
    let built = BuiltImage {
        bytes: std::fs::metadata(&out)?.len(),
        digest: digest_of_file(&out)?,
        efi_bytes: firmware.bytes.len() as u64,
        guest: guest.map(|guest| guest.name),
        path: out,
    };
    spinner.finish_and_clear();
    if built.bytes > MAX_BYTES {
        bail!(
            "the image has {} bytes; at most {MAX_BYTES} (128 MiB) are allowed",
            built.bytes
        );
    }
    Ok(built)
}

/// The files of a guest by its name, built if need be; `None` for `none`.
///
/// # Errors
/// When it cannot be built.
pub fn guest_files(name: &str) -> Result<Option<GuestFiles>> {
    match name {
        "none" => Ok(None),
        "probe" => Ok(Some(probe::build(probe::DEFAULT)?)),
        name => {
            let spinner = progress::spinner(format!("Building the guest {name}"));
            let built = guest::build(&paths::workspace(), name, &spinner)?;
            spinner.finish_and_clear();
            for sentence in &built.drift {
                eprintln!("note: {sentence}");
            }
            let read = |path: &Path| {
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
            };
            Ok(Some(GuestFiles {
                kernel: read(&built.kernel)?,
                ramdisk: Some(read(&built.ramdisk)?),
                name: built.name,
                command_line: built.cmdline,
            }))
        }
    }
}

/// Prints path, size, digest and what is inside.
///
/// # Errors
/// When the image cannot be read back.
pub fn print(built: &BuiltImage) -> Result<()> {
    println!("{}", built.path.display());
    println!("  size     {} bytes ({})", built.bytes, human(built.bytes));
    println!("  SHA-256  {}", built.digest);
    println!("  binary   {} bytes", built.efi_bytes);
    println!();
    print!("{}", table(&contents(&built.path)?));
    Ok(())
}

fn table(items: &[Item]) -> String {
    let width = items
        .iter()
        .map(|item| item.what.len())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut text = format!("{:width$}  {:>10}  \n", "what", "size");
    for item in items {
        let size = if item.bytes == 0 {
            "-".to_owned()
        } else {
            human(item.bytes)
        };
        let line = format!("{:width$}  {size:>10}  {}", item.what, item.note);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A size for people: 3 significant digits or so.
pub fn human(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up() {
        let items = [
            Item {
                what: "esp".into(),
                bytes: 34 << 20,
                note: "from 1 MiB".into(),
            },
            Item {
                what: "  EFI/BOOT/BOOTX64.EFI".into(),
                bytes: 0,
                note: "missing".into(),
            },
        ];
        assert_eq!(
            table(&items),
            "what                          size\n\
             esp                      34.00 MiB  from 1 MiB\n  EFI/BOOT/BOOTX64.EFI           -  missing\n"
                .replace("size\n", "size  \n")
        );
    }
}
