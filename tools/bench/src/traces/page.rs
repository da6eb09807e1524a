//! The results as sections of docs/caching.md.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ublk_bpf_core::replay::Counts;

use super::{Kind, Measured};
use crate::obtain::libcachesim::VERSION;

/// Each section's name and text.
pub(super) fn sections(measured: &[Measured]) -> Vec<(&'static str, String)> {
    vec![
        ("hits", hits(measured)),
        ("backing", backing(measured)),
        ("strained", strained(measured)),
    ]
}

/// What a table shows of the counts.
type Value = fn(&Counts) -> f64;

/// One line of a table: what served the reads, and its value on each trace.
struct Line {
    name: String,
    /// None: it was not measured there.
    values: Vec<Option<f64>>,
}

impl Line {
    fn of<'m>(
        name: &str,
        measured: &'m [Measured],
        value: Value,
        get: impl Fn(&'m Measured) -> Option<&'m Vec<Counts>>,
    ) -> Self {
        let mean_of = |of| get(of).map(|counts| 100.0 * mean(counts.iter().map(value)));
        Self {
            name: name.to_owned(),
            values: measured.iter().map(mean_of).collect(),
        }
    }

    /// The mean over the traces of one kind; `None` if one was not measured, or there are no traces.
    fn mean_of(&self, kind: Kind, measured: &[Measured]) -> Option<f64> {
        let of_kind = measured
            .iter()
            .zip(&self.values)
            .filter(|(of, _)| of.kind == kind);
        let values: Option<Vec<f64>> = of_kind.map(|(_, value)| *value).collect();
        values
            .filter(|values| !values.is_empty())
            .map(|values| mean(values.into_iter()))
    }

    fn row(&self, measured: &[Measured]) -> String {
        let means = KINDS.map(|kind| self.mean_of(kind, measured));
        let cells = means.iter().chain(&self.values).map(|value| cell(*value));
        format!("| {} | {} |\n", self.name, cells.collect::<Vec<_>>().join(" | "))
    }
}

const KINDS: [Kind; 2] = [Kind::Block, Kind::Page];

#[expect(clippy::cast_precision_loss, reason = "a few traces")]
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

fn heading(measured: &[Measured]) -> String {
    let names: Vec<&str> = measured.iter().map(|of| of.name.as_str()).collect();
    let rule = "---:|".repeat(names.len() + 2);
    format!("| | **64K** | **4K** | {} |\n|---|{rule}\n", names.join(" | "))
}

fn ours<'m>(measured: &'m [Measured], value: Value) -> Vec<Line> {
    let names = measured.first().map_or(&[][..], |of| &of.ours);
    let line = |(number, (name, _)): (usize, &(&str, _))| {
        Line::of(
            &format!("**{name}**"),
            measured,
            value,
            move |of: &'m Measured| Some(&of.ours.get(number)?.1),
        )
    };
    names.iter().enumerate().map(line).collect()
}

fn references<'m>(measured: &'m [Measured], value: Value, wanted: &[&str]) -> Vec<Line> {
    let find = |of: &'m Measured, name: &str| {
        of.references
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, counts)| counts)
    };
    wanted
        .iter()
        .map(|name| Line::of(name, measured, value, |of| find(of, name)))
        .collect()
}

/// libCacheSim's, the best first.
fn peers(measured: &[Measured], value: Value) -> Vec<Line> {
    let names: BTreeSet<&String> = measured.iter().flat_map(|of| of.peers.keys()).collect();
    let line = |name: &&String| Line::of(name, measured, value, |of| of.peers.get(*name));
    let mut lines: Vec<Line> = names.iter().map(line).collect();
    let rank = |line: &Line| {
        let means: Vec<f64> = KINDS
            .iter()
            .filter_map(|kind| line.mean_of(*kind, measured))
            .collect();
        mean(means.into_iter())
    };
    lines.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
    lines
}

fn hits(measured: &[Measured]) -> String {
    let value = Counts::block_hit_ratio;
    let mut text = format!(
        "Reads that hit, in per cent, each counted once for each cache block that it touches: mean of caches of 5 % and 10 %\n\
         of the blocks that the trace reads, from an empty cache. The first two columns are the means of the traces with\n\
         blocks of 64 KiB and of those with pages of 4 KiB. Ours are bold, the others of libCacheSim ({VERSION}); all see the same\n\
         reads and no writes. Belady's algorithm knows the future.\n\n"
    );
    text.push_str(&heading(measured));
    for line in ours(measured, value).iter().chain(&peers(measured, value)) {
        text.push_str(&line.row(measured));
    }
    for line in references(measured, value, &["Belady"]) {
        text.push_str(&line.row(measured));
    }
    text.push('\n');
    for of in measured {
        let _ = writeln!(
            text,
            "- {}: {} requests, {} different blocks read",
            of.name, of.requests, of.working_set
        );
    }
    text
}

/// The peers of the short tables: the one with the most hits, and the most common one.
const SHOWN: usize = 1;

fn backing(measured: &[Measured]) -> String {
    let mut text = String::from(
        "What the backing does, in per cent of no cache, and the bytes written to the cache for each byte that it serves, for\n\
         the same replays. A miss of libCacheSim's algorithms and of Belady's is taken to load its whole block with one read.\n\n",
    );
    let best: Vec<String> = peers(measured, Counts::block_hit_ratio)
        .into_iter()
        .take(SHOWN)
        .map(|line| line.name)
        .collect();
    let tables: [(&str, Value); 3] = [
        ("Reads of the backing, in per cent", Counts::backing_ios),
        (
            "Bytes read from the backing, in per cent",
            Counts::backing_traffic,
        ),
        ("Bytes written to the cache per byte hit", |counts| {
            counts.wear() / 100.0
        }),
    ];
    for (title, value) in tables {
        let _ = write!(text, "{title}:\n\n{}", heading(measured));
        let shown = peers(measured, value)
            .into_iter()
            .filter(|line| best.contains(&line.name) || line.name == "LRU");
        let lines = ours(measured, value).into_iter().chain(shown);
        for line in lines.chain(references(measured, value, &["Belady"])) {
            text.push_str(&line.row(measured));
        }
        text.push('\n');
    }
    text
}

fn strained(measured: &[Measured]) -> String {
    let policy = measured
        .first()
        .and_then(|of| of.ours.first())
        .map_or("", |(name, _)| name);
    let mut text = format!(
        "Reads that hit with `{policy}`, in per cent, if a fill takes time (a read of what is being filled waits for it and\n\
         counts as a hit), and if `--promote-limit` allows a tenth of what it fills without a limit.\n\n"
    );
    text.push_str(&heading(measured));
    let names = ["at once", "after 1 ms", "after 10 ms", "limited to a tenth"];
    for (number, name) in names.iter().enumerate() {
        let line = Line::of(name, measured, Counts::block_hit_ratio, |of| {
            of.strained.get(number)
        });
        text.push_str(&line.row(measured));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn measured(name: &str, kind: Kind, hits: u64) -> Measured {
        let counts = |hits| {
            vec![Counts {
                reads: 100,
                hits,
                ..Counts::default()
            }]
        };
        Measured {
            name: name.to_owned(),
            kind,
            requests: 100,
            working_set: 10,
            ours: vec![("auto", counts(hits))],
            references: vec![("LRU", counts(1)), ("Belady", counts(99))],
            peers: BTreeMap::from([
                ("ARC".to_owned(), counts(hits - 1)),
                ("Sieve".to_owned(), counts(hits + 1)),
            ]),
            strained: vec![counts(hits), counts(hits), counts(hits), counts(hits / 2)],
        }
    }

    #[test]
    fn ours_come_first_and_peers_by_their_hits() {
        let all = [
            measured("a", Kind::Block, 40),
            measured("b", Kind::Block, 50),
            measured("c", Kind::Page, 10),
        ];
        let text = hits(&all);
        let rows: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("| ") && line.ends_with(" |"))
            .collect();
        assert_eq!(rows[0], "| | **64K** | **4K** | a | b | c |");
        assert_eq!(rows[1], "| **auto** | 45.0 | 10.0 | 40.0 | 50.0 | 10.0 |");
        assert!(rows[2].starts_with("| Sieve | 46.0 | 11.0") && rows[3].starts_with("| ARC | 44.0"));
        assert!(rows[4].starts_with("| Belady | 99.0"));
        assert!(strained(&all).contains("| limited to a tenth | 22.5 | 5.0 | 20.0 | 25.0 | 5.0 |"));
    }

    #[test]
    fn what_was_not_measured_has_no_mean() {
        let mut all = [measured("a", Kind::Block, 40), measured("b", Kind::Block, 50)];
        all[1].peers.remove("ARC");
        assert!(hits(&all).contains("| ARC | - | - | 39.0 | - |"));
    }
}
