//! `ublk-bpf quota`.

use anyhow::{anyhow, bail};
use clap::Subcommand;
use serde_json::json;

use super::args::DeviceArg;
use super::error::Usage;
use super::output::print_line;
use super::table;
use crate::backend::{Size, parse_size};
use crate::policy::{Disk, Limit, PinDir, QuotaMap, QuotaState};
use crate::registry::Record;

const EXAMPLES: &str = "\
Examples:
  ublk-bpf quota set 0 /system.slice/backup.service iops=1000 bandwidth=20M cache=10%
  ublk-bpf quota set 0 /system.slice/backup.service bandwidth=max
  ublk-bpf quota list 0
  ublk-bpf quota remove 0 /system.slice/backup.service

The device's policy must have quotas: the built-in `shares` has, and one of your own by `quotas!` of the SDK. A quota
lasts until the policy is swapped, the cgroup is removed or the device is stopped: to set it each time that a service
starts, its unit says ExecStartPre=+ublk-bpf quota set ...";

/// Set and list what cgroups may take of a device and its cache
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the quotas, and what the cgroups have taken
    List {
        #[command(flatten)]
        device: DeviceArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set limits of a cgroup; others that it has stay
    Set {
        #[command(flatten)]
        device: DeviceArg,
        /// The cgroup's path below /sys/fs/cgroup
        #[arg(value_name = "CGROUP")]
        cgroup: String,
        /// iops=N requests a second, bandwidth=SIZE bytes a second, cache=PERCENT% or SIZE; `max` for no limit
        #[arg(value_name = "LIMIT=VALUE", required = true)]
        limits: Vec<String>,
    },
    /// Remove the limits of a cgroup
    Remove {
        #[command(flatten)]
        device: DeviceArg,
        /// As for `set`
        #[arg(value_name = "CGROUP")]
        cgroup: String,
    },
}

/// A device's cache, if it has one.
#[derive(Clone, Copy, Debug)]
struct CacheSize {
    /// Bytes of a block.
    block: u64,
    blocks: u64,
}

/// Lists, sets or removes.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.action {
        Action::List { device, json } => list(*device, *json),
        Action::Set {
            device,
            cgroup,
            limits,
        } => set(*device, cgroup, limits),
        Action::Remove { device, cgroup } => Ok(open(*device)?.0.remove(cgroup)?),
    }
}

fn open(device: DeviceArg) -> anyhow::Result<(QuotaMap, Option<CacheSize>)> {
    let cache = Record::read(device.id)?.cache.map(|cache| CacheSize {
        block: cache.options.block.into(),
        blocks: cache.slots.into(),
    });
    let pins = PinDir::open(&Disk::ublk(device.id.number()))?;
    Ok((QuotaMap::open(&pins)?, cache))
}

fn set(device: DeviceArg, cgroup: &str, limits: &[String]) -> anyhow::Result<()> {
    let (map, cache) = open(device)?;
    let limits = limits.iter().map(|text| parse(text, cache));
    let limits = limits.collect::<Result<Vec<_>, _>>();
    let state = map.set(cgroup, &limits.map_err(|why| anyhow!(Usage(why)))?)?;
    Ok(print_line(in_words(&state, cache))?)
}

fn list(device: DeviceArg, is_json: bool) -> anyhow::Result<()> {
    let (map, cache) = open(device)?;
    let quotas = map.list()?;
    if is_json {
        let block = cache.map(|cache| cache.block);
        print_line(serde_json::to_string_pretty(
            &json!({"block": block, "quotas": quotas}),
        )?)?;
        return Ok(());
    }
    if quotas.is_empty() {
        bail!("no cgroup has a quota: `ublk-bpf quota set` sets one");
    }
    let bytes = |blocks: u64| Size(blocks * cache.map_or(0, |cache| cache.block)).to_string();
    let or_max = |limit: u64, text: String| if limit == 0 { "max".to_owned() } else { text };
    let rows: Vec<_> = quotas
        .iter()
        .map(|of| {
            vec![
                of.cgroup.clone(),
                or_max(of.iops, of.iops.to_string()),
                or_max(of.bandwidth, Size(of.bandwidth).to_string()),
                or_max(of.tenant, bytes(of.cache_blocks)),
                if of.tenant == 0 {
                    "-".to_owned()
                } else {
                    bytes(of.used_blocks)
                },
                of.delayed.to_string(),
                of.refused.to_string(),
            ]
        })
        .collect();
    let header = [
        "CGROUP",
        "IOPS",
        "BANDWIDTH",
        "CACHE",
        "USED",
        "DELAYED",
        "REFUSED",
    ];
    Ok(table::print(&header, &rows)?)
}

fn in_words(of: &QuotaState, cache: Option<CacheSize>) -> String {
    let mut limits = Vec::new();
    if of.iops != 0 {
        limits.push(format!("{} requests a second", of.iops));
    }
    if of.bandwidth != 0 {
        limits.push(format!("{} a second", Size(of.bandwidth)));
    }
    if let Some(cache) = cache.filter(|_| of.tenant != 0) {
        limits.push(format!("{} of the cache", Size(of.cache_blocks * cache.block)));
    }
    let limits = if limits.is_empty() {
        "no limit".to_owned()
    } else {
        limits.join(", ")
    };
    format!("{}: {limits}", of.cgroup)
}

fn parse(text: &str, cache: Option<CacheSize>) -> Result<Limit, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text} is no limit: give iops=N, bandwidth=SIZE or cache=SHARE"))?;
    let has_limit = value != "max";
    match name {
        "iops" => Ok(Limit::Iops(has_limit.then(|| iops(value)).transpose()?)),
        "bandwidth" => {
            let size = || parse_size(value).map_err(|error| format!("bandwidth: {error}"));
            Ok(Limit::Bandwidth(has_limit.then(size).transpose()?))
        }
        "cache" => {
            let cache = cache.ok_or("cache: the device has no cache")?;
            Ok(Limit::CacheBlocks(
                has_limit.then(|| share(value, cache)).transpose()?,
            ))
        }
        _ => Err(format!(
            "there is no limit {name}: give iops=N, bandwidth=SIZE or cache=SHARE"
        )),
    }
}

fn iops(value: &str) -> Result<u64, String> {
    let iops = value.parse().ok().filter(|iops| (1..=MAX_IOPS).contains(iops));
    iops.ok_or_else(|| format!("iops is {value}: give 1 to {MAX_IOPS}, or max"))
}

/// A request a nanosecond.
const MAX_IOPS: u64 = 1_000_000_000;

/// Blocks of the cache: a percentage of it, or a size, rounded up.
fn share(value: &str, cache: CacheSize) -> Result<u64, String> {
    let Some(percent) = value.strip_suffix('%') else {
        let size = parse_size(value).map_err(|error| format!("cache: {error}"))?;
        return Ok(size.div_ceil(cache.block));
    };
    let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent));
    let percent: u64 = percent.ok_or_else(|| format!("cache is {value}: give 1% to 100%, a size, or max"))?;
    Ok((cache.blocks * percent).div_ceil(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: CacheSize = CacheSize {
        block: 65536,
        blocks: 1001,
    };

    #[test]
    fn limits_are_parsed_or_refused_in_words() {
        let parsed = |text| parse(text, Some(CACHE));
        assert_eq!(parsed("iops=100"), Ok(Limit::Iops(Some(100))));
        assert_eq!(parsed("iops=max"), Ok(Limit::Iops(None)));
        assert_eq!(parsed("bandwidth=20M"), Ok(Limit::Bandwidth(Some(20 << 20))));
        assert_eq!(parsed("cache=10%"), Ok(Limit::CacheBlocks(Some(101))));
        assert_eq!(parsed("cache=65K"), Ok(Limit::CacheBlocks(Some(2))));
        assert_eq!(parsed("cache=max"), Ok(Limit::CacheBlocks(None)));
        for (text, words) in [
            ("iops", "iops is no limit: give iops=N"),
            ("iops=0", "iops is 0: give 1 to 1000000000, or max"),
            ("iops=-1", "iops is -1"),
            ("bandwidth=fast", "bandwidth: not a size"),
            ("cache=101%", "cache is 101%: give 1% to 100%"),
            ("cache=0%", "cache is 0%"),
            ("depth=4", "there is no limit depth"),
        ] {
            let why = parsed(text).expect_err(text);
            assert!(why.contains(words), "{text}: {why}");
        }
        assert_eq!(
            parse("cache=10%", None),
            Err("cache: the device has no cache".to_owned())
        );
    }
}
