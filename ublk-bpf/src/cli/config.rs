//! The file that `run --config` reads: the options of `run` by their names, in TOML.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde::{Deserialize, Deserializer, de::Error};

use super::error::Usage;
use crate::cache::Mode;
use crate::cache::evict::Algorithm;
use crate::control::Recovery;
use crate::target::{Spec, parse_size};

/// The keys. What is not there is left to the command line and the defaults.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Config {
    #[serde(default, deserialize_with = "spec")]
    pub(super) backing: Option<Spec>,
    pub(super) policy: Option<String>,
    pub(super) id: Option<u32>,
    pub(super) queues: Option<u16>,
    pub(super) depth: Option<u16>,
    pub(super) read_only: Option<bool>,
    pub(super) daemon: Option<bool>,
    pub(super) recovery: Option<Recovery>,
    pub(super) allow_lossy: Option<bool>,
    #[serde(default, deserialize_with = "spec")]
    pub(super) cache: Option<Spec>,
    #[serde(default, deserialize_with = "cache_block")]
    pub(super) cache_block: Option<u32>,
    pub(super) cache_mode: Option<Mode>,
    pub(super) cache_eviction: Option<Algorithm>,
    #[serde(default, deserialize_with = "size")]
    pub(super) promote_limit: Option<u64>,
}

impl Config {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        Self::parse(&text).map_err(|what| anyhow!(Usage(format!("configuration {}: {what}", path.display()))))
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            format!("line {line}: {}", error.message().replace('\n', ", "))
        })
    }
}

fn spec<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Spec>, D::Error> {
    String::deserialize(deserializer)?
        .parse()
        .map(Some)
        .map_err(Error::custom)
}

fn cache_block<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    super::run::parse_cache_block(&text)
        .map(Some)
        .map_err(Error::custom)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size(&text).map(Some).map_err(Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_options_names() {
        let config =
            Config::parse("backing = \"mem:64M\"\nread-only = true\nrecovery = \"reissue\"\n").unwrap();
        assert_eq!(config.backing, Some(Spec::Memory(64 << 20)));
        assert_eq!(config.read_only, Some(true));
        assert_eq!(config.recovery, Some(Recovery::Reissue));
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, words) in [
            ("queues = 1\ncaches = \"x\"\n", "line 2: unknown field `caches`"),
            (
                "cache-block = \"5K\"",
                "line 1: 5K is not the size of a cache block",
            ),
            ("cache-mode = \"write-back\"", "line 1: unknown variant"),
            ("backing = \"mem:1X\"", "line 1: not a size"),
            ("depth = 70000", "line 1: invalid value"),
            ("queues = ", "line 1: "),
        ] {
            let what = Config::parse(text).unwrap_err();
            assert!(what.contains(words), "{text}: {what}");
            assert!(!what.contains('\n'));
        }
    }
}
