//! Network ports: virtio-net, polled by CPU 0, with an interrupt that ends its sleep.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use outpost::fifo::FrameFifo;
use serde::Serialize;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::pci::virtio_device_type;
use virtio_drivers::transport::{DeviceType, Transport};

use super::pci::{Function, Pci};
use super::virtio::{BoxHal, BoxTransport, Doorbell};
use crate::machine::interrupts;

const QUEUE: usize = 256;
/// Frames that wait beside the device's own queue: about what one pass of the engine may emit.
const BACKLOG: usize = 1024;
/// Header and frame.
const BUFFER_BYTES: usize = 2048;
const RECEIVE_QUEUE: u16 = 0;
/// virtio 1.2, 5.1.3: the device tells whether the link is up.
const FEATURE_STATUS: u64 = 1 << 16;
/// Offset of `status` in the device's configuration, and its bit for "link up".
const STATUS: u64 = 6;
const LINK_UP: u16 = 1;

type Buffer = Box<[u8; BUFFER_BYTES]>;

/// What went through a port, and what did not, by reason.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Frames received.
    pub received: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Frames sent.
    pub sent: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Frames not sent because the port had no room.
    pub full: u64,
    /// Frames not sent because they are longer than the port takes.
    pub too_long: u64,
    /// Times the device broke the rules of its queues.
    pub broken: u64,
}

/// A port. What is large is boxed, because values on the stack get copied.
pub struct Nic {
    driver: Box<VirtIONetRaw<BoxHal, BoxTransport, QUEUE>>,
    doorbell: &'static Doorbell,
    /// Address of the link status; zero if the device has none.
    status: u64,
    interrupts: bool,
    receive: Vec<Buffer>,
    /// Which buffer a receive token stands for.
    receive_of: Vec<u16>,
    send: Vec<Buffer>,
    /// Send buffers that are free.
    send_free: Vec<u16>,
    /// Which buffer a send token stands for, and its length.
    send_of: Vec<(u16, u16)>,
    /// Frames for which the device had no room yet.
    backlog: FrameFifo<()>,
    header_bytes: usize,
    /// What went through it.
    pub counters: Counters,
}

/// A network device that was found but does not work, and why.
pub type Failed = String;

/// Starts every network port there is, in PCI order.
pub fn find_all(pci: &Pci, functions: &[Function]) -> Vec<Result<Nic, Failed>> {
    const CLASS_NETWORK: u8 = 0x02;
    functions
        .iter()
        .filter_map(|function| {
            if virtio_device_type(&function.info) == Some(DeviceType::Network) {
                return Some(Nic::start(pci, function));
            }
            (function.info.class == CLASS_NETWORK).then(|| {
                Err(format!(
                    "the network port at PCI {} ({:04x}:{:04x}) has no driver: this version drives virtio-net only",
                    function.place, function.info.vendor_id, function.info.device_id
                ))
            })
        })
        .collect()
}

impl Nic {
    fn start(pci: &Pci, function: &Function) -> Result<Nic, Failed> {
        let place = function.place;
        let failed = |why: &dyn core::fmt::Display| {
            format!("the network port at PCI {place} does not start: {why}")
        };
        pci.enable(place);
        let interrupts = pci.enable_msix(place, interrupts::DEVICE);
        let queue = interrupts.then_some(RECEIVE_QUEUE);
        let mut transport = BoxTransport::new(pci, place, DeviceType::Network, queue)
            .map_err(|why| failed(&why))?;
        let doorbell = transport.doorbell();
        let features = transport.read_device_features();
        let status = if features & FEATURE_STATUS != 0 {
            transport.configuration(STATUS, 2).unwrap_or(0)
        } else {
            0
        };
        let driver = Box::new(VirtIONetRaw::new(transport).map_err(|why| failed(&why))?);
        let buffers =
            || -> Vec<Buffer> { (0..QUEUE).map(|_| Box::new([0; BUFFER_BYTES])).collect() };
        let mut nic = Nic {
            driver,
            doorbell,
            status,
            interrupts,
            receive: buffers(),
            receive_of: alloc::vec![0; QUEUE],
            send: buffers(),
            send_free: (0..QUEUE as u16).collect(),
            send_of: alloc::vec![(0, 0); QUEUE],
            backlog: FrameFifo::new(BACKLOG, ()),
            header_bytes: 0,
            counters: Counters::default(),
        };
        for index in 0..QUEUE as u16 {
            nic.offer(index);
        }
        for buffer in &mut nic.send {
            nic.header_bytes = nic
                .driver
                .fill_buffer_header(buffer.as_mut_slice())
                .map_err(|why| failed(&why))?;
        }
        nic.doorbell.ring();
        Ok(nic)
    }

    /// Gives receive buffer `index` to the device.
    fn offer(&mut self, index: u16) {
        let Some(buffer) = self.receive.get_mut(usize::from(index)) else {
            return;
        };
        // SAFETY: the buffer is not touched until the device gives it back: `receive` finds it by its token only.
        match unsafe { self.driver.receive_begin(buffer.as_mut_slice()) } {
            Ok(token) => {
                if let Some(slot) = self.receive_of.get_mut(usize::from(token)) {
                    *slot = index;
                }
            }
            Err(_) => self.counters.broken += 1,
        }
    }

    /// The port's MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.driver.mac_address()
    }

    /// True if the port interrupts when a frame comes.
    pub fn interrupts(&self) -> bool {
        self.interrupts
    }

    /// True if the link is up, as far as the device tells.
    pub fn link_up(&self) -> bool {
        // SAFETY: the device's configuration was mapped by its transport and has a status field.
        self.status == 0 || unsafe { (self.status as *const u16).read_volatile() } & LINK_UP != 0
    }

    /// True if a frame waits.
    pub fn has_received(&self) -> bool {
        self.driver.poll_receive().is_some()
    }

    /// Hands up to `limit` received frames to `take`. Returns how many there were.
    pub fn receive(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        for count in 0..limit {
            let Some(token) = self.driver.poll_receive() else {
                return count;
            };
            let Some(&index) = self.receive_of.get(usize::from(token)) else {
                self.counters.broken += 1;
                return count;
            };
            let Some(buffer) = self.receive.get_mut(usize::from(index)) else {
                return count;
            };
            // SAFETY: this is the buffer that was given to the device with this token.
            match unsafe { self.driver.receive_complete(token, buffer.as_mut_slice()) } {
                Ok((header, length)) => {
                    let frame = buffer.get(header..header + length).unwrap_or_default();
                    self.counters.received += 1;
                    self.counters.received_bytes += frame.len() as u64;
                    take(frame);
                }
                Err(_) => {
                    self.counters.broken += 1;
                    return count;
                }
            }
            self.offer(index);
        }
        limit
    }

    /// Takes back the buffers of frames that are out.
    fn reap(&mut self) {
        while let Some(token) = self.driver.poll_transmit() {
            let Some(&(index, length)) = self.send_of.get(usize::from(token)) else {
                self.counters.broken += 1;
                return;
            };
            let Some(sent) = self
                .send
                .get(usize::from(index))
                .and_then(|buffer| buffer.get(..usize::from(length)))
            else {
                return;
            };
            // SAFETY: these are the bytes that were given to the device with this token.
            if unsafe { self.driver.transmit_complete(token, sent) }.is_err() {
                self.counters.broken += 1;
                return;
            }
            self.send_free.push(index);
        }
    }

    /// Queues a frame; [`Nic::flush`] sends it. A frame for which there is no room is lost and counted.
    pub fn send(&mut self, frame: &[u8]) {
        if self.header_bytes + frame.len() > BUFFER_BYTES {
            self.counters.too_long += 1;
            return;
        }
        let queued = self.backlog.is_empty() && self.give(frame);
        if !queued && !self.backlog.push((), frame) {
            self.counters.full += 1;
        }
    }

    /// Gives a frame to the device. False if it has no room.
    fn give(&mut self, frame: &[u8]) -> bool {
        if self.send_free.is_empty() {
            self.reap();
        }
        let Some(index) = self.send_free.pop() else {
            return false;
        };
        let length = self.header_bytes + frame.len();
        let Some(bytes) = self
            .send
            .get_mut(usize::from(index))
            .and_then(|buffer| buffer.get_mut(..length))
        else {
            return false;
        };
        if let Some(room) = bytes.get_mut(self.header_bytes..) {
            room.copy_from_slice(frame);
        }
        // SAFETY: the buffer is not touched until the device gives it back: it leaves `send_free` until `reap`.
        match unsafe { self.driver.transmit_begin(bytes) } {
            Ok(token) => {
                if let Some(slot) = self.send_of.get_mut(usize::from(token)) {
                    *slot = (index, length as u16);
                }
                self.counters.sent += 1;
                self.counters.sent_bytes += frame.len() as u64;
                true
            }
            Err(_) => {
                self.send_free.push(index);
                false
            }
        }
    }

    /// Sends what is queued, as far as the device has room, and tells the device what is new in its queues. True if frames
    /// wait for room.
    pub fn flush(&mut self) -> bool {
        let mut backlog = core::mem::replace(&mut self.backlog, FrameFifo::none());
        while backlog.pop_if(|(), frame| self.give(frame)) {}
        self.backlog = backlog;
        self.doorbell.ring();
        if self.send_free.len() < QUEUE / 2 {
            self.reap();
        }
        !self.backlog.is_empty()
    }

    /// Counters for the telemetry.
    pub fn report(&self) -> Report {
        let counters = &self.counters;
        Report {
            link_up: self.link_up(),
            rx_frames: counters.received,
            rx_bytes: counters.received_bytes,
            tx_frames: counters.sent,
            tx_bytes: counters.sent_bytes,
            tx_dropped_full: counters.full,
            tx_dropped_too_long: counters.too_long,
            device_errors: counters.broken,
        }
    }
}

/// What a port shows of itself.
#[derive(Serialize)]
pub struct Report {
    link_up: bool,
    rx_frames: u64,
    rx_bytes: u64,
    tx_frames: u64,
    tx_bytes: u64,
    tx_dropped_full: u64,
    tx_dropped_too_long: u64,
    device_errors: u64,
}
