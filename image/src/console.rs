//! The console in one terminal: the box's log and a few commands, or the guest's console, with Ctrl-T between them.
//!
//! It decides what is shown and what a key means. It owns no port: bytes go to a [`ByteQueue`].

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::lines::{Cursor, LineRing};

/// Switches between the box's console and the guest's.
pub const SWITCH_KEY: u8 = 0x14; // Ctrl-T

/// Longest line of the guest that is shown in one piece.
const GUEST_LINE: usize = 240;
/// Longest command.
const COMMAND: usize = 64;
/// What of the guest's output is shown again when one switches to it.
const SCROLLBACK: usize = 8 << 10;
const PROMPT: &[u8] = b"outpost> ";
const CLEAR_LINE: &[u8] = b"\r\x1b[K";

/// Bytes that wait for a slow port. Never grows beyond what it was made for.
pub struct ByteQueue {
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl ByteQueue {
    /// Room for `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        ByteQueue {
            bytes: VecDeque::with_capacity(capacity),
            capacity,
        }
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.capacity - self.bytes.len()
    }

    /// Appends `bytes`, or as much as fits. Returns how much that was.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        self.bytes.extend(bytes.iter().take(count));
        count
    }

    /// Takes the oldest byte.
    pub fn pop(&mut self) -> Option<u8> {
        self.bytes.pop_front()
    }

    /// The oldest byte.
    pub fn peek(&self) -> Option<u8> {
        self.bytes.front().copied()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// List the commands.
    Help,
    /// Show what the box is doing.
    Status,
    /// Show the log again.
    Log,
    /// Stop the guest and start it again.
    RestartGuest,
    /// Press the guest's power button.
    ShutDownGuest,
    /// Reset the box.
    Reset,
    /// Not a command.
    Unknown,
}

/// What [`Command::Help`] shows.
pub const HELP: &str = "\
commands: status    what the box is doing\n\
          log       the log again\n\
          shutdown  press the guest's power button: it shuts down, and stays off until `restart`\n\
          restart   stop the guest without asking it, and start it again\n\
          reset     shut the guest down and reset the box; a second time: without waiting for it\n\
Ctrl-T switches to the guest's console and back\n";

fn parse(line: &[u8]) -> Command {
    match line.trim_ascii() {
        b"help" | b"?" => Command::Help,
        b"status" => Command::Status,
        b"log" => Command::Log,
        b"shutdown" | b"guest shutdown" => Command::ShutDownGuest,
        b"restart" | b"guest restart" => Command::RestartGuest,
        b"reset" => Command::Reset,
        _ => Command::Unknown,
    }
}

/// What a key led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Nothing more to do.
    Done,
    /// The byte is for the guest.
    Guest(u8),
    /// A command was completed.
    Command(Command),
}

/// What a line of the guest tells about its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestSays {
    /// Its first process runs.
    Init,
    /// Its service answers.
    Ready,
}

/// The line that a guest prints when its first process runs.
pub const GUEST_INIT: &[u8] = b"outpost-guest: init";
/// The line that a guest prints when its service answers.
pub const GUEST_READY: &[u8] = b"outpost-guest: ready";

/// Parser state for escape sequences in the guest's output (ECMA-48, 5.4), which are dropped from single lines.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    Started,
    Control,
}

/// The console's state.
pub struct Console {
    guest_shown: bool,
    log: Cursor,
    guest_line: Vec<u8>,
    escape: Escape,
    scrollback: LineRing,
    typed: Vec<u8>,
}

impl Console {
    /// A console that shows the box, from `log` on.
    pub fn new(log: Cursor) -> Self {
        Console {
            guest_shown: false,
            log,
            guest_line: Vec::with_capacity(GUEST_LINE),
            escape: Escape::None,
            scrollback: LineRing::new(SCROLLBACK),
            typed: Vec::with_capacity(COMMAND),
        }
    }

    /// The smallest room in the queue with which [`Console::guest_byte`] and [`Console::pump_log`] lose nothing.
    pub const ROOM: usize = 2 * GUEST_LINE + COMMAND + 32;

    /// Takes a key.
    pub fn key(&mut self, byte: u8, out: &mut ByteQueue) -> Key {
        if byte == SWITCH_KEY {
            self.switch(out);
            return Key::Done;
        }
        if self.guest_shown {
            return Key::Guest(byte);
        }
        match byte {
            b'\r' | b'\n' => {
                if self.typed.is_empty() {
                    return Key::Done;
                }
                out.push(b"\r\n");
                let command = parse(&self.typed);
                self.typed.clear();
                return Key::Command(command);
            }
            0x08 | 0x7f if self.typed.pop().is_some() => self.show_typed(out),
            0x15 => {
                self.typed.clear();
                out.push(CLEAR_LINE);
            }
            b' '..=b'~' if self.typed.len() < COMMAND => {
                self.typed.push(byte);
                self.show_typed(out);
            }
            _ => {}
        }
        Key::Done
    }

    fn show_typed(&self, out: &mut ByteQueue) {
        out.push(CLEAR_LINE);
        if !self.typed.is_empty() {
            out.push(PROMPT);
            out.push(&self.typed);
        }
    }

    fn switch(&mut self, out: &mut ByteQueue) {
        self.guest_shown = !self.guest_shown;
        if self.guest_shown {
            out.push(CLEAR_LINE);
            out.push(b"--- the guest's console; Ctrl-T returns to the box ---\r\n");
            let mut cursor = self
                .scrollback
                .before_end(out.room().min(SCROLLBACK) as u64 / 2);
            let mut piece = [0; 64];
            loop {
                let count = self.scrollback.read(&mut cursor, &mut piece);
                if count == 0 {
                    break;
                }
                out.push(piece.get(..count).unwrap_or_default());
            }
        } else {
            out.push(b"\r\n--- the box's console; Ctrl-T switches to the guest, help lists commands ---\r\n");
            self.show_typed(out);
        }
    }

    /// Shows the whole log again.
    pub fn rewind_log(&mut self, ring: &LineRing) {
        self.log = ring.before_end(u64::MAX);
    }

    /// Prints a line of text that is not in the log: a command's answer.
    pub fn print_line(&self, line: &[u8], out: &mut ByteQueue) {
        self.print(b"", line, out);
    }

    fn print(&self, prefix: &[u8], line: &[u8], out: &mut ByteQueue) {
        if !self.typed.is_empty() {
            out.push(CLEAR_LINE);
        }
        out.push(prefix);
        out.push(line);
        out.push(b"\r\n");
        if !self.typed.is_empty() {
            out.push(PROMPT);
            out.push(&self.typed);
        }
    }

    /// Shows the log's next line. False if there is none, if the guest is shown, or if the queue has no room.
    pub fn pump_log(&mut self, ring: &LineRing, out: &mut ByteQueue) -> bool {
        if self.guest_shown || out.room() < Self::ROOM {
            return false;
        }
        let mut line = [0; 2 * GUEST_LINE];
        let count = ring.read_line(&mut self.log, &mut line);
        if count == 0 {
            return false;
        }
        let line = line.get(..count).unwrap_or_default();
        self.print_line(line.strip_suffix(b"\n").unwrap_or(line), out);
        true
    }

    /// True if [`Console::pump_log`] would show something.
    pub fn has_log(&self, ring: &LineRing) -> bool {
        !self.guest_shown && !ring.is_drained(self.log)
    }

    /// Takes a byte of the guest's output.
    pub fn guest_byte(&mut self, byte: u8, out: &mut ByteQueue) -> Option<GuestSays> {
        self.scrollback.push(&[byte]);
        if self.guest_shown {
            out.push(&[byte]);
        }
        match (self.escape, byte) {
            (_, 0x1b) => self.escape = Escape::Started,
            (Escape::Started, b'[') => self.escape = Escape::Control,
            (Escape::Started, _) | (Escape::Control, b'@'..=b'~') => self.escape = Escape::None,
            (Escape::Control, _) => {}
            (Escape::None, b'\n') => return self.end_guest_line(out),
            (Escape::None, b'\t' | b' '..) => {
                let shown = if byte == b'\t' || byte == 0x7f {
                    b' '
                } else {
                    byte
                };
                self.guest_line.push(shown);
                if self.guest_line.len() >= GUEST_LINE {
                    return self.end_guest_line(out);
                }
            }
            (Escape::None, _) => {}
        }
        None
    }

    fn end_guest_line(&mut self, out: &mut ByteQueue) -> Option<GuestSays> {
        let says = |mark: &[u8]| {
            self.guest_line
                .windows(mark.len())
                .any(|window| window == mark)
        };
        let result = if says(GUEST_INIT) {
            Some(GuestSays::Init)
        } else if says(GUEST_READY) {
            Some(GuestSays::Ready)
        } else {
            None
        };
        if !self.guest_shown && !self.guest_line.is_empty() {
            self.print(b"guest| ", &self.guest_line, out);
        }
        self.guest_line.clear();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut ByteQueue) -> String {
        let mut bytes = Vec::new();
        while let Some(byte) = queue.pop() {
            bytes.push(byte);
        }
        String::from_utf8(bytes).unwrap()
    }

    fn type_in(console: &mut Console, text: &str, out: &mut ByteQueue) -> Key {
        text.bytes()
            .map(|byte| console.key(byte, out))
            .last()
            .unwrap()
    }

    fn guest_prints(console: &mut Console, text: &str, out: &mut ByteQueue) -> Vec<GuestSays> {
        text.bytes()
            .filter_map(|byte| console.guest_byte(byte, out))
            .collect()
    }

    #[test]
    fn shows_log_and_guest_as_whole_lines() {
        let mut ring = LineRing::new(256);
        let mut console = Console::new(ring.end());
        let mut out = ByteQueue::new(2048);
        guest_prints(&mut console, "half a li", &mut out);
        ring.push(b"[   1.000] up\n");
        assert!(console.pump_log(&ring, &mut out));
        assert!(!console.pump_log(&ring, &mut out));
        guest_prints(&mut console, "ne\r\n", &mut out);
        assert_eq!(drain(&mut out), "[   1.000] up\r\nguest| half a line\r\n");
    }

    #[test]
    fn switches_to_the_guest_and_back() {
        let mut ring = LineRing::new(256);
        let mut console = Console::new(ring.end());
        let mut out = ByteQueue::new(4096);
        guest_prints(&mut console, "earlier\n", &mut out);
        drain(&mut out);
        assert_eq!(console.key(SWITCH_KEY, &mut out), Key::Done);
        assert!(drain(&mut out).ends_with("earlier\n"));
        assert_eq!(console.key(b'x', &mut out), Key::Guest(b'x'));
        guest_prints(&mut console, "\x1b[1mraw", &mut out);
        ring.push(b"hidden for now\n");
        assert!(!console.pump_log(&ring, &mut out));
        assert_eq!(drain(&mut out), "\x1b[1mraw");
        console.key(SWITCH_KEY, &mut out);
        assert!(console.pump_log(&ring, &mut out));
        assert!(drain(&mut out).ends_with("hidden for now\r\n"));
    }

    #[test]
    fn hears_what_the_guest_says() {
        let mut console = Console::new(Cursor::default());
        let mut out = ByteQueue::new(4096);
        let said = guest_prints(
            &mut console,
            "[    0.5] outpost-guest: init\n\x1b[32moutpost-guest: ready\x1b[0m\r\noutpost-guest: other\n",
            &mut out,
        );
        assert_eq!(said, [GuestSays::Init, GuestSays::Ready]);
        assert!(drain(&mut out).contains("guest| outpost-guest: ready\r\n"));
    }

    #[test]
    fn a_guest_has_commands_with_and_without_its_name() {
        for (line, command) in [
            ("shutdown", Command::ShutDownGuest),
            (" guest shutdown ", Command::ShutDownGuest),
            ("restart", Command::RestartGuest),
            ("guest restart", Command::RestartGuest),
            ("guest", Command::Unknown),
            ("shutdown now", Command::Unknown),
        ] {
            assert_eq!(parse(line.as_bytes()), command, "{line}");
        }
    }

    #[test]
    fn takes_commands_and_edits() {
        let mut console = Console::new(Cursor::default());
        let mut out = ByteQueue::new(4096);
        assert_eq!(
            type_in(&mut console, "statux\x7fs\r", &mut out),
            Key::Command(Command::Status)
        );
        assert_eq!(
            type_in(&mut console, "rm -rf\r", &mut out),
            Key::Command(Command::Unknown)
        );
        assert_eq!(type_in(&mut console, "\r", &mut out), Key::Done);
    }

    #[test]
    fn typed_text_survives_a_log_line() {
        let mut ring = LineRing::new(256);
        let mut console = Console::new(ring.end());
        let mut out = ByteQueue::new(2048);
        type_in(&mut console, "sta", &mut out);
        drain(&mut out);
        ring.push(b"news\n");
        console.pump_log(&ring, &mut out);
        guest_prints(&mut console, "hello\n", &mut out);
        assert_eq!(
            drain(&mut out),
            "\r\x1b[Knews\r\noutpost> sta\r\x1b[Kguest| hello\r\noutpost> sta"
        );
    }

    #[test]
    fn endless_lines_and_full_queues_are_harmless() {
        let mut console = Console::new(Cursor::default());
        let mut out = ByteQueue::new(100);
        let long = "x".repeat(10_000);
        assert!(guest_prints(&mut console, &long, &mut out).is_empty());
        assert_eq!(out.room(), 0);
        assert_eq!(console.guest_line.capacity(), GUEST_LINE);
    }
}
