//! The metric families: names, units, descriptions and values.
//!
//! Names follow Prometheus's rules: base units, `_total` for counters. Those of the server's and the cache's counters, and
//! their descriptions, are the ones that `stats` prints.

use std::fmt;
use std::ops::RangeInclusive;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use ublk_bpf_abi::{CacheCounters, Reason, SECTOR_SIZE, ServerCounters};

use super::series::Series;
use crate::observe::{Histogram, OpDecisions, VERDICTS};
use crate::policy::Observe;

/// What every name begins with.
const PREFIX: &str = "ublk_bpf";
/// The counters of the cache that may fall.
const GAUGES: [&str; 5] = ["used", "unverified", "dirty", "dirty_seconds", "clean_rate"];
/// Latencies: from 1 us to 17 s.
const LATENCIES: Scale = Scale {
    limits: 10..=34,
    before: 0.0,
    unit: 1e9,
};
/// Sizes, from below 1 KiB to below 32 MiB: whole numbers, and a bucket of a power of two would have the power itself.
const SIZES: Scale = Scale {
    limits: 10..=25,
    before: 1.0,
    unit: 1.0,
};

/// All metrics of these devices.
pub(super) fn text(devices: &[Series]) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Devices(devices.to_vec())));
    let mut text = String::new();
    // A `String` takes everything.
    let _ = text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Devices(Vec<Series>);

impl Collector for Devices {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families {
            encoder,
            devices: &self.0,
        };
        families.about()?;
        families.decisions()?;
        families.server()?;
        families.cache()?;
        families.histograms()
    }
}

/// A name and a value of a label.
type Label<'a> = (&'static str, &'a str);

struct Families<'a, 'e> {
    encoder: DescriptorEncoder<'e>,
    devices: &'a [Series],
}

impl Families<'_, '_> {
    /// One family. `samples` adds those of a device.
    fn family(
        &mut self,
        (name, unit, kind): (&str, Option<Unit>, MetricType),
        help: &str,
        samples: impl Fn(&Series, &mut Samples<'_, '_>) -> fmt::Result,
    ) -> fmt::Result {
        let mut encoder = self.encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for device in self.devices {
            let mut of_device = Samples {
                encoder: &mut encoder,
                disk: &device.stats.disk,
            };
            samples(device, &mut of_device)?;
        }
        Ok(())
    }

    fn about(&mut self) -> fmt::Result {
        self.family(
            ("device", None, MetricType::Info),
            "What a device is.",
            |of, samples| {
                samples.info(&[
                    ("name", &of.name),
                    ("backing", &of.backing),
                    ("policy", &of.policy),
                    ("version", env!("CARGO_PKG_VERSION")),
                ])
            },
        )
    }

    fn decisions(&mut self) -> fmt::Result {
        let counter = MetricType::Counter;
        self.family(
            ("requests", None, counter),
            "Requests that were classified, by operation and verdict.",
            |of, samples| {
                let by_verdict = |op: &OpDecisions| VERDICTS.into_iter().zip(op.verdicts);
                of.counted().try_for_each(|op| {
                    by_verdict(op).try_for_each(|(verdict, count)| {
                        samples.counter(&[("op", op.op.name()), ("verdict", verdict.name())], count)
                    })
                })
            },
        )?;
        self.family(
            ("decisions", None, counter),
            "The same requests, by operation and reason of the verdict.",
            |of, samples| {
                let by_reason = |op: &OpDecisions| Reason::ALL.into_iter().zip(op.reasons);
                of.counted().try_for_each(|op| {
                    by_reason(op).try_for_each(|(reason, count)| {
                        samples.counter(&[("op", op.op.name()), ("reason", reason.name())], count)
                    })
                })
            },
        )?;
        self.family(
            ("request", Some(Unit::Bytes), counter),
            "Bytes of these requests.",
            |of, samples| {
                of.counted().try_for_each(|op| {
                    let bytes = op.sectors.wrapping_mul(SECTOR_SIZE);
                    samples.counter(&[("op", op.op.name())], bytes)
                })
            },
        )?;
        self.family(
            ("policy_codes", None, counter),
            "Decisions by the policy's own reasons.",
            |of, samples| {
                let mut codes = of.stats.codes.iter();
                codes.try_for_each(|(code, count)| samples.counter(&[("code", &code.to_string())], *count))
            },
        )?;
        self.family(
            ("classifier_skipped", None, counter),
            "Requests of any disk for which the kernel did not run the classifier, because it already ran.",
            |of, samples| samples.counter(&[], of.stats.classifier.recursion_misses),
        )
    }

    fn server(&mut self) -> fmt::Result {
        for (at, (name, help)) in ServerCounters::FIELDS.iter().enumerate() {
            self.family(
                named("server", name, MetricType::Counter).parts(),
                &plain(help),
                |of, samples| {
                    (0..)
                        .zip(&of.stats.queues)
                        .try_for_each(|(queue, counters): (u32, _)| {
                            samples.counter(&[("queue", &queue.to_string())], counters.0.values()[at])
                        })
                },
            )?;
        }
        Ok(())
    }

    /// Only of devices that have one.
    fn cache(&mut self) -> fmt::Result {
        let gauge = MetricType::Gauge;
        for (at, (name, help)) in CacheCounters::FIELDS.iter().enumerate() {
            let is_gauge = GAUGES.contains(name);
            let kind = if is_gauge { gauge } else { MetricType::Counter };
            self.family(named("cache", name, kind).parts(), &plain(help), |of, samples| {
                let value = of.stats.cache.as_ref().map(|cache| cache.0.values()[at]);
                value.map_or(Ok(()), |value| {
                    if is_gauge {
                        samples.gauge(value.cast_signed())
                    } else {
                        samples.counter(&[], value)
                    }
                })
            })?;
        }
        self.family(
            ("cache_detached", None, gauge),
            "1 if the cache device has failed and was detached.",
            |of, samples| {
                let cache = of.stats.cache.as_ref();
                cache.map_or(Ok(()), |_| samples.gauge(of.is_detached.into()))
            },
        )?;
        self.family(
            ("cache_backing_reads_saved", None, gauge),
            "Reads of the backing device that the cache saved, less those that it added.",
            |of, samples| {
                let savings = of.stats.savings.as_ref();
                savings.map_or(Ok(()), |savings| samples.gauge(savings.backing_reads_saved))
            },
        )?;
        self.family(
            ("cache_backing_saved", Some(Unit::Bytes), gauge),
            "The same in bytes.",
            |of, samples| {
                let savings = of.stats.savings.as_ref();
                savings.map_or(Ok(()), |savings| samples.gauge(savings.backing_bytes_saved))
            },
        )
    }

    /// Only of devices that run with `--observe full`.
    fn histograms(&mut self) -> fmt::Result {
        self.family(
            ("request_latency", Some(Unit::Seconds), MetricType::Histogram),
            "Time from a request's issue to its completion, by operation and verdict.",
            |of, samples| {
                let all = of.stats.histograms.iter().flat_map(|all| &all.latencies);
                all.into_iter().try_for_each(|one| {
                    let labels = [("op", one.op.name()), ("verdict", one.verdict.name())];
                    samples.histogram(&labels, &buckets(&one.ns, LATENCIES))
                })
            },
        )?;
        self.family(
            ("request_size", Some(Unit::Bytes), MetricType::Histogram),
            "Bytes of a request that has data, by operation.",
            |of, samples| {
                let all = of.stats.histograms.iter().flat_map(|all| &all.sizes);
                all.into_iter().try_for_each(|one| {
                    samples.histogram(&[("op", one.op.name())], &buckets(&one.bytes, SIZES))
                })
            },
        )?;
        self.family(
            ("histograms_skipped", None, MetricType::Counter),
            "Issues and completions of requests of any disk that the histograms' programs did not see.",
            |of, samples| {
                let all = of.stats.histograms.as_ref();
                all.map_or(Ok(()), |all| samples.counter(&[], all.skipped))
            },
        )
    }
}

impl Series {
    /// The decisions of a device that counts them.
    fn counted(&self) -> impl Iterator<Item = &OpDecisions> {
        let is_counted = self.stats.observe != Observe::Off;
        self.stats.decisions.iter().filter(move |_| is_counted)
    }
}

/// The name of a counter of the server or the cache.
struct Named {
    name: String,
    unit: Option<Unit>,
    kind: MetricType,
}

fn named(of: &str, field: &str, kind: MetricType) -> Named {
    let (field, unit) = match field.strip_suffix("_bytes") {
        Some(field) => (field, Some(Unit::Bytes)),
        None => (field, None),
    };
    let name = format!("{of}_{field}");
    Named { name, unit, kind }
}

impl Named {
    fn parts(&self) -> (&str, Option<Unit>, MetricType) {
        (&self.name, self.unit.clone(), self.kind)
    }
}

/// A doc comment on one line.
fn plain(help: &str) -> String {
    help.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Cumulative buckets are made of these by the encoder: an upper limit each, and the count below it and above the last.
struct Buckets {
    counts: Vec<(f64, u64)>,
    sum: f64,
    count: u64,
}

/// How a histogram's numbers are told.
struct Scale {
    /// The powers of two that are limits of buckets.
    limits: RangeInclusive<usize>,
    /// A bucket ends so much before its limit.
    before: f64,
    /// What was counted for one of the unit.
    unit: f64,
}

#[expect(clippy::cast_precision_loss, reason = "limits, and a sum for averages")]
fn buckets(of: &Histogram, scale: Scale) -> Buckets {
    let total = |counts: &[u64]| counts.iter().fold(0, |sum: u64, count| sum.wrapping_add(*count));
    let (first, last) = scale.limits.into_inner();
    let limit = |power: usize| ((1_u64 << power) as f64 - scale.before) / scale.unit;
    let mut counts = vec![(limit(first), total(&of.buckets[..first]))];
    counts.extend((first..last).map(|bucket| (limit(bucket + 1), of.buckets[bucket])));
    counts.push((f64::MAX, total(&of.buckets[last..])));
    Buckets {
        counts,
        sum: of.sum as f64 / scale.unit,
        count: of.count(),
    }
}

/// The samples of one device in one family.
struct Samples<'a, 'e> {
    encoder: &'a mut MetricEncoder<'e>,
    disk: &'a str,
}

impl Samples<'_, '_> {
    fn labels(&self, more: &[Label<'_>]) -> Vec<(&'static str, String)> {
        let labels = [("device", self.disk)];
        let labels = labels.iter().chain(more);
        labels.map(|(name, value)| (*name, escaped(value))).collect()
    }

    fn counter(&mut self, labels: &[Label<'_>], value: u64) -> fmt::Result {
        let labels = self.labels(labels);
        let mut encoder = self.encoder.encode_family(&labels)?;
        encoder.encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }

    fn gauge(&mut self, value: i64) -> fmt::Result {
        let labels = self.labels(&[]);
        self.encoder.encode_family(&labels)?.encode_gauge(&value)
    }

    fn info(&mut self, labels: &[Label<'_>]) -> fmt::Result {
        self.encoder.encode_info(&self.labels(labels))
    }

    fn histogram(&mut self, labels: &[Label<'_>], of: &Buckets) -> fmt::Result {
        let labels = self.labels(labels);
        let mut encoder = self.encoder.encode_family(&labels)?;
        encoder.encode_histogram::<NoLabelSet>(of.sum, of.count, &of.counts, None)
    }
}

/// A label's value as the text format wants it: the encoder writes it as it is.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::full;

    fn series(backing: &str) -> Series {
        Series {
            name: "data".to_owned(),
            backing: backing.to_owned(),
            policy: "lru".to_owned(),
            is_detached: false,
            stats: full(),
        }
    }

    #[test]
    fn a_device_has_a_line_for_each_count() {
        let text = text(&[series("/srv/a \"b\"\\\n.img")]);
        for line in [
            "# TYPE ublk_bpf_requests counter",
            "ublk_bpf_requests_total{device=\"ublkb3\",op=\"read\",verdict=\"passthrough\"} 10",
            "ublk_bpf_request_bytes_total{device=\"ublkb3\",op=\"read\"} 40960",
            "# HELP ublk_bpf_server_arrived Requests received from the kernel.",
            "ublk_bpf_server_arrived_total{device=\"ublkb3\",queue=\"0\"} 11",
            "# UNIT ublk_bpf_server_hit_bytes bytes",
            "ublk_bpf_server_hit_bytes_total{device=\"ublkb3\",queue=\"0\"} 0",
            "# TYPE ublk_bpf_cache_used gauge",
            "ublk_bpf_cache_detached{device=\"ublkb3\"} 0",
            "# UNIT ublk_bpf_request_latency_seconds seconds",
            "ublk_bpf_request_latency_seconds_bucket{le=\"+Inf\",device=\"ublkb3\",op=\"read\",verdict=\"hit\"} 4",
            "ublk_bpf_request_size_bytes_bucket{le=\"8191.0\",device=\"ublkb3\",op=\"read\"} 3",
            "ublk_bpf_request_size_bytes_sum{device=\"ublkb3\",op=\"read\"} 24576.0",
        ] {
            assert!(text.lines().any(|is| is == line), "no {line} in\n{text}");
        }
        assert!(text.contains(r#"backing="/srv/a \"b\"\\\n.img""#), "{text}");
        assert!(text.ends_with("\n# EOF\n"));
    }

    #[test]
    fn a_device_that_counts_nothing_has_no_requests() {
        let mut off = series("mem:1G");
        off.stats.observe = Observe::Off;
        let text = text(&[off]);
        assert!(!text.contains("ublk_bpf_requests_total{"), "{text}");
        assert!(text.contains("ublk_bpf_server_arrived_total{"));
    }

    #[test]
    fn buckets_are_the_limits_that_prometheus_knows() {
        let mut counts = vec![0; 40];
        (counts[3], counts[10], counts[33], counts[39]) = (1, 2, 3, 4);
        let of = Histogram {
            buckets: counts,
            sum: 2_000_000_000,
        };
        let buckets = buckets(&of, LATENCIES);
        let counted: Vec<_> = buckets.counts.iter().filter(|(_, count)| *count != 0).collect();
        let limits = [1024e-9, 2048e-9, 17.179_869_184, f64::MAX];
        let expected: Vec<(f64, u64)> = limits.into_iter().zip(1..).collect();
        assert_eq!(counted, expected.iter().collect::<Vec<_>>());
        assert!((buckets.sum - 2.0).abs() < 1e-9);
        assert_eq!(buckets.count, 10);
    }

    #[test]
    fn the_dashboard_and_the_manual_use_only_what_exists() {
        let text = text(&[series("mem:1G")]);
        let pages = [
            include_str!("../../dist/grafana.json"),
            include_str!("../../../docs/observability.md"),
        ];
        for page in pages {
            let is_inside = |char: char| char.is_ascii_alphanumeric() || char == '_';
            let names = page.split(|char| !is_inside(char));
            let names: Vec<&str> = names.filter(|word| word.starts_with("ublk_bpf_")).collect();
            assert!(names.len() > 5, "{names:?}");
            for name in names {
                let is_sample = text.lines().any(|line| {
                    let end = line.find('{').unwrap_or(0);
                    &line[..end] == name
                });
                assert!(is_sample, "{name} does not exist");
            }
        }
    }

    #[test]
    fn the_dashboard_is_json() {
        let json: serde_json::Value = serde_json::from_str(include_str!("../../dist/grafana.json")).unwrap();
        let panels = json["panels"].as_array().unwrap();
        assert!(panels.len() > 5);
        for panel in panels {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{panel}");
            let selects = |target: &serde_json::Value| target["expr"].as_str().unwrap().contains("$device");
            assert!(targets.iter().all(selects), "{panel}");
        }
    }
}
