//! Devices beside one another, all in one server.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Guest;
use super::{NULL, Plan, available_mib, instructions};
use crate::ours::Device;

pub(crate) const PLAN: Plan = Plan {
    title: "Devices",
    how: "\
Devices on `null`, one queue of depth 128 each, policy `passthrough`, all served by one process, on one CPU; 4 KiB random reads. *One loaded*: a client reads the first one, and the
others idle. *All loaded*: a client for each.",
    head: "\
| devices | instructions per I/O, one loaded | more for each further device | all loaded | memory taken by each, MiB |
|---|---|---|---|---|",
    guests: &[Guest {
        cpus: 1,
        memory: "4G",
    }],
    needs_peers: false,
    rows,
    why: "\
Each further device adds the same to every request of every disk, whether it is used or not: each has a classifier of its own on `block_rq_issue`, which the kernel runs for all requests. It
compares the request's queue with that of its own disk and returns, which is a dozen instructions; the rest is the kernel's way in and out of a BPF program. Growth is linear. Loading all of them costs more still: as
many clients and queue threads take turns on the CPU.",
};

/// The configuration of the devices.
const CONFIG: &str = "/tmp/devices.toml";
const COUNTS: [usize; 5] = [1, 2, 4, 8, 16];
const RUNTIME: &str = "--runtime=200ms";

fn rows() -> Result<()> {
    let mut first = None;
    for count in COUNTS {
        let before = available_mib()?;
        let devices = start(count)?;
        let paths: Vec<_> = devices.iter().map(Device::path).collect();
        let divisor = f64::from(u32::try_from(count)?);
        let memory = (before - available_mib()?) / divisor;
        let one = instructions(&paths[..1], &[RUNTIME])?;
        let all = instructions(&paths, &[RUNTIME])?;
        let each = match first {
            None => "-".to_owned(),
            Some(first) => format!("{:.0}", (one - first) / (divisor - 1.0)),
        };
        first.get_or_insert(one);
        println!("| {count} | {one:.0} | {each} | {all:.0} | {memory:.1} |");
        devices.into_iter().try_for_each(Device::stop)?;
    }
    Ok(())
}

/// This many devices, all served by one process.
fn start(count: usize) -> Result<Vec<Device>> {
    let table = format!("[[device]]\nbacking = \"{NULL}\"\n");
    fs::write(CONFIG, table.repeat(count)).with_context(|| format!("cannot write {CONFIG}"))?;
    Device::start_all(Path::new(CONFIG))
}
