//! What a hit costs: reads of what is wholly in the cache, ours and dm-cache's, in one boot.
//!
//! A promotion writes to the fast device, and reads of a ram disk's written pages copy them, which at 64k takes half the
//! instructions and drowns the rest. So everything is measured twice: as the promotions left the fast device, and after
//! its pages were discarded behind the cache's back. It read as zeroes before and does after.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::counts::{Cached, Counts};
use super::discard::discard;
use super::fio::{self, Job, Summary};
use super::load::{DEPTH, Reader};
use super::ours::Device;
use super::peers::{self, BLOCK, DmCache, FAST, SLOW};

/// What is read and cached, in MiB.
const RANGE_MIB: u64 = 128;
const RANGE: u64 = RANGE_MIB << 20;
/// Runs of fio that count, for each case: all but equal, as they were.
const RUNS: usize = 3;
/// Promotion runs behind the reads.
const WARM_LIMIT: Duration = Duration::from_secs(60);
/// So much may be on its way to dm-cache's fast device: the default, 2048 sectors, only makes the warming slow.
const MIGRATION_THRESHOLD: u64 = 204_800;

/// The state of the fast device's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    /// Written: a read copies them.
    Full,
    /// None: a read clears the reader's.
    Empty,
}

const STATES: [Pages; 2] = [Pages::Full, Pages::Empty];

/// A size of reads, and the I/Os per second with [`Pages::Empty`] that ours must reach: those of passthrough to a ram
/// disk that is as empty.
struct Size {
    block: &'static str,
    floor: f64,
}

const SIZES: [Size; 2] = [
    Size {
        block: "4k",
        floor: 104_000.0,
    },
    Size {
        block: "64k",
        floor: 47_000.0,
    },
];

/// What was measured of one device, in the order of [`STATES`] and, within each, of [`SIZES`].
type Results = Vec<Summary>;

/// Prints the table, and gives how many floors were missed. With `peers_only`, nothing of ours is measured.
pub(super) fn table(peers_only: bool) -> Result<usize> {
    println!(
        "random read of {RANGE_MIB} MiB that are wholly in the cache: {SLOW} behind {FAST}, blocks of 64k,"
    );
    println!(
        "write-through, one queue of depth 128, on the instruction clock; the median of {RUNS} runs of 1 s;"
    );
    println!(
        "pages full: as the promotions left them, a read copies; empty: discarded since, a read clears\n"
    );
    println!(
        "{:<18}{:>5}{:>7}{:>10}{:>9}{:>13}{:>10}{:>13}",
        "device", "block", "pages", "IOPS", "spread", "instr./I/O", "floor", "of dm-cache"
    );
    let dm_cache = dm_cache()?;
    let mut missed = 0;
    if !peers_only {
        missed = print("ublk-bpf", &ours()?, &dm_cache, true);
    }
    print("dm-cache smq", &dm_cache, &dm_cache, false);
    print("dm-linear", &linear()?, &dm_cache, false);
    print(FAST, &bare()?, &dm_cache, false);
    Ok(missed)
}

/// Prints a device's lines, and gives how many floors it missed.
fn print(name: &str, results: &[Summary], dm_cache: &[Summary], has_floors: bool) -> usize {
    let cases = STATES
        .iter()
        .flat_map(|pages| SIZES.iter().map(move |size| (*pages, size)));
    let mut missed = 0;
    for ((pages, size), (result, peer)) in cases.zip(results.iter().zip(dm_cache)) {
        let floor = (has_floors && pages == Pages::Empty).then_some(size.floor);
        missed += usize::from(floor.is_some_and(|floor| result.median < floor));
        println!("{}", line(name, (pages, size.block), result, floor, peer));
    }
    missed
}

fn line(name: &str, case: (Pages, &str), result: &Summary, floor: Option<f64>, peer: &Summary) -> String {
    let (pages, block) = case;
    let pages = match pages {
        Pages::Full => "full",
        Pages::Empty => "empty",
    };
    let spread = format!("{:.1} %", result.spread * 100.0);
    let share = format!("{:.0} %", result.median / peer.median * 100.0);
    let asked = floor.map_or_else(|| "-".to_owned(), |floor| format!("{floor:.0}"));
    let verdict = match floor {
        None => "",
        Some(floor) if result.median >= floor => "  ok",
        Some(_) => "  missed",
    };
    format!(
        "{name:<18}{block:>5}{pages:>7}{:>10.0}{spread:>9}{:>13.0}{asked:>10}{share:>13}{verdict}",
        result.median,
        1e9 / result.median,
    )
}

fn ours() -> Result<Results> {
    let device = warm(RANGE_MIB)?;
    let results = measure_hits(&device)?;
    device.stop()?;
    Ok(results)
}

/// A device of ours that has its first MiBs in its cache.
pub(super) fn warm(mib: u64) -> Result<Device> {
    discard_fast()?;
    let device = Device::start(&[
        "--backing",
        SLOW,
        "--cache",
        FAST,
        "--cache-block",
        "64K",
        "--cache-mode",
        "write-through",
        "--cache-reset",
        "--policy",
        "lru",
        "--queues",
        "1",
        "--depth",
        "128",
    ])?;
    warm_by_reading(&device, (mib << 20) / BLOCK)?;
    Ok(device)
}

/// Reads the first blocks until every one of them is promoted.
fn warm_by_reading(device: &Device, blocks: u64) -> Result<()> {
    let block = usize::try_from(BLOCK)?;
    let mut reader = Reader::open(device.path(), block)?;
    let started = Instant::now();
    loop {
        for first in (0..blocks).step_by(DEPTH) {
            let batch: Vec<u64> = (first..blocks).take(DEPTH).map(|number| number * BLOCK).collect();
            reader.read(&batch, block)?;
        }
        let promoted = device.counts()?.promoted;
        if promoted >= blocks {
            return Ok(());
        }
        if started.elapsed() > WARM_LIMIT {
            bail!("ublk-bpf promoted {promoted} of the {blocks} blocks that were read again and again");
        }
    }
}

fn dm_cache() -> Result<Results> {
    discard_fast()?;
    let cache = DmCache::create(Path::new(FAST), RANGE)?;
    cache.set_migration_threshold(MIGRATION_THRESHOLD)?;
    warm_by_hitting(&cache)?;
    measure_hits(&cache)
}

/// Reads at random until everything hits: what is read in order smq promotes only slowly.
fn warm_by_hitting(cache: &DmCache) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < WARM_LIMIT {
        let before = cache.counts()?;
        fio::iops(&job(cache.path(), "4k"))?;
        let after = cache.counts()?.since(before);
        if after.hits == after.reads {
            return Ok(());
        }
    }
    bail!("dm-cache still misses after {} s", WARM_LIMIT.as_secs())
}

fn linear() -> Result<Results> {
    peers::fill(FAST, RANGE_MIB)?;
    let device = peers::linear(FAST, RANGE)?;
    measure(device.path(), &|| Ok(()))
}

fn bare() -> Result<Results> {
    peers::fill(FAST, RANGE_MIB)?;
    measure(Path::new(FAST), &|| Ok(()))
}

/// Measures a cache, and makes sure that every read hit.
fn measure_hits(cache: &dyn Cached) -> Result<Results> {
    let before = cache.counts()?;
    measure(cache.path(), &|| only_hits(cache.counts()?.since(before)))
}

fn only_hits(counts: Counts) -> Result<()> {
    ensure!(
        counts.reads > 0 && counts.hits == counts.reads,
        "only {} of {} reads hit a cache that has everything",
        counts.hits,
        counts.reads
    );
    Ok(())
}

fn measure(device: &Path, check: &dyn Fn() -> Result<()>) -> Result<Results> {
    let mut results = Vec::new();
    for pages in STATES {
        if pages == Pages::Empty {
            discard_fast()?;
        }
        for size in &SIZES {
            results.push(fio::measure(&job(device, size.block), RUNS)?);
            check()?;
        }
    }
    Ok(results)
}

fn job<'a>(device: &'a Path, block: &'a str) -> Job<'a> {
    Job {
        device,
        block,
        range_mib: Some(RANGE_MIB),
    }
}

/// Leaves the fast device without any page. What ublk-bpf keeps there about the cache goes too: it writes that anew
/// when it stops, and no one reads it before.
pub(super) fn discard_fast() -> Result<()> {
    discard(FAST, super::RAM_DISK_MIB << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_verdict_only_where_there_is_a_floor() {
        let summary = |median| Summary { median, spread: 0.0 };
        let words = |floor| {
            let case = (Pages::Empty, "64k");
            line("ublk-bpf", case, &summary(50_000.0), floor, &summary(40_000.0))
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(words(None), "ublk-bpf 64k empty 50000 0.0 % 20000 - 125 %");
        assert_eq!(
            words(Some(47_000.0)),
            "ublk-bpf 64k empty 50000 0.0 % 20000 47000 125 % ok"
        );
        assert!(words(Some(51_000.0)).ends_with("missed"));
    }

    #[test]
    fn one_miss_is_too_many() {
        let counts = |hits, reads| Counts {
            reads,
            hits,
            promoted: 0,
        };
        assert!(only_hits(counts(5, 5)).is_ok());
        assert!(only_hits(counts(4, 5)).is_err());
        assert!(only_hits(counts(0, 0)).is_err(), "nothing was counted");
    }
}
