//! `ublk-bpf trace`.

mod live;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::args::{DeviceArg, OutputFormat};
use super::output::print_line;
use crate::backend::parse_size;
use crate::observe::{Recorded, Recording, Summary};
use crate::path_text::ShowPath as _;
use crate::policy::Disk;
use crate::registry::Record;

/// How often the requests are written. The ring holds what is issued meanwhile.
const INTERVAL: Duration = Duration::from_millis(20);

/// Show the requests to a device live, or record them
///
/// Each request is a line when it has ended, with its task, what the policy decided, and how long it took. With --record,
/// requests go to a file instead, as they are issued: docs/traces.md describes it, and `ublk-bpf replay` reads it. Either
/// ends with Ctrl-C, at a limit, or with the device. Without it, a device pays nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArg,
    /// Write the requests to this file; not one on the device itself
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// End after so many seconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// With --record: end after so many requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "record")]
    count: Option<u64>,
    /// Kernel memory for requests that are not written yet, 64 bytes each, up to 1G; more are dropped and counted
    #[arg(long, value_name = "SIZE", value_parser = ring_size, default_value = "8M")]
    buffer: u32,
    #[command(flatten)]
    live: live::LiveOptions,
    #[command(flatten)]
    format: OutputFormat,
}

/// Records or shows requests until something ends it, and says what there is.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let record = Record::read(args.device.id)?;
    let until = Until::begin(args.seconds)?;
    match &args.record {
        Some(file) => record_to(file, args, &record, &until),
        None => live::run(args, &record, &until),
    }
}

/// When the user wants it to end.
struct Until {
    signal: Arc<AtomicBool>,
    time: Option<Instant>,
}

impl Until {
    /// From now on, a signal no longer ends the process by itself.
    fn begin(seconds: Option<u64>) -> anyhow::Result<Self> {
        let signal = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM] {
            flag::register(number, Arc::clone(&signal)).context("cannot catch signals")?;
        }
        // More seconds than the clock has are no limit.
        let time = seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        Ok(Self { signal, time })
    }

    fn is_over(&self) -> bool {
        self.signal.load(Relaxed) || self.time.is_some_and(|end| Instant::now() >= end)
    }
}

fn record_to(path: &Path, args: &Args, record: &Record, until: &Until) -> anyhow::Result<()> {
    let device = Recorded {
        sectors: record.sectors,
        block_bytes: record.cache.as_ref().map(|cache| cache.options.block),
    };
    let disk = Disk::ublk(args.device.id.number());
    let file = create(path)?;
    let mut recording = Recording::start(&disk, device, file, args.buffer, args.count)?;
    if !args.format.json {
        print_line(format_args!(
            "recording the requests of {} until {}",
            disk.name(),
            ends(args)
        ))?;
    }
    while recording.poll()? && !until.is_over() {
        thread::sleep(INTERVAL);
    }
    let summary = recording.finish()?;
    if args.format.json {
        print_line(serde_json::to_string(&summary)?)?;
    } else {
        print_line(words(&summary))?;
    }
    Ok(())
}

/// Creates the file, or empties it.
fn create(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.shown()))?;
    // The header is completed at the end.
    ensure!(
        file.metadata()?.is_file(),
        "{} is not a regular file: record to one",
        path.shown()
    );
    Ok(file)
}

/// What ends the recording.
fn ends(args: &Args) -> String {
    let seconds = args.seconds.map(|n| format!("{n} s have passed, "));
    let count = args.count.map(|n| format!("it has {n}, "));
    format!(
        "{}{}Ctrl-C, or the end of the device",
        seconds.unwrap_or_default(),
        count.unwrap_or_default()
    )
}

fn words(summary: &Summary) -> String {
    let mut words = format!(
        "{} requests recorded, {} dropped",
        summary.recorded, summary.dropped
    );
    if summary.dropped > 0 {
        words.push_str(" (a larger --buffer holds more)");
    }
    if summary.skipped > 0 {
        words.push_str(&format!(
            "; up to {} not seen, issued while the recorder already ran on their CPU",
            summary.skipped
        ));
    }
    words
}

/// The kernel's limit of a ring's size is 4G less a page; it needs powers of two.
fn ring_size(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| (4 << 10..=1 << 30).contains(bytes))
        .map(u32::next_power_of_two)
        .ok_or_else(|| format!("{text} is not between 4K and 1G"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_a_size_that_the_kernel_takes() {
        assert_eq!(ring_size("4K"), Ok(4096));
        assert_eq!(ring_size("5K"), Ok(8192));
        assert_eq!(ring_size("1G"), Ok(1 << 30));
        assert!(ring_size("2K").is_err() && ring_size("2G").is_err() && ring_size("x").is_err());
    }

    #[test]
    fn what_is_missing_is_said() {
        let summary = |dropped, skipped| Summary {
            recorded: 5,
            dropped,
            skipped,
        };
        assert_eq!(words(&summary(0, 0)), "5 requests recorded, 0 dropped");
        assert!(words(&summary(2, 0)).ends_with("2 dropped (a larger --buffer holds more)"));
        assert!(words(&summary(0, 3)).contains("; up to 3 not seen"));
    }
}
