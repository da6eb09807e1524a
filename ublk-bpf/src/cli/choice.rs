//! Options whose value is one of a few words. The words are those of the type's serde form, so that the command line
//! and the configuration file cannot differ. This file adds the help texts.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde::de::value::Error;
use serde::de::{DeserializeOwned, IntoDeserializer};

use crate::cache::Mode;
use crate::cache::evict::Algorithm;
use crate::control::Recovery;
use crate::policy::Observe;
use crate::replay::read::TraceFormat;

fn choice<T>(values: impl IntoIterator<Item = PossibleValue>) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(values)
        .try_map(|word| -> Result<T, Error> { T::deserialize(word.as_str().into_deserializer()) })
}

fn value(name: &'static str, help: &'static str) -> PossibleValue {
    PossibleValue::new(name).help(help)
}

/// Values of `--recovery`.
pub(super) fn recovery() -> impl TypedValueParser<Value = Recovery> {
    choice([
        value("none", "The device is removed with its server"),
        value(
            "reissue",
            "The device waits for a new server: requests in flight are reissued, new ones wait",
        ),
        value(
            "fail-in-flight",
            "The device waits for a new server: requests in flight fail, new ones wait (`fail` in earlier versions)",
        )
        .alias("fail"),
        value(
            "fail-all",
            "The device waits for a new server: requests in flight fail, and new ones fail until it starts",
        ),
    ])
}

/// Values of `--observe`.
pub(super) fn observe() -> impl TypedValueParser<Value = Observe> {
    choice([
        value("off", "Nothing: `stats` has only the server's own counters"),
        value(
            "counters",
            "The decisions of the policy, by operation, verdict and reason",
        ),
        value(
            "full",
            "These, and histograms of latency and size, which `stats`, --metrics and bpftool show",
        ),
    ])
}

/// Values of `--cache-mode`.
pub(super) fn cache_mode() -> impl TypedValueParser<Value = Mode> {
    choice([
        value(
            "write-through",
            "The block is updated and stays cached: the data is copied once and written to both devices from the copy",
        ),
        value(
            "write-around",
            "The block is evicted: the data is written to the backing only, without a copy",
        ),
        value(
            "write-back",
            "The data is written to the cache only and to the backing later; a lost cache then loses data",
        ),
    ])
}

/// Values of `--cache-eviction`.
pub(super) fn cache_eviction() -> impl TypedValueParser<Value = Algorithm> {
    choice([
        value(
            "clock",
            "CLOCK: a hand visits the blocks in turn and keeps one that was read since its last visit",
        ),
        value(
            "adaptive",
            "S3-FIFO with a memory: a block that is not read again in the small queue is evicted soon, so that a scan \
             does not displace the rest; what comes back sets that queue's length",
        )
        .alias("s3fifo"),
    ])
}

/// Values of `replay --format`.
pub(super) fn trace_format() -> impl TypedValueParser<Value = TraceFormat> {
    choice([
        value("ublk-bpf", "A recording of `ublk-bpf trace`"),
        value("csv", "Comma-separated values with a line of column names"),
        value("blkparse", "The text that blkparse prints"),
        value("fio", "fio's I/O log, version 2 or 3"),
        value("oracle-general", "libCacheSim's oracleGeneral: reads of objects"),
        value("vscsi", "A vSCSI trace, version 1 or 2"),
        value(
            "records",
            "Records of 24 bytes: time in microseconds, sector, sectors, operation",
        ),
        value("pages", "Page numbers of 32 bits, big endian: a read of each"),
    ])
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    /// The words that `--x` lists, each with the value that it stands for.
    fn listed<T: DeserializeOwned + Clone + Send + Sync + 'static>(
        parser: impl TypedValueParser<Value = T>,
    ) -> Vec<(String, T)> {
        let words: Vec<_> = parser.possible_values().unwrap().collect();
        let command = Command::new("test").arg(Arg::new("x").long("x").value_parser(parser));
        let parse = |word: &str| {
            let matches = command
                .clone()
                .try_get_matches_from(["test", "--x", word])
                .unwrap();
            matches.get_one::<T>("x").unwrap().clone()
        };
        let names = words.iter().map(PossibleValue::get_name);
        names.map(|name| (name.to_owned(), parse(name))).collect()
    }

    #[test]
    fn the_words_are_those_of_the_configuration_file() {
        fn check<T>(parser: impl TypedValueParser<Value = T>, all: &[T])
        where
            T: DeserializeOwned
                + serde::Serialize
                + Clone
                + PartialEq
                + std::fmt::Debug
                + Send
                + Sync
                + 'static,
        {
            let listed = listed(parser);
            assert_eq!(listed.len(), all.len());
            for ((word, value), expected) in listed.iter().zip(all) {
                assert_eq!(value, expected);
                assert_eq!(serde_json::to_value(value).unwrap(), word.as_str());
            }
        }
        check(recovery(), &Recovery::ALL);
        check(observe(), &Observe::ALL);
        check(
            cache_mode(),
            &[Mode::WriteThrough, Mode::WriteAround, Mode::WriteBack],
        );
        check(trace_format(), &TraceFormat::ALL);
        check(cache_eviction(), &[Algorithm::Clock, Algorithm::Adaptive]);
    }

    #[test]
    fn the_name_of_an_earlier_version_is_still_taken() {
        let command = Command::new("test").arg(Arg::new("x").long("x").value_parser(recovery()));
        let matches = command.try_get_matches_from(["test", "--x", "fail"]).unwrap();
        assert_eq!(matches.get_one::<Recovery>("x"), Some(&Recovery::FailInFlight));
    }
}
