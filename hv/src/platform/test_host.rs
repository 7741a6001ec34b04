//! A host for tests: a clock that is set, queues instead of wires.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use crate::host::Host;

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

    fn entropy(&self, buffer: &mut [u8]) {
        for (index, byte) in buffer.iter_mut().enumerate() {
            *byte = (index as u8).wrapping_mul(167).wrapping_add(13);
        }
    }

    fn arm_timer(&self, _deadline_ns: Option<u64>) {}

    fn take_interrupts(&self) {}

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
