//! The scenario: what is done, what is expected of it, and what came of it. This file plays steps and makes transfers; what the
//! steps are is in `steps`.

mod steps;

use std::time::{Duration, Instant};

use anyhow::Result;

use super::client::{self, Fetched};
use super::files::{Files, Served};
use super::lab::Lab;
use super::line::{LineConfig, Site};
use super::live::{Live, Progress, Step, Underway};
use super::observe::PlainText;
use super::report::{Check, ImageReport, Report, Transfer, human, percent};
use super::{GUEST, namespace};
use crate::process;

/// How long any fetch may take before curl gives up.
const FETCH_LIMIT: Duration = Duration::from_secs(900);

type Action = fn(&mut Scenario) -> Result<()>;

/// The steps, in order.
const STEPS: [(&str, Action); 10] = [
    ("boot both boxes from one image", |scenario| scenario.boot()),
    ("fetch directly, bridged", |scenario| scenario.direct()),
    ("fetch optimised: cold, warm, next version", |scenario| {
        scenario.optimised()
    }),
    ("fetch what is already compressed", |scenario| {
        scenario.compressed()
    }),
    ("several fetches at once", |scenario| scenario.several()),
    ("connect to what refuses or is not there", |scenario| {
        scenario.refused()
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
        // A run that was cut short has shown nothing yet.
        report.held = state
            .steps
            .iter()
            .all(|step| step.progress == Progress::Held);
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
        let check = Check {
            what: what.into(),
            figure: figure.into(),
            limit: limit.into(),
            held,
        };
        // What the user tries afterwards is no expectation.
        let over = self.live.state().over.is_some();
        match over {
            true => self.live.say(check.to_string()),
            false => self.live.check(check),
        }
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
        self.live.state().underway = Some(Underway {
            name: name.to_owned(),
            bytes: 0,
            total: file.bytes,
            since: Instant::now(),
            line_bytes_before: self.lab.wires.snapshot().line_bytes(),
        });
        let fetch = self.lab.fetch(address, file, FETCH_LIMIT)?;
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
