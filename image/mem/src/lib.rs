//! `memcpy`, `memmove` and `memset` for the firmware target. Those that come with Rust execute three `rep` instructions for however few
//! bytes, each of which takes tens of cycles to start; the engine copies a dozen bytes at a time. Linked by `use outpost_mem as _`.
#![cfg_attr(not(test), no_std)]
// A loop that copies must not become a call of `memcpy`.
#![no_builtins]

#[cfg(target_arch = "x86_64")]
mod copy;
#[cfg(target_os = "uefi")]
mod symbols;
