//! `ublk-bpf stats`.

use std::time::Duration;

use super::args::{Device, Format};
use super::output::{print, print_line};
use crate::observe::{self, Stats, Table};
use crate::policy::Disk;
use crate::server::Record;

const INTERVAL: Duration = Duration::from_secs(1);
/// To the top left corner, and everything below it away.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Show what the classifier decided and the server did
///
/// Everything is counted since the device was made. What never happened is left out, but for JSON.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: Device,
    /// Again every second, until Ctrl-C or the device's end; with --json one line each
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    format: Format,
}

/// Prints the counts, once or again and again.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    // Says better than a missing pin that there is no such device.
    Record::read(args.device.id)?;
    let disk = Disk::ublk(args.device.id.number());
    let mut stats = observe::stats(&disk)?;
    if !args.watch {
        return print_stats(&stats, args.format.json, "");
    }
    loop {
        if args.format.json {
            print_line(serde_json::to_string(&stats)?)?;
        } else {
            print_stats(&stats, false, CLEAR)?;
        }
        std::thread::sleep(INTERVAL);
        if Record::read(args.device.id).is_err() {
            return Ok(());
        }
        stats = observe::stats(&disk)?;
    }
}

fn print_stats(stats: &Stats, json: bool, before: &str) -> anyhow::Result<()> {
    if json {
        print_line(serde_json::to_string_pretty(stats)?)?;
    } else {
        print(format_args!("{before}{}", Table(stats)))?;
    }
    Ok(())
}
