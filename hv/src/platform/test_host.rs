//! A host for tests: a clock that is set, queues instead of wires.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use crate::host::{BlockDone, BlockRequest, Host};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct TestHost {
    now_ns: AtomicU64,
    serial: Mutex<Vec<u8>>,
    console: Mutex<Vec<u8>>,
    typed: Mutex<VecDeque<u8>>,
    sent: Mutex<Vec<Vec<u8>>>,
    /// Frames for the guest.
    incoming: Mutex<VecDeque<Vec<u8>>>,
    /// The box has room for no frame.
    full: Mutex<bool>,
    disk: Mutex<TestDisk>,
}

/// The guest's disk: requests wait until the test has them done.
#[derive(Debug, Default)]
pub(crate) struct TestDisk {
    pub bytes: Vec<u8>,
    pub flushes: usize,
    /// It is not there for new requests.
    pub is_busy: bool,
    tickets: u64,
    begun: VecDeque<(u64, BlockRequest, Box<[u8]>)>,
    ended: VecDeque<BlockDone>,
    /// What was answered before the disk gave it back.
    held: VecDeque<(u64, Box<[u8]>)>,
}

/// How the test's disk does a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    Failed,
    /// Failed, and the buffer is kept.
    Late,
}

impl TestDisk {
    /// Does the oldest request. Gives what it was.
    pub fn work(&mut self, fate: Fate) -> Option<BlockRequest> {
        let (ticket, request, mut buffer) = self.begun.pop_front()?;
        if fate == Fate::Done {
            match request {
                BlockRequest::Read { sector, bytes } => {
                    let at = sector as usize * 512;
                    buffer[..bytes].copy_from_slice(&self.bytes[at..at + bytes]);
                }
                BlockRequest::Write { sector, bytes } => {
                    let at = sector as usize * 512;
                    self.bytes[at..at + bytes].copy_from_slice(&buffer[..bytes]);
                }
                BlockRequest::Flush => self.flushes += 1,
            }
        }
        let buffer = if fate == Fate::Late {
            self.held.push_back((ticket, buffer));
            None
        } else {
            Some(buffer)
        };
        self.ended.push_back(BlockDone {
            ticket,
            is_ok: fate == Fate::Done,
            buffer,
        });
        Some(request)
    }

    /// Gives back what was kept.
    pub fn give_back(&mut self) {
        let (ticket, buffer) = self.held.pop_front().unwrap();
        self.ended.push_back(BlockDone {
            ticket,
            is_ok: false,
            buffer: Some(buffer),
        });
    }
}

impl TestHost {
    pub fn set_now(&self, now_ns: u64) {
        self.now_ns.store(now_ns, Ordering::Relaxed);
    }

    pub fn take_serial(&self) -> Vec<u8> {
        core::mem::take(&mut self.serial.lock().unwrap())
    }

    pub fn take_console(&self) -> Vec<u8> {
        core::mem::take(&mut self.console.lock().unwrap())
    }

    pub fn type_in(&self, bytes: &[u8]) {
        self.typed.lock().unwrap().extend(bytes);
    }

    pub fn take_sent(&self) -> Vec<Vec<u8>> {
        core::mem::take(&mut self.sent.lock().unwrap())
    }

    pub fn set_full(&self, full: bool) {
        *self.full.lock().unwrap() = full;
    }

    pub fn disk(&self) -> std::sync::MutexGuard<'_, TestDisk> {
        self.disk.lock().unwrap()
    }

    pub fn arrive(&self, frame: &[u8]) {
        self.incoming.lock().unwrap().push_back(frame.to_vec());
    }
}

impl Host for TestHost {
    fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Relaxed)
    }

    fn tsc_hz(&self) -> u64 {
        2_000_000_000
    }

    fn boot_unix_seconds(&self) -> u64 {
        1_700_000_000
    }

    fn serial_write(&self, bytes: &[u8]) {
        self.serial.lock().unwrap().extend_from_slice(bytes);
    }

    fn console_write(&self, bytes: &[u8]) {
        self.console.lock().unwrap().extend_from_slice(bytes);
    }

    fn console_read(&self) -> Option<u8> {
        self.typed.lock().unwrap().pop_front()
    }

    fn net_transmit(&self, frame: &[u8]) -> bool {
        let has_room = !*self.full.lock().unwrap();
        if has_room {
            self.sent.lock().unwrap().push(frame.to_vec());
        }
        has_room
    }

    fn net_receive(&self, buffer: &mut [u8]) -> Option<usize> {
        let frame = self.incoming.lock().unwrap().pop_front()?;
        buffer.get_mut(..frame.len())?.copy_from_slice(&frame);
        Some(frame.len())
    }

    fn block_begin(&self, request: BlockRequest, buffer: Box<[u8]>) -> Result<u64, Box<[u8]>> {
        let mut disk = self.disk();
        if disk.is_busy || !disk.begun.is_empty() {
            return Err(buffer);
        }
        disk.tickets += 1;
        let ticket = disk.tickets;
        disk.begun.push_back((ticket, request, buffer));
        Ok(ticket)
    }

    fn block_end(&self) -> Option<BlockDone> {
        self.disk().ended.pop_front()
    }

    fn entropy(&self, buffer: &mut [u8]) {
        for (index, byte) in buffer.iter_mut().enumerate() {
            *byte = (index as u8).wrapping_mul(167).wrapping_add(13);
        }
    }

    fn arm_timer(&self, _deadline_ns: Option<u64>) {}

    fn take_interrupts(&self) -> bool {
        true
    }

    fn must_leave(&self) -> bool {
        false
    }

    fn kick(&self, _vcpu: usize) {}

    fn stolen_ns(&self, _vcpu: usize) -> u64 {
        0
    }

    fn stop_requested(&self) -> bool {
        false
    }
}
