//! A disk once the firmware is gone: virtio-blk, polled, one request at a time and perhaps a flush beside it.
//!
//! Every wait has an end, well before the tunnel's peer takes the box for dead. What a late request was given stays the
//! device's until it gives it back; till then every other request fails at once.

use alloc::boxed::Box;
use alloc::string::{String, ToString};

use outpost::dictionary::Flushes;
use outpost::disk::{Blocks, DiskFailed};
use outpost::virtio_blk::{Features, HEADER_BYTES, Request, SECTOR, UNANSWERED, is_done};
use virtio_drivers::device::blk::SECTOR_SIZE;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::pci::virtio_device_type;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

use super::pci::{Function, Pci};
use super::virtio::{BoxHal, BoxTransport, Doorbell};
use crate::machine::clock;
use crate::output;

const _: () = assert!(SECTOR == SECTOR_SIZE as u64);

/// Two requests of three descriptors each are under way at most.
const QUEUE: usize = 8;
/// A read or write, of whatever length, that takes longer is late. Nothing is forwarded meanwhile, and the tunnel's peer gives up after 3 s.
const PATIENCE_NS: u64 = 2_000_000_000;
/// After so many late requests within [`LATE_WINDOW_NS`] the disk is given up.
const MOST_LATE: u32 = 3;
const LATE_WINDOW_NS: u64 = 600_000_000_000;
/// A flush that takes longer has failed. It is waited for at the start and before a reset only.
const FLUSH_PATIENCE_NS: u64 = 10_000_000_000;
/// Bytes moved by one request at most.
const PIECE: usize = 128 << 10;

/// A request as the device sees it, beside its data.
struct Frame {
    header: [u8; HEADER_BYTES],
    answer: [u8; 1],
}

impl Frame {
    fn new() -> Box<Frame> {
        Box::new(Frame {
            header: [0; HEADER_BYTES],
            answer: [UNANSWERED],
        })
    }
}

/// A request that the device has and has not given back.
#[derive(Clone, Copy)]
struct Pending {
    token: u16,
    request: Request,
    /// Bytes of the buffer that it was given.
    length: usize,
    until_ns: u64,
    /// A flush: it has been told that it failed.
    is_late: bool,
}

/// What went through the disk's driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Requests.
    pub requests: u64,
    /// Requests that the disk refused.
    pub failed: u64,
    /// Requests that it did not answer in time.
    pub late: u64,
    /// Nanoseconds that CPU 0 waited for the disk.
    pub waited_ns: u64,
}

/// A disk. It is dropped only if it does not start: the device is reset then, before its buffers go.
pub struct Disk {
    transport: BoxTransport,
    queue: Box<VirtQueue<BoxHal, QUEUE>>,
    doorbell: &'static Doorbell,
    features: Features,
    sectors: u64,
    /// The disk's own block size, as the partition table counts.
    block_bytes: u32,
    /// The read or write under way, and what it was given.
    transfer: Option<Pending>,
    frame: Box<Frame>,
    data: Box<[u8]>,
    /// How it ended, until someone asks.
    transferred: Option<Result<(), DiskFailed>>,
    /// The flush under way.
    flush: Option<Pending>,
    flush_frame: Box<Frame>,
    flushed: Option<Result<(), DiskFailed>>,
    /// Late requests since then.
    late: (u32, u64),
    is_given_up: bool,
    /// What is done while the disk is waited for.
    meanwhile: Option<Box<dyn FnMut()>>,
    /// What went through it.
    pub counters: Counters,
}

impl Disk {
    /// Starts the disk at `function`, whose blocks have `block_bytes` bytes.
    ///
    /// # Errors
    /// In words, if it has no driver or does not start.
    pub fn start(pci: &Pci, function: &Function, block_bytes: u32) -> Result<Disk, String> {
        const QUEUE_INDEX: u16 = 0;
        if virtio_device_type(&function.info) != Some(DeviceType::Block) {
            return Err(alloc::format!(
                "its controller ({:04x}:{:04x}) has no driver: this version drives virtio-blk only",
                function.info.vendor_id,
                function.info.device_id
            ));
        }
        pci.enable(function.place);
        let mut transport = BoxTransport::new(pci, function.place, DeviceType::Block, None)
            .map_err(|why| why.to_string())?;
        let doorbell = transport.doorbell();
        let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(DeviceStatus::empty());
        transport.set_status(status);
        let features = Features::common(transport.read_device_features())
            .ok_or("the device is older than virtio 1.0")?;
        transport.write_driver_features(features.bits());
        let status = status | DeviceStatus::FEATURES_OK;
        transport.set_status(status);
        if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err("the device does not accept the driver".into());
        }
        let failed =
            |why: virtio_drivers::Error| alloc::format!("the device does not start: {why}");
        // Two halves of four bytes: 5.2.4 has the capacity first.
        let sectors = transport
            .read_consistent(|| {
                let low: u32 = transport.read_config_space(0)?;
                let high: u32 = transport.read_config_space(4)?;
                Ok(u64::from(high) << 32 | u64::from(low))
            })
            .map_err(failed)?;
        let queue = VirtQueue::new(
            &mut transport,
            QUEUE_INDEX,
            false,
            features.has_event_index(),
        )
        .map_err(failed)?;
        transport.set_status(status | DeviceStatus::DRIVER_OK);
        let mut queue = Box::new(queue);
        queue.set_dev_notify(false);
        Ok(Disk {
            transport,
            queue,
            doorbell,
            features,
            sectors,
            block_bytes,
            transfer: None,
            frame: Frame::new(),
            data: alloc::vec![0; PIECE].into_boxed_slice(),
            transferred: None,
            flush: None,
            flush_frame: Frame::new(),
            flushed: None,
            late: (0, 0),
            is_given_up: false,
            meanwhile: None,
            counters: Counters::default(),
        })
    }

    /// Whether the disk only reads.
    pub fn is_read_only(&self) -> bool {
        self.features.is_read_only()
    }

    /// Has something short done, again and again, while the disk is waited for. It must not use the disk.
    pub fn set_meanwhile(&mut self, meanwhile: Option<Box<dyn FnMut()>>) {
        self.meanwhile = meanwhile;
    }

    fn pause(&mut self) {
        match &mut self.meanwhile {
            Some(meanwhile) => meanwhile(),
            None => core::hint::spin_loop(),
        }
    }

    /// The disk is not used any more. What it was given stays untouched for ever.
    fn give_up(&mut self, why: &str) {
        self.is_given_up = true;
        self.transport.set_status(DeviceStatus::empty());
        output::problem(&alloc::format!(
            "the disk {why}: the dictionary is in memory until the box is reset; check the disk"
        ));
    }

    fn note_late(&mut self) {
        self.counters.late += 1;
        let now_ns = clock::now_ns();
        if now_ns.saturating_sub(self.late.1) > LATE_WINDOW_NS {
            self.late = (0, now_ns);
        }
        self.late.0 += 1;
        if self.late.0 >= MOST_LATE {
            self.give_up("is too slow, or does not answer");
        } else {
            output::problem(
                "the disk does not answer: the dictionary goes on without it until it does; check the disk",
            );
        }
    }

    /// Whether the device has what belongs to a request like this one, or takes no more.
    fn is_busy(&mut self, request: Request) -> bool {
        self.reap();
        let pending = match request {
            Request::Flush => &self.flush,
            _ => &self.transfer,
        };
        self.is_given_up || pending.is_some()
    }

    /// Gives a request to the device; the data of a read or write is in the first `length` bytes of the buffer.
    fn submit(&mut self, request: Request, length: usize, until_ns: u64) -> Result<(), DiskFailed> {
        if self.is_busy(request) {
            return Err(DiskFailed);
        }
        self.counters.requests += 1;
        let data = self.data.get_mut(..length).ok_or(DiskFailed)?;
        let frame = match request {
            Request::Flush => &mut *self.flush_frame,
            _ => &mut *self.frame,
        };
        frame.header = request.header();
        frame.answer = [UNANSWERED];
        // SAFETY: frame and buffer are not touched until the device gives them back: whoever wants to asks `is_busy` first,
        // which says no more than `reap` has made sure of. They live as long as the disk does.
        let token = unsafe {
            match request {
                Request::Read(_) => self
                    .queue
                    .add(&[&frame.header], &mut [data, &mut frame.answer]),
                Request::Write(_) => self
                    .queue
                    .add(&[&frame.header, data], &mut [&mut frame.answer]),
                Request::Flush => self.queue.add(&[&frame.header], &mut [&mut frame.answer]),
            }
        }
        .map_err(|_| DiskFailed)?;
        let pending = Some(Pending {
            token,
            request,
            length,
            until_ns,
            is_late: false,
        });
        match request {
            Request::Flush => self.flush = pending,
            _ => self.transfer = pending,
        }
        self.doorbell.ring();
        Ok(())
    }

    /// Takes back what the device gives back.
    fn reap(&mut self) {
        while !self.is_given_up
            && let Some(token) = self.queue.peek_used()
        {
            let is = |pending: &mut Pending| pending.token == token;
            if let Some(done) = self.transfer.take_if(is) {
                self.transferred = Some(self.finish(done));
            } else if let Some(done) = self.flush.take_if(is) {
                self.flushed = Some(self.finish(done));
            } else {
                self.give_up("breaks the rules of its queue");
            }
        }
    }

    /// Takes back a request that the device is done with, and tells how it went.
    fn finish(&mut self, done: Pending) -> Result<(), DiskFailed> {
        let data = self.data.get_mut(..done.length).ok_or(DiskFailed)?;
        let frame = match done.request {
            Request::Flush => &mut *self.flush_frame,
            _ => &mut *self.frame,
        };
        // SAFETY: these are what `submit` has given to the device with this token.
        let popped = unsafe {
            match done.request {
                Request::Read(_) => self.queue.pop_used(
                    done.token,
                    &[&frame.header],
                    &mut [data, &mut frame.answer],
                ),
                Request::Write(_) => self.queue.pop_used(
                    done.token,
                    &[&frame.header, data],
                    &mut [&mut frame.answer],
                ),
                Request::Flush => {
                    self.queue
                        .pop_used(done.token, &[&frame.header], &mut [&mut frame.answer])
                }
            }
        };
        if popped.is_ok() && is_done(frame.answer[0]) {
            return Ok(());
        }
        self.counters.failed += 1;
        Err(DiskFailed)
    }

    /// Reads or writes the first `length` bytes of the buffer.
    fn transfer(
        &mut self,
        request: Request,
        length: usize,
        until_ns: u64,
    ) -> Result<(), DiskFailed> {
        self.submit(request, length, until_ns)?;
        let started = clock::now_ns();
        let result = loop {
            self.reap();
            if self.is_given_up {
                break Err(DiskFailed);
            }
            if self.transfer.is_none() {
                break self.transferred.take().unwrap_or(Err(DiskFailed));
            }
            if clock::now_ns() > until_ns {
                self.note_late();
                break Err(DiskFailed);
            }
            self.pause();
        };
        self.counters.waited_ns += clock::now_ns().saturating_sub(started);
        result
    }

    /// The sector at which block `lba` begins, if `length` bytes from there are on the disk.
    fn sector(&self, lba: u64, length: usize) -> Result<u64, DiskFailed> {
        let sector = lba
            .checked_mul(u64::from(self.block_bytes) / SECTOR)
            .ok_or(DiskFailed)?;
        let end = sector.checked_add((length as u64).div_ceil(SECTOR));
        if !(length as u64).is_multiple_of(SECTOR) || end.is_none_or(|end| end > self.sectors) {
            return Err(DiskFailed);
        }
        Ok(sector)
    }
}

impl Blocks for Disk {
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn blocks(&self) -> u64 {
        self.sectors / (u64::from(self.block_bytes) / SECTOR).max(1)
    }

    fn read(&mut self, lba: u64, out: &mut [u8]) -> Result<(), DiskFailed> {
        let mut sector = self.sector(lba, out.len())?;
        let until_ns = clock::now_ns() + PATIENCE_NS;
        for piece in out.chunks_mut(PIECE) {
            self.transfer(Request::Read(sector), piece.len(), until_ns)?;
            piece.copy_from_slice(self.data.get(..piece.len()).ok_or(DiskFailed)?);
            sector += piece.len() as u64 / SECTOR;
        }
        Ok(())
    }

    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), DiskFailed> {
        let mut sector = self.sector(lba, bytes.len())?;
        let until_ns = clock::now_ns() + PATIENCE_NS;
        for piece in bytes.chunks(PIECE) {
            // The device may still have the buffer.
            if self.is_busy(Request::Write(sector)) {
                return Err(DiskFailed);
            }
            self.data
                .get_mut(..piece.len())
                .ok_or(DiskFailed)?
                .copy_from_slice(piece);
            self.transfer(Request::Write(sector), piece.len(), until_ns)?;
            sector += piece.len() as u64 / SECTOR;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskFailed> {
        // One that is under way may have begun before the last write. Whoever waits for it is served by this one.
        let is_awaited = self.flush.is_some() || self.flushed.is_some();
        while self.flush.is_some() && self.end_flush().is_none() {
            self.pause();
        }
        self.begin_flush()?;
        loop {
            if let Some(ended) = self.end_flush() {
                self.flushed = is_awaited.then_some(ended);
                return ended;
            }
            self.pause();
        }
    }
}

impl Flushes for Disk {
    fn begin_flush(&mut self) -> Result<(), DiskFailed> {
        if !self.features.has_flush() && !self.is_given_up {
            self.flushed = Some(Ok(()));
            return Ok(());
        }
        let until_ns = clock::now_ns() + FLUSH_PATIENCE_NS;
        self.submit(Request::Flush, 0, until_ns)?;
        self.flushed = None;
        Ok(())
    }

    fn end_flush(&mut self) -> Option<Result<(), DiskFailed>> {
        self.reap();
        if self.is_given_up {
            return Some(Err(DiskFailed));
        }
        if let Some(flush) = self.flush.as_mut()
            && (flush.is_late || clock::now_ns() > flush.until_ns)
        {
            if !core::mem::replace(&mut flush.is_late, true) {
                self.note_late();
            }
            return Some(Err(DiskFailed));
        }
        self.flushed.take()
    }
}
