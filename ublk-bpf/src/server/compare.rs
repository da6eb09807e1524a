//! The devices of a server compared with what its configuration describes now.

use serde_json::Value;

use crate::control::MIN_BATCH_DEPTH;
use crate::policy::builtin;
use crate::registry::changes::limit_in_words;
use crate::registry::message::Setting;
use crate::registry::owners;
use crate::registry::{CacheOptions, DeviceOptions, Record};
use crate::sys::process;

/// What is to become of devices.
pub(super) struct Plan {
    /// Not described any longer.
    pub(super) gone: Vec<Record>,
    /// Described still, as this.
    pub(super) kept: Vec<(Record, DeviceOptions)>,
    /// Described, and not served here.
    pub(super) new: Vec<DeviceOptions>,
}

/// Finds the described devices among those that are served: by name, by number, by backing.
pub(super) fn plan(mut running: Vec<Record>, mut described: Vec<DeviceOptions>) -> Plan {
    let mut kept = Vec::new();
    for is_described in [has_name, has_number, owners::is_on_backing, is_like] {
        let mut rest = Vec::new();
        for wanted in described {
            match running.iter().position(|record| is_described(record, &wanted)) {
                Some(at) => kept.push((running.remove(at), wanted)),
                None => rest.push(wanted),
            }
        }
        described = rest;
    }
    Plan {
        gone: running,
        kept,
        new: described,
    }
}

fn has_name(record: &Record, wanted: &DeviceOptions) -> bool {
    wanted.name.is_some() && record.name == wanted.name
}

fn has_number(record: &Record, wanted: &DeviceOptions) -> bool {
    wanted.id == Some(record.id())
}

/// Of devices without a name, a number or a backing of their own, one is as good as another.
fn is_like(record: &Record, wanted: &DeviceOptions) -> bool {
    let is_anonymous = record.name.is_none() && wanted.name.is_none() && wanted.id.is_none();
    is_anonymous && record.backing == wanted.backing
}

/// Whether a device has another policy than the wanted one. The content of a file does not count.
pub(super) fn is_policy_other(record: &Record, wanted: &DeviceOptions) -> bool {
    let is_builtin = builtin().iter().any(|known| known.name == wanted.policy);
    record.policy != wanted.policy || (!is_builtin && record.policy_memory != wanted.policy_memory)
}

/// The settings of the cache that differ from the wanted ones, in words and for the device.
pub(super) fn cache_settings(record: &Record, wanted: &DeviceOptions) -> Vec<(String, Setting)> {
    let has = record.cache.as_ref().map(|cache| &cache.options);
    let (Some(has), Some(wanted)) = (has, wanted.cache.as_ref()) else {
        return Vec::new();
    };
    let mut settings = Vec::new();
    let mut note = |is_same: bool, words: String, setting: Setting| {
        if !is_same {
            settings.push((words, setting));
        }
    };
    note(
        has.mode == wanted.mode,
        format!("cache-mode {}", wanted.mode.name()),
        Setting::CacheMode(wanted.mode),
    );
    note(
        has.eviction == wanted.eviction,
        format!("cache-eviction {}", wanted.eviction.name()),
        Setting::CacheEviction(wanted.eviction),
    );
    note(
        has.dirty_high == wanted.dirty_high,
        format!("dirty-high {}", wanted.dirty_high),
        Setting::DirtyHigh(wanted.dirty_high),
    );
    note(
        has.clean_limit == wanted.clean_limit,
        format!("clean-limit {}", limit_in_words(wanted.clean_limit)),
        Setting::CleanLimit(wanted.clean_limit),
    );
    note(
        has.promote_limit == wanted.promote_limit,
        format!("promote-limit {}", limit_in_words(wanted.promote_limit)),
        Setting::PromoteLimit(wanted.promote_limit),
    );
    settings
}

/// The options, as `run` calls them, that differ from the wanted ones and need a restart of the device.
pub(super) fn fixed_differences(record: &Record, wanted: &DeviceOptions) -> Vec<String> {
    // The kernel makes no more queues than there are processors, and batch mode needs some depth.
    let queues = wanted.queues == record.queues
        || (wanted.queues > record.queues && usize::from(record.queues) >= process::processors());
    let depth = wanted.depth.max(MIN_BATCH_DEPTH) == record.depth;
    let backing = record.backing == wanted.backing || owners::is_on_backing(record, wanted);
    let id = wanted.id.is_none_or(|id| id == record.id());
    let same = [
        ("backing", backing),
        ("id", id),
        ("name", record.name == wanted.name),
        ("queues", queues),
        ("depth", depth),
        ("logical-block", record.logical_block == wanted.logical_block),
        ("read-only", record.read_only == wanted.read_only),
        ("recovery", record.recovery == wanted.recovery),
        ("allow-lossy", record.allow_lossy == wanted.allow_lossy),
        ("observe", record.observe == wanted.observe),
    ];
    let differing = same.into_iter().filter(|(_, is_same)| !is_same);
    let mut names: Vec<String> = differing.map(|(name, _)| name.to_owned()).collect();
    let cache = record.cache.as_ref().map(|cache| &cache.options);
    names.extend(cache_differences(cache, wanted.cache.as_ref()));
    names
}

/// The fields of a cache's options that [can change](cache_settings).
const SETTINGS: [&str; 5] = ["mode", "eviction", "dirty_high", "clean_limit", "promote_limit"];

/// The same for the cache. Every field of its options but those that can change needs a restart.
fn cache_differences(has: Option<&CacheOptions>, wanted: Option<&CacheOptions>) -> Vec<String> {
    let fields = |options: &CacheOptions| match serde_json::to_value(options) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::default(),
    };
    let (Some(has), Some(wanted)) = (has, wanted) else {
        let is_same = has.is_none() == wanted.is_none();
        return if is_same {
            Vec::new()
        } else {
            vec!["cache".to_owned()]
        };
    };
    let has = fields(has);
    let differs =
        |(name, value): &(String, Value)| !SETTINGS.contains(&name.as_str()) && has.get(name) != Some(value);
    let differing = fields(wanted).into_iter().filter(differs);
    differing
        .map(|(name, _)| match name.as_str() {
            "device" => "cache".to_owned(),
            name => format!("cache-{}", name.replace('_', "-")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Spec};
    use crate::control::{DeviceId, DeviceInfo, Recovery};
    use crate::policy::{DEFAULT_POLICY, DEFAULT_POLICY_MEMORY, Observe};
    use crate::registry::Scheduler;
    use crate::registry::record::CacheRecord;

    fn options(name: Option<&str>, bytes: u64) -> DeviceOptions {
        DeviceOptions {
            backing: Spec::Memory(bytes),
            policy: DEFAULT_POLICY.to_owned(),
            policy_memory: DEFAULT_POLICY_MEMORY,
            id: None,
            name: name.map(|name| name.parse().unwrap()),
            queues: 1,
            depth: 128,
            logical_block: None,
            read_only: false,
            scheduler: Scheduler::default(),
            recovery: Recovery::None,
            allow_lossy: false,
            observe: Observe::default(),
            cache: None,
            abandon_dirty: false,
        }
    }

    fn record(id: u32, options: &DeviceOptions) -> Record {
        let info = DeviceInfo::dead(DeviceId::new(id).unwrap(), options.queues, options.depth);
        let backing = Backend::open(&options.backing, false).unwrap();
        Record::new(&info, options, 1 << 11, &backing, None)
    }

    #[test]
    fn devices_are_found_by_name_number_and_backing() {
        let (one, two) = (options(Some("one"), 1 << 20), options(Some("two"), 1 << 21));
        let (plain, other) = (options(None, 1 << 22), options(None, 1 << 23));
        let running = [&one, &two, &plain, &other];
        let running: Vec<Record> = running
            .into_iter()
            .zip(0..)
            .map(|(of, id)| record(id, of))
            .collect();
        let numbered = DeviceOptions {
            id: DeviceId::new(3),
            backing: Spec::Memory(1 << 24),
            ..plain.clone()
        };
        let larger = options(Some("two"), 1 << 25);
        let new = options(Some("three"), 1 << 20);
        let described = vec![new.clone(), larger, numbered, plain];
        let plan = plan(running, described);
        let ids = |records: &[Record]| records.iter().map(|one| one.id().number()).collect::<Vec<_>>();
        assert_eq!(ids(&plan.gone), [0]);
        assert_eq!(plan.new, [new]);
        let kept: Vec<_> = plan
            .kept
            .iter()
            .map(|(record, wanted)| (record.id().number(), fixed_differences(record, wanted)))
            .collect();
        let backing = || vec!["backing".to_owned()];
        assert_eq!(kept, [(1, backing()), (3, backing()), (2, Vec::new())]);
    }

    #[test]
    fn what_needs_a_restart_is_named_as_run_names_it() {
        let made = options(None, 1 << 20);
        let cached = |block| {
            Some(CacheOptions {
                block,
                promote_limit: Some(1),
                ..CacheOptions::on(Spec::Memory(1 << 20))
            })
        };
        let wanted = DeviceOptions {
            depth: 64,
            read_only: true,
            recovery: Recovery::Reissue,
            policy: "sparse".to_owned(),
            cache: cached(4096),
            ..made.clone()
        };
        let record = record(0, &made);
        let names = ["depth", "read-only", "recovery", "cache"];
        assert_eq!(fixed_differences(&record, &wanted), names);
        assert!(is_policy_other(&record, &wanted) && !is_policy_other(&record, &made));
        let (has, wanted) = (cached(8192), cached(4096));
        assert_eq!(cache_differences(has.as_ref(), wanted.as_ref()), ["cache-block"]);
        let unlimited = has.clone().map(|has| CacheOptions {
            promote_limit: None,
            ..has
        });
        assert!(cache_differences(has.as_ref(), unlimited.as_ref()).is_empty());
        let with = |cache: Option<CacheOptions>| DeviceOptions {
            cache,
            ..made.clone()
        };
        let mut of_device = self::record(0, &with(None));
        of_device.cache = has.map(|options| CacheRecord {
            options,
            identity: String::new(),
            storage: None,
            slots: 1,
            map_slots: None,
            writes_back: false,
            detached: None,
            is_attached_anew: false,
        });
        let changes = cache_settings(&of_device, &with(unlimited));
        let limit = ("promote-limit none".to_owned(), Setting::PromoteLimit(None));
        assert_eq!(changes, [limit]);
        // Fewer than asked for, on a machine with few processors.
        let many = DeviceOptions {
            queues: u16::MAX,
            ..made.clone()
        };
        let all = process::processors().try_into().unwrap();
        let made = DeviceOptions { queues: all, ..made };
        assert!(fixed_differences(&self::record(0, &made), &many).is_empty());
    }
}
