//! How cost and memory grow: with queues and CPUs, depth, size, and devices beside one another.
//!
//! Each step is a section of docs/benchmarks.md, and is measured in guests of its own, which print the rows of its
//! table. All is on the instruction clock, which counts the instructions of all CPUs together.

mod attributes;
mod clients;
mod depth;
mod devices;
mod filling;
mod loads;
pub(crate) mod queues;
mod size;
mod waiting;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::fio::{self, Job, Summary};
use super::ours::Device;
use crate::sizes::{RAM_DISK_MIB, SETTLE};
use crate::subject::Kind;
use crate::{compared, peers};

/// The cheapest backing, so that growth is most visible.
const NULL: &str = "null:8G,unfilled";
/// Runs of fio that count, for each case, after one that does not.
const RUNS: usize = 3;

/// How a client reads with many requests in flight, and with one.
const DEEP: [&str; 4] = [
    "--runtime=150ms",
    "--iodepth=128",
    "--iodepth_batch=32",
    "--iodepth_batch_complete_min=32",
];
const SINGLE: [&str; 4] = [
    "--runtime=150ms",
    "--iodepth=1",
    "--iodepth_batch=1",
    "--iodepth_batch_complete_min=1",
];

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// Hardware queues, with a CPU and a client for each
    Queues,
    /// Tags of a queue
    Depth,
    /// The device's size, with and without a cache
    Size,
    /// Devices
    Devices,
    /// Clients, depths and the I/O scheduler, beside other caches
    Clients,
    /// Attributes of the request queue
    Attributes,
    /// Mixed and large I/O, and disks that hold data
    Loads,
    /// A backing that completes later
    Waiting,
    /// What it costs to bring a block into the cache
    Filling,
}

/// A guest whose clock counts instructions.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its CPUs.
    pub cpus: u32,
    /// As qemu takes it: `2G`.
    pub memory: &'static str,
}

/// How a section of the page is measured and described.
pub struct Plan {
    /// What the page calls it.
    pub(crate) title: &'static str,
    /// What was done, before the table.
    pub(crate) how: &'static str,
    /// The table's first two lines.
    pub(crate) head: &'static str,
    /// Where it is measured.
    pub guests: &'static [Guest],
    /// Whether the guests need the programs that ublk-bpf is compared with.
    pub needs_peers: bool,
    /// Prints the rows of one guest, in it.
    pub(crate) rows: fn() -> Result<()>,
    /// What the figures say, after the table.
    pub(crate) why: &'static str,
}

impl Step {
    /// In the page's order.
    pub const ALL: [Self; 9] = [
        Self::Queues,
        Self::Depth,
        Self::Size,
        Self::Devices,
        Self::Clients,
        Self::Attributes,
        Self::Loads,
        Self::Waiting,
        Self::Filling,
    ];

    /// As `--step` takes it, and the page's section is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queues => "queues",
            Self::Depth => "depth",
            Self::Size => "size",
            Self::Devices => "devices",
            Self::Clients => "clients",
            Self::Attributes => "attributes",
            Self::Loads => "loads",
            Self::Waiting => "waiting",
            Self::Filling => "filling",
        }
    }

    /// How it is measured.
    pub fn plan(self) -> &'static Plan {
        match self {
            Self::Queues => &queues::PLAN,
            Self::Depth => &depth::PLAN,
            Self::Size => &size::PLAN,
            Self::Devices => &devices::PLAN,
            Self::Clients => &clients::PLAN,
            Self::Attributes => &attributes::PLAN,
            Self::Loads => &loads::PLAN,
            Self::Waiting => &waiting::PLAN,
            Self::Filling => &filling::PLAN,
        }
    }
}

impl Plan {
    /// Prints the rows of its table, in a guest.
    pub fn measure(&self) -> Result<()> {
        (self.rows)()
    }

    /// Its section of the page, with these rows.
    pub fn section(&self, rows: &str) -> String {
        let [title, how, head, why] = [self.title, self.how, self.head, self.why].map(str::trim);
        format!("### {title}\n\n{how}\n\n{head}\n{}\n\n{why}", rows.trim())
    }
}

/// Reads of 4 KiB from all of `devices` at once: instructions per I/O, the median.
fn instructions(devices: &[&Path], options: &[&str]) -> Result<f64> {
    let job = Job {
        devices,
        block: "4k",
        range_mib: None,
    };
    let run = || Ok(fio::run(&job, options)?.iops);
    run().context("the run that does not count")?;
    let results = (0..RUNS).map(|_| run()).collect::<Result<Vec<f64>>>()?;
    Ok(1e9 / Summary::of(results)?.median)
}

/// What the server of a device has in memory, in MiB.
fn resident_mib(device: &Device) -> Result<f64> {
    let path = format!("/proc/{}/status", device.server()?);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    field_mib(&text, "VmRSS:")
}

/// The available memory of the system, in MiB.
fn available_mib() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    field_mib(&text, "MemAvailable:")
}

/// A line of /proc in kB.
fn field_mib(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    Ok(number.with_context(|| format!("the kernel tells no {name}"))? / 1024.0)
}

/// Prints a row for each of these subjects of the comparison, on RAM disks.
fn each_subject(names: &[&str], row: fn(&Kind) -> Result<()>) -> Result<()> {
    std::thread::sleep(SETTLE);
    peers::make_ram_disks(RAM_DISK_MIB)?;
    let kinds = compared::kinds();
    for name in names {
        let kind = kinds.iter().find(|kind| kind.name == *name);
        row(kind.with_context(|| format!("there is no subject {name}"))?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_asked_for_by_its_sections_name() {
        for step in Step::ALL {
            assert_eq!(Step::from_str(step.name(), false), Ok(step));
        }
    }

    #[test]
    fn every_row_has_the_columns_of_the_head() {
        for step in Step::ALL {
            let lines: Vec<&str> = step.plan().head.trim().lines().collect();
            assert_eq!(lines.len(), 2, "{}", step.name());
            assert_eq!(
                lines[0].matches('|').count(),
                lines[1].matches('|').count(),
                "{}",
                step.name()
            );
        }
    }

    #[test]
    fn memory_is_read_in_mib() {
        let text = "VmPeak:\t  9999 kB\nVmRSS:\t    2048 kB\n";
        assert!((field_mib(text, "VmRSS:").expect("read") - 2.0).abs() < 1e-9);
        assert!(field_mib(text, "VmLck:").is_err());
    }
}
