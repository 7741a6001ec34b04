//! Prometheus' text format (version 0.0.4).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Display, Write};

/// A metric.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

/// A line of the text: of which family, and where.
struct Sample {
    family: usize,
    start: usize,
    end: usize,
}

/// Metrics on their way to becoming text. The samples of one metric may be added in any order and come out together.
#[derive(Default)]
pub struct Exposition {
    families: Vec<Family>,
    samples: Vec<Sample>,
    /// The samples as they came.
    text: String,
}

impl Exposition {
    /// No metrics.
    pub fn new() -> Exposition {
        Exposition::default()
    }

    /// Adds a sample of a metric that only grows. Its name ends in `_total`.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &dyn Display)],
        value: u64,
    ) {
        self.add(name, "counter", help, labels, value);
    }

    /// Adds a sample of a metric that is as it is at the moment.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &dyn Display)],
        value: u64,
    ) {
        self.add(name, "gauge", help, labels, value);
    }

    fn add(
        &mut self,
        name: &'static str,
        kind: &'static str,
        help: &'static str,
        labels: &[(&str, &dyn Display)],
        value: u64,
    ) {
        let at = self.families.iter().rposition(|family| family.name == name);
        let family = at.unwrap_or_else(|| {
            self.families.push(Family { name, kind, help });
            self.families.len() - 1
        });
        let start = self.text.len();
        write_sample(&mut self.text, name, labels, value);
        self.samples.push(Sample {
            family,
            start,
            end: self.text.len(),
        });
    }

    /// The text.
    pub fn into_text(mut self) -> String {
        self.samples
            .sort_unstable_by_key(|sample| (sample.family, sample.start));
        let mut out = String::with_capacity(2 * self.text.len());
        let mut shown = None;
        for sample in &self.samples {
            if shown != Some(sample.family)
                && let Some(Family { name, kind, help }) = self.families.get(sample.family)
            {
                let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
                shown = Some(sample.family);
            }
            out.push_str(self.text.get(sample.start..sample.end).unwrap_or_default());
        }
        out
    }
}

/// A label's text as it stands between quotation marks.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                _ => self.0.push(character),
            }
        }
        Ok(())
    }
}

fn write_sample(out: &mut String, name: &str, labels: &[(&str, &dyn Display)], value: u64) {
    out.push_str(name);
    for (index, (label, text)) in labels.iter().enumerate() {
        out.push(if index == 0 { '{' } else { ',' });
        out.push_str(label);
        out.push_str("=\"");
        let _ = write!(Escaped(out), "{text}");
        out.push('"');
    }
    if !labels.is_empty() {
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_stand_together_and_labels_are_escaped() {
        let mut exposition = Exposition::new();
        exposition.counter("a_total", "What a is.", &[("of", &"x")], 1);
        exposition.gauge("b", "What b is.", &[], 2);
        let labels = [("of", &"y" as &dyn Display), ("name", &"a\\b\"c\nd")];
        exposition.counter("a_total", "What a is.", &labels, 3);
        assert_eq!(
            exposition.into_text(),
            "# HELP a_total What a is.\n# TYPE a_total counter\na_total{of=\"x\"} 1\n\
             a_total{of=\"y\",name=\"a\\\\b\\\"c\\nd\"} 3\n\
             # HELP b What b is.\n# TYPE b gauge\nb 2\n"
        );
    }
}
