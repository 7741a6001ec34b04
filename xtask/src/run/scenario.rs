//! The scenario: what is done, what is expected of it, and what came of it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::client::{self, Fetched};
use super::files::{Files, Served};
use super::lab::Lab;
use super::line::{LineConfig, Site};
use super::live::{Live, Progress, Step, Underway};
use super::observe::PlainText;
use super::report::{BootReport, Check, ImageReport, Report, Transfer, human, percent};
use super::{DIRECT, GUEST, SERVER, namespace};
use crate::process;

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

type Action = fn(&mut Scenario) -> Result<()>;

/// The steps, in order.
const STEPS: [(&str, Action); 8] = [
    ("boot both boxes from one image", |scenario| scenario.boot()),
    ("fetch directly, bridged", |scenario| scenario.direct()),
    ("fetch optimised: cold, warm, next version", |scenario| {
        scenario.optimised()
    }),
    ("fetch what is already compressed", |scenario| {
        scenario.compressed()
    }),
    ("search the directory in the branch", |scenario| {
        scenario.directory()
    }),
    ("unplug the line, and plug it in again", |scenario| {
        scenario.outage()
    }),
    (
        "switch the peer off in the middle of a transfer",
        |scenario| scenario.peer_off(),
    ),
    ("switch the peer on again", |scenario| scenario.peer_on()),
];

/// A scenario that is being played.
pub struct Scenario<'a> {
    /// What it is played in.
    pub lab: &'a mut Lab,
    files: &'a Files,
    line: &'a LineConfig,
    live: Live,
    report: Report,
}

impl<'a> Scenario<'a> {
    /// Before the first step.
    pub fn new(
        lab: &'a mut Lab,
        files: &'a Files,
        line: &'a LineConfig,
        image: ImageReport,
        live: &Live,
    ) -> Scenario<'a> {
        let report = Report {
            accelerator: lab.accelerator.name().to_owned(),
            congestion_control: namespace::CONGESTION_CONTROL.to_owned(),
            image,
            line: line.clone(),
            ..Report::default()
        };
        live.state().steps = STEPS
            .map(|(name, _)| Step {
                name,
                progress: Progress::Waiting,
            })
            .into();
        Scenario {
            lab,
            files,
            line,
            live: live.clone(),
            report,
        }
    }

    /// Plays all steps. A step that cannot be carried out is a check that did not hold, and the next one is tried; only if the
    /// boxes do not boot, all ends.
    ///
    /// # Errors
    /// When the user interrupts.
    pub fn play(&mut self) -> Result<()> {
        for (index, (name, action)) in STEPS.into_iter().enumerate() {
            let failed_before = self.failed();
            self.live.step(name, Progress::Running);
            let result = action(self).and_then(|()| self.lab.check_alive());
            process::check_interrupted()?;
            if let Err(error) = result {
                self.check(name, format!("{error:#}"), "can be carried out", false);
                if index == 0 {
                    self.live.step(name, Progress::Failed);
                    return Ok(());
                }
            }
            let held = self.failed() == failed_before;
            self.live.step(
                name,
                if held {
                    Progress::Held
                } else {
                    Progress::Failed
                },
            );
        }
        Ok(())
    }

    fn failed(&self) -> usize {
        self.live
            .state()
            .checks
            .iter()
            .filter(|check| !check.held)
            .count()
    }

    /// The report as it is now.
    pub fn report(&self) -> Report {
        let mut report = self.report.clone();
        let state = self.live.state();
        report.checks.clone_from(&state.checks);
        report.transfers.clone_from(&state.transfers);
        report.held = !state.checks.is_empty() && state.checks.iter().all(|check| check.held);
        drop(state);
        let snapshot = self.lab.wires.snapshot();
        report.line_counters = snapshot.line;
        report.frames_without_room = snapshot.dropped;
        report
    }

    fn check(
        &self,
        what: impl Into<String>,
        figure: impl Into<String>,
        limit: impl Into<String>,
        held: bool,
    ) {
        self.live.check(Check {
            what: what.into(),
            figure: figure.into(),
            limit: limit.into(),
            held,
        });
    }

    /// Waits until `done`, and says how long that took; `None` after `limit`.
    fn wait(&mut self, limit: Duration, done: impl Fn(&Live) -> bool) -> Result<Option<f64>> {
        let start = Instant::now();
        loop {
            if done(&self.live) {
                return Ok(Some(start.elapsed().as_secs_f64()));
            }
            if start.elapsed() > limit {
                return Ok(None);
            }
            process::check_interrupted()?;
            self.lab.check_alive()?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn tunnel_is_up(live: &Live) -> bool {
        Site::ALL
            .iter()
            .all(|site| live.state().site(*site).tunnel_up())
    }

    /// After what is on its way has arrived.
    fn settle(&self) -> Result<()> {
        std::thread::sleep(self.line.rtt() * 2 + Duration::from_millis(200));
        process::check_interrupted()
    }

    // ── steps ──

    fn boot(&mut self) -> Result<()> {
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
        let guest = self.live.state().site(Site::Branch).guest().to_owned();
        self.check(
            "guest",
            guest,
            format!(
                "ready {} s after the network at most",
                GUEST_LIMIT.as_secs()
            ),
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

    /// One transfer of the report: fetched, counted, checked.
    fn transfer(&mut self, name: &str, address: &str, file: &Served) -> Result<Transfer> {
        self.settle()?;
        let before = self.lab.wires.snapshot();
        let fetched = self.fetch(name, address, file, |_, _| Ok(()))?;
        self.settle()?;
        let after = self.lab.wires.snapshot();
        let [up, down] = [0, 1].map(|index| after.line[index].bytes - before.line[index].bytes);
        let transfer = Transfer {
            name: name.to_owned(),
            url: client::url(address, file),
            bytes: file.bytes,
            wan_bytes: up + down,
            wan_bytes_up: up,
            wan_bytes_down: down,
            seconds: fetched.seconds,
            sha256_ok: fetched.sha256_ok,
            outcome: fetched.outcome(),
        };
        self.live.say(format!(
            "{name}: {} in {:.1} s, {} on the line ({})",
            human(fetched.bytes),
            transfer.seconds,
            human(transfer.wan_bytes),
            percent(transfer.wan_bytes, file.bytes)
        ));
        self.live.state().transfers.push(transfer.clone());
        self.check(
            format!("{name}: SHA-256"),
            transfer.outcome.clone(),
            "must be right",
            transfer.sha256_ok,
        );
        Ok(transfer)
    }

    /// Fetches, and shows how far it is. `at` is called with every advance.
    fn fetch(
        &mut self,
        name: &str,
        address: &str,
        file: &Served,
        mut at: impl FnMut(&mut Lab, u64) -> Result<()>,
    ) -> Result<Fetched> {
        let limit = Duration::from_secs(900);
        self.live.state().underway = Some(Underway {
            name: name.to_owned(),
            bytes: 0,
            total: file.bytes,
            since: Instant::now(),
            line_bytes_before: self.lab.wires.snapshot().line_bytes(),
        });
        let fetch = self.lab.fetch(address, file, limit)?;
        let live = self.live.clone();
        let mut trouble = Ok(());
        let fetched = fetch.finish(|bytes| {
            if let Some(underway) = &mut live.state().underway {
                underway.bytes = bytes;
            }
            if trouble.is_ok() {
                trouble = at(self.lab, bytes);
            }
        });
        self.live.state().underway = None;
        trouble?;
        fetched
    }

    /// The same with the line watched for the file's bytes. Gives frames looked at, and frames with bytes of the file.
    fn watched(
        &mut self,
        name: &str,
        address: &str,
        file: &Served,
    ) -> Result<(Transfer, (u64, u64))> {
        self.lab
            .wires
            .look_for(Some(PlainText::new(std::fs::read(&file.path)?.into())))?;
        let transfer = self.transfer(name, address, file);
        let watch = self.lab.wires.look_for(None)?;
        Ok((
            transfer?,
            watch.map(|watch| watch.result()).unwrap_or_default(),
        ))
    }

    fn direct(&mut self) -> Result<()> {
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

    fn so_far(&self, name: &str) -> Result<Transfer> {
        let found = self
            .live
            .state()
            .transfers
            .iter()
            .find(|transfer| transfer.name == name && transfer.sha256_ok)
            .cloned();
        found.ok_or_else(|| anyhow::anyhow!("there is no good transfer {name} to compare with"))
    }

    fn optimised(&mut self) -> Result<()> {
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

    fn compressed(&mut self) -> Result<()> {
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

    /// A search of the guest's directory. Did it answer?
    pub fn search(&mut self, when: &str) -> Result<bool> {
        let found = client::search(&self.lab.client, GUEST)?;
        let held = found.entries > 1;
        let figure = match held {
            true => format!("{} entries in {:.2} s", found.entries, found.seconds),
            false => format!("{} entries; {}", found.entries, found.error),
        };
        self.check(
            format!("directory search, {when}"),
            figure,
            "must answer",
            held,
        );
        self.report.guest.entries = found.entries;
        Ok(held)
    }

    fn directory(&mut self) -> Result<()> {
        self.report.guest.ldap_line_up = self.search("line plugged in")?;
        Ok(())
    }

    fn failing_fetch(&mut self, when: &str) -> Result<f64> {
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

    fn outage(&mut self) -> Result<()> {
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

    fn unplugged(&mut self) -> Result<()> {
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

    fn peer_off(&mut self) -> Result<()> {
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

    fn peer_on(&mut self) -> Result<()> {
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

    // ── playing afterwards ──

    /// Fetches once more, as the user asks.
    ///
    /// # Errors
    /// When curl cannot be started, or the user interrupts.
    pub fn fetch_again(&mut self, name: &str, address: &str, newer: bool) -> Result<()> {
        let files = self.files;
        self.transfer(name, address, if newer { &files.new } else { &files.old })
            .map(drop)
    }
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "never".to_owned(), |value| format!("{value:.1} s"))
}
