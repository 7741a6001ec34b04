//! What the client in the branch does: fetches with curl, and searches the directory with ldapsearch.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::files::Served;
use super::namespace::Namespace;
use crate::process::{self, Process};

/// curl's exit status when receiving failed: the connection was reset (curl(1), "EXIT CODES").
pub const RECEIVE_FAILED: i32 = 56;

/// How a fetch went.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// curl's exit status; none if it was killed.
    pub exit: Option<i32>,
    /// What curl says is wrong; empty if nothing is.
    pub error: String,
    /// Bytes of the body that arrived.
    pub bytes: u64,
    /// From the start to the last byte or the error, in seconds.
    pub seconds: f64,
    /// All of the file arrived, and it is the right one.
    pub sha256_ok: bool,
}

impl Fetched {
    /// For people: what went wrong, if it did.
    pub fn outcome(&self) -> String {
        match (self.sha256_ok, self.exit) {
            (true, _) => "right bytes".into(),
            (false, Some(0)) => "WRONG BYTES".into(),
            (false, Some(status)) => format!("{} (curl exit {status})", self.error),
            (false, None) => "curl was killed".into(),
        }
    }
}

/// Starts fetching `file` from the server's `address`, giving up after `limit`; [`Fetch::finish`] waits for the end.
pub struct Fetch<'a> {
    process: Process,
    file: &'a Served,
}

impl<'a> Fetch<'a> {
    /// Starts it.
    ///
    /// # Errors
    /// When curl cannot be started.
    pub fn start(
        client: &Namespace,
        address: &str,
        file: &'a Served,
        limit: Duration,
    ) -> Result<Fetch<'a>> {
        let mut command = client.command("curl")?;
        command.args([
            "--disable",
            "--silent",
            "--verbose",
            "--noproxy",
            "*",
            "--output",
            "-",
        ]);
        command.args([
            "--max-time",
            &format!("{:.3}", limit.as_secs_f64()),
            "--write-out",
            "%{stderr}\n%{json}\n",
        ]);
        command.arg(url(address, file));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(Fetch {
            process: Process::start(command, "curl")?,
            file,
        })
    }

    /// Takes the bytes as they come, telling `progress` how many there are so far, until the end.
    ///
    /// # Errors
    /// When the user interrupts, or curl does not say how it went.
    pub fn finish(mut self, mut progress: impl FnMut(u64)) -> Result<Fetched> {
        let mut stderr = self
            .process
            .take_stderr()
            .context("curl has no standard error")?;
        let report = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut stdout = self
            .process
            .take_stdout()
            .context("curl has no standard output")?;
        let mut digest = Sha256::new();
        let mut bytes = 0u64;
        let mut buffer = vec![0; 1 << 16];
        loop {
            process::check_interrupted()?;
            let length = stdout.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            digest.update(buffer.get(..length).unwrap_or_default());
            bytes += length as u64;
            progress(bytes);
        }
        let status = self.process.wait()?;
        let report = report.join().unwrap_or_default();
        let facts = parse_report(&report);
        let whole = facts["http_code"] == 200
            && bytes == self.file.bytes
            && hex::encode(digest.finalize()) == self.file.sha256;
        Ok(Fetched {
            exit: status.code(),
            error: complaint(&report, &facts),
            bytes,
            seconds: facts["time_total"].as_f64().unwrap_or(0.0),
            sha256_ok: status.success() && whole,
        })
    }
}

/// Where the client finds a file.
pub fn url(address: &str, file: &Served) -> String {
    format!("http://{address}/{}", file.name)
}

/// curl's own account is the last line that is JSON.
fn parse_report(text: &str) -> Value {
    text.lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok())
        .unwrap_or(Value::Null)
}

/// What curl says is wrong. Why a connection did not come about, only its verbose lines tell.
fn complaint(report: &str, facts: &Value) -> String {
    let why = |line: &str| {
        Some(
            line.strip_prefix("* connect to ")?
                .split_once(" failed: ")?
                .1
                .trim()
                .to_owned(),
        )
    };
    let message = || facts["errormsg"].as_str().unwrap_or_default().to_owned();
    report.lines().rev().find_map(why).unwrap_or_else(message)
}

/// What a search of the directory gave.
#[derive(Clone, Debug)]
pub struct Found {
    /// Entries in it.
    pub entries: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What ldapsearch says is wrong; empty if nothing is.
    pub error: String,
}

/// Asks the directory server at `address` what it holds, and for all of it.
///
/// # Errors
/// When ldapsearch cannot be started, or the user interrupts. No answer is no error: nothing is found then.
pub fn search(client: &Namespace, address: &str) -> Result<Found> {
    let start = std::time::Instant::now();
    let ask = |arguments: &[&str]| -> Result<Result<String, anyhow::Error>> {
        let mut command = client.command("ldapsearch")?;
        command.env("LDAPNOINIT", "1").args([
            "-x",
            "-LLL",
            "-o",
            "ldif-wrap=no",
            "-o",
            "nettimeout=5",
            "-l",
            "5",
        ]);
        command
            .args(["-H", &format!("ldap://{address}")])
            .args(arguments);
        let answer = process::output(command, "ldapsearch");
        process::check_interrupted()?;
        Ok(answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let mut found = Found {
        entries: 0,
        seconds: 0.0,
        error: String::new(),
    };
    let answer = match ask(&["-b", "", "-s", "base", "namingContexts"])? {
        Ok(root) => match naming_context(&root) {
            Some(context) => ask(&["-b", context, "(objectClass=*)", "dn"])?,
            None => Err(anyhow::anyhow!(
                "the server at {address} names no naming context"
            )),
        },
        Err(error) => Err(error),
    };
    match answer {
        Ok(entries) => {
            found.entries = entries
                .lines()
                .filter(|line| line.starts_with("dn:"))
                .count()
        }
        Err(error) => found.error = format!("{error:#}"),
    }
    found.seconds = start.elapsed().as_secs_f64();
    Ok(found)
}

fn naming_context(root: &str) -> Option<&str> {
    root.lines()
        .find_map(|line| line.strip_prefix("namingContexts: "))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curls_account_is_found_behind_its_complaint() {
        let facts = parse_report(
            "curl: (56) Recv failure: Connection reset by peer\n\n{\"errormsg\":\"reset\",\"time_total\":1.5}\n",
        );
        assert_eq!(
            (facts["errormsg"].as_str(), facts["time_total"].as_f64()),
            (Some("reset"), Some(1.5))
        );
        assert!(parse_report("curl: (7) no\n").is_null());
    }

    #[test]
    fn the_reason_of_a_failed_connection_is_found() {
        let facts = serde_json::json!({"errormsg": "Couldn't connect to server"});
        for from in ["", " from 10.77.1.10 port 41234"] {
            let report = format!(
                "*   Trying 10.77.2.10:81...\n* connect to 10.77.2.10 port 81{from} failed: Connection refused\n* Closing"
            );
            assert_eq!(complaint(&report, &facts), "Connection refused");
        }
        assert_eq!(complaint("* Closing", &facts), "Couldn't connect to server");
        assert_eq!(complaint("", &Value::Null), "");
    }

    #[test]
    fn the_naming_context_is_read() {
        assert_eq!(
            naming_context("dn:\nnamingContexts: dc=example,dc=org\n\n"),
            Some("dc=example,dc=org")
        );
        assert_eq!(naming_context("dn:\n"), None);
    }
}
