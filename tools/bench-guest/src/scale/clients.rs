//! What other clients than a deep io_uring pay, and what the scheduler of a distribution adds.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{DEEP, Guest, Plan, SINGLE, instructions};
use crate::compared;
use crate::peers;
use crate::sizes::RANGE_MIB;
use crate::subject::{Kind, Shape};

pub(crate) const PLAN: Plan = Plan {
    title: "Clients and the I/O scheduler",
    how: "\
One queue of depth 128 on one CPU, 4 KiB random reads of 128 MiB on empty RAM disks. io_uring at depth 128 submits and
reaps 32 at a time with fixed buffers and files, libaio likewise; at depth 1 each read is submitted alone. The last two
columns have mq-deadline, which kernels give to a disk with one hardware queue where they have it; ublk-bpf's disks have
it only with `--scheduler`. A device-mapper disk has no scheduler of its own. Instructions per I/O, client included.",
    head: "\
| subject | io_uring, 128 | libaio, 128 | io_uring, 1 | pread, 1 | mq-deadline: 128 | mq-deadline: 1 |
|---|--:|--:|--:|--:|--:|--:|",
    guests: &[Guest {
        cpus: 1,
        memory: "6G",
    }],
    needs_peers: true,
    rows,
    why: "\
At depth 1 a device in user space costs two switches between the client and the server and two entries of the kernel by
the server for each I/O, whatever it then does; a kernel cache pays none of these. kublk and
rublk, the other ublk servers, pay the same. For a load of single synchronous
reads, or of one request in flight at a time, dm-cache is the better choice. From some 16 requests in flight
the switches are shared and the difference is small. dm-cache and bcache hand the requests of io_uring to a worker thread
but serve those of libaio and pread in the caller, so that they are at their best with the latter two.",
};

/// Ours and what it is compared with, by the names of `compared`.
const SUBJECTS: [&str; 8] = [
    "brd",
    "ublk-bpf-null",
    "ublk-bpf-brd",
    "ublk-bpf-hit",
    "dm-cache",
    "bcache",
    "kublk-batch-zc-loop",
    "rublk-loop",
];

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
    let mut cells = vec![
        cost(path, "io_uring", &DEEP)?,
        cost(path, "libaio", &DEEP)?,
        cost(path, "io_uring", &SINGLE)?,
        cost(path, "psync", &SINGLE)?,
    ];
    if peers::schedule(path, "mq-deadline")? {
        cells.extend([cost(path, "io_uring", &DEEP)?, cost(path, "io_uring", &SINGLE)?]);
    } else {
        cells.extend(["–", "–"].map(str::to_owned));
    }
    println!("| {} | {} |", kind.name, cells.join(" | "));
    subject.check()
}

/// Instructions per I/O.
fn cost(device: &Path, engine: &str, load: &[&str]) -> Result<String> {
    let engine = format!("--ioengine={engine}");
    let range = format!("--size={RANGE_MIB}M");
    let options = [&[engine.as_str(), range.as_str()], load].concat();
    let instructions = instructions(&[device], &options).with_context(|| engine.clone())?;
    Ok(format!("{instructions:.0}"))
}
