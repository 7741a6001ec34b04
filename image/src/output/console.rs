//! The console as a service of CPU 0: a bounded piece of work each time it is polled.

use core::fmt::{self, Write};

use outpost::console::{ByteQueue, Command, Console, GuestSays, HELP, Key};
use outpost::lines::LineRing;

use super::{Line, Outputs, with_log};
use crate::appliance::guest;

const QUEUE_BYTES: usize = 16 << 10;
/// Bytes written, or taken from the guest, in one pass at most.
const PASS_BYTES: usize = 128;

/// What a pass of the console leads to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// More work waits for the port.
    pub busy: bool,
    /// A key has come.
    pub typed: bool,
    /// The user wants the status shown.
    pub wants_status: bool,
    /// The user wants the box reset.
    pub wants_reset: bool,
    /// The guest said something about its start.
    pub guest_says: Option<GuestSays>,
}

/// Lines on their way to the console.
pub struct Lines<'a> {
    console: &'a Console,
    queue: &'a mut ByteQueue,
    line: Line,
}

impl Lines<'_> {
    fn end(&mut self) {
        if !self.line.as_bytes().is_empty() {
            self.console.print_line(self.line.as_bytes(), self.queue);
            self.line.clear();
        }
    }
}

impl Write for Lines<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive('\n') {
            let line = piece.strip_suffix('\n');
            self.line.write_str(line.unwrap_or(piece))?;
            if line.is_some() {
                self.end();
            }
        }
        Ok(())
    }
}

/// The console and its ports.
pub struct Service {
    outputs: Option<Outputs>,
    console: Console,
    queue: ByteQueue,
}

impl Service {
    /// Takes the ports over from direct logging.
    pub fn start() -> Self {
        let outputs = super::hand_over();
        let shown = outputs.as_ref().map(|outputs| outputs.shown);
        Service {
            outputs,
            console: Console::new(shown.unwrap_or_default()),
            queue: ByteQueue::new(QUEUE_BYTES),
        }
    }

    /// True if `log` holds lines that are not shown yet.
    pub fn has_lines(&self, log: &LineRing) -> bool {
        self.console.has_log(log)
            || guest::has_console_output()
            || self
                .outputs
                .as_ref()
                .is_some_and(|outputs| outputs.text.is_some() && !log.is_drained(outputs.shown))
    }

    /// Prints lines that are not in the log. Blank ones are left out, and what a line has beyond some 700 bytes.
    pub fn print(&mut self, write: impl FnOnce(&mut Lines<'_>) -> fmt::Result) {
        let mut lines = Lines {
            console: &self.console,
            queue: &mut self.queue,
            line: Line::new(),
        };
        let _ = write(&mut lines);
        lines.end();
    }

    /// Takes keys, shows log and guest output, feeds the ports.
    pub fn poll(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        self.keys(&mut outcome);
        while with_log(|ring| self.console.pump_log(ring, &mut self.queue)).unwrap_or(false) {}
        for _ in 0..PASS_BYTES {
            if self.queue.room() < Console::ROOM {
                break;
            }
            let Some(byte) = guest::console_output() else {
                break;
            };
            outcome.guest_says = self
                .console
                .guest_byte(byte, &mut self.queue)
                .or(outcome.guest_says);
        }
        self.feed();
        outcome.busy = !self.queue.is_empty();
        outcome
    }

    fn keys(&mut self, outcome: &mut Outcome) {
        let Some(outputs) = self.outputs.as_mut() else {
            return;
        };
        for _ in 0..16 {
            let Some(byte) = outputs.console.try_read() else {
                break;
            };
            outcome.typed = true;
            match self.console.key(byte, &mut self.queue) {
                Key::Done => {}
                Key::Guest(byte) => guest::console_input(byte),
                Key::Command(command) => {
                    let answer = match command {
                        Command::Help => HELP,
                        Command::Unknown => "unknown command; help lists the commands",
                        Command::Status => {
                            outcome.wants_status = true;
                            ""
                        }
                        Command::Log => {
                            with_log(|ring| self.console.rewind_log(ring));
                            ""
                        }
                        Command::RestartGuest => {
                            guest::request_restart();
                            "the guest is being restarted"
                        }
                        Command::ShutDownGuest if guest::shut_down() => {
                            "the guest is asked to shut down"
                        }
                        Command::ShutDownGuest => {
                            "the guest does not run; it stays off until `restart`"
                        }
                        Command::Reset => {
                            outcome.wants_reset = true;
                            ""
                        }
                    };
                    for line in answer.lines() {
                        self.console.print_line(line.as_bytes(), &mut self.queue);
                    }
                }
            }
        }
    }

    /// Writes what the ports take now. The screen gets one line of the log in a pass.
    fn feed(&mut self) {
        let Some(outputs) = self.outputs.as_mut() else {
            return;
        };
        for _ in 0..PASS_BYTES {
            let Some(byte) = self.queue.peek() else {
                break;
            };
            if !outputs.console.try_write(byte) {
                break;
            }
            self.queue.pop();
        }
        let mut line = [0; 160];
        if let Some(text) = outputs.text.as_mut()
            && let Some(count) = with_log(|ring| ring.read_line(&mut outputs.shown, &mut line))
        {
            for &byte in line.iter().take(count) {
                text.put(byte);
            }
        }
    }
}
