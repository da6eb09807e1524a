//! The device's size, without a cache and with one.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Guest;
use super::{Plan, available_mib, instructions, resident_mib};
use crate::ours::Device;

pub(crate) const PLAN: Plan = Plan {
    title: "Size",
    how: "\
One queue of depth 128 on one CPU, policy `passthrough`, 4 KiB random reads over the whole device. `mem:` is memory of which none is taken; the cache is one of 1 GiB, which stays empty: what is
seen is the index. *Start* is from the command to the line that says that the device is ready, *stop* until it is gone; on this clock a millisecond is a million instructions. *Maps* are the index and the heat,
*taken* is the memory that the system has less of while the device is there, and *RSS* is the server's.",
    head: "\
| backing | cache block | start, ms | stop, ms | maps, MiB | taken, MiB | RSS, MiB | instr./I/O |
|---|---|---|---|---|---|---|---|",
    guests: &[Guest {
        cpus: 1,
        memory: "8G",
    }],
    needs_peers: false,
    rows,
    why: "\
Without a cache the size costs nothing on the way of a request. The map of what was written, a bit for each 64 KiB, is the 32 MiB that 16 TiB take. With a cache the index and the heat have nine bytes for each block of
the backing, so 16 TiB in blocks of 64K are 2304 MiB, and a sixteenth of that in blocks of 1M; memory is taken as the device starts, whatever is in the cache. The start grows with it, by 0.8 million instructions for each MiB, 3,000 a page: the kernel takes each page, clears it and
maps it into the server. A request costs the same: the index is an array, looked into by block number. (On this clock a miss of the CPU's own caches costs nothing; on a real CPU the words of a large index are more often in no cache.)
2^32 blocks are the limit, and 16 TiB in blocks of 4K are just one too many.

One cost is not in this table, for with `passthrough` the mover sleeps: after ten requests for each slot of the cache it halves the heat of all blocks of the backing. Where that is 16 TiB and the
cache 1 GiB, it is a walk over 256 MiB for each 160,000 requests, in a thread of its own.",
};

/// Backings, and the block of the cache before them.
const CASES: [(&str, Option<&str>); 10] = [
    ("null:1G", None),
    ("null:1T", None),
    ("null:16T", None),
    ("mem:1G", None),
    ("mem:16T", None),
    ("mem:1G", Some("64K")),
    ("mem:1T", Some("64K")),
    ("mem:16T", Some("64K")),
    ("mem:16T", Some("1M")),
    ("mem:16T", Some("4K")),
];

/// What a start says about a device with too many blocks for a cache.
const TOO_MANY: &str = "too many cache blocks";

/// The kernel frees a map some time after its last user has gone.
const SETTLE: Duration = Duration::from_secs(2);

fn rows() -> Result<()> {
    // The first start reads the programs from their files and loads modules.
    Device::start(&["--backing", "null:1G"])?.stop()?;
    CASES.into_iter().try_for_each(row)
}

fn row((backing, block): (&str, Option<&str>)) -> Result<()> {
    let mut options = vec![
        "--backing",
        backing,
        "--policy",
        "passthrough",
        "--queues",
        "1",
        "--depth",
        "128",
    ];
    if let Some(block) = block {
        options.extend(["--cache", "mem:1G", "--cache-block", block]);
    }
    let name = format!("| `{backing}` | {} ", block.unwrap_or("no cache"));
    std::thread::sleep(SETTLE);
    let (before, started) = (available_mib()?, Instant::now());
    let device = match Device::start(&options) {
        Ok(device) => device,
        // This limit is a result too.
        Err(error) => {
            let said = error.to_string().replace(['\n', '|'], " ");
            let why = said
                .rsplit_once("ublk-bpf: ")
                .map_or(said.as_str(), |(_, why)| why);
            ensure!(why.contains(TOO_MANY), "{backing}: {why}");
            println!("{name}| refused: {TOO_MANY} | | | | | |");
            return Ok(());
        }
    };
    let start = started.elapsed();
    let (taken, resident) = (before - available_mib()?, resident_mib(&device)?);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let maps = (device.map_bytes("index")? + device.map_bytes("heat")?) as f64 / f64::from(1 << 20);
    let cost = instructions(&[device.path()], &["--runtime=150ms"])?;
    let stopped = Instant::now();
    device.stop()?;
    println!(
        "{name}| {:.0} | {:.0} | {maps:.1} | {taken:.0} | {resident:.0} | {cost:.0} |",
        start.as_secs_f64() * 1e3,
        stopped.elapsed().as_secs_f64() * 1e3,
    );
    Ok(())
}
