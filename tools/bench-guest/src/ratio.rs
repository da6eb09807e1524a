//! How many reads hit a cache of a tenth of the device, and what a scan of the whole device takes from that.
//!
//! The same reads in the same order for each cache: one reader, a batch of reads at a time, at a pace that leaves
//! every cache time to promote. Some blocks are read far more often than others (a zipfian distribution, as in YCSB's loads). The
//! scan is cut into slices, which come between stretches of the load; only the load's own hits count.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::counts::{Cached, Counts};
use super::load::{DEPTH, Pace, Reader, Zipf};
use super::ours::Device;
use super::peers::{self, BLOCK, DmCache, FAST, SLOW};

/// Blocks of the device.
const BLOCKS: u32 = 16_384;
/// Blocks that the cache holds.
const SLOTS: u32 = BLOCKS / 10;
const THETA: f64 = 0.99;
const SEED: u64 = 1;
/// Bytes of the load's reads.
const READ: u64 = 4096;
const WARM_UP: u32 = 100_000;
const MEASURED: u32 = 100_000;
/// dm-cache's smq works by the clock. Every 60 s it re-sorts what it holds, and then hits less for a long time (60 to 62 per
/// cent of this load, 66 to 67 before); this pace lets it fill the cache and end within its first, its best minute.
const PER_SECOND: u32 = 15_000;
/// Stretches of the load, and slices of the scan: few, for counts are read around each.
const ROUNDS: u32 = 50;
/// Bytes of the scan's reads: one for each block, and several.
const SCANS: [(&str, u64); 2] = [("64k", BLOCK), ("16k", 16 << 10)];
/// Points that the scan may cost the policy that resists it.
const MAY_LOSE: f64 = 3.0;

/// What one cache did, from cold, with one of [`SCANS`]. The ratios are the parts of the load's reads that hit, in per cent.
#[derive(Debug, PartialEq)]
struct Row {
    alone: f64,
    scanned: f64,
    promoted: u64,
    /// From the first read of the warm-up to the last with the scan.
    took: Duration,
}

/// Prints the table, and gives how many claims do not hold.
pub fn table() -> Result<usize> {
    heading();
    ours("lru", "clock")?;
    let resistant = ours("scan-resistant", "adaptive")?;
    let smq = dm_cache()?;
    println!();
    let claims = claims(&resistant, &smq);
    for (claim, holds) in &claims {
        println!("{claim}: {}", if *holds { "ok" } else { "missed" });
    }
    Ok(claims.iter().filter(|(_, holds)| !holds).count())
}

fn heading() {
    let most = Zipf::new(BLOCKS, THETA, SEED).share_of_hottest(SLOTS as usize) * 100.0;
    println!(
        "hits of a zipfian load (theta {THETA}) of 4k reads on {BLOCKS} blocks of 64k, of which the cache holds"
    );
    println!(
        "{SLOTS}, in per cent: {WARM_UP} reads to warm up, {MEASURED} alone, and the same {MEASURED} with a scan of"
    );
    println!(
        "the whole device in {ROUNDS} slices between them, which is not counted; at most {PER_SECOND} reads a second;"
    );
    println!("the {SLOTS} hottest blocks get {most:.1} % of the reads\n");
    println!(
        "{:<24}{:>12}{:>14}{:>10}{:>8}{:>12}{:>8}",
        "policy", "scan's reads", "zipf alone", "scanned", "lost", "promoted", "took"
    );
}

fn line(name: &str, scan: &str, row: &Row) -> String {
    let took = format!("{} s", row.took.as_secs());
    format!(
        "{name:<24}{scan:>12}{:>14.1}{:>10.1}{:>8.1}{:>12}{took:>8}",
        row.alone,
        row.scanned,
        row.alone - row.scanned,
        row.promoted
    )
}

/// The claim about the policy that resists scans, and whether it holds.
fn claims(resistant: &[Row], smq: &[Row]) -> Vec<(String, bool)> {
    let mut claims = Vec::new();
    for ((scan, _), (row, peer)) in SCANS.iter().zip(resistant.iter().zip(smq)) {
        let mut claim =
            |what: String, holds| claims.push((format!("{scan} scan: scan-resistant {what}"), holds));
        claim("is ahead of smq before it".to_owned(), row.alone > peer.alone);
        claim("is ahead of smq with it".to_owned(), row.scanned > peer.scanned);
        claim(
            format!("loses less than {MAY_LOSE:.0} points to it"),
            row.alone - row.scanned < MAY_LOSE,
        );
    }
    claims
}

/// Measures ours with each scan, and prints the lines.
fn ours(policy: &str, eviction: &str) -> Result<Vec<Row>> {
    let name = format!("{policy}, {eviction}");
    let measure = |scan: &(&str, u64)| {
        let row = ours_with(policy, eviction, scan.1).with_context(|| name.clone())?;
        println!("{}", line(&name, scan.0, &row));
        Ok(row)
    };
    SCANS.iter().map(measure).collect()
}

fn ours_with(policy: &str, eviction: &str, scan: u64) -> Result<Row> {
    discard_fast()?;
    // One block more: what the cache keeps about itself is in front of the slots.
    let fast = peers::linear(FAST, u64::from(SLOTS + 1) * BLOCK)?;
    let device = Device::start(&[
        "--backing",
        SLOW,
        "--cache",
        &fast.path().to_string_lossy(),
        "--cache-block",
        "64K",
        "--cache-mode",
        "write-through",
        "--cache-reset",
        "--cache-eviction",
        eviction,
        "--policy",
        policy,
        "--queues",
        "1",
    ])?;
    let row = measure(&device, scan)?;
    device.stop()?;
    Ok(row)
}

/// Measures dm-cache with each scan, as it comes, and prints the lines.
fn dm_cache() -> Result<Vec<Row>> {
    let name = "dm-cache smq";
    let mut rows = Vec::new();
    let mut threshold = 0;
    for (scan, read) in SCANS {
        discard_fast()?;
        let fast = peers::linear(FAST, u64::from(SLOTS) * BLOCK)?;
        let cache = DmCache::create(fast.path(), u64::from(BLOCKS) * BLOCK)?;
        threshold = cache.migration_threshold()?;
        let row = measure(&cache, read).context(name)?;
        println!("{}", line(name, scan, &row));
        rows.push(row);
    }
    println!(
        "({name}: tuned as it comes, migration_threshold {threshold}; every 60 s it sorts anew, for the worse)"
    );
    Ok(rows)
}

fn discard_fast() -> Result<()> {
    peers::empty(FAST)
}

fn measure(cache: &dyn Cached, scan: u64) -> Result<Row> {
    let (start, before) = (Instant::now(), cache.counts()?);
    let mut load = Load::new(cache.path())?;
    load.reads(WARM_UP)?;
    let same = load.zipf.clone();
    let warm = cache.counts()?;
    load.reads(MEASURED)?;
    let alone = cache.counts()?.since(warm);
    load.zipf = same;
    let scanned = with_scan(cache, &mut load, scan)?;
    Ok(Row {
        alone: per_cent(alone),
        scanned: per_cent(scanned),
        took: start.elapsed(),
        promoted: cache.counts()?.since(before).promoted,
    })
}

/// What the load alone counts during a scan in reads of this size.
fn with_scan(cache: &dyn Cached, load: &mut Load, read: u64) -> Result<Counts> {
    let mut scan = Scan {
        reader: Reader::open(cache.path(), usize::try_from(read)?)?,
        read,
        at: 0,
    };
    let (slices, to_do) = mpsc::channel();
    let (done, results) = mpsc::channel();
    std::thread::scope(|scope| {
        // A task of its own, as a real scan has: policies tell runs of reads apart by their task.
        scope.spawn(move || {
            for end in to_do {
                if done.send(scan.up_to(end)).is_err() {
                    return;
                }
            }
        });
        let mut total = Counts::default();
        for round in 1..=u64::from(ROUNDS) {
            let before = cache.counts()?;
            load.reads(MEASURED / ROUNDS)?;
            total = total.plus(cache.counts()?.since(before));
            slices.send(u64::from(BLOCKS) * BLOCK * round / u64::from(ROUNDS))?;
            results.recv()??;
        }
        drop(slices);
        Ok(total)
    })
}

/// Reads a device from its start to its end.
struct Scan {
    reader: Reader,
    read: u64,
    at: u64,
}

impl Scan {
    /// Continues to `end`, or one read further.
    fn up_to(&mut self, end: u64) -> Result<()> {
        while self.at < end {
            let reads = (end - self.at).div_ceil(self.read).min(DEPTH as u64);
            let batch: Vec<u64> = (0..reads).map(|n| self.at + n * self.read).collect();
            self.reader.read(&batch, usize::try_from(self.read)?)?;
            self.at += reads * self.read;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn per_cent(counts: Counts) -> f64 {
    counts.hits as f64 / counts.reads as f64 * 100.0
}

/// The load on one device.
struct Load {
    zipf: Zipf,
    reader: Reader,
    pace: Pace,
}

impl Load {
    fn new(device: &Path) -> Result<Self> {
        Ok(Self {
            zipf: Zipf::new(BLOCKS, THETA, SEED),
            reader: Reader::open(device, usize::try_from(BLOCK)?)?,
            pace: Pace::new(PER_SECOND),
        })
    }

    fn reads(&mut self, n: u32) -> Result<()> {
        let mut left = usize::try_from(n)?;
        while left > 0 {
            let batch: Vec<u64> = (0..left.min(DEPTH)).map(|_| self.next()).collect();
            self.reader.read(&batch, usize::try_from(READ)?)?;
            left -= batch.len();
        }
        Ok(())
    }

    /// Where the next read is, when it is due.
    fn next(&mut self) -> u64 {
        self.pace.wait();
        let (block, place) = self.zipf.next_read();
        u64::from(block) * BLOCK + place % (BLOCK / READ) * READ
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(alone: f64, scanned: f64) -> Row {
        Row {
            alone,
            scanned,
            promoted: 4000,
            took: Duration::from_millis(31_900),
        }
    }

    #[test]
    fn a_claim_that_fails_is_the_one_that_is_said() {
        let smq = [row(67.0, 67.0), row(67.0, 60.0)];
        let failed = |coarse, fine| {
            let claims = claims(&[coarse, fine], &smq);
            let failed = claims.into_iter().filter(|(_, holds)| !holds);
            failed.map(|(claim, _)| claim).collect::<Vec<_>>()
        };
        assert!(failed(row(75.0, 74.0), row(75.0, 73.0)).is_empty());
        assert_eq!(
            failed(row(75.0, 74.0), row(75.0, 71.0)),
            ["16k scan: scan-resistant loses less than 3 points to it"]
        );
        assert_eq!(failed(row(66.0, 66.0), row(75.0, 75.0)).len(), 2, "behind smq");
    }

    #[test]
    fn a_line_says_what_was_lost() {
        let line = line("lru, clock", "64k", &row(69.25, 67.5));
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words,
            ["lru,", "clock", "64k", "69.2", "67.5", "1.8", "4000", "31", "s"]
        );
    }
}
