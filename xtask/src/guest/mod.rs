//! Pinned guests: from a recipe (`guest.toml`), its lock (`guest.lock`) and Debian's archive to a kernel and an initial
//! ramdisk, the same bytes from the same inputs. How the box finds and checks them is not decided here.

mod archive;
mod package;
pub mod ramdisk;
mod recipe;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};

use crate::paths;
use archive::{Archive, Drift};
use package::Contents;
use recipe::{Lock, Recipe};

/// `cargo xtask guest …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the guests that can be pinned
    List,
    /// Record the newest version of every package of a guest in its guest.lock
    Lock {
        /// Name of a folder in guests/
        name: String,
    },
    /// Build a guest's kernel and initial ramdisk, and print where they are
    Build {
        /// Name of a folder in guests/
        name: String,
    },
}

/// A guest that is ready to go into an image.
#[derive(Clone, Debug)]
pub struct BuiltGuest {
    /// Name of its folder in `guests/`.
    pub name: String,
    /// Linux kernel (bzImage).
    pub kernel: PathBuf,
    /// Initial ramdisk, uncompressed cpio.
    pub ramdisk: PathBuf,
    /// SHA-256 of the kernel file.
    pub kernel_sha256: [u8; 32],
    /// SHA-256 of the ramdisk file.
    pub ramdisk_sha256: [u8; 32],
    /// The guest's part of the kernel's command line.
    pub cmdline: String,
    /// Packages that could not be had as `guest.lock` pins them, a sentence each.
    pub drift: Vec<String>,
}

/// Runs a `cargo xtask guest` command in the repository `root`.
///
/// # Errors
/// Names the guest, package or file at fault.
pub fn run(root: &Path, command: &Command) -> Result<()> {
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(std::time::Duration::from_millis(120));
    match command {
        Command::List => {
            for name in names(root)? {
                let recipe = Recipe::read(&folder(root, &name)?)?;
                println!("{name:12} {}", recipe.about);
            }
        }
        Command::Lock { name } => {
            let recipe = Recipe::read(&folder(root, name)?)?;
            let lock = Archive::new(&output()?.join("packages"))?.newest(&recipe, &progress)?;
            let path = folder(root, name)?.join("guest.lock");
            fs::write(&path, lock.to_toml())
                .with_context(|| format!("writing {}", path.display()))?;
            progress.finish_and_clear();
            println!(
                "{} packages recorded in {}",
                lock.packages.len(),
                path.display()
            );
        }
        Command::Build { name } => {
            let guest = build(root, name, &progress)?;
            progress.finish_and_clear();
            for sentence in &guest.drift {
                println!("note: {sentence}");
            }
            println!(
                "kernel   {}  {}",
                hex::encode(guest.kernel_sha256),
                guest.kernel.display()
            );
            println!(
                "ramdisk  {}  {}",
                hex::encode(guest.ramdisk_sha256),
                guest.ramdisk.display()
            );
        }
    }
    Ok(())
}

/// Builds guest `name`: fetches what is not in the cache, checks it against `guest.lock`, and puts kernel and ramdisk
/// together under `target/outpost/guests`.
///
/// A pinned version that the archive no longer has is replaced by the newest one; [`BuiltGuest::drift`] says so.
///
/// # Errors
/// Names the package or file at fault: a pinned package whose bytes differ, a file or library that no package has.
pub fn build(root: &Path, name: &str, progress: &ProgressBar) -> Result<BuiltGuest> {
    let folder = folder(root, name)?;
    let recipe = Recipe::read(&folder)?;
    let lock = Lock::read(&folder)?;
    let archive = Archive::new(&output()?.join("packages"))?;
    let (packages, drift) = archive.fetch(&recipe, &lock, progress)?;

    let mut contents = Contents::default();
    for package in &packages {
        progress.set_message(format!("guest {name}: unpacking {}", package.name));
        contents.add(&package.name, &package.file)?;
    }
    progress.set_message(format!("guest {name}: assembling the ramdisk"));
    let kernel = contents.kernel()?;
    ensure!(
        kernel.get(0x202..0x206) == Some(b"HdrS".as_slice()),
        "the kernel of {} is not a Linux bzImage",
        recipe.kernel
    );
    let tree = ramdisk::Tree::assemble(&recipe, &contents, &folder.join("root"))?;
    let ramdisk = tree.to_cpio()?;

    let out = output()?.join(name);
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let write = |file: &str, bytes: &[u8]| -> Result<(PathBuf, [u8; 32])> {
        let path = out.join(file);
        // Another build may be reading the old file: replace it whole.
        let mut new = tempfile::NamedTempFile::new_in(&out)?;
        std::io::Write::write_all(&mut new, bytes)?;
        new.persist(&path)
            .with_context(|| format!("writing {}", path.display()))?;
        Ok((path, Sha256::digest(bytes).into()))
    };
    let (kernel, kernel_sha256) = write("kernel", kernel)?;
    let (ramdisk, ramdisk_sha256) = write("ramdisk", &ramdisk)?;
    Ok(BuiltGuest {
        name: name.to_owned(),
        kernel,
        ramdisk,
        kernel_sha256,
        ramdisk_sha256,
        cmdline: recipe.cmdline,
        drift: drift
            .iter()
            .map(|drift: &Drift| drift.sentence(name))
            .collect(),
    })
}

fn output() -> Result<PathBuf> {
    Ok(paths::output()?.join("guests"))
}

fn names(root: &Path) -> Result<Vec<String>> {
    let guests = root.join("guests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&guests).with_context(|| format!("reading {}", guests.display()))? {
        let entry = entry?;
        if entry.path().join("guest.toml").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn folder(root: &Path, name: &str) -> Result<PathBuf> {
    let known = names(root)?;
    if !known.iter().any(|known| known == name) {
        bail!(
            "there is no guest `{name}`; guests/ has: {}",
            known.join(", ")
        );
    }
    Ok(root.join("guests").join(name))
}
