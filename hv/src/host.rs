//! What the hypervisor needs of the box it runs on. The composition root implements it; tests bring their own.

use alloc::boxed::Box;

/// What the guest wants of its disk. Sectors have 512 bytes; the device has checked that they are on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockRequest {
    /// Read from `sector` on into the first `bytes` bytes of the buffer, a multiple of 512.
    Read {
        /// The first sector.
        sector: u64,
        /// How much.
        bytes: usize,
    },
    /// Write the first `bytes` bytes of the buffer, a multiple of 512, from `sector` on.
    Write {
        /// The first sector.
        sector: u64,
        /// How much.
        bytes: usize,
    },
    /// Make what was written before safe from a power cut.
    Flush,
}

/// How a request to the guest's disk ended.
#[derive(Debug)]
pub struct BlockDone {
    /// What [`Host::block_begin`] gave.
    pub ticket: u64,
    /// It was done.
    pub is_ok: bool,
    /// The buffer that came with the request; none if the disk may still use it. It then comes later, under the same ticket.
    pub buffer: Option<Box<[u8]>>,
}

/// The box under the hypervisor. Every method is called from a CPU that runs a vCPU, and none of them blocks.
pub trait Host: Sync {
    /// Nanoseconds since the box started: monotonic, the same on every CPU.
    fn now_ns(&self) -> u64;

    /// Frequency of the time-stamp counter, in hertz.
    fn tsc_hz(&self) -> u64;

    /// Seconds since 1970-01-01 UTC at the moment when [`Host::now_ns`] was zero.
    fn boot_unix_seconds(&self) -> u64;

    /// Takes what the guest wrote to its serial port.
    fn serial_write(&self, bytes: &[u8]);

    /// Takes what the guest wrote to its paravirtual console.
    fn console_write(&self, bytes: &[u8]);

    /// Gives the next byte typed at the guest's console, if there is one.
    fn console_read(&self) -> Option<u8>;

    /// Takes an Ethernet frame (no FCS) that the guest sent. False if the box has no room for it; the frame is then lost.
    fn net_transmit(&self, frame: &[u8]) -> bool;

    /// Copies the next frame for the guest to `buffer` and returns its length. A frame longer than `buffer` is dropped.
    fn net_receive(&self, buffer: &mut [u8]) -> Option<usize>;

    /// Begins a request to the guest's disk; how it ended comes by [`Host::block_end`], after a kick of [`crate::platform::DEVICE_VCPU`]. Gives a ticket that
    /// no other request ever has.
    ///
    /// # Errors
    /// Gives the buffer back if an earlier request has not ended: there is a kick when it has.
    fn block_begin(&self, request: BlockRequest, buffer: Box<[u8]>) -> Result<u64, Box<[u8]>>;

    /// A request to the guest's disk that has ended, once.
    fn block_end(&self) -> Option<BlockDone>;

    /// Fills `buffer` with random bytes fit for keys.
    fn entropy(&self, buffer: &mut [u8]);

    /// Asks for an interrupt on this CPU at `deadline_ns` (as [`Host::now_ns`] counts; one in the past comes at once), or for
    /// none. The interrupt ends guest execution.
    fn arm_timer(&self, deadline_ns: Option<u64>);

    /// Lets interrupts that are pending on this CPU be taken by the box. True if one of them may have been a [`Host::kick`].
    fn take_interrupts(&self) -> bool;

    /// True when the box wants this CPU for something else. Asked before each entry.
    fn must_leave(&self) -> bool;

    /// There is something for `vcpu`: it is to leave the guest and look if it runs on another CPU, and to be run again if it rests. A kick
    /// that comes between a vCPU's last look and its rest must not be lost.
    fn kick(&self, vcpu: usize);

    /// For how long `vcpu` could have run and had no CPU, in nanoseconds, since the box started.
    fn stolen_ns(&self, vcpu: usize) -> u64;

    /// True when the box wants the guest stopped.
    fn stop_requested(&self) -> bool;
}
