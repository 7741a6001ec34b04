//! Which Rust builds for the firmware target `x86_64-unknown-uefi`: the target's own `core` where rustup has installed it,
//! else a toolchain that has the library sources (`-Zbuild-std`), else a message that says what to install.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// The firmware target.
pub const TARGET: &str = "x86_64-unknown-uefi";

/// Debian's own toolchain (`rustc-web`, `cargo-web`), which comes before `PATH`: that may lead to rustup's.
const DEBIAN: (&str, &str) = ("/usr/bin/cargo", "/usr/bin/rustc");

/// The oldest Rust that builds Outpost: the workspace's `rust-version`.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Linkers that can stand in for rustup's own, best first: Debian's versioned names, then LLVM's.
const LINKERS: [&str; 4] = ["lld-link-19", "lld-link", "lld-link-20", "lld-link-18"];

/// How to build for the firmware target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// The linker, when `core` is built from source.
    build_std: Option<PathBuf>,
}

impl Toolchain {
    /// Looks for one.
    ///
    /// # Errors
    /// When there is none; the message says what to install.
    pub fn find() -> Result<Toolchain> {
        let cargo = std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from);
        let rustc = std::env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from);
        if has_target(&rustc) {
            return Ok(Toolchain {
                cargo,
                rustc,
                build_std: None,
            });
        }
        let linker = LINKERS
            .iter()
            .find_map(|linker| process::find_program(linker));
        let debian = (PathBuf::from(DEBIAN.0), PathBuf::from(DEBIAN.1));
        for (cargo, rustc) in [(cargo, rustc), debian] {
            if let Some(linker) = &linker
                && has_sources(&rustc)
                && is_recent(&version(&rustc).unwrap_or_default())
            {
                return Ok(Toolchain {
                    cargo,
                    rustc,
                    build_std: Some(linker.clone()),
                });
            }
        }
        let too_old = Toolchain::outdated_debian().map_or(String::new(), |version| {
            format!(
                " ({} is {version}; Outpost needs {OLDEST} or newer: `apt-get update` brings the list of newer ones)",
                DEBIAN.1
            )
        });
        bail!(
            "no Rust here can build for {TARGET}{too_old}. Where rustup reaches its server: `rustup target add {TARGET}`. Else, on Debian, its \
             own Rust with the library sources: `apt-get install rustc-web cargo-web rust-web-src lld-19`. `cargo xtask setup` does the one or the other"
        )
    }

    /// The version of Debian's Rust, if it is there and too old for Outpost: package lists that are not up to date bring such a one.
    pub fn outdated_debian() -> Option<String> {
        version(Path::new(DEBIAN.1)).filter(|version| !is_recent(version))
    }

    /// True if it is Debian's own.
    pub fn is_debian(&self) -> bool {
        self.rustc == Path::new(DEBIAN.1)
    }

    /// For people: which one it is.
    pub fn describe(&self) -> String {
        match &self.build_std {
            None => format!("the {TARGET} target of {}", self.rustc.display()),
            Some(linker) => format!(
                "{} with `core` built from source, linked by {}",
                self.rustc.display(),
                linker.display()
            ),
        }
    }

    /// `cargo SUBCOMMAND` for the firmware target, run in `workspace`, building in `target`. The same sources give the same
    /// bytes wherever they lie.
    ///
    /// # Errors
    /// When cargo is gone, or a path is not UTF-8.
    pub fn cargo(
        &self,
        subcommand: &str,
        workspace: &Path,
        target: &Path,
        warnings_are_errors: bool,
    ) -> Result<Command> {
        // `cargo clippy` would take the first cargo-clippy in cargo's own folder, which may be another toolchain's.
        let sibling = self.cargo.with_file_name(format!("cargo-{subcommand}"));
        let program = if self.cargo.is_absolute() && sibling.exists() {
            &sibling
        } else {
            &self.cargo
        };
        let mut command = process::command(program)?;
        command.current_dir(workspace).env("RUSTC", &self.rustc);
        // Variables of the `cargo run` around us, and of the user's host builds, that must not change the result.
        for (name, _) in std::env::vars_os() {
            if is_foreign(&name) {
                command.env_remove(name);
            }
        }
        if self.cargo.is_absolute() {
            command.env("CARGO", &self.cargo);
        }
        command
            .arg(subcommand)
            .args(["--target", TARGET, "--target-dir"])
            .arg(target);
        let mut flags = self.remapped_paths(workspace)?;
        // The PE header's time stamp becomes a hash of the content; without a PDB, whose identity would depend on where it is built.
        flags.extend(["-Clink-arg=/Brepro".into(), "-Clink-arg=/DEBUG:NONE".into()]);
        if warnings_are_errors {
            flags.push("-Dwarnings".into());
        }
        command.arg("--config").arg(format!(
            "target.{TARGET}.rustflags={}",
            serde_json::to_string(&flags)?
        ));
        if let Some(linker) = &self.build_std {
            command
                .env("RUSTC_BOOTSTRAP", "1")
                .args([
                    "-Zbuild-std=core,alloc,compiler_builtins",
                    "-Zbuild-std-features=compiler-builtins-mem",
                ])
                .arg("--config")
                .arg(format!(
                    "target.{TARGET}.linker={}",
                    serde_json::to_string(linker)?
                ));
        }
        Ok(command)
    }

    /// Replaces the folders of this machine in panic messages.
    fn remapped_paths(&self, workspace: &Path) -> Result<Vec<String>> {
        let home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
        let mut flags = Vec::new();
        let mut remap = |from: &Path, to: &str| -> Result<()> {
            let from = from
                .to_str()
                .with_context(|| format!("{} is not UTF-8", from.display()))?;
            flags.push(format!("--remap-path-prefix={from}={to}"));
            Ok(())
        };
        if let Some(home) = home {
            // registry/src holds one folder for each registry.
            for entry in std::fs::read_dir(home.join("registry/src"))
                .into_iter()
                .flatten()
                .flatten()
            {
                remap(&entry.path(), "crates")?;
            }
        }
        let sources = sysroot(&self.rustc)
            .unwrap_or_default()
            .join("lib/rustlib/src/rust");
        if let Ok(real) = sources.canonicalize() {
            remap(&real, "rust")?;
            remap(&sources, "rust")?;
        }
        remap(workspace, "outpost")?;
        Ok(flags)
    }
}

fn is_foreign(name: &OsString) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    matches!(
        name,
        "RUSTFLAGS"
            | "CARGO_ENCODED_RUSTFLAGS"
            | "LD_LIBRARY_PATH"
            | "CARGO_MANIFEST_DIR"
            | "CARGO_MANIFEST_PATH"
            | "CARGO"
    ) || [
        "CARGO_PKG_",
        "CARGO_BIN_",
        "CARGO_PROFILE_",
        "CARGO_BUILD_",
        "CARGO_TARGET_",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

fn ask(rustc: &Path, arguments: &[&str]) -> Option<PathBuf> {
    let output = Command::new(rustc)
        .args(arguments)
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().into())
}

/// What `rustc --version` says.
fn version(rustc: &Path) -> Option<String> {
    ask(rustc, &["--version"])?
        .into_os_string()
        .into_string()
        .ok()
}

/// True for a version that `rustc --version` gives if it is not older than [`OLDEST`].
fn is_recent(version: &str) -> bool {
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let (major, rest) = text.split_once('.')?;
        let minor = rest.split(['.', '-']).next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let found = version.strip_prefix("rustc ").and_then(numbers);
    found.is_some_and(|found| Some(found) >= numbers(OLDEST))
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    ask(rustc, &["--print", "sysroot"])
}

fn has_target(rustc: &Path) -> bool {
    ask(rustc, &["--print", "target-libdir", "--target", TARGET]).is_some_and(|directory| {
        std::fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

fn has_sources(rustc: &Path) -> bool {
    sysroot(rustc).is_some_and(|sysroot| {
        sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .exists()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_host_build_are_foreign() {
        for name in [
            "RUSTFLAGS",
            "CARGO_PKG_NAME",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
        ] {
            assert!(is_foreign(&name.into()), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "CARGO_HTTP_TIMEOUT",
            "RUSTUP_HOME",
        ] {
            assert!(!is_foreign(&name.into()), "{name}");
        }
    }

    #[test]
    fn a_rust_older_than_the_workspaces_is_not_taken() {
        for version in [
            format!("rustc {OLDEST}.0 (4d91de4e4 2025-02-17) (built from a source tarball)"),
            "rustc 1.196.0-nightly (0 2030-01-01)".to_owned(),
            "rustc 2.0.0".to_owned(),
        ] {
            assert!(is_recent(&version), "{version}");
        }
        for version in [
            "rustc 1.85.0 (4d91de4e4 2025-02-17)",
            "rustc 0.99.0",
            "gcc 12.2",
            "",
        ] {
            assert!(!is_recent(version), "{version}");
        }
    }

    #[test]
    fn building_from_source_says_so_to_cargo() {
        let toolchain = Toolchain {
            cargo: "/bin/true".into(),
            rustc: "/bin/true".into(),
            build_std: Some("/usr/bin/lld-link-19".into()),
        };
        let command = toolchain
            .cargo("build", Path::new("/w"), Path::new("/t"), true)
            .unwrap();
        let line: Vec<_> = command
            .get_args()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        assert!(
            line.iter()
                .any(|argument| argument.starts_with("-Zbuild-std=core,alloc"))
        );
        assert!(
            line.contains(
                &r#"target.x86_64-unknown-uefi.linker="/usr/bin/lld-link-19""#.to_owned()
            )
        );
        assert!(
            line.iter()
                .any(|argument| argument.contains("-Dwarnings") && argument.contains("/w=outpost"))
        );
        let plain = Toolchain {
            build_std: None,
            ..toolchain
        };
        let command = plain
            .cargo("build", Path::new("/w"), Path::new("/t"), false)
            .unwrap();
        assert!(
            !command
                .get_args()
                .any(|argument| argument.to_string_lossy().contains("build-std"))
        );
    }
}
