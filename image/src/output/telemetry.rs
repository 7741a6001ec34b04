//! Telemetry: one JSON object a line on the second serial port, for whoever started the box (`cargo xtask run` reads it).

use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicBool, Ordering};

use outpost::console::ByteQueue;
use serde_json::{Value, json};
use spin::Mutex;

use super::serial::{COM2, Serial};
use crate::machine::clock;

const QUEUE_BYTES: usize = 64 << 10;
/// Bytes written in one pass at most.
const PASS_BYTES: usize = 512;

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

/// Queues a line, whole or not at all.
fn send(mut line: String) {
    line.push('\n');
    if let Some(port) = PORT.lock().as_mut()
        && port.queue.room() >= line.len()
    {
        port.queue.push(line.as_bytes());
        if DIRECT.load(Ordering::Acquire) {
            while let Some(byte) = port.queue.pop() {
                port.serial.write(byte);
            }
        }
    }
}

/// A step of the boot is done.
pub fn milestone(name: &str) {
    let ms = clock::now_ms();
    send(json!({"event": "boot", "milestone": name, "ms": ms}).to_string());
    log::info!("milestone: {name}");
}

/// Something the box cannot do.
pub fn problem(text: &str) {
    send(json!({"event": "problem", "text": text}).to_string());
}

/// The guest has stopped, or cannot be started. `status` is that of its debug-exit port, 0 after a power-off.
pub fn guest_stopped(reason: &str, status: Option<u32>) {
    let line = json!({"event": "guest-stop", "reason": reason, "status": status});
    send(line.to_string());
}

/// How things stand. `exits` is how often each vCPU left for the hypervisor, `memory` what is in use, `sharing` what the scheduler has
/// counted, `net` the WAN stack's statistics.
pub fn status(guest: &str, exits: &[u64], memory: Value, sharing: Value, net: Value) {
    let line = json!({
        "event": "status",
        "ms": clock::now_ms(),
        "guest": guest,
        "guest_exits": exits.iter().sum::<u64>(),
        "guest_exits_by_vcpu": exits,
        "memory": memory,
        "sharing": sharing,
        "net": net,
    });
    send(line.to_string());
}

/// Writes what the port takes now, within bounds. True if more waits.
pub fn poll() -> bool {
    let mut guard = PORT.lock();
    let Some(port) = guard.as_mut() else {
        return false;
    };
    for _ in 0..PASS_BYTES {
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
