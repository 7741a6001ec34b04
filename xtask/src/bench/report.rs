//! What every benchmark prints and writes: rows with a figure, its peer's, and the limit that is to hold. Not measuring.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::hv::marks::median;

/// One figure of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Of `value` and `peer_value`.
    pub unit: &'static str,
    /// Outpost's figure.
    pub value: f64,
    /// What it is compared with in the same run; none for figures that stand alone.
    pub peer: Option<String>,
    /// The peer's figure.
    pub peer_value: Option<f64>,
    /// `value / peer_value`; where both were measured side by side several times, the median of those times' ratios.
    pub ratio: Option<f64>,
    /// What must hold, in words; none for figures that are only reported.
    pub limit: Option<String>,
    /// Whether it does. True where there is no limit.
    pub holds: bool,
}

/// What a figure, or its ratio to the peer's, may be.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// At most so much.
    AtMost(f64),
    /// Less than so much.
    LessThan(f64),
    /// At least so much.
    AtLeast(f64),
    /// Exactly so much.
    Equal(f64),
}

impl Limit {
    fn holds(self, figure: f64) -> bool {
        match self {
            Limit::AtMost(limit) => figure <= limit,
            Limit::LessThan(limit) => figure < limit,
            Limit::AtLeast(limit) => figure >= limit,
            Limit::Equal(limit) => figure == limit,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::AtMost(limit) => write!(f, "≤ {limit}"),
            Limit::LessThan(limit) => write!(f, "< {limit}"),
            Limit::AtLeast(limit) => write!(f, "≥ {limit}"),
            Limit::Equal(limit) => write!(f, "= {limit}"),
        }
    }
}

impl Row {
    /// A figure that is only reported.
    pub fn new(name: impl Into<String>, unit: &'static str, value: f64) -> Row {
        Row {
            name: name.into(),
            unit,
            value,
            peer: None,
            peer_value: None,
            ratio: None,
            limit: None,
            holds: true,
        }
    }

    /// Beside what the same is for `peer`.
    pub fn beside(mut self, peer: impl Into<String>, peer_value: f64) -> Row {
        self.peer = Some(peer.into());
        self.peer_value = Some(peer_value);
        self.ratio = (peer_value != 0.0).then(|| self.value / peer_value);
        self
    }

    /// Of times when both were measured side by side, `(value, peer's)`: the medians of each, and of the ratios, in which what slowed both alike is not.
    pub fn side_by_side(self, peer: impl Into<String>, pairs: &[(f64, f64)]) -> Row {
        let of = |figure: fn(&(f64, f64)) -> f64| median(pairs.iter().map(figure));
        let mut row = self.beside(peer, of(|(_, peer)| *peer).unwrap_or_default());
        row.value = of(|(value, _)| *value).unwrap_or_default();
        let measured = pairs.iter().filter(|(_, peer)| *peer != 0.0);
        row.ratio = median(measured.map(|(value, peer)| value / peer));
        row
    }

    /// The ratio to the peer's figure must keep to `limit`; without a peer's figure it does not.
    pub fn limited_by_ratio(mut self, limit: Limit) -> Row {
        self.holds = self.ratio.is_some_and(|ratio| limit.holds(ratio));
        self.limit = Some(format!("{limit} ×"));
        self
    }

    /// The figure itself must keep to `limit`.
    pub fn limited(mut self, limit: Limit) -> Row {
        self.holds = limit.holds(self.value);
        self.limit = Some(limit.to_string());
        self
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match (&self.limit, self.holds) {
            (None, _) => ' ',
            (_, true) => '✓',
            (_, false) => '✗',
        };
        write!(
            f,
            "{mark} {:<58} {:>12} {:<10}",
            self.name,
            figure(self.value),
            self.unit
        )?;
        if let (Some(peer), Some(value)) = (&self.peer, self.peer_value) {
            write!(f, " {peer}: {}", figure(value))?;
        }
        if let Some(ratio) = self.ratio {
            write!(f, ", {} ×", figure(ratio))?;
        }
        if let Some(limit) = &self.limit {
            write!(f, " ({limit})")?;
        }
        Ok(())
    }
}

fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// A benchmark's rows; each is printed when it is added.
#[derive(Debug, Serialize)]
pub struct Report {
    bench: String,
    rows: Vec<Row>,
}

impl Report {
    /// The report of `cargo xtask bench BENCH`.
    pub fn new(bench: impl Into<String>) -> Report {
        Report {
            bench: bench.into(),
            rows: Vec::new(),
        }
    }

    /// Prints a row and keeps it.
    pub fn add(&mut self, row: Row) {
        println!("{row}");
        self.rows.push(row);
    }

    /// Writes JSON to `file`, if one is asked for. Gives whether every row holds.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(&self, file: Option<&Path>) -> Result<bool> {
        if let Some(file) = file {
            let text = serde_json::to_string_pretty(self)?;
            std::fs::write(file, text + "\n")
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        let broken = self.rows.iter().filter(|row| !row.holds).count();
        match broken {
            0 => println!("every row holds"),
            1 => println!("1 row does not hold"),
            more => println!("{more} rows do not hold"),
        }
        Ok(broken == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_by_its_limit() {
        let row = Row::new("x", "%", 5.0);
        assert!(row.clone().limited(Limit::AtMost(5.0)).holds);
        assert!(!row.clone().limited(Limit::AtLeast(5.1)).holds);
        assert!(!row.clone().limited(Limit::LessThan(5.0)).holds);
        assert!(row.clone().limited(Limit::LessThan(5.1)).holds);
        assert!(row.clone().limited(Limit::Equal(5.0)).holds);
        assert!(!row.clone().limited(Limit::Equal(5.1)).holds);
        let beside = row.clone().beside("y", 10.0);
        assert!(!row.limited_by_ratio(Limit::AtMost(1.0)).holds);
        assert_eq!(beside.ratio, Some(0.5));
        assert!(beside.clone().limited_by_ratio(Limit::AtMost(0.5)).holds);
        assert!(!beside.limited_by_ratio(Limit::AtMost(0.4)).holds);
    }

    #[test]
    fn what_slows_both_alike_is_not_in_the_ratio() {
        let pairs = [(90.0, 100.0), (45.0, 50.0), (80.0, 100.0)];
        let row = Row::new("x", "1/s", 0.0).side_by_side("y", &pairs);
        assert_eq!((row.value, row.peer_value), (80.0, Some(100.0)));
        assert_eq!(row.ratio, Some(0.9));
        assert!(row.limited_by_ratio(Limit::AtLeast(0.9)).holds);
        let none = Row::new("x", "1/s", 0.0).side_by_side("y", &[]);
        assert!(!none.limited_by_ratio(Limit::AtLeast(0.0)).holds);
    }

    #[test]
    fn the_file_has_every_field() {
        let mut report = Report::new("sched");
        report.add(
            Row::new("x", "ms", 3.0)
                .beside("y", 2.0)
                .limited(Limit::AtMost(2.5)),
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!report.finish(Some(file.path())).unwrap());
        let json: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(file.path()).unwrap()).unwrap();
        assert_eq!(json["bench"], "sched");
        let row = &json["rows"][0];
        assert_eq!(
            (
                row["value"].as_f64(),
                row["peer_value"].as_f64(),
                row["ratio"].as_f64()
            ),
            (Some(3.0), Some(2.0), Some(1.5))
        );
        assert_eq!(
            (row["holds"].as_bool(), row["limit"].as_str()),
            (Some(false), Some("≤ 2.5"))
        );
        assert_eq!(
            (
                row["name"].as_str(),
                row["unit"].as_str(),
                row["peer"].as_str()
            ),
            (Some("x"), Some("ms"), Some("y"))
        );
    }
}
