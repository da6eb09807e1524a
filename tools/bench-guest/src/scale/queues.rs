//! Queues and CPUs: as many clients, each on its own CPU and so with its own queue.

use std::fs;

use anyhow::{Context as _, Result};

use super::Guest;
use super::{NULL, Plan, instructions};
use crate::ours::Device;

pub(crate) const PLAN: Plan = Plan {
    title: "Queues and CPUs",
    how: "\
`null`, 4 KiB random reads, depth 128, policy `passthrough`; a guest for each line. *One of each*: one queue and one client, pinned to a CPU, on a machine with so
many. *As many*: a queue, a server thread and a pinned client for each CPU. The clock counts the instructions of all CPUs together, so a perfect program would have the same
figure in every line; it says nothing about how many I/Os a second so many real CPUs make. Context switches, IPIs and timer ticks are those of *as many* for 1000 I/Os, with what starting fio adds to them in every line.",
    head: "\
| CPUs | one of each, instr./I/O | as many, instr./I/O | difference | switches | IPIs | timer ticks |
|---|---|---|---|---|---|---|",
    guests: &[
        guest(1),
        guest(2),
        guest(4),
        guest(8),
        guest(16),
    ],
    needs_peers: false,
    rows,
    why: "\
With a second CPU a server thread runs elsewhere than its client, and a wake-up may be an interrupt to another CPU: that is the step from the first line to the second with one queue, and
further idle CPUs add nearly nothing to it. With a queue for each CPU nothing is shared on the way of a request: rings, tags, verdicts and counters are each queue's or each CPU's own. So the cost of an I/O hardly
grows. What does grow are interrupts between CPUs, context switches and timer ticks, which come to every CPU by a clock that here counts the work of all of them (real CPUs, which work at the same time, pay fewer
ticks for an I/O), and what each client does as it begins and ends, which is part of a run: the more clients share it, the fewer I/Os it is spread over. 32 CPUs boot too, in two minutes.",
};

const fn guest(cpus: u32) -> Guest {
    Guest { cpus, memory: "4G" }
}

const RUNTIME: &str = "--runtime=400ms";

fn rows() -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let device = start(1)?;
    let alone = instructions(&[device.path()], &[RUNTIME, "--cpus_allowed=0"])?;
    device.stop()?;

    let device = start(cpus)?;
    let clients = [
        RUNTIME.to_owned(),
        format!("--numjobs={cpus}"),
        format!("--cpus_allowed=0-{}", cpus - 1),
        "--cpus_allowed_policy=split".to_owned(),
    ];
    let before = (Activity::now()?, arrived(&device)?);
    let all = instructions(&[device.path()], &clients.each_ref().map(String::as_str))?;
    let activity = Activity::now()?.since(&before.0);
    let per_1000 = 1000.0 / (arrived(&device)? - before.1);
    device.stop()?;
    println!(
        "| {cpus} | {alone:.0} | {all:.0} | {:+.1} % | {:.1} | {:.2} | {:.2} |",
        (all / alone - 1.0) * 100.0,
        activity.switches * per_1000,
        activity.ipis * per_1000,
        activity.ticks * per_1000,
    );
    Ok(())
}

fn start(queues: usize) -> Result<Device> {
    let queues = queues.to_string();
    Device::start(&[
        "--backing",
        NULL,
        "--queues",
        &queues,
        "--depth",
        "128",
        "--policy",
        "passthrough",
    ])
}

/// Requests that the server got so far.
fn arrived(device: &Device) -> Result<f64> {
    let arrived = &device.stats()?["server"]["arrived"];
    arrived
        .as_f64()
        .context("the statistics have no number of requests")
}

/// What CPUs do to one another, since the boot.
#[derive(Debug, PartialEq)]
pub(crate) struct Activity {
    pub(crate) switches: f64,
    /// Calls and reschedulings.
    ipis: f64,
    ticks: f64,
}

impl Activity {
    pub(crate) fn now() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        Self::parse(&read("/proc/stat")?, &read("/proc/interrupts")?)
    }

    fn parse(stat: &str, interrupts: &str) -> Result<Self> {
        let sum = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name));
            let numbers = line.with_context(|| format!("the kernel counts no {name}"))?;
            let numbers = numbers
                .split_whitespace()
                .map_while(|word| word.parse::<f64>().ok());
            anyhow::Ok(numbers.sum())
        };
        Ok(Self {
            switches: sum(stat, "ctxt")?,
            ipis: sum(interrupts, "RES:")? + sum(interrupts, "CAL:")?,
            ticks: sum(interrupts, "LOC:")?,
        })
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            switches: self.switches - before.switches,
            ipis: self.ipis - before.ipis,
            ticks: self.ticks - before.ticks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_of_all_cpus_are_added_up() {
        let interrupts = "           CPU0       CPU1\n LOC:        10         20   Local timer interrupts\n \
                          RES:         1          2   Rescheduling interrupts\n CAL:         3          4   Function call\n";
        let activity = Activity::parse("cpu 1 2\nctxt 500\n", interrupts).expect("parsed");
        let expected = Activity {
            switches: 500.0,
            ipis: 10.0,
            ticks: 30.0,
        };
        assert_eq!(activity, expected);
        assert_eq!(activity.since(&expected).ticks, 0.0);
        assert!(Activity::parse("cpu 1 2\n", interrupts).is_err());
    }
}
