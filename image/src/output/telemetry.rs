//! Telemetry: one JSON object a line on the second serial port, for whoever started the box (`cargo xtask run` reads it).

use core::fmt::Display;
use core::sync::atomic::{AtomicBool, Ordering};

use outpost::console::ByteQueue;
use outpost::json;
use serde::Serialize;
use spin::Mutex;

use super::serial::{COM2, Serial};
use crate::machine::clock;

const QUEUE_BYTES: usize = 64 << 10;
/// The longest line, but for a status.
const SHORT_LINE: usize = 1 << 10;
/// A line was left out.
static TOO_LONG: AtomicBool = AtomicBool::new(false);
/// Bytes written in one pass at most, where frames come now and then: none of them waits for longer.
pub const SHORT_PASS: usize = 128;
/// And where the network has been at work for a while anyway: fewer passes cost less.
pub const LONG_PASS: usize = 512;

struct Port {
    serial: Serial,
    queue: ByteQueue,
}

static PORT: Mutex<Option<Port>> = Mutex::new(None);
static DIRECT: AtomicBool = AtomicBool::new(true);

/// Starts the port.
pub fn start() {
    let mut serial = Serial::new(COM2);
    serial.start();
    *PORT.lock() = Some(Port {
        serial,
        queue: ByteQueue::new(QUEUE_BYTES),
    });
}

/// From here on lines wait for [`poll`].
pub fn hand_over() {
    DIRECT.store(false, Ordering::Release);
}

/// True while some CPU holds this module's lock.
pub fn is_locked() -> bool {
    PORT.is_locked()
}

/// A line: what kind of event, and what there is to say of it.
#[derive(Serialize)]
struct Event<T> {
    event: &'static str,
    #[serde(flatten)]
    details: T,
}

/// Puts a line together in `room` and queues it, whole or not at all. Nothing is locked while `details` are read.
fn send(room: &mut [u8], event: &'static str, details: impl Serialize) {
    let Some(text) = json::write(&Event { event, details }, room) else {
        if !TOO_LONG.swap(true, Ordering::Relaxed) {
            log::warn!(
                "telemetry: a line of {event} is too long and left out, and so will others be"
            );
        }
        return;
    };
    let mut guard = PORT.lock();
    if let Some(Port { serial, queue }) = guard.as_mut()
        && queue.room() > text.len()
    {
        queue.push(text.as_bytes());
        queue.push(b"\n");
        if DIRECT.load(Ordering::Acquire) {
            while let Some(byte) = queue.pop() {
                serial.write(byte);
            }
        }
    }
}

/// A step of the boot is done.
pub fn milestone(name: &str) {
    #[derive(Serialize)]
    struct Boot<'a> {
        milestone: &'a str,
        ms: u64,
    }
    let ms = clock::now_ms();
    let milestone = Boot {
        milestone: name,
        ms,
    };
    send(&mut [0; SHORT_LINE], "boot", milestone);
    log::info!("milestone: {name}");
}

/// Something the box cannot do.
pub fn problem(text: impl Display) {
    #[derive(Serialize)]
    struct Problem<T: Display> {
        #[serde(serialize_with = "json::as_text")]
        text: T,
    }
    send(&mut [0; SHORT_LINE], "problem", Problem { text });
}

/// The guest has stopped, or cannot be started. `status` is that of its debug-exit port, 0 after a power-off.
pub fn guest_stopped(reason: impl Display, status: Option<u32>) {
    #[derive(Serialize)]
    struct Stop<T: Display> {
        #[serde(serialize_with = "json::as_text")]
        reason: T,
        status: Option<u32>,
    }
    send(&mut [0; SHORT_LINE], "guest-stop", Stop { reason, status });
}

/// How things stand. The line is put together in `room`.
pub fn status(room: &mut [u8], status: impl Serialize) {
    send(room, "status", status);
}

/// Writes what the port takes now, `most` bytes at most. True if more waits.
pub fn poll(most: usize) -> bool {
    let mut guard = PORT.lock();
    let Some(port) = guard.as_mut() else {
        return false;
    };
    for _ in 0..most {
        let Some(byte) = port.queue.peek() else {
            return false;
        };
        if !port.serial.try_write(byte) {
            break;
        }
        port.queue.pop();
    }
    !port.queue.is_empty()
}
