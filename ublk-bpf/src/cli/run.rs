//! `ublk-bpf run`: makes a device and serves it.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::value_parser;

use super::config::Config;
use super::error::Usage;
use crate::server::{self, Options, Recovery};
use crate::sys::uapi::{UBLK_MAX_NR_QUEUES, UBLK_MAX_QUEUE_DEPTH};
use crate::target::Spec;

/// What a device is made of when nothing is said.
const DEFAULT_BACKING: Spec = Spec::Memory(1 << 30);
const DEFAULT_POLICY: &str = "passthrough";
const DEFAULT_QUEUES: u16 = 1;
const DEFAULT_DEPTH: u16 = 128;

const DETAILS: &str = "\
A backing is a file or a block device (opened with O_DIRECT and locked), mem:SIZE for memory that is empty at
the start and gone at the end, or null:SIZE, which forgets what is written and reads as zeroes. null:SIZE,unfilled
leaves the reader's pages as they are, so old memory shows through: it is for comparing with other null targets
only. Sizes are 64K, 1G, 1GiB: powers of 1024.

The device is ready when one line is printed. SIGINT and SIGTERM stop it; while something has it open, the first
one only says so and the second one stops it all the same.

The configuration file has the same names without dashes in front; the command line wins:
  backing = \"/srv/disk.img\"
  queues = 4
  read-only = true

Examples:
  ublk-bpf run
  ublk-bpf run --backing /srv/disk.img --policy sparse --daemon
  ublk-bpf run --backing /dev/vdb --queues 4 --recovery reissue --daemon
  ublk-bpf run --recover 0                    serve ublkb0 again after its server died";

/// Make a device and serve it until it is stopped
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(super) struct Args {
    /// Where the bytes are: PATH, mem:SIZE or null:SIZE[,unfilled] [default: mem:1G]
    #[arg(long, value_name = "BACKING")]
    backing: Option<Spec>,
    /// What classifies requests: a built-in policy's name (see `policy list`) or a BPF object file
    /// [default: passthrough]
    #[arg(long, value_name = "NAME|FILE.o")]
    policy: Option<String>,
    /// The device's number [default: the lowest free one]
    #[arg(long, value_name = "N", value_parser = super::args::parse_id)]
    id: Option<u32>,
    /// Hardware queues, each with a thread; the kernel makes no more than there are CPUs [default: 1]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=i64::from(UBLK_MAX_NR_QUEUES)))]
    queues: Option<u16>,
    /// Requests that a queue holds at once [default: 128]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=i64::from(UBLK_MAX_QUEUE_DEPTH)))]
    depth: Option<u16>,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Return when the device is ready, and serve it in the background
    #[arg(long)]
    daemon: bool,
    /// What becomes of the device if its server dies [default: none]
    #[arg(long, value_enum)]
    recovery: Option<Recovery>,
    /// Serve device N again, whose server died, with the options it was made with
    #[arg(long, value_name = "N", value_parser = super::args::parse_id, conflicts_with_all =
        ["backing", "policy", "id", "queues", "depth", "read_only", "recovery", "allow_lossy", "config"])]
    recover: Option<u32>,
    /// Let the policy lose data and fail requests: without this it can make the device slow at worst
    #[arg(long)]
    allow_lossy: bool,
    /// Read options from a TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Serves a device until it is stopped.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let config = match &args.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let daemon = args.daemon || config.daemon.unwrap_or(false);
    let start = match args.recover {
        Some(id) => server::Start::Recover(id),
        None => server::Start::New(merge(args, config)?),
    };
    if daemon { server::run_in_background(&start) } else { server::run_in_foreground(&start) }
}

/// The options, from the command line before the file before the defaults.
fn merge(args: Args, config: Config) -> anyhow::Result<Options> {
    let options = Options {
        backing: args.backing.or(config.backing).unwrap_or(DEFAULT_BACKING),
        policy: args.policy.or(config.policy).unwrap_or_else(|| DEFAULT_POLICY.to_owned()),
        id: args.id.or(config.id),
        queues: args.queues.or(config.queues).unwrap_or(DEFAULT_QUEUES),
        depth: args.depth.or(config.depth).unwrap_or(DEFAULT_DEPTH),
        read_only: args.read_only || config.read_only.unwrap_or(false),
        recovery: args.recovery.or(config.recovery).unwrap_or_default(),
        allow_lossy: args.allow_lossy || config.allow_lossy.unwrap_or(false),
    };
    // The command line's own values were checked by clap; these may come from the file.
    check_range("queues", options.queues, UBLK_MAX_NR_QUEUES)?;
    check_range("depth", options.depth, UBLK_MAX_QUEUE_DEPTH)?;
    absolute(options)
}

fn check_range(name: &str, value: u16, most: u16) -> anyhow::Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(anyhow!(Usage(format!("{name} is {value}: give 1 to {most}"))))
}

/// The server and later commands have other working directories.
fn absolute(mut options: Options) -> anyhow::Result<Options> {
    if let Spec::Path(path) = &mut options.backing {
        *path = std::path::absolute(&*path).with_context(|| format!("cannot resolve {}", path.display()))?;
    }
    options.policy = super::policy::absolute(&options.policy)?;
    Ok(options)
}
