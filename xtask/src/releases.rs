//! Published releases of crates: fetched by exact version through cargo, into cargo's own store, and checked against their
//! SHA-256.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

use crate::{process, progress};

/// A release of a crate. Its archive is a compressed tar.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// The crate's name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The digest of its archive, in hexadecimal.
    pub sha256: &'static str,
}

/// The archives of two releases of one crate, from cargo's store, fetched into it where they are not there yet. `directory`
/// is for what that needs.
///
/// # Errors
/// They cannot be fetched, or are not what their digests say.
pub fn fetch(directory: &Path, [old, new]: [Release; 2]) -> Result<[PathBuf; 2]> {
    let both = || [in_cargo_store(old), in_cargo_store(new)];
    if let [Some(old), Some(new)] = both() {
        return Ok([old, new]);
    }
    let project = directory.join("releases");
    std::fs::create_dir_all(project.join("src"))?;
    std::fs::write(project.join("src/lib.rs"), "")?;
    // A manifest names a crate once: each version gets a name of its own.
    let dependencies: String = [("old", old), ("new", new)]
        .map(|(alias, Release { name, version, .. })| {
            format!("{alias} = {{ package = \"{name}\", version = \"={version}\", default-features = false }}\n")
        })
        .concat();
    let manifest = format!(
        "[package]\nname = \"releases\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n{dependencies}"
    );
    std::fs::write(project.join("Cargo.toml"), manifest)?;
    let spinner = progress::spinner(format!(
        "fetching {} {} and {}",
        old.name, old.version, new.version
    ));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = process::command(cargo)?;
    command
        .args(["fetch", "--quiet"])
        .current_dir(&project)
        .stdin(Stdio::null());
    process::output(command, "cargo fetch")?;
    spinner.finish_and_clear();
    match both() {
        [Some(old), Some(new)] => Ok([old, new]),
        _ => bail!(
            "cargo fetched {} {} and {}, but no archives with the expected SHA-256 are in {}",
            old.name,
            old.version,
            new.version,
            cargo_home().join("registry/cache").display()
        ),
    }
}

fn cargo_home() -> PathBuf {
    match std::env::var_os("CARGO_HOME") {
        Some(home) => home.into(),
        None => std::env::home_dir().unwrap_or_default().join(".cargo"),
    }
}

/// The archive of a release in cargo's store, if it is the right one.
fn in_cargo_store(release: Release) -> Option<PathBuf> {
    let name = format!("{}-{}.crate", release.name, release.version);
    std::fs::read_dir(cargo_home().join("registry/cache"))
        .ok()?
        .flatten()
        .map(|registry| registry.path().join(&name))
        .find(|path| {
            std::fs::read(path)
                .is_ok_and(|bytes| hex::encode(Sha256::digest(bytes)) == release.sha256)
        })
}
