//! What is on an Outpost disk: partition types and sizes, the self-describing slot image, and the list of pinned guests.
//!
//! The build host writes these with the same code that the box reads them with. It touches no disk: bytes come in, bytes go out.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod digest;
mod partition;
mod pin;
mod slot;
mod writer;

pub use digest::{Digest, DigestError, Hasher};
pub use partition::{DISK_GUID, Guid, Partition};
pub use pin::{Pin, PinBlock, PinBlockError, PinError, format_pins, parse_pins, write_pins};
pub use slot::{
    ENTRY_ALIGNMENT, Entry, HEADER_BYTES, Header, KERNEL, MAGIC, MAX_COMMAND_LINE_BYTES,
    MAX_ENTRIES, MAX_MANIFEST_BYTES, MAX_NAME_BYTES, Manifest, RAMDISK, Slot, SlotError, VERSION,
};
pub use writer::SlotWriter;
