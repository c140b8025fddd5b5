//! The last step of `/metrics`: the exporter's text, put in order and with times in seconds.
//!
//! The exporter writes families and series in the order of its hash tables, and its counters hold whole numbers only.
//! *Invariant:* the same values always give the same text.

use std::fmt::Write;

use crate::catalogue::{Alias, Metric, MetricKind};

/// Sorts families by name and series by labels, turns the nanoseconds of `seconds` metrics into seconds, and adds the
/// info metrics, which the exporter cannot take back once it has them, and what has a second name.
pub(crate) fn finish(
    exported: &str,
    (metrics, aliases): (&[Metric], &[Alias]),
    infos: &[Info],
) -> String {
    let mut families: Vec<Family> =
        exported.split("\n\n").filter_map(|block| Family::read(block, metrics)).collect();
    families.extend(infos.iter().map(Info::family));
    let again = aliases.iter().filter_map(|alias| {
        let family = families.iter().find(|family| family.name == alias.of.name)?;
        Some(family.under(&alias.shown))
    });
    let again: Vec<Family> = again.collect();
    families.extend(again);
    families.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = String::with_capacity(exported.len() + 1024);
    for family in &families {
        text.push_str(&family.head);
        for line in &family.samples {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// A metric that says something in its labels.
pub(crate) struct Info {
    pub(crate) metric: &'static Metric,
    pub(crate) values: Vec<String>,
}

impl Info {
    fn family(&self) -> Family {
        let Metric { name, labels, help, .. } = *self.metric;
        assert_eq!(labels.len(), self.values.len(), "labels of {name}");
        let pairs: Vec<_> = labels
            .iter()
            .zip(&self.values)
            .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
            .collect();
        Family {
            name: name.to_owned(),
            head: format!("# HELP {name} {help}\n# TYPE {name} gauge\n"),
            samples: vec![format!("{name}{{{}}} 1", pairs.join(","))],
        }
    }
}

struct Family {
    name: String,
    /// The lines that begin with `#`.
    head: String,
    samples: Vec<String>,
}

impl Family {
    fn read(block: &str, metrics: &[Metric]) -> Option<Self> {
        let (comments, samples): (Vec<&str>, Vec<&str>) =
            block.lines().filter(|line| !line.is_empty()).partition(|line| line.starts_with('#'));
        let name = comments.first()?.split(' ').nth(2)?;
        let in_seconds = |m: &Metric| m.name == name && m.kind == MetricKind::SecondsCounter;
        let mut samples: Vec<String> = if metrics.iter().any(in_seconds) {
            samples.into_iter().map(nanoseconds_to_seconds).collect()
        } else {
            samples.into_iter().map(str::to_owned).collect()
        };
        samples.sort_by_cached_key(|line| series(line).to_owned());
        let head = comments.iter().fold(String::new(), |head, line| head + line + "\n");
        Some(Self { name: name.to_owned(), head, samples })
    }

    /// The same values under another name.
    fn under(&self, metric: &Metric) -> Self {
        let Metric { name, kind, help, .. } = *metric;
        let renamed = |line: &String| format!("{name}{}", &line[self.name.len()..]);
        Self {
            name: name.to_owned(),
            head: format!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.type_name()),
            samples: self.samples.iter().map(renamed).collect(),
        }
    }
}

/// The labels of a sample without the bucket's bound, which is always the last label: the lines of one series are equal
/// in this, and keep their order.
fn series(line: &str) -> &str {
    let labels = match (line.find('{'), line.rfind("} ")) {
        (Some(open), Some(close)) => &line[open + 1..close],
        _ => return "",
    };
    match labels.rfind("le=\"") {
        Some(0) => "",
        Some(at) if labels[..at].ends_with(',') => &labels[..at - 1],
        _ => labels,
    }
}

/// Rewrites a sample's value from whole nanoseconds to seconds, exactly.
fn nanoseconds_to_seconds(line: &str) -> String {
    let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
    let ns: u64 = value.parse().expect("the exporter's counters are whole numbers");
    let (seconds, rest) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let mut text = format!("{series} {seconds}");
    if rest > 0 {
        write!(text, ".{rest:09}").expect("a String takes any text");
        text.truncate(text.trim_end_matches('0').len());
    }
    text
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::{escape, nanoseconds_to_seconds, series};

    #[test]
    fn seconds_are_exact() {
        let shown = [0, 1, 1_500_000_000, 20_000_000_000, u64::MAX]
            .map(|ns: u64| nanoseconds_to_seconds(&format!("a{{b=\"c d\"}} {ns}")));
        assert_eq!(
            shown,
            [
                "a{b=\"c d\"} 0",
                "a{b=\"c d\"} 0.000000001",
                "a{b=\"c d\"} 1.5",
                "a{b=\"c d\"} 20",
                "a{b=\"c d\"} 18446744073.709551615"
            ]
        );
    }

    #[test]
    fn buckets_of_one_series_stay_together() {
        assert_eq!(series("a_bucket{x=\"1\",le=\"0.5\"} 3"), series("a_sum{x=\"1\"} 0.2"));
        assert_eq!(series("a_bucket{le=\"+Inf\"} 3"), series("a_sum 0.2"));
        assert_eq!(series("a{role=\"} \"} 3"), "role=\"} \"");
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
