//! The Outpost appliance: one UEFI binary. This file is the order of a boot (DESIGN §2); each step is a module of its own.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
extern crate alloc;

/// `memcpy` and its kind.
#[cfg(target_os = "uefi")]
use outpost_mem as _;

#[cfg(target_os = "uefi")]
mod appliance;
#[cfg(target_os = "uefi")]
mod device;
#[cfg(target_os = "uefi")]
mod firmware;
#[cfg(target_os = "uefi")]
mod machine;
#[cfg(target_os = "uefi")]
mod output;

/// On any other target there is nothing to run: the library beside it is what host tests use.
#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!("outpost is a UEFI binary: build the disk image with `cargo xtask build-image`");
    std::process::exit(2);
}
