//! A trace in memory.

use std::collections::HashMap;

use ublk_bpf_abi::Op;

/// A task that submits requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Task {
    /// Thread ID.
    pub pid: u32,
    /// Process ID.
    pub tgid: u32,
    /// Name of the thread, zero padded.
    pub comm: [u8; 16],
    /// ID of its cgroup: the inode number of the cgroup's directory.
    pub cgroup_id: u64,
}

impl Task {
    /// A single-threaded process. Truncates `comm` to 15 bytes, as the kernel does.
    #[must_use]
    pub fn new(pid: u32, comm: &str, cgroup_id: u64) -> Self {
        let mut name = [0; 16];
        for (to, from) in name[..15].iter_mut().zip(comm.bytes()) {
            *to = from;
        }
        Self {
            pid,
            tgid: pid,
            comm: name,
            cgroup_id,
        }
    }
}

/// A request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRequest {
    /// When it was issued, in nanoseconds since the first one. Never less than the time of the request before it.
    pub time_ns: u64,
    /// First sector.
    pub sector: u64,
    /// Length in sectors: 0 only for a flush.
    pub nr_sectors: u32,
    /// The task, as an index of [`Trace::tasks`].
    pub task: u32,
    /// Bits of [`request_flags`](ublk_bpf_abi::request_flags) that come from the kernel.
    pub flags: u32,
    /// I/O priority of the submitter.
    pub ioprio: u16,
    /// The operation.
    pub op: Op,
}

impl TraceRequest {
    /// A request at time 0 of task 0.
    #[must_use]
    pub const fn new(op: Op, sector: u64, nr_sectors: u32) -> Self {
        Self {
            time_ns: 0,
            sector,
            nr_sectors,
            task: 0,
            flags: 0,
            ioprio: 0,
            op,
        }
    }

    /// Whether its data is split at cache block boundaries: a read or a write.
    #[must_use]
    pub const fn has_data(&self) -> bool {
        matches!(self.op, Op::Read | Op::Write)
    }

    /// The sector after the last one.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.sector + self.nr_sectors as u64
    }
}

/// The sector after the last one that a device can have: a file's size is less than 2^63 bytes.
pub(super) const MAX_SECTORS: u64 = 1 << 54;

/// The latest time: 146 years, so that sums of two times are times too.
const MAX_TIME_NS: u64 = 1 << 62;

/// Requests in order.
#[derive(Clone, Debug)]
pub struct Trace {
    requests: Vec<TraceRequest>,
    tasks: Vec<Task>,
    numbers: HashMap<Task, u32>,
}

impl Default for Trace {
    fn default() -> Self {
        let unknown = Task::default();
        Self {
            requests: Vec::new(),
            tasks: vec![unknown],
            numbers: HashMap::from([(unknown, 0)]),
        }
    }
}

impl Trace {
    /// The requests.
    #[must_use]
    pub fn requests(&self) -> &[TraceRequest] {
        &self.requests
    }

    /// The tasks that submitted them. The first one is [`Task::default`], for requests of which nothing is known.
    #[must_use]
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The number of a task, for [`TraceRequest::task`].
    pub fn task(&mut self, task: Task) -> u32 {
        let next = u32::try_from(self.tasks.len()).unwrap_or(0);
        *self.numbers.entry(task).or_insert_with(|| {
            self.tasks.push(task);
            next
        })
    }

    /// Adds a request.
    ///
    /// # Errors
    /// A read or write without sectors, or a request beyond the end of any device or 146 years. The error says what was
    /// found, to follow `wanted ..., found`.
    pub fn push(&mut self, request: TraceRequest) -> Result<(), String> {
        if request.has_data() && request.nr_sectors == 0 {
            return Err(format!("a {} of 0 sectors", request.op.name()));
        }
        let end = request.sector.checked_add(request.nr_sectors.into());
        if end.is_none_or(|end| end > MAX_SECTORS) {
            return Err(format!("sector {}", request.sector));
        }
        if request.time_ns > MAX_TIME_NS {
            return Err(format!("a time of {} ns", request.time_ns));
        }
        self.requests.push(request);
        Ok(())
    }

    /// Keeps the reads alone.
    pub fn keep_reads(&mut self) {
        self.requests.retain(|request| request.op == Op::Read);
    }

    /// Sets the times of a trace that has none: `rate` requests a second.
    pub(super) fn set_rate(&mut self, rate: u64) {
        let interval = NANOS / rate.max(1);
        for (number, request) in (0..).zip(&mut self.requests) {
            request.time_ns = number * interval;
        }
    }

    /// Makes the times count from 0 and never go back, and spreads requests of the same time over the clock's step.
    ///
    /// The step is the least difference of two times. A trace in whole seconds would otherwise have a burst of hundreds
    /// of requests each second.
    pub(super) fn set_times(&mut self) {
        let Some(start) = self.requests.iter().map(|request| request.time_ns).min() else {
            return;
        };
        let mut latest = 0;
        let mut step = u64::MAX;
        for request in &mut self.requests {
            let time = latest.max(request.time_ns - start);
            if time > latest {
                step = step.min(time - latest);
            }
            (request.time_ns, latest) = (time, time);
        }
        if step == u64::MAX {
            return self.set_rate(DEFAULT_RATE);
        }
        for same in self.requests.chunk_by_mut(|a, b| a.time_ns == b.time_ns) {
            let of = same.len() as u128;
            for (number, request) in (0u128..).zip(same) {
                request.time_ns += u64::try_from(u128::from(step) * number / of).unwrap_or(0);
            }
        }
    }
}

const NANOS: u64 = 1_000_000_000;

/// Requests a second of a trace without times.
pub const DEFAULT_RATE: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn times(given: &[u64]) -> Vec<u64> {
        let mut trace = Trace::default();
        for &time_ns in given {
            let request = TraceRequest {
                time_ns,
                ..TraceRequest::new(Op::Read, 0, 8)
            };
            trace.push(request).unwrap();
        }
        trace.set_times();
        trace.requests().iter().map(|request| request.time_ns).collect()
    }

    #[test]
    fn equal_times_are_spread_over_the_clocks_step() {
        assert_eq!(times(&[500, 500, 600, 1000, 1000]), [0, 50, 100, 500, 550]);
        assert_eq!(times(&[7, 7]), [0, NANOS / DEFAULT_RATE], "no clock at all");
        assert_eq!(times(&[]), []);
    }

    #[test]
    fn times_do_not_go_back() {
        assert_eq!(times(&[100, 300, 200, 400]), [0, 200, 250, 300]);
    }

    #[test]
    fn what_no_device_has_is_refused() {
        let mut trace = Trace::default();
        let mut push = |op, sector, nr_sectors| trace.push(TraceRequest::new(op, sector, nr_sectors));
        assert_eq!(push(Op::Read, 0, 0).unwrap_err(), "a read of 0 sectors");
        assert!(push(Op::Write, MAX_SECTORS, 1).is_err() && push(Op::Discard, u64::MAX, 9).is_err());
        assert!(push(Op::Flush, 0, 0).is_ok() && push(Op::Read, MAX_SECTORS - 1, 1).is_ok());
    }

    #[test]
    fn each_task_has_one_number() {
        let mut trace = Trace::default();
        let tasks = [
            Task::new(1, "db", 0),
            Task::new(2, "tar", 0),
            Task::new(1, "db", 0),
        ];
        assert_eq!(tasks.map(|task| trace.task(task)), [1, 2, 1]);
        assert_eq!(trace.tasks()[2].pid, 2);
    }
}
