//! Streams that the peer opened and that have not yet said what they are for.

use super::link::Link;
use super::message::{self, CONTROL, OPEN, OPEN_LEN};
use crate::tunnel::StreamId;
use crate::wire::FlowKey;

/// A stream that the peer opened and that has not yet said what it is.
#[derive(Clone, Copy, Default)]
pub struct Newcomer {
    message: [u8; OPEN_LEN],
    len: usize,
}

/// What a stream is for.
pub enum Greeting {
    /// The dictionaries' control messages.
    Control,
    /// A connection to be opened.
    Open(FlowKey),
    /// No message of this protocol.
    Nonsense,
}

impl Newcomer {
    /// Reads what the stream is for; `None`: it has not said it yet.
    pub fn greet(&mut self, link: &mut Link, stream: StreamId) -> Option<Greeting> {
        loop {
            // One byte, then as many as that one calls for.
            let want = match self.message.first() {
                Some(&OPEN) if self.len > 0 => OPEN_LEN,
                _ => 1,
            };
            if self.len >= want {
                break;
            }
            let read = link
                .tunnel
                .read(stream, self.message.get_mut(self.len..want)?);
            self.len += read.len;
            if read.len == 0 {
                if link.has_finished(read) {
                    break;
                }
                return None;
            }
        }
        Some(match self.message.first() {
            Some(&CONTROL) if self.len == 1 => Greeting::Control,
            Some(&OPEN) if self.len == OPEN_LEN => {
                message::decode_open(&self.message).map_or(Greeting::Nonsense, Greeting::Open)
            }
            _ => Greeting::Nonsense,
        })
    }
}
