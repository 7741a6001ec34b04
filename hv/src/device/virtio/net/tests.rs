use alloc::vec::Vec;

use super::*;
use crate::device::virtio::test_driver::{Driver, ENTRIES};
use crate::platform::test_host::TestHost;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn driver(host: &TestHost) -> Driver<'_, Net> {
    Driver::new(Net::new(MAC, 100), host)
}

#[test]
fn frames_leave_whole() {
    let host = TestHost::default();
    let mut driver = driver(&host);
    let frame: Vec<u8> = (0..200).collect();
    driver.send(1, &[&[0; 12], &frame]);
    let mut joined = alloc::vec![0; 12];
    joined.extend_from_slice(&frame);
    driver.send(1, &[&joined]);
    driver.send(1, &[&joined[..5], &joined[5..50], &joined[50..]]);
    assert_eq!(host.take_sent(), [frame.clone(), frame.clone(), frame]);
    assert_eq!(driver.take_used(1), [0, 0, 0]);
    assert_eq!(driver.device.backend().counters().sent_bytes, 600);
}

#[test]
fn frames_of_no_use_are_counted() {
    let host = TestHost::default();
    let mut driver = driver(&host);
    driver.send(1, &[&[0; 12 + 13]]);
    driver.send(1, &[&[0; 12 + 1519]]);
    driver.send(1, &[&[0; 3]]);
    driver.send(1, &[&[0; 12 + 1518]]);
    host.set_full(true);
    driver.send(1, &[&[0; 12 + 60]]);
    assert_eq!(host.take_sent().len(), 1);
    let counters = driver.device.backend().counters();
    assert_eq!(
        (
            counters.sent,
            counters.sent_malformed,
            counters.sent_dropped
        ),
        (1, 3, 1)
    );
    assert_eq!(driver.take_used(1).len(), 5, "all come back");
    assert!(driver.device.is_running());
}

#[test]
fn frames_arrive_with_their_header() {
    let host = TestHost::default();
    let mut driver = driver(&host);
    let first = driver.offer(0, 1530);
    assert!(driver.take_used(0).is_empty());
    let frame: Vec<u8> = (0..100).collect();
    host.arrive(&frame);
    driver.service();
    assert_eq!(driver.take_used(0), [112]);
    assert!(driver.device.interrupt());
    let bytes = driver.bytes(first, 112);
    assert_eq!(bytes[..12], ONE_BUFFER);
    assert_eq!(bytes[12..], frame);
}

#[test]
fn frames_wait_for_buffers() {
    let host = TestHost::default();
    let mut driver = driver(&host);
    for _ in 0..3 {
        host.arrive(&[7; 60]);
    }
    driver.service();
    assert_eq!(driver.available_event(0), 0, "asks for the first buffer");
    driver.offer(0, 1530);
    assert_eq!(driver.take_used(0), [72]);
    assert_eq!(driver.available_event(0), 1);
    driver.offer(0, 20);
    assert_eq!(driver.take_used(0), [0], "too small: given back empty");
    driver.offer(0, 1530);
    assert_eq!(driver.take_used(0), [72]);
    let counters = driver.device.backend().counters();
    assert_eq!((counters.received, counters.received_dropped), (2, 1));
}

/// Frames that are made available without a notification.
fn put(driver: &mut Driver<'_, Net>, frames: u16) {
    for index in 0..frames {
        driver.describe(1, index, 0x10_0000, 72, 0, 0);
        driver.publish(1, index);
    }
}

#[test]
fn frames_in_quick_succession_are_collected_for_as_long_as_they_come() {
    let host = TestHost::default();
    let mut driver = driver(&host);
    let at = |driver: &mut Driver<'_, Net>, micros: u64, frames: u16, notifies: bool| {
        host.set_now(micros * 1_000);
        put(driver, frames);
        if notifies {
            driver.notify(1);
        } else {
            driver.service();
        }
        let due = driver.device.deadline_ns().map(|due| due / 1_000);
        (host.take_sent().len(), due, driver.available_event(1))
    };
    assert_eq!(at(&mut driver, 1_000, 1, true), (1, None, 1));
    assert_eq!(at(&mut driver, 1_100, 1, true), (1, None, 2), "not close");
    // Taken at once, but the index that would be notified of is not the next.
    assert_eq!(at(&mut driver, 1_199, 1, true), (1, Some(1_299), 2));
    assert_eq!(at(&mut driver, 1_230, 2, false), (2, Some(1_299), 2));
    assert_eq!(at(&mut driver, 1_299, 0, false), (0, Some(1_399), 2));
    assert_eq!(at(&mut driver, 1_399, 3, false), (3, Some(1_499), 2));
    // A driver may notify all the same.
    assert_eq!(at(&mut driver, 1_450, 1, true), (1, Some(1_499), 2));
    assert_eq!(at(&mut driver, 1_500, 0, false), (0, Some(1_600), 2));
    // Nothing has come: from now on the next is notified of.
    assert_eq!(at(&mut driver, 1_600, 0, false), (0, None, 9));
    assert_eq!(at(&mut driver, 1_601, 1, true), (1, None, 10));
    assert_eq!(driver.take_used(1).len(), 10);
}

#[test]
fn who_leaves_takes_what_was_collected_and_is_notified_again() {
    let host = TestHost::default();
    let mut driver = driver(&host);
    put(&mut driver, 1);
    driver.notify(1);
    driver.notify(1);
    assert!(driver.device.deadline_ns().is_some());
    put(&mut driver, 1);
    driver.device.settle(&driver.mem, &host);
    assert_eq!(host.take_sent().len(), 2);
    assert_eq!(
        (driver.device.deadline_ns(), driver.available_event(1)),
        (None, 2)
    );
    // Frames that wait when the driver resets its device have been sent.
    driver.notify(1);
    put(&mut driver, 1);
    driver.set(0x70, 0);
    assert_eq!(host.take_sent().len(), 1);
    assert_eq!(driver.device.deadline_ns(), None);
}

/// A driver without event indices is told by a flag (Virtual I/O Device 1.2, 2.7.8).
#[test]
fn while_frames_are_collected_a_flag_says_so() {
    let host = TestHost::default();
    let mut driver = Driver::with_features(Net::new(MAC, 100), &host, 0);
    let flag = |driver: &Driver<'_, Net>| driver.used_flags(1);
    put(&mut driver, 1);
    driver.notify(1);
    assert_eq!(flag(&driver), 0);
    driver.notify(1);
    assert_eq!(flag(&driver), 1);
    for micros in [100, 200] {
        host.set_now(micros * 1_000);
        driver.service();
    }
    assert_eq!((driver.device.deadline_ns(), flag(&driver)), (None, 0));
}

#[test]
fn a_flood_is_worked_off_in_portions() {
    let host = TestHost::default();
    let mut driver = driver(&host);
    for index in 0..ENTRIES {
        driver.describe(1, index, 0x10_0000, 72, 0, 0);
        driver.publish(1, index);
    }
    driver.notify(1);
    assert_eq!(host.take_sent().len(), usize::from(ENTRIES));
    assert!(!driver.device.has_backlog());
}

/// The device, with 256 chains in one of its queues, each of 256 buffers of a byte.
fn driver_with_long_chains(host: &TestHost, queue: u32, flags: u16) -> Driver<'_, Net> {
    const LINKED: u16 = 1;
    let mut driver = driver(host);
    driver.negotiate(crate::device::virtio::feature::VERSION_1);
    driver.set_up_queue(queue, u32::from(LONG));
    driver.set(0x70, 1 | 2 | 8 | 4);
    for index in 0..LONG {
        let linked = if index + 1 < LONG { LINKED } else { 0 };
        driver.describe(queue, index, 0x10_0000, 1, flags | linked, index + 1);
    }
    // Every entry of the ring says 0, the head of all.
    driver.set_available_index(queue, LONG);
    driver
}

const LONG: u16 = 256;

/// A chain of 256 buffers costs what 256 chains of one do. (Each chain here is a frame.)
#[test]
fn one_call_takes_so_many_buffers_and_no_more_in_however_few_chains() {
    let host = TestHost::default();
    let mut driver = driver_with_long_chains(&host, 1, 0);
    driver.notify(1);
    let taken = |driver: &Driver<'_, Net>| driver.device.backend().counters().sent;
    assert_eq!(taken(&driver), 2);
    for calls in 2..=u64::from(LONG) / 2 {
        assert!(driver.device.has_backlog());
        driver.service();
        assert_eq!(taken(&driver), 2 * calls);
    }
    driver.service();
    assert_eq!(taken(&driver), u64::from(LONG));
    assert!(!driver.device.has_backlog() && driver.device.is_running());
}

#[test]
fn one_call_fills_so_many_buffers_and_no_more() {
    const WRITABLE: u16 = 2;
    let host = TestHost::default();
    let mut driver = driver_with_long_chains(&host, 0, WRITABLE);
    for _ in 0..5 {
        host.arrive(&[7; 60]);
    }
    for received in [2, 4, 5, 5] {
        driver.service();
        assert_eq!(driver.device.backend().counters().received, received);
    }
}
