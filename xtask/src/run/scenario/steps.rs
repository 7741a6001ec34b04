//! What each step does and what is expected of it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Scenario;
use crate::run::client::{self, Fetched};
use crate::run::files::Served;
use crate::run::line::Site;
use crate::run::live::Live;
use crate::run::report::{BootReport, ImageReport, human, percent};
use crate::run::{DIRECT, SERVER};

/// The most that the image file may have, in bytes.
const IMAGE_LIMIT: u64 = 128 << 20;
/// The most that the EFI binary may have without a guest, in bytes.
const EFI_LIMIT: u64 = 4 << 20;
/// How long a box may take to forward frames, the firmware's part included.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long the tunnel may take after that.
const TUNNEL_LIMIT: Duration = Duration::from_secs(30);
/// How long the guest may take.
const GUEST_LIMIT: Duration = Duration::from_secs(240);
/// How long a fetch may fail.
const FAIL_LIMIT_S: f64 = 10.0;
/// How soon the tunnel must be back after the line.
const RECOVERY_LIMIT_S: f64 = 5.0;
/// How much longer than `direct` the same fetch may take with the peer off: chance decides which frames are lost.
const BRIDGED_LIMIT: f64 = 1.5;
/// How much of the noise has arrived when the peer is switched off.
const BEFORE_POWER_OFF: u64 = 1 << 20;

/// Fetches at once.
const AT_ONCE: usize = 8;
/// A port on which the server does not listen.
const CLOSED_PORT: u16 = 81;
/// An address that is served, and that no host has.
const ABSENT: &str = "10.77.2.99";

impl Scenario<'_> {
    pub(super) fn boot(&mut self) -> Result<()> {
        let ImageReport {
            bytes, efi_bytes, ..
        } = self.report.image;
        self.check(
            "image file",
            mebibytes(bytes),
            "at most 128 MiB",
            bytes <= IMAGE_LIMIT,
        );
        self.check(
            "EFI binary",
            mebibytes(efi_bytes),
            "at most 4 MiB",
            efi_bytes <= EFI_LIMIT,
        );
        for site in Site::ALL {
            self.lab.power_on(site)?;
        }
        let forwarding = |live: &Live| {
            Site::ALL
                .iter()
                .all(|site| live.state().site(*site).reached("forwarding"))
        };
        if self.wait(BOOT_LIMIT, forwarding)?.is_none() {
            bail!(
                "after {} s the boxes do not both forward frames",
                BOOT_LIMIT.as_secs()
            );
        }
        let up = self.wait(TUNNEL_LIMIT, Scenario::tunnel_is_up)?;
        self.check(
            "tunnel after forwarding",
            seconds(up),
            format!("at most {} s", TUNNEL_LIMIT.as_secs()),
            up.is_some(),
        );
        let ready = self.wait(GUEST_LIMIT, |live| {
            live.state().site(Site::Branch).reached("guest-ready")
        })?;
        let milestone = self
            .live
            .state()
            .site(Site::Branch)
            .milestones
            .get("guest-ready")
            .copied();
        self.check(
            "guest is ready",
            seconds(milestone.map(|ms| ms as f64 / 1e3)),
            format!("at most {} s after the network", GUEST_LIMIT.as_secs()),
            ready.is_some(),
        );
        let state = self.live.state();
        self.report.boot = BootReport {
            branch: state.site(Site::Branch).into(),
            core: state.site(Site::Core).into(),
        };
        self.report.problems = Site::ALL
            .iter()
            .flat_map(|site| {
                state
                    .site(*site)
                    .problems
                    .iter()
                    .map(|problem| format!("{}: {problem}", site.name()))
            })
            .collect();
        Ok(())
    }

    pub(super) fn direct(&mut self) -> Result<()> {
        let files = self.files;
        let (_, (frames, found)) = self.watched("direct", DIRECT, &files.old)?;
        (
            self.report.plain_text.direct_frames,
            self.report.plain_text.direct_frames_with_samples,
        ) = (frames, found);
        self.check(
            "plain text on the line during direct",
            format!("in {found} of {frames} frames"),
            "the search must find it",
            found > 0,
        );
        Ok(())
    }

    pub(super) fn optimised(&mut self) -> Result<()> {
        let files = self.files;
        let mut watch = (0, 0);
        let add = |sum: &mut (u64, u64), part: (u64, u64)| *sum = (sum.0 + part.0, sum.1 + part.1);
        let (cold, part) = self.watched("cold", SERVER, &files.old)?;
        add(&mut watch, part);
        let (warm, part) = self.watched("warm", SERVER, &files.old)?;
        add(&mut watch, part);
        let (next, part) = self.watched("next", SERVER, &files.new)?;
        add(&mut watch, part);
        let text = &mut self.report.plain_text;
        (text.tunnel_frames, text.tunnel_frames_with_samples) = watch;
        self.check(
            "plain text on the line",
            format!("in {} of {} frames", watch.1, watch.0),
            "in none",
            watch.1 == 0 && watch.0 > 0,
        );
        self.check(
            "warm: bytes on the line",
            format!("{} of the file", percent(warm.wan_bytes, warm.bytes)),
            "at most 1%",
            warm.wan_bytes * 100 <= warm.bytes,
        );
        self.live.say(format!(
            "next: {} of the file on the line",
            percent(next.wan_bytes, next.bytes)
        ));
        let direct = self.so_far("direct")?;
        let (share, limit) = match files.old.dense {
            true => (
                1.03,
                "at most 3% more than direct: the file is already compressed",
            ),
            false => (0.5, "at most half of direct: the file is text"),
        };
        self.check(
            "cold: bytes on the line",
            format!("{} of direct", percent(cold.wan_bytes, direct.wan_bytes)),
            limit,
            cold.wan_bytes as f64 <= direct.wan_bytes as f64 * share,
        );
        self.check(
            "warm: time",
            format!("{:.1} s of {:.1} s", warm.seconds, direct.seconds),
            "at most a fifth of direct",
            warm.seconds * 5.0 <= direct.seconds,
        );
        Ok(())
    }

    pub(super) fn compressed(&mut self) -> Result<()> {
        let files = self.files;
        let direct = self.transfer("direct-compressed", DIRECT, &files.compressed)?;
        let cold = self.transfer("cold-compressed", SERVER, &files.compressed)?;
        self.check(
            "cold-compressed: bytes on the line",
            format!("{} of direct", percent(cold.wan_bytes, direct.wan_bytes)),
            "at most 3% more than direct",
            cold.wan_bytes as f64 <= direct.wan_bytes as f64 * 1.03,
        );
        Ok(())
    }

    /// Several fetches at once, of what the line has and has not carried.
    pub(super) fn several(&mut self) -> Result<()> {
        let files = self.files;
        let limit = Duration::from_secs(300);
        let wanted: Vec<&Served> = files.all().into_iter().cycle().take(AT_ONCE).collect();
        let fetches: Vec<_> = wanted
            .iter()
            .map(|file| self.lab.fetch(SERVER, file, limit))
            .collect::<Result<_>>()?;
        let start = Instant::now();
        let results: Vec<Result<Fetched>> = std::thread::scope(|scope| {
            let threads: Vec<_> = fetches
                .into_iter()
                .map(|fetch| scope.spawn(move || fetch.finish(|_| ())))
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| bail!("a fetch's thread panicked"))
                })
                .collect()
        });
        let results = results.into_iter().collect::<Result<Vec<_>>>()?;
        let right = results.iter().filter(|fetched| fetched.sha256_ok).count();
        let wrong = results.iter().find(|fetched| !fetched.sha256_ok);
        let bytes = results.iter().map(|fetched| fetched.bytes).sum();
        self.check(
            format!("{AT_ONCE} fetches at once: SHA-256"),
            match wrong {
                None => format!(
                    "{} in {:.1} s, all right",
                    human(bytes),
                    start.elapsed().as_secs_f64()
                ),
                Some(wrong) => format!("{right} right; {}", wrong.outcome()),
            },
            "all must be right",
            wrong.is_none(),
        );
        Ok(())
    }

    /// A port that the server refuses, and a host that is not there, look to the client as they do without boxes.
    pub(super) fn refused(&mut self) -> Result<()> {
        let files = self.files;
        let refuses = format!("{SERVER}:{CLOSED_PORT}");
        for (address, what, word) in [
            (refuses.as_str(), "a closed port", "Connection refused"),
            (ABSENT, "an absent host", "No route to host"),
        ] {
            let fetched = self.fetch(what, address, &files.old, |_, _| Ok(()))?;
            let held = fetched.error == word && fetched.seconds <= FAIL_LIMIT_S;
            self.check(
                format!("connection to {what}"),
                format!("after {:.1} s: {}", fetched.seconds, fetched.outcome()),
                format!("{word} within {FAIL_LIMIT_S} s"),
                held,
            );
        }
        Ok(())
    }

    pub(super) fn directory(&mut self) -> Result<()> {
        self.report.guest.ldap_line_up = self.search("line plugged in")?;
        Ok(())
    }

    pub(super) fn failing_fetch(&mut self, when: &str) -> Result<f64> {
        let files = self.files;
        let fetched = self.fetch("during the outage", SERVER, &files.old, |_, _| Ok(()))?;
        let held = fetched.exit != Some(0) && fetched.seconds <= FAIL_LIMIT_S;
        let figure = match fetched.exit {
            Some(0) => "it did not fail".to_owned(),
            _ => format!("after {:.1} s ({})", fetched.seconds, fetched.outcome()),
        };
        self.check(
            format!("fetch {when} fails"),
            figure,
            format!("at most {FAIL_LIMIT_S} s"),
            held,
        );
        Ok(fetched.seconds)
    }

    pub(super) fn outage(&mut self) -> Result<()> {
        self.lab.wires.plug(false)?;
        let result = self.unplugged();
        self.lab.wires.plug(true)?;
        result?;
        let back = self.wait(TUNNEL_LIMIT, Scenario::tunnel_is_up)?;
        self.report.outage.recovers_in_s = back;
        let held = back.is_some_and(|back| back <= RECOVERY_LIMIT_S);
        self.check(
            "tunnel after the line",
            seconds(back),
            format!("at most {RECOVERY_LIMIT_S} s"),
            held,
        );
        let files = self.files;
        self.report.outage.fetch_after_ok =
            self.transfer("after-outage", SERVER, &files.old)?.sha256_ok;
        Ok(())
    }

    pub(super) fn unplugged(&mut self) -> Result<()> {
        let first = self.failing_fetch("that begins as the line is unplugged")?;
        self.report.outage.fetch_at_unplugging_fails_in_s = Some(first);
        self.report.guest.ldap_line_down = self.search("line unplugged")?;
        let down = self.wait(TUNNEL_LIMIT, |live| {
            Site::ALL
                .iter()
                .all(|site| !live.state().site(*site).tunnel_up())
        })?;
        self.check(
            "tunnel is seen to be down",
            seconds(down),
            format!("at most {} s", TUNNEL_LIMIT.as_secs()),
            down.is_some(),
        );
        let second = self.failing_fetch("during the outage")?;
        self.report.outage.fetch_during_fails_in_s = Some(second);
        self.report.outage.fetch_fails_in_s = Some(first.max(second));
        Ok(())
    }

    pub(super) fn peer_off(&mut self) -> Result<()> {
        let files = self.files;
        let mut off_at = None;
        let fetched = self.fetch("interrupted", SERVER, &files.noise, |lab, bytes| {
            if bytes >= BEFORE_POWER_OFF && off_at.is_none() {
                off_at = Some((Instant::now(), bytes));
                lab.power_off(Site::Core)?;
            }
            Ok(())
        })?;
        let end = Instant::now();
        self.lab.power_off(Site::Core)?;
        let off = &mut self.report.peer_off;
        off.curl_exit = fetched.exit;
        let (at, bytes) = off_at.unwrap_or((end, 0));
        off.transfer_ends_in_s = Some((end - at).as_secs_f64());
        off.bytes_before = bytes;
        let ends_in = (end - at).as_secs_f64();
        let held = fetched.exit == Some(client::RECEIVE_FAILED) && ends_in <= FAIL_LIMIT_S;
        self.check(
            "transfer whose peer is switched off",
            format!("{ends_in:.1} s later: {}", fetched.outcome()),
            format!("reset within {FAIL_LIMIT_S} s"),
            held,
        );
        let bridged = self.transfer("bridged", SERVER, &files.old)?;
        let direct = self.so_far("direct")?;
        let ratio = bridged.seconds / direct.seconds.max(0.001);
        self.report.peer_off.bridged_over_direct = Some(ratio);
        self.check(
            "fetch with the peer off: time",
            format!("{:.1} s of {:.1} s", bridged.seconds, direct.seconds),
            format!("at most {BRIDGED_LIMIT} of direct"),
            bridged.sha256_ok && ratio <= BRIDGED_LIMIT,
        );
        Ok(())
    }

    pub(super) fn peer_on(&mut self) -> Result<()> {
        self.lab.power_on(Site::Core)?;
        let back = self.wait(BOOT_LIMIT, Scenario::tunnel_is_up)?;
        self.report.peer_off.tunnel_back_in_s = back;
        self.check(
            "tunnel after switching the peer on",
            seconds(back),
            format!("at most {} s", BOOT_LIMIT.as_secs()),
            back.is_some(),
        );
        let files = self.files;
        self.transfer("after-peer-off", SERVER, &files.new)?;
        Ok(())
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "never".to_owned(), |value| format!("{value:.1} s"))
}
