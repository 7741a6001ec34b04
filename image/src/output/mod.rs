//! Everything the box says: log lines to serial, screen and the log ring; telemetry to the second serial port.
//!
//! During start-up a line goes out at once. Once the network runs, CPU 0 feeds the ports a little at a time between packets
//! ([`console`], [`telemetry`]), because a serial port is slow.

pub mod console;
pub mod screen;
pub mod serial;
pub mod telemetry;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use outpost::lines::{Cursor, LineRing};
use spin::{Mutex, Once};

use crate::machine::clock;
use screen::{Screen, Text};
use serial::{COM1, Serial};

const LOG_BYTES: usize = 64 << 10;
/// Longest line: a report of all registers fits.
const LINE_BYTES: usize = 700;

static LOG: Once<Mutex<LineRing>> = Once::new();
/// Lines go out as they come.
static DIRECT: AtomicBool = AtomicBool::new(true);

struct Outputs {
    console: Serial,
    text: Option<Text>,
    shown: Cursor,
}

static OUTPUTS: Mutex<Option<Outputs>> = Mutex::new(None);

struct Logger;

/// A line being put together; what does not fit is cut off.
struct Line {
    bytes: [u8; LINE_BYTES],
    length: usize,
}

impl Line {
    fn new() -> Self {
        Line {
            bytes: [0; LINE_BYTES],
            length: 0,
        }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn clear(&mut self) {
        self.length = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(slot) = self.bytes.get_mut(self.length) {
                *slot = byte;
                self.length += 1;
            }
        }
        Ok(())
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // Crates that chat at level info.
        let chatty = ["virtio_drivers", "uefi"];
        let level = if chatty
            .iter()
            .any(|name| metadata.target().starts_with(name))
        {
            log::Level::Warn
        } else {
            log::Level::Info
        };
        metadata.level() <= level
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = Line::new();
        let ms = clock::now_ms();
        let _ = write!(
            line,
            "[{:>4}.{:03}] {}",
            ms / 1000,
            ms % 1000,
            record.args()
        );
        if let Some(log) = LOG.get() {
            let mut ring = log.lock();
            ring.push(line.as_bytes());
            ring.push(b"\n");
        }
        if DIRECT.load(Ordering::Acquire) {
            show_new_lines();
        }
    }

    fn flush(&self) {}
}

/// Starts logging to the first serial port.
pub fn start() {
    let log = LOG.call_once(|| Mutex::new(LineRing::new(LOG_BYTES)));
    let mut console = Serial::new(COM1);
    console.start();
    *OUTPUTS.lock() = Some(Outputs {
        console,
        text: None,
        shown: log.lock().end(),
    });
    telemetry::start();
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// Logs to the framebuffer too, from here on.
pub fn add_screen(screen: Screen) {
    if let Some(outputs) = OUTPUTS.lock().as_mut() {
        outputs.text = Some(Text::new(screen));
    }
}

/// Gives `read` the log ring.
pub fn with_log<R>(read: impl FnOnce(&LineRing) -> R) -> Option<R> {
    LOG.get().map(|log| read(&log.lock()))
}

/// Writes what is new in the log to all ports, and waits for them.
fn show_new_lines() {
    let mut guard = OUTPUTS.lock();
    let Some(outputs) = guard.as_mut() else {
        return;
    };
    let mut piece = [0; 128];
    while let Some(count) = with_log(|ring| ring.read(&mut outputs.shown, &mut piece))
        && count > 0
    {
        for &byte in piece.iter().take(count) {
            if byte == b'\n' {
                outputs.console.write(b'\r');
            }
            outputs.console.write(byte);
            if let Some(text) = outputs.text.as_mut() {
                text.put(byte);
            }
        }
    }
}

/// From here on lines wait in the log ring for [`console::Service`], which gets the ports.
fn hand_over() -> Option<Outputs> {
    DIRECT.store(false, Ordering::Release);
    telemetry::hand_over();
    OUTPUTS.lock().take()
}

/// True if `console` has log lines to show.
pub fn has_lines(console: &console::Service) -> bool {
    with_log(|ring| console.has_lines(ring)).unwrap_or(false)
}

/// True while some CPU holds a lock of this module.
pub fn is_locked() -> bool {
    OUTPUTS.is_locked() || LOG.get().is_some_and(Mutex::is_locked) || telemetry::is_locked()
}

/// Says in one line what the box cannot do and what would help: on the console and in the telemetry.
pub fn problem(text: impl fmt::Display) {
    log::warn!("{text}");
    telemetry::problem(text);
}

/// The console port for last words: takes no lock.
pub struct Emergency(Serial);

impl Emergency {
    /// Takes the port away from whoever has it.
    pub fn new() -> Self {
        let mut serial = Serial::new(COM1);
        serial.start();
        Emergency(serial)
    }
}

impl Write for Emergency {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0.write(byte);
        }
        Ok(())
    }
}
