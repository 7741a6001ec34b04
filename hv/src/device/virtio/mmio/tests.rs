use proptest::prelude::*;

use super::*;
use crate::device::virtio::console::Console;
use crate::device::virtio::net::Net;
use crate::device::virtio::test_driver::{Driver, ENTRIES};
use crate::platform::test_host::TestHost;

#[test]
fn a_driver_recognises_the_device() {
    let device = MmioDevice::new(Net::new([2, 0, 0, 0, 0, 7], 100));
    assert_eq!(device.read(0, 4), 0x7472_6976);
    assert_eq!(device.read(4, 4), 2);
    assert_eq!(device.read(8, 4), 1);
    assert_eq!(device.read(0x34, 4), 256);
    assert_eq!(device.read(0x100, 4), 0x0000_0002);
    assert_eq!(device.read(0x105, 1), 7);
    assert_eq!(device.read(0x10A, 2), 1500);
    assert_eq!(device.read(0x10C, 8), 0);
    assert_eq!(device.read(0xB0, 4), 0xFFFF_FFFF, "no shared memory");
    assert_eq!(device.read(0, 2), 0, "registers are 32 bits wide");
}

#[test]
fn negotiation_refuses_what_was_not_offered() {
    let host = TestHost::default();
    let mut driver = Driver::new(Console::default(), &host);
    driver.set(0x70, 0);
    assert_eq!(driver.get(0x70), 0);
    driver.set(0x70, 3);
    driver.set(0x24, 1);
    driver.set(0x20, 1);
    driver.set(0x24, 0);
    driver.set(0x20, 1 << 5);
    driver.set(0x70, 3 | 8);
    assert_eq!(driver.get(0x70), 3, "FEATURES_OK is not taken");
    driver.set(0x70, 3 | 8 | 4);
    assert!(!driver.device.is_running());
    driver.set(0x70, 0);
    driver.set(0x70, 3 | 8);
    assert_eq!(driver.get(0x70), 3, "a legacy driver");
    driver.negotiate(u64::MAX);
    assert_eq!(driver.get(0x70), 11);
    driver.set(0x24, 0);
    driver.set(0x20, 1 << 5);
    driver.set(0x70, 15);
    assert_eq!(driver.get(0x70), 15, "features are frozen");
}

#[test]
fn a_queue_in_the_wrong_place_stops_the_device() {
    for (register, value) in [
        (0x80, 8),
        (0x90, 1),
        (0xA0, 2),
        (0x84, 1),
        (0x38, 3),
        (0x38, 1024),
    ] {
        let host = TestHost::default();
        let mut driver = Driver::new(Console::default(), &host);
        driver.negotiate(u64::MAX);
        driver.set(0x30, 0);
        driver.set(0x38, 8);
        driver.set(register, value);
        driver.set(0x44, 1);
        assert_eq!(driver.get(0x70) & 0x40, 0x40, "register {register:#x}");
        assert_eq!(driver.get(0x60), 2);
        assert_eq!(driver.get(0x44), 0);
        driver.set(0x64, 2);
        assert!(!driver.device.interrupt());
        driver.set(0x70, 0);
        assert_eq!(driver.get(0x70), 0, "a reset heals it");
    }
}

#[test]
fn interrupts_come_when_the_driver_wants_them() {
    let host = TestHost::default();
    let mut driver = Driver::new(Console::default(), &host);
    driver.set_used_event(1, 1);
    driver.send(1, &[b"a"]);
    assert!(!driver.device.interrupt(), "only after the second");
    driver.send(1, &[b"b"]);
    assert!(driver.device.interrupt());
    assert_eq!(driver.get(0x60), 1);
    driver.set(0x64, 1);
    assert!(!driver.device.interrupt());
    driver.send(1, &[b"c"]);
    assert!(!driver.device.interrupt());
    assert_eq!(
        driver.available_event(1),
        3,
        "and the device wants the next one"
    );
    assert_eq!(driver.device.counters().notifications, 3);
    assert_eq!(driver.device.counters().interrupts, 1);
}

#[test]
fn without_event_indices_flags_decide() {
    let host = TestHost::default();
    let mut driver = Driver::with_features(Console::default(), &host, 0);
    driver.send(1, &[b"a"]);
    assert!(driver.device.interrupt());
    driver.set(0x64, 1);
    driver.mem.write_u16(0x2_1000, 1).unwrap();
    driver.send(1, &[b"b"]);
    assert!(!driver.device.interrupt());
}

#[test]
fn the_rings_wrap() {
    let host = TestHost::default();
    let mut driver = Driver::new(Console::default(), &host);
    for round in 0..5 * ENTRIES {
        driver.send(1, &[b"x"]);
        assert_eq!(driver.take_used(1), [0], "round {round}");
    }
    assert_eq!(host.take_console().len(), 5 * usize::from(ENTRIES));
}

proptest! {
    /// Whatever the driver does with the registers and whatever is in memory, the device answers and stays inside guest memory.
    #[test]
    fn any_driver_is_survived(
        ops in proptest::collection::vec((0_u8..8, any::<u8>(), any::<u32>()), 1..150),
        seed in any::<u64>(),
    ) {
        let host = TestHost::default();
        let mut driver = Driver::new(Net::new([2, 0, 0, 0, 0, 1], 100), &host);
        // Rings full of noise, with addresses that are often in memory.
        let mut state = seed | 1;
        let rings = (0x10_u64..0x23).map(|page| page << 12);
        for at in rings.flat_map(|ring| (ring..ring + 0x100).step_by(2)) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let value = (state >> 40) as u16 & if state >> 60 == 0 { 0xFFFF } else { 0x0007 };
            driver.mem.write_u16(at, value).unwrap();
        }
        for (op, offset, value) in ops {
            host.arrive(&[0; 60]);
            match op {
                0 => driver.set(u64::from(offset) & 0xFC, value),
                1 => driver.set(0x50, value & 3),
                2 => { let _ = driver.device.read(u64::from(value & 0x1FF), offset & 15); }
                3 => driver.service(),
                4 => driver.set_available_index(value & 1, (value >> 8) as u16 & 15),
                5 => {
                    driver.negotiate(u64::from(value) << 16 | u64::from(value));
                    driver.set_up_queue(0, 8);
                    driver.set_up_queue(1, 1 << (value & 15));
                    driver.set(0x70, 15);
                }
                6 => {
                    let queue = value & 1;
                    let address = u64::from(value) & 0x3F_FFFF;
                    let length = u32::from(offset) << (value >> 28);
                    let next = (value >> 4) as u16 & 15;
                    driver.describe(queue, offset as u16 & 7, address, length, (value >> 8) as u16 & 7, next);
                }
                _ => driver.publish(value & 1, (value >> 8) as u16 & 15),
            }
            if !driver.device.is_running() && value & 0x100 == 0 {
                driver.negotiate(u64::MAX);
                driver.set_up_queue(0, 8);
                driver.set_up_queue(1, 8);
                driver.set(0x70, 15);
            }
        }
    }
}
