//! What goes over the line: block headers, and the messages of the two control channels. Every claim is checked against
//! a bound before anything is allocated for it.

use alloc::vec::Vec;
use core::ops::Range;

use super::digest::DIGEST_BYTES;

/// The most raw bytes that a block may stand for.
pub const MAX_BLOCK: usize = 256 * 1024;
/// Nobody can ask for blocks that stand for less: a repeat must fit in that is worth a block of its own.
pub const LEAST_BLOCK: usize = 32 * 1024;
/// The most bytes of a header: kind, flow, lengths, position.
pub const MAX_HEADER: usize = 1 + 5 + 3 + 10 + 3;
/// The most bytes of a block on the line.
pub const MAX_WIRE_BLOCK: usize = MAX_HEADER + MAX_BLOCK + DIGEST_BYTES;
/// The most bytes of a control message after its length.
const MAX_MESSAGE: usize = MAX_BLOCK + 64;
/// The most ranges that a greeting or a request lists. Each takes at most 14 bytes in a window of 2^49, so that they fit.
pub const MAX_RANGES: usize = 16 * 1024;

/// The number of a flow's encoder and decoder, given by the sending side.
pub type FlowId = u32;

/// The bytes claim something that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads forward through bytes from the line. `None` means that they end too early.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// A number in groups of seven bits, lowest first.
    pub fn number(&mut self) -> Result<Option<u64>, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(byte) = self.byte() else {
                return Ok(None);
            };
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                // One way to write a number: a padded one could make a header longer than any has to be.
                if byte == 0 && shift > 0 {
                    return Err(Malformed);
                }
                return Ok(Some(value));
            }
        }
        Err(Malformed)
    }

    /// A number in a message that must be whole.
    fn whole_number(&mut self) -> Result<u64, Malformed> {
        self.number()?.ok_or(Malformed)
    }

    fn small(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.whole_number()?).map_err(|_| Malformed)
    }
}

/// Appends `value` in groups of seven bits, lowest first.
pub fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// What a block's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The bytes themselves, stored at `position`.
    Raw {
        /// Where the receiver stores the bytes.
        position: u64,
    },
    /// A body of the codec, `body` bytes long; what it decodes to is stored at `position`.
    Coded {
        /// Where the receiver stores the bytes.
        position: u64,
        /// Length of the body on the line.
        body: usize,
    },
    /// A run of stored bytes; nothing is stored.
    Copy {
        /// Where the bytes are stored.
        source: u64,
    },
}

/// A block's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Given by the first block of a flow.
    pub flow: Option<FlowId>,
    /// What follows.
    pub kind: Kind,
    /// How many bytes the block stands for, 1 to [`MAX_BLOCK`].
    pub raw: usize,
}

const KIND_MASK: u8 = 0b0000_0011;
const FLAG_FLOW: u8 = 0b0000_0100;
const FLAG_CONTIGUOUS: u8 = 0b0000_1000;

/// What a position is written against: where the flow's last block of that sort ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contiguity {
    /// The end of the flow's last stored block.
    pub stored: u64,
    /// The end of the bytes that the flow's last block stands for.
    pub copied: u64,
}

impl Contiguity {
    /// Takes a block into account.
    pub fn after(&mut self, header: &Header) {
        let raw = header.raw as u64;
        match header.kind {
            Kind::Raw { position } | Kind::Coded { position, .. } => {
                self.stored = position.saturating_add(raw);
                self.copied = self.stored;
            }
            Kind::Copy { source } => self.copied = source.saturating_add(raw),
        }
    }
}

impl Header {
    /// Appends the header.
    pub fn emit(&self, last: &Contiguity, out: &mut Vec<u8>) {
        let (kind, position, expected, body) = match self.kind {
            Kind::Raw { position } => (0, position, last.stored, None),
            Kind::Coded { position, body } => (1, position, last.stored, Some(body)),
            Kind::Copy { source } => (2, source, last.copied, None),
        };
        let contiguous = position == expected;
        let flags = if self.flow.is_some() { FLAG_FLOW } else { 0 }
            | if contiguous { FLAG_CONTIGUOUS } else { 0 };
        out.push(kind | flags);
        if let Some(flow) = self.flow {
            put_number(out, u64::from(flow));
        }
        put_number(out, self.raw as u64);
        if !contiguous {
            put_number(out, position);
        }
        if let Some(body) = body {
            put_number(out, body as u64);
        }
    }

    /// Reads a header; `Ok(None)` when there is not enough yet.
    pub fn parse(reader: &mut Reader<'_>, last: &Contiguity) -> Result<Option<Header>, Malformed> {
        let Some(first) = reader.byte() else {
            return Ok(None);
        };
        if first & !(KIND_MASK | FLAG_FLOW | FLAG_CONTIGUOUS) != 0 {
            return Err(Malformed);
        }
        let flow = if first & FLAG_FLOW != 0 {
            let Some(flow) = reader.number()? else {
                return Ok(None);
            };
            Some(FlowId::try_from(flow).map_err(|_| Malformed)?)
        } else {
            None
        };
        let Some(raw) = reader.number()? else {
            return Ok(None);
        };
        let raw = usize::try_from(raw).map_err(|_| Malformed)?;
        if raw == 0 || raw > MAX_BLOCK {
            return Err(Malformed);
        }
        let expected = if first & KIND_MASK == 2 {
            last.copied
        } else {
            last.stored
        };
        let position = if first & FLAG_CONTIGUOUS != 0 {
            expected
        } else {
            let Some(position) = reader.number()? else {
                return Ok(None);
            };
            position
        };
        position.checked_add(raw as u64).ok_or(Malformed)?;
        let kind = match first & KIND_MASK {
            0 => Kind::Raw { position },
            1 => {
                let Some(body) = reader.number()? else {
                    return Ok(None);
                };
                let body = usize::try_from(body).map_err(|_| Malformed)?;
                // What does not shrink is sent raw.
                if body >= raw {
                    return Err(Malformed);
                }
                Kind::Coded { position, body }
            }
            2 => Kind::Copy { source: position },
            _ => return Err(Malformed),
        };
        Ok(Some(Header { flow, kind, raw }))
    }

    /// Bytes between header and digest.
    pub fn body(&self) -> usize {
        match self.kind {
            Kind::Raw { .. } => self.raw,
            Kind::Coded { body, .. } => body,
            Kind::Copy { .. } => 0,
        }
    }
}

/// A message of a control channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Sender to receiver, first: whose log it is, how far it goes, and the key of this session's digests.
    SenderHello {
        /// The log's name, drawn when it was made.
        log: [u8; 16],
        /// The end of the log now.
        head: u64,
        /// The session's digest key.
        key: [u8; 32],
    },
    /// Receiver to sender, in answer: what it holds of that log.
    ReceiverHello {
        /// The log that the ranges belong to.
        log: [u8; 16],
        /// The size of the receiver's window in bytes.
        capacity: u64,
        /// What is stored, oldest first.
        ranges: Vec<Range<u64>>,
    },
    /// Receiver to sender: so many more blocks of a flow are verified (and stored, if they were to be).
    Confirm {
        /// The flow.
        flow: FlowId,
        /// How many blocks more.
        blocks: u32,
    },
    /// Receiver to sender: a block could not be resolved; what was looked for and is not there.
    Refetch {
        /// The flow.
        flow: FlowId,
        /// The block's number in its flow, from 0.
        block: u32,
        /// Ranges that the receiver does not have, or no longer trusts.
        lost: Vec<Range<u64>>,
    },
    /// Sender to receiver: a block's raw bytes; none when they are gone.
    Answer {
        /// The flow.
        flow: FlowId,
        /// The block's number in its flow, from 0.
        block: u32,
        /// The bytes that it stands for.
        bytes: Vec<u8>,
    },
    /// The same, compressed.
    CodedAnswer {
        /// The flow.
        flow: FlowId,
        /// The block's number in its flow, from 0.
        block: u32,
        /// How many bytes it stands for: at most [`MAX_BLOCK`], and more than `body` has.
        raw: usize,
        /// A coded body that refers to nothing outside it and begins with the standard tables.
        body: Vec<u8>,
    },
    /// Receiver to sender: blocks that stand for more are more than it likes to hold. Without it, [`MAX_BLOCK`]; those under way are as they are.
    BlockLimit {
        /// Raw bytes of a block.
        bytes: u32,
    },
}

fn put_ranges(out: &mut Vec<u8>, ranges: &[Range<u64>]) {
    put_number(out, ranges.len() as u64);
    let mut last = 0u64;
    for range in ranges {
        put_number(out, range.start.wrapping_sub(last));
        put_number(out, range.end.wrapping_sub(range.start));
        last = range.end;
    }
}

fn read_ranges(reader: &mut Reader<'_>) -> Result<Vec<Range<u64>>, Malformed> {
    let count = usize::try_from(reader.whole_number()?).map_err(|_| Malformed)?;
    if count > MAX_RANGES {
        return Err(Malformed);
    }
    let (mut ranges, mut last) = (Vec::new(), 0u64);
    for _ in 0..count {
        let start = last.checked_add(reader.whole_number()?).ok_or(Malformed)?;
        let end = start.checked_add(reader.whole_number()?).ok_or(Malformed)?;
        ranges.push(start..end);
        last = end;
    }
    Ok(ranges)
}

impl Message {
    /// Appends the message with its length. Ranges are sorted and disjoint, at most [`MAX_RANGES`].
    pub fn emit(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let message = &mut *out;
        match self {
            Message::SenderHello { log, head, key } => {
                message.push(1);
                message.extend_from_slice(log);
                put_number(message, *head);
                message.extend_from_slice(key);
            }
            Message::ReceiverHello {
                log,
                capacity,
                ranges,
            } => {
                message.push(2);
                message.extend_from_slice(log);
                put_number(message, *capacity);
                put_ranges(message, ranges);
            }
            Message::Confirm { flow, blocks } => {
                message.push(3);
                put_number(message, u64::from(*flow));
                put_number(message, u64::from(*blocks));
            }
            Message::Refetch { flow, block, lost } => {
                message.push(4);
                put_number(message, u64::from(*flow));
                put_number(message, u64::from(*block));
                put_ranges(message, lost);
            }
            Message::Answer { flow, block, bytes } => {
                message.push(5);
                put_number(message, u64::from(*flow));
                put_number(message, u64::from(*block));
                message.extend_from_slice(bytes);
            }
            Message::CodedAnswer {
                flow,
                block,
                raw,
                body,
            } => {
                message.push(6);
                put_number(message, u64::from(*flow));
                put_number(message, u64::from(*block));
                put_number(message, *raw as u64);
                message.extend_from_slice(body);
            }
            Message::BlockLimit { bytes } => {
                message.push(7);
                put_number(message, u64::from(*bytes));
            }
        }
        // The length is known only now, and goes before.
        let end = out.len();
        put_number(out, (end - start) as u64);
        let length = out.len() - end;
        if let Some(message) = out.get_mut(start..) {
            message.rotate_right(length);
        }
    }

    fn parse(body: &[u8]) -> Result<Message, Malformed> {
        let mut reader = Reader(body);
        let message = match reader.byte().ok_or(Malformed)? {
            1 => Message::SenderHello {
                log: reader.array().ok_or(Malformed)?,
                head: reader.whole_number()?,
                key: reader.array().ok_or(Malformed)?,
            },
            2 => Message::ReceiverHello {
                log: reader.array().ok_or(Malformed)?,
                capacity: reader.whole_number()?,
                ranges: read_ranges(&mut reader)?,
            },
            3 => Message::Confirm {
                flow: reader.small()?,
                blocks: reader.small()?,
            },
            4 => Message::Refetch {
                flow: reader.small()?,
                block: reader.small()?,
                lost: read_ranges(&mut reader)?,
            },
            5 => {
                let (flow, block) = (reader.small()?, reader.small()?);
                let bytes = core::mem::take(&mut reader.0).to_vec();
                if bytes.len() > MAX_BLOCK {
                    return Err(Malformed);
                }
                Message::Answer { flow, block, bytes }
            }
            6 => {
                let (flow, block, raw) = (reader.small()?, reader.small()?, reader.small()?);
                let raw = usize::try_from(raw).map_err(|_| Malformed)?;
                let body = core::mem::take(&mut reader.0).to_vec();
                if raw > MAX_BLOCK || body.len() >= raw {
                    return Err(Malformed);
                }
                Message::CodedAnswer {
                    flow,
                    block,
                    raw,
                    body,
                }
            }
            7 => Message::BlockLimit {
                bytes: reader.small()?,
            },
            _ => return Err(Malformed),
        };
        if reader.0.is_empty() {
            Ok(message)
        } else {
            Err(Malformed)
        }
    }
}

/// Puts the byte stream of a control channel together into messages.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    used: usize,
}

impl Inbox {
    /// Takes in what came; [`Inbox::next`] then yields the messages that are whole.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.used.min(self.bytes.len()));
        self.used = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub fn next(&mut self) -> Result<Option<Message>, Malformed> {
        let mut reader = Reader(self.bytes.get(self.used..).unwrap_or(&[]));
        let Some(len) = reader.number()? else {
            return Ok(None);
        };
        let len = usize::try_from(len).map_err(|_| Malformed)?;
        if len == 0 || len > MAX_MESSAGE {
            return Err(Malformed);
        }
        let Some(body) = reader.take(len) else {
            return Ok(None);
        };
        let message = Message::parse(body)?;
        self.used = self.bytes.len() - reader.0.len();
        Ok(Some(message))
    }

    /// Drops what is not whole yet.
    pub fn clear(&mut self) {
        *self = Inbox::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_way_to_be_written() {
        assert_eq!(Reader(&[0]).number(), Ok(Some(0)));
        assert_eq!(Reader(&[0x81, 0x01]).number(), Ok(Some(129)));
        assert_eq!(Reader(&[0x81]).number(), Ok(None));
        assert_eq!(Reader(&[0x81, 0x00]).number(), Err(Malformed));
        assert_eq!(Reader(&[0x80, 0x80, 0x00]).number(), Err(Malformed));
    }
}
