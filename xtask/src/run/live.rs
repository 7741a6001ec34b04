//! What is going on right now: written by the scenario and the boxes' telemetry, read by the panel.
//!
//! On a terminal the panel shows it; otherwise the lines are printed as they come.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use super::line::Site;
use super::report::{Check, Transfer};
use super::wires::Meter;

/// Lines of the log that are kept.
const LOG_LINES: usize = 200;

/// How far a step of the scenario is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not yet begun.
    Waiting,
    /// Going on.
    Running,
    /// Over, and all held.
    Held,
    /// Over, and something did not hold.
    Failed,
}

/// A step of the scenario.
#[derive(Clone, Debug)]
pub struct Step {
    /// For people.
    pub name: &'static str,
    /// How far it is.
    pub progress: Progress,
}

/// What is known of a box.
#[derive(Clone, Debug, Default)]
pub struct BoxView {
    /// Its machine runs.
    pub power: bool,
    /// When it was switched on.
    pub since: Option<Instant>,
    /// Milestones of its boot, in ms from the binary's first instruction.
    pub milestones: BTreeMap<String, u64>,
    /// The newest status line of its telemetry.
    pub status: Value,
    /// What it says it cannot do.
    pub problems: Vec<String>,
}

impl BoxView {
    /// A milestone was reached.
    pub fn reached(&self, milestone: &str) -> bool {
        self.milestones.contains_key(milestone)
    }

    /// A value of the newest status.
    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.status.pointer(pointer).and_then(Value::as_u64)
    }

    /// Its tunnel carries streams.
    pub fn tunnel_up(&self) -> bool {
        self.power
            && self
                .status
                .pointer("/net/tunnel/up")
                .and_then(Value::as_bool)
                .unwrap_or(false)
    }

    /// What its guest is doing.
    pub fn guest(&self) -> &str {
        self.status
            .pointer("/guest")
            .and_then(Value::as_str)
            .unwrap_or("off")
    }
}

/// A transfer that goes on.
#[derive(Clone, Debug)]
pub struct Underway {
    /// As in the report.
    pub name: String,
    /// Bytes so far.
    pub bytes: u64,
    /// Bytes in all.
    pub total: u64,
    /// When it began.
    pub since: Instant,
    /// What the line had carried then.
    pub line_bytes_before: u64,
}

/// All of it.
pub struct State {
    /// When the run began.
    pub since: Instant,
    /// What the line is like, in a few words.
    pub line: String,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// What was expected and what came of it.
    pub checks: Vec<Check>,
    /// Transfers that are over.
    pub transfers: Vec<Transfer>,
    /// The transfer that goes on.
    pub underway: Option<Underway>,
    /// Branch and core.
    pub boxes: [BoxView; 2],
    /// The newest lines.
    pub log: VecDeque<String>,
    /// The cables' counters, once there are cables.
    pub meter: Option<Meter>,
    /// The scenario is over: did everything hold?
    pub over: Option<bool>,
    /// How to reach each part.
    pub hints: Vec<String>,
}

impl State {
    /// What is known of the box at `site`.
    pub fn site(&self, site: Site) -> &BoxView {
        match site {
            Site::Branch => &self.boxes[0],
            Site::Core => &self.boxes[1],
        }
    }

    /// The same, to change.
    pub fn site_mut(&mut self, site: Site) -> &mut BoxView {
        match site {
            Site::Branch => &mut self.boxes[0],
            Site::Core => &mut self.boxes[1],
        }
    }
}

/// The state, shared.
#[derive(Clone)]
pub struct Live {
    state: Arc<Mutex<State>>,
    /// Lines go to standard output as well.
    prints: bool,
}

impl Live {
    /// Nothing has happened yet. `prints`: there is no panel.
    pub fn new(line: String, prints: bool) -> Live {
        let state = State {
            since: Instant::now(),
            line,
            steps: Vec::new(),
            checks: Vec::new(),
            transfers: Vec::new(),
            underway: None,
            boxes: Default::default(),
            log: VecDeque::new(),
            meter: None,
            over: None,
            hints: Vec::new(),
        };
        Live {
            state: Arc::new(Mutex::new(state)),
            prints,
        }
    }

    /// Are lines printed, for want of a panel?
    pub fn prints(&self) -> bool {
        self.prints
    }

    /// The state; keep it for a moment only.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line for people.
    pub fn say(&self, text: impl Into<String>) {
        let text = text.into();
        let mut state = self.state();
        let seconds = state.since.elapsed().as_secs_f64();
        if self.prints {
            println!("[{seconds:6.1}] {text}");
        }
        state.log.push_back(format!("{seconds:6.1} {text}"));
        if state.log.len() > LOG_LINES {
            state.log.pop_front();
        }
    }

    /// Sets how far a step is.
    pub fn step(&self, name: &str, progress: Progress) {
        if progress == Progress::Running {
            self.say(format!("── {name}"));
        }
        let mut state = self.state();
        state
            .steps
            .iter_mut()
            .filter(|step| step.name == name)
            .for_each(|step| step.progress = progress);
    }

    /// Records an expectation and what came of it.
    pub fn check(&self, check: Check) {
        self.say(check.to_string());
        self.state().checks.push(check);
    }
}

/// A milestone's name as a field of the report.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Milestones(BTreeMap<String, u64>);

impl From<&BoxView> for Milestones {
    fn from(view: &BoxView) -> Milestones {
        Milestones(
            view.milestones
                .iter()
                .map(|(name, ms)| (format!("{}_ms", name.replace('-', "_")), *ms))
                .collect(),
        )
    }
}
