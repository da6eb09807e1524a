//! The devices that `run` is asked for: the command line overrides a device's table, which overrides the shared names.

use std::mem::take;

use anyhow::{Context, anyhow};

use super::config::{Scope, Settings};
use super::error::Usage;
use crate::backend::Spec;
use crate::control::Recovery;
use crate::path_text::ShowPath as _;
use crate::policy::{Builtin, DEFAULT_POLICY, DEFAULT_POLICY_MEMORY, PolicyError, builtin};
use crate::registry::{CacheOptions, DeviceOptions};
use crate::server::ServeError;

/// The defaults of a device.
const DEFAULT_BACKING: Spec = Spec::Memory(1 << 30);
const DEFAULT_QUEUES: u16 = 1;
const DEFAULT_DEPTH: u16 = 128;
/// The policy of a device with a cache: without one that promotes, nothing would ever be in it.
pub(super) const DEFAULT_CACHE_POLICY: &str = "auto";

/// The options of every device, in the file's order. A file without `[[device]]` describes one.
pub(super) fn devices(line: Settings, mut file: Settings) -> anyhow::Result<Vec<DeviceOptions>> {
    let tables = take(&mut file.device);
    let of = tables.len();
    if of == 0 {
        return Ok(vec![options(line.or(file))?]);
    }
    if let Some(name) = line.first_of_a_device().filter(|_| of > 1) {
        return Err(wrong(format!(
            "--{name} applies to one device, and the configuration has {of}: set it in the file, or run that device alone"
        )));
    }
    if let Some(name) = file.first_of(Scope::Cache)
        && line.cache.is_none()
        && tables.iter().all(|table| table.cache.is_none())
    {
        return Err(stray(&name));
    }
    let merge = |(index, table)| {
        let said = line.clone().or(table);
        let has_cache = said.cache.is_some();
        let shared = file.clone();
        let shared = if has_cache {
            shared
        } else {
            shared.without(Scope::Cache)
        };
        options(said.or(shared)).map_err(|error| match error.downcast::<Usage>() {
            Ok(Usage(what)) => wrong(format!("device {}: {what}", index + 1)),
            Err(error) => error.context(format!("device {}", index + 1)),
        })
    };
    tables.into_iter().enumerate().map(merge).collect()
}

/// A device's options, with defaults for those not given.
fn options(said: Settings) -> anyhow::Result<DeviceOptions> {
    let cache = cache(&said)?;
    let default_policy = match &cache {
        Some(_) => DEFAULT_CACHE_POLICY,
        None => DEFAULT_POLICY,
    };
    let options = DeviceOptions {
        backing: said.backing.unwrap_or(DEFAULT_BACKING),
        policy: super::policy::absolute(&said.policy.unwrap_or_else(|| default_policy.into()))?,
        policy_memory: said.policy_memory.unwrap_or(DEFAULT_POLICY_MEMORY),
        id: said.id,
        name: said.name,
        queues: said.queues.unwrap_or(DEFAULT_QUEUES),
        depth: said.depth.unwrap_or(DEFAULT_DEPTH),
        logical_block: said.logical_block,
        read_only: said.read_only.unwrap_or(false),
        scheduler: said.scheduler.unwrap_or_default(),
        recovery: said.recovery.unwrap_or_default(),
        allow_lossy: said.allow_lossy.unwrap_or(false),
        observe: said.observe.unwrap_or_default(),
        abandon_dirty: said.abandon_dirty.unwrap_or(false),
        cache,
    };
    if matches!(options.backing, Spec::Memory(_)) && options.recovery != Recovery::None {
        return Err(wrong(ServeError::Forgetful.to_string()));
    }
    let needs_cache = |known: &Builtin| known.needs_cache && known.name == options.policy;
    if options.cache.is_none() && builtin().iter().any(needs_cache) {
        return Err(wrong(PolicyError::NeedsCache(options.policy).to_string()));
    }
    absolute(options)
}

/// The options of the cache, if one is wanted.
fn cache(said: &Settings) -> anyhow::Result<Option<CacheOptions>> {
    let Some(device) = said.cache.clone() else {
        return said
            .first_of(Scope::Cache)
            .map_or(Ok(None), |name| Err(stray(&name)));
    };
    let default = CacheOptions::on(device);
    Ok(Some(CacheOptions {
        block: said.cache_block.unwrap_or(default.block),
        mode: said.cache_mode.unwrap_or(default.mode),
        eviction: said.cache_eviction.unwrap_or(default.eviction),
        promote_limit: said.promote_limit,
        dirty_high: said.dirty_high.unwrap_or(default.dirty_high),
        clean_limit: said.clean_limit,
        reset: said.cache_reset.unwrap_or(false),
        ..default
    }))
}

fn stray(name: &str) -> anyhow::Error {
    wrong(format!(
        "{name} applies to a cache, and the device has none: name one with --cache"
    ))
}

fn wrong(what: String) -> anyhow::Error {
    anyhow!(Usage(what))
}

/// The server and later commands have other working directories.
fn absolute(mut options: DeviceOptions) -> anyhow::Result<DeviceOptions> {
    let cache = options.cache.as_mut().map(|cache| &mut cache.device);
    for spec in [Some(&mut options.backing), cache].into_iter().flatten() {
        if let Spec::Path(path) = spec {
            *path =
                std::path::absolute(&*path).with_context(|| format!("cannot resolve {}", path.shown()))?;
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::DeviceId;

    /// What a file of this text comes to, with nothing on the command line.
    fn of_file(text: &str) -> Vec<DeviceOptions> {
        devices(Settings::default(), toml::from_str(text).unwrap()).unwrap()
    }

    fn refusal(line: Settings, text: &str) -> String {
        let error = devices(line, toml::from_str(text).unwrap()).unwrap_err();
        assert!(error.is::<Usage>(), "{error}");
        error.to_string()
    }

    #[test]
    fn a_table_comes_before_what_all_share_before_the_default() {
        let all = of_file(
            "queues = 2\nread-only = true\npolicy = \"sparse\"\n\
             [[device]]\nbacking = \"mem:1M\"\n\
             [[device]]\nbacking = \"mem:2M\"\nqueues = 3\nread-only = false\npolicy = \"fault\"\nid = 7\n",
        );
        let short: Vec<_> = all
            .iter()
            .map(|one| {
                (
                    &one.backing,
                    one.queues,
                    one.depth,
                    one.read_only,
                    one.policy.as_str(),
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                (&Spec::Memory(1 << 20), 2, 128, true, "sparse"),
                (&Spec::Memory(2 << 20), 3, 128, false, "fault"),
            ]
        );
        assert_eq!(all[1].id.map(DeviceId::number), Some(7));
        assert_eq!(all[0].id, None);
    }

    #[test]
    fn what_is_shared_about_caches_concerns_those_that_are_there() {
        let all = of_file(
            "cache-block = \"4K\"\n[[device]]\n[[device]]\ncache = \"mem:1M\"\n\
             [[device]]\ncache = \"mem:2M\"\ncache-block = \"8K\"\npolicy = \"lru\"\n",
        );
        let blocks: Vec<_> = all
            .iter()
            .map(|one| one.cache.as_ref().map(|cache| cache.block))
            .collect();
        assert_eq!(blocks, [None, Some(4 << 10), Some(8 << 10)]);
        let policies: Vec<_> = all.iter().map(|one| one.policy.as_str()).collect();
        assert_eq!(policies, [DEFAULT_POLICY, DEFAULT_CACHE_POLICY, "lru"]);
        let none = "applies to a cache, and the device has none: name one with --cache";
        assert_eq!(
            refusal(
                Settings::default(),
                "cache-block = \"4K\"\n[[device]]\n[[device]]"
            ),
            format!("cache-block {none}")
        );
        assert_eq!(
            refusal(
                Settings::default(),
                "[[device]]\n[[device]]\npromote-limit = \"1M\""
            ),
            format!("device 2: promote-limit {none}")
        );
    }

    #[test]
    fn the_command_line_describes_one_device_or_none() {
        let line = || Settings {
            queues: Some(4),
            ..Settings::default()
        };
        for text in ["", "queues = 2", "[[device]]", "[[device]]\nqueues = 2"] {
            let one = devices(line(), toml::from_str(text).unwrap()).unwrap();
            assert_eq!((one.len(), one[0].queues), (1, 4), "{text}");
        }
        assert_eq!(
            refusal(line(), "[[device]]\n[[device]]\n"),
            "--queues applies to one device, and the configuration has 2: set it in the file, or run that device alone"
        );
        let daemon = Settings {
            daemon: Some(true),
            ..Settings::default()
        };
        assert_eq!(
            devices(daemon, toml::from_str("[[device]]\n[[device]]\n").unwrap())
                .unwrap()
                .len(),
            2
        );
    }

    #[test]
    fn a_device_that_cannot_be_is_named() {
        assert_eq!(
            refusal(
                Settings::default(),
                "recovery = \"reissue\"\n[[device]]\nbacking = \"x\"\n[[device]]\n"
            ),
            format!("device 2: {}", ServeError::Forgetful)
        );
    }
}
