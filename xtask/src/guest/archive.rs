//! Debian's archive: packages by exact version, checked by SHA-256, kept in a cache. What the archive no longer has is
//! replaced by its newest version, and said.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};

use super::recipe::{Lock, Pin, Recipe, is_kernel_package};

/// Debian's archive behind a cache of packages.
pub struct Archive {
    cache: PathBuf,
    updated: Cell<bool>,
}

/// A package file that is on this machine.
pub struct Fetched {
    pub name: String,
    pub file: PathBuf,
}

/// A package that is not the one that `guest.lock` pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drift {
    /// The archive has another version now.
    Replaced {
        package: String,
        pinned: String,
        taken: String,
    },
    /// The lock does not name it.
    Unpinned { package: String, taken: String },
}

impl Drift {
    /// What happened and how to record it, for guest `guest`.
    pub fn sentence(&self, guest: &str) -> String {
        match self {
            Drift::Replaced {
                package,
                pinned,
                taken,
            } => format!(
                "the archive no longer has {package} {pinned}; took {taken} instead (record it with `cargo xtask guest lock {guest}`)"
            ),
            Drift::Unpinned { package, taken } => format!(
                "{package} {taken} is not in guest.lock yet (record it with `cargo xtask guest lock {guest}`)"
            ),
        }
    }
}

impl Archive {
    /// An archive that keeps packages in `cache`.
    pub fn new(cache: &Path) -> Result<Archive> {
        fs::create_dir_all(cache).with_context(|| format!("creating {}", cache.display()))?;
        Ok(Archive {
            cache: cache.to_owned(),
            updated: Cell::new(false),
        })
    }

    /// Gets every package of `recipe`, the kernel's first, as `lock` pins it where that can still be had.
    pub fn fetch(
        &self,
        recipe: &Recipe,
        lock: &Lock,
        progress: &ProgressBar,
    ) -> Result<(Vec<Fetched>, Vec<Drift>)> {
        let mut fetched = Vec::new();
        let mut drift = Vec::new();
        let mut get =
            |name: &str, pin: Option<&Pin>, newest: &dyn Fn() -> Result<String>| -> Result<()> {
                progress.set_message(format!("guest {}: package {name}", recipe.name));
                if let Some(pin) = pin
                    && let Some(file) = self.pinned(pin)?
                {
                    fetched.push(Fetched {
                        name: pin.name.clone(),
                        file,
                    });
                    return Ok(());
                }
                let package = newest()?;
                let taken = self.newest_version(&package)?;
                let file = self
                    .download(&package, &taken)?
                    .with_context(|| cannot_get(&package, &taken))?;
                drift.push(match pin {
                    Some(pin) => Drift::Replaced {
                        package: pin.name.clone(),
                        pinned: pin.version.clone(),
                        taken,
                    },
                    None => Drift::Unpinned {
                        package: package.clone(),
                        taken,
                    },
                });
                fetched.push(Fetched {
                    name: package,
                    file,
                });
                Ok(())
            };
        get(&recipe.kernel, lock.kernel(), &|| {
            self.kernel_package(&recipe.kernel)
        })?;
        for name in recipe.package_names() {
            get(name, lock.pin(name), &|| Ok(name.to_owned()))?;
        }
        Ok((fetched, drift))
    }

    /// A lock with the newest version of every package of `recipe`.
    pub fn newest(&self, recipe: &Recipe, progress: &ProgressBar) -> Result<Lock> {
        self.update()?;
        let mut packages = Vec::new();
        let names = std::iter::once(self.kernel_package(&recipe.kernel)?)
            .chain(recipe.package_names().map(str::to_owned));
        for name in names {
            progress.set_message(format!("guest {}: package {name}", recipe.name));
            let version = self.newest_version(&name)?;
            let file = self
                .download(&name, &version)?
                .with_context(|| cannot_get(&name, &version))?;
            packages.push(Pin {
                sha256: sha256_of(&file)?,
                name,
                version,
            });
        }
        Ok(Lock { packages })
    }

    /// The pinned package's file, or `None` when the archive no longer has it.
    fn pinned(&self, pin: &Pin) -> Result<Option<PathBuf>> {
        let Some(file) = self.download(&pin.name, &pin.version)? else {
            return Ok(None);
        };
        let found = sha256_of(&file)?;
        if found != pin.sha256 {
            // A damaged cache must not stop the next build too.
            fs::remove_file(&file)?;
            bail!(
                "{} {} has SHA-256 {found}, but guest.lock pins {}; the file was removed: build again, and do not trust the source if it stays so",
                pin.name,
                pin.version,
                pin.sha256
            );
        }
        Ok(Some(file))
    }

    /// The package's file, from the cache or the archive; `None` when the archive does not have that version.
    fn download(&self, name: &str, version: &str) -> Result<Option<PathBuf>> {
        // apt's own file names: the colon of an epoch is escaped.
        let wanted = format!("{name}_{}_", version.replace(':', "%3a"));
        if let Some(file) = self.cached(&wanted)? {
            return Ok(Some(file));
        }
        if !self.apt_download(name, version)? {
            self.update()?;
            if !self.apt_download(name, version)? {
                return Ok(None);
            }
        }
        self.cached(&wanted)
    }

    fn cached(&self, prefix: &str) -> Result<Option<PathBuf>> {
        for entry in fs::read_dir(&self.cache)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let file_name = file_name.to_string_lossy();
            if file_name.starts_with(prefix) && file_name.ends_with(".deb") {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    }

    /// Downloads into a folder of its own first, so that a download that was cut short never looks like a package.
    fn apt_download(&self, name: &str, version: &str) -> Result<bool> {
        let incoming = tempfile::tempdir_in(&self.cache)?;
        let output = apt(
            "apt-get",
            &[
                "download",
                "-q",
                "-o",
                "APT::Sandbox::User=root",
                &format!("{name}={version}"),
            ],
            incoming.path(),
        )?;
        if !output.status.success() {
            return Ok(false);
        }
        for entry in fs::read_dir(incoming.path())? {
            let entry = entry?;
            fs::rename(entry.path(), self.cache.join(entry.file_name()))?;
        }
        Ok(true)
    }

    /// Renews apt's package lists, once. Without the right to, the lists stay as they are.
    fn update(&self) -> Result<()> {
        if !self.updated.replace(true) && nix::unistd::geteuid().is_root() {
            apt("apt-get", &["update", "-q"], &self.cache)?;
        }
        Ok(())
    }

    fn newest_version(&self, name: &str) -> Result<String> {
        if let Some(version) = candidate(name, &self.cache)? {
            return Ok(version);
        }
        self.update()?;
        candidate(name, &self.cache)?
            .with_context(|| format!("Debian's archive has no package `{name}`; is `apt-get update` current, and the recipe right?"))
    }

    /// The package that holds the kernel on which `meta` depends.
    fn kernel_package(&self, meta: &str) -> Result<String> {
        self.newest_version(meta)?;
        let output = apt(
            "apt-cache",
            &["show", "--no-all-versions", meta],
            &self.cache,
        )?;
        let text = String::from_utf8_lossy(&output.stdout);
        let depends = text
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "))
            .unwrap_or_default();
        depends
            .split(", ")
            .filter_map(|dependency| dependency.split(' ').next())
            .find(|name| is_kernel_package(name))
            .map(str::to_owned)
            .with_context(|| {
                format!("package {meta} does not depend on a kernel (it depends on: {depends})")
            })
    }
}

fn cannot_get(name: &str, version: &str) -> String {
    format!(
        "cannot download {name} {version} from Debian's archive; `apt-get download {name}` may say why"
    )
}

fn candidate(name: &str, folder: &Path) -> Result<Option<String>> {
    let output = apt("apt-cache", &["policy", name], folder)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version
        .filter(|version| *version != "(none)")
        .map(str::to_owned))
}

fn apt(program: &str, arguments: &[&str], folder: &Path) -> Result<Output> {
    Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .with_context(|| format!("starting {program}; guests are made of Debian packages, so a Debian machine is needed"))
}

fn sha256_of(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(hex::encode(Sha256::digest(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_in_the_cache_with_other_bytes_is_refused_and_removed() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("tool_1%3a2_amd64.deb");
        fs::write(&file, b"not the package").unwrap();
        let archive = Archive::new(cache.path()).unwrap();
        let pin = Pin {
            name: "tool".into(),
            version: "1:2".into(),
            sha256: "00".repeat(32),
        };
        let error = archive.pinned(&pin).unwrap_err().to_string();
        assert!(
            error.contains("tool 1:2") && error.contains("guest.lock pins"),
            "{error}"
        );
        assert!(!file.exists());
    }

    #[test]
    fn drift_names_the_command_that_records_it() {
        let drift = Drift::Replaced {
            package: "slapd".into(),
            pinned: "1".into(),
            taken: "2".into(),
        };
        let sentence = drift.sentence("directory");
        assert!(
            sentence.contains("slapd 1")
                && sentence.contains("took 2")
                && sentence.contains("cargo xtask guest lock directory")
        );
    }
}
