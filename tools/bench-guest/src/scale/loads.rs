//! Loads beside small random reads of empty disks: mixed, large, and of disks that hold data.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Guest, Plan};
use crate::compared;
use crate::fio::{self, Job, Summary};
use crate::peers::fill;
use crate::sizes::RANGE_MIB;
use crate::subject::{Kind, Shape};

pub(crate) const PLAN: Plan = Plan {
    title: "Mixed and large I/O, and disks that hold data",
    how: "\
One queue of depth 128 on one CPU, io_uring, no I/O scheduler, 128 MiB that are in the cache where there is one. *Empty* RAM
disks have no page, and a read clears the reader's pages; *full* ones have been written to through the device, and a read
copies. *70/30* are 4 KiB random reads and writes, of full disks, at depth 128. The large ones are sequential reads of full
disks at depth 8. Instructions per I/O, client included.",
    head: "\
| subject | 4k read, empty | 4k read, full | 64k read, empty | 64k read, full | 70/30 | 256k read | 1M read |
|---|--:|--:|--:|--:|--:|--:|--:|",
    guests: &[Guest {
        cpus: 1,
        memory: "6G",
    }],
    needs_peers: true,
    rows,
    why: "\
A copy of 4 KiB takes about 1,200 instructions on this clock, and one of 1 MiB some hundreds of thousands, so that with
large I/O of disks that hold data the subjects differ little: what is counted is mostly the RAM disk's own copy loop. The
block layer splits a request to a cached device at each cache block: a read of 1 MiB is 16 requests of 64 KiB.",
};

/// Ours and what it is compared with, by the names of `compared`.
const SUBJECTS: [&str; 6] = [
    "brd",
    "ublk-bpf-brd",
    "ublk-bpf-hit",
    "dm-cache",
    "bcache",
    "kublk-batch-zc-loop",
];
const RUNS: usize = 3;

/// A load: its block, and fio's options.
type Load = (&'static str, [&'static str; 4]);

const fn at(block: &'static str, rw: &'static str, depth: &'static str, batch: [&'static str; 2]) -> Load {
    (block, [rw, depth, batch[0], batch[1]])
}

const DEEP: [&str; 2] = ["--iodepth_batch=32", "--iodepth_batch_complete_min=32"];
const FLAT: [&str; 2] = ["--iodepth_batch=4", "--iodepth_batch_complete_min=4"];
const SMALL: Load = at("4k", "--rw=randread", "--iodepth=128", DEEP);
const LARGE: Load = at("64k", "--rw=randread", "--iodepth=128", DEEP);
const MIXED: Load = at("4k", "--rw=randrw", "--iodepth=128", DEEP);
const LARGER: Load = at("256k", "--rw=read", "--iodepth=8", FLAT);
const LARGEST: Load = at("1M", "--rw=read", "--iodepth=8", FLAT);

fn rows() -> Result<()> {
    super::each_subject(&SUBJECTS, row)
}

fn row(kind: &Kind) -> Result<()> {
    let subject = compared::start_anew(
        kind,
        Shape {
            queues: 1,
            depth: 128,
        },
    )?;
    let path = subject.path();
    let mut costs = [0.0; 7];
    costs[0] = cost(path, SMALL)?;
    costs[2] = cost(path, LARGE)?;
    subject.check()?;
    // A write through a write-through cache fills both disks.
    fill(&path.to_string_lossy(), RANGE_MIB)?;
    for (column, load) in [(1, SMALL), (3, LARGE), (4, MIXED), (5, LARGER), (6, LARGEST)] {
        costs[column] = cost(path, load)?;
    }
    println!(
        "| {} | {} |",
        kind.name,
        costs.map(|cost| format!("{cost:.0}")).join(" | ")
    );
    Ok(())
}

/// Instructions per I/O, the median.
fn cost(device: &Path, (block, options): Load) -> Result<f64> {
    let job = Job {
        devices: &[device],
        block,
        range_mib: Some(RANGE_MIB),
    };
    let options = [&["--runtime=150ms", "--rwmixread=70"], &options[..]].concat();
    let run = || Ok(fio::run(&job, &options)?.iops);
    run().with_context(|| format!("{block} {}", options[2]))?;
    let results = (0..RUNS).map(|_| run()).collect::<Result<Vec<f64>>>()?;
    Ok(1e9 / Summary::of(results)?.median)
}
