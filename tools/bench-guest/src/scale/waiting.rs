//! A backing that takes its time, so that nothing completes while it is submitted.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use host::command;

use super::{Guest, Plan};
use crate::busy;
use crate::fio::Job;
use crate::ours::Device;
use crate::sizes::SETTLE;

pub(crate) const PLAN: Plan = Plan {
    title: "A backing that completes later",
    how: "\
4 KiB random reads, one queue of depth 128 on one CPU, policy `passthrough`, to a `null_blk` whose timer completes each
request 10 µs after it was issued (`irqmode=2`): so results come one by one, by interrupts, as from a fast SSD. The client
submits and reaps one at a time, as many programs do, and keeps as many in flight as *depth* says. Instructions per I/O leave
out the time in which nothing ran, and the interrupts that came then. Enters, commits, fetches and wake-ups are the
server's, per I/O; a wake-up is a voluntary context switch of its threads.",
    head: "\
| depth | null_blk itself | through ublk-bpf | enters | commits | fetches | wake-ups |
|---|--:|--:|--:|--:|--:|--:|",
    guests: &[Guest {
        cpus: 1,
        memory: "4G",
    }],
    needs_peers: false,
    rows,
    why: "\
With several requests in flight the server does not enter the kernel for each of them: it takes what has come since, so
that at depth 8 an enter serves about three I/Os, and at depth 128 twenty-five, though the client submits one at a time. The
difference to the disk itself falls from 22,000 instructions at depth 1 to 4,400 at depth 128. At depth 1 the server wakes
twice for each I/O: for the request, and for its completion.",
};

const BACKING: &str = "/dev/nullb0";
const DEPTHS: [u16; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

fn rows() -> Result<()> {
    std::thread::sleep(SETTLE);
    let mut modprobe = Command::new("modprobe");
    modprobe.args([
        "null_blk",
        "nr_devices=1",
        "queue_mode=2",
        "irqmode=2",
        "completion_nsec=10000",
    ]);
    modprobe.args([
        "gb=1",
        "bs=512",
        "submit_queues=1",
        "hw_queue_depth=256",
        "no_sched=1",
    ]);
    command::output(&mut modprobe)?;
    let raw: Result<Vec<f64>> = DEPTHS.iter().map(|&depth| cost(BACKING, depth)).collect();
    for (depth, raw) in DEPTHS.into_iter().zip(raw?) {
        row(depth, raw)?;
    }
    Ok(())
}

fn row(depth: u16, raw: f64) -> Result<()> {
    let device = Device::start(&["--backing", BACKING, "--policy", "passthrough", "--queues", "1"])?;
    let before = Counted::of(&device)?;
    let cost = cost(&device.path().to_string_lossy(), depth)?;
    let per_io = Counted::of(&device)?.per_io(&before);
    println!("| {depth} | {raw:.0} | {cost:.0} | {per_io} |");
    device.stop()
}

fn cost(device: &str, depth: u16) -> Result<f64> {
    let job = Job {
        devices: &[device.as_ref()],
        block: "4k",
        range_mib: None,
    };
    let depth = format!("--iodepth={depth}");
    busy::cost(
        &job,
        &[&depth, "--iodepth_batch=1", "--iodepth_batch_complete_min=1"],
    )
    .context(depth)
}

/// What the server has done: requests, enters, commits, fetches, and wake-ups.
struct Counted([f64; 5]);

impl Counted {
    fn of(device: &Device) -> Result<Self> {
        let wakeups = wakeups(device.server()?)?;
        let stats = device.stats()?;
        let count = |name: &str| {
            let value = stats["server"][name].as_f64();
            value.with_context(|| format!("the statistics have no {name}"))
        };
        Ok(Self([
            count("arrived")?,
            count("enters")?,
            count("commits")?,
            count("fetch_batches")?,
            wakeups,
        ]))
    }

    fn per_io(&self, before: &Self) -> String {
        let ios = self.0[0] - before.0[0];
        let each = |index: usize| format!("{:.2}", (self.0[index] - before.0[index]) / ios);
        [1, 2, 3, 4].map(each).join(" | ")
    }
}

/// How often a process' threads have waited for something.
fn wakeups(server: u32) -> Result<f64> {
    let folder = format!("/proc/{server}/task");
    let mut sum = 0.0;
    for thread in fs::read_dir(&folder).with_context(|| format!("a server has ended: no {folder}"))? {
        let text = fs::read_to_string(thread?.path().join("status"))?;
        sum += parse(&text).context("a thread's status tells no voluntary_ctxt_switches")?;
    }
    Ok(sum)
}

fn parse(status: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_voluntary_switches_are_wake_ups() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t99\n";
        assert_eq!(parse(status), Some(12.0));
        assert_eq!(parse("Name:\tx\n"), None);
    }

    #[test]
    fn what_came_before_does_not_count() {
        let (before, after) = (Counted([10.0; 5]), Counted([20.0, 30.0, 15.0, 10.0, 11.0]));
        assert_eq!(after.per_io(&before), "2.00 | 0.50 | 0.00 | 0.10");
    }
}
