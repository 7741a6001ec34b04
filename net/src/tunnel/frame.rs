//! Frames: what is inside a data packet after decryption. Shapes only; what they do is the connection's business.

use alloc::vec::Vec;

use super::ranges::RangeSet;
use super::wire::{Reader, put_varint, varint_length};

const PADDING: u8 = 0x00;
const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const RESET: u8 = 0x03;
const MAX_DATA: u8 = 0x04;
const MAX_STREAM_DATA: u8 = 0x05;
const MAX_STREAMS: u8 = 0x06;
const SETTLED: u8 = 0x07;
const CLOSE: u8 = 0x08;
const STREAM: u8 = 0x10;
const STREAM_FIN: u8 = 0x01;
const STREAM_LENGTH: u8 = 0x02;
const STREAM_OFFSET: u8 = 0x04;

/// Unit of an acknowledgement's delay, in µs: a usual delay fits one byte.
const DELAY_UNIT: u64 = 256;
/// Ranges beyond the first that an acknowledgement may name.
pub(super) const MAX_ACK_RANGES: usize = 48;

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseReason {
    Finished,
    Violation,
}

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// Rest of the packet: fills a probe of the path MTU.
    Padding,
    Ping,
    Ack(Ack<'a>),
    /// The sender aborts the stream in both directions; it had sent `size` bytes.
    Reset {
        stream: u64,
        code: u32,
        size: u64,
    },
    MaxData(u64),
    MaxStreamData {
        stream: u64,
        limit: u64,
    },
    MaxStreams(u64),
    /// No packet below this number is in flight: it need not be acknowledged any more.
    Settled(u64),
    Close(CloseReason),
    Stream {
        stream: u64,
        offset: u64,
        data: &'a [u8],
        finished: bool,
    },
}

impl Frame<'_> {
    /// Whether the packet it is in wants an acknowledgement (RFC 9002, section 2).
    pub(super) fn is_eliciting(&self) -> bool {
        !matches!(
            self,
            Frame::Padding | Frame::Ack(_) | Frame::Settled(_) | Frame::Close(_)
        )
    }
}

/// An acknowledgement; the ranges have been checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ack<'a> {
    pub(super) largest: u64,
    pub(super) delay_micros: u64,
    first: u64,
    more: usize,
    encoded: &'a [u8],
}

impl Ack<'_> {
    /// How many ranges there are.
    pub(super) fn count(&self) -> usize {
        self.more + 1
    }

    /// Inclusive ranges, highest first.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut reader = Reader::new(self.encoded);
        let mut low = self.largest - self.first;
        core::iter::once((low, self.largest)).chain((0..self.more).map_while(move |_| {
            let high = low.checked_sub(reader.varint()?.checked_add(2)?)?;
            low = high.checked_sub(reader.varint()?)?;
            Some((low, high))
        }))
    }
}

/// Takes the next frame; `None` when it is not one.
pub(super) fn parse<'a>(reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    Some(match reader.u8()? {
        PADDING => {
            reader.rest();
            Frame::Padding
        }
        PING => Frame::Ping,
        ACK => Frame::Ack(parse_ack(reader)?),
        RESET => Frame::Reset {
            stream: reader.varint()?,
            code: u32::try_from(reader.varint()?).ok()?,
            size: reader.varint()?,
        },
        MAX_DATA => Frame::MaxData(reader.varint()?),
        MAX_STREAM_DATA => Frame::MaxStreamData {
            stream: reader.varint()?,
            limit: reader.varint()?,
        },
        MAX_STREAMS => Frame::MaxStreams(reader.varint()?),
        SETTLED => Frame::Settled(reader.varint()?),
        CLOSE => Frame::Close(match reader.u8()? {
            0 => CloseReason::Finished,
            1 => CloseReason::Violation,
            _ => return None,
        }),
        kind if kind & !0x07 == STREAM => {
            let stream = reader.varint()?;
            let offset = if kind & STREAM_OFFSET != 0 {
                reader.varint()?
            } else {
                0
            };
            let data = if kind & STREAM_LENGTH != 0 {
                let length = usize::try_from(reader.varint()?).ok()?;
                reader.bytes(length)?
            } else {
                reader.rest()
            };
            // The end, too, must be a varint.
            if offset.checked_add(data.len() as u64)? >= 1 << 62 {
                return None;
            }
            Frame::Stream {
                stream,
                offset,
                data,
                finished: kind & STREAM_FIN != 0,
            }
        }
        _ => return None,
    })
}

fn parse_ack<'a>(reader: &mut Reader<'a>) -> Option<Ack<'a>> {
    let largest = reader.varint()?;
    let delay_micros = reader.varint()?.saturating_mul(DELAY_UNIT);
    let more = usize::try_from(reader.varint()?)
        .ok()
        .filter(|&n| n <= MAX_ACK_RANGES)?;
    let first = reader.varint()?;
    let mut low = largest.checked_sub(first)?;
    let encoded = reader.remaining();
    for _ in 0..more {
        let high = low.checked_sub(reader.varint()?.checked_add(2)?)?;
        low = high.checked_sub(reader.varint()?)?;
    }
    let used = encoded.len() - reader.remaining().len();
    Some(Ack {
        largest,
        delay_micros,
        first,
        more,
        encoded: encoded.get(..used)?,
    })
}

/// Appends an acknowledgement of the highest of `ranges` that fit into `space` bytes. False if none fits.
pub(super) fn put_ack(
    ranges: &RangeSet,
    delay_micros: u64,
    space: usize,
    out: &mut Vec<u8>,
) -> bool {
    let mut descending = ranges.iter().rev();
    let Some((start, end)) = descending.next() else {
        return false;
    };
    let (largest, first) = (end - 1, end - 1 - start);
    let delay = delay_micros / DELAY_UNIT;
    // The count takes one byte up to MAX_ACK_RANGES.
    let mut size = 1 + varint_length(largest) + varint_length(delay) + 1 + varint_length(first);
    if size > space {
        return false;
    }
    let mut count = 0;
    let mut low = start;
    for (start, end) in descending.clone().take(MAX_ACK_RANGES) {
        size += varint_length(low - end - 1) + varint_length(end - 1 - start);
        if size > space {
            break;
        }
        count += 1;
        low = start;
    }
    out.push(ACK);
    put_varint(largest, out);
    put_varint(delay, out);
    put_varint(count as u64, out);
    put_varint(first, out);
    let mut low = start;
    for (start, end) in descending.take(count) {
        put_varint(low - end - 1, out);
        put_varint(end - 1 - start, out);
        low = start;
    }
    true
}

/// Appends a frame of fixed shape (not ACK, not STREAM).
pub(super) fn put(frame: &Frame<'_>, out: &mut Vec<u8>) {
    match *frame {
        Frame::Padding => out.push(PADDING),
        Frame::Ping => out.push(PING),
        Frame::Reset { stream, code, size } => {
            out.push(RESET);
            put_varint(stream, out);
            put_varint(u64::from(code), out);
            put_varint(size, out);
        }
        Frame::MaxData(limit) => {
            out.push(MAX_DATA);
            put_varint(limit, out);
        }
        Frame::MaxStreamData { stream, limit } => {
            out.push(MAX_STREAM_DATA);
            put_varint(stream, out);
            put_varint(limit, out);
        }
        Frame::MaxStreams(limit) => {
            out.push(MAX_STREAMS);
            put_varint(limit, out);
        }
        Frame::Settled(number) => {
            out.push(SETTLED);
            put_varint(number, out);
        }
        Frame::Close(reason) => {
            out.push(CLOSE);
            out.push(match reason {
                CloseReason::Finished => 0,
                CloseReason::Violation => 1,
            });
        }
        Frame::Ack(_) | Frame::Stream { .. } => debug_assert!(false, "has a function of its own"),
    }
}

/// Largest size of a frame that [`put`] writes: RESET.
pub(super) const MAX_CONTROL: usize = 1 + 9 + 5 + 9;

/// How a STREAM frame fits into what is left of a packet.
pub(super) struct StreamHeader {
    /// Data bytes that fit.
    pub(super) length: usize,
    /// Whether the frame leaves room for nothing else and therefore says no length.
    pub(super) to_end: bool,
}

/// Space left below which no further frame is tried: a STREAM frame of this size would be mostly header.
pub(super) const MIN_STREAM_SPACE: usize = 24;

/// Works out how many of `available` bytes at `offset` go into a STREAM frame of at most `space` bytes.
pub(super) fn fit_stream(
    stream: u64,
    offset: u64,
    available: usize,
    space: usize,
) -> Option<StreamHeader> {
    let fixed = 1 + varint_length(stream) + if offset > 0 { varint_length(offset) } else { 0 };
    let without = space.checked_sub(fixed)?;
    let length = available.min(without);
    let with = fixed + varint_length(length as u64) + length;
    // With a length the packet could still take another frame; if not, spare the length.
    if with + MIN_STREAM_SPACE <= space {
        return Some(StreamHeader {
            length,
            to_end: false,
        });
    }
    (length > 0 || available == 0).then_some(StreamHeader {
        length,
        to_end: true,
    })
}

/// Appends a STREAM frame's header; the data follows.
pub(super) fn put_stream_header(
    stream: u64,
    offset: u64,
    header: &StreamHeader,
    finished: bool,
    out: &mut Vec<u8>,
) {
    let kind = STREAM
        | if finished { STREAM_FIN } else { 0 }
        | if header.to_end { 0 } else { STREAM_LENGTH }
        | if offset > 0 { STREAM_OFFSET } else { 0 };
    out.push(kind);
    put_varint(stream, out);
    if offset > 0 {
        put_varint(offset, out);
    }
    if !header.to_end {
        put_varint(header.length as u64, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_all(bytes: &[u8]) -> Option<Vec<Frame<'_>>> {
        let mut reader = Reader::new(bytes);
        let mut frames = Vec::new();
        while !reader.is_empty() {
            frames.push(parse(&mut reader)?);
        }
        Some(frames)
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(frames) = parse_all(&bytes) {
                for frame in frames {
                    if let Frame::Ack(ack) = frame {
                        prop_assert_eq!(ack.ranges().count(), ack.count());
                        let mut above = u64::MAX;
                        for (low, high) in ack.ranges() {
                            prop_assert!(low <= high && high < above);
                            above = low;
                        }
                    }
                }
            }
        }

        #[test]
        fn acks_come_back(numbers in proptest::collection::btree_set(0_u64..400, 1..100), delay in 0_u64..100_000) {
            let mut ranges = RangeSet::default();
            for &n in &numbers {
                ranges.insert(n, n + 1);
            }
            let mut out = Vec::new();
            prop_assert!(put_ack(&ranges, delay, 1000, &mut out));
            let frames = parse_all(&out).ok_or_else(|| TestCaseError::fail("not parsed"))?;
            let [Frame::Ack(ack)] = &frames[..] else { return Err(TestCaseError::fail("not an ACK")) };
            let mut got: Vec<u64> = ack.ranges().flat_map(|(low, high)| low..=high).collect();
            got.sort_unstable();
            let from = got[0];
            let wanted: Vec<u64> = numbers.iter().copied().filter(|&n| n >= from).collect();
            prop_assert_eq!(got, wanted);
            prop_assert!(ack.count() > MAX_ACK_RANGES || from == *numbers.iter().next().unwrap());
            prop_assert!(delay - ack.delay_micros < DELAY_UNIT);
        }

        #[test]
        fn streams_fill_a_packet_exactly(
            stream in 0_u64..100_000, offset in 0_u64..(1 << 40), available in 0_usize..3000, space in 0_usize..1500,
            finished: bool,
        ) {
            if let Some(header) = fit_stream(stream, offset, available, space) {
                let mut out = Vec::new();
                put_stream_header(stream, offset, &header, finished, &mut out);
                out.resize(out.len() + header.length, 7);
                prop_assert!(out.len() <= space);
                prop_assert!(header.length == available || space - out.len() < 3);
                let wanted = Frame::Stream { stream, offset, data: &[7; 3000][..header.length], finished };
                prop_assert_eq!(parse_all(&out), Some(alloc::vec![wanted]));
            }
        }
    }

    #[test]
    fn control_frames_come_back() {
        let frames = [
            Frame::Ping,
            Frame::Reset {
                stream: 5,
                code: u32::MAX,
                size: 1 << 40,
            },
            Frame::MaxData(1 << 40),
            Frame::MaxStreamData {
                stream: 77,
                limit: 0,
            },
            Frame::MaxStreams(9),
            Frame::Settled(1 << 33),
            Frame::Close(CloseReason::Violation),
        ];
        let mut out = Vec::new();
        for frame in &frames {
            let before = out.len();
            put(frame, &mut out);
            assert!(out.len() - before <= MAX_CONTROL);
        }
        assert_eq!(parse_all(&out).as_deref(), Some(&frames[..]));
    }

    #[test]
    fn ends_beyond_the_largest_offset_are_refused() {
        let mut out = alloc::vec![STREAM | STREAM_OFFSET, 0];
        put_varint((1 << 62) - 1, &mut out);
        out.push(1);
        assert_eq!(parse_all(&out), None);
    }
}
