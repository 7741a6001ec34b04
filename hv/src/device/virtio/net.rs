//! The guest's network interface (Virtual I/O Device 1.2, 5.1): one queue each way, frames as they are on the wire.
//!
//! No offloads: a frame that the guest sends is complete, and so is one that it gets.
//!
//! Each notification is an exit. A driver that notifies often is not asked for more of them for a while: what it sends is [collected](Collector).

use alloc::boxed::Box;

use super::queue::QueueError;
use super::{Access, Backend};

/// VIRTIO_NET_F_MTU, VIRTIO_NET_F_MAC and VIRTIO_NET_F_STATUS.
const FEATURE_MTU: u64 = 1 << 3;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_STATUS: u64 = 1 << 16;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// `struct virtio_net_hdr_v1`: all zeros but the number of buffers.
const HEADER: usize = 12;
const ONE_BUFFER: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Largest frame: Ethernet with one VLAN tag, without FCS.
pub const FRAME_MAX: usize = 1518;
const MTU: u16 = 1500;

/// Buffers that one call moves frames from or to, in each direction: the chain that goes beyond is the last. The rest waits for the next call. Linux has one
/// or two buffers for a frame.
const BUDGET: usize = 512;

/// When frames to send are collected: taken when some time has passed, with no notification of each. What is notified of at longer distances, as the answers to
/// one client's questions are, waits for nothing.
#[derive(Debug)]
struct Collector {
    /// For so long, and only where notifications are closer together.
    time_ns: u64,
    /// When the driver notified last.
    notified_ns: Option<u64>,
    /// Until when frames are collected; none while each is notified of.
    until_ns: Option<u64>,
    /// Some have come since that was set.
    has_some: bool,
}

impl Collector {
    fn new(time_ns: u64) -> Self {
        Self {
            time_ns,
            notified_ns: None,
            until_ns: None,
            has_some: false,
        }
    }

    /// The driver has notified of frames. True if those that follow are collected from now on.
    fn notified(&mut self, now_ns: u64) -> bool {
        let last = self.notified_ns.replace(now_ns);
        let is_close = last.is_some_and(|last| now_ns.saturating_sub(last) < self.time_ns);
        let begins = self.until_ns.is_none() && is_close;
        if begins {
            self.until_ns = Some(now_ns + self.time_ns);
        }
        begins
    }

    /// Whether more is collected, now that all there was has been taken. The time is extended for as long as that was good for something.
    fn goes_on(&mut self, now_ns: u64) -> bool {
        if self.until_ns.is_some_and(|until| until <= now_ns) {
            let extends = core::mem::take(&mut self.has_some);
            self.until_ns = extends.then_some(now_ns + self.time_ns);
        }
        self.until_ns.is_some()
    }
}

/// What has happened on the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Frames from the guest that the box took.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames from the guest that the box had no room for.
    pub sent_dropped: u64,
    /// Frames from the guest that were too short or too long.
    pub sent_malformed: u64,
    /// Frames to the guest.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames to the guest whose buffer was too small.
    pub received_dropped: u64,
}

/// The network interface.
#[derive(Debug)]
pub struct Net {
    mac: [u8; 6],
    frame: Box<[u8; HEADER + FRAME_MAX]>,
    backlog: bool,
    collector: Collector,
    counters: NetCounters,
}

impl Net {
    /// An interface with this address, which collects frames that come in quick succession for so many microseconds.
    pub fn new(mac: [u8; 6], collect_micros: u16) -> Self {
        Self {
            mac,
            frame: Box::new([0; HEADER + FRAME_MAX]),
            backlog: false,
            collector: Collector::new(u64::from(collect_micros) * 1_000),
            counters: NetCounters::default(),
        }
    }

    /// What has happened on it.
    pub fn counters(&self) -> NetCounters {
        self.counters
    }

    fn transmit(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        self.backlog = false;
        let Some(queue) = access.queues.get_mut(TRANSMIT) else {
            return Ok(());
        };
        let mut budget = BUDGET;
        loop {
            while budget > 0 && queue.pop(access.mem, access.chain)? {
                budget = budget.saturating_sub(access.chain.buffers());
                self.collector.has_some = true;
                let length = access.chain.read(access.mem, 0, &mut self.frame[..])?;
                let whole = length as u64 == access.chain.readable_length();
                match self.frame.get(HEADER..length) {
                    // At least the two addresses and the type.
                    Some(frame) if whole && frame.len() >= 14 => {
                        if access.host.net_transmit(frame) {
                            self.counters.sent += 1;
                            self.counters.sent_bytes += frame.len() as u64;
                        } else {
                            self.counters.sent_dropped += 1;
                        }
                    }
                    _ => self.counters.sent_malformed += 1,
                }
                queue.push(access.mem, access.chain, 0)?;
            }
            if budget == 0 {
                self.backlog = queue.has_available(access.mem)?;
            }
            if self.backlog {
                break;
            }
            if self.collector.goes_on(access.host.now_ns()) {
                queue.refuse_notifications(access.mem)?;
                break;
            }
            if !queue.request_notification(access.mem)? {
                break;
            }
        }
        access.signal(TRANSMIT)
    }

    fn receive(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        let Some(queue) = access.queues.get_mut(RECEIVE) else {
            return Ok(());
        };
        let mut budget = BUDGET;
        while budget > 0 {
            // Frames wait in the box's queue, so one is taken only when it has a place. Buffers that come back while there are others need no exit;
            // the first after the last one does.
            if !queue.has_available(access.mem)? && !queue.request_notification(access.mem)? {
                break;
            }
            let Some((header, frame)) = self.frame.split_at_mut_checked(HEADER) else {
                break;
            };
            let Some(length) = access.host.net_receive(frame) else {
                break;
            };
            header.copy_from_slice(&ONE_BUFFER);
            if !queue.pop(access.mem, access.chain)? {
                break;
            }
            budget = budget.saturating_sub(access.chain.buffers());
            let total = HEADER + length.min(FRAME_MAX);
            let mut written = 0;
            if access.chain.writable_length() >= total as u64 {
                if let Some(bytes) = self.frame.get(..total) {
                    written = access.chain.write(access.mem, 0, bytes)?;
                }
                self.counters.received += 1;
                self.counters.received_bytes += length as u64;
            } else {
                self.counters.received_dropped += 1;
            }
            queue.push(access.mem, access.chain, written)?;
        }
        access.signal(RECEIVE)
    }
}

impl Backend for Net {
    const NAME: &'static str = "network interface";
    const DEVICE_ID: u32 = 1;
    const QUEUES: &'static [u16] = &[256, 256];
    const FEATURES: u64 = FEATURE_MTU | FEATURE_MAC | FEATURE_STATUS;

    /// `struct virtio_net_config` (5.1.4): address, status (link up), number of queue pairs, MTU.
    fn config(&self, offset: u64) -> u8 {
        let [low, high] = MTU.to_le_bytes();
        let [a, b, c, d, e, f] = self.mac;
        let config = [a, b, c, d, e, f, 1, 0, 1, 0, low, high];
        usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset).copied())
            .unwrap_or(0)
    }

    fn reset(&mut self) {
        self.backlog = false;
        self.collector = Collector::new(self.collector.time_ns);
    }

    fn notified(&mut self, index: usize, access: &mut Access<'_>) -> Result<(), QueueError> {
        match index {
            RECEIVE => self.receive(access),
            TRANSMIT => {
                let begins = self.collector.notified(access.host.now_ns());
                self.transmit(access)?;
                // What was notified of says nothing about what comes without.
                self.collector.has_some &= !begins;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn service(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        if self.backlog || self.collector.until_ns.is_some() {
            self.transmit(access)?;
        }
        self.receive(access)
    }

    fn has_backlog(&self) -> bool {
        self.backlog
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.collector.until_ns
    }

    fn settle(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        self.collector.until_ns = None;
        self.transmit(access)
    }
}

#[cfg(test)]
mod tests;
