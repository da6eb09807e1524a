//! The options of `run`, on the command line and in the TOML file of `--config`: the same names with the same
//! meaning. Each is declared once, in [`Settings`].

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, anyhow};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::value_parser;
use serde::{Deserialize, Deserializer, de::Error};

use super::choice;
use super::error::Usage;
use crate::backend::{Spec, parse_size};
use crate::cache::Mode;
use crate::cache::evict::Algorithm;
use crate::cache::{MAX_BLOCK, MIN_BLOCK};
use crate::control::{DeviceId, Recovery};
use crate::metrics::Address;
use crate::path_text::ShowPath as _;
use crate::policy::Observe;
use crate::registry::{DeviceName, MAX_DIRTY, Scheduler};
use crate::sys::uapi::{UBLK_MAX_NR_QUEUES, UBLK_MAX_QUEUE_DEPTH};

/// Declares every option of `run` that the configuration file has too, once: its type, how both read it, and its
/// [`Scope`]. From that come the merge of file and command line and the checks of what may stand where.
macro_rules! settings {
    ($($(#[$attribute:meta])+ $scope:ident $name:ident: $type:ty,)+) => {
        /// Options of `run`, from the command line or a table of the configuration file. `None`: not given.
        #[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub(super) struct Settings {
            $($(#[$attribute])+ pub(super) $name: Option<$type>,)+
            /// One table for each device; the names above the first table are defaults for all of them
            #[arg(skip)]
            #[serde(default)]
            pub(super) device: Vec<Self>,
        }

        impl Settings {
            /// What is given here, else what `other` gives.
            pub(super) fn or(self, other: Self) -> Self {
                Self { $($name: self.$name.or(other.$name),)+ device: self.device }
            }

            /// The same without the options of this scope.
            pub(super) fn without(self, scope: Scope) -> Self {
                Self { $($name: self.$name.filter(|_| Scope::$scope != scope),)+ ..self }
            }

            /// The arguments of the command line that describe a device, as clap calls them.
            pub(super) fn arguments_of_devices() -> impl Iterator<Item = &'static str> {
                let all = [$((Scope::$scope, stringify!($name)),)+];
                all.into_iter().filter_map(|(scope, name)| (scope != Scope::Process).then_some(name))
            }

            /// The scope and the name of each option that is given.
            pub(super) fn given(&self) -> impl Iterator<Item = (Scope, String)> {
                let all = [$((self.$name.is_some(), Scope::$scope, stringify!($name)),)+];
                all.into_iter()
                    .filter_map(|(is_given, scope, name)| is_given.then(|| (scope, name.replace('_', "-"))))
            }
        }
    };
}

/// What an option is about, which decides where it may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// One device alone: two devices cannot share it.
    Device,
    /// Each device, or a default for all of them.
    Shared,
    /// The cache of each device that has one.
    Cache,
    /// The process that serves the devices.
    Process,
}

settings! {
    /// Backing storage: PATH, mem:SIZE or null:SIZE (also null:SIZE,unfilled) [default: mem:1G]
    #[arg(long, value_name = "BACKING", value_parser = spec_parser())]
    #[serde(default, deserialize_with = "spec")]
    Device backing: Spec,
    /// Policy that classifies requests: a built-in name (see `policy list`) or a BPF object file
    /// [default: passthrough, or auto with a cache]
    #[arg(long, value_name = "NAME|FILE.o")]
    #[serde(default, deserialize_with = "os_text")]
    Shared policy: OsString,
    /// Memory limit for the maps of a policy loaded from a file [default: 64M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    #[serde(default, deserialize_with = "size")]
    Shared policy_memory: u64,
    /// Device number [default: the lowest free one]
    #[arg(long, value_name = "N")]
    #[serde(default, deserialize_with = "device_id")]
    Device id: DeviceId,
    /// Device name, which commands and /dev/disk/by-id/ublk-bpf-NAME know it by: a-z, 0-9, _ and -
    #[arg(long, value_parser = str::parse::<DeviceName>)]
    Device name: DeviceName,
    /// Hardware queues, each served by a thread; at most one per CPU [default: 1]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=i64::from(UBLK_MAX_NR_QUEUES)))]
    #[serde(default, deserialize_with = "queues")]
    Shared queues: u16,
    /// Queue depth: requests in flight in each queue, at least 2 in batch mode [default: 128]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=i64::from(UBLK_MAX_QUEUE_DEPTH)))]
    #[serde(default, deserialize_with = "depth")]
    Shared depth: u16,
    /// Logical block size, 512 to 4096 bytes: at least that of the backing and the cache
    /// [default: that of the backing]
    #[arg(long, value_name = "SIZE", value_parser = parse_logical_block)]
    #[serde(default, deserialize_with = "logical_block")]
    Shared logical_block: u32,
    /// I/O scheduler of the disk: a name that /sys/block/*/queue/scheduler lists, or `kernel` for the kernel's choice
    /// [default: none]
    #[arg(long, value_name = "NAME", value_parser = str::parse::<Scheduler>)]
    Shared scheduler: Scheduler,
    /// Refuse writes
    #[arg(long, num_args = 0, default_missing_value = "true")]
    Shared read_only: bool,
    /// Serve in the background; return when every device is ready
    #[arg(long, num_args = 0, default_missing_value = "true")]
    Process daemon: bool,
    /// If a device on the same backing waits for a server, recover it instead of failing; --config implies it
    #[arg(long, num_args = 0, default_missing_value = "true")]
    Process recover_waiting: bool,
    /// Serve the metrics of all devices of the process to Prometheus: PORT (of 127.0.0.1), IP:PORT, or IP:PORT,public for
    /// an address that other machines can reach
    #[arg(long, value_name = "ADDR", value_parser = str::parse::<Address>)]
    #[serde(default, deserialize_with = "address")]
    Process metrics: Address,
    /// What happens to the device when its server dies or is ended by a signal [default: none]
    #[arg(long, value_parser = choice::recovery())]
    Shared recovery: Recovery,
    /// Let the policy lose data and fail requests; without this the worst it can do is slow the device down
    #[arg(long, num_args = 0, default_missing_value = "true")]
    Shared allow_lossy: bool,
    /// What BPF programs count of the device's requests [default: counters]
    #[arg(long, value_parser = choice::observe())]
    Shared observe: Observe,
    /// Cache reads on a faster device: PATH or mem:SIZE
    #[arg(long, value_name = "CACHE", value_parser = spec_parser())]
    #[serde(default, deserialize_with = "spec")]
    Device cache: Spec,
    /// Cache block size, 4K to 1M [default: 64K]
    #[arg(long, value_name = "SIZE", value_parser = parse_cache_block)]
    #[serde(default, deserialize_with = "cache_block")]
    Cache cache_block: u32,
    /// How writes treat cached blocks [default: write-through]
    #[arg(long, value_name = "MODE", value_parser = choice::cache_mode())]
    Cache cache_mode: Mode,
    /// Eviction algorithm [default: adaptive]
    #[arg(long, value_name = "ALGORITHM", value_parser = choice::cache_eviction())]
    Cache cache_eviction: Algorithm,
    /// Limit promotion into the cache to this many bytes a second
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    #[serde(default, deserialize_with = "size")]
    Cache promote_limit: u64,
    /// Limit of what may be dirty with --cache-mode write-back, in percent of the cache; writing it back begins at half of that
    /// [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = value_parser!(u8).range(1..=i64::from(MAX_DIRTY)))]
    #[serde(default, deserialize_with = "dirty_high")]
    Cache dirty_high: u8,
    /// Limit what is written back to this many bytes a second, but for what requests wait for
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    #[serde(default, deserialize_with = "size")]
    Cache clean_limit: u64,
    /// Lose the dirty blocks of a cache that is gone, or that --cache-reset empties: the backing keeps older data
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip)]
    Device abandon_dirty: bool,
    /// Discard the present content of the cache device and start with an empty cache
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip)]
    Cache cache_reset: bool,
}

/// A configuration of a thousand devices has 100 KiB.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a file, which may be a pipe or endless.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        let what = "it is larger than 1 MiB, the limit for a configuration";
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(text)
}

impl Settings {
    /// Reads a configuration file.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = read(path).with_context(|| format!("cannot read the configuration {}", path.shown()))?;
        let wrong = |what| anyhow!(Usage(format!("configuration {}: {what}", path.shown())));
        let settings = Self::parse(&text).map_err(wrong)?;
        settings.check_tables().map_err(wrong)?;
        Ok(settings)
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            format!("line {line}: {}", error.message().replace('\n', ", "))
        })
    }

    /// The first option of this scope that is given.
    pub(super) fn first_of(&self, scope: Scope) -> Option<String> {
        self.given().find_map(|(of, name)| (of == scope).then_some(name))
    }

    /// The first option that is given and describes a device.
    pub(super) fn first_of_a_device(&self) -> Option<String> {
        self.given()
            .find_map(|(of, name)| (of != Scope::Process).then_some(name))
    }

    /// Whether every name stands where it means something.
    fn check_tables(&self) -> Result<(), String> {
        if self.device.is_empty() {
            return Ok(());
        }
        if let Some(name) = self.first_of(Scope::Device) {
            return Err(format!(
                "{name} is set above the first [[device]], which only sets defaults for all devices: move it into one of them"
            ));
        }
        for (index, table) in self.device.iter().enumerate() {
            let number = index + 1;
            if let Some(name) = table.first_of(Scope::Process) {
                return Err(format!(
                    "device {number}: {name} applies to the whole process: move it above the first [[device]]"
                ));
            }
            if !table.device.is_empty() {
                return Err(format!(
                    "device {number}: a [[device]] table cannot contain another"
                ));
            }
            let same = |other: &Self| other.id.is_some() && other.id == table.id;
            if let (Some(first), Some(id)) = (self.device[..index].iter().position(same), table.id) {
                return Err(format!(
                    "devices {} and {number} have the same id, {id}: give each its own id, or none",
                    first + 1
                ));
            }
            let same = |other: &Self| other.name.is_some() && other.name == table.name;
            if let (Some(first), Some(name)) = (self.device[..index].iter().position(same), &table.name) {
                return Err(format!(
                    "devices {} and {number} have the same name, {name}: give each its own name, or none",
                    first + 1
                ));
            }
        }
        Ok(())
    }
}

/// A cache block's size.
pub(super) fn parse_cache_block(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    let block = u32::try_from(bytes).ok();
    let block = block.filter(|bytes| bytes.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(bytes));
    block.ok_or_else(|| format!("{text} is not a cache block size: give a power of two from 4K to 1M"))
}

/// A device's logical block, in bytes.
fn parse_logical_block(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).ok().and_then(|bytes| u32::try_from(bytes).ok());
    let block = bytes.filter(|bytes| bytes.is_power_of_two() && (512..=4096).contains(bytes));
    block.ok_or_else(|| format!("{text} is not a logical block size: give 512, 1K, 2K or 4K"))
}

/// A number of bytes or a size as text.
fn logical_block<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let text = text_or_number(deserializer)?;
    parse_logical_block(&text).map(Some).map_err(Error::custom)
}

/// An address, or a port as a number.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Address>, D::Error> {
    let text = text_or_number(deserializer)?;
    text.parse().map(Some).map_err(Error::custom)
}

/// What means the same as text and as a number.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        other => format!("a value of type {}", other.type_str()),
    })
}

fn spec<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Spec>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Spec::from_user(text.as_ref()).map(Some).map_err(Error::custom)
}

/// A path or name that the command line takes as it is, whatever its bytes.
fn os_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OsString>, D::Error> {
    Ok(Some(String::deserialize(deserializer)?.into()))
}

fn spec_parser() -> impl TypedValueParser<Value = Spec> {
    OsStringValueParser::new().try_map(|text| Spec::from_user(&text))
}

fn cache_block<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_cache_block(&text).map(Some).map_err(Error::custom)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size(&text).map(Some).map_err(Error::custom)
}

fn device_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DeviceId>, D::Error> {
    let number = u32::deserialize(deserializer)?;
    let id = DeviceId::new(number);
    let wrong = || Error::custom(format!("id is {number}: give 0 to 1048575"));
    id.map(Some).ok_or_else(wrong)
}

fn queues<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    in_range(deserializer, "queues", UBLK_MAX_NR_QUEUES)
}

fn depth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    in_range(deserializer, "depth", UBLK_MAX_QUEUE_DEPTH)
}

fn dirty_high<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    in_range(deserializer, "dirty-high", MAX_DIRTY.into())
        .map(|percent| percent.and_then(|it| u8::try_from(it).ok()))
}

fn in_range<'de, D: Deserializer<'de>>(
    deserializer: D,
    name: &str,
    most: u16,
) -> Result<Option<u16>, D::Error> {
    let value = u16::deserialize(deserializer)?;
    if (1..=most).contains(&value) {
        return Ok(Some(value));
    }
    Err(Error::custom(format!("{name} is {value}: give 1 to {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_options_names() {
        let settings =
            Settings::parse("backing = \"mem:64M\"\nread-only = true\nrecovery = \"reissue\"\n").unwrap();
        assert_eq!(settings.backing, Some(Spec::Memory(64 << 20)));
        assert_eq!(settings.read_only, Some(true));
        assert_eq!(settings.recovery, Some(Recovery::Reissue));
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, words) in [
            ("queues = 1\ncaches = \"x\"\n", "line 2: unknown field `caches`"),
            ("cache-block = \"5K\"", "line 1: 5K is not a cache block size"),
            ("cache-mode = \"back\"", "line 1: unknown variant"),
            ("dirty-high = 91", "line 1: dirty-high is 91: give 1 to 90"),
            ("backing = \"mem:1X\"", "line 1: not a size"),
            ("depth = 70000", "line 1: invalid value"),
            (
                "logical-block = 8192",
                "line 1: 8192 is not a logical block size: give 512, 1K, 2K or 4K",
            ),
            (
                "scheduler = \"a b\"",
                "line 1: \"a b\" is not the name of an I/O scheduler: give none, kernel,",
            ),
            (
                "metrics = \"0.0.0.0:9464\"",
                "line 1: other machines can reach 0.0.0.0:9464",
            ),
            ("\nqueues = 0", "line 2: queues is 0: give 1 to 4096"),
            ("id = 2000000", "line 1: id is 2000000: give 0 to 1048575"),
            ("name = \"7\"", "line 1: \"7\" cannot be the name of a device"),
            ("queues = ", "line 1: "),
            (
                "[[device]]\nid = 1\n[[device]]\ndepht = 1",
                "line 4: unknown field `depht`",
            ),
        ] {
            let what = Settings::parse(text).unwrap_err();
            assert!(what.contains(words), "{text}: {what}");
            assert!(!what.contains('\n'));
        }
    }

    #[test]
    fn what_never_ends_or_nests_without_end_is_refused() {
        let zeroes = Settings::read(Path::new("/dev/zero")).unwrap_err();
        assert!(
            format!("{zeroes:#}").ends_with("it is larger than 1 MiB, the limit for a configuration"),
            "{zeroes:#}"
        );
        let nested = format!("backing = {}", "[".repeat(200_000));
        assert!(Settings::parse(&nested).unwrap_err().starts_with("line 1: "));
        let tables = format!("[{}]", "a.".repeat(200_000) + "a");
        assert!(Settings::parse(&tables).unwrap_err().starts_with("line 1: "));
    }

    #[test]
    fn names_stand_where_they_mean_something() {
        for (text, words) in [
            (
                "backing = \"x\"\n[[device]]",
                "backing is set above the first [[device]]",
            ),
            ("id = 1\n[[device]]", "id is set above the first [[device]]"),
            (
                "cache = \"x\"\n[[device]]",
                "cache is set above the first [[device]]",
            ),
            (
                "[[device]]\n[[device]]\ndaemon = true",
                "device 2: daemon applies to the whole process",
            ),
            (
                "[[device]]\nrecover-waiting = true",
                "device 1: recover-waiting applies to the whole process",
            ),
            (
                "[[device]]\n[[device.device]]",
                "device 1: a [[device]] table cannot",
            ),
            (
                "[[device]]\nid = 1\n[[device]]\n[[device]]\nid = 1",
                "devices 1 and 3 have the same id, 1",
            ),
            (
                "[[device]]\nname = \"a\"\n[[device]]\nname = \"a\"",
                "devices 1 and 2 have the same name, a",
            ),
        ] {
            let what = Settings::parse(text).unwrap().check_tables().unwrap_err();
            assert!(what.starts_with(words), "{text}: {what}");
        }
        let good = "queues = 2\ndaemon = true\ncache-block = \"4K\"\n[[device]]\nid = 0\n[[device]]\nid = 1";
        assert_eq!(Settings::parse(good).unwrap().check_tables(), Ok(()));
    }
}
