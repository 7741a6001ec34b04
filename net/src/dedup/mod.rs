//! Dedup: bytes become copies of what the peer already has, and literals. Not transport, not storage media.
//!
//! One [`Sender`] and one [`Receiver`] serve each direction between two peers; each flow has an [`Encoder`] at one end
//! and a [`Decoder`] at the other. `docs/dedup.md` describes the format and its rules.

mod anchor;
mod codec;
mod decoder;
mod digest;
mod encoder;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod ranges;
mod receiver;
mod search;
mod sender;
mod statistics;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

pub use codec::Effort;
pub use decoder::{DecodeError, Decoder};
pub use encoder::{Encoder, Flush};
pub use receiver::{Receiver, ReceiverConfig, Urgency};
pub use sender::{Sender, SenderConfig};
pub use statistics::{FlowStatistics, ReceiverStatistics, SenderStatistics};
pub use store::{Log, RingStore, Store, StoreMemory};
pub use wire::{FlowId, LEAST_BLOCK, MAX_BLOCK, MAX_WIRE_BLOCK};

/// A control message that no honest peer would send: the tunnel should be taken down and up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// The bytes are no message, or one with an impossible length.
    Malformed,
    /// More blocks were confirmed, or others asked for, than were sent.
    NeverSent,
    /// A message that goes the other way, or a second greeting.
    OutOfPlace,
}

impl core::fmt::Display for ControlError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            ControlError::Malformed => "dedup control message is malformed",
            ControlError::NeverSent => {
                "peer confirms or asks for a dedup block that was never sent"
            }
            ControlError::OutOfPlace => "dedup control message in the wrong place",
        })
    }
}

impl core::error::Error for ControlError {}
