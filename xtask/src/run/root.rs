//! Network namespaces and TAP devices need root.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;

/// What the program as root must know of its user's world: where programs and builds are.
const KEPT: [&str; 6] = [
    "PATH",
    "CARGO_TARGET_DIR",
    "CARGO_HOME",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
];

/// Is this root?
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Starts this program once more as root by way of sudo, with `more` after its arguments, in place of this process.
///
/// # Errors
/// When sudo is not there or would ask and there is no one to answer.
pub fn again_as_root(more: &[&str]) -> Result<std::convert::Infallible> {
    const WHY: &str = "network namespaces and TAP devices need root";
    let Some(sudo) = process::find_program("sudo") else {
        bail!("{WHY}: run this as root (sudo is not installed)");
    };
    let asks_nothing = Command::new(&sudo)
        .args(["-n", "true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !asks_nothing && !std::io::stdin().is_terminal() {
        bail!("{WHY}: run this as root, or in a terminal where sudo can ask for a password");
    }
    if !asks_nothing {
        eprintln!("{WHY}: sudo may ask for your password");
    }
    let mut command = Command::new(sudo);
    command.args(["--", "env"]);
    command.args(
        KEPT.iter()
            .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?))),
    );
    command.arg(std::env::current_exe().context("cannot find this program")?);
    command.args(std::env::args_os().skip(1)).args(more);
    Err(command.exec()).context("cannot start sudo")
}

/// Gives a file that root has written to the user who called sudo.
pub fn give_to_user(path: &Path) {
    let id = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse().ok())
    };
    if let (Some(user), Some(group)) = (id("SUDO_UID"), id("SUDO_GID")) {
        // The file is readable as it is: a failure here costs no one anything.
        let _ = std::os::unix::fs::chown(path, Some(user), Some(group));
    }
}
