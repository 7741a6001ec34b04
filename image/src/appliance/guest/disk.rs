//! The guest's disk: the partition `guest`. A vCPU leaves its request at one seat; CPU 0 takes it from there to the disk's driver, waits for
//! nothing, and puts the answer there. One request at a time: the guest cannot keep the disk from the dictionary.

use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::RefCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use outpost::guest_disk::Window;
use outpost_hv::device::virtio::block::BlockConfig;
use outpost_hv::host::{BlockDone, BlockRequest};
use outpost_hv::platform::DEVICE_VCPU;
use spin::Mutex;

use crate::appliance::cpus;
use crate::appliance::disk::BoxDisk;
use crate::device::disk::{Disk as Driver, GuestEnd};
use crate::firmware::Findings;
use crate::output;

/// Where the one request is.
enum Seat {
    Free,
    /// It waits for CPU 0.
    Asked(u64, BlockRequest, Box<[u8]>),
    /// CPU 0 has it.
    Taken,
    /// It waits for the vCPU.
    Done(BlockDone),
}

/// Locked for moments, by a vCPU or by CPU 0.
static SEAT: Mutex<Seat> = Mutex::new(Seat::Free);
/// The seat is `Asked` or `Done`: who finds neither need not lock it. Changed under its lock.
static ASKED: AtomicBool = AtomicBool::new(false);
static DONE: AtomicBool = AtomicBool::new(false);
static TICKETS: AtomicU64 = AtomicU64::new(0);

/// See [`outpost_hv::host::Host::block_begin`].
pub fn begin(request: BlockRequest, buffer: Box<[u8]>) -> Result<u64, Box<[u8]>> {
    let mut seat = SEAT.lock();
    if !matches!(*seat, Seat::Free) {
        return Err(buffer);
    }
    let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
    *seat = Seat::Asked(ticket, request, buffer);
    ASKED.store(true, Ordering::Release);
    drop(seat);
    cpus::call_network();
    Ok(ticket)
}

/// See [`outpost_hv::host::Host::block_end`].
pub fn end() -> Option<BlockDone> {
    // Asked often: mostly there is nothing.
    if !DONE.load(Ordering::Acquire) {
        return None;
    }
    let mut seat = SEAT.lock();
    DONE.store(false, Ordering::Relaxed);
    match core::mem::replace(&mut *seat, Seat::Free) {
        Seat::Done(done) => Some(done),
        other => {
            *seat = other;
            None
        }
    }
}

/// True if a CPU is at the seat at this moment.
pub fn is_locked() -> bool {
    SEAT.is_locked()
}

fn take() -> Option<(u64, BlockRequest, Box<[u8]>)> {
    if !ASKED.load(Ordering::Acquire) {
        return None;
    }
    let mut seat = SEAT.lock();
    ASKED.store(false, Ordering::Relaxed);
    match core::mem::replace(&mut *seat, Seat::Taken) {
        Seat::Asked(ticket, request, buffer) => Some((ticket, request, buffer)),
        other => {
            *seat = other;
            None
        }
    }
}

fn put(done: BlockDone) {
    let mut seat = SEAT.lock();
    match &*seat {
        // A buffer that comes late finds another request there, or its answer: then it is no longer missed.
        Seat::Asked(..) => return,
        Seat::Done(other) if other.ticket != done.ticket => return,
        _ => *seat = Seat::Done(done),
    }
    DONE.store(true, Ordering::Release);
    drop(seat);
    cpus::call_vcpu(DEVICE_VCPU);
}

/// The disk as CPU 0 has it.
pub struct Disk {
    driver: Rc<RefCell<Driver>>,
    window: Window,
    /// The request that the driver has.
    ticket: Option<u64>,
    /// It has been answered; the driver has the buffer.
    is_late: bool,
}

impl Disk {
    /// The guest's part of the disk, if there is to be a guest. Says why there is none.
    pub fn find(findings: &Findings, disk: Result<Option<&BoxDisk>, &str>) -> Option<Disk> {
        findings.config.as_ref().ok()?.guest.as_ref()?;
        let why = match disk {
            Ok(Some(disk)) => match disk.guest {
                Some(extent) => {
                    return Some(Disk {
                        driver: disk.disk.clone(),
                        window: Window::new(extent, disk.block_bytes),
                        ticket: None,
                        is_late: false,
                    });
                }
                None => "the disk has no partition guest",
            },
            Ok(None) => "there is none with a partition guest that can be written",
            Err(why) => why,
        };
        output::problem(format_args!("the guest has no disk: {why}"));
        None
    }

    /// As the guest is shown it.
    pub fn config(&self) -> BlockConfig {
        BlockConfig {
            sectors: self.window.sectors(),
            block_bytes: self.window.block_bytes(),
        }
    }

    /// True if a request waits to be taken.
    pub fn is_asked() -> bool {
        ASKED.load(Ordering::Acquire)
    }

    /// True while the disk's driver has a request that somebody waits for.
    pub fn is_busy(&self) -> bool {
        self.ticket.is_some() && !self.is_late
    }

    /// Moves on what there is to move, and waits for nothing. True if there was something.
    pub fn tend(&mut self) -> bool {
        let ended = self.end();
        let begun = self.begin();
        ended || begun
    }

    fn end(&mut self) -> bool {
        let Some(ticket) = self.ticket else {
            return false;
        };
        let Ok(mut driver) = self.driver.try_borrow_mut() else {
            return false;
        };
        let (is_ok, buffer) = match driver.end_for_guest() {
            None => return false,
            Some(GuestEnd::Done(result, buffer)) => {
                self.ticket = None;
                self.is_late = false;
                (result.is_ok(), Some(buffer))
            }
            Some(GuestEnd::Late) => {
                self.is_late = true;
                (false, None)
            }
        };
        put(BlockDone {
            ticket,
            is_ok,
            buffer,
        });
        true
    }

    fn begin(&mut self) -> bool {
        let Some((ticket, request, buffer)) = take() else {
            return false;
        };
        let refused = match self.window.place(request) {
            Some((request, length)) if self.ticket.is_none() => {
                match self.driver.try_borrow_mut() {
                    Ok(mut driver) => driver.begin_for_guest(request, buffer, length).err(),
                    Err(_) => Some(buffer),
                }
            }
            _ => Some(buffer),
        };
        match refused {
            None => self.ticket = Some(ticket),
            Some(buffer) => put(BlockDone {
                ticket,
                is_ok: false,
                buffer: Some(buffer),
            }),
        }
        true
    }
}
