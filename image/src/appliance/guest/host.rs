//! The box under the hypervisor, and the guest's wire and console as the network's CPU sees them. Rings join the two CPUs;
//! whoever puts something in kicks the other.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, Ordering};

use outpost::console::ByteQueue;
use outpost::ring::{Consumer, Producer, frame_ring};
use outpost_hv::host::{BlockDone, BlockRequest, Host};
use outpost_hv::platform::DEVICE_VCPU;
use spin::{Mutex, Once};

use super::disk;
use crate::appliance::cpus;
use crate::machine::{clock, entropy};
use crate::output::serial::{COM3, Serial};

/// Frames that wait in each direction at most.
const FRAMES: usize = 256;
const OUTPUT_BYTES: usize = 64 << 10;
const INPUT_BYTES: usize = 256;

/// The guest's side of rings and queues. Each lock is taken briefly, with interrupts off.
pub struct BoxHost {
    to_box: Mutex<Producer>,
    from_box: Mutex<Consumer>,
    output: Mutex<ByteQueue>,
    input: Mutex<ByteQueue>,
    /// Where what the guest writes to its serial port also goes, as it is: for tools, in an emulator whose port takes all at once. A vCPU waits for a slower one.
    copy: Mutex<Option<Serial>>,
}

static HOST: Once<BoxHost> = Once::new();
static RUNNING: AtomicBool = AtomicBool::new(false);

/// The host for the hypervisor. [`Wire::take`] must have been called.
pub fn get() -> &'static BoxHost {
    HOST.wait()
}

/// Notes whether the guest runs: only then frames are put in its ring.
pub fn set_running(running: bool) {
    RUNNING.store(running, Ordering::Release);
}

/// Copies what the guest writes to its serial port to the third serial port from now on.
pub fn copy_output_to_com3() {
    let mut port = Serial::new(COM3);
    port.start();
    *get().copy.lock() = Some(port);
}

impl Host for BoxHost {
    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn tsc_hz(&self) -> u64 {
        clock::tsc_hz()
    }

    fn boot_unix_seconds(&self) -> u64 {
        clock::boot_unix_seconds()
    }

    fn serial_write(&self, bytes: &[u8]) {
        if let Some(port) = self.copy.lock().as_mut() {
            bytes.iter().for_each(|byte| port.write(*byte));
        }
        self.console_write(bytes);
    }

    fn console_write(&self, bytes: &[u8]) {
        self.output.lock().push(bytes);
        if bytes.contains(&b'\n') {
            cpus::call_network();
        }
    }

    fn console_read(&self) -> Option<u8> {
        self.input.lock().pop()
    }

    fn net_transmit(&self, frame: &[u8]) -> bool {
        let pushed = self.to_box.lock().push(frame);
        cpus::call_network();
        pushed
    }

    fn net_receive(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut ring = self.from_box.lock();
        loop {
            let copied = ring.pop(|frame| {
                let room = buffer.get_mut(..frame.len())?;
                room.copy_from_slice(frame);
                Some(frame.len())
            })?;
            if copied.is_some() {
                return copied;
            }
        }
    }

    fn block_begin(&self, request: BlockRequest, buffer: Box<[u8]>) -> Result<u64, Box<[u8]>> {
        disk::begin(request, buffer)
    }

    fn block_end(&self) -> Option<BlockDone> {
        disk::end()
    }

    fn entropy(&self, buffer: &mut [u8]) {
        entropy::fill(buffer);
    }

    fn arm_timer(&self, deadline_ns: Option<u64>) {
        cpus::arm_timer(deadline_ns);
    }

    fn take_interrupts(&self) -> bool {
        cpus::take_interrupts()
    }

    fn must_leave(&self) -> bool {
        cpus::must_leave()
    }

    fn kick(&self, vcpu: usize) {
        cpus::call_vcpu(vcpu);
    }

    fn stolen_ns(&self, vcpu: usize) -> u64 {
        cpus::stolen_ns(vcpu)
    }

    fn stop_requested(&self) -> bool {
        super::restart_requested()
    }
}

/// The guest's wire, as the network's CPU sees it.
pub struct Wire {
    to_guest: Producer,
    from_guest: Consumer,
    pushed: bool,
    /// Frames the guest had no room for.
    dropped: u64,
}

impl Wire {
    /// Makes wire and console. Called once, before the guest's CPU is given work.
    pub fn take() -> Self {
        let (to_guest, from_box) = frame_ring(FRAMES);
        let (to_box, from_guest) = frame_ring(FRAMES);
        HOST.call_once(|| BoxHost {
            to_box: Mutex::new(to_box),
            from_box: Mutex::new(from_box),
            output: Mutex::new(ByteQueue::new(OUTPUT_BYTES)),
            input: Mutex::new(ByteQueue::new(INPUT_BYTES)),
            copy: Mutex::new(None),
        });
        Wire {
            to_guest,
            from_guest,
            pushed: false,
            dropped: 0,
        }
    }

    /// Hands up to `limit` frames of the guest to `take`. Returns how many there were.
    pub fn receive(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < limit && self.from_guest.pop(&mut take).is_some() {
            count += 1;
        }
        count
    }

    /// Puts a frame in the guest's ring; [`Wire::flush`] wakes the guest.
    pub fn send(&mut self, frame: &[u8]) {
        if !RUNNING.load(Ordering::Acquire) {
            return;
        }
        if self.to_guest.push(frame) {
            self.pushed = true;
        } else {
            self.dropped += 1;
        }
    }

    /// Wakes the guest if something is new.
    pub fn flush(&mut self) {
        if core::mem::take(&mut self.pushed) {
            cpus::call_vcpu(DEVICE_VCPU);
        }
    }

    /// True if a frame of the guest waits.
    pub fn has_received(&self) -> bool {
        !self.from_guest.is_empty()
    }

    /// Frames the guest had no room for.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// The next byte of the guest's console output.
pub fn console_output() -> Option<u8> {
    HOST.get()?.output.lock().pop()
}

/// True if the guest's console output waits.
pub fn has_console_output() -> bool {
    HOST.get()
        .is_some_and(|host| !host.output.lock().is_empty())
}

/// A byte typed at the guest's console; lost if the guest does not read.
pub fn console_input(byte: u8) {
    if let Some(host) = HOST.get() {
        host.input.lock().push(&[byte]);
        cpus::call_vcpu(DEVICE_VCPU);
    }
}
