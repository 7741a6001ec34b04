//! The parts of the appliance that touch no hardware, so that `cargo test` runs them on any machine: table readers, the
//! partition planner, the memory plan, the console. The rest is in the binary beside this library.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod acpi;
pub mod cable;
pub mod calendar;
pub mod console;
pub mod dictionary;
pub mod disk;
pub mod entropy;
pub mod fifo;
pub mod guest_disk;
pub mod heap;
pub mod json;
pub mod lines;
pub mod memory;
pub mod patience;
pub mod pe;
pub mod power_switch;
pub mod restart;
pub mod ring;
pub mod roster;
pub mod virtio_blk;
pub mod virtqueue;
