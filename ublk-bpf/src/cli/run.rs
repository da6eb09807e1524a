//! `ublk-bpf run`: makes devices and serves them.

use std::path::PathBuf;

use anyhow::bail;
use ublk_bpf_abi::SECTOR_SIZE;

use super::config::Settings;
use super::configured;
use super::devices::devices;
use super::error::Usage;
use super::output::print_line;
use crate::backend::{BackingKind, NullReads, Size};
use crate::control::{Control, DeviceId};
use crate::server::{self, Ready, Start};
use crate::sys::process::ignore_signals_of_writes;

const DETAILS: &str = "\
The backing is a file or a block device (opened with O_DIRECT and locked), mem:SIZE for memory that starts \
empty and is freed at the end, or null:SIZE, which discards writes and reads as zeroes. null:SIZE,unfilled does not \
fill the reader's pages, which then show old memory: use it only to compare with other null backends. Do not swap to \
a device with a mem: backing or cache: pages swapped out would take memory again. Sizes are 64K, 1G or 1GiB, in powers of 1024.

The device is ready when one line is printed. A signal before that cancels the start and removes the device. After \
that, SIGINT, SIGTERM and SIGHUP (the terminal was closed; ignored under nohup) remove the device. If it is in use, the first \
signal only says so and the second one removes it anyway.

With --recovery the device outlives its server. If the server crashes or is ended by a signal, the device \
waits, even if it is in use, until `run --recover N` serves it again. Only `ublk-bpf stop` removes it. Until then:
  reissue         requests in flight are reissued to the next server, and new ones wait
  fail-in-flight  requests in flight fail, and new ones wait
  fail-all        requests in flight fail, and so do new ones

With --cache, blocks that are read are promoted to a second, faster device and served from there. The backing always \
holds all data: the cache may fail or be omitted at any time. After a clean stop the next `run` with the same backing and \
cache starts warm. If the backing has changed in between, the cache is refused until --cache-reset empties it.

The configuration file uses the same names without the dashes in front. The command line overrides it:
  backing = \"/srv/disk.img\"
  queues = 4
  read-only = true

It can describe several devices, which one process serves. Each has a table. Names above the first table are \
defaults for all devices, except backing, id and cache, which belong to one device:
  policy = \"sparse\"
  [[device]]
  backing = \"/srv/a.img\"
  [[device]]
  backing = \"/srv/b.img\"
  queues = 4

Devices start in this order; if one cannot start, none does. When all are ready, one line is printed for each. Each is \
stopped by its own number, and a failure of one does not affect the others. A signal applies to all of them, and the \
process ends with the last one. With two or more tables, options of a device cannot be given on the command line.

A device made with --recovery waits when its server dies, and keeps its backing and cache: other starts on either are \
refused. With --config or --recover-waiting such a start recovers the waiting device, with its number and the options it \
was made with, and makes the other devices: a supervisor starts the same command again after a failure.

A device of the file that another server of this program serves is left as it is, and named, if it was made as the \
file says; if not, the start is refused. If none is left to serve, the exit status is 0, or 1 under a service manager, \
which would have no server to watch. Memory and null devices are known by their names, the others by their backing.

Examples:
  ublk-bpf run
  ublk-bpf run --backing /srv/disk.img --policy sparse --daemon
  ublk-bpf run --backing /dev/vdb --queues 4 --recovery reissue --daemon
  ublk-bpf run --backing /dev/sdb --cache /dev/nvme0n1p3 --policy scan-resistant --daemon
  ublk-bpf run --config /etc/disks.toml --daemon
  ublk-bpf run --recover 0                    recover ublkb0, which waits for a server
  ublk-bpf run --recover --all --daemon       recover every device that waits, in one process";

/// Make one or more devices and serve them until they are stopped
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Recover device N, which waits for a server, with the options it was made with
    #[arg(long, value_name = "N", num_args = 0..=1, value_parser = super::args::device, conflicts_with_all = ["config", "recover_waiting"],
        conflicts_with_all = Settings::arguments_of_devices())]
    recover: Option<Option<DeviceId>>,
    /// With --recover and no N: recover every device that waits for a server; those that cannot be recovered are logged
    #[arg(long, requires = "recover")]
    all: bool,
    /// Read options from a TOML file, which can describe several devices
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Serves devices until they are stopped.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    ignore_signals_of_writes();
    let file = match &args.config {
        Some(path) => Settings::read(path)?,
        None => Settings::default(),
    };
    let daemon = args.settings.daemon.or(file.daemon).unwrap_or(false);
    let recover_waiting = args
        .settings
        .recover_waiting
        .or(file.recover_waiting)
        .unwrap_or(false);
    let metrics = args.settings.metrics.or(file.metrics);
    let start = match args.recover {
        Some(Some(_)) if args.all => {
            bail!(Usage(
                "--recover --all is for every device: give no number".to_owned()
            ))
        }
        Some(Some(id)) => Start::recover(id),
        Some(None) if args.all => {
            let waiting = server::waiting_devices(&Control::open()?)?;
            if waiting.is_empty() {
                print_ready("no device waits for a server");
                return Ok(());
            }
            Start::recover_all(waiting)
        }
        Some(None) => {
            bail!(Usage(
                "--recover needs the number of a device, or --all".to_owned()
            ))
        }
        None if let Some(path) = args.config => match configured::start(path, args.settings, file)? {
            Some(start) => start,
            None => return Ok(()),
        },
        None if recover_waiting => Start::make_or_recover(devices(args.settings, file)?),
        None => Start::make(devices(args.settings, file)?),
    };
    let start = start.with_metrics(metrics);
    let announce = |ready: &[Ready]| announce(ready, start.devices.len());
    if daemon {
        print_ready(&server::run_in_background(&start, announce)?);
    } else {
        server::serve(&start, |ready| print_ready(&announce(ready)))?;
    }
    Ok(())
}

/// Prints what is ready. The devices are served even if it cannot be printed.
fn print_ready(lines: &str) {
    if let Err(error) = print_line(lines) {
        tracing::warn!("{error}");
    }
}

/// A line for each device, and one if there should be more.
fn announce(ready: &[Ready], of: usize) -> String {
    let mut lines: Vec<String> = ready.iter().map(line).collect();
    if ready.len() < of {
        let left = of - ready.len();
        lines.push(format!(
            "{left} of {of} devices could not be recovered: see the server's log"
        ));
    }
    lines.join("\n")
}

/// The line that says that requests are served.
fn line(ready: &Ready) -> String {
    let record = &ready.record;
    let size = human(record.sectors * SECTOR_SIZE);
    let what = match ready.kind {
        BackingKind::Memory => format!("{size} of memory"),
        BackingKind::Null(NullReads::Zeroes) => format!("{size} null device"),
        BackingKind::Null(NullReads::Unfilled) => format!("{size} null device, reads not filled"),
        BackingKind::File | BackingKind::Block => format!("{size} on {}", record.backing),
    };
    let queues = if record.queues == 1 { "queue" } else { "queues" };
    let named = record.name.as_ref();
    let named = named.map_or_else(String::new, |name| format!(" ({name})"));
    let mut line = format!(
        "{}{named} is ready: {what}, {} {queues} of depth {}, policy {}",
        record.id().block_path().display(),
        record.queues,
        record.depth,
        record.policy
    );
    if let Some(cache) = &record.cache {
        let size = human(u64::from(cache.slots) * u64::from(cache.options.block));
        line.push_str(&format!(", {size} of cache on {}", cache.options.device));
    }
    if record.read_only {
        line.push_str(", read-only");
    }
    if record.allow_lossy {
        line.push_str(", lossy: the policy may lose data");
    }
    line
}

/// `1 GiB`, or the bytes where there is no round number.
fn human(bytes: u64) -> String {
    let mut size = Size(bytes).to_string();
    match size.pop() {
        Some(suffix) if suffix.is_ascii_alphabetic() => format!("{size} {suffix}iB"),
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_units() {
        assert_eq!(human(1 << 30), "1 GiB");
        assert_eq!(human(1536 << 10), "1536 KiB");
        assert_eq!(human(512), "512 bytes");
    }
}
