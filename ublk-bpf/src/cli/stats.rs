//! `ublk-bpf stats`.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::args::{DeviceArg, OutputFormat};
use super::output::{print, print_line};
use crate::observe::{self, Interval, RunTime, Stats, Table};
use crate::policy::Disk;
use crate::registry::Record;
use crate::sys::bpf::count_run_time;

const INTERVAL: Duration = Duration::from_secs(1);
/// Moves the cursor to the top left corner and clears the screen below it.
const CLEAR: &str = "\x1b[H\x1b[J";
/// Between two readings where there is no screen to clear.
const NEXT: &str = "\n";

/// Show statistics: what the classifier decided and what the server did
///
/// Counters start when the device is made. Counters that are zero are omitted, except in JSON. Of a cache, it shows what it
/// saves of the backing device's reads, and what it costs. Latencies are shown if the device runs with --observe full.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArg,
    /// Measure the run time of classifier and policy for a second; the kernel times all BPF programs meanwhile
    #[arg(long)]
    run_time: bool,
    /// Repeat every second, with the rates in that second, until Ctrl-C or the end of the device; with --json one line each time
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    format: OutputFormat,
}

/// Prints the counts, once or again and again.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    // Says better than a missing pin that there is no such device.
    Record::read(args.device.id)?;
    let disk = Disk::ublk(args.device.id.number());
    // Until it is closed, at this function's end.
    let _counting = args.run_time.then(count_run_time).transpose();
    let _counting = _counting.context("the kernel cannot measure the run time of BPF programs")?;
    let mut reading = (Instant::now(), observe::stats(&disk)?);
    if args.run_time {
        reading = next(&disk, &reading)?;
        reading.1.interval = None;
    }
    if !args.watch {
        return print_stats(&reading.1, args.format.json, "");
    }
    let is_screen = io::stdout().is_terminal();
    let mut before = if is_screen { CLEAR } else { "" };
    loop {
        if args.format.json {
            print_line(serde_json::to_string(&reading.1)?)?;
        } else {
            print_stats(&reading.1, false, before)?;
        }
        if !is_screen {
            before = NEXT;
        }
        let next = next(&disk, &reading);
        if Record::read(args.device.id).is_err() {
            return Ok(());
        }
        reading = next?;
        reading.1.run_time = reading.1.run_time.filter(|_| args.run_time);
    }
}

/// The counters an interval later, with what happened in between.
fn next(disk: &Disk, (then, before): &(Instant, Stats)) -> anyhow::Result<(Instant, Stats)> {
    std::thread::sleep(INTERVAL);
    let now = Instant::now();
    let mut stats = observe::stats(disk)?;
    stats.run_time = Some(RunTime::between(before.classifier, stats.classifier));
    let seconds = now.duration_since(*then).as_secs_f64();
    stats.interval = Some(Interval::between(before, &stats, seconds));
    Ok((now, stats))
}

fn print_stats(stats: &Stats, json: bool, before: &str) -> anyhow::Result<()> {
    if json {
        print_line(serde_json::to_string_pretty(stats)?)?;
    } else {
        print(format_args!("{before}{}", Table(stats)))?;
    }
    Ok(())
}
