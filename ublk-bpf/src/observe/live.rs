//! The requests of a live device, each when it has ended.

use std::ops::RangeInclusive;

use ublk_bpf_abi::{EndedRecord, Op, Verdict};

use super::classified::Classified;
use super::words::task_name;
use crate::policy::{Disk, PolicyError, Tracer};
use crate::sys::bpf::ktime_ns;
use crate::trace::{RECORD_BYTES, TracedRequest};

/// A request that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The request as it was issued.
    pub request: TracedRequest,
    /// Nanoseconds from its issue to its end.
    pub latency_ns: u64,
    /// Whether it ended with an error.
    pub failed: bool,
}

impl Ended {
    /// Parses an [`EndedRecord`] of a device of `sectors` sectors.
    ///
    /// # Errors
    /// The field that is wrong, with its value.
    fn from_bytes(bytes: &[u8; size_of::<EndedRecord>()], sectors: u64) -> Result<Self, String> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let record: [u8; RECORD_BYTES] = std::array::from_fn(|i| bytes[i]);
        Ok(Self {
            request: TracedRequest::from_bytes(&record, sectors)?,
            latency_ns: word(RECORD_BYTES),
            failed: word(RECORD_BYTES + 8) != 0,
        })
    }
}

/// Which requests are wanted: those that every part admits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestFilter {
    /// One of these operations; empty: all.
    pub ops: Vec<Op>,
    /// One of these verdicts; empty: all.
    pub verdicts: Vec<Verdict>,
    /// Of a task of this name.
    pub task: Option<String>,
    /// Of a task in this cgroup.
    pub cgroup: Option<u64>,
    /// Touching one of these sectors.
    pub sectors: Option<RangeInclusive<u64>>,
    /// Longer than so many nanoseconds.
    pub slower_than_ns: Option<u64>,
}

impl RequestFilter {
    /// Whether it is one of the wanted requests.
    #[must_use]
    pub fn admits(&self, ended: &Ended) -> bool {
        let of = &ended.request;
        (self.ops.is_empty() || self.ops.contains(&of.op))
            && (self.verdicts.is_empty() || self.verdicts.contains(&of.verdict))
            && self.task.as_ref().is_none_or(|name| *name == task_name(&of.comm))
            && self.cgroup.is_none_or(|cgroup| cgroup == of.cgroup_id)
            && self.sectors.as_ref().is_none_or(|sectors| touches(of, sectors))
            && self.slower_than_ns.is_none_or(|limit| ended.latency_ns > limit)
    }
}

/// A request without sectors touches none.
fn touches(request: &TracedRequest, sectors: &RangeInclusive<u64>) -> bool {
    let end = request.sector.saturating_add(request.nr_sectors.into());
    request.nr_sectors != 0 && request.sector <= *sectors.end() && end > *sectors.start()
}

/// A tracing in progress; it ends when this is dropped.
pub struct Live {
    tracer: Tracer,
    classified: Classified,
    sectors: u64,
    /// The kernel's clock when it started.
    start: u64,
    /// Requests that were not on the device.
    impossible: u64,
}

impl Live {
    /// Starts to trace a disk of `sectors` sectors. The kernel holds `ring_bytes` of requests that have ended until
    /// [`next`](Self::next) takes them.
    ///
    /// # Errors
    /// If there is no classifier of this version, or the kernel refuses a program.
    pub fn start(disk: &Disk, sectors: u64, ring_bytes: u32) -> Result<Self, PolicyError> {
        Ok(Self {
            classified: Classified::of(disk)?,
            start: ktime_ns(),
            tracer: Tracer::attach(disk, ring_bytes)?,
            sectors,
            impossible: 0,
        })
    }

    /// Traces one request in `every` from now on, chosen at random.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn sample(&mut self, every: u32) -> Result<(), PolicyError> {
        self.tracer.sample(every)
    }

    /// Whether the device is still there. Ask before [`next`](Self::next), to get its last requests.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.classified.is_there()
    }

    /// Requests that are missing: the ring was full, or the request cannot be on this device.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn dropped(&self) -> Result<u64, PolicyError> {
        Ok(self.tracer.dropped()?.saturating_add(self.impossible))
    }

    /// Requests of any disk whose issue or end was not seen, because the kernel was in the tracer already.
    ///
    /// # Errors
    /// If the kernel refuses to describe the programs.
    pub fn skipped(&self) -> Result<u64, PolicyError> {
        self.tracer.skipped()
    }
}

/// The requests that have ended and were not taken yet.
impl Iterator for Live {
    type Item = Ended;

    fn next(&mut self) -> Option<Ended> {
        loop {
            match Ended::from_bytes(&self.tracer.take()?, self.sectors) {
                Ok(mut ended) => {
                    ended.request.time_ns = ended.request.time_ns.saturating_sub(self.start);
                    return Some(ended);
                }
                Err(what) => {
                    tracing::debug!("a request that cannot be on this device: {what}");
                    self.impossible += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> Ended {
        let mut comm = [0; 16];
        comm[..3].copy_from_slice(b"fio");
        Ended {
            request: TracedRequest {
                verdict: Verdict::Hit,
                cgroup_id: 7,
                comm,
                ..TracedRequest::new(Op::Read, 100, 8)
            },
            latency_ns: 1000,
            failed: true,
        }
    }

    #[test]
    fn an_ended_request_is_read_from_its_bytes() {
        let mut bytes = [0; size_of::<EndedRecord>()];
        bytes[..RECORD_BYTES].copy_from_slice(&ended().request.to_bytes());
        bytes[RECORD_BYTES..][..8].copy_from_slice(&1000_u64.to_le_bytes());
        bytes[RECORD_BYTES + 8] = 10;
        assert_eq!(Ended::from_bytes(&bytes, 108), Ok(ended()));
        assert!(Ended::from_bytes(&bytes, 107).is_err(), "beyond the device");
    }

    #[test]
    fn a_filter_admits_what_every_part_admits() {
        let of = ended();
        let admits = |filter: RequestFilter| filter.admits(&of);
        assert!(admits(RequestFilter::default()));
        let sectors = |range| RequestFilter {
            sectors: Some(range),
            ..RequestFilter::default()
        };
        assert!(admits(sectors(107..=200)) && admits(sectors(0..=100)));
        assert!(!admits(sectors(108..=200)) && !admits(sectors(0..=99)));
        let all = RequestFilter {
            ops: vec![Op::Write, Op::Read],
            verdicts: vec![Verdict::Hit],
            task: Some("fio".to_owned()),
            cgroup: Some(7),
            sectors: Some(100..=100),
            slower_than_ns: Some(999),
        };
        assert!(admits(all.clone()));
        for wrong in [
            RequestFilter {
                ops: vec![Op::Write],
                ..all.clone()
            },
            RequestFilter {
                verdicts: vec![Verdict::None],
                ..all.clone()
            },
            RequestFilter {
                task: Some("fi".to_owned()),
                ..all.clone()
            },
            RequestFilter {
                cgroup: Some(8),
                ..all.clone()
            },
            RequestFilter {
                slower_than_ns: Some(1000),
                ..all
            },
        ] {
            assert!(!admits(wrong.clone()), "{wrong:?}");
        }
    }

    #[test]
    fn a_request_without_sectors_touches_none() {
        let mut flush = ended();
        flush.request = TracedRequest::new(Op::Flush, u64::MAX, 0);
        let all = RequestFilter {
            sectors: Some(0..=u64::MAX),
            ..RequestFilter::default()
        };
        assert!(!all.admits(&flush));
        assert!(RequestFilter::default().admits(&flush));
    }
}
