//! `ublk-bpf run`: makes a device and serves it.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::value_parser;
use ublk_bpf_abi::SECTOR_SIZE;

use super::config::Config;
use super::error::Usage;
use crate::cache::Mode;
use crate::cache::disk::{MAX_BLOCK, MIN_BLOCK};
use crate::cache::evict::Algorithm;
use crate::control::{DeviceId, Recovery};
use crate::policy::DEFAULT_POLICY;
use crate::server::{self, CacheOptions, Options, Ready, ServeError, Start};
use crate::sys::uapi::{UBLK_MAX_NR_QUEUES, UBLK_MAX_QUEUE_DEPTH};
use crate::target::{Kind, NullReads, Size, Spec, parse_size};

/// What a device is made of when nothing is said.
const DEFAULT_BACKING: Spec = Spec::Memory(1 << 30);
const DEFAULT_QUEUES: u16 = 1;
const DEFAULT_DEPTH: u16 = 128;
/// The policy of a device with a cache: without one that promotes, nothing would ever be in it.
const DEFAULT_CACHE_POLICY: &str = "scan-resistant";

const DETAILS: &str = "\
A backing is a file or a block device (opened with O_DIRECT and locked), mem:SIZE for memory that is empty at \
the start and gone at the end, or null:SIZE, which forgets what is written and reads as zeroes. null:SIZE,unfilled \
leaves the reader's pages as they are, so old memory shows through: it is for comparing with other null targets \
only. Sizes are 64K, 1G, 1GiB: powers of 1024.

The device is ready when one line is printed. SIGINT and SIGTERM stop it; while something has it open, the first \
one only says so and the second one stops it all the same.

With --cache, blocks that are read are copied to a second, faster device and served from there. It holds nothing that \
the backing does not: it may fail or be left away at any time. After a stop in good order the next `run` with both finds \
it warm; a backing that was changed in between is noticed, and the cache refused until --cache-reset empties it.

The configuration file has the same names without dashes in front; the command line wins:
  backing = \"/srv/disk.img\"
  queues = 4
  read-only = true

Examples:
  ublk-bpf run
  ublk-bpf run --backing /srv/disk.img --policy sparse --daemon
  ublk-bpf run --backing /dev/vdb --queues 4 --recovery reissue --daemon
  ublk-bpf run --backing /dev/sdb --cache /dev/nvme0n1p3 --policy scan-resistant --daemon
  ublk-bpf run --recover 0                    serve ublkb0 again after its server died";

/// Make a device and serve it until it is stopped
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(super) struct Args {
    /// Where the bytes are: PATH, mem:SIZE or null:SIZE (also null:SIZE,unfilled) [default: mem:1G]
    #[arg(long, value_name = "BACKING")]
    backing: Option<Spec>,
    /// What classifies requests: a built-in policy's name (see `policy list`) or a BPF object file
    /// [default: passthrough; with a cache scan-resistant]
    #[arg(long, value_name = "NAME|FILE.o")]
    policy: Option<String>,
    /// The device's number [default: the lowest free one]
    #[arg(long, value_name = "N")]
    id: Option<DeviceId>,
    /// Hardware queues, each with a thread; the kernel makes no more than there are CPUs [default: 1]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=i64::from(UBLK_MAX_NR_QUEUES)))]
    queues: Option<u16>,
    /// Requests that a queue holds at once; batch mode has at least 2 [default: 128]
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
    #[arg(long, value_name = "N", conflicts_with_all =
        ["backing", "policy", "id", "queues", "depth", "read_only", "recovery", "allow_lossy", "config", "cache",
        "cache_block", "cache_mode", "cache_eviction", "promote_limit", "cache_reset"])]
    recover: Option<DeviceId>,
    /// Let the policy lose data and fail requests: without this it can make the device slow at worst
    #[arg(long)]
    allow_lossy: bool,
    /// A faster device for copies of what is read: PATH or mem:SIZE
    #[arg(long, value_name = "CACHE")]
    cache: Option<Spec>,
    /// Bytes that are cached as one, 4K to 1M [default: 64K]
    #[arg(long, value_name = "SIZE", value_parser = parse_cache_block)]
    cache_block: Option<u32>,
    /// Whether cached blocks are written too, or leave the cache [default: write-through]
    #[arg(long, value_enum, value_name = "MODE")]
    cache_mode: Option<Mode>,
    /// Which block has to go where there is no room [default: s3fifo]
    #[arg(long, value_enum, value_name = "ALGORITHM")]
    cache_eviction: Option<Algorithm>,
    /// Copy no more than so many bytes a second into the cache
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    promote_limit: Option<u64>,
    /// Begin with an empty cache, whatever is on its device
    #[arg(long)]
    cache_reset: bool,
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
        Some(id) => Start::Recover(id),
        None => Start::New(merge(args, config)?),
    };
    if daemon {
        println!("{}", server::run_in_background(&start, announce)?);
    } else {
        server::serve(&start, |ready| {
            // The device serves whether or not somebody listens.
            if let Err(error) = writeln!(io::stdout(), "{}", announce(ready)) {
                tracing::warn!("cannot say that the device is ready: {error}");
            }
        })?;
    }
    Ok(())
}

/// The line that says that requests are served.
fn announce(ready: &Ready) -> String {
    let record = &ready.record;
    let size = human(record.sectors * SECTOR_SIZE);
    let what = match ready.kind {
        Kind::Memory => format!("{size} of memory"),
        Kind::Null(NullReads::Zeroes) => format!("{size} of nothing"),
        Kind::Null(NullReads::Unfilled) => format!("{size} of nothing, reads left unfilled"),
        Kind::File | Kind::Block => format!("{size} on {}", record.backing),
    };
    let queues = if record.queues == 1 { "queue" } else { "queues" };
    let mut line = format!(
        "{} is ready: {what}, {} {queues} of depth {}, policy {}",
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

/// The options, from the command line before the file before the defaults.
fn merge(args: Args, config: Config) -> anyhow::Result<Options> {
    let id = config.id.map(device_id).transpose()?;
    let cache = merge_cache(&args, &config)?;
    let default_policy = match &cache {
        Some(_) => DEFAULT_CACHE_POLICY,
        None => DEFAULT_POLICY,
    };
    let options = Options {
        backing: args.backing.or(config.backing).unwrap_or(DEFAULT_BACKING),
        policy: args
            .policy
            .or(config.policy)
            .unwrap_or_else(|| default_policy.to_owned()),
        id: args.id.or(id),
        queues: args.queues.or(config.queues).unwrap_or(DEFAULT_QUEUES),
        depth: args.depth.or(config.depth).unwrap_or(DEFAULT_DEPTH),
        read_only: args.read_only || config.read_only.unwrap_or(false),
        recovery: args.recovery.or(config.recovery).unwrap_or_default(),
        allow_lossy: args.allow_lossy || config.allow_lossy.unwrap_or(false),
        cache,
    };
    // The command line's own values were checked by clap; these may come from the file.
    check_range("queues", options.queues, UBLK_MAX_NR_QUEUES)?;
    check_range("depth", options.depth, UBLK_MAX_QUEUE_DEPTH)?;
    if matches!(options.backing, Spec::Memory(_)) && options.recovery != Recovery::None {
        return Err(anyhow!(Usage(ServeError::Forgetful.to_string())));
    }
    absolute(options)
}

/// The cache's options, if there is to be one.
fn merge_cache(args: &Args, config: &Config) -> anyhow::Result<Option<CacheOptions>> {
    let Some(device) = args.cache.clone().or_else(|| config.cache.clone()) else {
        let stray = [
            (
                args.cache_block.is_some() || config.cache_block.is_some(),
                "cache-block",
            ),
            (
                args.cache_mode.is_some() || config.cache_mode.is_some(),
                "cache-mode",
            ),
            (
                args.cache_eviction.is_some() || config.cache_eviction.is_some(),
                "cache-eviction",
            ),
            (
                args.promote_limit.is_some() || config.promote_limit.is_some(),
                "promote-limit",
            ),
            (args.cache_reset, "cache-reset"),
        ];
        return match stray.iter().find(|(is_there, _)| *is_there) {
            Some((_, name)) => Err(anyhow!(Usage(format!(
                "{name} is about a cache, and there is none: name its device by --cache"
            )))),
            None => Ok(None),
        };
    };
    let default = CacheOptions::on(device);
    Ok(Some(CacheOptions {
        block: args.cache_block.or(config.cache_block).unwrap_or(default.block),
        mode: args.cache_mode.or(config.cache_mode).unwrap_or(default.mode),
        eviction: args
            .cache_eviction
            .or(config.cache_eviction)
            .unwrap_or(default.eviction),
        promote_limit: args.promote_limit.or(config.promote_limit),
        reset: args.cache_reset,
        ..default
    }))
}

/// A cache block's size.
pub(super) fn parse_cache_block(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    let block = u32::try_from(bytes).ok();
    let block = block.filter(|bytes| bytes.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(bytes));
    block.ok_or_else(|| format!("{text} is not the size of a cache block: give a power of two from 4K to 1M"))
}

fn device_id(number: u32) -> anyhow::Result<DeviceId> {
    DeviceId::new(number).ok_or_else(|| anyhow!(Usage(format!("id is {number}: give 0 to 1048575"))))
}

fn check_range(name: &str, value: u16, most: u16) -> anyhow::Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(anyhow!(Usage(format!("{name} is {value}: give 1 to {most}"))))
}

/// The server and later commands have other working directories.
fn absolute(mut options: Options) -> anyhow::Result<Options> {
    let cache = options.cache.as_mut().map(|cache| &mut cache.device);
    for spec in [Some(&mut options.backing), cache].into_iter().flatten() {
        if let Spec::Path(path) = spec {
            *path =
                std::path::absolute(&*path).with_context(|| format!("cannot resolve {}", path.display()))?;
        }
    }
    options.policy = super::policy::absolute(&options.policy)?;
    Ok(options)
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
