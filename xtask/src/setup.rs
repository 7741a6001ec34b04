//! `cargo xtask setup`: the Debian packages of `ci/packages.txt` and a toolchain for the firmware target. It says what it is
//! about to install and why before it does. `run`, `test`, `boot` and `build-image` call it for what they need.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{self, Process};
use crate::progress;
use crate::toolchain::{TARGET, Toolchain};

/// `ci/packages.txt`.
const PACKAGES: &str = include_str!("../../ci/packages.txt");

/// A group of packages in `ci/packages.txt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// What emulates boxes.
    Emulator,
    /// The real programs of the scenario.
    Scenario,
    /// Networks of the host tests' own, in namespaces.
    Namespaces,
    /// Building for the firmware target. Debian's packages are only taken where the target is not there already.
    FirmwareToolchain,
    /// Checking the box's own code with clippy.
    FirmwareClippy,
    /// What `bench bytes` compares with, and fetches its inputs with.
    Bench,
}

impl Group {
    const ALL: [Group; 6] = [
        Group::Emulator,
        Group::Scenario,
        Group::Namespaces,
        Group::FirmwareToolchain,
        Group::FirmwareClippy,
        Group::Bench,
    ];

    fn name(self) -> &'static str {
        match self {
            Group::Emulator => "emulator",
            Group::Scenario => "scenario",
            Group::Namespaces => "namespaces",
            Group::FirmwareToolchain => "firmware-toolchain",
            Group::FirmwareClippy => "firmware-clippy",
            Group::Bench => "bench",
        }
    }
}

/// `cargo xtask setup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only say what would be installed
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// As [`ensure`].
pub fn run(arguments: &Args) -> Result<()> {
    // npm brings hundreds of packages along: `bench bytes` asks for its own.
    let groups: Vec<Group> = Group::ALL
        .into_iter()
        .filter(|group| *group != Group::Bench)
        .collect();
    ensure_or_say(&groups, arguments.dry_run)?;
    if !arguments.dry_run {
        println!(
            "Everything is there. The box's binary is built with {}.",
            Toolchain::find()?.describe()
        );
    }
    Ok(())
}

/// Makes sure that the groups are installed.
///
/// # Errors
/// When something is missing and cannot be installed; the message says what to do by hand.
pub fn ensure(groups: &[Group]) -> Result<()> {
    ensure_or_say(groups, false)
}

fn ensure_or_say(groups: &[Group], dry_run: bool) -> Result<()> {
    let all = parse(PACKAGES)?;
    let toolchain = Toolchain::find();
    let mut wanted: Vec<Group> = groups.to_vec();
    // Debian's Rust comes with the other packages and from the same place; elsewhere rustup has the target.
    if wanted.contains(&Group::FirmwareToolchain)
        && toolchain.is_err()
        && !is_debian()
        && !dry_run
        && try_rustup()
    {
        Toolchain::find()
            .context("rustup says that it installed the target, but it is not there")?;
    }
    match Toolchain::find() {
        // A target of rustup's needs none of Debian's packages; Debian's clippy only goes with Debian's Rust.
        Ok(toolchain) if !toolchain.is_debian() => {
            wanted
                .retain(|group| !matches!(group, Group::FirmwareToolchain | Group::FirmwareClippy));
        }
        Ok(_) => wanted.retain(|group| *group != Group::FirmwareToolchain),
        Err(_) => {}
    }
    // One that is too old is there, and must be installed anew; its clippy goes with it.
    let outdated = wanted
        .contains(&Group::FirmwareToolchain)
        .then(Toolchain::outdated_debian)
        .flatten();
    if let Some(version) = &outdated {
        eprintln!("Debian's Rust here is too old for the box's binary: {version}");
    }
    let missing: Vec<&Package> = all
        .iter()
        .filter(|package| {
            let replaced = outdated.is_some() && package.is_part_of_rust();
            match package.is_there() {
                true => replaced,
                false => wanted.iter().any(|group| group.name() == package.group),
            }
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut list = String::new();
    for package in &missing {
        let _ = writeln!(list, "  {:18} {}", package.name, package.purpose);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !is_debian() {
        bail!(
            "this is not a Debian system, so install by hand what these Debian packages hold, and try again:\n{list}\
             (`cargo xtask` goes by: {})",
            missing
                .iter()
                .map(|package| package.shown_by.join(" or "))
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    let as_root = as_root()?;
    eprintln!(
        "About to install with {}apt-get:\n{list}",
        if as_root.is_some() { "sudo " } else { "" }
    );
    if dry_run {
        return Ok(());
    }
    install(as_root.as_deref(), &names)?;
    let still: Vec<&str> = missing
        .iter()
        .filter(|package| !package.is_there())
        .map(|package| package.name)
        .collect();
    if !still.is_empty() {
        bail!(
            "apt-get says that all went well, but what {} should bring is not there",
            still.join(", ")
        );
    }
    Ok(())
}

fn is_debian() -> bool {
    process::find_program("apt-get").is_some() && process::find_program("dpkg-query").is_some()
}

/// `sudo`'s path when we are not root.
fn as_root() -> Result<Option<std::path::PathBuf>> {
    if nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    match process::find_program("sudo") {
        Some(sudo) => Ok(Some(sudo)),
        None => bail!(
            "packages must be installed, which needs root: run `cargo xtask setup` as root, or install sudo"
        ),
    }
}

fn install(sudo: Option<&Path>, names: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(names);
    // Lists of another day bring packages of that day: a Rust that is too old, or what the server no longer has.
    eprintln!("Fetching the current package lists first (apt-get update)");
    if !apt_get(sudo, &["update"])? {
        eprintln!("`apt-get update` failed: going on with the lists that are here");
    }
    if !apt_get(sudo, &arguments)? {
        bail!(
            "`apt-get install {}` failed: see its messages above",
            names.join(" ")
        );
    }
    Ok(())
}

/// Runs apt-get in the terminal's foreground (sudo may ask for a password). True if it succeeded.
fn apt_get(sudo: Option<&Path>, arguments: &[&str]) -> Result<bool> {
    let mut command = match sudo {
        Some(sudo) => {
            let mut command = Command::new(sudo);
            command.args(["--", "env"]);
            command
        }
        None => Command::new("env"),
    };
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get"])
        .args(arguments);
    let status = command.status().context("cannot start apt-get")?;
    process::check_interrupted()?;
    Ok(status.success())
}

/// Asks rustup for the target. It may have no way to its server, so it gets a minute.
fn try_rustup() -> bool {
    let Ok(mut command) = process::command("rustup") else {
        return false;
    };
    command
        .args(["target", "add", TARGET])
        .stdin(std::process::Stdio::null());
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let spinner = progress::spinner(format!(
        "About to install Rust's target {TARGET} with rustup, to build the box's binary"
    ));
    let status = Process::start(command, "rustup")
        .and_then(|mut rustup| rustup.wait_for(Duration::from_secs(60)));
    spinner.finish_and_clear();
    let installed = matches!(status, Ok(Some(status)) if status.success());
    if !installed {
        eprintln!(
            "rustup cannot fetch {TARGET} here; try `rustup target add {TARGET}` by hand to see why"
        );
    }
    installed
}

/// A line of `ci/packages.txt`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Package<'a> {
    group: &'a str,
    name: &'a str,
    shown_by: Vec<&'a str>,
    purpose: &'a str,
}

impl Package<'_> {
    /// True for Debian's Rust and what goes with it.
    fn is_part_of_rust(&self) -> bool {
        [Group::FirmwareToolchain, Group::FirmwareClippy]
            .iter()
            .any(|group| group.name() == self.group)
    }

    fn is_there(&self) -> bool {
        self.shown_by
            .iter()
            .any(|thing| process::find_program(thing).is_some())
    }
}

fn parse(text: &str) -> Result<Vec<Package<'_>>> {
    let mut group = None;
    let mut packages = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            group = Some(name);
            continue;
        }
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let (Some(group), [name, shown_by, purpose]) = (group, fields.as_slice()) else {
            bail!(
                "ci/packages.txt, line {}: {line:?} is not `package | shown by | purpose` in a [group]",
                number + 1
            );
        };
        packages.push(Package {
            group,
            name,
            shown_by: shown_by.split_whitespace().collect(),
            purpose,
        });
    }
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_parses_and_every_group_is_known() {
        let packages = parse(PACKAGES).unwrap();
        for group in Group::ALL {
            assert!(
                packages.iter().any(|package| package.group == group.name()),
                "{group:?} is empty"
            );
        }
        for package in &packages {
            assert!(
                Group::ALL.iter().any(|group| group.name() == package.group),
                "{package:?}"
            );
            assert!(
                !package.shown_by.is_empty() && !package.purpose.is_empty(),
                "{package:?}"
            );
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        assert!(
            parse("[a]\nx | y\n")
                .unwrap_err()
                .to_string()
                .contains("line 2")
        );
        assert!(
            parse("x | y | z\n")
                .unwrap_err()
                .to_string()
                .contains("line 1")
        );
    }

    #[test]
    fn what_shows_a_package_may_be_a_program_or_a_file() {
        let there =
            parse("[g]\na | sh | x\nb | /nowhere /bin/sh | x\nc | no-such-program | x").unwrap();
        assert_eq!(
            there.iter().map(Package::is_there).collect::<Vec<_>>(),
            [true, true, false]
        );
    }
}
