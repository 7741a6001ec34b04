//! Outpost's WAN stack: switch, TCP interception, dedup, tunnel, policy, statistics.
//!
//! Sans-IO: frames, time and randomness are handed in, frames are handed out. It touches no hardware, reads no clock and
//! knows nothing of the hypervisor.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod dedup;
pub mod engine;
pub mod flow;
mod hash;
mod management;
mod outbox;
pub mod report;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod spare;
pub mod store;
mod switch;
mod tcp;
pub mod time;
pub mod tunnel;
mod wire;

pub use engine::{Engine, EngineParts, Statistics};
/// Reads the head of a request for the management pages: for the fuzz targets in `net/fuzz`.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use management::fuzzing as management_fuzzing;
pub use switch::Port;
pub use wire::FlowKey;
