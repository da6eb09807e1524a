//! Part `writeback`, in a guest: what a write costs where the cache takes it before the backing does, in instructions
//! and in operations of both devices.

pub mod beside;
mod disks;
mod operations;
mod subjects;

use anyhow::{Context as _, Result};

use crate::busy;
use crate::fio::{self, Job};
use crate::peers::{fill, schedule};
use crate::scale::queues::Activity;
use crate::scale::{Guest, Plan};
use crate::sizes::SETTLE;
use disks::{Disks, FAST, SLOW};
use operations::Counting;
use subjects::Kind;

/// What is written to, from the device's start; all of it is in the cache.
const RANGE_MIB: u64 = 32;
/// The run in which operations are counted.
const COUNTED: &str = "--runtime=400ms";

/// The section of the page.
pub const PLAN: Plan = Plan {
    title: "Writes to cached blocks, beside write-back caches",
    how: "\
4 KiB random writes to 32 MiB that are in the cache and were written once before, one queue on one CPU, no I/O scheduler:
by io_uring at depth 32; and one at a time, each followed by an fsync (fio `fsync=1`, psync). All in one boot. Cache device
and backing are two `null_blk` disks, memory behind a volatile write cache, so that flushes reach them. What each is asked
to do is counted by the kernel's `block_rq_issue`, for each write of the client, in a run of 400 ms of the guest's clock,
with all metadata: *writes* are all of them, *FUA* those with it, *KiB* what was written. *Switches* are those of context in
that run, for each write as well. The caches have their defaults
but these: dm-cache has `smq`, blocks of 64k, and its metadata at the start of the cache device; bcache has
`sequential_cutoff` 0 and no congestion thresholds; dm-writecache blocks of 4096. Instructions leave out the time in which
nothing ran.",
    head: "\
| | | instr. | switches | cache: reads | writes | FUA | KiB | flushes | backing: reads | writes | KiB | flushes |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    guests: &[Guest {
        cpus: 1,
        memory: "6G",
    }],
    needs_peers: true,
    rows,
    why: "\
At depth 32 a write-back cache spares the write to the backing. ublk-bpf's write-back costs two thirds of its write-through,
which also copies each write once so that both devices get the same bytes; it costs 1.2 of dm-cache and dm-writecache, and
0.6 of bcache. Of the 4,000 instructions that it adds to passthrough, about 1,300 are the server's (claims, index, dirty map)
and the classifier's, 600 the commit of each second, by the mover and a worker of its ring, and the rest is in null_blk, with
interrupts off: after each flush it puts every page that is written into its volatile cache anew. With an fsync after each
write, every I/O is at depth 1 twice, as a write and as a flush, and a server in user space pays its switches for both: the
flush alone goes from the client to a worker of the kernel, to the server, to a worker of its ring, to one for the disk, and
all the way back. In instructions ublk-bpf costs 1.7 of dm-writecache and 1.4 of bcache. That is the price of ublk and not of
the cache: passthrough, without one, costs 0.98 of it. In operations of the devices it does the least: one write and one flush
of the cache device, and none of the backing, to which all the others pass each flush on. So where instructions are what
limits small synchronous writes, a kernel cache is the better choice, and where the backing's flush is, this one. ublk-bpf's
write-through never flushes the cache device, for what is there is clean. dm-writecache overwrites a block that it holds in
place, without metadata, which is what is measured here; a block that it does not hold yet costs metadata, too. dm-cache keeps
its dirty bits in memory until a clean shutdown, and so writes none here either, and takes every block for dirty after a crash.
bcache writes its journal for each fsync, with FUA.",
};

/// How the client writes.
struct Load {
    name: &'static str,
    options: &'static [&'static str],
}

const LOADS: [Load; 2] = [
    Load {
        name: "depth 32",
        options: &[
            "--rw=randwrite",
            "--iodepth=32",
            "--iodepth_batch=16",
            "--iodepth_batch_complete_min=16",
        ],
    },
    Load {
        name: "fsync",
        options: &[
            "--rw=randwrite",
            "--ioengine=psync",
            "--fsync=1",
            "--iodepth=1",
            "--iodepth_batch=1",
            "--iodepth_batch_complete_min=1",
        ],
    },
];

fn rows() -> Result<()> {
    std::thread::sleep(SETTLE);
    let mut rows: [Vec<String>; LOADS.len()] = Default::default();
    for kind in subjects::kinds()? {
        let costs = measure(&kind).with_context(|| kind.name)?;
        for (rows, row) in rows.iter_mut().zip(costs) {
            rows.push(row);
        }
    }
    rows.iter().flatten().for_each(|row| println!("{row}"));
    Ok(())
}

/// A row for each load.
fn measure(kind: &Kind) -> Result<Vec<String>> {
    // Before the subject, so that they go after it.
    let _disks = Disks::make()?;
    for disk in [FAST, SLOW] {
        schedule(disk.as_ref(), "none")?;
    }
    let subject = (kind.start)()?;
    schedule(subject.path(), "none")?;
    // The first write to a page of a disk allocates it.
    fill(&subject.path().to_string_lossy(), RANGE_MIB)?;
    let job = Job {
        devices: &[subject.path()],
        block: "4k",
        range_mib: Some(RANGE_MIB),
    };
    let row = |load: &Load| row(kind.name, load, &job).context(load.name);
    LOADS.iter().map(row).collect()
}

fn row(name: &str, load: &Load, job: &Job<'_>) -> Result<String> {
    let cost = busy::cost(job, load.options)?;
    let counting = Counting::start()?;
    let before = Activity::now()?;
    let ios = fio::run(job, &[load.options, &[COUNTED]].concat())?.ios;
    let switches = Activity::now()?.since(&before).switches / ios;
    let [cache, backing] = [FAST, SLOW].map(|disk| counting.of(disk));
    let (cache, backing) = (cache?.each(ios), backing?.each(ios));
    let (cache, backing) = (cells(cache.all()), cells(backing.without_forced()));
    Ok(format!(
        "| {} | {name} | {cost:.0} | {switches:.2} | {cache} | {backing} |",
        load.name
    ))
}

fn cells(values: impl IntoIterator<Item = f64>) -> String {
    let cells: Vec<String> = values.into_iter().map(|value| format!("{value:.2}")).collect();
    cells.join(" | ")
}
