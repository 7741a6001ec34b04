//! Where things are: the repository and its build directory.

use std::path::PathBuf;

/// The repository's root.
pub fn workspace() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}

/// Cargo's build directory.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// Where what we make goes: `target/outpost`. Made when it is not there.
///
/// # Errors
/// When it cannot be made.
pub fn output() -> std::io::Result<PathBuf> {
    let directory = target().join("outpost");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}
