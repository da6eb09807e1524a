//! Traces: the requests to a device and the tasks that submit them.

use crate::current::Task;
use crate::{Op, Request};

/// Sectors in a read of [`Trace::zipf`]: 64 KiB.
pub const ZIPF_SECTORS: u32 = 128;
/// Sectors in a request of [`Trace::sequential`]: 1 MiB, as from read-ahead and `dd bs=1M`.
const SEQUENTIAL_SECTORS: u32 = 2048;

/// Requests in order. Each has the task, flags and priority that were set most recently before it.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    requests: Vec<(Task, Request)>,
    task: Task,
    flags: u32,
    ioprio: u32,
}

impl Trace {
    /// A trace without requests.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Later requests come from a single-threaded process with this ID, name and cgroup.
    #[must_use]
    pub fn as_task(mut self, pid: u32, comm: &str, cgroup_id: u64) -> Self {
        self.task = Task::new(pid, comm, cgroup_id);
        self
    }

    /// Later requests have these [`request_flags`](crate::request_flags).
    #[must_use]
    pub fn with_flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    /// Later requests have this I/O priority ([`Request::ioprio`]).
    #[must_use]
    pub fn with_ioprio(mut self, class: u32, level: u32) -> Self {
        self.ioprio = class << 13 | level & 7;
        self
    }

    /// Adds a request of any kind.
    #[must_use]
    pub fn request(mut self, op: Op, sector: u64, nr_sectors: u32) -> Self {
        let request = Request {
            flags: self.flags,
            ioprio: self.ioprio,
            ..Request::new(op, sector, nr_sectors)
        };
        self.requests.push((self.task, request));
        self
    }

    /// Adds a read.
    #[must_use]
    pub fn read(self, sector: u64, nr_sectors: u32) -> Self {
        self.request(Op::Read, sector, nr_sectors)
    }

    /// Adds a write.
    #[must_use]
    pub fn write(self, sector: u64, nr_sectors: u32) -> Self {
        self.request(Op::Write, sector, nr_sectors)
    }

    /// Adds a discard.
    #[must_use]
    pub fn discard(self, sector: u64, nr_sectors: u32) -> Self {
        self.request(Op::Discard, sector, nr_sectors)
    }

    /// Adds a flush.
    #[must_use]
    pub fn flush(self) -> Self {
        self.request(Op::Flush, u64::MAX, 0)
    }

    /// Adds sequential 1 MiB reads of `sectors` sectors, starting at `sector`.
    #[must_use]
    pub fn sequential(self, sector: u64, sectors: u64) -> Self {
        self.run(Op::Read, sector, sectors)
    }

    /// Adds sequential 1 MiB writes of `sectors` sectors, starting at `sector`.
    #[must_use]
    pub fn sequential_writes(self, sector: u64, sectors: u64) -> Self {
        self.run(Op::Write, sector, sectors)
    }

    /// Adds `n` random reads of [`ZIPF_SECTORS`] each over `blocks` blocks of that size with a Zipfian distribution:
    /// the block of rank `r` is read with a probability proportional to `1 / r^theta`. Ranks are scattered over the
    /// device. The same `seed` gives the same reads.
    #[must_use]
    pub fn zipf(mut self, seed: u64, theta: f64, blocks: u32, n: usize) -> Self {
        let mut sums = Vec::new();
        let mut sum = 0.0;
        for rank in 1..=blocks {
            sum += f64::from(rank).powf(-theta);
            sums.push(sum);
        }
        let mut random = seed;
        for _ in 0..n {
            let point = unit(&mut random) * sum;
            let rank = sums.partition_point(|&sum| sum < point) as u64;
            let block = rank * SCATTER % u64::from(blocks.max(1));
            self = self.read(block * u64::from(ZIPF_SECTORS), ZIPF_SECTORS);
        }
        self
    }

    /// Appends the other trace.
    #[must_use]
    pub fn then(mut self, other: Self) -> Self {
        self.requests.extend(other.requests);
        self
    }

    /// Merges both traces, each in its order, spread evenly over the other.
    #[must_use]
    pub fn interleave(mut self, other: Self) -> Self {
        let (ours, theirs) = (self.requests.len(), other.requests.len());
        let mut other = other.requests.into_iter();
        let mut mixed = Vec::with_capacity(ours + theirs);
        for (done, request) in self.requests.drain(..).enumerate() {
            mixed.push(request);
            let due = (done + 1) * theirs / ours;
            mixed.extend(other.by_ref().take(due - done * theirs / ours));
        }
        mixed.extend(other);
        self.requests = mixed;
        self
    }

    pub(super) fn requests(&self) -> &[(Task, Request)] {
        &self.requests
    }

    fn run(mut self, op: Op, sector: u64, sectors: u64) -> Self {
        let end = sector + sectors;
        let mut at = sector;
        while at < end {
            let length = u32::try_from(end - at)
                .unwrap_or(u32::MAX)
                .min(SEQUENTIAL_SECTORS);
            self = self.request(op, at, length);
            at += u64::from(length);
        }
        self
    }
}

/// A prime: its multiples are distinct modulo any smaller number.
const SCATTER: u64 = 2_654_435_761;

/// A random number from 0 to 1 (splitmix64).
#[expect(clippy::cast_precision_loss, reason = "a double holds these 53 bits")]
fn unit(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bits = *state;
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sectors(trace: &Trace) -> Vec<u64> {
        trace
            .requests()
            .iter()
            .map(|(_, request)| request.sector)
            .collect()
    }

    #[test]
    fn traces_mix_evenly() {
        let few = Trace::new().read(1, 1).read(2, 1);
        let many = Trace::new().read(11, 1).read(12, 1).read(13, 1).read(14, 1);
        let mixed = few.clone().interleave(many.clone());
        assert_eq!(sectors(&mixed), [1, 11, 12, 2, 13, 14]);
        assert_eq!(sectors(&many.interleave(few)), [11, 12, 1, 13, 14, 2]);
    }

    #[test]
    fn zipf_is_skewed_and_repeats() {
        let trace = |seed| sectors(&Trace::new().zipf(seed, 0.99, 1000, 10_000));
        assert_eq!(trace(1), trace(1));
        assert_ne!(trace(1), trace(2));
        let first = trace(1).iter().filter(|&&sector| sector == 0).count();
        assert!(
            (1100..1600).contains(&first),
            "1 / H(1000) of 10000 is 1300: {first}"
        );
    }

    #[test]
    fn a_run_has_the_requested_length() {
        let trace = Trace::new().sequential(8, 3000);
        let lengths: Vec<u32> = trace
            .requests()
            .iter()
            .map(|(_, request)| request.nr_sectors)
            .collect();
        assert_eq!(lengths, [2048, 952]);
        assert_eq!(sectors(&trace), [8, 2056]);
    }
}
