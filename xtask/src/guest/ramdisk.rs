//! An initial ramdisk: files of packages, the shared libraries and kernel modules that they need, and the guest's own files,
//! as one cpio archive (newc, the kernel's Documentation/driver-api/early-userspace/buffer-format). Always in the same order
//! with the same times, so that the same inputs give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cpio::newc::{Builder, ModeFileType, trailer};
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _};
use object::{Endianness, Object, ObjectSection, elf};

use super::package::{Contents, Item};
use super::recipe::Recipe;

/// What /init loads, a path a line.
const LOAD_ORDER: &str = "lib/modules/load-order";

/// A tree of files for a ramdisk.
pub struct Tree {
    items: BTreeMap<String, Item>,
}

impl Tree {
    /// Takes what `recipe` names from `contents`, then the guest's own files from `overlay`, which win.
    pub fn assemble(recipe: &Recipe, contents: &Contents, overlay: &Path) -> Result<Tree> {
        let mut tree = Tree {
            items: BTreeMap::new(),
        };
        for (package, patterns) in &recipe.packages {
            for pattern in patterns {
                for (path, item) in contents.matching(package, pattern)? {
                    tree.items.insert(path.to_owned(), item.clone());
                }
            }
        }
        tree.add_libraries(contents)?;
        tree.add_modules(&recipe.modules, contents)?;
        tree.add_overlay(overlay, "")?;
        Ok(tree)
    }

    /// Adds the shared libraries that the programs and libraries of the tree need, until nothing is missing.
    fn add_libraries(&mut self, contents: &Contents) -> Result<()> {
        let mut by_name = BTreeMap::new();
        for (path, item) in contents.iter() {
            if let Some((folder, name)) = path.rsplit_once('/')
                && name.contains(".so")
                && matches!(
                    folder,
                    "lib/x86_64-linux-gnu"
                        | "usr/lib/x86_64-linux-gnu"
                        | "lib64"
                        | "lib"
                        | "usr/lib"
                )
            {
                by_name.entry(name).or_insert((path, item));
            }
        }
        let mut unread: Vec<String> = self.items.keys().cloned().collect();
        while let Some(path) = unread.pop() {
            let Some(Item::File { bytes, .. }) = self.items.get(&path) else {
                continue;
            };
            if !bytes.starts_with(&elf::ELFMAG) {
                continue;
            }
            for needed in needed_files(bytes).with_context(|| format!("reading {path}"))? {
                let name = needed.rsplit('/').next().unwrap_or(&needed);
                let Some(&(library, _)) = by_name.get(name) else {
                    bail!(
                        "{path} needs {name}, which no package of the recipe has; add its package to `libraries` in guest.toml"
                    );
                };
                self.add_with_target(contents, library, &mut unread)?;
                // The program's interpreter is named by its whole path, which may be another link.
                if let Some(interpreter) = needed.strip_prefix('/') {
                    self.add_with_target(contents, interpreter, &mut unread)?;
                }
            }
        }
        Ok(())
    }

    /// Adds `path` and, when it is a link, what it points to.
    fn add_with_target(
        &mut self,
        contents: &Contents,
        path: &str,
        added: &mut Vec<String>,
    ) -> Result<()> {
        let mut path = path.to_owned();
        for _ in 0..8 {
            if self.items.contains_key(&path) {
                return Ok(());
            }
            let item = contents
                .get(&path)
                .with_context(|| format!("{path} is linked to, but in no package"))?;
            self.items.insert(path.clone(), item.clone());
            added.push(path.clone());
            match item {
                Item::File { .. } => return Ok(()),
                Item::Link(target) => path = resolve(&path, target),
            }
        }
        bail!("{path}: too many links in a row")
    }

    /// Adds kernel modules with what they depend on, and the list in which /init loads them.
    fn add_modules(&mut self, wanted: &[String], contents: &Contents) -> Result<()> {
        let module_name = |path: &str| {
            let file = path.rsplit('/').next().unwrap_or(path);
            file.strip_suffix(".ko").map(|name| name.replace('-', "_"))
        };
        let modules: BTreeMap<String, (&str, &[u8])> = contents
            .iter()
            .filter_map(|(path, item)| match item {
                Item::File { bytes, .. } => Some((module_name(path)?, (path, bytes.as_slice()))),
                Item::Link(_) => None,
            })
            .collect();
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            load(&name.replace('-', "_"), &modules, &mut seen, &mut order)?;
        }
        let mut list = String::new();
        for path in order {
            list.push('/');
            list.push_str(path);
            list.push('\n');
            if let Some(item) = contents.get(path) {
                self.items.insert(path.to_owned(), item.clone());
            }
        }
        self.items.insert(
            LOAD_ORDER.to_owned(),
            Item::File {
                mode: 0o644,
                bytes: list.into_bytes(),
            },
        );
        Ok(())
    }

    fn add_overlay(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        for entry in
            fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?
        {
            let entry = entry?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.add_overlay(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path())?.to_string_lossy().into_owned();
                self.items.insert(path, Item::Link(target));
            } else {
                // A checkout's umask is not part of the recipe: only the executable bit counts.
                let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
                let mode = if executable { 0o755 } else { 0o644 };
                let bytes = fs::read(entry.path())?;
                self.items.insert(path, Item::File { mode, bytes });
            }
        }
        Ok(())
    }

    /// These files and nothing else, for anybody to run.
    pub fn of_files<const N: usize>(files: [(&str, Vec<u8>); N]) -> Tree {
        let item = |(path, bytes): (&str, Vec<u8>)| {
            let file = Item::File { mode: 0o755, bytes };
            (path.to_owned(), file)
        };
        Tree {
            items: files.map(item).into(),
        }
    }

    /// The tree as a cpio archive.
    pub fn to_cpio(&self) -> Result<Vec<u8>> {
        let mut archive = Vec::new();
        let mut inode = 0;
        let mut add = |path: &str, kind: ModeFileType, mode: u32, bytes: &[u8]| -> Result<()> {
            inode += 1;
            let header = Builder::new(path)
                .ino(inode)
                .nlink(1)
                .mode(mode)
                .set_mode_file_type(kind);
            let size = u32::try_from(bytes.len())
                .with_context(|| format!("{path} is too large for a ramdisk"))?;
            let mut writer = header.write(std::mem::take(&mut archive), size);
            std::io::Write::write_all(&mut writer, bytes)?;
            archive = writer.finish()?;
            Ok(())
        };
        for folder in self.folders() {
            add(&folder, ModeFileType::Directory, 0o755, &[])?;
        }
        for (path, item) in &self.items {
            match item {
                Item::File { mode, bytes } => add(path, ModeFileType::Regular, *mode, bytes)?,
                Item::Link(target) => add(path, ModeFileType::Symlink, 0o777, target.as_bytes())?,
            }
        }
        Ok(trailer(archive)?)
    }

    /// Every folder that an item lies in, parents first; and those that /init needs before it can make any.
    fn folders(&self) -> BTreeSet<String> {
        let mut folders: BTreeSet<String> = ["dev", "proc", "sys", "tmp", "run"]
            .map(str::to_owned)
            .into();
        for path in self.items.keys() {
            for (at, _) in path.match_indices('/') {
                folders.insert(path[..at].to_owned());
            }
        }
        folders
    }
}

/// Where a link at `path` to `target` leads.
fn resolve(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = match target.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => path.split('/').collect(),
    };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The interpreter and shared libraries that an ELF file names.
fn needed_files(bytes: &[u8]) -> Result<Vec<String>> {
    let file = ElfFile64::<Endianness>::parse(bytes)?;
    let endian = file.endian();
    let mut needed = Vec::new();
    let header = file.elf_header();
    for segment in header.program_headers(endian, bytes)? {
        use object::read::elf::ProgramHeader as _;
        if let Some(interpreter) = segment.interpreter(endian, bytes)? {
            needed.push(String::from_utf8_lossy(interpreter).into_owned());
        }
    }
    let sections = header.sections(endian, bytes)?;
    if let Some((entries, strings)) = sections.dynamic(endian, bytes)? {
        let strings = sections.strings(endian, bytes, strings)?;
        for entry in entries {
            if entry.tag(endian) == elf::DT_NEEDED {
                needed.push(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned());
            }
        }
    }
    Ok(needed)
}

/// Puts module `name` into `order` behind all that it depends on.
fn load<'a>(
    name: &str,
    modules: &BTreeMap<String, (&'a str, &[u8])>,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<&'a str>,
) -> Result<()> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let Some(&(path, bytes)) = modules.get(name) else {
        bail!(
            "the kernel's package has no module `{name}`; is it built in by now? Mend `modules` in guest.toml"
        );
    };
    for dependency in module_dependencies(bytes).with_context(|| format!("reading {path}"))? {
        load(&dependency.replace('-', "_"), modules, seen, order)?;
    }
    order.push(path);
    Ok(())
}

/// The modules that a kernel module names in its `.modinfo` section as `depends=a,b`.
fn module_dependencies(bytes: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(bytes)?;
    let section = file
        .section_by_name(".modinfo")
        .context("not a kernel module: it has no .modinfo")?;
    let data = section.data()?;
    let depends = data
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="));
    let depends = String::from_utf8_lossy(depends.unwrap_or_default()).into_owned();
    Ok(depends
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_as_the_kernel_does() {
        assert_eq!(resolve("lib64/ld.so", "../lib/x/ld.so"), "lib/x/ld.so");
        assert_eq!(resolve("usr/lib/a.so", "a.so.1"), "usr/lib/a.so.1");
        assert_eq!(resolve("usr/lib/a.so", "/lib/b.so"), "lib/b.so");
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes_with_parents_before_children() {
        let file = |text: &str| Item::File {
            mode: 0o755,
            bytes: text.as_bytes().to_vec(),
        };
        let items = BTreeMap::from([
            ("init".to_owned(), file("#!/bin/sh")),
            ("usr/lib/x".to_owned(), Item::Link("y".into())),
            ("usr/lib/y".to_owned(), file("y")),
        ]);
        let tree = Tree { items };
        let archive = tree.to_cpio().unwrap();
        assert_eq!(archive, tree.to_cpio().unwrap());
        let mut names = Vec::new();
        let mut rest = archive.as_slice();
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            assert_eq!(reader.entry().mtime(), 0);
            names.push(reader.entry().name().to_owned());
            rest = reader.finish().unwrap();
        }
        assert_eq!(
            names,
            [
                "dev",
                "proc",
                "run",
                "sys",
                "tmp",
                "usr",
                "usr/lib",
                "init",
                "usr/lib/x",
                "usr/lib/y"
            ]
        );
    }

    #[test]
    fn a_missing_library_names_its_package_list() {
        // The test program itself is an ELF file that needs the C library.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut tree = Tree {
            items: BTreeMap::from([(
                "bin/x".to_owned(),
                Item::File {
                    mode: 0o755,
                    bytes: own,
                },
            )]),
        };
        let error = tree
            .add_libraries(&Contents::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("bin/x needs") && error.contains("libraries"),
            "{error}"
        );
    }
}
