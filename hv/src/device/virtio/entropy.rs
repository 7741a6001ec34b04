//! The guest's source of random numbers (Virtual I/O Device 1.2, 5.4).

use super::queue::QueueError;
use super::{Access, Backend};

/// Bytes given for one request; the driver asks again if it wants more.
const GIVEN_MAX: usize = 256;
/// Requests served by one call.
const BUDGET: usize = 8;

/// The entropy source.
#[derive(Debug, Default)]
pub struct Entropy {
    backlog: bool,
}

impl Backend for Entropy {
    const NAME: &'static str = "entropy source";
    const DEVICE_ID: u32 = 4;
    const QUEUES: &'static [u16] = &[8];

    fn config(&self, _offset: u64) -> u8 {
        0
    }

    fn reset(&mut self) {
        self.backlog = false;
    }

    fn notified(&mut self, _index: usize, access: &mut Access<'_>) -> Result<(), QueueError> {
        self.service(access)
    }

    fn service(&mut self, access: &mut Access<'_>) -> Result<(), QueueError> {
        self.backlog = false;
        let Some(queue) = access.queues.get_mut(0) else {
            return Ok(());
        };
        let mut budget = BUDGET;
        loop {
            while budget > 0 && queue.pop(access.mem, access.chain)? {
                budget -= 1;
                let mut bytes = [0; GIVEN_MAX];
                let wanted = access.chain.writable_length().min(GIVEN_MAX as u64) as usize;
                let bytes = bytes.get_mut(..wanted).unwrap_or_default();
                access.host.entropy(bytes);
                let written = access.chain.write(access.mem, 0, bytes)?;
                queue.push(access.mem, access.chain, written)?;
            }
            if budget == 0 {
                self.backlog = queue.has_available(access.mem)?;
            }
            if self.backlog || !queue.request_notification(access.mem)? {
                break;
            }
        }
        access.signal(0)
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
    fn requests_are_filled() {
        let host = TestHost::default();
        let mut driver = Driver::new(Entropy::default(), &host);
        let buffer = driver.offer(0, 32);
        assert_eq!(driver.take_used(0), [32]);
        assert_ne!(driver.bytes(buffer, 32), [0; 32]);
        driver.offer(0, 1000);
        assert_eq!(driver.take_used(0), [256]);
    }
}
