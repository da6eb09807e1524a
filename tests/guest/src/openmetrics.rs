//! A strict reader of OpenMetrics text, version 1.0.0, as far as a server of counters, gauges, histograms and infos needs
//! it. Whatever the format does not allow is a panic.

use std::collections::{BTreeMap, BTreeSet};

/// The labels of a sample.
pub type Labels = BTreeMap<String, String>;

/// All families of a text, by name.
#[derive(Debug)]
pub struct Families(pub BTreeMap<String, Family>);

/// A metric family.
#[derive(Debug, Default)]
pub struct Family {
    /// Its type.
    pub kind: String,
    /// Its unit; empty if it has none.
    pub unit: String,
    /// What it means.
    pub help: String,
    /// Its samples, in the text's order.
    pub samples: Vec<Sample>,
}

/// One line with a value.
#[derive(Debug)]
pub struct Sample {
    /// The name with its suffix.
    pub name: String,
    /// The labels.
    pub labels: Labels,
    /// The value.
    pub value: f64,
}

impl Families {
    /// Reads a whole text.
    pub fn parse(text: &str) -> Self {
        let body = text
            .strip_suffix("# EOF\n")
            .unwrap_or_else(|| panic!("no end: {text:?}"));
        let mut all = Self(BTreeMap::new());
        let mut current = String::new();
        for line in body.split_terminator('\n') {
            all.read(line, &mut current);
        }
        for (name, family) in &all.0 {
            family.check(name);
        }
        all
    }

    fn read(&mut self, line: &str, current: &mut String) {
        let Some(comment) = line.strip_prefix("# ") else {
            let family = self
                .0
                .get_mut(current)
                .unwrap_or_else(|| panic!("a sample first: {line}"));
            family.samples.push(Sample::parse(line));
            return;
        };
        let mut words = comment.splitn(3, ' ');
        let (Some(what), Some(name), Some(text)) = (words.next(), words.next(), words.next()) else {
            panic!("not a description: {line}");
        };
        if name != current {
            assert!(is_name(name), "{line}");
            assert!(!self.0.contains_key(name), "{name} is in two places");
            name.clone_into(current);
        }
        let family = self.0.entry(name.to_owned()).or_default();
        assert!(family.samples.is_empty(), "a description after samples: {line}");
        let field = match what {
            "HELP" => &mut family.help,
            "TYPE" => &mut family.kind,
            "UNIT" => &mut family.unit,
            _ => panic!("neither HELP, TYPE nor UNIT: {line}"),
        };
        assert!(field.is_empty() && !text.is_empty(), "twice, or empty: {line}");
        text.clone_into(field);
    }

    /// The family of this name.
    pub fn family(&self, name: &str) -> &Family {
        self.0.get(name).unwrap_or_else(|| panic!("no family {name}"))
    }

    /// The sum of the samples of this name whose labels include these.
    pub fn sum(&self, family: &str, sample: &str, labels: &[(&str, &str)]) -> f64 {
        let of_family = self.family(family).samples.iter();
        let meant = of_family.filter(|of| {
            let has = |(name, value): &(&str, &str)| of.labels.get(*name).is_some_and(|is| is == value);
            of.name == sample && labels.iter().all(has)
        });
        meant.map(|of| of.value).sum()
    }

    /// Checks that nothing that only grows is less, or gone, in a later text.
    pub fn assert_grows_to(&self, later: &Self) {
        for (name, family) in &self.0 {
            if !matches!(family.kind.as_str(), "counter" | "histogram") {
                continue;
            }
            for before in &family.samples {
                let same = |of: &&Sample| of.name == before.name && of.labels == before.labels;
                let after = later.family(name).samples.iter().find(same);
                let after = after.unwrap_or_else(|| panic!("{before:?} is gone"));
                assert!(after.value >= before.value, "{before:?}, and then {after:?}");
            }
        }
    }
}

impl Family {
    fn check(&self, name: &str) {
        assert!(!self.help.is_empty(), "{name} has no description");
        assert!(
            self.unit.is_empty() || name.ends_with(&format!("_{}", self.unit)),
            "{name} does not end with {}",
            self.unit
        );
        let suffixes: &[&str] = match self.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            other => panic!("{name} has the type {other:?}"),
        };
        let mut seen = BTreeSet::new();
        for sample in &self.samples {
            let suffix = sample
                .name
                .strip_prefix(name)
                .unwrap_or_else(|| panic!("{sample:?} in {name}"));
            assert!(suffixes.contains(&suffix), "{sample:?} in a {}", self.kind);
            assert!(seen.insert((&sample.name, &sample.labels)), "twice: {sample:?}");
            assert!(sample.value.is_finite(), "{sample:?}");
            assert!(self.kind == "gauge" || sample.value >= 0.0, "{sample:?}");
            assert!(self.kind != "info" || sample.value == 1.0, "{sample:?}");
        }
        if self.kind == "histogram" {
            self.check_histograms(name);
        }
    }

    /// Of each set of labels: the limits rise to infinity, the counts do not fall, and the last one is the count.
    fn check_histograms(&self, name: &str) {
        let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        let mut ends: BTreeMap<Labels, BTreeMap<&str, f64>> = BTreeMap::new();
        for sample in &self.samples {
            let mut labels = sample.labels.clone();
            match (labels.remove("le"), sample.name.strip_prefix(name)) {
                (Some(limit), Some("_bucket")) => {
                    let limit = limit.replace("+Inf", "inf").parse().expect("a limit");
                    buckets.entry(labels).or_default().push((limit, sample.value));
                }
                (None, Some(suffix)) => {
                    ends.entry(labels).or_default().insert(suffix, sample.value);
                }
                _ => panic!("{sample:?}"),
            }
        }
        assert!(
            buckets.keys().eq(ends.keys()),
            "{name}: buckets without a count, or the reverse"
        );
        for (labels, buckets) in &buckets {
            let rise = buckets
                .windows(2)
                .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
            assert!(rise, "{name} {labels:?}: {buckets:?}");
            let last = buckets.last().expect("a bucket");
            assert_eq!(
                (last.0, Some(&last.1)),
                (f64::INFINITY, ends[labels].get("_count")),
                "{name} {labels:?}"
            );
            assert!(ends[labels].contains_key("_sum"), "{name} {labels:?}");
        }
    }
}

impl Sample {
    /// `name{label="value",...} value`, or without the labels.
    fn parse(line: &str) -> Self {
        let end = line
            .find(['{', ' '])
            .unwrap_or_else(|| panic!("no value: {line}"));
        let (name, rest) = line.split_at(end);
        assert!(is_name(name), "{line}");
        let (labels, value) = match rest.strip_prefix('{') {
            Some(labels) => parse_labels(labels),
            None => (Labels::new(), rest),
        };
        let value = value
            .strip_prefix(' ')
            .unwrap_or_else(|| panic!("no value: {line}"));
        Self {
            name: name.to_owned(),
            labels,
            value: value.parse().unwrap_or_else(|_| panic!("no number: {line}")),
        }
    }
}

/// The labels after the opening brace, and what follows the closing one.
fn parse_labels(mut text: &str) -> (Labels, &str) {
    let mut labels = Labels::new();
    loop {
        let (name, rest) = text
            .split_once("=\"")
            .unwrap_or_else(|| panic!("no label: {text}"));
        assert!(is_name(name) && !name.contains(':'), "{name}");
        let (value, rest) = parse_value(rest);
        assert!(labels.insert(name.to_owned(), value).is_none(), "{name} twice");
        if let Some(rest) = rest.strip_prefix('}') {
            return (labels, rest);
        }
        text = rest
            .strip_prefix(',')
            .unwrap_or_else(|| panic!("no end of the labels: {rest}"));
    }
}

/// A label's value up to its quote, and what follows that.
fn parse_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, char @ ('\\' | '"'))) => char,
                other => panic!("no escape sequence: {other:?} in {text}"),
            }),
            char => value.push(char),
        }
    }
    panic!("no end of the value: {text}")
}

fn is_name(text: &str) -> bool {
    let is_inner = |char: char| char.is_ascii_alphanumeric() || "_:".contains(char);
    text.starts_with(|char: char| is_inner(char) && !char.is_ascii_digit()) && text.chars().all(is_inner)
}
