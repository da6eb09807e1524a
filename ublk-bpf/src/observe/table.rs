//! [`Stats`] as text for people.

use std::fmt;

use ublk_bpf_abi::{CacheCounters, Reason, SECTOR_SIZE, ServerCounters};

use super::{Interval, OpDecisions, RunTime, Savings, Stats, VERDICTS};

/// Prints the counts as tables: decisions by verdict and reason for each operation, then the server's counters.
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
        if let Some(interval) = &stats.interval {
            rates(f, interval)?;
        }
        self.decisions(f)?;
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
        writeln!(f)?;
        self.server(f)
    }
}

impl Table<'_> {
    fn decisions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ops: Vec<&OpDecisions> = self.0.decisions.iter().filter(|of| of.requests != 0).collect();
        if ops.is_empty() {
            return writeln!(f, "no request was classified yet");
        }
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
                writeln!(f, "  {code:<13}{count:>COUNT$}")?;
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

/// Requests and bytes per second of each operation.
fn rates(f: &mut fmt::Formatter<'_>, interval: &Interval) -> fmt::Result {
    let busy: Vec<_> = interval.requests.iter().filter(|of| of.requests != 0).collect();
    let seconds = interval.seconds;
    if busy.is_empty() {
        return writeln!(f, "no request in the last {seconds:.1} s\n");
    }
    writeln!(
        f,
        "{:<NAME$}{:>COUNT$}{:>COUNT$}",
        format!("last {seconds:.1} s"),
        "requests/s",
        "bytes/s"
    )?;
    for of in busy {
        let bytes = amount(per_second(of.sectors.saturating_mul(SECTOR_SIZE), seconds));
        let requests = per_second(of.requests, seconds);
        writeln!(f, "  {:<WORD$}{requests:>COUNT$}{bytes:>COUNT$}", of.op.name())?;
    }
    writeln!(f)
}

/// [`NAME`] without its indentation.
const WORD: usize = NAME - 2;

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "rounded"
)]
fn per_second(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds.max(0.001)).round() as u64
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

fn percent(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0))
}

fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", amount(bytes.unsigned_abs()))
}

/// Bytes with three or more digits in the largest unit that they fill.
#[expect(clippy::cast_precision_loss, reason = "rounded")]
fn amount(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    format!("{value:.1} {unit}")
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
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn what_happened_is_shown_and_the_rest_is_not() {
        let text = Table(&sample()).to_string();
        let expected = "\
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
        assert!(
            text.starts_with("last 1.0 s        requests/s      bytes/s\n  read  "),
            "{text}"
        );
        let mut idle = sample();
        idle.interval = Some(Interval::between(&sample(), &sample(), 2.0));
        assert!(
            Table(&idle)
                .to_string()
                .starts_with("no request in the last 2.0 s\n")
        );
    }

    #[test]
    fn amounts_have_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1 << 30, "1.0 GiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }
}
