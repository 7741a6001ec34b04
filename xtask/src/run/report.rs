//! The run's report: what was expected, what was measured. `docs/run.md` explains every field.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::line::{Counters, LineConfig};
use super::live::Milestones;

/// An expectation and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was expected, for people.
    pub what: String,
    /// What was measured.
    pub figure: String,
    /// What it may be at most (or must be).
    pub limit: String,
    /// It held.
    pub held: bool,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.held { '✓' } else { '✗' };
        write!(f, "{mark} {}: {} ({})", self.what, self.figure, self.limit)
    }
}

/// One fetch of a file.
#[derive(Clone, Debug, Serialize)]
pub struct Transfer {
    /// Which of the scenario's transfers.
    pub name: String,
    /// What the client asked for.
    pub url: String,
    /// Length of the file.
    pub bytes: u64,
    /// Bytes that the line carried for it, both directions, from the first frame of Ethernet headers on.
    pub wan_bytes: u64,
    /// Of those, from the branch.
    pub wan_bytes_up: u64,
    /// Of those, from the core.
    pub wan_bytes_down: u64,
    /// As curl has it.
    pub seconds: f64,
    /// The whole file arrived, and it is the right one.
    pub sha256_ok: bool,
    /// What curl says.
    pub outcome: String,
}

/// The image that both boxes booted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ImageReport {
    /// Size of the image file.
    pub bytes: u64,
    /// Size of the EFI binary in it.
    pub efi_bytes: u64,
    /// The image's digest.
    pub sha256: String,
}

/// How the boxes booted, in ms from the binary's first instruction.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BootReport {
    /// The branch box.
    pub branch: Milestones,
    /// The core box.
    pub core: Milestones,
}

/// The guest.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GuestReport {
    /// It answered the client's search with the line plugged in.
    pub ldap_line_up: bool,
    /// It answered with the line unplugged.
    pub ldap_line_down: bool,
    /// Entries that the last search found.
    pub entries: usize,
}

/// The outage of the line.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OutageReport {
    /// How long the slowest fetch took to fail, in seconds.
    pub fetch_fails_in_s: Option<f64>,
    /// A fetch that began the moment the line was unplugged.
    pub fetch_at_unplugging_fails_in_s: Option<f64>,
    /// A fetch that began when the tunnel was known to be down.
    pub fetch_during_fails_in_s: Option<f64>,
    /// From plugging in to the tunnel being up, in seconds (as seen in telemetry, which comes each second).
    pub recovers_in_s: Option<f64>,
    /// A fetch then was right.
    pub fetch_after_ok: bool,
}

/// The peer box's absence.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PeerOffReport {
    /// From switching the core off to the end of a transfer that was going on, in seconds.
    pub transfer_ends_in_s: Option<f64>,
    /// curl's exit status then: 56 for a reset.
    pub curl_exit: Option<i32>,
    /// Bytes of it that had arrived.
    pub bytes_before: u64,
    /// Time of the same fetch as `direct` with the core off, over `direct`'s.
    pub bridged_over_direct: Option<f64>,
    /// From switching the core on to the tunnel being up, in seconds.
    pub tunnel_back_in_s: Option<f64>,
}

/// Plain text on the line.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PlainTextReport {
    /// Frames looked at while `direct` went over the line.
    pub direct_frames: u64,
    /// Of those, with a sample of the file in them: proof that the search finds.
    pub direct_frames_with_samples: u64,
    /// Frames looked at while optimised transfers went over the line.
    pub tunnel_frames: u64,
    /// Of those, with a sample of the file in them.
    pub tunnel_frames_with_samples: u64,
}

/// Everything.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Everything held.
    pub held: bool,
    /// What executed the boxes' instructions.
    pub accelerator: String,
    /// Congestion control of client and server.
    pub congestion_control: String,
    /// The image.
    pub image: ImageReport,
    /// Booting.
    pub boot: BootReport,
    /// The line, as run.
    pub line: LineConfig,
    /// Fetches, in order.
    pub transfers: Vec<Transfer>,
    /// The guest.
    pub guest: GuestReport,
    /// The outage.
    pub outage: OutageReport,
    /// The peer's absence.
    pub peer_off: PeerOffReport,
    /// Plain text on the line.
    pub plain_text: PlainTextReport,
    /// What the line did in the whole run, by the site that sends: branch, core.
    pub line_counters: [Counters; 2],
    /// Frames dropped because a box's port, or a card, did not take them in time.
    pub frames_without_room: u64,
    /// What was expected, and what came of it.
    pub checks: Vec<Check>,
    /// What the boxes said they cannot do.
    pub problems: Vec<String>,
}

impl Report {
    /// Writes it as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        super::root::give_to_user(path);
        Ok(())
    }
}

/// Bytes for people: three significant digits or so.
pub fn human(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..100_000 => format!("{:.1} kB", value / 1e3),
        100_000..1_000_000 => format!("{:.0} kB", value / 1e3),
        1_000_000..100_000_000 => format!("{:.2} MB", value / 1e6),
        _ => format!("{:.0} MB", value / 1e6),
    }
}

/// A part of a whole for people, in percent.
pub fn percent(part: u64, whole: u64) -> String {
    match part as f64 * 100.0 / whole.max(1) as f64 {
        share if share < 10.0 => format!("{share:.2}%"),
        share => format!("{share:.1}%"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_the_fields_that_are_promised() {
        let report = serde_json::to_value(Report {
            transfers: vec![Transfer {
                name: "direct".into(),
                url: String::new(),
                bytes: 1,
                wan_bytes: 2,
                wan_bytes_up: 1,
                wan_bytes_down: 1,
                seconds: 0.5,
                sha256_ok: true,
                outcome: String::new(),
            }],
            ..Report::default()
        })
        .unwrap();
        for pointer in [
            "/image/bytes",
            "/image/efi_bytes",
            "/image/sha256",
            "/boot/branch",
            "/transfers/0/name",
            "/transfers/0/bytes",
            "/transfers/0/wan_bytes",
            "/transfers/0/seconds",
            "/transfers/0/sha256_ok",
            "/guest/ldap_line_up",
            "/guest/ldap_line_down",
            "/outage/fetch_fails_in_s",
            "/outage/recovers_in_s",
            "/line/down/rate_bps",
        ] {
            assert!(report.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [999, 1500, 150_000, 13_360_128, 123_456_789].map(human),
            ["999 B", "1.5 kB", "150 kB", "13.36 MB", "123 MB"]
        );
        assert_eq!(percent(1, 300), "0.33%");
        assert_eq!(percent(1, 2), "50.0%");
    }

    #[test]
    fn a_check_reads_as_a_sentence() {
        let check = Check {
            what: "warm".into(),
            figure: "0.2%".into(),
            limit: "at most 1%".into(),
            held: true,
        };
        assert_eq!(check.to_string(), "✓ warm: 0.2% (at most 1%)");
    }
}
