//! Many configurations at once: every trace in every block size, cache size and eviction algorithm, with every policy.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ublk_bpf_abi::{CacheState, Decision, IndexEntry, Request};

use super::counts::Counts;
use super::read::{ReadError, ReadOptions, read};
use super::reference::Reference;
use super::run::{Setup, replay};
use super::stream::{Stream, TooManyBlocks};
use super::trace::{Task, Trace};
use crate::cache::Mode;
use crate::cache::evict::Algorithm;

/// A policy that runs on this machine. Its maps belong to the thread that calls it.
pub trait NativePolicy: Sync {
    /// Empties its maps on this thread.
    fn reset(&self);
    /// The decision for a request that this task submits to a device whose cache is in this state.
    fn decide(&self, task: &Task, request: &Request, state: CacheState) -> Decision;
}

/// The size of a cache.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheSize {
    /// In bytes.
    Bytes(u64),
    /// In per cent of the blocks that the trace reads.
    Percent(f64),
}

impl CacheSize {
    /// The number of blocks, at least 1.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of the working set, or cut to the most that there can be"
    )]
    fn slots(self, stream: &Stream) -> u32 {
        let slots = match self {
            Self::Bytes(bytes) => bytes >> stream.shift,
            Self::Percent(percent) => (f64::from(stream.working_set) * percent / 100.0) as u64,
        };
        u32::try_from(slots)
            .unwrap_or(u32::MAX)
            .clamp(1, IndexEntry::MAX_SLOTS)
    }
}

/// What to replay.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ReplayJob {
    /// Files.
    pub traces: Vec<PathBuf>,
    /// What they do not say about themselves.
    pub read: ReadOptions,
    /// Replay their reads alone.
    pub reads_only: bool,
    /// Sizes of a cache block: log2 of its bytes, 12 to 20.
    pub shifts: Vec<u32>,
    /// Sizes of the cache.
    pub sizes: Vec<CacheSize>,
    /// Eviction algorithms.
    pub evictions: Vec<Algorithm>,
    /// Run LRU and Belady's algorithm too.
    pub references: bool,
    /// What a write does to the cached block that it touches.
    pub mode: Mode,
    /// Bytes a second that are promoted at most; `None`: no limit.
    pub promote_limit: Option<u64>,
    /// From the start of a promotion until its block can be hit.
    pub promote_latency: Duration,
}

/// What was replayed, and what happened.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Row {
    /// The trace's file.
    pub trace: PathBuf,
    /// Requests of the trace.
    pub requests: u64,
    /// Bytes of a cache block.
    pub block: u64,
    /// Different blocks that the trace reads.
    pub working_set: u64,
    /// The size of the cache as it was asked for.
    pub size: CacheSize,
    /// The same in blocks.
    pub slots: u64,
    /// The policy, or the reference.
    pub policy: String,
    /// The eviction algorithm; none of a reference.
    pub eviction: Option<Algorithm>,
    /// What happened.
    pub counts: Counts,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
}

/// Why a job cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A trace cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A trace is too large for the block size.
    #[error("{file}: {cause}")]
    TooManyBlocks {
        /// The trace's file.
        file: String,
        /// Why.
        #[source]
        cause: TooManyBlocks,
    },
}

/// How far a job is, in requests that were replayed, each counted once for each configuration.
#[derive(Debug, Default)]
pub struct Progress {
    /// Those that are done.
    pub done: AtomicU64,
    /// Those that are known of. It grows as traces are read.
    pub known: AtomicU64,
}

/// One configuration.
struct Run<'a> {
    size: CacheSize,
    what: What<'a>,
}

/// What serves the requests.
enum What<'a> {
    Policy(&'a str, &'a dyn NativePolicy, Algorithm),
    Reference(Reference),
}

impl ReplayJob {
    /// Does the job with these policies, on all CPUs. The rows are in the order of the job.
    ///
    /// # Errors
    /// If a trace cannot be read, or touches too many blocks.
    pub fn run(
        &self,
        policies: &[(&str, &dyn NativePolicy)],
        progress: &Progress,
    ) -> Result<Vec<Row>, JobError> {
        let mut rows = Vec::new();
        for path in &self.traces {
            let mut trace = read(path, &self.read)?;
            if self.reads_only {
                trace.keep_reads();
            }
            for &shift in &self.shifts {
                let stream = Stream::new(&trace, shift).map_err(|cause| JobError::TooManyBlocks {
                    file: path.display().to_string(),
                    cause,
                })?;
                let runs = self.runs(policies);
                progress
                    .known
                    .fetch_add(runs.len() as u64 * stream.parts.len() as u64, Ordering::Relaxed);
                rows.extend(in_parallel(&runs, |run| {
                    self.row(path, &trace, &stream, run, progress)
                }));
            }
        }
        Ok(rows)
    }

    fn runs<'a>(&self, policies: &[(&'a str, &'a dyn NativePolicy)]) -> Vec<Run<'a>> {
        let mut runs = Vec::new();
        for &size in &self.sizes {
            let run = |what| Run { size, what };
            for &(name, policy) in policies {
                let of = |&eviction| run(What::Policy(name, policy, eviction));
                runs.extend(self.evictions.iter().map(of));
            }
            let references = Reference::ALL.into_iter().filter(|_| self.references);
            runs.extend(references.map(|reference| run(What::Reference(reference))));
        }
        runs
    }

    fn row(&self, path: &Path, trace: &Trace, stream: &Stream, run: &Run<'_>, progress: &Progress) -> Row {
        let slots = run.size.slots(stream);
        let start = Instant::now();
        let (name, eviction, counts) = match run.what {
            What::Policy(name, policy, eviction) => {
                policy.reset();
                let setup = self.setup(slots, eviction);
                let mut decide = |task: &Task, request: &Request, state| policy.decide(task, request, state);
                let counts = replay(trace, stream, &setup, &mut decide, &progress.done);
                (name, Some(eviction), counts)
            }
            What::Reference(reference) => {
                let counts = reference.run(trace, stream, slots);
                progress
                    .done
                    .fetch_add(stream.parts.len() as u64, Ordering::Relaxed);
                (reference.name(), None, counts)
            }
        };
        Row {
            trace: path.to_owned(),
            requests: trace.requests().len() as u64,
            block: 1 << stream.shift,
            working_set: stream.working_set.into(),
            size: run.size,
            slots: slots.into(),
            policy: name.to_owned(),
            eviction,
            counts,
            took_ns: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    fn setup(&self, slots: u32, eviction: Algorithm) -> Setup {
        Setup {
            slots,
            eviction,
            mode: self.mode,
            promote_limit: self.promote_limit,
            promote_latency: self.promote_latency,
        }
    }
}

/// Does `work` with each of the inputs, on all CPUs, and returns the results in the order of the inputs.
fn in_parallel<I: Sync, O: Send>(inputs: &[I], work: impl Fn(&I) -> O + Sync) -> Vec<O> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(inputs.len()));
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..cpus.min(inputs.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(input) = inputs.get(number) else { return };
                    let output = work(input);
                    results
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((number, output));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, output)| output).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_inputs() {
        let inputs: Vec<u32> = (0..100).collect();
        assert_eq!(
            in_parallel(&inputs, |n| n * 2),
            inputs.iter().map(|n| n * 2).collect::<Vec<_>>()
        );
        assert!(in_parallel(&[0u8; 0], |n| *n).is_empty());
    }
}
