//! The rows of the table, from all runs. Medians of what all rounds gave; a figure that is missing is an error, not a row.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::marks::{MD5SUM, PIPE, Seen, median};
use super::ways::Way;
use super::{Args, Figure, WORK_MIB};
use crate::bench::report::{Limit, Report, Row};

/// More than this of the machine's CPU time for other programs, and times are not to be trusted.
const BUSY: f64 = 0.05;

/// What all runs of all ways gave.
#[derive(Default)]
pub struct Runs {
    runs: BTreeMap<Way, Vec<Seen>>,
    sum: Option<String>,
    /// Runs that do not count, since the emulator lost the guest's state in them.
    pub lost: u32,
}

impl Runs {
    /// Adds a run.
    ///
    /// # Errors
    /// The guest computed something else than in another run.
    pub fn add(&mut self, way: Way, seen: Seen) -> Result<()> {
        if let Some(sum) = seen.sum() {
            let first = self.sum.get_or_insert_with(|| sum.to_owned());
            ensure!(
                first == sum,
                "{}: md5sum came to {sum}, and to {first} in another run",
                way.name()
            );
        }
        self.runs.entry(way).or_default().push(seen);
        Ok(())
    }

    fn of(&self, way: Way) -> &[Seen] {
        self.runs.get(&way).map(Vec::as_slice).unwrap_or_default()
    }

    /// The median of one figure of each run.
    fn one(&self, way: Way, what: &str, of: impl Fn(&Seen) -> Option<f64>) -> Result<f64> {
        self.many(way, what, |seen| of(seen).into_iter().collect())
    }

    /// The median of several figures of each run. Every run must have one.
    fn many(&self, way: Way, what: &str, of: impl Fn(&Seen) -> Vec<f64>) -> Result<f64> {
        let figures: Vec<Vec<f64>> = self.of(way).iter().map(of).collect();
        let complete = figures.iter().all(|figures| !figures.is_empty());
        median(figures.into_iter().flatten())
            .filter(|_| complete)
            .with_context(|| format!("{}: no figure for {what}", way.name()))
    }
}

/// Prints what a run gave.
pub fn print_run(round: u32, way: Way, seen: &Seen) {
    let mut text = format!("round {round}, {:8}", way.name());
    let mut add = |part: String| {
        text.push_str("  ");
        text.push_str(&part);
    };
    if let Some(seconds) = seen.to_init() {
        add(format!("init {seconds:.2} s"));
    }
    if let Some(exits) = seen.exits_to_init().filter(|_| way != Way::Direct) {
        add(format!("after {exits} exits"));
    }
    if let Some(rate) = seen.idle_exits() {
        add(format!("idle {rate:.1} exits/s"));
    }
    for work in [MD5SUM, PIPE] {
        let list = |seconds: Vec<f64>| {
            let words: Vec<String> = seconds.iter().map(|it| format!("{it:.2}")).collect();
            words.join(" ")
        };
        let (seconds, cpu) = (seen.seconds(work), seen.cpu_seconds(work));
        if !seconds.is_empty() {
            add(format!("{work} {} s, CPU {} s", list(seconds), list(cpu)));
        }
    }
    add(format!(
        "(other programs had {:.0}% of this machine)",
        100.0 * seen.others
    ));
    println!("{text}");
}

/// Adds the rows of the bench guest.
///
/// # Errors
/// A figure is missing.
pub fn add(arguments: &Args, runs: &Runs, report: &mut Report) -> Result<()> {
    let table = Table { arguments, runs };
    if arguments.wants(Figure::Boot) {
        table.boot(report)?;
    }
    if arguments.wants(Figure::Idle) {
        table.idle(report)?;
    }
    if arguments.wants(Figure::Md5sum) {
        let name = format!("md5sum of {WORK_MIB} MiB in tmpfs, one vCPU");
        table.work(MD5SUM, &name, 1.05, report)?;
    }
    if arguments.wants(Figure::Pipe) {
        let name = format!(
            "{WORK_MIB} MiB from dd to md5sum, {} vCPUs",
            arguments.vcpus
        );
        table.work(PIPE, &name, 1.3, report)?;
    }
    let name = "runs made again, for the emulator lost the guest's state";
    report.add(Row::new(name, "", f64::from(runs.lost)));
    let others = median(runs.runs.values().flatten().map(|seen| seen.others)).unwrap_or_default();
    if others > BUSY {
        println!(
            "Other programs had {:.0}% of this machine's CPUs meanwhile: times are not to be trusted, exits are.",
            100.0 * others
        );
    }
    Ok(())
}

struct Table<'a> {
    arguments: &'a Args,
    runs: &'a Runs,
}

impl Table<'_> {
    fn has_kvm(&self) -> bool {
        !self.arguments.skip_kvm
    }

    fn boot(&self, report: &mut Report) -> Result<()> {
        let runs = self.runs;
        let init = |way| runs.one(way, "the boot to init", Seen::to_init);
        let exits = |way| {
            runs.one(way, "exits to init", |seen| {
                Some(seen.exits_to_init()? as f64)
            })
        };
        let (outpost, direct) = (init(Way::Outpost)?, init(Way::Direct)?);
        let name = "boot to init, by the guest's clock";
        report.add(
            Row::new(name, "s", outpost)
                .beside(Way::Direct.name(), direct)
                .limited_by_ratio(Limit::AtMost(1.5)),
        );
        if self.has_kvm() {
            report.add(
                Row::new(name, "s", outpost)
                    .beside(Way::Kvm.name(), init(Way::Kvm)?)
                    .limited_by_ratio(Limit::LessThan(0.5)),
            );
        }
        let first = runs.one(
            Way::Outpost,
            "the boot from the first instruction",
            Seen::first_instruction_to_init,
        )?;
        report.add(Row::new(
            "first instruction to init, by the box's clock",
            "s",
            first,
        ));
        let row = Row::new("exits, first instruction to init", "", exits(Way::Outpost)?);
        let row = match self.has_kvm() {
            true => row.beside(Way::Kvm.name(), exits(Way::Kvm)?),
            false => row,
        };
        report.add(row.limited(Limit::AtMost(10_000.0)));
        let pages = runs.one(Way::Outpost, "pages of nested tables", |seen| {
            Some(seen.table_pages? as f64)
        })?;
        report.add(
            Row::new(
                format!("nested-table pages, {} MiB", self.arguments.memory),
                "",
                pages,
            )
            .limited(Limit::AtMost(8.0)),
        );
        Ok(())
    }

    fn idle(&self, report: &mut Report) -> Result<()> {
        let vcpus = f64::from(self.arguments.vcpus);
        let rate = |way| {
            self.runs.one(way, "exits while idle", |seen| {
                Some(seen.idle_exits()? / vcpus)
            })
        };
        let row = Row::new(
            "exits of an idle guest, mean of its vCPUs",
            "1/s",
            rate(Way::Outpost)?,
        );
        let row = match self.has_kvm() {
            true => row.beside(Way::Kvm.name(), rate(Way::Kvm)?),
            false => row,
        };
        report.add(row.limited(Limit::AtMost(10.0)));
        let worst = self
            .runs
            .one(Way::Outpost, "exits while idle, by vCPU", |seen| {
                seen.idle_exits_of_the_worst()
            })?;
        report.add(Row::new(
            "exits of an idle guest, the vCPU with the most",
            "1/s",
            worst,
        ));
        Ok(())
    }

    /// A piece of work beside direct; KVM's figure and the exits are only reported.
    fn work(&self, work: &str, name: &str, most: f64, report: &mut Report) -> Result<()> {
        let seconds = |way| self.runs.many(way, name, |seen| seen.seconds(work));
        let direct = seconds(Way::Direct)?;
        report.add(
            Row::new(name, "s", seconds(Way::Outpost)?)
                .beside(Way::Direct.name(), direct)
                .limited_by_ratio(Limit::AtMost(most)),
        );
        let cpu = |way| self.runs.many(way, name, |seen| seen.cpu_seconds(work));
        report.add(
            Row::new(
                format!("{name}: the emulator's CPU time"),
                "s",
                cpu(Way::Outpost)?,
            )
            .beside(Way::Direct.name(), cpu(Way::Direct)?),
        );
        let exits = |way| self.runs.many(way, name, |seen| seen.exits(work));
        let row = Row::new(format!("{name}: exits"), "", exits(Way::Outpost)?);
        if self.has_kvm() {
            report.add(
                Row::new(format!("{name}: KVM"), "s", seconds(Way::Kvm)?)
                    .beside(Way::Direct.name(), direct),
            );
            report.add(row.beside(Way::Kvm.name(), exits(Way::Kvm)?));
        } else {
            report.add(row);
        }
        Ok(())
    }
}
