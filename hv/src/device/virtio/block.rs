//! The guest's disk (Virtual I/O Device 1.2, 5.2): one queue, one request at a time at the box.
//!
//! Nothing here waits for a disk: a request goes to the host together with the buffer for its data, and the guest is answered when both
//! come back. While the buffer is away it may be a real disk's, so it is moved and never shared.

use alloc::boxed::Box;

use serde::Serialize;

use super::queue::{Chain, QueueError};
use super::{Access, Backend};
use crate::host::BlockRequest;

/// Size of a sector in requests and in the capacity, in bytes, whatever the disk's own blocks are (5.2.6).
pub const SECTOR: u64 = 512;

/// Buffers of one request and their size, in bytes, as the driver is told.
const SEGMENTS: u32 = 30;
const SEGMENT: u32 = 4096;
/// Most bytes that one request moves.
pub const REQUEST_MAX: usize = (SEGMENTS * SEGMENT) as usize;

/// VIRTIO_BLK_F_SIZE_MAX, SEG_MAX, BLK_SIZE and FLUSH (5.2.3).
const FEATURE_SIZE_MAX: u64 = 1 << 1;
const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_BLK_SIZE: u64 = 1 << 6;
const FEATURE_FLUSH: u64 = 1 << 9;

/// Kinds of requests (5.2.6).
mod kind {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
}

/// `struct virtio_blk_req`: kind, a reserved word, sector.
const HEADER: usize = 16;
const ID_BYTES: usize = 20;
const ID: [u8; ID_BYTES] = *b"outpost-guest\0\0\0\0\0\0\0";

/// What a request came to (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Buffers of the requests that one call answers without asking the host: the request that goes beyond is the last. The rest waits for the next call.
const BUDGET: usize = 128;

/// The disk that the guest is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Its size, in sectors of 512 bytes.
    pub sectors: u64,
    /// Its own block size, in bytes: a power of two, at least 512.
    pub block_bytes: u32,
}

/// What has happened on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockCounters {
    /// Reads that the box did.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes that the box did.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Flushes that the box did.
    pub flushes: u64,
    /// Requests that could not be done: beyond the end, not whole sectors, too long, an unknown kind.
    pub refused: u64,
    /// Requests that the box's disk failed.
    pub failed: u64,
}

/// The request whose chain is held.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    request: BlockRequest,
    /// The host's name for it; none while it waits for the host, or for the buffer.
    ticket: Option<u64>,
}

/// Where the buffer is.
#[derive(Debug)]
enum Buffer {
    Here(Box<[u8]>),
    /// The host has it and will give it back with its answer.
    Away,
    /// The host has answered without it: its disk may still use it. Until it comes back every request fails.
    Lost,
}

/// The disk.
#[derive(Debug)]
pub struct Block {
    config: BlockConfig,
    buffer: Buffer,
    under_way: Option<UnderWay>,
    chain: Chain,
    backlog: bool,
    /// The queue was empty, and the driver tells when it is not.
    is_idle: bool,
    counters: BlockCounters,
}

impl Block {
    /// A disk as described.
    pub fn new(config: BlockConfig) -> Self {
        let limit = Self::QUEUES.iter().copied().max().unwrap_or(0);
        Self {
            config,
            buffer: Buffer::Here(alloc::vec![0; REQUEST_MAX].into_boxed_slice()),
            under_way: None,
            chain: Chain::with_limit(limit),
            backlog: false,
            is_idle: false,
            counters: BlockCounters::default(),
        }
    }

    /// What has happened on it.
    pub fn counters(&self) -> BlockCounters {
        self.counters
    }

    /// What the chain in hand asks for; `Err` is the answer to give at once, with the bytes to put before it.
    fn parse(
        &mut self,
        access: &Access<'_>,
    ) -> Result<Result<BlockRequest, (Status, &'static [u8])>, QueueError> {
        let mut header = [0; HEADER];
        let (readable, writable) = (self.chain.readable_length(), self.chain.writable_length());
        if self.chain.read(access.mem, 0, &mut header)? != HEADER {
            return Err(QueueError::Form("a block request with half a header"));
        }
        if writable == 0 {
            return Err(QueueError::Form(
                "a block request without room for its answer",
            ));
        }
        let header = u128::from_le_bytes(header);
        let (kind, sector) = (header as u32, (header >> 64) as u64);
        let request = match kind {
            kind::READ => self
                .checked(sector, writable - 1)
                .map(|bytes| BlockRequest::Read { sector, bytes }),
            kind::WRITE => self
                .checked(sector, readable - HEADER as u64)
                .map(|bytes| BlockRequest::Write { sector, bytes }),
            kind::FLUSH => Some(BlockRequest::Flush),
            kind::GET_ID => return Ok(Err((Status::Ok, &ID))),
            _ => {
                self.counters.refused += 1;
                return Ok(Err((Status::Unsupported, &[])));
            }
        };
        Ok(request.ok_or_else(|| {
            self.counters.refused += 1;
            (Status::IoError, &[] as &[u8])
        }))
    }

    /// `bytes`, if there are so many from `sector` on and one request may move them.
    fn checked(&self, sector: u64, bytes: u64) -> Option<usize> {
        let end = sector.checked_add(bytes / SECTOR)?;
        let fits = bytes > 0
            && bytes.is_multiple_of(SECTOR)
            && bytes <= REQUEST_MAX as u64
            && end <= self.config.sectors;
        fits.then_some(bytes as usize)
    }

    /// Gives the chain in hand back: `data` at its beginning, the status in its last byte.
    fn answer(
        &self,
        access: &mut Access<'_>,
        status: Status,
        data: &[u8],
    ) -> Result<(), QueueError> {
        let room = self.chain.writable_length().saturating_sub(1);
        let data = data
            .get(..data.len().min(room as usize))
            .unwrap_or_default();
        self.chain.write(access.mem, 0, data)?;
        self.chain.write(access.mem, room, &[status as u8])?;
        match access.queues.get_mut(0) {
            Some(queue) => queue.push(access.mem, &self.chain, room as usize + 1),
            None => Ok(()),
        }
    }

    /// Takes what the host is done with. True if there was something.
    fn finish(&mut self, access: &mut Access<'_>) -> Result<bool, QueueError> {
        let mut found = false;
        while let Some(done) = access.host.block_end() {
            found = true;
            let here = core::mem::replace(&mut self.buffer, Buffer::Lost);
            self.buffer = match (done.buffer, here) {
                (Some(buffer), _) if buffer.len() == REQUEST_MAX => Buffer::Here(buffer),
                // Another guest's is missing, not ours.
                (None, Buffer::Here(buffer)) => Buffer::Here(buffer),
                _ => Buffer::Lost,
            };
            // One of before a reset, or of another guest, has nobody to answer to.
            let Some(under_way) = self
                .under_way
                .take_if(|under_way| under_way.ticket == Some(done.ticket))
            else {
                continue;
            };
            self.complete(access, under_way.request, done.is_ok)?;
        }
        Ok(found)
    }

    fn complete(
        &mut self,
        access: &mut Access<'_>,
        request: BlockRequest,
        is_ok: bool,
    ) -> Result<(), QueueError> {
        let Buffer::Here(buffer) = &self.buffer else {
            self.counters.failed += 1;
            return self.answer(access, Status::IoError, &[]);
        };
        if !is_ok {
            self.counters.failed += 1;
            return self.answer(access, Status::IoError, &[]);
        }
        match request {
            BlockRequest::Read { bytes, .. } => {
                self.answer(access, Status::Ok, buffer.get(..bytes).unwrap_or_default())?;
                self.counters.reads += 1;
                self.counters.read_bytes += bytes as u64;
            }
            BlockRequest::Write { bytes, .. } => {
                self.answer(access, Status::Ok, &[])?;
                self.counters.writes += 1;
                self.counters.written_bytes += bytes as u64;
            }
            BlockRequest::Flush => {
                self.answer(access, Status::Ok, &[])?;
                self.counters.flushes += 1;
            }
        }
        Ok(())
    }

    /// Hands the request in hand to the host, if that has not happened yet and can now.
    fn begin(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        let Some(UnderWay {
            request,
            ticket: None,
        }) = self.under_way
        else {
            return Ok(());
        };
        let mut buffer = match core::mem::replace(&mut self.buffer, Buffer::Away) {
            Buffer::Here(buffer) => buffer,
            Buffer::Away => return Ok(()),
            Buffer::Lost => {
                self.buffer = Buffer::Lost;
                self.under_way = None;
                return self.complete(access, request, false);
            }
        };
        if let BlockRequest::Write { bytes, .. } = request {
            let data = buffer.get_mut(..bytes).unwrap_or_default();
            if let Err(error) = self.chain.read(access.mem, HEADER as u64, data) {
                self.buffer = Buffer::Here(buffer);
                return Err(error);
            }
        }
        match access.host.block_begin(request, buffer) {
            Ok(ticket) => {
                self.under_way = Some(UnderWay {
                    request,
                    ticket: Some(ticket),
                });
            }
            // It has a request of before; it says so when that has ended.
            Err(buffer) => self.buffer = Buffer::Here(buffer),
        }
        Ok(())
    }

    /// Works through the queue until a request is under way, or there is none.
    fn work(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        self.backlog = false;
        self.is_idle = false;
        let mut budget = BUDGET;
        loop {
            self.begin(access)?;
            if self.under_way.is_some() {
                break;
            }
            let Some(queue) = access.queues.get_mut(0) else {
                break;
            };
            if budget == 0 {
                self.backlog = queue.has_available(access.mem)?;
                break;
            }
            if queue.pop(access.mem, &mut self.chain)? {
                budget = budget.saturating_sub(self.chain.buffers());
                match self.parse(access)? {
                    Ok(request) => {
                        self.under_way = Some(UnderWay {
                            request,
                            ticket: None,
                        });
                    }
                    Err((status, data)) => self.answer(access, status, data)?,
                }
            } else if !queue.request_notification(access.mem)? {
                self.is_idle = true;
                break;
            }
        }
        access.signal(0)
    }
}

impl Backend for Block {
    const NAME: &'static str = "disk";
    const DEVICE_ID: u32 = 2;
    const QUEUES: &'static [u16] = &[128];
    const FEATURES: u64 = FEATURE_SIZE_MAX | FEATURE_SEG_MAX | FEATURE_BLK_SIZE | FEATURE_FLUSH;

    /// `struct virtio_blk_config` (5.2.4): capacity, size_max, seg_max, geometry (none), blk_size.
    fn config(&self, offset: u64) -> u8 {
        let words = [
            self.config.sectors as u32,
            (self.config.sectors >> 32) as u32,
            SEGMENT,
            SEGMENTS,
            0,
            self.config.block_bytes,
        ];
        let word = usize::try_from(offset / 4)
            .ok()
            .and_then(|index| words.get(index).copied());
        word.map_or(0, |word| (word >> (8 * (offset % 4))) as u8)
    }

    fn reset(&mut self) {
        // What the host has comes back all the same, and is nobody's then.
        self.under_way = None;
        self.backlog = false;
        self.is_idle = false;
    }

    fn notified(&mut self, _index: usize, access: &mut Access<'_>) -> Result<(), QueueError> {
        self.finish(access)?;
        self.work(access)
    }

    fn service(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        if self.finish(access)? || !self.is_idle {
            self.work(access)?;
        }
        Ok(())
    }

    fn has_backlog(&self) -> bool {
        self.backlog
    }
}

#[cfg(test)]
mod tests;
