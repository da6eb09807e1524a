//! The requests of a device as lines, while it runs.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Duration;

use ublk_bpf_abi::{Op, Verdict};

use super::{Args, INTERVAL, Until};
use crate::cli::output::print;
use crate::log;
use crate::observe::{Live, RequestFilter, TraceLine};
use crate::path_text::ShowPath as _;
use crate::policy::Disk;
use crate::registry::Record;

/// Which requests are shown.
#[derive(Debug, clap::Args)]
#[group(multiple = true, conflicts_with = "record")]
pub(super) struct LiveOptions {
    /// Only requests of these operations: read, write, flush, discard, write-zeroes
    #[arg(long, value_name = "OP", value_delimiter = ',', value_parser = op)]
    op: Vec<Op>,
    /// Only requests of these verdicts: passthrough, hit, drop, slow; none: the classifier did not run
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = verdict)]
    verdict: Vec<Verdict>,
    /// Only requests of tasks with this name
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Only requests of tasks in this cgroup, by its number or directory; not of those below it
    #[arg(long, value_name = "ID|DIR", value_parser = cgroup)]
    cgroup: Option<u64>,
    /// Only requests that touch these sectors
    #[arg(long, value_name = "A-B", value_parser = sectors)]
    sectors: Option<RangeInclusive<u64>>,
    /// Only requests that took longer, such as 500us, 2ms or 1s
    #[arg(long, value_name = "TIME", visible_alias = "slow-than", value_parser = nanoseconds)]
    slower_than: Option<u64>,
    /// End after so many lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

impl LiveOptions {
    fn filter(&self) -> RequestFilter {
        RequestFilter {
            ops: self.op.clone(),
            verdicts: self.verdict.clone(),
            task: self.task.clone(),
            cgroup: self.cgroup,
            sectors: self.sectors.clone(),
            slower_than_ns: self.slower_than,
        }
    }
}

/// Prints lines until something ends it.
pub(super) fn run(args: &Args, record: &Record, until: &Until) -> anyhow::Result<()> {
    let disk = Disk::ublk(args.device.id.number());
    let mut live = Live::start(&disk, record.sectors, args.buffer)?;
    if !args.format.json {
        print(format_args!("{}\n", TraceLine::header()))?;
    }
    let filter = args.live.filter();
    let mut left = args.live.limit.unwrap_or(u64::MAX);
    let mut seen = 0_u64;
    loop {
        let is_last = !live.is_there() || until.is_over();
        let mut lines = String::new();
        while left > 0
            && let Some(ended) = live.next()
        {
            seen += 1;
            if filter.admits(&ended) {
                write_line(&mut lines, &TraceLine::ended(&ended), args.format.json)?;
                left -= 1;
            }
        }
        if !lines.is_empty() {
            print(lines)?;
        }
        if is_last || left == 0 {
            break;
        }
        thread::sleep(INTERVAL);
    }
    if let Some(missing) = missing(seen, live.dropped()?, live.skipped()?) {
        log::say(missing);
    }
    Ok(())
}

fn write_line(lines: &mut String, line: &TraceLine, json: bool) -> anyhow::Result<()> {
    if json {
        writeln!(lines, "{}", serde_json::to_string(line)?)?;
    } else {
        writeln!(lines, "{line}")?;
    }
    Ok(())
}

/// What was not seen, if there is any.
fn missing(seen: u64, dropped: u64, skipped: u64) -> Option<String> {
    let mut parts = Vec::new();
    if dropped > 0 {
        parts.push(format!("{dropped} dropped (a larger --buffer holds more)"));
    }
    if skipped > 0 {
        parts.push(format!(
            "up to {skipped} not seen, because the tracer already ran on their CPU"
        ));
    }
    (!parts.is_empty()).then(|| format!("{seen} requests traced, {}", parts.join(", ")))
}

fn op(text: &str) -> Result<Op, String> {
    named(text, &Op::ALL, Op::name)
}

fn verdict(text: &str) -> Result<Verdict, String> {
    named(text, &Verdict::ALL, Verdict::name)
}

fn named<T: Copy>(text: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Result<T, String> {
    let found = all.iter().find(|&&of| name(of) == text);
    found.copied().ok_or_else(|| {
        let known: Vec<_> = all.iter().map(|&of| name(of)).collect();
        format!("it is one of {}", known.join(", "))
    })
}

/// A cgroup's number is the inode of its directory.
fn cgroup(text: &str) -> Result<u64, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let path = std::path::Path::new(text);
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(found.ino()),
        Ok(_) => Err(format!("{} is not a directory", path.shown())),
        Err(error) => Err(format!("it is neither a number nor a directory: {error}")),
    }
}

fn sectors(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        _ => Err("sectors are written FIRST-LAST, such as 2048-4095".to_owned()),
    }
}

/// A time of at most an hour, with its unit.
fn nanoseconds(text: &str) -> Result<u64, String> {
    let wrong =
        || "a time is a number with its unit, such as 500us, 2ms or 1s, and at most an hour".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len();
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let limit = Duration::from_secs(3600).as_nanos();
    number
        .checked_mul(scale)
        .filter(|&ns| u128::from(ns) <= limit)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_parsed() {
        assert_eq!(op("write-zeroes"), Ok(Op::WriteZeroes));
        assert!(op("trim").is_err_and(|told| told.contains("read, write, flush, discard")));
        assert_eq!(verdict("none"), Ok(Verdict::None));
        assert_eq!(sectors("8-15"), Ok(8..=15));
        assert_eq!(sectors("8"), Ok(8..=8));
        for wrong in ["15-8", "", "-", "8-", "a-b"] {
            assert!(sectors(wrong).is_err(), "{wrong}");
        }
        assert_eq!(cgroup("77"), Ok(77));
        assert!(cgroup("/").is_ok_and(|inode| inode > 0));
        assert!(cgroup("/nowhere").is_err_and(|told| told.contains("neither a number nor a directory")));
    }

    #[test]
    fn times_have_units() {
        let told = ["7ns", "500us", "2ms", "1s", "3600s"].map(nanoseconds);
        assert_eq!(
            told,
            [
                Ok(7),
                Ok(500_000),
                Ok(2_000_000),
                Ok(1_000_000_000),
                Ok(3_600_000_000_000)
            ]
        );
        for wrong in [
            "",
            "5",
            "ms",
            "1.5ms",
            "-1s",
            "3601s",
            "99999999999999999999s",
            "5m",
        ] {
            assert!(nanoseconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        assert_eq!(missing(9, 0, 0), None);
        assert_eq!(
            missing(9, 2, 0).as_deref(),
            Some("9 requests traced, 2 dropped (a larger --buffer holds more)")
        );
        assert!(missing(9, 0, 3).is_some_and(|told| told.contains("up to 3 not seen")));
    }
}
