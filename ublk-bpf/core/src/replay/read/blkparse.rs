//! The text that `blkparse` prints by default: `MAJOR,MINOR CPU NUMBER TIME PID ACTION RWBS SECTOR + SECTORS [COMM]`.
//!
//! A request has several lines. Those of its issue to the device count (action D, as for the classifier); in a trace
//! that has none, those of its queueing (Q). The summary at the end is skipped. All lines are of one device.

use ublk_bpf_abi::{Op, request_flags};

use super::fault::{At, Fault, push, quoted};
use super::text::{self, number, time};
use crate::replay::trace::{Task, Trace, TraceRequest};

pub(super) fn is_one(text: &str) -> bool {
    device(
        text::first_line(text)
            .split_ascii_whitespace()
            .next()
            .unwrap_or_default(),
    )
    .is_some()
}

/// `major,minor`.
fn device(word: &str) -> Option<(u32, u32)> {
    let (major, minor) = word.split_once(',')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

pub(super) fn read(text: &str, trace: &mut Trace) -> Result<(), Fault> {
    let mut queued = Trace::default();
    let mut of = None;
    for (at, line) in text::lines(text) {
        if line.starts_with("CPU") || line.starts_with("Total") {
            break;
        }
        let event = TraceLine::parse(at, line)?;
        let trace = match event.action {
            "D" => &mut *trace,
            "Q" => &mut queued,
            _ => continue,
        };
        let first = *of.get_or_insert(event.device);
        if first != event.device {
            let (wanted, found) = (format!("device {},{}", first.0, first.1), event.device);
            return Err(Fault::new(at, wanted, format!("{},{}", found.0, found.1)));
        }
        event.add_to(trace)?;
    }
    if trace.requests().is_empty() {
        *trace = queued;
    }
    Ok(())
}

/// A line of the trace.
struct TraceLine<'t> {
    at: At,
    device: (u32, u32),
    time_ns: u64,
    pid: u32,
    action: &'t str,
    /// The rest of the line, after the action.
    rest: &'t str,
}

impl<'t> TraceLine<'t> {
    fn parse(at: At, line: &'t str) -> Result<Self, Fault> {
        let mut rest = line;
        let mut word = || {
            let trimmed = rest.trim_start();
            let end = trimmed
                .find(|c: char| c.is_ascii_whitespace())
                .unwrap_or(trimmed.len());
            let (word, behind) = trimmed.split_at(end);
            rest = behind;
            word
        };
        let of = word();
        let device = device(of).ok_or_else(|| Fault::new(at, "`major,minor` of a device", quoted(of)))?;
        let _: u32 = number(at, "a CPU", word())?;
        let _: u64 = number(at, "a sequence number", word())?;
        let time_ns = time(at, word(), 9)?;
        let pid = number(at, "a process", word())?;
        let action = word();
        Ok(Self {
            at,
            device,
            time_ns,
            pid,
            action,
            rest,
        })
    }

    /// Adds the request of an event that has one.
    fn add_to(&self, trace: &mut Trace) -> Result<(), Fault> {
        let at = self.at;
        let mut words = self.rest.split_ascii_whitespace();
        let rwbs = words.next().unwrap_or_default();
        let (op, flags) =
            parse_rwbs(rwbs).ok_or_else(|| Fault::new(at, "an operation such as RM", quoted(rwbs)))?;
        let (sector, nr_sectors) = match words.next() {
            Some(word) if !word.starts_with('[') => {
                let sector = number(at, "a sector", word)?;
                let plus = words.next().unwrap_or_default();
                if plus != "+" {
                    return Err(Fault::new(at, "`+`", quoted(plus)));
                }
                (
                    sector,
                    number(at, "a number of sectors", words.next().unwrap_or_default())?,
                )
            }
            _ => (0, 0),
        };
        // A flush that carries no data, whatever its letters say.
        let op = if nr_sectors == 0 { Op::Flush } else { op };
        let comm = self
            .rest
            .rsplit_once('[')
            .map_or("", |(_, name)| name.trim_end().trim_end_matches(']'));
        let task = trace.task(Task::new(self.pid, comm, 0));
        let request = TraceRequest {
            time_ns: self.time_ns,
            task,
            flags,
            ..TraceRequest::new(op, sector, nr_sectors)
        };
        push(trace, at, request)
    }
}

/// The letters of an operation (the kernel's `blk_fill_rwbs`): `F` in front for a flush before it, the operation, then
/// flags.
fn parse_rwbs(letters: &str) -> Option<(Op, u32)> {
    let behind_flush = letters
        .strip_prefix('F')
        .filter(|rest| rest.starts_with(['R', 'W', 'D', 'E', 'N', 'F']));
    let mut letters = behind_flush.unwrap_or(letters).chars();
    let op = match letters.next()? {
        'R' => Op::Read,
        'W' => Op::Write,
        'D' | 'E' => Op::Discard,
        'F' => Op::Flush,
        'N' => Op::Other,
        _ => return None,
    };
    let mut flags = 0;
    for letter in letters {
        flags |= match letter {
            'F' => request_flags::FUA,
            'A' => request_flags::RAHEAD,
            'S' => request_flags::SYNC,
            'M' => request_flags::META,
            _ => 0,
        };
    }
    Some((op, flags))
}
