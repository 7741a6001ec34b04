//! Two ends with no line between them: what one encodes, the other decodes at once.

use alloc::vec::Vec;
use core::fmt;

use outpost_net::dedup::{
    ControlError, DecodeError, Decoder, Encoder, Flush, Receiver, ReceiverConfig, Sender,
    SenderConfig, Urgency,
};

use crate::{Case, Figures};

/// Bytes that a host's connection has at a time.
const PIECE: usize = 256 * 1024;

/// The engine broke its promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A control message of one end was refused by the other.
    Control(ControlError),
    /// A block of one end was refused by the other.
    Block(DecodeError),
    /// Other bytes came out than went in.
    WrongBytes,
    /// Nothing goes in any more, and nothing comes out.
    Stuck,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Control(error) => write!(f, "a control message was refused: {error}"),
            Error::Block(error) => write!(f, "a block was refused: {error}"),
            Error::WrongBytes => f.write_str("other bytes came out than went in"),
            Error::Stuck => f.write_str("nothing goes in any more and nothing comes out"),
        }
    }
}

impl core::error::Error for Error {}

/// Both ends.
pub struct Line {
    sender: Sender,
    receiver: Receiver,
}

impl Line {
    /// Two ends with `log` bytes of memory each that have greeted each other.
    pub fn new(log: usize) -> Result<Line, Error> {
        let mut line = Line {
            sender: Sender::new(SenderConfig::with_memory(log), [7; 32]),
            receiver: Receiver::new(ReceiverConfig { memory: log }),
        };
        let mut control = Vec::new();
        line.sender.take_control(&mut control, 1 << 20);
        line.receiver.on_control(&control).map_err(Error::Control)?;
        line.confirm(Urgency::Now)?;
        Ok(line)
    }

    fn confirm(&mut self, urgency: Urgency) -> Result<(), Error> {
        let mut control = Vec::new();
        self.receiver.take_control(&mut control, urgency);
        self.sender.on_control(&control).map_err(Error::Control)
    }

    /// Sends `bytes` as one flow that pauses at the end.
    pub fn transfer(
        &mut self,
        case: Case,
        bytes: &[u8],
        count: &mut dyn FnMut() -> u64,
    ) -> Result<Figures, Error> {
        let before = (self.sender.statistics(), self.receiver.statistics());
        let mut encoder = Encoder::new(&mut self.sender);
        let mut decoder = Decoder::new(&self.receiver);
        let mut wire = Vec::with_capacity(2 * PIECE);
        let (mut encoding, mut decoding) = (0, 0);
        let (mut input, mut expected) = (bytes, bytes);
        while !expected.is_empty() {
            let (piece, flush) = match input.get(..PIECE) {
                Some(piece) if piece.len() < input.len() => (piece, Flush::No),
                _ => (input, Flush::Yes),
            };
            let start = count();
            let taken = encode_piece(&mut encoder, &mut self.sender, piece, flush, &mut wire);
            encoding += count() - start;
            input = input.get(taken..).unwrap_or_default();

            let (mut rest, mut came) = (&wire[..], 0);
            loop {
                let start = count();
                let taken = decode_piece(&mut decoder, &mut self.receiver, rest)?;
                decoding += count() - start;
                rest = rest.get(taken..).unwrap_or_default();
                let ready = decoder.pop();
                expected = expected.strip_prefix(ready).ok_or(Error::WrongBytes)?;
                let ready = ready.len();
                decoder.consume(ready);
                came += ready;
                if ready == 0 && rest.is_empty() {
                    break;
                }
                if ready == 0 && taken == 0 {
                    return Err(Error::Stuck);
                }
            }
            if taken == 0 && came == 0 && wire.is_empty() {
                return Err(Error::Stuck);
            }
            wire.clear();
            self.confirm(Urgency::Lazy)?;
        }
        self.confirm(Urgency::Now)?;
        encoder.close(&mut self.sender);
        decoder.close(&mut self.receiver);
        let after = (self.sender.statistics(), self.receiver.statistics());
        Ok(Figures {
            case,
            bytes: bytes.len() as u64,
            line: after.0.wire_bytes - before.0.wire_bytes,
            back: after.1.control_bytes - before.1.control_bytes,
            encoding,
            decoding,
        })
    }
}

/// What is counted as encoding. A function of its own by name, so that callgrind can count it too.
#[inline(never)]
pub fn encode_piece(
    encoder: &mut Encoder,
    sender: &mut Sender,
    piece: &[u8],
    flush: Flush,
    wire: &mut Vec<u8>,
) -> usize {
    encoder.encode(sender, piece, flush, wire)
}

/// What is counted as decoding, as [`encode_piece`].
///
/// # Errors
/// [`Error::Block`].
#[inline(never)]
pub fn decode_piece(
    decoder: &mut Decoder,
    receiver: &mut Receiver,
    blocks: &[u8],
) -> Result<usize, Error> {
    decoder.push(receiver, blocks).map_err(Error::Block)
}
