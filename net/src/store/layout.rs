//! What lies where on the device: two copies of the superblock, then slots of one segment each. Everything that is read
//! back is checked before it is believed.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::log::Direction;
use super::{BLOCK, BlockDevice};
use crate::dedup::ranges::RangeSet;

/// Logarithm of [`SEGMENT`].
pub const SEGMENT_BITS: u32 = 20;
/// Bytes of a log that lie in one slot.
pub const SEGMENT: usize = 1 << SEGMENT_BITS;
/// Bytes with a checksum of their own.
pub const PAGE: usize = 32 * 1024;
/// Pages of a segment.
pub const PAGES: usize = SEGMENT / PAGE;
/// Bytes of each of the two descriptions of a slot's segment.
pub const DESCRIPTION: usize = 64 * 1024;
/// Bytes of a slot: two descriptions, then the segment.
pub const SLOT: u64 = (2 * DESCRIPTION + SEGMENT) as u64;
/// Where the first slot begins.
pub const SLOTS_AT: u64 = 64 * 1024;
/// Bytes before a description's ranges and anchors.
pub const HEADER: usize = 72 + PAGES * 4;
/// Ranges and anchors that a description has room for.
pub const MOST_ENTRIES: usize = (DESCRIPTION - HEADER) / 8;

/// Far more descriptions than a device lives to see: what claims more is not believed.
const MOST_GENERATIONS: u64 = u64::MAX / 2;

/// The format described here.
pub const VERSION: u32 = 1;
/// What a superblock begins with.
pub const MAGIC: [u8; 8] = *b"OUTPOSTD";
const SUPER: usize = 8 + 4 + 4 + 32 + 16 + 32 + 4;
const SEGMENT_MAGIC: &[u8; 4] = b"OPSG";

/// Reads forward through bytes that are long enough; short ones read as zeros, which no checksum lets pass.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => [0; N],
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// The head of the device: whose store it is. Written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pair of peers.
    pub owner: [u8; 32],
    /// The name of this store, and of the sending side's log in it.
    pub store: [u8; 16],
    /// Secret that the keys of the sending side's anchors come from.
    pub keys: [u8; 32],
}

/// What a block at a superblock's place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// One of this format.
    Superblock(Superblock),
    /// One of another format, with its version.
    OtherVersion(u32),
    /// Nothing of ours, or damaged.
    Nothing,
}

impl Superblock {
    /// Where the copies lie.
    pub const AT: [u64; 2] = [0, BLOCK as u64];

    /// The block to write.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(SEGMENT as u32).to_le_bytes());
        out.extend_from_slice(&self.owner);
        out.extend_from_slice(&self.store);
        out.extend_from_slice(&self.keys);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out.resize(BLOCK, 0);
        out
    }

    /// What `block` is.
    pub fn parse(block: &[u8]) -> Found {
        let mut fields = Fields(block);
        if fields.array::<8>() != MAGIC {
            return Found::Nothing;
        }
        let version = fields.u32();
        if version != VERSION {
            return Found::OtherVersion(version);
        }
        let segment = fields.u32();
        let found = Superblock {
            owner: fields.array(),
            store: fields.array(),
            keys: fields.array(),
        };
        let sum = block.get(..SUPER - 4).map(crc32fast::hash);
        if sum == Some(fields.u32()) && segment == SEGMENT as u32 {
            Found::Superblock(found)
        } else {
            Found::Nothing
        }
    }
}

/// How many slots a device of `size` bytes has.
pub fn slots(size: u64) -> u32 {
    u32::try_from(size.saturating_sub(SLOTS_AT) / SLOT).unwrap_or(u32::MAX)
}

/// Where copy 0 or 1 of a slot's description lies.
pub fn description_at(slot: u32, copy: usize) -> u64 {
    SLOTS_AT + u64::from(slot) * SLOT + (copy * DESCRIPTION) as u64
}

/// Where a page of a slot's segment lies.
pub fn page_at(slot: u32, page: usize) -> u64 {
    SLOTS_AT + u64::from(slot) * SLOT + (2 * DESCRIPTION + page * PAGE) as u64
}

/// The log positions of a page.
pub fn page_range(segment: u64, page: usize) -> Range<u64> {
    let start = (segment << SEGMENT_BITS) + (page * PAGE) as u64;
    start..start + PAGE as u64
}

/// The checksum of what is there of a page. What is not there may be anything: so a page that is written again with more in
/// it still has the older checksum, even if the write is torn.
pub fn checksum(ranges: &RangeSet, page: Range<u64>, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for range in ranges.within(page.clone()) {
        let part = (range.start - page.start) as usize..(range.end - page.start) as usize;
        hasher.update(bytes.get(part).unwrap_or(&[]));
    }
    hasher.finalize()
}

/// What a slot holds, without the list of what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Grows with each description written for this direction.
    pub generation: u64,
    /// The segment's number: its first position by [`SEGMENT`].
    pub segment: u64,
    /// The store that it belongs to.
    pub store: [u8; 16],
    /// The log that it belongs to.
    pub log: [u8; 16],
    /// Whose log that is.
    pub direction: Direction,
    /// Checksums of the pages, as far as they are there.
    pub pages: [u32; PAGES],
    ranges: u32,
    anchors: u32,
    body: u32,
}

/// A whole description.
pub struct Description {
    /// The fixed part.
    pub header: Header,
    /// Which positions are there.
    pub ranges: RangeSet,
    /// Anchors of the sending side: 44 bits of hash, 20 bits of place.
    pub anchors: Vec<u64>,
}

impl Header {
    /// A header for what [`Header::encode`] is given.
    pub fn new(
        generation: u64,
        segment: u64,
        names: ([u8; 16], [u8; 16]),
        direction: Direction,
        pages: [u32; PAGES],
    ) -> Header {
        Header {
            generation,
            segment,
            store: names.0,
            log: names.1,
            direction,
            pages,
            ranges: 0,
            anchors: 0,
            body: 0,
        }
    }

    /// Writes the description to `out` and nothing else, padded to whole blocks. Of more than fits only the first anchors are taken. With room for
    /// [`DESCRIPTION`] bytes in `out`, nothing is allocated.
    pub fn encode(mut self, ranges: &RangeSet, anchors: &[u64], out: &mut Vec<u8>) {
        let base = self.segment << SEGMENT_BITS;
        let listed = ranges.iter().take(MOST_ENTRIES);
        let room = MOST_ENTRIES - listed.len();
        let anchors = anchors.get(..room).unwrap_or(anchors);
        self.ranges = listed.len() as u32;
        self.anchors = anchors.len() as u32;
        out.clear();
        out.resize(HEADER, 0);
        for range in listed {
            out.extend_from_slice(&(range.start.wrapping_sub(base) as u32).to_le_bytes());
            out.extend_from_slice(&(range.end.wrapping_sub(base) as u32).to_le_bytes());
        }
        for anchor in anchors {
            out.extend_from_slice(&anchor.to_le_bytes());
        }
        self.body = out.get(HEADER..).map_or(0, crc32fast::hash);
        if let Some((head, _)) = out.split_first_chunk_mut() {
            *head = self.head();
        }
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }

    /// The fixed part.
    fn head(&self) -> [u8; HEADER] {
        let mut head = [0; HEADER];
        let mut rest = head.as_mut_slice();
        let mut put = |bytes: &[u8]| {
            if let Some((place, after)) =
                core::mem::take(&mut rest).split_at_mut_checked(bytes.len())
            {
                place.copy_from_slice(bytes);
                rest = after;
            }
        };
        put(SEGMENT_MAGIC);
        put(&[0; 4]);
        put(&self.generation.to_le_bytes());
        put(&self.segment.to_le_bytes());
        put(&self.store);
        put(&self.log);
        put(&u32::from(self.direction.number()).to_le_bytes());
        for number in [self.ranges, self.anchors, self.body] {
            put(&number.to_le_bytes());
        }
        for sum in self.pages {
            put(&sum.to_le_bytes());
        }
        let sum = head.get(8..).map_or(0, crc32fast::hash);
        if let Some(place) = head.get_mut(4..8) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        head
    }

    /// Reads the first block of a description.
    pub fn parse(block: &[u8]) -> Option<Header> {
        let mut fields = Fields(block);
        if fields.array::<4>() != *SEGMENT_MAGIC {
            return None;
        }
        let sum = fields.u32();
        if crc32fast::hash(block.get(8..HEADER)?) != sum {
            return None;
        }
        let (generation, segment) = (fields.u64(), fields.u64());
        let (store, log) = (fields.array(), fields.array());
        let direction = Direction::from_number(fields.u32())?;
        let (ranges, anchors, body) = (fields.u32(), fields.u32(), fields.u32());
        let mut pages = [0; PAGES];
        for page in &mut pages {
            *page = fields.u32();
        }
        let entries = ranges as usize + anchors as usize;
        // A position is 64 bits, and the end of the segment is one, too; generations go on from the newest.
        let fits = entries <= MOST_ENTRIES
            && segment < u64::MAX >> SEGMENT_BITS
            && generation <= MOST_GENERATIONS;
        fits.then_some(Header {
            generation,
            segment,
            store,
            log,
            direction,
            pages,
            ranges,
            anchors,
            body,
        })
    }

    /// Reads the rest of the description in `copy` of `slot`; `None` when it is damaged. `read` counts bytes.
    pub fn body(
        &self,
        device: &dyn BlockDevice,
        slot: u32,
        copy: usize,
        read: &mut u64,
    ) -> Option<Description> {
        let len = HEADER + (self.ranges as usize + self.anchors as usize) * 8;
        let mut bytes = vec![0; len.next_multiple_of(BLOCK)];
        device.read(description_at(slot, copy), &mut bytes).ok()?;
        *read += bytes.len() as u64;
        // It may have been replaced meanwhile by a device that is not what it seems.
        if Header::parse(&bytes)? != *self {
            return None;
        }
        let body = bytes.get(HEADER..len)?;
        if crc32fast::hash(body) != self.body {
            return None;
        }
        let mut fields = Fields(body);
        let base = self.segment << SEGMENT_BITS;
        let mut set = RangeSet::default();
        for _ in 0..self.ranges {
            let (start, end) = (u64::from(fields.u32()), u64::from(fields.u32()));
            if start >= end || end > SEGMENT as u64 {
                return None;
            }
            set.insert(base + start..base + end);
        }
        let anchors = (0..self.anchors).map(|_| fields.u64()).collect();
        Some(Description {
            header: *self,
            ranges: set,
            anchors,
        })
    }
}
