//! The guest's paravirtual console, `hvc0` in Linux (Virtual I/O Device 1.2, 5.3): one port, one queue each way.
//!
//! A line costs one exit, where the serial port takes one for each byte.

use super::queue::QueueError;
use super::{Access, Backend};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Most output of one chain, in bytes.
const CHAIN_MAX: u64 = 64 << 10;
/// Buffers, or KiB, of output that one call takes: the chain that goes beyond is the last. The rest waits for the next call.
const BUDGET: usize = 64;
/// Input given at once, in bytes.
const INPUT_MAX: usize = 64;

/// The console.
#[derive(Debug, Default)]
pub struct Console {
    backlog: bool,
    bytes_written: u64,
    /// The guest's input comes through here, and not through the serial port.
    takes_input: bool,
}

impl Console {
    /// How many bytes the guest has written.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written
    }

    /// Says whether what is typed is for this console.
    pub fn set_takes_input(&mut self, takes_input: bool) {
        self.takes_input = takes_input;
    }

    fn transmit(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        self.backlog = false;
        let Some(queue) = access.queues.get_mut(TRANSMIT) else {
            return Ok(());
        };
        let mut budget = BUDGET;
        loop {
            while budget > 0 && queue.pop(access.mem, access.chain)? {
                let length = access.chain.readable_length();
                let cost = access.chain.buffers().max((length >> 10) as usize);
                budget = budget.saturating_sub(cost);
                if length > CHAIN_MAX {
                    return Err(QueueError::Form(
                        "more than 64 KiB of console output at once",
                    ));
                }
                let mut bytes = [0; 512];
                let mut offset = 0;
                loop {
                    let length = access.chain.read(access.mem, offset, &mut bytes)?;
                    match bytes.get(..length) {
                        Some(bytes) if !bytes.is_empty() => access.host.console_write(bytes),
                        _ => break,
                    }
                    offset += length as u64;
                }
                self.bytes_written = self.bytes_written.wrapping_add(offset);
                queue.push(access.mem, access.chain, 0)?;
            }
            if budget == 0 {
                self.backlog = queue.has_available(access.mem)?;
            }
            if self.backlog || !queue.request_notification(access.mem)? {
                break;
            }
        }
        access.signal(TRANSMIT)
    }

    fn receive(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        let Some(queue) = access.queues.get_mut(RECEIVE) else {
            return Ok(());
        };
        if !self.takes_input
            || (!queue.has_available(access.mem)? && !queue.request_notification(access.mem)?)
        {
            return Ok(());
        }
        let Some(first) = access.host.console_read() else {
            return Ok(());
        };
        if !queue.pop(access.mem, access.chain)? {
            return Ok(());
        }
        let mut bytes = [0; INPUT_MAX];
        bytes[0] = first;
        let room = access.chain.writable_length();
        let mut length = 1;
        while (length as u64) < room
            && let Some(slot) = bytes.get_mut(length)
            && let Some(byte) = access.host.console_read()
        {
            *slot = byte;
            length += 1;
        }
        let written = access
            .chain
            .write(access.mem, 0, bytes.get(..length).unwrap_or_default())?;
        queue.push(access.mem, access.chain, written)?;
        access.signal(RECEIVE)
    }
}

impl Backend for Console {
    const NAME: &'static str = "console";
    const DEVICE_ID: u32 = 3;
    const QUEUES: &'static [u16] = &[64, 64];

    fn config(&self, _offset: u64) -> u8 {
        0
    }

    fn reset(&mut self) {
        self.backlog = false;
    }

    fn notified(&mut self, index: usize, access: &mut Access<'_>) -> Result<(), QueueError> {
        match index {
            RECEIVE => self.receive(access),
            TRANSMIT => self.transmit(access),
            _ => Ok(()),
        }
    }

    fn service(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        if self.backlog {
            self.transmit(access)?;
        }
        self.receive(access)
    }

    fn has_backlog(&self) -> bool {
        self.backlog
    }
}

#[cfg(test)]
mod tests {
    use crate::device::virtio::test_driver::Driver;
    use crate::platform::test_host::TestHost;

    use super::*;

    #[test]
    fn output_reaches_the_host() {
        let host = TestHost::default();
        let mut driver = Driver::new(Console::default(), &host);
        driver.send(1, &[b"hello ", b"world\n"]);
        assert_eq!(host.take_console(), b"hello world\n");
        assert_eq!(driver.take_used(1), [0]);
        assert_eq!(driver.device.backend().bytes_written(), 12);
        let long = [b'x'; 1500];
        driver.send(1, &[&long]);
        assert_eq!(host.take_console(), long);
    }

    #[test]
    fn input_comes_when_it_is_wanted() {
        let host = TestHost::default();
        host.type_in(b"ls\n");
        let mut driver = Driver::new(Console::default(), &host);
        let buffer = driver.offer(0, 16);
        assert!(driver.take_used(0).is_empty());
        driver.device.backend_mut().set_takes_input(true);
        driver.service();
        assert_eq!(driver.take_used(0), [3]);
        assert_eq!(driver.bytes(buffer, 3), b"ls\n");
        host.type_in(b"abcdef");
        let small = driver.offer(0, 4);
        assert_eq!(driver.take_used(0), [4]);
        assert_eq!(driver.bytes(small, 4), b"abcd");
        driver.service();
        driver.offer(0, 4);
        assert_eq!(driver.take_used(0), [2]);
    }

    #[test]
    fn one_call_takes_so_much_and_no_more() {
        let host = TestHost::default();
        let mut driver = Driver::new(Console::default(), &host);
        driver.describe(1, 0, 0x10_0000, 64 << 10, 0, 0);
        for _ in 0..3 {
            driver.publish(1, 0);
        }
        driver.notify(1);
        for left in [true, true, false] {
            assert_eq!(host.take_console().len(), 64 << 10);
            assert_eq!(driver.device.has_backlog(), left);
            driver.service();
        }
        assert!(host.take_console().is_empty());
    }

    #[test]
    fn too_much_at_once_stops_it() {
        let host = TestHost::default();
        let mut driver = Driver::new(Console::default(), &host);
        driver.send_at(1, 0x1000, 70_000);
        assert!(!driver.device.is_running());
        assert_eq!(driver.device.counters().stopped, 1);
        assert!(driver.device.interrupt());
    }
}
