use super::*;
use crate::device::virtio::console::Console;
use crate::device::virtio::test_driver::{Driver, ENTRIES};
use crate::platform::test_host::TestHost;

const MEM: u64 = 4 << 20;

/// What the transmit queue makes of one chain.
fn outcome(prepare: impl FnOnce(&mut Driver<'_, Console>)) -> Result<(u64, u64), QueueError> {
    let host = TestHost::default();
    let mut driver = Driver::new(Console::default(), &host);
    prepare(&mut driver);
    let mut queue = Queue::new(8);
    queue.set_address(Ring::Descriptors, false, 0x1_0000);
    queue.set_address(Ring::Available, false, 0x1_1000);
    queue.set_address(Ring::Used, false, 0x1_2000);
    queue.enable(&driver.mem, true).unwrap();
    let mut chain = Chain::with_limit(8);
    assert!(queue.pop(&driver.mem, &mut chain)?);
    Ok((chain.readable_length(), chain.writable_length()))
}

#[test]
fn chains_are_copied_and_checked() {
    let result = outcome(|driver| {
        driver.describe(0, 0, 0x1000, 10, 1, 5);
        driver.describe(0, 5, 0x2000, 20, 3, 7);
        driver.describe(0, 7, MEM - 30, 30, 2, 0);
        driver.publish(0, 0);
    });
    assert_eq!(result, Ok((10, 50)));
}

#[test]
fn every_lie_has_its_error() {
    let claim = |address, length| OutOfGuest(GuestPtr { address, length });
    let one = |address, length, flags, next| {
        outcome(|driver| {
            driver.describe(0, 0, address, length, flags, next);
            driver.publish(0, 0);
        })
    };
    assert_eq!(one(MEM - 1, 2, 0, 0), Err(claim(MEM - 1, 2).into()));
    assert_eq!(one(u64::MAX, 2, 0, 0), Err(claim(u64::MAX, 2).into()));
    assert_eq!(one(0, 10, 1, 0), Err(QueueError::Loop));
    assert_eq!(one(0, 10, 1, 8), Err(QueueError::Index(8)));
    assert_eq!(one(0, 16, 4, 0), Err(QueueError::Indirect));
    assert_eq!(one(0, (1 << 20) + 1, 0, 0), Err(QueueError::TooLong));
    assert_eq!(one(0, u32::MAX, 2, 0), Err(QueueError::TooLong));
    assert_eq!(
        outcome(|driver| driver.publish(0, 0xFFFF)),
        Err(QueueError::Index(0xFFFF))
    );
    assert_eq!(
        outcome(|driver| driver.set_available_index(0, ENTRIES + 1)),
        Err(QueueError::Overrun {
            available: ENTRIES + 1,
            next: 0
        })
    );
    let order = outcome(|driver| {
        driver.describe(0, 0, 0, 10, 3, 1);
        driver.describe(0, 1, 0, 10, 0, 0);
        driver.publish(0, 0);
    });
    assert_eq!(order, Err(QueueError::Order));
}

#[test]
fn bytes_move_across_buffers() {
    let mem = GuestMemory::allocate(2 << 20).unwrap();
    mem.write(0x100, b"abcdef").unwrap();
    mem.write(0x200, b"ghi").unwrap();
    let buffers = |list: &[(u64, u64)]| {
        list.iter()
            .map(|&(address, length)| GuestPtr { address, length })
            .collect()
    };
    let chain = Chain {
        head: 0,
        readable: buffers(&[(0x100, 6), (0x999, 0), (0x200, 3)]),
        writable: buffers(&[(0x300, 2), (0x400, 3)]),
    };
    let mut out = [0; 4];
    assert_eq!(chain.read(&mem, 4, &mut out), Ok(4));
    assert_eq!(&out, b"efgh");
    assert_eq!(chain.read(&mem, 8, &mut out), Ok(1));
    assert_eq!(chain.read(&mem, 9, &mut out), Ok(0));
    assert_eq!(chain.write(&mem, 1, b"12345678"), Ok(4));
    assert_eq!(mem.read_u16(0x300), Ok(u16::from_le_bytes([0, b'1'])));
    assert_eq!(mem.read_u32(0x400), Ok(u32::from_le_bytes(*b"234\0")));
}

#[test]
fn crossing_is_counted_around_the_end() {
    assert!(is_crossed(5, 6, 5));
    assert!(!is_crossed(5, 5, 4));
    assert!(is_crossed(0xFFFF, 1, 0xFFFE));
    assert!(!is_crossed(3, 1, 0xFFFE));
}
