//! The live panel: draws the state, and takes keys. It changes nothing by itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Paragraph, Row, Sparkline, Table, Widget};

use super::line::Site;
use super::live::{BoxView, Progress, State};
use super::report::{human, percent};
use super::wires::Snapshot;

/// How often the rates are measured.
const SAMPLE: Duration = Duration::from_millis(500);
/// Samples that are kept for the curves.
const SAMPLES: usize = 240;

/// Milestones of a boot, in order, and how far along each is, in percent.
const MILESTONES: [(&str, u16); 8] = [
    ("start", 15),
    ("firmware-left", 25),
    ("cpus", 35),
    ("devices", 45),
    ("forwarding", 60),
    ("guest-started", 70),
    ("guest-init", 85),
    ("guest-ready", 100),
];

const DIM: Style = Style::new().fg(Color::DarkGray);
const GOOD: Style = Style::new().fg(Color::Green);
const BAD: Style = Style::new().fg(Color::Red);
const BUSY: Style = Style::new().fg(Color::Yellow);
const LAN: Style = Style::new().fg(Color::Cyan);
const WAN: Style = Style::new().fg(Color::Magenta);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Rates over the last minutes, in bits a second.
#[derive(Default)]
pub struct Rates {
    last: Option<(Instant, Snapshot)>,
    lan: VecDeque<u64>,
    wan: VecDeque<u64>,
}

impl Rates {
    /// Takes the counters in, if it is time.
    pub fn sample(&mut self, now: Instant, snapshot: Snapshot) {
        let Some((then, before)) = self.last else {
            self.last = Some((now, snapshot));
            return;
        };
        let passed = now - then;
        if passed < SAMPLE {
            return;
        }
        self.last = Some((now, snapshot));
        let rate = |bytes: u64| (bytes as f64 * 8.0 / passed.as_secs_f64()) as u64;
        push(
            &mut self.lan,
            rate(lan_bytes(&snapshot).saturating_sub(lan_bytes(&before))),
        );
        push(
            &mut self.wan,
            rate(snapshot.line_bytes().saturating_sub(before.line_bytes())),
        );
    }
}

fn push(samples: &mut VecDeque<u64>, value: u64) {
    samples.push_back(value);
    if samples.len() > SAMPLES {
        samples.pop_front();
    }
}

/// What passed the client's card, both directions.
fn lan_bytes(snapshot: &Snapshot) -> u64 {
    snapshot.cards[0].sent_bytes + snapshot.cards[0].received_bytes
}

/// Draws everything.
pub fn draw(state: &State, rates: &Rates, area: Rect, buffer: &mut Buffer) {
    let hints = match state.hints.len() as u16 {
        0 => 0,
        lines => lines + 2,
    };
    let [title, sites, middle, bottom, reach, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(8),
        Constraint::Length(transfer_rows(state).len() as u16 + 4),
        Constraint::Min(6),
        Constraint::Length(hints),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_title(state, title, buffer);
    let [branch, line, core] = Layout::horizontal([
        Constraint::Fill(3),
        Constraint::Fill(4),
        Constraint::Fill(3),
    ])
    .areas(sites);
    draw_box(state, Site::Branch, branch, buffer);
    draw_line(state, rates, line, buffer);
    draw_box(state, Site::Core, core, buffer);
    draw_transfers(state, middle, buffer);
    let [checks, log] =
        Layout::horizontal([Constraint::Fill(8), Constraint::Fill(5)]).areas(bottom);
    draw_checks(state, checks, buffer);
    draw_log(state, log, buffer);
    if hints > 0 {
        let lines: Vec<Line> = state
            .hints
            .iter()
            .map(|hint| Line::raw(hint.as_str()))
            .collect();
        Paragraph::new(lines)
            .block(block(" how to reach each part "))
            .render(reach, buffer);
    }
    draw_keys(state, keys, buffer);
}

fn block(title: &str) -> Block<'_> {
    Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(DIM)
        .title(Span::styled(title, BOLD))
}

fn draw_title(state: &State, area: Rect, buffer: &mut Buffer) {
    let seconds = state.since.elapsed().as_secs();
    let now = match state.over {
        Some(true) => Span::styled("everything held", GOOD),
        Some(false) => Span::styled("something did not hold", BAD),
        None => match state
            .steps
            .iter()
            .find(|step| step.progress == Progress::Running)
        {
            Some(step) => Span::styled(step.name, BUSY),
            None => Span::styled("setting up", BUSY),
        },
    };
    // The step that goes on counts.
    let done = state
        .steps
        .iter()
        .filter(|step| {
            matches!(
                step.progress,
                Progress::Held | Progress::Failed | Progress::Running
            )
        })
        .count();
    let line = Line::from(vec![
        Span::styled(" Outpost ", BOLD.add_modifier(Modifier::REVERSED)),
        Span::raw(format!(
            "  {:02}:{:02}  step {}/{}  ",
            seconds / 60,
            seconds % 60,
            done,
            state.steps.len()
        )),
        now,
    ]);
    line.render(area, buffer);
}

fn draw_box(state: &State, site: Site, area: Rect, buffer: &mut Buffer) {
    let view = state.site(site);
    let title = match site {
        Site::Branch => format!(" branch box {} ", super::BRANCH_BOX),
        Site::Core => format!(" core box {} ", super::CORE_BOX),
    };
    let block = block(&title);
    let inner = block.inner(area);
    block.render(area, buffer);
    let mut lines = Vec::new();
    if view.power {
        lines.push(boot_bar(view, inner.width));
        lines.push(boot_times(view));
        lines.push(tunnel_line(view));
        lines.push(flows_line(view));
        if site == Site::Branch {
            let guest = view.guest();
            let style = match guest {
                "ready" => GOOD,
                "off" => DIM,
                text if text.starts_with("stopped") => BAD,
                _ => BUSY,
            };
            lines.push(Line::from(vec![
                Span::styled("guest   ", DIM),
                Span::styled(guest.to_owned(), style),
            ]));
        }
        if let Some(problem) = view.problems.last() {
            lines.push(Line::styled(problem.clone(), BAD));
        }
    } else {
        lines.push(Line::styled("power off: its wires are joined", BUSY));
    }
    Paragraph::new(lines).render(inner, buffer);
}

fn boot_bar(view: &BoxView, width: u16) -> Line<'static> {
    let (name, share) = MILESTONES
        .iter()
        .rev()
        .find(|(name, _)| view.reached(name))
        .map_or(("firmware", 5), |(name, share)| (*name, *share));
    // A box without a guest is done when it forwards.
    let share = if view.guest() == "off" && view.reached("forwarding") {
        100
    } else {
        share
    };
    let bar_width = usize::from(width.saturating_sub(16).clamp(4, 20));
    let filled = bar_width * usize::from(share) / 100;
    let style = if share == 100 { GOOD } else { BUSY };
    Line::from(vec![
        Span::styled("█".repeat(filled), style),
        Span::styled("░".repeat(bar_width - filled), DIM),
        Span::raw(format!(" {name}")),
    ])
}

fn boot_times(view: &BoxView) -> Line<'static> {
    let time = |milestone: &str| {
        view.milestones
            .get(milestone)
            .map_or("–".to_owned(), |ms| format!("{ms} ms"))
    };
    Line::from(vec![
        Span::styled("forwards ", DIM),
        Span::raw(time("forwarding")),
        Span::styled("  guest ", DIM),
        Span::raw(time("guest-init")),
    ])
}

fn tunnel_line(view: &BoxView) -> Line<'static> {
    let number = |name: &str| view.number(&format!("/net/tunnel/{name}")).unwrap_or(0);
    let mut spans = vec![Span::styled("tunnel  ", DIM)];
    match view.tunnel_up() {
        true => {
            spans.push(Span::styled("up", GOOD));
            let (rtt, loss) = (
                number("rtt_micros") as f64 / 1e3,
                number("loss_ppm") as f64 / 1e4,
            );
            spans.push(Span::raw(format!("  rtt {rtt:.0} ms  lost {loss:.2}%")));
        }
        false => spans.push(Span::styled("down", BUSY)),
    }
    Line::from(spans)
}

fn flows_line(view: &BoxView) -> Line<'static> {
    let number = |name: &str| view.number(&format!("/net/flows/{name}")).unwrap_or(0);
    Line::from(vec![
        Span::styled("flows   ", DIM),
        Span::raw(format!(
            "{} open, {} so far",
            number("open"),
            number("total")
        )),
    ])
}

fn draw_line(state: &State, rates: &Rates, area: Rect, buffer: &mut Buffer) {
    let snapshot = state
        .meter
        .as_ref()
        .map(|meter| meter.read())
        .unwrap_or_default();
    let title = format!(" line {} ", state.line);
    let block = block(&title);
    let inner = block.inner(area);
    block.render(area, buffer);
    let [text, lan, wan] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Fill(1),
        Constraint::Fill(1),
    ])
    .areas(inner);
    let (lan_total, wan_total) = (lan_bytes(&snapshot), snapshot.line_bytes());
    let lost: u64 = snapshot
        .line
        .iter()
        .map(|direction| direction.lost + direction.overflowed)
        .sum();
    let plug = match (snapshot.plugged, state.meter.is_some()) {
        (true, _) => Span::styled("plugged in", GOOD),
        (false, true) => Span::styled("UNPLUGGED", BAD),
        (false, false) => Span::styled("not there yet", DIM),
    };
    Paragraph::new(vec![
        Line::from(vec![plug, Span::raw(format!("  {lost} frames lost"))]),
        Line::from(vec![
            Span::styled(format!("LAN {}", human(lan_total)), LAN),
            Span::raw("  "),
            Span::styled(format!("WAN {}", human(wan_total)), WAN),
            Span::raw(format!(
                "  {:.1}×",
                lan_total as f64 / wan_total.max(1) as f64
            )),
        ]),
    ])
    .render(text, buffer);
    draw_curve("LAN", &rates.lan, LAN, lan, buffer);
    draw_curve("WAN", &rates.wan, WAN, wan, buffer);
}

fn draw_curve(name: &str, samples: &VecDeque<u64>, style: Style, area: Rect, buffer: &mut Buffer) {
    let [label, curve] =
        Layout::horizontal([Constraint::Length(18), Constraint::Fill(1)]).areas(area);
    let newest = samples.back().copied().unwrap_or(0) as f64 / 1e6;
    Line::from(vec![
        Span::styled(format!("{name} "), style),
        Span::raw(format!("{newest:7.2} Mbit/s")),
    ])
    .render(label, buffer);
    let width = usize::from(curve.width);
    let shown: Vec<u64> = samples
        .iter()
        .skip(samples.len().saturating_sub(width))
        .copied()
        .collect();
    Sparkline::default()
        .data(&shown)
        .style(style)
        .render(curve, buffer);
}

fn transfer_rows(state: &State) -> Vec<Row<'static>> {
    let mut rows: Vec<Row> = state
        .transfers
        .iter()
        .rev()
        .take(10)
        .rev()
        .map(|transfer| {
            let rate = match transfer.sha256_ok {
                true => format!(
                    "{:.1} Mbit/s",
                    transfer.bytes as f64 * 8.0 / 1e6 / transfer.seconds.max(0.001)
                ),
                false => "–".to_owned(),
            };
            let right = if transfer.sha256_ok {
                Span::styled("✓", GOOD)
            } else {
                Span::styled("✗", BAD)
            };
            Row::new(vec![
                Line::raw(transfer.name.clone()),
                Line::raw(human(transfer.bytes)).right_aligned(),
                Line::styled(human(transfer.wan_bytes), WAN).right_aligned(),
                Line::raw(percent(transfer.wan_bytes, transfer.bytes)).right_aligned(),
                Line::raw(format!("{:.1} s", transfer.seconds)).right_aligned(),
                Line::styled(rate, LAN).right_aligned(),
                Line::from(right),
            ])
        })
        .collect();
    if rows.is_empty() {
        rows.push(Row::new([Span::styled("none yet", DIM)]));
    }
    rows
}

fn draw_transfers(state: &State, area: Rect, buffer: &mut Buffer) {
    let block = block(" transfers ");
    let inner = block.inner(area);
    block.render(area, buffer);
    let [table, bar] = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(inner);
    let header =
        ["", "file", "on the line", "share", "time", "rate", "sha256"].map(|name| match name {
            "" | "sha256" => Line::styled(name, DIM),
            _ => Line::styled(name, DIM).right_aligned(),
        });
    let widths = [
        Constraint::Length(18),
        Constraint::Length(10),
        Constraint::Length(12),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(14),
        Constraint::Length(7),
    ];
    Widget::render(
        Table::new(transfer_rows(state), widths)
            .header(Row::new(header))
            .column_spacing(1),
        table,
        buffer,
    );
    let Some(underway) = &state.underway else {
        return;
    };
    let seconds = underway.since.elapsed().as_secs_f64();
    let line_bytes = state.meter.as_ref().map_or(0, |meter| {
        meter
            .read()
            .line_bytes()
            .saturating_sub(underway.line_bytes_before)
    });
    let label = format!("{:18}", underway.name);
    let figures = format!(
        " {} of {}  {:.1} s  {:.1} Mbit/s  {} on the line",
        human(underway.bytes),
        human(underway.total),
        seconds,
        underway.bytes as f64 * 8.0 / 1e6 / seconds.max(0.1),
        human(line_bytes),
    );
    let width = usize::from(bar.width)
        .saturating_sub(label.chars().count() + figures.chars().count())
        .clamp(5, 40);
    let filled = (width as u64 * underway.bytes / underway.total.max(1)).min(width as u64) as usize;
    Line::from(vec![
        Span::styled(label, BOLD),
        Span::styled("█".repeat(filled), BUSY),
        Span::styled("░".repeat(width - filled), DIM),
        Span::raw(figures),
    ])
    .render(bar, buffer);
}

fn draw_checks(state: &State, area: Rect, buffer: &mut Buffer) {
    let held = state.checks.iter().filter(|check| check.held).count();
    let title = format!(" must hold: {held} of {} did ", state.checks.len());
    let block = block(&title);
    let inner = block.inner(area);
    block.render(area, buffer);
    let rows = usize::from(inner.height);
    // What did not hold is never pushed out by what did.
    let failed = state.checks.iter().filter(|check| !check.held);
    let good = state.checks.iter().filter(|check| check.held);
    let failed: Vec<_> = failed.take(rows).collect();
    let room = rows - failed.len();
    let good: Vec<_> = good.collect();
    let shown = failed
        .into_iter()
        .chain(good.iter().skip(good.len().saturating_sub(room)).copied());
    let lines: Vec<Line> = shown
        .map(|check| {
            let (mark, style) = if check.held {
                ("✓ ", GOOD)
            } else {
                ("✗ ", BAD)
            };
            Line::from(vec![
                Span::styled(mark, style),
                Span::raw(format!("{}: ", check.what)),
                Span::styled(check.figure.clone(), if check.held { BOLD } else { BAD }),
                Span::styled(format!(" ({})", check.limit), DIM),
            ])
        })
        .collect();
    Paragraph::new(lines).render(inner, buffer);
}

fn draw_log(state: &State, area: Rect, buffer: &mut Buffer) {
    let block = block(" log ");
    let inner = block.inner(area);
    block.render(area, buffer);
    let skip = state.log.len().saturating_sub(usize::from(inner.height));
    let lines: Vec<Line> = state
        .log
        .iter()
        .skip(skip)
        .map(|line| Line::styled(line.as_str(), DIM))
        .collect();
    Paragraph::new(lines).render(inner, buffer);
}

fn draw_keys(state: &State, area: Rect, buffer: &mut Buffer) {
    let text = match state.over {
        Some(_) => {
            " u unplug/plug the line   p peer off/on   f fetch   n fetch the next version   b fetch bridged   d directory search   q end"
        }
        None => " q or Ctrl-C end",
    };
    Line::styled(text, DIM).render(area, buffer);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::live::Live;
    use crate::run::report::{Check, Transfer};

    fn text(state: &State, width: u16, height: u16) -> String {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        draw(state, &Rates::default(), area, &mut buffer);
        buffer
            .content()
            .chunks(usize::from(width))
            .map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n")
            .collect()
    }

    #[test]
    fn the_panel_shows_what_happened() {
        let live = Live::new("10 Mbit/s".into(), false);
        live.check(Check {
            what: "warm".into(),
            figure: "0.2%".into(),
            limit: "at most 1%".into(),
            held: true,
        });
        live.check(Check {
            what: "cold".into(),
            figure: "90%".into(),
            limit: "at most half".into(),
            held: false,
        });
        let mut state = live.state();
        state.site_mut(Site::Branch).power = true;
        state
            .site_mut(Site::Branch)
            .milestones
            .insert("forwarding".into(), 812);
        state.transfers.push(Transfer {
            name: "warm".into(),
            url: String::new(),
            bytes: 13_360_128,
            wan_bytes: 20_000,
            wan_bytes_up: 10_000,
            wan_bytes_down: 10_000,
            seconds: 1.0,
            sha256_ok: true,
            outcome: String::new(),
        });
        let text = text(&state, 120, 40);
        for part in [
            "branch box 10.77.1.1",
            "812 ms",
            "13.36 MB",
            "20.0 kB",
            "106.9 Mbit/s",
            "✓ warm: 0.2%",
            "✗ cold: 90%",
            "power off",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_small_terminal_is_no_trouble() {
        let live = Live::new(String::new(), false);
        for (width, height) in [(1, 1), (20, 5), (80, 24)] {
            text(&live.state(), width, height);
        }
    }

    #[test]
    fn rates_are_measured_over_time() {
        let mut rates = Rates::default();
        let start = Instant::now();
        let mut snapshot = Snapshot::default();
        rates.sample(start, snapshot);
        snapshot.line[1].bytes = 625_000;
        rates.sample(start + SAMPLE / 2, snapshot);
        assert!(rates.wan.is_empty());
        rates.sample(start + SAMPLE, snapshot);
        assert_eq!(rates.wan, [10_000_000]);
    }
}
