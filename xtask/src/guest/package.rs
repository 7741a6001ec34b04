//! What is inside Debian packages: files by path, in memory.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// A file or link of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Permission bits and bytes.
    File { mode: u32, bytes: Vec<u8> },
    /// Where a symbolic link points.
    Link(String),
}

/// The contents of all packages of a guest, by path without a leading slash.
#[derive(Default)]
pub struct Contents {
    items: BTreeMap<String, (String, Item)>,
}

impl Contents {
    /// Adds the files of the package `name` in `deb`.
    pub fn add(&mut self, name: &str, deb: &Path) -> Result<()> {
        let mut unpacker = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(deb)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting dpkg-deb; guests are made of Debian packages, so a Debian machine is needed")?;
        let stream = unpacker.stdout.take().context("dpkg-deb has no output")?;
        let result = self.add_tar(name, stream);
        let status = unpacker.wait()?;
        result.with_context(|| format!("unpacking {}", deb.display()))?;
        ensure!(
            status.success(),
            "{} is not a sound package: dpkg-deb ended with {status}",
            deb.display()
        );
        Ok(())
    }

    fn add_tar(&mut self, name: &str, stream: impl Read) -> Result<()> {
        let mut archive = tar::Archive::new(stream);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry
                .path()?
                .to_string_lossy()
                .trim_start_matches("./")
                .to_owned();
            let kind = entry.header().entry_type();
            let item = if kind.is_symlink() {
                let target = entry
                    .link_name()?
                    .with_context(|| format!("{path}: a link to nowhere"))?;
                Item::Link(target.to_string_lossy().into_owned())
            } else if kind.is_hard_link() {
                let target = entry
                    .link_name()?
                    .with_context(|| format!("{path}: a link to nowhere"))?;
                let target = target.to_string_lossy();
                let target = target.trim_start_matches("./");
                self.get(target)
                    .with_context(|| {
                        format!("{path}: a hard link to {target}, which is not there")
                    })?
                    .clone()
            } else if kind.is_file() {
                let mode = entry.header().mode()? & 0o777;
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                Item::File { mode, bytes }
            } else {
                continue;
            };
            self.items.insert(path, (name.to_owned(), item));
        }
        Ok(())
    }

    /// The item at `path`.
    pub fn get(&self, path: &str) -> Option<&Item> {
        self.items.get(path).map(|(_, item)| item)
    }

    /// All paths with their items.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Item)> {
        self.items
            .iter()
            .map(|(path, (_, item))| (path.as_str(), item))
    }

    /// The items of `package` whose paths match `pattern`, where `*` stands for any characters but `/`.
    pub fn matching(&self, package: &str, pattern: &str) -> Result<Vec<(&str, &Item)>> {
        let options = glob::MatchOptions {
            require_literal_separator: true,
            ..Default::default()
        };
        let pattern = glob::Pattern::new(pattern)
            .with_context(|| format!("`{pattern}` is not a path pattern"))?;
        let found: Vec<_> = self
            .items
            .iter()
            .filter(|(path, (owner, _))| owner == package && pattern.matches_with(path, options))
            .map(|(path, (_, item))| (path.as_str(), item))
            .collect();
        if found.is_empty() {
            bail!(
                "package {package} has no file `{}`; has it moved in a newer version? Mend guest.toml",
                pattern.as_str()
            );
        }
        Ok(found)
    }

    /// The one kernel.
    pub fn kernel(&self) -> Result<&[u8]> {
        let mut kernels = self
            .iter()
            .filter(|(path, _)| path.starts_with("boot/vmlinuz-"));
        match (kernels.next(), kernels.next()) {
            (Some((_, Item::File { bytes, .. })), None) => Ok(bytes),
            (Some((path, _)), _) => bail!("more than one kernel, or a link instead of one: {path}"),
            (None, _) => bail!("the kernel's package has no boot/vmlinuz-*"),
        }
    }
}

#[cfg(test)]
impl Contents {
    /// Contents for tests.
    pub fn of(items: &[(&str, &str, Item)]) -> Contents {
        let items = items
            .iter()
            .map(|(package, path, item)| (path.to_string(), (package.to_string(), item.clone())));
        Contents {
            items: items.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> Item {
        Item::File {
            mode: 0o644,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn patterns_stay_within_a_folder_and_a_package() {
        let contents = Contents::of(&[
            ("a", "usr/lib/x/one.so", file(b"1")),
            ("a", "usr/lib/x/deep/two.so", file(b"2")),
            ("b", "usr/lib/x/three.so", file(b"3")),
        ]);
        let found = contents.matching("a", "usr/lib/x/*.so").unwrap();
        assert_eq!(
            found.iter().map(|(path, _)| *path).collect::<Vec<_>>(),
            ["usr/lib/x/one.so"]
        );
        let error = contents
            .matching("a", "usr/lib/y/*")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("package a") && error.contains("guest.toml"),
            "{error}"
        );
    }

    #[test]
    fn a_tar_gives_files_links_and_hard_links() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(3);
        builder
            .append_data(&mut header, "./bin/tool", b"ELF".as_slice())
            .unwrap();
        for (kind, path, target) in [
            (tar::EntryType::Symlink, "./bin/link", "tool"),
            (tar::EntryType::Link, "./bin/hard", "./bin/tool"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            builder.append_link(&mut header, path, target).unwrap();
        }
        let mut contents = Contents::default();
        contents
            .add_tar("p", builder.into_inner().unwrap().as_slice())
            .unwrap();
        let tool = Item::File {
            mode: 0o755,
            bytes: b"ELF".to_vec(),
        };
        assert_eq!(contents.get("bin/tool"), Some(&tool));
        assert_eq!(contents.get("bin/hard"), Some(&tool));
        assert_eq!(contents.get("bin/link"), Some(&Item::Link("tool".into())));
    }
}
