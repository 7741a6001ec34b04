//! A disk once the firmware is gone: virtio-blk, polled, one request at a time. Only a flush may be under way beside it.
//!
//! Every wait has an end: a disk that does not answer in time is given up for good, because what it was given may still be
//! read or written by it at any moment.

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
/// A request that takes longer has failed. A hard disk that was asleep needs some seconds.
const PATIENCE_NS: u64 = 10_000_000_000;
/// Bytes moved by one request at most.
const PIECE: usize = 128 << 10;

/// What a request needs beside its data.
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

    fn ask(&mut self, request: Request) {
        self.header = request.header();
        self.answer = [UNANSWERED];
    }

    fn is_done(&self) -> bool {
        is_done(self.answer[0])
    }
}

/// What went through the disk's driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Requests.
    pub requests: u64,
    /// Requests that the disk refused, or did not answer.
    pub failed: u64,
    /// Nanoseconds that CPU 0 waited for the disk.
    pub waited_ns: u64,
}

/// A flush that is under way.
struct Flush {
    token: u16,
    until_ns: u64,
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
    frame: Box<Frame>,
    data: Box<[u8]>,
    flush_frame: Box<Frame>,
    flush: Option<Flush>,
    /// How the last flush ended, until someone asks.
    flushed: Option<Result<(), DiskFailed>>,
    is_given_up: bool,
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
            frame: Frame::new(),
            data: alloc::vec![0; PIECE].into_boxed_slice(),
            flush_frame: Frame::new(),
            flush: None,
            flushed: None,
            is_given_up: false,
            counters: Counters::default(),
        })
    }

    /// Whether the disk only reads.
    pub fn is_read_only(&self) -> bool {
        self.features.is_read_only()
    }

    fn give_up(&mut self, why: &str) {
        self.is_given_up = true;
        self.flush = None;
        self.counters.failed += 1;
        self.transport.set_status(DeviceStatus::empty());
        output::problem(&alloc::format!(
            "the disk {why}: it is not used any more until the box is reset; check the disk"
        ));
    }

    /// Puts a request into the queue; the data of a read or write is in the first `length` bytes of the buffer.
    fn submit(&mut self, request: Request, length: usize) -> Result<u16, DiskFailed> {
        if self.is_given_up {
            return Err(DiskFailed);
        }
        self.counters.requests += 1;
        let data = self.data.get_mut(..length).ok_or(DiskFailed)?;
        let frame = match request {
            Request::Flush => &mut *self.flush_frame,
            _ => &mut *self.frame,
        };
        frame.ask(request);
        // SAFETY: a frame and the buffer are not touched until the device gives them back: `finish_flush` and `transfer` see to
        // that, and after `give_up` nobody touches them again. They live as long as the disk does.
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
        };
        self.doorbell.ring();
        token.map_err(|_| DiskFailed)
    }

    /// Waits until the request with this token is the next that the device gives back.
    fn wait(&mut self, token: u16, until_ns: u64) -> Result<(), DiskFailed> {
        let started = clock::now_ns();
        let result = loop {
            match self.queue.peek_used() {
                Some(used) if used == token => break Ok(()),
                Some(used) if self.flush.as_ref().is_some_and(|it| it.token == used) => {
                    self.finish_flush();
                }
                Some(_) => {
                    self.give_up("breaks the rules of its queue");
                    break Err(DiskFailed);
                }
                None if clock::now_ns() > until_ns => {
                    self.give_up("does not answer");
                    break Err(DiskFailed);
                }
                None => core::hint::spin_loop(),
            }
        };
        self.counters.waited_ns += clock::now_ns().saturating_sub(started);
        result
    }

    fn count(&mut self, is_done: bool) -> Result<(), DiskFailed> {
        if is_done {
            return Ok(());
        }
        self.counters.failed += 1;
        Err(DiskFailed)
    }

    /// Reads or writes `length` bytes, which are, or will be, at the beginning of the buffer.
    fn transfer(&mut self, request: Request, length: usize) -> Result<(), DiskFailed> {
        let token = self.submit(request, length)?;
        self.wait(token, clock::now_ns() + PATIENCE_NS)?;
        let data = self.data.get_mut(..length).ok_or(DiskFailed)?;
        let frame = &mut *self.frame;
        // SAFETY: these are what was given to the device with this token.
        let popped = unsafe {
            match request {
                Request::Read(_) => {
                    self.queue
                        .pop_used(token, &[&frame.header], &mut [data, &mut frame.answer])
                }
                _ => self
                    .queue
                    .pop_used(token, &[&frame.header, data], &mut [&mut frame.answer]),
            }
        };
        let is_done = popped.is_ok() && self.frame.is_done();
        self.count(is_done)
    }

    /// The flush under way has been given back.
    fn finish_flush(&mut self) {
        let Some(flush) = self.flush.take() else {
            return;
        };
        let frame = &mut *self.flush_frame;
        // SAFETY: these are what was given to the device with this token.
        let popped = unsafe {
            self.queue
                .pop_used(flush.token, &[&frame.header], &mut [&mut frame.answer])
        };
        let is_done = popped.is_ok() && self.flush_frame.is_done();
        self.flushed = Some(self.count(is_done));
    }

    /// Waits for the flush under way, if there is one.
    fn await_flush(&mut self) -> Result<(), DiskFailed> {
        if let Some(&Flush { token, until_ns }) = self.flush.as_ref() {
            self.wait(token, until_ns)?;
            self.finish_flush();
        }
        Ok(())
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
        for piece in out.chunks_mut(PIECE) {
            self.transfer(Request::Read(sector), piece.len())?;
            piece.copy_from_slice(self.data.get(..piece.len()).ok_or(DiskFailed)?);
            sector += piece.len() as u64 / SECTOR;
        }
        Ok(())
    }

    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), DiskFailed> {
        let mut sector = self.sector(lba, bytes.len())?;
        for piece in bytes.chunks(PIECE) {
            if self.is_given_up {
                return Err(DiskFailed);
            }
            self.data
                .get_mut(..piece.len())
                .ok_or(DiskFailed)?
                .copy_from_slice(piece);
            self.transfer(Request::Write(sector), piece.len())?;
            sector += piece.len() as u64 / SECTOR;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskFailed> {
        self.begin_flush()?;
        self.await_flush()?;
        self.end_flush().unwrap_or(Err(DiskFailed))
    }
}

impl Flushes for Disk {
    fn begin_flush(&mut self) -> Result<(), DiskFailed> {
        self.await_flush()?;
        self.flushed = None;
        if self.is_given_up {
            return Err(DiskFailed);
        }
        if !self.features.has_flush() {
            self.flushed = Some(Ok(()));
            return Ok(());
        }
        let token = self.submit(Request::Flush, 0)?;
        self.flush = Some(Flush {
            token,
            until_ns: clock::now_ns() + PATIENCE_NS,
        });
        Ok(())
    }

    fn end_flush(&mut self) -> Option<Result<(), DiskFailed>> {
        if let Some(flush) = &self.flush {
            if self.queue.peek_used() == Some(flush.token) {
                self.finish_flush();
            } else if clock::now_ns() > flush.until_ns {
                self.give_up("does not answer");
                return Some(Err(DiskFailed));
            }
        }
        if self.is_given_up {
            return Some(Err(DiskFailed));
        }
        self.flushed.take()
    }
}
