//! Reading the pinned maps and programs.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};
use ublk_bpf_abi::{
    CacheCounters, Decisions, Latencies, Latency, Op, Reason, ServerCounters, Sizes, Verdict, map,
};

use super::shadow::shadow;
use super::{
    CacheStats, Histogram, Histograms, LatencyOf, OpDecisions, ProgramStats, SCHEMA, Savings, ServerStats,
    SizeOf, Stats, VERDICTS,
};
use crate::policy::{self, Disk, Observe, PinDir, PolicyError, chain, pin_error};
use crate::sys::bpf::{open_pinned, program_facts};

const COUNTER_WORDS: usize = ServerCounters::FIELDS.len();
const CACHE_WORDS: usize = CacheCounters::FIELDS.len();

/// Reads all counters of a disk. They change while they are read, so one sum may be some requests ahead of another.
pub fn stats(disk: &Disk) -> Result<Stats, PolicyError> {
    let pins = PinDir::open(disk)?;
    let not_classified = || PolicyError::NotClassified {
        path: pins.path().to_owned(),
    };
    let classifier = program(&pins.classifier())?.ok_or_else(not_classified)?;
    let queues = server(&pins)?;
    let mut total = ServerCounters::default();
    for queue in &queues {
        total.add(&queue.0);
    }
    let mut stats = Stats {
        schema: SCHEMA,
        disk: disk.name().to_owned(),
        observe: Observe::Off,
        classifier,
        policy: program(&pins.policy())?,
        decisions: decisions(&pins)?,
        server: ServerStats(total),
        queues,
        cache: cache(&pins)?,
        codes: codes_of(&pins.map(map::CODES))?,
        code_names: policy::reason_names(&pins.policy()),
        shadow: shadow(&pins)?,
        savings: None,
        histograms: histograms(&pins)?,
        interval: None,
        run_time: None,
    };
    stats.savings = Savings::of(&stats);
    stats.observe = match &stats.histograms {
        Some(_) => Observe::Full,
        None if policy::is_counting(&pins)? => Observe::Counters,
        None => Observe::Off,
    };
    Ok(stats)
}

/// Reads the statistics of the program that is pinned at `path`; none if there is no pin.
pub fn program(path: &Path) -> Result<Option<ProgramStats>, PolicyError> {
    let pinned = match open_pinned(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        pinned => pinned.map_err(|e| pin_error("opening", path.to_owned(), e))?,
    };
    let facts = program_facts(pinned.as_fd()).map_err(|e| pin_error("asking about", path.to_owned(), e))?;
    Ok(Some(ProgramStats {
        id: facts.id,
        recursion_misses: facts.recursion_misses,
        runs: facts.runs,
        run_time_ns: facts.run_time_ns,
        verified_instructions: facts.verified_instructions,
    }))
}

fn decisions(pins: &PinDir) -> Result<Vec<OpDecisions>, PolicyError> {
    let entries = per_op::<{ Decisions::WORDS }>(pins, map::DECISIONS)?;
    Ok(entries
        .iter()
        .map(|(op, words)| decisions_of(*op, words))
        .collect())
}

/// The decisions about an operation.
fn decisions_of(op: Op, words: &[u64; Decisions::WORDS]) -> OpDecisions {
    let of = |verdict, reason| words[Decisions::word(verdict, reason)];
    // Wrapping: other processes may have written anything to the map.
    let total = |counts: &mut dyn Iterator<Item = u64>| counts.fold(0, u64::wrapping_add);
    let verdicts =
        VERDICTS.map(|verdict| total(&mut Reason::ALL.into_iter().map(|reason| of(verdict, reason))));
    OpDecisions {
        op,
        requests: total(&mut verdicts.into_iter()),
        sectors: words[Decisions::SECTORS],
        verdicts,
        reasons: Reason::ALL
            .map(|reason| total(&mut VERDICTS.into_iter().map(|verdict| of(verdict, reason)))),
    }
}

fn server(pins: &PinDir) -> Result<Vec<ServerStats>, PolicyError> {
    let failed = |e: MapError| PolicyError::Access {
        map: map::SERVER,
        detail: chain(&e),
    };
    let map = MapData::from_pin(pins.map(map::SERVER)).map_err(failed)?;
    let entries: Array<_, [u64; COUNTER_WORDS]> = Array::try_from(Map::Array(map)).map_err(failed)?;
    let mut queues = Vec::new();
    for qid in 0..entries.len() {
        let values = entries.get(&qid, 0).map_err(failed)?;
        queues.push(ServerStats(ServerCounters::from_values(values)));
    }
    Ok(queues)
}

/// The counters of the cache, if the classifier is configured with one.
fn cache(pins: &PinDir) -> Result<Option<CacheStats>, PolicyError> {
    let failed = |e: MapError| PolicyError::Access {
        map: map::CACHE,
        detail: chain(&e),
    };
    if !policy::has_cache(pins)? {
        return Ok(None);
    }
    let map = MapData::from_pin(pins.map(map::CACHE)).map_err(failed)?;
    let map: Array<_, [u64; CACHE_WORDS]> = Array::try_from(Map::Array(map)).map_err(failed)?;
    let values = map.get(&0, 0).map_err(failed)?;
    Ok(Some(CacheStats(CacheCounters::from_values(values))))
}

/// Sums over CPUs the counts of a policy's own reasons, from the map that is pinned at `path`.
pub(super) fn codes_of(path: &Path) -> Result<BTreeMap<u8, u64>, PolicyError> {
    let failed = |e: MapError| PolicyError::Access {
        map: map::CODES,
        detail: chain(&e),
    };
    let map = MapData::from_pin(path).map_err(failed)?;
    let entries: PerCpuArray<_, u64> = PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(failed)?;
    let mut codes = BTreeMap::new();
    for code in 0..=u8::MAX {
        let cpus = entries.get(&code.into(), 0).map_err(failed)?;
        let count = cpus.iter().fold(0_u64, |sum, count| sum.wrapping_add(*count));
        if count != 0 {
            codes.insert(code, count);
        }
    }
    Ok(codes)
}

/// The histograms, if their programs are pinned.
fn histograms(pins: &PinDir) -> Result<Option<Histograms>, PolicyError> {
    let issue = program(&pins.histogram("issue"))?;
    let complete = program(&pins.histogram("complete"))?;
    let Some((issue, complete)) = issue.zip(complete) else {
        return Ok(None);
    };
    let latencies = per_op::<{ Latencies::WORDS }>(pins, map::LATENCIES)?;
    let sizes = per_op::<{ Sizes::WORDS }>(pins, map::SIZES)?;
    Ok(Some(Histograms {
        latencies: latencies
            .iter()
            .flat_map(|(op, words)| latencies_of(*op, words))
            .collect(),
        sizes: sizes
            .iter()
            .filter_map(|(op, words)| size_of_op(*op, words))
            .collect(),
        skipped: issue.recursion_misses.wrapping_add(complete.recursion_misses),
    }))
}

/// The latencies of an operation, by verdict.
fn latencies_of(op: Op, words: &[u64]) -> impl Iterator<Item = LatencyOf> {
    let verdicts = Verdict::ALL.into_iter().zip(words.chunks_exact(Latency::WORDS));
    verdicts.filter_map(move |(verdict, words)| {
        let ns = histogram(words)?;
        Some(LatencyOf { op, verdict, ns })
    })
}

fn size_of_op(op: Op, words: &[u64; Sizes::WORDS]) -> Option<SizeOf> {
    let bytes = histogram(&words[..=Sizes::BUCKETS])?;
    Some(SizeOf { op, bytes })
}

/// Buckets, and their sum in the last word; none if nothing was counted.
fn histogram(words: &[u64]) -> Option<Histogram> {
    let (sum, buckets) = words.split_last()?;
    let is_empty = buckets.iter().all(|&count| count == 0);
    (!is_empty).then(|| Histogram {
        buckets: buckets.to_vec(),
        sum: *sum,
    })
}

/// A per-CPU map with an entry for each operation, summed over CPUs word by word.
fn per_op<const WORDS: usize>(
    pins: &PinDir,
    name: &'static str,
) -> Result<Vec<(Op, [u64; WORDS])>, PolicyError> {
    let failed = |e: MapError| PolicyError::Access {
        map: name,
        detail: chain(&e),
    };
    let map = MapData::from_pin(pins.map(name)).map_err(failed)?;
    let entries: PerCpuArray<_, [u64; WORDS]> =
        PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(failed)?;
    let mut all = Vec::with_capacity(Op::COUNT);
    for op in Op::ALL {
        let cpus = entries.get(&(op as u32), 0).map_err(failed)?;
        // Wrapping: other processes may have written anything to the map.
        let sum = |at: usize| cpus.iter().fold(0u64, |sum, words| sum.wrapping_add(words[at]));
        all.push((op, std::array::from_fn(sum)));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_by_verdict_and_reason() {
        let words: [u64; Decisions::WORDS] = std::array::from_fn(|at| 2 * at as u64);
        let sum = decisions_of(Op::Write, &words);
        // Twice 0 + 1 + .. + 7 and so on, and 0 + 8 + 16 + 24 and so on.
        assert_eq!(sum.verdicts, [56, 184, 312, 440]);
        assert_eq!(sum.requests, 992);
        assert_eq!(sum.reasons, [96, 104, 112, 120, 128, 136, 144, 152]);
        assert_eq!(sum.sectors, 64);
    }
}
