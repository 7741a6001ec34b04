//! Windows into private formats for the fuzz targets in `net/fuzz`. Nothing else uses them.

use alloc::vec::Vec;
use core::ops::Range;

use super::codec::{self, Source, Tables, Workspace};
use super::digest::DigestKey;
use super::wire::{Contiguity, Header, Inbox, Kind, Reader};

/// The digest of `bytes` under a session's key.
pub fn digest(key: [u8; 32], bytes: &[u8]) -> [u8; 8] {
    DigestKey::new(key).digest(bytes)
}

/// The control messages at the front of `bytes`, written again; and whether it goes on without being malformed.
pub fn messages(bytes: &[u8]) -> (Vec<u8>, bool) {
    let (mut inbox, mut out) = (Inbox::default(), Vec::new());
    inbox.push(bytes);
    loop {
        match inbox.next() {
            Ok(Some(message)) => message.emit(&mut out),
            Ok(None) => return (out, true),
            Err(_) => return (out, false),
        }
    }
}

/// A block's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderView {
    /// Where it stores its bytes, or where a copy's are.
    pub position: u64,
    /// How many bytes it stands for.
    pub raw: usize,
    /// Where its body lies in the bytes it was read from.
    pub body: Range<usize>,
    /// The header, written again.
    pub again: Vec<u8>,
}

/// Reads the header at the front of `bytes`, in a flow whose last blocks ended at `stored` and `copied`.
pub fn header(bytes: &[u8], stored: u64, copied: u64) -> Option<HeaderView> {
    let last = Contiguity { stored, copied };
    let mut reader = Reader(bytes);
    let header = Header::parse(&mut reader, &last).ok()??;
    let start = bytes.len() - reader.0.len();
    let mut again = Vec::new();
    header.emit(&last, &mut again);
    let (Kind::Raw { position } | Kind::Coded { position, .. } | Kind::Copy { source: position }) =
        header.kind;
    Some(HeaderView {
        position,
        raw: header.raw,
        body: start..start + header.body(),
        again,
    })
}

/// Decodes a coded body of a flow's first block, which is stored behind `dictionary`, which begins at position 0.
pub fn decode_body(dictionary: &[u8], body: &[u8], raw: usize) -> Option<Vec<u8>> {
    struct Stored<'a>(&'a [u8]);
    impl Source for Stored<'_> {
        fn bytes(&mut self, position: u64, len: usize) -> Option<&[u8]> {
            let start = usize::try_from(position).ok()?;
            self.0.get(start..start.checked_add(len)?)
        }
    }
    let mut out = Vec::new();
    codec::decode(
        &mut Workspace::default(),
        body,
        dictionary.len() as u64,
        raw,
        &mut Tables::new(),
        &mut Stored(dictionary),
        &mut out,
    )
    .ok()?;
    Some(out)
}
