//! A disk once the firmware is gone: virtio-blk, polled. Three requests may be under way, each of its own user: a read or write that is waited
//! for, a flush, and one for the guest. The last two are not waited for.
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

/// Three requests of three descriptors each are under way at most.
const QUEUE: usize = 16;
/// A read or write, of whatever length, that takes longer is late. Nothing is forwarded meanwhile, and the tunnel's peer gives up after 3 s.
const PATIENCE_NS: u64 = 2_000_000_000;
/// After so many late requests within [`LATE_WINDOW_NS`] the disk is given up.
const MOST_LATE: u32 = 3;
const LATE_WINDOW_NS: u64 = 600_000_000_000;
/// A flush that takes longer has failed. It is waited for at the start and before a reset only.
const FLUSH_PATIENCE_NS: u64 = 10_000_000_000;
/// A request of the guest's that takes longer has failed.
const GUEST_PATIENCE_NS: u64 = 30_000_000_000;
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
    /// It has been told that it failed.
    is_late: bool,
}

/// One of the requests that may be under way at the same time.
struct Lane {
    pending: Option<Pending>,
    frame: Box<Frame>,
    data: Box<[u8]>,
    /// How it ended, until someone asks.
    ended: Option<Result<(), DiskFailed>>,
}

impl Lane {
    fn new(data_bytes: usize) -> Lane {
        Lane {
            pending: None,
            frame: Frame::new(),
            data: alloc::vec![0; data_bytes].into_boxed_slice(),
            ended: None,
        }
    }

    /// Gives a request to the device; the data of a read or write is in the first `length` bytes of the buffer.
    fn submit(
        &mut self,
        queue: &mut VirtQueue<BoxHal, QUEUE>,
        request: Request,
        length: usize,
        until_ns: u64,
    ) -> Result<(), DiskFailed> {
        let data = self.data.get_mut(..length).ok_or(DiskFailed)?;
        let frame = &mut *self.frame;
        frame.header = request.header();
        frame.answer = [UNANSWERED];
        // SAFETY: frame and buffer are not touched until the device gives them back: whoever wants to looks first whether something is
        // pending, which it is until `take_back`. They live as long as the disk does.
        let token = unsafe {
            match request {
                Request::Read(_) => queue.add(&[&frame.header], &mut [data, &mut frame.answer]),
                Request::Write(_) => queue.add(&[&frame.header, data], &mut [&mut frame.answer]),
                Request::Flush => queue.add(&[&frame.header], &mut [&mut frame.answer]),
            }
        }
        .map_err(|_| DiskFailed)?;
        self.ended = None;
        self.pending = Some(Pending {
            token,
            request,
            length,
            until_ns,
            is_late: false,
        });
        Ok(())
    }

    /// Takes back what the device is done with, if it is this one's. True if it was.
    fn take_back(&mut self, queue: &mut VirtQueue<BoxHal, QUEUE>, token: u16) -> bool {
        let Some(done) = self.pending.take_if(|pending| pending.token == token) else {
            return false;
        };
        let data = self.data.get_mut(..done.length).unwrap_or_default();
        let frame = &mut *self.frame;
        // SAFETY: these are what `submit` has given to the device with this token.
        let popped = unsafe {
            match done.request {
                Request::Read(_) => {
                    queue.pop_used(token, &[&frame.header], &mut [data, &mut frame.answer])
                }
                Request::Write(_) => {
                    queue.pop_used(token, &[&frame.header, data], &mut [&mut frame.answer])
                }
                Request::Flush => queue.pop_used(token, &[&frame.header], &mut [&mut frame.answer]),
            }
        };
        self.ended = Some(if popped.is_ok() && is_done(frame.answer[0]) {
            Ok(())
        } else {
            Err(DiskFailed)
        });
        true
    }

    /// True once, when the request that is under way takes too long.
    fn becomes_late(&mut self) -> bool {
        let late = self
            .pending
            .as_mut()
            .filter(|pending| !pending.is_late && clock::now_ns() > pending.until_ns);
        late.is_some_and(|pending| !core::mem::replace(&mut pending.is_late, true))
    }

    fn is_late(&self) -> bool {
        self.pending.is_some_and(|pending| pending.is_late)
    }
}

/// Whose request it is.
#[derive(Clone, Copy)]
enum User {
    Transfer,
    Flush,
    Guest,
}

/// How a request for the guest ended.
#[derive(Debug)]
pub enum GuestEnd {
    /// So, and its buffer is back.
    Done(Result<(), DiskFailed>, Box<[u8]>),
    /// It failed, and the disk may still use the buffer: [`GuestEnd::Done`] follows when not.
    Late,
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
    /// What is waited for.
    transfer: Lane,
    flush: Lane,
    guest: Lane,
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
            transfer: Lane::new(PIECE),
            flush: Lane::new(0),
            guest: Lane::new(0),
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
        output::problem(format_args!(
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

    /// Gives the request of a lane to the device.
    fn submit(
        &mut self,
        user: User,
        request: Request,
        length: usize,
        until_ns: u64,
    ) -> Result<(), DiskFailed> {
        self.reap();
        let lane = match user {
            User::Transfer => &mut self.transfer,
            User::Flush => &mut self.flush,
            User::Guest => &mut self.guest,
        };
        if self.is_given_up || lane.pending.is_some() {
            return Err(DiskFailed);
        }
        self.counters.requests += 1;
        lane.submit(&mut self.queue, request, length, until_ns)?;
        self.doorbell.ring();
        Ok(())
    }

    /// Takes back what the device gives back.
    fn reap(&mut self) {
        while !self.is_given_up
            && let Some(token) = self.queue.peek_used()
        {
            let queue = &mut *self.queue;
            let lanes = [&mut self.transfer, &mut self.flush, &mut self.guest];
            let mut taken = false;
            for lane in lanes {
                if !taken && lane.take_back(queue, token) {
                    taken = true;
                    self.counters.failed += u64::from(lane.ended == Some(Err(DiskFailed)));
                }
            }
            if !taken {
                self.give_up("breaks the rules of its queue");
            }
        }
    }

    /// Reads or writes the first `length` bytes of the buffer.
    fn transfer(
        &mut self,
        request: Request,
        length: usize,
        until_ns: u64,
    ) -> Result<(), DiskFailed> {
        self.submit(User::Transfer, request, length, until_ns)?;
        let started = clock::now_ns();
        let result = loop {
            self.reap();
            if self.is_given_up {
                break Err(DiskFailed);
            }
            if self.transfer.pending.is_none() {
                break self.transfer.ended.take().unwrap_or(Err(DiskFailed));
            }
            if self.transfer.becomes_late() {
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
            piece.copy_from_slice(self.transfer.data.get(..piece.len()).ok_or(DiskFailed)?);
            sector += piece.len() as u64 / SECTOR;
        }
        Ok(())
    }

    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), DiskFailed> {
        let mut sector = self.sector(lba, bytes.len())?;
        let until_ns = clock::now_ns() + PATIENCE_NS;
        for piece in bytes.chunks(PIECE) {
            // The device may still have the buffer.
            self.reap();
            if self.transfer.pending.is_some() {
                return Err(DiskFailed);
            }
            self.transfer
                .data
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
        let is_awaited = self.flush.pending.is_some() || self.flush.ended.is_some();
        while self.flush.pending.is_some() && self.end_flush().is_none() {
            self.pause();
        }
        self.begin_flush()?;
        loop {
            if let Some(ended) = self.end_flush() {
                self.flush.ended = is_awaited.then_some(ended);
                return ended;
            }
            self.pause();
        }
    }
}

impl Flushes for Disk {
    fn begin_flush(&mut self) -> Result<(), DiskFailed> {
        if !self.features.has_flush() && !self.is_given_up {
            self.flush.ended = Some(Ok(()));
            return Ok(());
        }
        let until_ns = clock::now_ns() + FLUSH_PATIENCE_NS;
        self.submit(User::Flush, Request::Flush, 0, until_ns)
    }

    fn end_flush(&mut self) -> Option<Result<(), DiskFailed>> {
        self.reap();
        if self.is_given_up {
            return Some(Err(DiskFailed));
        }
        if self.flush.becomes_late() {
            self.note_late();
        }
        if self.flush.is_late() {
            return Some(Err(DiskFailed));
        }
        self.flush.ended.take()
    }
}

/// Requests for the guest: one at a time, with the buffer for its data, never waited for.
impl Disk {
    /// Begins a request of the guest's; data are the first `length` bytes of the buffer.
    ///
    /// # Errors
    /// Gives the buffer back if the disk does not take the request.
    pub fn begin_for_guest(
        &mut self,
        request: Request,
        buffer: Box<[u8]>,
        length: usize,
    ) -> Result<(), Box<[u8]>> {
        self.reap();
        if self.guest.pending.is_some() {
            return Err(buffer);
        }
        self.guest.data = buffer;
        if request == Request::Flush && !self.features.has_flush() && !self.is_given_up {
            self.guest.ended = Some(Ok(()));
            return Ok(());
        }
        let until_ns = clock::now_ns() + GUEST_PATIENCE_NS;
        self.submit(User::Guest, request, length, until_ns)
            .map_err(|DiskFailed| core::mem::take(&mut self.guest.data))
    }

    /// How the request for the guest ended that was begun, once; none while it is under way, and if there is none.
    pub fn end_for_guest(&mut self) -> Option<GuestEnd> {
        self.reap();
        if self.guest.becomes_late() {
            self.counters.late += 1;
            output::problem(
                "the disk does not answer a request of the guest's: it is told that it failed; check the disk",
            );
            return Some(GuestEnd::Late);
        }
        if self.is_given_up && self.guest.pending.is_some() && !self.guest.is_late() {
            // What the device was given is never touched again.
            if let Some(pending) = &mut self.guest.pending {
                pending.is_late = true;
            }
            return Some(GuestEnd::Late);
        }
        let ended = self.guest.ended.take()?;
        Some(GuestEnd::Done(ended, core::mem::take(&mut self.guest.data)))
    }
}
