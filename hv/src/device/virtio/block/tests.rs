use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::device::virtio::test_driver::{Driver, ENTRIES};
use crate::platform::test_host::{Fate, TestHost};

const SECTORS: u64 = 64;
const CONFIG: BlockConfig = BlockConfig {
    sectors: SECTORS,
    block_bytes: 4096,
};
const OK: u8 = Status::Ok as u8;
const IO_ERROR: u8 = Status::IoError as u8;
const UNSUPPORTED: u8 = Status::Unsupported as u8;
/// What is in the answer's place before there is one.
const UNANSWERED: u8 = 0xEE;

const HEADERS: u64 = 0x20_0000;
const DATA: u64 = 0x21_0000;

fn host() -> TestHost {
    let host = TestHost::default();
    host.disk().bytes = (0..SECTORS * SECTOR).map(|at| (at / 7) as u8).collect();
    host
}

fn driver(host: &TestHost, config: BlockConfig) -> Driver<'_, Block> {
    Driver::new(Block::new(config), host)
}

/// A request in descriptors 0 to 2; gives where its answer will be.
fn request(
    driver: &mut Driver<'_, Block>,
    kind: u32,
    sector: u64,
    data: u32,
    writable: bool,
) -> u64 {
    let header = u128::from(sector) << 64 | u128::from(kind);
    driver.mem.write(HEADERS, &header.to_le_bytes()).unwrap();
    let status = DATA + u64::from(data);
    driver.mem.write(status, &[UNANSWERED]).unwrap();
    driver.describe(0, 0, HEADERS, 16, 1, if data == 0 { 2 } else { 1 });
    driver.describe(0, 1, DATA, data, if writable { 3 } else { 1 }, 2);
    driver.describe(0, 2, status, 1, 2, 0);
    driver.publish(0, 0);
    driver.notify(0);
    status
}

fn status(driver: &Driver<'_, Block>, at: u64) -> u8 {
    driver.bytes(at, 1)[0]
}

#[test]
fn the_driver_is_told_what_there_is() {
    let host = host();
    let driver = driver(&host, CONFIG);
    let config = |offset: u64, width| driver.device.read(0x100 + offset, width);
    assert_eq!(config(0, 8), SECTORS);
    assert_eq!(config(8, 4), 4096, "size_max");
    assert_eq!(config(12, 4), 30, "seg_max");
    assert_eq!(config(20, 4), 4096, "blk_size");
    assert_eq!(config(24, 8), 0);
    assert_eq!(driver.get(0x08), 2);
}

#[test]
fn reads_and_writes_wait_for_the_disk() {
    let host = host();
    let mut driver = driver(&host, CONFIG);
    let at = request(&mut driver, kind::READ, 3, 1024, true);
    assert_eq!(
        (status(&driver, at), driver.device.interrupt()),
        (UNANSWERED, false)
    );
    assert_eq!(
        host.disk().work(Fate::Done),
        Some(BlockRequest::Read {
            sector: 3,
            bytes: 1024
        })
    );
    driver.service();
    assert_eq!(status(&driver, at), OK);
    assert!(driver.device.interrupt());
    assert_eq!(driver.take_used(0), [1025]);
    let expected = host.disk().bytes[3 * 512..5 * 512].to_vec();
    assert_eq!(driver.bytes(DATA, 1024), expected);

    let news: Vec<u8> = (0..512).map(|at| (at * 3) as u8).collect();
    driver.mem.write(DATA, &news).unwrap();
    let at = request(&mut driver, kind::WRITE, SECTORS - 1, 512, false);
    // What the guest does to its memory afterwards changes nothing.
    driver.mem.write(DATA, &[0; 512]).unwrap();
    host.disk().work(Fate::Done).unwrap();
    driver.service();
    assert_eq!(
        (status(&driver, at), driver.take_used(0)),
        (OK, alloc::vec![1])
    );
    assert_eq!(host.disk().bytes[(SECTORS as usize - 1) * 512..], news);
    let counters = driver.device.backend().counters();
    assert_eq!(
        (
            counters.reads,
            counters.read_bytes,
            counters.writes,
            counters.written_bytes
        ),
        (1, 1024, 1, 512)
    );
}

#[test]
fn a_flush_reaches_the_disk_and_its_failure_the_guest() {
    let host = host();
    let mut driver = driver(&host, CONFIG);
    let at = request(&mut driver, kind::FLUSH, 0, 0, false);
    assert_eq!(status(&driver, at), UNANSWERED);
    assert_eq!(host.disk().work(Fate::Done), Some(BlockRequest::Flush));
    driver.service();
    assert_eq!((status(&driver, at), host.disk().flushes), (OK, 1));
    let at = request(&mut driver, kind::FLUSH, 0, 0, false);
    host.disk().work(Fate::Failed).unwrap();
    driver.service();
    assert_eq!((status(&driver, at), host.disk().flushes), (IO_ERROR, 1));
    let counters = driver.device.backend().counters();
    assert_eq!((counters.flushes, counters.failed), (1, 1));
}

#[test]
fn it_has_a_name() {
    let host = host();
    let mut driver = driver(&host, CONFIG);
    let at = request(&mut driver, kind::GET_ID, 0, 20, true);
    assert_eq!(status(&driver, at), OK);
    assert_eq!(driver.bytes(DATA, 20), ID);
    let at = request(&mut driver, kind::GET_ID, 0, 4, true);
    assert_eq!(
        (status(&driver, at), driver.bytes(DATA, 4)),
        (OK, ID[..4].to_vec())
    );
}

#[test]
fn what_cannot_be_done_is_an_error_and_nothing_else() {
    let host = host();
    let mut driver = driver(&host, CONFIG);
    let before = host.disk().bytes.clone();
    let mut refused = 0;
    for (kind, sector, data, answer) in [
        (kind::READ, SECTORS, 512, IO_ERROR),
        (kind::READ, SECTORS - 1, 1024, IO_ERROR),
        (kind::READ, u64::MAX, 512, IO_ERROR),
        (kind::READ, u64::MAX - 1, 1024, IO_ERROR),
        (kind::READ, 0, 100, IO_ERROR),
        (kind::READ, 0, 513, IO_ERROR),
        (kind::READ, 0, 0, IO_ERROR),
        (kind::WRITE, SECTORS, 512, IO_ERROR),
        (kind::WRITE, u64::MAX, 512, IO_ERROR),
        (kind::WRITE, 0, 511, IO_ERROR),
        (kind::WRITE, 0, 0, IO_ERROR),
        (11, 0, 512, UNSUPPORTED),
        (u32::MAX, 0, 512, UNSUPPORTED),
    ] {
        let at = request(&mut driver, kind, sector, data, kind == kind::READ);
        assert_eq!(status(&driver, at), answer, "{kind} {sector} {data}");
        assert_eq!(host.disk().work(Fate::Done), None, "{kind} {sector} {data}");
        refused += 1;
        assert_eq!(driver.device.backend().counters().refused, refused);
    }
    assert_eq!(driver.take_used(0).len(), refused as usize);
    assert_eq!(host.disk().bytes, before);
    assert!(driver.device.is_running());
    // A read whose data are for the device to read, and a write whose data are for it to write, have no data.
    for kind in [kind::READ, kind::WRITE] {
        let at = request(&mut driver, kind, 0, 512, kind == kind::WRITE);
        assert_eq!(status(&driver, at), IO_ERROR);
    }
}

#[test]
fn more_than_one_request_may_move_is_refused() {
    let host = host();
    let config = BlockConfig {
        sectors: 1 << 20,
        ..CONFIG
    };
    let mut driver = driver(&host, config);
    let at = request(&mut driver, kind::READ, 0, REQUEST_MAX as u32 + 512, true);
    assert_eq!(status(&driver, at), IO_ERROR);
    let at = request(&mut driver, kind::WRITE, 0, REQUEST_MAX as u32 + 512, false);
    assert_eq!(status(&driver, at), IO_ERROR);
}

#[test]
fn chains_without_header_or_room_stop_the_device() {
    for (header, answer) in [(15, 1), (0, 1), (16, 0)] {
        let host = host();
        let mut driver = driver(&host, CONFIG);
        driver.mem.write(HEADERS, &[0; 16]).unwrap();
        driver.describe(0, 0, HEADERS, header, u16::from(answer > 0), 1);
        driver.describe(0, 1, DATA, answer, 2, 0);
        driver.publish(0, 0);
        driver.notify(0);
        assert!(!driver.device.is_running(), "{header} {answer}");
        assert_eq!(driver.device.counters().stopped, 1);
        assert_eq!(host.disk().work(Fate::Done), None);
    }
}

#[test]
fn requests_follow_each_other() {
    let host = host();
    let mut driver = driver(&host, CONFIG);
    // Three flushes, each its own chain of two.
    let header = u128::from(kind::FLUSH).to_le_bytes();
    driver.mem.write(HEADERS, &header).unwrap();
    for index in 0..3 {
        driver.describe(0, 2 * index, HEADERS, 16, 1, 2 * index + 1);
        driver.describe(0, 2 * index + 1, DATA + u64::from(index), 1, 2, 0);
        driver.publish(0, 2 * index);
    }
    driver.notify(0);
    for done in 1..=3 {
        assert_eq!(host.disk().work(Fate::Done), Some(BlockRequest::Flush));
        assert_eq!(host.disk().work(Fate::Done), None, "one at a time");
        driver.service();
        assert_eq!(driver.take_used(0).len(), 1);
        assert_eq!(host.disk().flushes, done);
    }
    assert_eq!(driver.available_event(0), 3, "the next one is told of");
}

#[test]
fn a_reset_leaves_the_request_to_the_disk_and_its_answer_to_nobody() {
    let host = host();
    let mut driver = driver(&host, CONFIG);
    let at = request(&mut driver, kind::READ, 0, 512, true);
    driver.set(0x70, 0);
    driver.negotiate(u64::MAX);
    driver.set_up_queue(0, u32::from(ENTRIES));
    driver.set_available_index(0, 0);
    driver.mem.write(DATA, &[0x55; 512]).unwrap();
    driver.set(0x70, 1 | 2 | 8 | 4);
    // The next request waits for the buffer.
    let next = request(&mut driver, kind::FLUSH, 0, 0, false);
    host.disk().work(Fate::Done).unwrap();
    driver.service();
    assert_eq!(driver.bytes(DATA, 512)[1..], [0x55; 511], "not written to");
    assert_eq!(
        (status(&driver, at), status(&driver, next)),
        (UNANSWERED, UNANSWERED)
    );
    assert_eq!(host.disk().work(Fate::Done), Some(BlockRequest::Flush));
    driver.service();
    assert_eq!(status(&driver, next), OK);
}

#[test]
fn a_host_that_is_busy_with_another_guests_request_is_asked_again() {
    let host = host();
    let mut driver = driver(&host, CONFIG);
    host.disk().is_busy = true;
    let at = request(&mut driver, kind::FLUSH, 0, 0, false);
    driver.service();
    assert_eq!(host.disk().work(Fate::Done), None);
    host.disk().is_busy = false;
    driver.service();
    host.disk().work(Fate::Done).unwrap();
    driver.service();
    assert_eq!(status(&driver, at), OK);
}

#[test]
fn while_the_disk_keeps_the_buffer_every_request_fails() {
    let host = host();
    let mut driver = driver(&host, CONFIG);
    let at = request(&mut driver, kind::READ, 0, 512, true);
    host.disk().work(Fate::Late).unwrap();
    driver.service();
    assert_eq!(status(&driver, at), IO_ERROR);
    let at = request(&mut driver, kind::FLUSH, 0, 0, false);
    assert_eq!(status(&driver, at), IO_ERROR);
    assert_eq!(driver.device.backend().counters().failed, 2);
    host.disk().give_back();
    driver.service();
    let at = request(&mut driver, kind::FLUSH, 0, 0, false);
    host.disk().work(Fate::Done).unwrap();
    driver.service();
    assert_eq!(status(&driver, at), OK);
}

#[test]
fn what_another_guest_has_lost_is_none_of_this_ones_business() {
    let host = host();
    let mut before = driver(&host, CONFIG);
    request(&mut before, kind::READ, 0, 512, true);
    host.disk().work(Fate::Late).unwrap();
    // It ended before it heard of that.
    let mut driver = driver(&host, CONFIG);
    let at = request(&mut driver, kind::FLUSH, 0, 0, false);
    host.disk().work(Fate::Done).unwrap();
    driver.service();
    assert_eq!(status(&driver, at), OK);
    host.disk().give_back();
    driver.service();
    let at = request(&mut driver, kind::FLUSH, 0, 0, false);
    host.disk().work(Fate::Done).unwrap();
    driver.service();
    assert_eq!(status(&driver, at), OK);
}

proptest! {
    /// Whatever the guest puts in its rings and descriptors, and whenever the disk answers or fails: nothing panics, and nothing
    /// beyond the disk is asked for.
    #[test]
    fn hostile_rings_do_no_harm(
        descriptors in prop::collection::vec((0_u64..0x40_1000, 0_u32..0x3_0000, 0_u16..8, 0_u16..10), 8),
        headers in prop::collection::vec((0_u32..12, any::<u64>()), 4),
        steps in prop::collection::vec((0_u8..6, 0_u16..12), 1..60),
    ) {
        let host = host();
        let mut driver = driver(&host, CONFIG);
        for (index, (kind, sector)) in headers.iter().enumerate() {
            let header = u128::from(*sector % (2 * SECTORS)) << 64 | u128::from(*kind);
            driver.mem.write(HEADERS + 64 * index as u64, &header.to_le_bytes()).unwrap();
        }
        for (index, (address, length, flags, next)) in descriptors.iter().enumerate() {
            // Some of them are headers, some small.
            let (address, length) = match length % 4 {
                0 => (HEADERS + 64 * (u64::from(length / 4) % 4), 16),
                1 => (DATA, 512),
                2 => (DATA + 512, 1),
                _ => (*address, *length),
            };
            driver.describe(0, index as u16, address, length, *flags, *next);
        }
        for (step, value) in steps {
            match step {
                0 | 1 => { driver.publish(0, value); driver.notify(0); }
                2 => { host.disk().work(if value % 3 == 0 { Fate::Failed } else { Fate::Done }); driver.service(); }
                3 => driver.service(),
                4 => driver.set_available_index(0, value),
                _ => {
                    driver.set(0x70, 0);
                    driver.negotiate(u64::MAX);
                    driver.set_up_queue(0, u32::from(ENTRIES));
                    driver.set(0x70, 1 | 2 | 8 | 4);
                }
            }
        }
        prop_assert_eq!(host.disk().bytes.len() as u64, SECTORS * SECTOR);
    }
}

/// Requests that are refused cost the host nothing, but each has 128 buffers to be looked at.
#[test]
fn one_call_refuses_so_many_buffers_and_no_more() {
    const LONG: u16 = 128;
    const NO_KIND: u128 = 99;
    let host = host();
    let mut driver = driver(&host, CONFIG);
    driver.negotiate(crate::device::virtio::feature::VERSION_1);
    driver.set_up_queue(0, u32::from(LONG));
    driver.set(0x70, 1 | 2 | 8 | 4);
    driver.mem.write(HEADERS, &NO_KIND.to_le_bytes()).unwrap();
    driver.describe(0, 0, HEADERS, 16, 1, 1);
    for index in 1..LONG - 1 {
        driver.describe(0, index, DATA, 1, 1, index + 1);
    }
    driver.describe(0, LONG - 1, DATA, 1, 2, 0);
    // Every entry of the ring says 0, the head of all.
    driver.set_available_index(0, 3);
    driver.notify(0);
    for refused in [1, 2, 3, 3] {
        assert_eq!(driver.device.backend().counters().refused, refused);
        driver.service();
    }
}
