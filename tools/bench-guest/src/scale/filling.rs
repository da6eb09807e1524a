//! What it costs to bring a block into a cache.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Guest, Plan};
use crate::busy::run_time;
use crate::fio::{self, Job};
use crate::ours::Device;
use crate::peers::{self, Bcache, FAST, SLOW, empty, fill};
use crate::sizes::{RAM_DISK_MIB, SETTLE};

pub(crate) const PLAN: Plan = Plan {
    title: "Bringing a block in",
    how: "\
Reads of 64 KiB, each of another block of a full RAM disk, 4000 a second, one queue on one CPU, cache blocks of 64K, an
empty cache on another RAM disk; after that the same blocks again, which then hit. Instructions per block, with all that is
done in the background until a second after the last read, and without the time in which nothing ran.",
    head: "\
| subject | first read | second read | blocks brought in by 1000 first reads |
|---|--:|--:|--:|",
    guests: &[Guest {
        cpus: 1,
        memory: "6G",
    }],
    needs_peers: true,
    rows,
    why: "\
`passthrough` reads the backing twice and caches nothing: it is what the others are compared with. `auto` and `frugal` fill
from the read that misses, as long as a sample of the blocks shows that it pays: of these, which are read once, they fill
about half, and such a block costs 47,000 instructions more than one that is passed through. With `lru` the mover is woken
for each block, reads it again and writes it to its slot: 167,000 more. bcache fills from the read that misses: 97,000 more.
dm-cache is not here: it promotes by its own measure of heat, so that a first read brings in next to nothing.",
};

/// What is read of the device: a part to start with, whose cost is taken from that of the rest.
const PARTS: [(u64, u64); 2] = [(0, 8), (8, 128)];
/// Of 64 KiB, in both.
const BLOCKS: f64 = 136.0 * 16.0;
/// Slow enough for the mover, which shares the one CPU, to keep slots free.
const PACE: &str = "--rate_iops=4000";
/// By then what runs in the background is done.
const BEHIND: Duration = Duration::from_secs(1);

fn rows() -> Result<()> {
    std::thread::sleep(SETTLE);
    peers::make_ram_disks(RAM_DISK_MIB)?;
    for policy in ["passthrough", "auto", "frugal", "lru"] {
        ours(policy).context(policy)?;
    }
    bcache().context("bcache")
}

fn ours(policy: &str) -> Result<()> {
    prepare()?;
    let storage = ["--backing", SLOW, "--cache", FAST, "--cache-reset"];
    let device = Device::start(&[&storage[..], &["--policy", policy, "--queues", "1"]].concat())?;
    let first = read(device.path())?;
    let stats = device.stats()?;
    let fills = stats["server"]["fills"]
        .as_f64()
        .context("the statistics have no fills")?;
    // Without a policy that promotes, too, there is a cache.
    let promoted = stats["cache"]["promoted"].as_f64().context("nor promotions")?;
    let part = (fills + promoted) / BLOCKS * 1e3;
    let second = read(device.path())?;
    println!("| ublk-bpf, `{policy}` | {first:.0} | {second:.0} | {part:.0} |");
    device.stop()
}

fn bcache() -> Result<()> {
    prepare()?;
    // What was there looks like no bcache, and make-bcache writes its head anew.
    let cache = Bcache::create(Path::new(FAST), Path::new(SLOW), "writethrough")?;
    let path = crate::subject::Subject::path(&cache);
    peers::schedule(path, "none")?;
    let (first, second) = (read(path)?, read(path)?);
    println!("| bcache | {first:.0} | {second:.0} | – |");
    Ok(())
}

/// The backing full, and the cache device full of nothing: what is written there allocates no page.
fn prepare() -> Result<()> {
    let mib = PARTS[1].0 + PARTS[1].1 + 64;
    for disk in [FAST, SLOW] {
        empty(disk)?;
        fill(disk, mib)?;
    }
    Ok(())
}

/// Instructions per block.
fn read(device: &Path) -> Result<f64> {
    let mut took = Vec::new();
    for (from, mib) in PARTS {
        let before = run_time()?;
        let job = Job {
            devices: &[device],
            block: "64k",
            range_mib: Some(mib),
        };
        let from = format!("--offset={from}M");
        let once = ["--rw=read", "--time_based=0", "--runtime=60s", PACE, &from];
        let load = [
            "--iodepth=8",
            "--iodepth_batch=4",
            "--iodepth_batch_complete_min=4",
        ];
        let ios = fio::run(&job, &[&once[..], &load].concat())?.ios;
        std::thread::sleep(BEHIND);
        took.push(((run_time()? - before).as_secs_f64() * 1e9, ios));
    }
    let (time, ios) = (took[1].0 - took[0].0, took[1].1 - took[0].1);
    ensure!(ios > 0.0 && time > 0.0, "fio read less than it was to");
    Ok(time / ios)
}
