//! The pairs of files that `bench bytes` carries: an old version and the next one. Not what is made of them for single rows.
//!
//! Published versions come by exact number from the package registries, through the registries' own tools, and are checked
//! against their SHA-256. Each becomes one tar of its files, sorted by name, with nothing in it that depends on when or where
//! it is made. All is made once and kept in cargo's build directory.

use std::fs::File;
use std::io::{Cursor, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

use crate::releases::{self, Release};
use crate::run::Dice;
use crate::{process, progress};

/// Two versions of one thing.
#[derive(Clone, Debug)]
pub struct Pair {
    /// What it is called in the rows.
    pub name: String,
    /// What is sent first.
    pub old: PathBuf,
    /// What is sent next.
    pub new: PathBuf,
}

/// A file that a registry has.
struct Published {
    /// What is asked for.
    wanted: &'static str,
    file: &'static str,
    sha256: &'static str,
}

const TYPESCRIPT: [Published; 2] = [
    Published {
        wanted: "typescript@5.4.5",
        file: "typescript-5.4.5.tgz",
        sha256: "154fae77169f04155ac52d521ac59abb07c9be29ea3744732adbf9f14abb2440",
    },
    Published {
        wanted: "typescript@5.5.4",
        file: "typescript-5.5.4.tgz",
        sha256: "2680b6354d462a1d90a2cf10c790e071f1c45081c9d4561cb47ce23c934d8586",
    },
];

const NUMPY: [Published; 2] = [
    Published {
        wanted: "numpy==1.26.3",
        file: "numpy-1.26.3-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        sha256: "f25e2811a9c932e43943a2615e65fc487a0b6b49218899e62e426e7f0a57eeda",
    },
    Published {
        wanted: "numpy==1.26.4",
        file: "numpy-1.26.4-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        sha256: "666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5",
    },
];

const WINDOWS_SYS: [Release; 2] = [
    Release {
        name: "windows-sys",
        version: "0.59.0",
        sha256: "1e38bc4d79ed67fd075bcc251a1c39b32a1776bbe92e5bef1f0bf1f8c531853b",
    },
    Release {
        name: "windows-sys",
        version: "0.60.2",
        sha256: "f2f500e4d28234f72040990ec9d39e3a6b950f9f22d3dba18416c35882612bcb",
    },
];

/// npm's typescript 5.4.5 and 5.5.4.
///
/// # Errors
/// As for all of these: it cannot be fetched or made, or is not what its digest says.
pub fn typescript(directory: &Path) -> Result<Pair> {
    published("typescript", directory, &TYPESCRIPT, |missing| {
        let mut npm = process::command("npm")?;
        npm.args(["pack", "--silent", "--pack-destination"])
            .arg(directory)
            .args(missing);
        Ok(npm)
    })
}

/// PyPI's numpy 1.26.3 and 1.26.4 for Linux on x86-64.
///
/// # Errors
/// As for [`typescript`].
pub fn numpy(directory: &Path) -> Result<Pair> {
    published("numpy", directory, &NUMPY, |missing| {
        let mut pip = process::command("python3")?;
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps"])
            .args(["--only-binary=:all:", "--disable-pip-version-check"])
            .args(["--implementation", "cp", "--python-version", "3.11"])
            .args(["--abi", "cp311", "--platform", "manylinux_2_17_x86_64"])
            .arg("--dest")
            .arg(directory)
            // One at a time: pip takes two versions of one thing for a conflict.
            .args(missing.first());
        Ok(pip)
    })
}

/// The crate windows-sys 0.59.0 and 0.60.2.
///
/// # Errors
/// As for [`typescript`].
pub fn windows_sys(directory: &Path) -> Result<Pair> {
    let tar = |release: Release| {
        directory.join(format!("{}-{}.sorted.tar", release.name, release.version))
    };
    let [old, new] = WINDOWS_SYS.map(tar);
    if !(old.exists() && new.exists()) {
        let archives = releases::fetch(directory, WINDOWS_SYS)?;
        for (archive, tar) in archives.iter().zip([&old, &new]) {
            write_sorted_tar(archive, tar)?;
        }
    }
    Ok(Pair {
        name: String::from("windows-sys"),
        old,
        new,
    })
}

fn published(
    name: &str,
    directory: &Path,
    versions: &[Published; 2],
    fetch: impl Fn(&[&str]) -> Result<std::process::Command>,
) -> Result<Pair> {
    let tar = |version: &Published| directory.join(format!("{}.sorted.tar", version.file));
    for _ in versions {
        let missing: Vec<&str> = versions
            .iter()
            .filter(|version| !tar(version).exists() && !directory.join(version.file).exists())
            .map(|version| version.wanted)
            .collect();
        if missing.is_empty() {
            break;
        }
        let spinner = progress::spinner(format!("fetching {}", missing.join(" and ")));
        let mut command = fetch(&missing)?;
        command.stdin(Stdio::null());
        process::output(command, &format!("fetching {name}"))?;
        spinner.finish_and_clear();
    }
    for version in versions {
        let tar = tar(version);
        if tar.exists() {
            continue;
        }
        let archive = directory.join(version.file);
        let bytes =
            std::fs::read(&archive).with_context(|| format!("{} was not fetched", version.file))?;
        let found = hex::encode(Sha256::digest(&bytes));
        if found != version.sha256 {
            std::fs::remove_file(&archive)?;
            bail!(
                "{} has SHA-256 {found}, and should have {}; it was removed",
                version.file,
                version.sha256
            );
        }
        write_sorted_tar(&archive, &tar)?;
    }
    let [old, new] = [&versions[0], &versions[1]].map(tar);
    Ok(Pair {
        name: name.to_owned(),
        old,
        new,
    })
}

/// The files of an archive (`.whl`: zip; else a gzipped tar) as a tar, sorted by name.
fn write_sorted_tar(archive: &Path, to: &Path) -> Result<()> {
    let read = || -> Result<Vec<(String, Vec<u8>)>> {
        let mut file = File::open(archive)?;
        match archive.extension() {
            Some(extension) if extension == "whl" => files_of_zip(file),
            _ => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                files_of_tar(GzDecoder::new(Cursor::new(bytes)))
            }
        }
    };
    let mut files = read().with_context(|| format!("cannot read {}", archive.display()))?;
    files.sort();
    let partial = to.with_extension("partial");
    let mut tar = tar::Builder::new(std::io::BufWriter::new(File::create(&partial)?));
    for (name, bytes) in &files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_slice())?;
    }
    tar.into_inner()?.flush()?;
    std::fs::rename(&partial, to).with_context(|| format!("cannot write {}", to.display()))
}

fn files_of_tar(tar: impl Read) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let name = entry.path()?.to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.push((name, bytes));
        }
    }
    Ok(files)
}

fn files_of_zip(zip: impl Read + Seek) -> Result<Vec<(String, Vec<u8>)>> {
    let mut zip = zip::ZipArchive::new(zip)?;
    let mut files = Vec::new();
    for index in 0..zip.len() {
        let mut file = zip.by_index(index)?;
        if file.is_file() {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            files.push((file.name()?.into_owned(), bytes));
        }
    }
    Ok(files)
}

const ROWS: u64 = 120_000;
/// Of 100 rows.
const CHANGED: u64 = 8;

/// A SQLite file of some 30 MB, and the same with 8% of its rows changed. The rows depend on the seed alone, the file on
/// SQLite's version too.
///
/// # Errors
/// The `sqlite3` program is missing or fails.
pub fn sqlite(directory: &Path, seed: u64) -> Result<Pair> {
    let [old, new] =
        ["before", "after"].map(|when| directory.join(format!("customers-{seed}-{when}.sqlite")));
    if !(old.exists() && new.exists()) {
        let spinner = progress::spinner("making the SQLite file");
        let mut dice = Dice::new(seed);
        let partial = directory.join("customers.partial");
        let _ = std::fs::remove_file(&partial);
        run_sqlite(&partial, &first_rows(&mut dice))?;
        std::fs::copy(&partial, &old)?;
        run_sqlite(&partial, &changed_rows(&mut dice))?;
        std::fs::rename(&partial, &new)?;
        spinner.finish_and_clear();
    }
    Ok(Pair {
        name: String::from("sqlite"),
        old,
        new,
    })
}

fn run_sqlite(file: &Path, script: &str) -> Result<()> {
    let mut given = tempfile::tempfile()?;
    given.write_all(script.as_bytes())?;
    given.rewind()?;
    let mut sqlite = process::command("sqlite3")?;
    sqlite
        .arg("-bail")
        .arg(file)
        .stdin(given)
        .stdout(Stdio::null());
    let mut process = process::Process::start(sqlite, "sqlite3")?;
    let status = process.wait()?;
    ensure!(
        status.success(),
        "sqlite3 failed ({status}) on {}",
        file.display()
    );
    Ok(())
}

fn first_rows(dice: &mut Dice) -> String {
    let mut script = String::from(
        "PRAGMA page_size=4096; PRAGMA journal_mode=OFF; BEGIN;\n\
         CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT, mail TEXT, street TEXT, balance INTEGER, note TEXT);\n",
    );
    for id in 1..=ROWS {
        let (first, last) = (word(dice), word(dice));
        script += &format!(
            "INSERT INTO customer VALUES({id},'{first} {last}','{first}.{last}{id}@example.org','{} {}',{},'{}');\n",
            word(dice),
            dice.next() % 200,
            dice.next() % 1_000_000,
            words(dice)
        );
    }
    script + "CREATE INDEX by_mail ON customer(mail); COMMIT;\n"
}

fn changed_rows(dice: &mut Dice) -> String {
    let mut script = String::from("PRAGMA journal_mode=OFF; BEGIN;\n");
    for id in 1..=ROWS {
        if dice.next() % 100 < CHANGED {
            script += &format!(
                "UPDATE customer SET balance={}, note='{}' WHERE id={id};\n",
                dice.next() % 1_000_000,
                words(dice)
            );
        }
    }
    script + "COMMIT;\n"
}

fn words(dice: &mut Dice) -> String {
    let count = 8 + dice.next() % 16;
    let words: Vec<String> = (0..count).map(|_| word(dice)).collect();
    words.join(" ")
}

/// One of 4,096 words of two to four syllables.
fn word(dice: &mut Dice) -> String {
    const SYLLABLES: [&str; 16] = [
        "ba", "chi", "do", "fen", "gu", "har", "ki", "lo", "mer", "na", "pel", "ri", "so", "tu",
        "van", "ze",
    ];
    let number = dice.next() % 4096;
    let syllable = |at: u64| SYLLABLES[(number >> (4 * at)) as usize % 16];
    (0..2 + number % 3).map(|at| syllable(at % 3)).collect()
}

/// The user's own two files.
///
/// # Errors
/// One is not a file, or is empty.
pub fn own(old: &Path, new: &Path) -> Result<Pair> {
    for path in [old, new] {
        let found = path
            .metadata()
            .with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            found.is_file() && found.len() > 0,
            "{} is not a file with anything in it",
            path.display()
        );
    }
    Ok(Pair {
        name: new.file_name().map_or_else(
            || String::from("pair"),
            |name| name.to_string_lossy().into(),
        ),
        old: old.to_owned(),
        new: new.to_owned(),
    })
}

/// Noise that depends on the seed alone.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut noise: Vec<u8> = (0..bytes.div_ceil(8))
        .flat_map(|_| dice.next().to_le_bytes())
        .collect();
    noise.truncate(bytes);
    noise
}

/// `bytes` with one of 100 of its 4 KiB pages, at random places, replaced by noise.
pub fn rewrite_pages(bytes: &[u8], seed: u64) -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut dice = Dice::new(seed);
    let mut result = bytes.to_vec();
    let pages = bytes.len() / PAGE;
    let mut rewritten = std::collections::BTreeSet::new();
    while rewritten.len() < pages / 100 {
        let page = (dice.next() % pages as u64) as usize;
        if rewritten.insert(page)
            && let Some(page) = result.chunks_exact_mut(PAGE).nth(page)
        {
            page.copy_from_slice(&noise(dice.next(), PAGE));
        }
    }
    result
}

/// 200 pieces of 1 to 50 KB from random places of `bytes`.
pub fn small_files(bytes: &[u8], seed: u64) -> Vec<Vec<u8>> {
    let mut dice = Dice::new(seed);
    (0..200)
        .map(|_| {
            let length = (1_000 + (dice.next() % 49_001) as usize).min(bytes.len());
            let from = (dice.next() % (bytes.len() - length + 1) as u64) as usize;
            bytes[from..from + length].to_vec()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_becomes_a_tar_that_depends_on_its_files_alone() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[(&str, &str)], mtime: u64| {
            let path = directory.path().join(name);
            let gzip = flate2::write::GzEncoder::new(
                File::create(&path).unwrap(),
                flate2::Compression::fast(),
            );
            let mut tar = tar::Builder::new(gzip);
            for (name, text) in files {
                let mut header = tar::Header::new_gnu();
                header.set_size(text.len() as u64);
                header.set_mtime(mtime);
                tar.append_data(&mut header, name, text.as_bytes()).unwrap();
            }
            tar.into_inner().unwrap().finish().unwrap();
            let to = directory.path().join(format!("{name}.tar"));
            write_sorted_tar(&path, &to).unwrap();
            std::fs::read(to).unwrap()
        };
        let one = make("one.tgz", &[("b", "x"), ("a", "yy")], 1);
        let two = make("two.tgz", &[("a", "yy"), ("b", "x")], 2);
        assert_eq!(one, two);
        let names: Vec<String> = files_of_tar(one.as_slice())
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn a_hundredth_of_the_pages_is_rewritten() {
        let bytes = noise(1, 4096 * 300 + 5);
        let rewritten = rewrite_pages(&bytes, 2);
        let differ = bytes
            .chunks(4096)
            .zip(rewritten.chunks(4096))
            .filter(|(before, after)| before != after)
            .count();
        assert_eq!((differ, rewritten.len()), (3, bytes.len()));
    }

    #[test]
    fn small_files_are_of_1_to_50_kb_and_always_the_same() {
        let files = small_files(&noise(1, 100_000), 3);
        assert_eq!(files.len(), 200);
        assert!(
            files
                .iter()
                .all(|file| (1_000..=50_000).contains(&file.len()))
        );
        assert_eq!(files, small_files(&noise(1, 100_000), 3));
    }

    #[test]
    fn rows_depend_on_the_seed_and_8_of_100_change() {
        let mut dice = Dice::new(7);
        let (first, changed) = (first_rows(&mut dice), changed_rows(&mut dice));
        assert_eq!(first, first_rows(&mut Dice::new(7)));
        assert_eq!(first.matches("INSERT").count() as u64, ROWS);
        let share = changed.matches("UPDATE").count() as f64 / ROWS as f64;
        assert!((0.075..0.085).contains(&share), "{share}");
    }

    #[test]
    fn an_empty_file_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = own(file.path(), Path::new("/nowhere"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("not a file with anything"), "{error}");
    }
}
