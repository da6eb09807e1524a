//! `ublk-bpf show`.

use std::time::{SystemTime, UNIX_EPOCH};

use super::args::{DeviceArg, OutputFormat};
use super::output::print_line;
use super::table;
use crate::backend::Size;
use crate::cache::FailingRange;
use crate::control::Control;
use crate::registry::status::{self, CacheStatus, Status};
use crate::registry::{Record, users};

/// Show everything about a device
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten)]
    format: OutputFormat,
    /// Print what udev's rules ask for: UBLK_BPF_NAME=NAME, if the device has a name
    #[arg(long, conflicts_with = "json")]
    udev: bool,
}

/// Prints one device.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let id = args.device.id;
    if args.udev {
        // The record alone: udev asks while the kernel starts the device.
        let name = Record::read(id)?.name;
        return Ok(name.map_or(Ok(()), |name| print_line(format_args!("UBLK_BPF_NAME={name}")))?);
    }
    let mut status = status::of(Control::open().ok().as_ref(), id)?;
    status.ask_failing();
    let users = users::of(id);
    if args.format.json {
        let mut json = serde_json::to_value(&status)?;
        json["warnings"] = warnings(&status, &users).into();
        json["users"] = users.into();
        print_line(format_args!("{json:#}"))?;
    } else {
        table::print_facts(&facts(&status, &users))?;
    }
    Ok(())
}

fn facts(status: &Status, users: &[String]) -> Vec<(&'static str, String)> {
    let yes = |holds: bool, what: &str| if holds { what.to_owned() } else { "no".to_owned() };
    let none = || "none".to_owned();
    let backing = match status.backing.ends_with(",unfilled") {
        true => format!("{} (reads do not fill the reader's memory)", status.backing),
        false => status.backing.clone(),
    };
    let mut facts = vec![
        ("device", status.device.clone()),
        (
            "name",
            status.name.as_ref().map_or_else(none, ToString::to_string),
        ),
        ("state", status.state.name().to_owned()),
        ("size", format!("{} ({} bytes)", Size(status.size), status.size)),
        ("backing", backing),
        ("policy", status.policy.clone()),
        ("cache", cache(status)),
        ("queues", format!("{} of depth {}", status.queues, status.depth)),
        ("read-only", yes(status.read_only, "yes")),
        (
            "lossy",
            yes(
                status.allow_lossy,
                "yes: the policy may lose data and fail requests",
            ),
        ),
        (
            "recovery",
            format!(
                "{}: while the device has no server, requests {}",
                status.recovery,
                status.recovery.meanwhile()
            ),
        ),
        (
            "server",
            status.server.map_or_else(none, |pid| format!("process {pid}")),
        ),
        (
            "users",
            if users.is_empty() {
                none()
            } else {
                users.join(", ")
            },
        ),
        ("changed", changed(status)),
        ("pins", status.pins.clone()),
        ("log", status.log.clone().unwrap_or_else(none)),
    ];
    facts.extend(failing(status).map(|text| ("failing", text)));
    facts.extend(warnings(status, users).into_iter().map(|text| ("WARNING", text)));
    facts
}

/// The options that have changed, with what they were: `policy (made with passthrough)`.
fn changed(status: &Status) -> String {
    let changed = status.changed.iter();
    let changed: Vec<_> = changed
        .map(|(option, before)| format!("{option} (made with {before})"))
        .collect();
    if changed.is_empty() {
        "none".to_owned()
    } else {
        changed.join(", ")
    }
}

/// Warnings about how the device is used, and what its cache is worth.
fn warnings(status: &Status, users: &[String]) -> Vec<String> {
    swap_warning(status, users)
        .into_iter()
        .chain(status.cache.as_ref().and_then(loss_warning))
        .collect()
}

/// A cache that is warm and still a loss.
fn loss_warning(cache: &CacheStatus) -> Option<String> {
    let savings = cache.savings?;
    let size = u64::from(cache.slots) * u64::from(cache.block);
    let is_warm = savings.cache_bytes_written >= size;
    (is_warm && savings.is_loss()).then(|| {
        format!(
            "the cache costs more than it saves: {} reads of the backing added since the start; see `ublk-bpf stats`",
            savings.backing_reads_saved.unsigned_abs()
        )
    })
}

fn swap_warning(status: &Status, users: &[String]) -> Option<String> {
    let is_memory = |device: &str| device.starts_with("mem:");
    let takes_memory = is_memory(&status.backing)
        || status
            .cache
            .as_ref()
            .is_some_and(|cache| is_memory(&cache.device));
    if !(takes_memory && users.iter().any(|user| is_swap(user))) {
        return None;
    }
    Some(format!(
        "pages swapped to it stay in memory, so the machine hangs when memory runs out: run swapoff {}",
        status.device
    ))
}

/// Whether this user, in the words of [`users::of`], swaps to the device, or to a partition or device on it.
fn is_swap(user: &str) -> bool {
    user == "swap" || user.ends_with(" as swap")
}

/// The cache, in one line.
fn cache(status: &Status) -> String {
    let Some(cache) = &status.cache else {
        return "none".to_owned();
    };
    let size = Size(u64::from(cache.slots) * u64::from(cache.block));
    let mut line = format!(
        "{}: {size} in {} blocks of {}, {}",
        cache.device,
        cache.slots,
        Size(cache.block.into()),
        cache.mode.name()
    );
    if let Some(ratio) = cache.savings.and_then(|savings| savings.hit_ratio) {
        line.push_str(&format!(", {:.1} % of reads hit", ratio * 100.0));
    }
    if let Some(limit) = cache.promote_limit {
        line.push_str(&format!(", promotion limited to {} a second", Size(limit)));
    }
    if let Some(dirty) = cache.dirty.as_ref().filter(|dirty| dirty.blocks != 0) {
        line.push_str(&format!(
            "; {} dirty blocks, the oldest for {}",
            dirty.blocks,
            in_words(dirty.seconds)
        ));
    }
    if let Some(left @ 1..) = cache.unverified {
        line.push_str(&format!(
            "; {left} blocks of an earlier server are not yet verified against the backing"
        ));
    }
    if let Some(detached) = &cache.detached {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = now.as_secs().saturating_sub(detached.since);
        line.push_str(&format!("; NOT USED for {}: {}", in_words(since), detached.why));
    }
    line
}

/// The dirty ranges that cannot be written back: `64K at 1M cannot be read from the cache`.
fn failing(status: &Status) -> Option<String> {
    let ranges = &status.cache.as_ref()?.dirty.as_ref()?.failing;
    let in_words = |range: &FailingRange| {
        let device = match range.is_unreadable {
            true => "cannot be read from the cache",
            false => "cannot be written to the backing",
        };
        format!("{} at {} {device}", Size(range.bytes), Size(range.offset))
    };
    let words: Vec<_> = ranges.iter().map(in_words).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// So many seconds, in the two largest units.
fn in_words(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_found_on_partitions_and_stacked_devices_too() {
        for user in ["swap", "ublkb0p1 as swap", "dm-0 (vg-swap) as swap"] {
            assert!(is_swap(user), "{user}");
        }
        for user in [
            "a mount on /swap",
            "swapper (process 77)",
            "dm-0 (swap) mounted at /srv",
        ] {
            assert!(!is_swap(user), "{user}");
        }
    }

    #[test]
    fn time_is_told_in_two_units() {
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (7_260, "2 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(in_words(seconds), words);
        }
    }
}
