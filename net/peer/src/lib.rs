//! The engine as a Linux program: the box's tunnel, dictionary and flow protocol, with ordinary sockets in place of a bridge.
//! `docs/peer.md` says how it is used.
#![forbid(unsafe_code)]

mod flow;
mod hub;
mod ledger;
mod metrics;
mod program;
mod socks;
mod store;
mod transparent;
mod wire;

pub use program::{Program, StartError, keygen};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use socks::parsed as socks_parsed;
