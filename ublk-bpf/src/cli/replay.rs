//! `ublk-bpf replay`.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::args::OutputFormat;
use super::choice;
use super::config::parse_cache_block;
use super::devices::DEFAULT_CACHE_POLICY;
use super::error::Usage;
use super::output::print_line;
use super::table;
use crate::backend::{Size, parse_size};
use crate::cache::Mode;
use crate::cache::evict::Algorithm;
use crate::path_text::ShowPath as _;
use crate::replay::read::{self, ReadOptions};
use crate::replay::{
    BUILTIN, CacheSize, DEFAULT_RATE, NativePolicy, PolicyCrate, Progress, ReplayJob, Row, plot, word,
};

const DETAILS: &str = "\
Replays each trace, from an empty cache, through the server's own cache and mover, in the time of the trace: with every \
policy and eviction algorithm, in every cache size and block size. LRU and Belady's algorithm, which no cache can beat, \
run over the same reads for comparison.

The columns, in per cent of what there would be without a cache unless they say otherwise:
  HIT            reads that needed no read of the backing, each counted once for each cache block that it touches
  HIT REQUESTS   read requests that the cache served in full
  HIT BYTES      bytes read that came from the cache
  BACKING I/OS   reads of the backing, promotions included
  BACKING BYTES  bytes of these
  WRITTEN/HIT    bytes written to the cache for each byte that it served: its wear

The format of a trace is recognised by its content: a recording of `ublk-bpf trace`, CSV with a line of column names \
(sector or offset, sectors or bytes; op, time_s, time_ms, time_us, time_ns, pid, tgid, comm, cgroup, flags, ioprio), the \
text of blkparse, fio's iolog 2 and 3, libCacheSim's oracleGeneral, vSCSI 1 and 2, and records of 24 bytes (time in \
microseconds, sector, sectors, operation). A list of page numbers (--format pages) is not recognised.

A policy object (FILE.o) is BPF code and runs only in the kernel. --policy-crate builds the policy's crate for this machine \
instead, which needs cargo.

Examples:
  ublk-bpf replay disk.trace
  ublk-bpf replay disk.trace --policy lru,scan-resistant --cache-size 1%,5%,20% --plot curve.svg
  ublk-bpf replay disk.trace --policy-crate examples/pin-range --cache-block 16K,64K --json";

/// Replay traces of requests with policies and cache sizes, and show what each would save
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(super) struct Args {
    /// Files with traces
    #[arg(value_name = "TRACE", required = true)]
    traces: Vec<PathBuf>,
    /// Built-in policies [default: the one that a cache gets]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    policy: Vec<String>,
    /// A policy of your own: the folder of its crate
    #[arg(long, value_name = "DIR")]
    policy_crate: Vec<PathBuf>,
    /// Sizes of the cache: bytes, or per cent of the blocks that the trace reads
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = parse_cache_size,
        default_value = "1%,2%,5%,10%,20%,40%")]
    cache_size: Vec<CacheSize>,
    /// Cache block sizes, 4K to 1M
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = parse_cache_block, default_value = "64K")]
    cache_block: Vec<u32>,
    /// Eviction algorithms [default: adaptive]
    #[arg(long, value_name = "ALGORITHM", value_delimiter = ',', value_parser = choice::cache_eviction())]
    cache_eviction: Vec<Algorithm>,
    /// How writes treat cached blocks [default: write-through]
    #[arg(long, value_name = "MODE", value_parser = choice::cache_mode())]
    cache_mode: Option<Mode>,
    /// Limit promotion to this many bytes a second of the trace
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    promote_limit: Option<u64>,
    /// From the start of a promotion until its block can be hit: 500us, 10ms, 1s
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "0s")]
    promote_latency: Duration,
    /// Replay the reads alone
    #[arg(long)]
    reads_only: bool,
    /// The traces' format, if it is not to be recognised
    #[arg(long, value_name = "FORMAT", value_parser = choice::trace_format())]
    format: Option<read::TraceFormat>,
    /// What one number stands for in oracle-general [default: 512] and pages [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = parse_unit)]
    unit: Option<u32>,
    /// Requests a second of a trace without times
    #[arg(long, value_name = "N", default_value_t = NonZero::new(DEFAULT_RATE).unwrap_or(NonZero::<u64>::MIN))]
    rate: NonZero<u64>,
    /// Draw miss-ratio curves
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    output: OutputFormat,
}

/// A number of bytes, or per cent.
fn parse_cache_size(text: &str) -> Result<CacheSize, String> {
    let Some(percent) = text.strip_suffix('%') else {
        return parse_size(text)
            .map(CacheSize::Bytes)
            .map_err(|error| error.to_string());
    };
    match percent.trim().parse() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(CacheSize::Percent(percent)),
        _ => Err(format!(
            "not a part of the blocks: {text:?}: write 0.1% to 100%, or a size such as 1G"
        )),
    }
}

/// A number with `ns`, `us`, `ms` or `s`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ns" => Some(1),
        "us" => Some(1000),
        "ms" => Some(1_000_000),
        "s" => Some(1_000_000_000),
        _ => None,
    };
    let time = unit.zip(digits.parse::<u64>().ok());
    let time = time.and_then(|(unit, number)| number.checked_mul(unit));
    let wrong = || format!("not a time: {text:?}: write a number with ns, us, ms or s, such as 10ms");
    time.map(Duration::from_nanos).ok_or_else(wrong)
}

fn parse_unit(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    u32::try_from(bytes).map_err(|_| format!("a unit too large: {text:?}: the most is 4G"))
}

/// Replays, and prints what happened.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let builtin = builtin_policies(args)?;
    let crates = args.policy_crate.iter().map(|folder| PolicyCrate::build(folder));
    let crates = crates.collect::<Result<Vec<_>, _>>()?;
    let rows = with_progress(|progress| replay(args, &builtin, &crates, progress))?;
    if let Some(path) = &args.plot {
        fs::write(path, plot(&rows)?).with_context(|| format!("cannot write {}", path.shown()))?;
    }
    if args.output.json {
        let rows: Vec<_> = rows.iter().map(in_json).collect();
        print_line(format_args!("{:#}", json!({ "rows": rows })))?;
    } else {
        print_table(&rows)?;
    }
    Ok(())
}

/// The built-in policies that were named, or the default one if no policy was.
fn builtin_policies(args: &Args) -> anyhow::Result<Vec<(&'static str, &'static dyn NativePolicy)>> {
    let default = [DEFAULT_CACHE_POLICY.to_owned()];
    let names = if args.policy.is_empty() && args.policy_crate.is_empty() {
        &default
    } else {
        args.policy.as_slice()
    };
    names.iter().map(|name| builtin(name)).collect()
}

fn builtin(name: &str) -> anyhow::Result<(&'static str, &'static dyn NativePolicy)> {
    if let Some((name, policy)) = BUILTIN.iter().find(|(known, _)| *known == name) {
        return Ok((name, policy));
    }
    let is_object = Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "o");
    if is_object {
        bail!(Usage(format!(
            "a policy object cannot be replayed: {name:?} is BPF code, which only the kernel runs: name the folder of its \
             crate with --policy-crate DIR"
        )));
    }
    let known: Vec<&str> = BUILTIN.iter().map(|(name, _)| *name).collect();
    bail!(Usage(format!(
        "no policy for a replay: {name:?}: take one of {}, or a crate with --policy-crate DIR",
        known.join(", ")
    )))
}

/// The job of these arguments.
fn job(args: &Args) -> ReplayJob {
    ReplayJob {
        traces: args.traces.clone(),
        read: ReadOptions {
            format: args.format,
            unit: args.unit,
            rate: args.rate.get(),
        },
        reads_only: args.reads_only,
        shifts: args
            .cache_block
            .iter()
            .map(|block| block.trailing_zeros())
            .collect(),
        sizes: args.cache_size.clone(),
        evictions: match args.cache_eviction.as_slice() {
            [] => vec![Algorithm::default()],
            named => named.to_vec(),
        },
        references: true,
        mode: args.cache_mode.unwrap_or_default(),
        promote_limit: args.promote_limit,
        promote_latency: args.promote_latency,
    }
}

/// Does the job with the built-in policies and then with each crate. The rows of one trace and size are together.
fn replay(
    args: &Args,
    builtin: &[(&str, &dyn NativePolicy)],
    crates: &[PolicyCrate],
    progress: &Progress,
) -> anyhow::Result<Vec<Row>> {
    let mut job = job(args);
    let mut rows = job.run(builtin, progress)?;
    job.references = false;
    for policy in crates {
        rows.extend(policy.run(&job, progress)?);
    }
    let traces = |path: &Path| args.traces.iter().position(|trace| trace == path);
    rows.sort_by_key(|row| (traces(&row.trace), row.block, row.slots, row.eviction.is_none()));
    Ok(rows)
}

/// Time between two looks at the progress.
const INTERVAL: Duration = Duration::from_millis(100);

/// Shows the progress of some work on a terminal.
fn with_progress(
    work: impl FnOnce(&Progress) -> anyhow::Result<Vec<Row>> + Send,
) -> anyhow::Result<Vec<Row>> {
    let progress = Progress::default();
    let bar = ProgressBar::new(0);
    if let Ok(style) =
        ProgressStyle::with_template("{wide_bar} {human_pos} of {human_len} requests, {eta} left")
    {
        bar.set_style(style);
    }
    let result = std::thread::scope(|scope| {
        let work = scope.spawn(|| work(&progress));
        while !work.is_finished() {
            std::thread::sleep(INTERVAL);
            bar.set_length(progress.known.load(Ordering::Relaxed));
            bar.set_position(progress.done.load(Ordering::Relaxed));
        }
        work.join()
    });
    bar.finish_and_clear();
    result.map_err(|_| anyhow!("the replay panicked"))?
}

fn in_json(row: &Row) -> serde_json::Value {
    let counts = &row.counts;
    json!({
        "trace": row.trace.shown().to_string(),
        "requests": row.requests,
        "block_bytes": row.block,
        "working_set_blocks": row.working_set,
        "cache_blocks": row.slots,
        "cache_bytes": row.slots * row.block,
        "policy": row.policy,
        "eviction": row.eviction,
        "hit_ratio": counts.block_hit_ratio(),
        "request_hit_ratio": counts.hit_ratio(),
        "byte_hit_ratio": counts.byte_hit_ratio(),
        "backing_ios": counts.backing_ios(),
        "backing_bytes": counts.backing_traffic(),
        "written_per_hit": counts.wear(),
        "counts": counts,
        "took_ns": row.took_ns,
    })
}

fn print_table(rows: &[Row]) -> anyhow::Result<()> {
    let header = [
        "TRACE",
        "BLOCK",
        "CACHE",
        "POLICY",
        "EVICTION",
        "HIT",
        "HIT REQUESTS",
        "HIT BYTES",
        "BACKING I/OS",
        "BACKING BYTES",
        "WRITTEN/HIT",
    ];
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    table::print(&header, &rows)?;
    Ok(())
}

fn cells(row: &Row) -> Vec<String> {
    let percent = |ratio: f64| format!("{:.1}", ratio * 100.0);
    let counts = &row.counts;
    vec![
        row.trace.file_name().unwrap_or_default().shown().to_string(),
        Size(row.block).to_string(),
        size(row),
        row.policy.clone(),
        row.eviction.map_or_else(|| "-".to_owned(), word),
        percent(counts.block_hit_ratio()),
        percent(counts.hit_ratio()),
        percent(counts.byte_hit_ratio()),
        percent(counts.backing_ios()),
        percent(counts.backing_traffic()),
        format!("{:.2}", counts.wear()),
    ]
}

/// The cache's size as it was asked for, with what that is.
fn size(row: &Row) -> String {
    let blocks = row.slots;
    match row.size {
        CacheSize::Bytes(bytes) => Size(bytes).to_string(),
        CacheSize::Percent(percent) => format!("{percent}% ({blocks} blocks)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_size_is_bytes_or_per_cent() {
        assert_eq!(parse_cache_size("1G"), Ok(CacheSize::Bytes(1 << 30)));
        assert_eq!(parse_cache_size("0.5%"), Ok(CacheSize::Percent(0.5)));
        for wrong in ["0%", "101%", "NaN%", "%", "5 percent", ""] {
            assert!(parse_cache_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(parse_time("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(parse_time("0s"), Ok(Duration::ZERO));
        for wrong in ["10", "ms", "1h", "-1s", "99999999999999999999s", ""] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_object_is_refused_with_what_to_do() {
        let error = |name| builtin(name).map(|_| ()).unwrap_err().to_string();
        assert!(error("mine.o").contains("--policy-crate"));
        assert!(error("unknown").contains("scan-resistant"));
        assert!(builtin("lru").is_ok());
    }
}
