//! Windows into private formats for the fuzz targets in `net/fuzz`. Nothing else uses them.

use alloc::vec::Vec;

use super::frame::{self, Frame, StreamHeader};
use super::ranges::RangeSet;
use super::wire::Reader;
use super::{Instant, Tunnel, noise, wire};

/// What a packet's payload reads as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// Each frame, for comparing.
    pub shown: Vec<alloc::string::String>,
    /// The frames, written again.
    pub again: Vec<u8>,
}

/// Reads a packet's payload; `None` when it is malformed.
pub fn frames(plain: &[u8]) -> Option<Frames> {
    let mut reader = Reader::new(plain);
    let (mut shown, mut again) = (Vec::new(), Vec::new());
    while !reader.is_empty() {
        let frame = frame::parse(&mut reader)?;
        match &frame {
            Frame::Ack(ack) => {
                let mut ranges = RangeSet::default();
                let listed: Vec<_> = ack.ranges().collect();
                for &(low, high) in &listed {
                    ranges.insert(low, high.saturating_add(1));
                }
                // Delays that are longer than time itself are all alike.
                let delay = ack.delay_micros.min(1 << 62);
                let whole = frame::put_ack(&ranges, delay, plain.len() + 64, &mut again);
                shown.push(alloc::format!("{delay} {listed:?} {whole}"));
                continue;
            }
            Frame::Stream {
                stream,
                offset,
                data,
                finished,
            } => {
                let header = StreamHeader {
                    length: data.len(),
                    to_end: reader.is_empty(),
                };
                frame::put_stream_header(*stream, *offset, &header, *finished, &mut again);
                again.extend_from_slice(data);
            }
            other => frame::put(other, &mut again),
        }
        shown.push(alloc::format!("{frame:?}"));
    }
    Some(Frames { shown, again })
}

/// Takes in a payload as if the peer had sealed it in the packet that is expected next. False when there is no connection.
pub fn inject(tunnel: &mut Tunnel, now: Instant, plain: &[u8]) -> bool {
    let Some(connection) = tunnel.connection.as_deref_mut() else {
        return false;
    };
    let (from, number) = (connection.peer(), connection.expected());
    if let Err(reason) = connection.receive(now, from, number, plain, &mut tunnel.statistics) {
        tunnel.go_down(now, reason);
    }
    true
}

/// The name of the keys in use, by which the peer addresses them.
pub fn index(tunnel: &Tunnel) -> Option<u32> {
    Some(tunnel.connection.as_deref()?.session().local)
}

/// Gives a first handshake message to the owner of `public_key` the checksum that lets it past the cheap check. Anything
/// else is left as it is.
pub fn pay(datagram: &mut [u8], public_key: &[u8; 32]) {
    if let Some((signed, mac)) = datagram.split_last_chunk_mut::<16>()
        && signed.len() + mac.len() == wire::FIRST
    {
        *mac = noise::mac(&noise::mac_key(public_key), signed);
    }
}
