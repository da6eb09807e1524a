//! Part `traces`: what the cache saves on block traces, beside libCacheSim's algorithms, and the sections of
//! docs/caching.md about it.
//!
//! Ours are replayed by the server's own code, in this process; no guest is booted. The traces are whatever the folder
//! has: none comes with the project.

mod page;
mod peers;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ublk_bpf_abi::Op;
use ublk_bpf_core::cache::Mode;
use ublk_bpf_core::cache::evict::Algorithm;
use ublk_bpf_core::replay::read::{ReadOptions, TraceFormat, read};
use ublk_bpf_core::replay::{
    CacheSize, Counts, NativePolicy, Progress, Reference, ReplayJob, Row, Stream, Trace,
};

use host::progress;

use crate::obtain::libcachesim;
use crate::report;

/// Sizes of the cache, in per cent of the blocks that a trace reads.
const SIZES: [f64; 2] = [5.0, 10.0];
/// The policies to show, where they exist, the most important first.
const POLICIES: [&str; 4] = ["auto", "frugal", "scan-resistant", "lru"];
/// How long promotions take, in the section about that.
const LATENCIES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(10),
];
/// The part of what a cache fills by itself that the promotion limit leaves, in the same section.
const LIMIT_PART: u64 = 10;

/// The kinds of trace, each with a block size of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Requests of many sizes: cache blocks of 64 KiB.
    Block,
    /// Pages of 4 KiB: cache blocks of that size.
    Page,
}

impl Kind {
    fn of(trace: &Trace) -> Self {
        let mut reads = trace.requests().iter().filter(|request| request.op == Op::Read);
        let is_page = reads.all(|read| read.nr_sectors == 8 && read.sector.is_multiple_of(8));
        if is_page { Self::Page } else { Self::Block }
    }

    const fn shift(self) -> u32 {
        match self {
            Self::Block => 16,
            Self::Page => 12,
        }
    }
}

/// A trace of the folder.
struct Subject {
    name: String,
    path: PathBuf,
    read: ReadOptions,
    kind: Kind,
    trace: Trace,
}

/// What was measured of one trace: the counts for each of [`SIZES`], by what served the reads.
struct Measured {
    name: String,
    kind: Kind,
    requests: usize,
    working_set: u32,
    ours: Vec<(&'static str, Vec<Counts>)>,
    references: Vec<(&'static str, Vec<Counts>)>,
    peers: BTreeMap<String, Vec<Counts>>,
    /// The first policy's, for each of [`LATENCIES`], and last with the promotion limit.
    strained: Vec<Vec<Counts>>,
}

/// Replays the traces of the folder and writes the sections.
pub(crate) fn run(folder: Option<&Path>) -> Result<ExitCode> {
    let folder = folder.context("the part traces needs a folder of them: --traces DIR")?;
    let python = libcachesim::present()?;
    if python.is_none() {
        progress::note("libCacheSim is left out: `cargo xtask setup --peers` installs it");
    }
    let mut measured = Vec::new();
    for subject in subjects(folder)? {
        let step = progress::step(format!("replaying {}", subject.name));
        let of = measure(&subject, python.as_deref())?;
        step.done(&format!("replayed {}: {} requests", of.name, of.requests));
        measured.push(of);
    }
    measured.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    for (section, body) in page::sections(&measured) {
        println!("{body}\n");
        report::replace("docs/caching.md", section, &body)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The traces of the folder. A file of no known format is left out, with a note; one named `.u32be` has page numbers.
fn subjects(folder: &Path) -> Result<Vec<Subject>> {
    let files = fs::read_dir(folder).with_context(|| format!("cannot look into {}", folder.display()))?;
    let mut paths = files.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    let mut subjects: Vec<Subject> = Vec::new();
    for path in paths.into_iter().filter(|path| path.is_file()) {
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let has_pages = path.extension().is_some_and(|extension| extension == "u32be");
        let read_options = ReadOptions {
            format: has_pages.then_some(TraceFormat::Pages),
            ..ReadOptions::default()
        };
        if subjects.iter().any(|subject| subject.name == name) {
            progress::note(&format!(
                "{} is left out: there is another {name}",
                path.display()
            ));
            continue;
        }
        match read(&path, &read_options) {
            Ok(trace) => subjects.push(Subject {
                name,
                path,
                read: read_options,
                kind: Kind::of(&trace),
                trace,
            }),
            Err(error) => progress::note(&format!("left out: {error}")),
        }
    }
    ensure!(!subjects.is_empty(), "{} has no trace", folder.display());
    Ok(subjects)
}

fn policies() -> Vec<(&'static str, &'static dyn NativePolicy)> {
    let find = |name: &&str| ublk_bpf_policies::ALL.iter().find(|(known, _)| known == name);
    let found = POLICIES.iter().filter_map(find);
    found
        .map(|(name, policy)| (*name, policy as &dyn NativePolicy))
        .collect()
}

fn measure(subject: &Subject, python: Option<&Path>) -> Result<Measured> {
    let policies = policies();
    let rows = replay(&job(subject), &policies)?;
    let first = policies.first().map_or("", |(name, _)| name);
    let stream = Stream::new(&subject.trace, subject.kind.shift())?;
    let mut slots: Vec<u64> = rows.iter().map(|row| row.slots).collect();
    slots.dedup();
    let peers = match python {
        Some(python) => peers::run(python, &subject.trace, &stream, &slots)?,
        None => peers::Results::new(),
    };
    // An algorithm that failed with one of the sizes is left out.
    let peer = |name: &str| -> Option<Vec<Counts>> {
        let key = |slots: &u64| (name.to_owned(), *slots);
        slots
            .iter()
            .map(|slots| peers.get(&key(slots)).copied())
            .collect()
    };
    let named = peers::ALGORITHMS
        .iter()
        .map(|&name| (name.to_owned(), peer(name)));
    let peers = named.filter_map(|(name, counts)| Some((name, counts?))).collect();
    let strained = strained(subject, &policies[..1], &counts_of(&rows, first))?;
    Ok(Measured {
        name: subject.name.clone(),
        kind: subject.kind,
        requests: subject.trace.requests().len(),
        working_set: stream.working_set,
        ours: policies
            .iter()
            .map(|(name, _)| (*name, counts_of(&rows, name)))
            .collect(),
        references: Reference::ALL
            .map(|of| (of.name(), counts_of(&rows, of.name())))
            .into(),
        peers,
        strained,
    })
}

/// The first policy with slow promotions, and with a limit on them.
fn strained(
    subject: &Subject,
    policy: &[(&str, &dyn NativePolicy)],
    free: &[Counts],
) -> Result<Vec<Vec<Counts>>> {
    let mut strained = Vec::new();
    let mut job = job(subject);
    job.references = false;
    for latency in LATENCIES {
        job.promote_latency = latency;
        strained.push(replay(&job, policy)?.iter().map(|row| row.counts).collect());
    }
    job.promote_latency = Duration::ZERO;
    let seconds = subject
        .trace
        .requests()
        .last()
        .map_or(1, |last| last.time_ns / 1_000_000_000)
        .max(1);
    let mut limited = Vec::new();
    for (size, counts) in SIZES.iter().zip(free) {
        job.sizes = vec![CacheSize::Percent(*size)];
        job.promote_limit = Some((counts.filled_bytes / seconds / LIMIT_PART).max(1));
        limited.extend(replay(&job, policy)?.iter().map(|row| row.counts));
    }
    strained.push(limited);
    Ok(strained)
}

fn job(subject: &Subject) -> ReplayJob {
    ReplayJob {
        traces: vec![subject.path.clone()],
        read: subject.read,
        reads_only: true,
        shifts: vec![subject.kind.shift()],
        sizes: SIZES.map(CacheSize::Percent).into(),
        evictions: vec![Algorithm::default()],
        references: true,
        mode: Mode::default(),
        promote_limit: None,
        promote_latency: Duration::ZERO,
    }
}

fn replay(job: &ReplayJob, policies: &[(&str, &dyn NativePolicy)]) -> Result<Vec<Row>> {
    Ok(job.run(policies, &Progress::default())?)
}

/// The counts of one policy or reference, for each size.
fn counts_of(rows: &[Row], name: &str) -> Vec<Counts> {
    let of = rows.iter().filter(|row| row.policy == name);
    of.map(|row| row.counts).collect()
}
