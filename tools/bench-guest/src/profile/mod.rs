//! Where the instructions of an I/O go: fio reads, perf samples the whole guest, and each sample's stack is given to a
//! part of the I/O's path.
//!
//! perf's `cpu-clock` is a timer, and on the instruction clock a timer counts instructions. A sample that falls due
//! while interrupts are off is taken where they come on again. What the interrupt itself costs is in no sample: so the
//! shares are of a sampled run, and the instructions of an I/O, which they are shares of, are of a run without perf.

pub mod stacks;

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use host::{command, progress};
use serde_json::json;

use crate::fio::{self, Job, Summary};
use crate::hits;
use crate::ours::Device;
use crate::peers::{FAST, fill};
use crate::sizes::{RANGE_MIB, SETTLE};
use stacks::{Counted, Stack};

/// Runs of fio without perf that count.
const RUNS: usize = 3;
/// Instructions between two samples, in turns. fio's round of 32 I/Os is as regular as the clock: with one period alone the
/// samples meet the same places of it again and again, and shares were off by a half.
pub const PERIODS: [u32; 3] = [23_993, 34_981, 49_999];
/// The runs of fio that are sampled, which perf starts when it is ready.
const SAMPLED: &str = "--runtime=450ms";
/// Milliseconds of it without samples: fio's own start.
const DELAY: &str = "300";
/// The device's tags.
const DEPTH: u16 = 128;
/// As many reads.
const IN_FLIGHT: &str = "--iodepth=128";
/// Where perf keeps its samples.
const SAMPLES: &str = "/tmp/samples";
/// perf's limits: it is not throttled for being slow, and it sees the kernel's deepest stacks.
const SETTINGS: [(&str, &str); 3] = [
    ("/proc/sys/kernel/perf_cpu_time_max_percent", "0"),
    ("/proc/sys/kernel/perf_event_max_stack", "64"),
    ("/proc/sys/kernel/kptr_restrict", "0"),
];

/// What is profiled.
pub struct Case {
    /// Names the picture, too.
    pub name: &'static str,
    /// What the page calls it.
    pub title: &'static str,
    start: fn() -> Result<Device>,
    /// What the client does in place of random reads at depth 128.
    load: &'static [&'static str],
}

/// In the order of the page.
pub const CASES: [Case; 4] = [
    Case {
        name: "null",
        title: "null",
        start: || Device::passthrough("null:8G,unfilled"),
        load: &[],
    },
    Case {
        name: "passthrough",
        title: "passthrough",
        start: || Device::passthrough(FAST),
        load: &[],
    },
    Case {
        name: "hit",
        title: "hit",
        start: hit,
        load: &[],
    },
    Case {
        name: "write-back",
        title: "write-back",
        start: written_back,
        load: &[
            "--rw=randwrite",
            "--iodepth=32",
            "--iodepth_batch=16",
            "--iodepth_batch_complete_min=16",
        ],
    },
];

/// Measures every case, and prints a line of JSON for each.
pub fn measure_all() -> Result<()> {
    std::thread::sleep(SETTLE);
    for (path, value) in SETTINGS {
        std::fs::write(path, value).with_context(|| format!("cannot write {value} to {path}"))?;
    }
    for case in &CASES {
        progress::note(&format!("profiling {}", case.title));
        let device = (case.start)()?;
        let job = Job {
            devices: &[device.path()],
            block: "4k",
            range_mib: Some(RANGE_MIB),
        };
        let iops = median_iops(&job, case.load)?;
        let mut counted = Counted::new();
        for period in PERIODS {
            let more = sample(&job, case.load, period).with_context(|| format!("profiling {}", case.name))?;
            more.into_iter()
                .for_each(|(stack, count)| *counted.entry(stack).or_default() += count);
        }
        device.stop()?;
        let folded: Vec<String> = counted
            .iter()
            .map(|(stack, count)| stacks::fold(stack, *count))
            .collect();
        println!("{}", json!({ "case": case.name, "iops": iops, "stacks": folded }));
    }
    Ok(())
}

/// Without perf. The first run after a start costs more, and does not count.
fn median_iops(job: &Job<'_>, load: &[&str]) -> Result<f64> {
    let runs: Result<Vec<f64>> = (0..=RUNS)
        .map(|_| Ok(fio::run(job, &[&[IN_FLIGHT, "--runtime=200ms"], load].concat())?.iops))
        .collect();
    Ok(Summary::of(runs?.split_off(1))?.median)
}

/// A cache that has what will be read, on a ram disk whose pages are as empty as passthrough's.
fn hit() -> Result<Device> {
    let device = hits::warm(RANGE_MIB, 1, DEPTH)?;
    hits::discard_fast()?;
    Ok(device)
}

/// A cache that has what will be written, all of it dirty already.
fn written_back() -> Result<Device> {
    let device = hits::warm_in("write-back", RANGE_MIB, 1, DEPTH)?;
    fill(&device.path().to_string_lossy(), RANGE_MIB)?;
    Ok(device)
}

/// The stacks of fio's I/Os, one every `period` instructions.
fn sample(job: &Job<'_>, load: &[&str], period: u32) -> Result<Counted> {
    let reads = fio::command(job, &[&[IN_FLIGHT, SAMPLED], load].concat());
    let mut record = Command::new("perf");
    // Without build ids: to read those of all that ran takes perf seconds after the last sample.
    record.args(["record", "-q", "-B", "-N", "-a", "-e", "cpu-clock", "-g"]);
    record.args(["-o", SAMPLES, "-c", &period.to_string(), "-D", DELAY, "--"]);
    command::output(record.arg(reads.get_program()).args(reads.get_args()))?;
    let script = ["script", "--no-inline", "-F", "comm,ip,sym,dso", "-i", SAMPLES];
    let text = command::output(Command::new("perf").args(script))?;
    let counted: Counted = stacks::read_perf(&text)
        .into_iter()
        .filter(|(stack, _)| is_counted(stack))
        .collect();
    if counted.is_empty() {
        bail!("perf took no sample");
    }
    Ok(counted)
}

/// Neither perf itself nor an idle CPU.
fn is_counted(stack: &Stack) -> bool {
    !["perf", "swapper"]
        .iter()
        .any(|task| stack.task.starts_with(task))
}
