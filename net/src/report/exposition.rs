//! Prometheus' text format (version 0.0.4).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

struct Family {
    name: &'static str,
    head: String,
    samples: String,
}

/// Metrics on their way to becoming text. The samples of one metric may be added in any order and come out together.
#[derive(Default)]
pub struct Exposition {
    families: Vec<Family>,
}

impl Exposition {
    /// No metrics.
    pub fn new() -> Exposition {
        Exposition::default()
    }

    /// Adds a sample of a metric that only grows. Its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: u64) {
        self.add(name, "counter", help, labels, value);
    }

    /// Adds a sample of a metric that is as it is at the moment.
    pub fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: u64) {
        self.add(name, "gauge", help, labels, value);
    }

    fn add(
        &mut self,
        name: &'static str,
        kind: &str,
        help: &str,
        labels: &[(&str, &str)],
        value: u64,
    ) {
        let at = self.families.iter().rposition(|family| family.name == name);
        let at = at.unwrap_or_else(|| {
            let mut head = String::new();
            let _ = writeln!(head, "# HELP {name} {help}\n# TYPE {name} {kind}");
            self.families.push(Family {
                name,
                head,
                samples: String::new(),
            });
            self.families.len() - 1
        });
        if let Some(family) = self.families.get_mut(at) {
            write_sample(&mut family.samples, name, labels, value);
        }
    }

    /// The text.
    pub fn into_text(self) -> String {
        let length = |family: &Family| family.head.len() + family.samples.len();
        let mut text = String::with_capacity(self.families.iter().map(length).sum());
        for family in &self.families {
            text.push_str(&family.head);
            text.push_str(&family.samples);
        }
        text
    }
}

fn write_sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: u64) {
    out.push_str(name);
    for (index, (label, text)) in labels.iter().enumerate() {
        out.push(if index == 0 { '{' } else { ',' });
        out.push_str(label);
        out.push_str("=\"");
        for character in text.chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                _ => out.push(character),
            }
        }
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
        exposition.counter("a_total", "What a is.", &[("of", "x")], 1);
        exposition.gauge("b", "What b is.", &[], 2);
        let labels = [("of", "y"), ("name", "a\\b\"c\nd")];
        exposition.counter("a_total", "What a is.", &labels, 3);
        assert_eq!(
            exposition.into_text(),
            "# HELP a_total What a is.\n# TYPE a_total counter\na_total{of=\"x\"} 1\n\
             a_total{of=\"y\",name=\"a\\\\b\\\"c\\nd\"} 3\n\
             # HELP b What b is.\n# TYPE b gauge\nb 2\n"
        );
    }
}
