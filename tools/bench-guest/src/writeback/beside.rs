//! What clients notice of writing back, with a backing that answers late.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use host::command;
use serde_json::Value;

use super::Load;
use super::disks::{Disks, FAST, SLOW};
use crate::fio::JobResult;
use crate::ours::Device;
use crate::peers::{Mapped, SECTOR, fill, schedule};
use crate::scale::{Guest, Plan};

/// MiB of the cache device and of the backing.
const CACHE_MIB: u64 = 80;
const BACKING_MIB: u64 = 256;
/// What is written to: more than a quarter of the cache, and less than half.
const RANGE_MIB: u64 = 28;
/// Milliseconds that the backing takes for a request.
const DELAY: u32 = 5;
/// Where that range is below the lower watermark, and where it is between the two: half of this, and this, in percent.
const AT_REST: &str = "90";
const BETWEEN: &str = "50";
/// How long it may take until all of the range is dirty.
const DIRTY_LIMIT: Duration = Duration::from_secs(30);
/// Guest seconds of a run.
const RUNTIME: &str = "--runtime=5s";

/// The section of the page.
pub const PLAN: Plan = Plan {
    title: "Clients beside writing back",
    how: "\
A cache of 80 MiB whose backing answers after 5 ms (dm-delay), one queue on one CPU, `none`. 28 MiB are dirty, a third of the
cache, and are read and written at random in 4 KiB for 5 s: by io_uring at depth 4, 70 % reads; and one write at a time, each
followed by an fsync. *At rest* `--dirty-high` is 90, so that a third is below the lower watermark and nothing is written back
under load; *between* it is 50, and a third lies between the watermarks. All in one boot, each twice, by the guest's clock.",
    head: "\
| | writing back | I/Os a second | p99 of reads, µs | of writes | of fsyncs | written back, KiB a second |
|---|---|--:|--:|--:|--:|--:|",
    guests: &[Guest {
        cpus: 1,
        memory: "2G",
    }],
    needs_peers: false,
    rows,
    why: "\
The rate of writing back follows the clients' p99, so that deep loads keep their latency. One CPU does all here, and so a
client that has one request at a time pays for what is copied just then: its p99 rises, and its rate does not fall.",
};

const LOADS: [Load; 2] = [
    Load {
        name: "depth 4, 70 % reads",
        options: &["--rw=randrw", "--rwmixread=70", "--iodepth=4"],
    },
    Load {
        name: "with fsync",
        options: &["--rw=randwrite", "--ioengine=psync", "--fsync=1", "--iodepth=1"],
    },
];

fn rows() -> Result<()> {
    let _disks = Disks::make()?;
    for module in ["dm_mod", "dm_delay"] {
        command::output(Command::new("modprobe").arg(module))?;
    }
    let part = |name, target: &str, disk: &str, mib: u64, more: &str| {
        let sectors = (mib << 20) / SECTOR;
        Mapped::create(name, &format!("0 {sectors} {target} {disk} 0{more}"))
    };
    let late = part("bench-late", "delay", SLOW, BACKING_MIB, &format!(" {DELAY}"))?;
    let fast = part("bench-small", "linear", FAST, CACHE_MIB, "")?;
    let [late_path, fast_path] = [late.path(), fast.path()].map(|path| path.to_string_lossy());
    let storage = ["--backing", &late_path, "--cache", &fast_path];
    let mode = [
        "--cache-mode",
        "write-back",
        "--policy",
        "lru",
        "--dirty-high",
        AT_REST,
    ];
    let device = Device::start(&[&storage[..], &mode].concat())?;
    schedule(device.path(), "none")?;
    for load in &LOADS {
        for (name, dirty_high) in [("at rest", AT_REST), ("between", BETWEEN)].repeat(2) {
            let row = row(&device, load, name, dirty_high).context(load.name)?;
            println!("{row}");
        }
    }
    Ok(())
}

fn row(device: &Device, load: &Load, name: &str, dirty_high: &str) -> Result<String> {
    set(device, AT_REST)?;
    make_dirty(device)?;
    set(device, dirty_high)?;
    let before = number(&device.stats()?, "/cache/cleaned_bytes")?;
    let job = JobResult::parse(&command::output(&mut fio(device, load))?)?;
    let cleaned = number(&device.stats()?, "/cache/cleaned_bytes")? - before;
    let seconds = job.number("/write/runtime")? / 1e3;
    let ios = job.sum("iops")?;
    Ok(format!(
        "| {} | {name} | {ios:.0} | {} | {} | {} | {:.0} |",
        load.name,
        p99(&job, "read/clat_ns"),
        p99(&job, "write/clat_ns"),
        p99(&job, "sync/lat_ns"),
        cleaned / 1024.0 / seconds
    ))
}

/// Not as the other parts run it: that keeps no latencies.
fn fio(device: &Device, load: &Load) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=beside", "--direct=1", "--ioengine=io_uring", "--bs=4k"])
        .args([
            "--norandommap",
            "--random_generator=lfsr",
            "--time_based",
            RUNTIME,
        ])
        .arg(format!("--filename={}", device.path().display()))
        .arg(format!("--size={RANGE_MIB}M"))
        .arg("--output-format=json")
        .args(load.options);
    fio
}

fn set(device: &Device, dirty_high: &str) -> Result<()> {
    let mut set = Command::new("ublk-bpf");
    set.arg("set")
        .arg(device.path())
        .arg(format!("dirty-high={dirty_high}"));
    command::output(&mut set).map(drop)
}

/// Writes the range until all of it is dirty.
fn make_dirty(device: &Device) -> Result<()> {
    let started = Instant::now();
    let wanted = (RANGE_MIB << 20) as f64 / 65_536.0 * 0.9;
    while number(&device.stats()?, "/cache/dirty")? < wanted {
        if started.elapsed() > DIRTY_LIMIT {
            bail!("the range does not become dirty: {:#}", device.stats()?);
        }
        fill(&device.path().to_string_lossy(), RANGE_MIB)?;
        // The counters follow within a second.
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// In microseconds; a dash where there are none.
fn p99(job: &JobResult, of: &str) -> String {
    let value = job.number(&format!("/{of}/percentile/99.000000"));
    let nanoseconds = value.ok().filter(|&value| value > 0.0);
    nanoseconds.map_or_else(
        || "-".to_owned(),
        |nanoseconds| format!("{:.0}", nanoseconds / 1e3),
    )
}

fn number(value: &Value, path: &str) -> Result<f64> {
    let found = value.pointer(path).and_then(Value::as_f64);
    found.with_context(|| format!("there is no number {path} in {value:#}"))
}
