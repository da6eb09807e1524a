//! What the attributes of the disk's request queue cost.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{DEEP, Guest, NULL, Plan, SINGLE, instructions};
use crate::ours::Device;
use crate::sizes::SETTLE;

pub(crate) const PLAN: Plan = Plan {
    title: "Queue attributes",
    how: "\
Each attribute in `/sys/block/ublkbN/queue` that an I/O could pay for, with the values it can have; the others are as the
server leaves them. `null`, one queue on one CPU, 4 KiB random reads. Instructions per I/O.",
    head: "\
| attribute | value | depth 128 | depth 1 |
|---|---|--:|--:|",
    guests: &[Guest {
        cpus: 1,
        memory: "4G",
    }],
    needs_peers: false,
    rows,
    why: "\
The server sets three attributes. `scheduler` is `none` on a new disk, since the backing's own queue sorts the requests
again (`--scheduler`). `wbt_lat_usec` is the backing's, and 0 where the backing does not throttle. `stable_writes` is 1
where the cache is write-through or the backing asks for it. It leaves the others as the kernel has them: without
`iostats` iostat would be blind, without merging (`nomerges`) small sequential writes would not be joined, `rq_affinity`
matters only with several CPUs, and `add_random` is 0 already. `max_sectors_kb` and `read_ahead_kb` follow from the
device's limits, which `control/params.rs` sets.",
};

/// The values of each; the last one is how the server leaves it.
const ATTRIBUTES: [(&str, &[&str]); 6] = [
    ("scheduler", &["mq-deadline", "none"]),
    ("iostats", &["0", "1"]),
    ("nomerges", &["2", "1", "0"]),
    ("rq_affinity", &["0", "2", "1"]),
    ("add_random", &["1", "0"]),
    ("wbt_lat_usec", &["75000", "0"]),
];

fn rows() -> Result<()> {
    std::thread::sleep(SETTLE);
    let device = Device::start(&["--backing", NULL, "--policy", "passthrough"])?;
    let name = device.path().file_name().context("a device has a name")?;
    let queue = Path::new("/sys/block").join(name).join("queue");
    for (attribute, values) in ATTRIBUTES {
        for value in values {
            let path = queue.join(attribute);
            fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))?;
            let mut costs = Vec::new();
            for load in [&DEEP, &SINGLE] {
                costs.push(instructions(&[device.path()], load)?);
            }
            println!("| `{attribute}` | {value} | {:.0} | {:.0} |", costs[0], costs[1]);
        }
    }
    device.stop()
}
