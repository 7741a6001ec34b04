//! What the bench guest says, when, and how often it had left for its hypervisor by then; the figures that come of it. Not
//! how any machine is run.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// A count that came sooner after a mark may have been made before it.
const SETTLED: Duration = Duration::from_millis(200);
/// What the guest's clock may differ from this machine's, in seconds and of the time between: the way that a line takes.
const CLOCK_SECONDS: f64 = 0.5;
const CLOCK_SHARE: f64 = 0.02;

/// Pieces of the guest's work that its marks name.
pub const BOOT: &str = "boot";
pub const IDLE: &str = "idle";
pub const MD5SUM: &str = "md5sum";
pub const PIPE: &str = "pipe";
/// Everything: the guest switches itself off.
pub const ALL: &str = "all";

/// A line of the guest's, or of the host under it.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A piece of work begins or ends.
    Mark {
        /// Which.
        work: String,
        /// Whether it ends.
        end: bool,
        /// The guest's clock, in seconds.
        uptime: f64,
        /// Exits so far, where whoever passes the line on counts them.
        exits: Option<u64>,
    },
    /// What the work came to.
    Sum(String),
    /// CPUs that the guest sees.
    Cpus(usize),
    /// The host between this machine and the guest can run it.
    HostReady,
    /// What is wrong with that host.
    HostFails(String),
    /// Nothing of ours.
    Other,
}

impl Line {
    /// Reads a line as `guests/bench` and `guests/kvm` write them.
    pub fn parse(line: &str) -> Line {
        Line::parse_own(line).unwrap_or(Line::Other)
    }

    fn parse_own(line: &str) -> Option<Line> {
        let said = line.trim().strip_prefix("bench: ")?;
        if let Some(said) = said.strip_prefix("host ") {
            return Some(match said {
                "ready" => Line::HostReady,
                said => Line::HostFails(said.to_owned()),
            });
        }
        let mut words = said.split_whitespace();
        let (work, what, value) = (words.next()?, words.next()?, words.next()?);
        Some(match what {
            "sum" => Line::Sum(value.to_owned()),
            "count" => Line::Cpus(value.parse().ok()?),
            "begin" | "end" => Line::Mark {
                work: work.to_owned(),
                end: what == "end",
                uptime: value.parse().ok()?,
                exits: words.next().and_then(|word| word.parse().ok()),
            },
            _ => return None,
        })
    }
}

/// What the box says on its telemetry port, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Event {
    pub event: String,
    #[serde(default)]
    pub milestone: String,
    #[serde(default)]
    pub ms: u64,
    #[serde(default)]
    pub guest_exits: u64,
    #[serde(default)]
    pub guest_exits_by_vcpu: Vec<u64>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub text: String,
}

impl Event {
    /// Reads a line. The firmware's last words may come before it.
    pub fn parse(line: &str) -> Option<Event> {
        serde_json::from_str(line.get(line.find("{\"event\"")?..)?.trim_end()).ok()
    }
}

#[derive(Debug)]
struct Mark {
    work: String,
    end: bool,
    uptime: f64,
    exits: Option<u64>,
    at: Instant,
    cpu: f64,
}

/// The exits so far, as the box reports them once a second.
#[derive(Debug)]
struct Count {
    at: Instant,
    ms: u64,
    exits: u64,
    by_vcpu: Vec<u64>,
}

/// One run of the guest.
#[derive(Debug, Default)]
pub struct Seen {
    marks: Vec<Mark>,
    sums: Vec<String>,
    /// CPUs that the guest sees.
    pub cpus: Option<usize>,
    counts: Vec<Count>,
    started_ms: Option<u64>,
    init_ms: Option<u64>,
    /// Pages of nested tables, as the box says.
    pub table_pages: Option<u64>,
    /// How much of this machine's CPU time other programs had meanwhile, from 0 to 1.
    pub others: f64,
}

impl Seen {
    /// Takes a line of the guest's that came at `at`, when the emulator had taken `cpu` seconds of CPU time.
    pub fn line(&mut self, line: Line, at: Instant, cpu: f64) {
        match line {
            Line::Mark {
                work,
                end,
                uptime,
                exits,
            } => self.marks.push(Mark {
                work,
                end,
                uptime,
                exits,
                at,
                cpu,
            }),
            Line::Sum(sum) => self.sums.push(sum),
            Line::Cpus(cpus) => self.cpus = Some(cpus),
            Line::HostReady | Line::HostFails(_) | Line::Other => {}
        }
    }

    /// Takes an event of the box's that came at `at`.
    pub fn event(&mut self, event: &Event, at: Instant) {
        match (event.event.as_str(), event.milestone.as_str()) {
            ("status", _) => self.counts.push(Count {
                at,
                ms: event.ms,
                exits: event.guest_exits,
                by_vcpu: event.guest_exits_by_vcpu.clone(),
            }),
            ("boot", "guest-started") => self.started_ms = Some(event.ms),
            ("boot", "guest-init") => self.init_ms = Some(event.ms),
            _ => {}
        }
    }

    /// Whether the guest has done everything.
    pub fn is_done(&self) -> bool {
        self.marks.iter().any(|mark| mark.work == ALL)
    }

    /// Checks what the figures rest upon.
    ///
    /// # Errors
    /// The guest has another number of CPUs, it computed different sums, or its clock goes wrong.
    pub fn check(&self, vcpus: usize) -> Result<()> {
        ensure!(
            self.cpus == Some(vcpus),
            "the guest should have {vcpus} CPUs and sees {:?}",
            self.cpus
        );
        if let [first, rest @ ..] = self.sums.as_slice()
            && let Some(other) = rest.iter().find(|sum| *sum != first)
        {
            anyhow::bail!(
                "md5sum came to {first} and then to {other} for the same bytes: the guest does not compute right"
            );
        }
        let (first, last) = (self.marks.first(), self.marks.last());
        let (first, last) = first.zip(last).context("the guest said nothing")?;
        let here = last.at.duration_since(first.at).as_secs_f64();
        let there = last.uptime - first.uptime;
        ensure!(
            (here - there).abs() <= CLOCK_SECONDS + CLOCK_SHARE * here,
            "the guest's clock went on by {there:.2} s in {here:.2} s: its figures are worth nothing"
        );
        Ok(())
    }

    /// What md5sum came to.
    pub fn sum(&self) -> Option<&str> {
        self.sums.first().map(String::as_str)
    }

    /// The guest's clock when its first process began, in seconds.
    pub fn to_init(&self) -> Option<f64> {
        self.ends(BOOT).next().map(|mark| mark.uptime)
    }

    /// From the first instruction to the first process by the box's clock, in seconds: with the kernel's unpacking of itself.
    pub fn first_instruction_to_init(&self) -> Option<f64> {
        let (from, to) = self.started_ms.zip(self.init_ms)?;
        Some(to.checked_sub(from)? as f64 / 1e3)
    }

    /// Exits up to the first process; rather too many than too few.
    pub fn exits_to_init(&self) -> Option<u64> {
        let mark = self.ends(BOOT).next()?;
        mark.exits
            .or_else(|| Some(self.first_after(mark.at)?.exits))
    }

    /// Exits a second while the guest had nothing to do, of all its vCPUs.
    pub fn idle_exits(&self) -> Option<f64> {
        let (begin, end) = self.spans(IDLE).next()?;
        if let Some((from, to)) = begin.exits.zip(end.exits) {
            return Some(rate(
                to.checked_sub(from)?,
                1e3 * (end.uptime - begin.uptime),
            ));
        }
        let (from, to, ms) = self.counted_within(begin, end)?;
        Some(rate(to.exits.checked_sub(from.exits)?, ms))
    }

    /// The same of the vCPU that has the most. None under KVM, which does not say it.
    pub fn idle_exits_of_the_worst(&self) -> Option<f64> {
        let (begin, end) = self.spans(IDLE).next()?;
        let (from, to, ms) = self.counted_within(begin, end)?;
        let each = from.by_vcpu.iter().zip(&to.by_vcpu);
        let worst = each.filter_map(|(from, to)| to.checked_sub(*from)).max()?;
        Some(rate(worst, ms))
    }

    /// The first and the last count between two marks, and the milliseconds from one to the other.
    fn counted_within(&self, begin: &Mark, end: &Mark) -> Option<(&Count, &Count, f64)> {
        let (from, to) = (self.first_after(begin.at)?, self.last_before(end.at)?);
        let ms = to.ms.checked_sub(from.ms).filter(|ms| *ms > 0)?;
        Some((from, to, ms as f64))
    }

    /// How long each repetition of a piece of work took, in seconds of the guest's clock.
    pub fn seconds(&self, work: &str) -> Vec<f64> {
        self.spans(work)
            .map(|(begin, end)| end.uptime - begin.uptime)
            .collect()
    }

    /// The emulator's CPU time in each repetition, in seconds: of all its CPUs, whatever they did.
    pub fn cpu_seconds(&self, work: &str) -> Vec<f64> {
        self.spans(work)
            .map(|(begin, end)| end.cpu - begin.cpu)
            .collect()
    }

    /// Exits in each repetition; rather too many than too few.
    pub fn exits(&self, work: &str) -> Vec<f64> {
        self.spans(work)
            .filter_map(|(begin, end)| {
                let exits = match begin.exits.zip(end.exits) {
                    Some((from, to)) => to.checked_sub(from)?,
                    None => {
                        let (from, to) = (self.last_before(begin.at)?, self.first_after(end.at)?);
                        to.exits.checked_sub(from.exits)?
                    }
                };
                Some(exits as f64)
            })
            .collect()
    }

    fn ends(&self, work: &str) -> impl Iterator<Item = &Mark> {
        self.marks
            .iter()
            .filter(move |mark| mark.end && mark.work == work)
    }

    fn spans(&self, work: &str) -> impl Iterator<Item = (&Mark, &Mark)> {
        self.marks.windows(2).filter_map(move |pair| match pair {
            [begin, end] if !begin.end && end.end && begin.work == work && end.work == work => {
                Some((begin, end))
            }
            _ => None,
        })
    }

    fn first_after(&self, at: Instant) -> Option<&Count> {
        let mut counts = self.counts.iter();
        counts.find(|count| count.at >= at + SETTLED)
    }

    fn last_before(&self, at: Instant) -> Option<&Count> {
        let mut counts = self.counts.iter().rev();
        counts.find(|count| count.at <= at)
    }
}

fn rate(exits: u64, ms: f64) -> f64 {
    exits as f64 * 1e3 / ms
}

/// The middle one; of an even number, the mean of the two in the middle.
pub fn median(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    match sorted.len() % 2 {
        1 => Some(upper),
        _ => Some((sorted.get(middle - 1)? + upper) / 2.0),
    }
}

/// The number before " pages of nested tables" in what the box says on its console.
pub fn table_pages(console: &str) -> Option<u64> {
    let (before, _) = console.rsplit_once(" pages of nested tables")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(lines: &[(u64, &str)], counts: &[(u64, u64)]) -> Seen {
        let zero = Instant::now();
        let mut seen = Seen::default();
        for (ms, line) in lines {
            let cpu = *ms as f64 / 500.0;
            seen.line(Line::parse(line), zero + Duration::from_millis(*ms), cpu);
        }
        for (ms, exits) in counts {
            let (most, rest) = (exits - exits / 4, exits / 4);
            let event = format!(
                r#"{{"event":"status","ms":{ms},"guest_exits":{exits},"guest_exits_by_vcpu":[{rest},{most}],"net":{{}}}}"#
            );
            let event = Event::parse(&event).unwrap();
            seen.event(&event, zero + Duration::from_millis(*ms));
        }
        seen
    }

    #[test]
    fn lines_are_read_as_the_guests_write_them() {
        let mark = |exits| Line::Mark {
            work: PIPE.into(),
            end: true,
            uptime: 12.25,
            exits,
        };
        assert_eq!(Line::parse("bench: pipe end 12.25\r"), mark(None));
        assert_eq!(Line::parse("bench: pipe end 12.25 4711"), mark(Some(4711)));
        assert_eq!(
            Line::parse("bench: pipe sum abc 9"),
            Line::Sum("abc".into())
        );
        assert_eq!(Line::parse("bench: cpus count 2"), Line::Cpus(2));
        assert_eq!(Line::parse("bench: host ready"), Line::HostReady);
        assert_eq!(
            Line::parse("bench: host has no /dev/kvm"),
            Line::HostFails("has no /dev/kvm".into())
        );
        for other in [
            "",
            "bench: ",
            "bench: pipe end soon",
            "[1] bench",
            "bench: x",
        ] {
            assert_eq!(Line::parse(other), Line::Other, "{other}");
        }
    }

    #[test]
    fn exits_on_the_lines_count_as_they_are() {
        let seen = seen(
            &[
                (0, "bench: boot end 2.00 900"),
                (1000, "bench: idle begin 3.00 1000"),
                (11000, "bench: idle end 13.00 1200"),
                (12000, "bench: pipe begin 14.00 1300"),
                (13500, "bench: pipe end 15.50 1400"),
            ],
            &[],
        );
        assert_eq!(seen.to_init(), Some(2.0));
        assert_eq!(seen.exits_to_init(), Some(900));
        assert_eq!(seen.idle_exits(), Some(20.0));
        assert_eq!(seen.idle_exits_of_the_worst(), None);
        assert_eq!(seen.seconds(PIPE), [1.5]);
        assert_eq!(seen.cpu_seconds(PIPE), [3.0]);
        assert_eq!(seen.exits(PIPE), [100.0]);
        assert!(seen.seconds(MD5SUM).is_empty());
    }

    #[test]
    fn counts_are_taken_from_around_the_marks() {
        let seen = seen(
            &[
                (100, "bench: boot end 2.00"),
                (1900, "bench: idle begin 3.80"),
                (5100, "bench: idle end 7.00"),
                (6500, "bench: pipe begin 8.40"),
                (7200, "bench: pipe end 9.10"),
            ],
            // The one at 2,000 may have been made before the idling began.
            &[
                (0, 10),
                (1000, 500),
                (2000, 600),
                (3000, 700),
                (5000, 710),
                (6000, 800),
                (7000, 900),
                (8000, 1000),
            ],
        );
        assert_eq!(seen.exits_to_init(), Some(500));
        assert_eq!(seen.idle_exits(), Some(5.0));
        assert_eq!(seen.idle_exits_of_the_worst(), Some(4.0));
        assert_eq!(seen.exits(PIPE), [200.0]);
    }

    #[test]
    fn what_the_figures_rest_upon_is_checked() {
        let good = [
            (0, "bench: boot end 2.00"),
            (10, "bench: cpus count 2"),
            (20, "bench: pipe sum a"),
            (20_000, "bench: all end 22.00"),
        ];
        assert!(seen(&good, &[]).check(2).is_ok());
        assert!(seen(&good, &[]).check(1).is_err());
        let mut slow = good;
        slow[3].1 = "bench: all end 20.90";
        assert!(seen(&slow, &[]).check(2).is_err());
        let sums = [
            good[0],
            good[1],
            good[2],
            (30, "bench: pipe sum b"),
            good[3],
        ];
        assert!(seen(&sums, &[]).check(2).is_err());
    }

    #[test]
    fn medians_and_table_pages() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
        let console =
            "guest: 1024 MiB in 0 pages of 1 GiB and 512 of 2 MiB, 4 pages of nested tables\r\n";
        assert_eq!(table_pages(console), Some(4));
        assert_eq!(table_pages("nothing"), None);
    }
}
