//! How many reads hit a cache of a tenth of the device, and what a scan of the whole device takes from that.
//!
//! The same reads in the same order for everyone: one reader, one read at a time, at a pace that leaves every cache
//! time to promote. Some blocks are read far more often than others (a zipfian distribution, as in YCSB's loads). The scan is cut
//! into slices, which come between stretches of the load; only the load's own hits count.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::counts::{Cached, Counts};
use super::discard::discard;
use super::load::{Pace, Reader, Zipf};
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
const WARM_UP: u32 = 150_000;
const MEASURED: u32 = 100_000;
/// dm-cache's smq works by the clock. Every 60 s it sorts anew what it holds, and then hits less for long (60 to 62 per
/// cent of this load, 66 to 67 before); this pace lets it fill the cache and end within its first, its best minute.
const PER_SECOND: u32 = 15_000;
/// Stretches of the load, and slices of the scan: few, for counts are read around each.
const ROUNDS: u32 = 50;
/// Bytes of the scan's reads: one for each block, and several.
const SCANS: [(&str, u64); 2] = [("64k", BLOCK), ("16k", 16 << 10)];
/// Points that the scan may take from the policy that is to resist it.
const MAY_LOSE: f64 = 3.0;

/// The parts of the load's reads that hit, in per cent.
#[derive(Debug, PartialEq)]
struct Ratios {
    alone: f64,
    /// With each of [`SCANS`].
    scanned: [f64; SCANS.len()],
}

/// Prints the table, and gives how many claims do not hold. With `peers_only`, nothing of ours is measured.
pub(super) fn table(peers_only: bool) -> Result<usize> {
    heading();
    if peers_only {
        row("dm-cache smq", dm_cache)?;
        return Ok(0);
    }
    row("lru, clock", || ours("lru", "clock"))?;
    let resistant = row("scan-resistant, s3fifo", || ours("scan-resistant", "s3fifo"))?;
    let smq = row("dm-cache smq", dm_cache)?;
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
        "{SLOTS}, in per cent: {WARM_UP} reads to warm up, then {MEASURED} alone and again with each scan, which"
    );
    println!("reads the whole device in {ROUNDS} slices between the load's reads and is not counted;");
    println!(
        "at most {PER_SECOND} reads a second; the {SLOTS} hottest blocks have {most:.1} % of the reads\n"
    );
    print!("{:<24}{:>11}", "policy", "zipf alone");
    for (name, _) in SCANS {
        print!("{:>20}{:>7}", format!("with a {name} scan"), "lost");
    }
    println!("{:>10}", "promoted");
}

/// Measures one cache and prints its line.
fn row(name: &str, measure: impl FnOnce() -> Result<(Ratios, u64)>) -> Result<Ratios> {
    let (ratios, promoted) = measure().with_context(|| name.to_owned())?;
    println!("{}", line(name, &ratios, promoted));
    Ok(ratios)
}

fn line(name: &str, ratios: &Ratios, promoted: u64) -> String {
    let alone = ratios.alone;
    let scanned: String = ratios
        .scanned
        .iter()
        .map(|with| format!("{with:>20.1}{:>7.1}", alone - with))
        .collect();
    format!("{name:<24}{alone:>11.1}{scanned}{promoted:>10}")
}

/// What is said of the policy that is to resist scans, and whether it is so.
fn claims(resistant: &Ratios, smq: &Ratios) -> Vec<(String, bool)> {
    let mut claims = vec![(
        "scan-resistant is ahead of smq alone".to_owned(),
        resistant.alone > smq.alone,
    )];
    for ((name, _), (with, peer)) in SCANS.iter().zip(resistant.scanned.iter().zip(smq.scanned)) {
        claims.push((
            format!("scan-resistant loses less than {MAY_LOSE:.0} points to the {name} scan"),
            resistant.alone - with < MAY_LOSE,
        ));
        claims.push((
            format!("scan-resistant is ahead of smq with the {name} scan"),
            *with > peer,
        ));
    }
    claims
}

fn ours(policy: &str, eviction: &str) -> Result<(Ratios, u64)> {
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
    let results = measure(&device)?;
    device.stop()?;
    Ok(results)
}

fn dm_cache() -> Result<(Ratios, u64)> {
    discard_fast()?;
    let fast = peers::linear(FAST, u64::from(SLOTS) * BLOCK)?;
    let cache = DmCache::create(fast.path(), u64::from(BLOCKS) * BLOCK)?;
    let results = measure(&cache)?;
    println!(
        "(dm-cache as it comes: migration_threshold {})",
        cache.migration_threshold()?
    );
    Ok(results)
}

fn discard_fast() -> Result<()> {
    discard(FAST, super::RAM_DISK_MIB << 20)
}

/// Gives the ratios, and how many blocks were promoted meanwhile.
fn measure(cache: &dyn Cached) -> Result<(Ratios, u64)> {
    let before = cache.counts()?;
    let mut load = Load::new(cache.path())?;
    load.reads(WARM_UP)?;
    let start = load.zipf.clone();
    let counts = cache.counts()?;
    load.reads(MEASURED)?;
    let alone = per_cent(cache.counts()?.since(counts));
    let mut scanned = [0.0; SCANS.len()];
    for (ratio, (_, read)) in scanned.iter_mut().zip(SCANS) {
        // The very reads that were measured alone.
        load.zipf = start.clone();
        *ratio = per_cent(with_scan(cache, &mut load, read)?);
    }
    let promoted = cache.counts()?.since(before).promoted;
    Ok((Ratios { alone, scanned }, promoted))
}

/// What the load alone counts while a scan in reads of so many bytes goes on.
fn with_scan(cache: &dyn Cached, load: &mut Load, read: u64) -> Result<Counts> {
    let mut total = Counts::default();
    let bytes = u64::from(BLOCKS) * BLOCK;
    let mut scanned = 0;
    for round in 1..=u64::from(ROUNDS) {
        let before = cache.counts()?;
        load.reads(MEASURED / ROUNDS)?;
        total = total.plus(cache.counts()?.since(before));
        while scanned < bytes * round / u64::from(ROUNDS) {
            load.reader.read(scanned, usize::try_from(read)?)?;
            scanned += read;
        }
    }
    Ok(total)
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
        for _ in 0..n {
            let (block, place) = self.zipf.next();
            let offset = u64::from(block) * BLOCK + place % (BLOCK / READ) * READ;
            self.pace.wait();
            self.reader.read(offset, usize::try_from(READ)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratios(alone: f64, coarse: f64, fine: f64) -> Ratios {
        Ratios {
            alone,
            scanned: [coarse, fine],
        }
    }

    #[test]
    fn a_claim_that_fails_is_the_one_that_is_said() {
        let smq = ratios(67.0, 67.0, 60.0);
        let failed = |resistant: &Ratios| {
            let failed = claims(resistant, &smq).into_iter().filter(|(_, holds)| !holds);
            failed.map(|(claim, _)| claim).collect::<Vec<_>>()
        };
        assert!(failed(&ratios(75.0, 74.0, 73.0)).is_empty());
        let lost = failed(&ratios(75.0, 74.0, 71.0));
        assert_eq!(lost, ["scan-resistant loses less than 3 points to the 16k scan"]);
        assert_eq!(failed(&ratios(66.0, 66.0, 66.0)).len(), 2, "behind smq");
    }

    #[test]
    fn a_line_says_what_was_lost() {
        let line = line("lru, clock", &ratios(69.25, 67.5, 63.0), 4000);
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words,
            ["lru,", "clock", "69.2", "67.5", "1.8", "63.0", "6.2", "4000"]
        );
    }
}
