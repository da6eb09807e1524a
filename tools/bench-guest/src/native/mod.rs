//! Part `native`: what fio measures on disks of this machine, by the clock on the wall.
//!
//! Everything else here counts instructions in a guest; this is for a machine with the kernel and the disks that count.

mod disk;
mod latency;
mod subjects;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use host::command;

use crate::peers::schedule;
use disk::Disk;
use latency::{Load, Measured};
use subjects::Kind;

/// What is measured, and how long.
#[derive(Args, Debug)]
pub struct Options {
    /// The backing, and the cache device if there is one
    #[arg(required = true, num_args = 1..=2)]
    pub devices: Vec<String>,
    /// Overwrite them, whatever they hold
    #[arg(long)]
    pub destroy_data: bool,
    /// How long each load runs, after a fifth of that which does not count
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// MiB that are read and written, at most half of a device; the caches hold all of it
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(16..))]
    pub mib: u64,
}

/// bcache wants 1024 buckets of 512 KiB, and some for itself.
const LEAST_MIB: u64 = 1024;

/// Measures, and prints the page's rows.
pub fn measure(options: &Options) -> Result<()> {
    // SAFETY: geteuid() has no preconditions and cannot fail.
    let user = unsafe { libc::geteuid() };
    ensure!(user == 0, "root is wanted, to make devices: run it with sudo");
    command::output(Command::new("ublk-bpf").arg("check")).context("this machine cannot serve devices")?;
    let disks: Result<Vec<Disk>> = options
        .devices
        .iter()
        .map(|path| Disk::open(path, options.destroy_data))
        .collect();
    let disks = disks?;
    let mib = range(&disks, options.mib)?;
    let seconds = options.seconds;
    println!("{mib} MiB, {seconds} s for each load; Linux {}", release()?);
    println!("\n{}", latency::HEAD);
    for kind in subjects::kinds(disks.get(1).is_some()) {
        turn(&kind, &disks, mib, seconds).with_context(|| kind.name)?;
    }
    Ok(())
}

fn release() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_owned())
}

/// How much is read and written: half of the smaller disk, for a cache has its own data beside.
fn range(disks: &[Disk], most: u64) -> Result<u64> {
    let smallest = disks.iter().min_by_key(|disk| disk.mib).context("no disk")?;
    ensure!(
        smallest.mib >= LEAST_MIB,
        "a device of at least {LEAST_MIB} MiB was wanted, but {} has {}",
        smallest.path,
        smallest.mib
    );
    Ok(most.min(smallest.mib / 2))
}

fn turn(kind: &Kind, disks: &[Disk], mib: u64, seconds: u32) -> Result<()> {
    for disk in disks {
        disk.clear()?;
    }
    {
        let subject = (kind.start)(disks, mib)?;
        schedule(subject.path(), "none")?;
        latency::fill(subject.path(), mib)?;
        for load in Load::ALL {
            let measured = Measured::of(subject.path(), mib, &load, seconds).with_context(|| load.name)?;
            println!("| {} | {} | {measured} |", kind.name, load.name);
        }
    }
    // No head of a cache is left for someone to find.
    disks.iter().try_for_each(Disk::clear)
}
