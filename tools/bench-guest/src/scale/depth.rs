//! Tags of a queue, all of them in use.

use anyhow::{Context as _, Result};

use super::Guest;
use super::{NULL, Plan, instructions, resident_mib};
use crate::ours::Device;

pub(crate) const PLAN: Plan = Plan {
    title: "Depth",
    how: "\
One queue on one CPU, `null`, 4 KiB random reads; fio keeps every tag in use, and submits and reaps half of them at a time, 32 at most. Depth 1 gives 2: ublk's batch mode has no less.",
    head: "\
| depth | instructions per I/O | tags per fetch | I/Os per kernel entry of the server | server's memory (RSS), MiB |
|---|---|---|---|---|",
    guests: &[Guest {
        cpus: 1,
        memory: "4G",
    }],
    needs_peers: false,
    rows,
    why: "\
Cost falls until some 64 tags are in use, and is flat from there to 4096. What an entry of the kernel, a wake-up, a FETCH completion and a COMMIT cost is shared by the I/Os that come
together: one at depth 1, and about 42 where the client submits 32 at a time. Nothing else depends on the depth: a verdict and the state of a request are found by the tag, in arrays. A tag takes about
100 bytes of the server.",
};

const DEPTHS: [u32; 9] = [1, 2, 4, 16, 64, 128, 256, 1024, 4096];
/// What a client submits and reaps at a time, at most.
const MOST_AT_ONCE: u32 = 32;

fn rows() -> Result<()> {
    DEPTHS.into_iter().try_for_each(row)
}

fn row(depth: u32) -> Result<()> {
    let text = depth.to_string();
    let device = Device::start(&[
        "--backing",
        NULL,
        "--queues",
        "1",
        "--depth",
        &text,
        "--policy",
        "passthrough",
    ])?;
    let batch = (depth / 2).clamp(1, MOST_AT_ONCE);
    let load = [
        "--runtime=200ms".to_owned(),
        format!("--iodepth={depth}"),
        format!("--iodepth_batch={batch}"),
        format!("--iodepth_batch_complete_min={batch}"),
    ];
    let cost = instructions(&[device.path()], &load.each_ref().map(String::as_str))?;
    let stats = device.stats()?;
    let count = |name: &str| {
        let value = stats["server"][name].as_f64();
        value.with_context(|| format!("the statistics have no {name}"))
    };
    println!(
        "| {depth} | {cost:.0} | {:.1} | {:.1} | {:.1} |",
        count("arrived")? / count("fetch_batches")?,
        count("arrived")? / count("enters")?,
        resident_mib(&device)?
    );
    device.stop()
}
