//! What a box says on its two serial ports, as lines, from threads that read its sockets.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// Everything said so far.
#[derive(Default)]
pub struct Said {
    /// Lines of the console (COM1).
    pub console: Vec<String>,
    /// The console's last line, which has no end yet.
    pub unfinished: String,
    /// Telemetry (COM2): every line that is a JSON object. The firmware writes there too, before the box does.
    pub telemetry: Vec<Value>,
    /// Lines of telemetry that look like JSON and are not.
    pub malformed: Vec<String>,
    /// How many of the two ports have closed.
    pub closed: usize,
}

/// Collects it.
#[derive(Clone, Default)]
pub struct Watch {
    shared: Arc<(Mutex<Said>, Condvar)>,
}

impl Watch {
    /// Follows both ports, and copies them to `console.log` and `telemetry.log` in `folder`. Gives what to type into.
    ///
    /// # Errors
    /// When threads or files cannot be made.
    pub fn follow(
        &self,
        console: UnixStream,
        telemetry: UnixStream,
        folder: &Path,
        name: &str,
    ) -> Result<UnixStream> {
        let keyboard = console.try_clone().context("the console's socket")?;
        self.read(
            console,
            folder.join(format!("{name}.console.log")),
            |said, bytes| said.console_bytes(bytes),
        )?;
        let mut line = Vec::new();
        self.read(
            telemetry,
            folder.join(format!("{name}.telemetry.log")),
            move |said, bytes| {
                for &byte in bytes {
                    if byte == b'\n' {
                        said.telemetry_line(String::from_utf8_lossy(&line).trim());
                        line.clear();
                    } else {
                        line.push(byte);
                    }
                }
            },
        )?;
        Ok(keyboard)
    }

    fn read(
        &self,
        stream: UnixStream,
        log: PathBuf,
        mut take: impl FnMut(&mut Said, &[u8]) + Send + 'static,
    ) -> Result<()> {
        let mut log = std::fs::File::create(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let watch = self.clone();
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || {
                let mut reader = BufReader::new(stream);
                loop {
                    let length = match reader.fill_buf() {
                        Ok([]) | Err(_) => break,
                        Ok(bytes) => {
                            let _ = log.write_all(bytes);
                            take(&mut watch.lock(), bytes);
                            bytes.len()
                        }
                    };
                    reader.consume(length);
                    watch.shared.1.notify_all();
                }
                watch.lock().closed += 1;
                watch.shared.1.notify_all();
            })?;
        Ok(())
    }

    /// What has been said.
    pub fn lock(&self) -> MutexGuard<'_, Said> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until more is said, at most so long.
    pub fn wait<'a>(&'a self, said: MutexGuard<'a, Said>, limit: Duration) -> MutexGuard<'a, Said> {
        self.shared
            .1
            .wait_timeout(said, limit)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

impl Said {
    fn console_bytes(&mut self, bytes: &[u8]) {
        for character in String::from_utf8_lossy(bytes).chars() {
            match character {
                '\n' => {
                    let line = std::mem::take(&mut self.unfinished);
                    self.console.push(line.trim_end_matches('\r').to_owned());
                }
                character => self.unfinished.push(character),
            }
        }
    }

    fn telemetry_line(&mut self, line: &str) {
        // What the firmware wrote last has no end: the object may begin within the line.
        let Some(start) = line.find("{\"event\"") else {
            return;
        };
        match serde_json::from_str(line.get(start..).unwrap_or_default()) {
            Ok(value) => self.telemetry.push(value),
            Err(_) => self.malformed.push(line.to_owned()),
        }
    }

    /// The time of a milestone, in milliseconds from the binary's first instruction.
    pub fn milestone(&self, name: &str) -> Option<u64> {
        self.telemetry
            .iter()
            .find(|event| event["milestone"] == name)
            .and_then(|event| event["ms"].as_u64())
    }

    /// Everything that the box said it cannot do.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.telemetry
            .iter()
            .filter(|event| event["event"] == "problem")
            .filter_map(|event| event["text"].as_str())
    }

    /// The last status line.
    pub fn status(&self) -> Option<&Value> {
        self.telemetry
            .iter()
            .rev()
            .find(|event| event["event"] == "status")
    }

    /// The guest's state as last reported.
    pub fn guest(&self) -> Option<&str> {
        self.status().and_then(|event| event["guest"].as_str())
    }

    /// How many status lines have come.
    pub fn statuses(&self) -> usize {
        self.telemetry
            .iter()
            .filter(|event| event["event"] == "status")
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn telemetry_is_found_behind_what_the_firmware_wrote() {
        let mut said = Said::default();
        said.telemetry_line("\x1b[2J\x1b[01;01HBdsDxe: starting Boot0001{\"event\":\"boot\",\"milestone\":\"start\",\"ms\":43}");
        said.telemetry_line("{\"event\":\"problem\",\"text\":\"no second port\"}");
        said.telemetry_line("{\"event\":\"status\",\"guest\":\"init\",\"ms\":1,\"net\":{}}");
        said.telemetry_line("{\"event\":\"status\",\"guest\":\"ready\",\"ms\":2,\"net\":{}}");
        said.telemetry_line("{\"event\":\"status\",\"gue");
        assert_eq!(said.milestone("start"), Some(43));
        assert_eq!(said.milestone("devices"), None);
        assert_eq!(said.problems().collect::<Vec<_>>(), ["no second port"]);
        assert_eq!(
            (said.guest(), said.statuses(), said.malformed.len()),
            (Some("ready"), 2, 1)
        );
    }

    #[test]
    fn console_lines_may_come_in_pieces() {
        let mut said = Said::default();
        said.console_bytes(b"[ 0.1] Out");
        said.console_bytes(b"post\r\n/ # ");
        assert_eq!(
            (said.console, said.unfinished),
            (vec!["[ 0.1] Outpost".to_owned()], "/ # ".to_owned())
        );
    }
}
