//! [`Stats`] as text for people.

use std::fmt;

use ublk_bpf_abi::{CacheCounters, Reason, ServerCounters};

use super::amount::{amount, percent, signed};
use super::overview::Overview;
use super::{Interval, OpDecisions, RunTime, Savings, Stats, VERDICTS};
use crate::policy::Observe;

/// Prints an overview, then the counts as tables: decisions by verdict and reason for each operation, and the server's.
/// Counts of zero are omitted.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a>(pub &'a Stats);

/// Width of the first column and of the counts: with five operations, a terminal's 80 columns. Twelve digits are more than
/// a device serves in a year.
const NAME: usize = 15;
const COUNT: usize = 13;
/// Columns of a terminal.
const COLUMNS: usize = 80;

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.0;
        if stats.observe == Observe::Off {
            writeln!(f, "requests are not counted: the device runs with --observe off")?;
        } else {
            writeln!(f, "{}", Overview::of(stats))?;
            self.decisions(f)?;
        }
        if let Some(savings) = &stats.savings {
            writeln!(f)?;
            savings_table(f, savings, stats.interval.as_ref())?;
        }
        let misses = stats.classifier.recursion_misses;
        writeln!(
            f,
            "\nclassifier: program {}, skipped for {misses} requests of any disk (it ran already)",
            stats.classifier.id
        )?;
        match stats.policy {
            Some(policy) => writeln!(
                f,
                "policy: program {}, {} instructions verified",
                policy.id, policy.verified_instructions
            )?,
            None => writeln!(f, "policy: the default one (passthrough)")?,
        }
        if let Some(RunTime { runs, mean_ns }) = stats.run_time {
            let mean = mean_ns.map_or("none".to_owned(), |ns| format!("{ns} ns on average"));
            writeln!(
                f,
                "run time of the classifier with the policy: {mean}, {runs} runs"
            )?;
        }
        if let Some(shadow) = &stats.shadow {
            write!(f, "\n{shadow}")?;
        }
        writeln!(f)?;
        self.server(f)
    }
}

impl Table<'_> {
    fn decisions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ops: Vec<&OpDecisions> = self.0.decisions.iter().filter(|of| of.requests != 0).collect();
        let row = |f: &mut fmt::Formatter<'_>, name: &str, count: &dyn Fn(&OpDecisions) -> u64| {
            let counts: Vec<u64> = ops.iter().map(|of| count(of)).collect();
            if counts.iter().all(|&count| count == 0) {
                return Ok(());
            }
            write!(f, "{name:<NAME$}")?;
            for count in &counts {
                write!(f, "{count:>COUNT$}")?;
            }
            writeln!(f)
        };
        write!(f, "{:<NAME$}", "decisions")?;
        for of in &ops {
            write!(f, "{:>COUNT$}", of.op.name())?;
        }
        writeln!(f)?;
        row(f, "  requests", &|of| of.requests)?;
        row(f, "  sectors", &|of| of.sectors)?;
        writeln!(f, "by verdict")?;
        for (at, verdict) in VERDICTS.iter().enumerate() {
            row(f, &format!("  {}", verdict.name()), &|of| of.verdicts[at])?;
        }
        writeln!(f, "by reason")?;
        for (at, reason) in Reason::ALL.iter().enumerate() {
            row(f, &format!("  {}", reason.name()), &|of| of.reasons[at])?;
        }
        if !self.0.codes.is_empty() {
            writeln!(f, "by the policy's own reasons")?;
            for (code, count) in &self.0.codes {
                let number = code.to_string();
                let name = self.0.code_names.get(code).unwrap_or(&number);
                writeln!(f, "  {name:<13} {count:>width$}", width = COUNT - 1)?;
            }
        }
        Ok(())
    }

    fn server(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "server")?;
        counters(f, ServerCounters::FIELDS, &self.0.server.0.values())?;
        if let Some(cache) = self.0.cache {
            writeln!(f, "\ncache")?;
            counters(f, CacheCounters::FIELDS, &cache.0.values())?;
        }
        Ok(())
    }
}

/// What the cache saved and cost, since the start and in the last interval.
fn savings_table(f: &mut fmt::Formatter<'_>, total: &Savings, interval: Option<&Interval>) -> fmt::Result {
    const NAME: usize = 29;
    const VALUE: usize = 14;
    let last = interval.and_then(|interval| interval.savings.as_ref());
    let row = |f: &mut fmt::Formatter<'_>, name: &str, value: &dyn Fn(&Savings) -> String| {
        write!(f, "  {name:<NAME$}{:>VALUE$}", value(total))?;
        if let Some(last) = last {
            write!(f, "{:>VALUE$}", value(last))?;
        }
        writeln!(f)
    };
    write!(f, "{:<1$}", "cache", NAME + 2)?;
    write!(f, "{:>VALUE$}", "since start")?;
    if let Some(interval) = interval {
        write!(f, "{:>VALUE$}", format!("last {:.1} s", interval.seconds))?;
    }
    writeln!(f)?;
    row(f, "hits of reads", &|of| percent(of.hit_ratio))?;
    row(f, "hits of bytes read", &|of| percent(of.hit_ratio_bytes))?;
    row(f, "reads of the backing saved", &|of| {
        of.backing_reads_saved.to_string()
    })?;
    row(f, "bytes of the backing saved", &|of| {
        signed(of.backing_bytes_saved)
    })?;
    row(f, "written to the cache", &|of| amount(of.cache_bytes_written))?;
    row(f, "fills by a miss", &|of| of.fills.to_string())?;
    row(f, "misses that shared a fill", &|of| of.waited.to_string())?;
    row(f, "blocks promoted", &|of| of.promoted.to_string())?;
    row(f, "blocks back after eviction", &|of| of.ghosts.to_string())?;
    if total.is_loss() {
        writeln!(f, "  The cache costs more reads of the backing than it saves.")?;
    }
    Ok(())
}

/// Counters with their descriptions, wrapped to a terminal's width.
fn counters(f: &mut fmt::Formatter<'_>, fields: &[(&str, &str)], values: &[u64]) -> fmt::Result {
    const NAME: usize = 18;
    const INDENT: usize = 2 + NAME + COUNT + 2;
    for ((name, description), value) in fields.iter().zip(values) {
        if *value == 0 {
            continue;
        }
        write!(f, "  {name:<NAME$}{value:>COUNT$} ")?;
        let mut column = INDENT - 1;
        for word in description.split_whitespace() {
            if column + 1 + word.len() > COLUMNS {
                write!(f, "\n{:1$}", "", INDENT - 1)?;
                column = INDENT - 1;
            }
            write!(f, " {word}")?;
            column += 1 + word.len();
        }
        writeln!(f)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ublk_bpf_abi::{Op, Verdict};

    use super::super::tests::sample;
    use super::super::{Histogram, Histograms, LatencyOf};
    use super::*;

    #[test]
    fn what_happened_is_shown_and_the_rest_is_not() {
        let text = Table(&sample()).to_string();
        let expected = "\
since start               requests          bytes
  read                          10       40.0 KiB
    passthrough                 10

decisions               read
  requests                10
  sectors                 80
by verdict
  passthrough             10
by reason
  default                 10

classifier: program 7, skipped for 1 requests of any disk (it ran already)
policy: the default one (passthrough)

server
  arrived                      11  Requests received from the kernel.
  completed                    11  Requests completed successfully.
  verdict_missing               1  Requests without a verdict: the classifier
                                   did not run for them.
";
        assert_eq!(text, expected);
    }

    /// Large counts of everything that is shown.
    fn busy() -> Stats {
        let mut stats = sample();
        for of in &mut stats.decisions[..5] {
            (of.requests, of.sectors) = (123_456_789_012, 987_654_321_098);
        }
        let savings = Savings {
            reads: 1000,
            hits: 613,
            hit_ratio: Some(0.613),
            hit_ratio_bytes: Some(0.5),
            backing_reads_saved: -40,
            backing_bytes_saved: -(3 << 29),
            cache_bytes_written: 5 << 40,
            ..Savings::default()
        };
        stats.savings = Some(savings);
        let mut interval = Interval::between(&sample(), &stats, 1.02);
        interval.savings = Some(Savings {
            hit_ratio: None,
            ..savings
        });
        let mut buckets = vec![0; 40];
        (buckets[14], buckets[16]) = (70, 30);
        interval.histograms = Some(Histograms {
            latencies: vec![LatencyOf {
                op: Op::Read,
                verdict: Verdict::Hit,
                ns: Histogram { buckets, sum: 1 },
            }],
            ..Histograms::default()
        });
        stats.interval = Some(interval);
        let values = ServerCounters::FIELDS.iter().map(|_| 123_456_789_012);
        let values: Vec<u64> = values.collect();
        stats.server.0 = ServerCounters::from_values(values.try_into().expect("one for each"));
        stats
    }

    #[test]
    fn a_terminal_has_room_for_every_line() {
        let text = Table(&busy()).to_string();
        let decisions = text.lines().filter(|line| !line.contains("other"));
        for line in decisions {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
        assert!(text.contains("enters"), "{text}");
    }

    #[test]
    fn the_worth_of_a_cache_is_shown_for_both_periods() {
        let text = Table(&busy()).to_string();
        let start = text.find("cache  ").expect("a part about the cache");
        let lines: Vec<&str> = text[start..].lines().take(11).collect();
        let expected = [
            "cache                             since start    last 1.0 s",
            "  hits of reads                        61.3 %             -",
            "  hits of bytes read                   50.0 %        50.0 %",
            "  reads of the backing saved              -40           -40",
            "  bytes of the backing saved         -1.5 GiB      -1.5 GiB",
            "  written to the cache                5.0 TiB       5.0 TiB",
            "  fills by a miss                           0             0",
            "  misses that shared a fill                 0             0",
            "  blocks promoted                           0             0",
            "  blocks back after eviction                0             0",
            "  The cache costs more reads of the backing than it saves.",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn rates_are_of_the_interval() {
        let text = Table(&busy()).to_string();
        let first: Vec<&str> = text.lines().take(3).collect();
        let expected = [
            "last 1.0 s              requests/s        bytes/s         p50         p99",
            "  read                121036067649      450.9 TiB",
            "    hit                          0                    28.1 us    128.9 us",
        ];
        assert_eq!(first, expected);
        let cache = [
            "  hits of all reads              -         50.0 %",
            "  backing saved                -39       -1.5 GiB",
        ];
        assert!(text.contains(&cache.join("\n")), "{text}");
        let mut idle = sample();
        idle.interval = Some(Interval::between(&sample(), &sample(), 2.0));
        assert!(
            Table(&idle)
                .to_string()
                .starts_with("no request in the last 2.0 s\n")
        );
    }

    #[test]
    fn a_policys_own_reasons_have_their_names() {
        let stats = Stats {
            codes: [(1, 5), (2, 7)].into(),
            code_names: [(2, "longer-than-the-column".to_owned())].into(),
            ..sample()
        };
        let text = Table(&stats).to_string();
        let expected = "\
by the policy's own reasons
  1                        5
  longer-than-the-column            7
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_device_that_counts_nothing_says_so() {
        let off = Stats {
            observe: Observe::Off,
            ..sample()
        };
        let text = Table(&off).to_string();
        assert!(text.starts_with("requests are not counted: the device runs with --observe off\n"));
        assert!(!text.contains("by verdict"), "{text}");
    }
}
