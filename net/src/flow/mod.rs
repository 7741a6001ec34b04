//! Flows without sockets: what the box's engine and `outpost-peer` say to each other about connections, and the coders of
//! each. TCP is elsewhere: smoltcp in the engine, the operating system's in `outpost-peer`.

mod effort;
pub(crate) mod link;
pub mod message;
pub(crate) mod newcomer;
mod pump;
mod session;

pub use link::{StoreParts, StoreTicket, store_owner};
pub use pump::{Host, Incoming, Pump, Turn};
pub use session::{Notice, Session, SessionConfig};
