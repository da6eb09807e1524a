//! `ublk-bpf set`.

use std::ffi::OsStr;

use anyhow::anyhow;

use super::args::DeviceArg;
use super::config::Settings;
use super::error::Usage;
use super::output::print_line;
use crate::backend::parse_size;
use crate::cache::Mode;
use crate::cache::evict::Algorithm;
use crate::policy::DEFAULT_POLICY_MEMORY;
use crate::registry::ask::ask;
use crate::registry::message::{DeviceCommand, Setting};
use crate::registry::{MAX_DIRTY, Scheduler};

/// Change options of a running device
///
/// They are changed in the order given. The device keeps the new values when its server restarts, and `show` says what it
/// was made with.
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArg,
    /// An option and its new value
    #[arg(value_name = "OPTION=VALUE", required = true)]
    settings: Vec<String>,
}

const DETAILS: &str = "\
Options that can change:
  policy=NAME|FILE.o     what classifies requests, as `policy swap` does
  promote-limit=SIZE     promotion into the cache, bytes a second; `none` for no limit
  cache-mode=MODE        how writes treat cached blocks: write-through, write-around, or write-back if the device was
                         made with that; what is dirty is written back at once by another mode
  cache-eviction=NAME    which block leaves when there is no room: adaptive or clock
  dirty-high=PERCENT     with write-back: how much of the cache may be dirty, 1 to 90
  clean-limit=SIZE       with write-back: what is written back, bytes a second; `none` for no limit
  scheduler=NAME         the I/O scheduler of the disk
  verbose=N              what the server logs, of all its devices and until it ends: 0 to 3

The others need a restart: stop the device and run it again with the new value.

Examples:
  ublk-bpf set 0 promote-limit=20M
  ublk-bpf set data policy=scan-resistant scheduler=mq-deadline";

/// What is to change.
enum Change<'a> {
    /// The policy, which needs no server.
    Policy(&'a OsStr),
    /// What the server changes.
    Setting(Setting),
}

/// Changes one option after the other. All are parsed before the first is changed.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let id = args.device.id;
    let changes = args.settings.iter().map(|text| parse(text));
    let changes = changes.collect::<Result<Vec<_>, _>>();
    for change in changes.map_err(|why| anyhow!(Usage(why)))? {
        match change {
            Change::Policy(policy) => {
                let (name, verified) = super::policy::swap(args.device, policy, DEFAULT_POLICY_MEMORY)?;
                super::policy::say(args.device, &format!("policy {name}"), verified)?;
            }
            Change::Setting(setting) => {
                // None takes so long that it would report progress.
                let said = ask(id, DeviceCommand::Set(setting), |_| {})?;
                if !said.is_empty() {
                    print_line(said)?;
                }
            }
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Change<'_>, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text} is no setting: give OPTION=VALUE"))?;
    Ok(Change::Setting(match name {
        "policy" => return Ok(Change::Policy(value.as_ref())),
        "promote-limit" => Setting::PromoteLimit(limit(name, value)?),
        "cache-mode" => Setting::CacheMode(mode(value)?),
        "cache-eviction" => Setting::CacheEviction(eviction(value)?),
        "dirty-high" => Setting::DirtyHigh(percent(value)?),
        "clean-limit" => Setting::CleanLimit(limit(name, value)?),
        "scheduler" => value.parse::<Scheduler>().map(Setting::Scheduler)?,
        "verbose" => verbosity(value)?,
        _ => return Err(refusal(name)),
    }))
}

/// Bytes a second, or none.
fn limit(name: &str, value: &str) -> Result<Option<u64>, String> {
    if value == "none" {
        return Ok(None);
    }
    let size = parse_size(value);
    size.map(Some).map_err(|error| format!("{name}: {error}"))
}

fn mode(value: &str) -> Result<Mode, String> {
    let all = [Mode::WriteThrough, Mode::WriteAround, Mode::WriteBack];
    let mode = all.into_iter().find(|mode| mode.name() == value);
    mode.ok_or_else(|| format!("cache-mode is {value}: give write-through, write-around or write-back"))
}

fn eviction(value: &str) -> Result<Algorithm, String> {
    let algorithm = Algorithm::ALL.into_iter().find(|of| of.name() == value);
    algorithm.ok_or_else(|| format!("cache-eviction is {value}: give adaptive or clock"))
}

fn percent(value: &str) -> Result<u8, String> {
    let percent = value.parse().ok().filter(|it| (1..=MAX_DIRTY).contains(it));
    percent.ok_or_else(|| format!("dirty-high is {value}: give 1 to {MAX_DIRTY}"))
}

fn verbosity(value: &str) -> Result<Setting, String> {
    let level = value.parse().ok().filter(|level| (0..=3).contains(level));
    level
        .map(Setting::Verbose)
        .ok_or_else(|| format!("verbose is {value}: give 0 to 3"))
}

/// Why an option cannot change.
fn refusal(name: &str) -> String {
    let is_option = Settings::arguments_of_devices().any(|of| of.replace('_', "-") == name);
    if is_option {
        format!(
            "{name} needs a restart: stop the device with `ublk-bpf stop ID`, and run it with the new value"
        )
    } else {
        format!("there is no option {name}: `ublk-bpf set --help` lists those that can change")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_change_is_refused_in_words() {
        for (text, words) in [
            ("depth", "depth is no setting: give OPTION=VALUE"),
            ("depth=8", "depth needs a restart: stop the device"),
            ("read-only=true", "read-only needs a restart"),
            ("cache=/dev/sda", "cache needs a restart"),
            ("daemon=true", "there is no option daemon"),
            ("x=y", "there is no option x"),
            ("promote-limit=1X", "promote-limit: not a size"),
            ("clean-limit=x", "clean-limit: not a size"),
            (
                "cache-mode=back",
                "cache-mode is back: give write-through, write-around or write-back",
            ),
            (
                "cache-eviction=lru",
                "cache-eviction is lru: give adaptive or clock",
            ),
            ("dirty-high=91", "dirty-high is 91: give 1 to 90"),
            ("verbose=4", "verbose is 4: give 0 to 3"),
            ("scheduler=a b", "not the name of an I/O scheduler"),
        ] {
            let Err(why) = parse(text) else {
                panic!("{text} is taken")
            };
            assert!(why.contains(words), "{text}: {why}");
        }
    }

    #[test]
    fn a_limit_may_be_none() {
        let parsed = |text| match parse(text) {
            Ok(Change::Setting(Setting::PromoteLimit(limit))) => limit,
            _ => panic!("{text}"),
        };
        assert_eq!(parsed("promote-limit=none"), None);
        assert_eq!(parsed("promote-limit=2K"), Some(2048));
    }
}
