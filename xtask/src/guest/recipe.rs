//! The two files that say what a guest is made of: the recipe, written by hand, and the lock, written by
//! `cargo xtask guest lock`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// `guest.toml`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The guest's name.
    pub name: String,
    /// One line for people.
    pub about: String,
    /// The package whose dependency is the kernel's package.
    pub kernel: String,
    /// The guest's part of the kernel's command line.
    pub cmdline: String,
    /// Kernel modules to load, by name.
    pub modules: Vec<String>,
    /// Packages to take shared libraries from, as they are needed.
    pub libraries: Vec<String>,
    /// Files to take, by package.
    pub packages: BTreeMap<String, Vec<String>>,
}

impl Recipe {
    /// Reads `guest.toml` in `folder`.
    pub fn read(folder: &Path) -> Result<Recipe> {
        let path = folder.join("guest.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a guest's recipe", path.display()))
    }

    /// Names of all packages but the kernel's.
    pub fn package_names(&self) -> impl Iterator<Item = &str> {
        self.packages
            .keys()
            .chain(&self.libraries)
            .map(String::as_str)
    }
}

/// `guest.lock`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Every package, the kernel's first.
    #[serde(default, rename = "package")]
    pub packages: Vec<Pin>,
}

/// A package at a version, by its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Debian package name.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// SHA-256 of the `.deb`, in hexadecimal.
    pub sha256: String,
}

impl Lock {
    /// Reads `guest.lock` in `folder`; a guest that has none yet has an empty one.
    pub fn read(folder: &Path) -> Result<Lock> {
        let path = folder.join("guest.lock");
        if !path.exists() {
            return Ok(Lock::default());
        }
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a guest's lock", path.display()))
    }

    /// The pin of a package.
    pub fn pin(&self, name: &str) -> Option<&Pin> {
        self.packages.iter().find(|pin| pin.name == name)
    }

    /// The pin of the kernel's own package.
    pub fn kernel(&self) -> Option<&Pin> {
        self.packages
            .iter()
            .find(|pin| is_kernel_package(&pin.name))
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("# Written by `cargo xtask guest lock`.\n");
        for Pin {
            name,
            version,
            sha256,
        } in &self.packages
        {
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "\n[[package]]\nname = {name:?}\nversion = {version:?}\nsha256 = {sha256:?}\n"
            );
        }
        text
    }
}

/// Whether `name` is a package with a kernel in it, as `linux-image-6.1.0-56-cloud-amd64`, rather than one that depends on it.
pub fn is_kernel_package(name: &str) -> bool {
    name.strip_prefix("linux-image-")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_back_as_written() {
        let pin = |name: &str| Pin {
            name: name.into(),
            version: "1:2.5+x~1".into(),
            sha256: "ab".repeat(32),
        };
        let lock = Lock {
            packages: vec![pin("linux-image-6.1.0-56-cloud-amd64"), pin("slapd")],
        };
        let read: Lock = toml::from_str(&lock.to_toml()).unwrap();
        assert_eq!(read.packages, lock.packages);
        assert_eq!(
            read.kernel().unwrap().name,
            "linux-image-6.1.0-56-cloud-amd64"
        );
        assert!(read.pin("busybox").is_none());
    }

    #[test]
    fn a_meta_package_has_no_kernel() {
        assert!(!is_kernel_package("linux-image-cloud-amd64"));
        assert!(is_kernel_package("linux-image-6.1.0-56-cloud-amd64"));
    }
}
