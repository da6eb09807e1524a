//! Comma-separated values. The first line names the columns, in any order and case:
//!
//! | column | value |
//! |---|---|
//! | `sector` or `offset` | where it starts, in sectors or bytes; required |
//! | `sectors` or `bytes` | its length; required |
//! | `op` | `read` or `r` (the default), `write` or `w`, `flush`, `discard`, `write-zeroes` |
//! | `time_s`, `time_ms`, `time_us` or `time_ns` | when, with decimals |
//! | `pid`, `tgid`, `comm`, `cgroup` | the task that submitted it |
//! | `flags` | names with `+` between them: `fua`, `meta`, `sync`, `prio`, `rahead` |
//! | `ioprio` | its I/O priority, as a number |
//!
//! Other columns are ignored. Values have no quotes. Lines that start with `#` are comments.

use ublk_bpf_abi::{Op, request_flags};

use super::fault::{At, Fault, push, quoted};
use super::text::{self, number, sectors, time};
use crate::replay::trace::{Task, Trace, TraceRequest};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Sector,
    Offset,
    Sectors,
    Bytes,
    Op,
    /// Digits of a nanosecond in its unit.
    Time(u32),
    Pid,
    Tgid,
    Comm,
    Cgroup,
    Flags,
    Ioprio,
    Ignored,
}

impl Column {
    fn named(name: &str) -> Self {
        match name.trim().to_ascii_lowercase().as_str() {
            "sector" => Self::Sector,
            "offset" => Self::Offset,
            "sectors" => Self::Sectors,
            "bytes" => Self::Bytes,
            "op" => Self::Op,
            "time_s" => Self::Time(9),
            "time_ms" => Self::Time(6),
            "time_us" => Self::Time(3),
            "time_ns" => Self::Time(0),
            "pid" => Self::Pid,
            "tgid" => Self::Tgid,
            "comm" => Self::Comm,
            "cgroup" => Self::Cgroup,
            "flags" => Self::Flags,
            "ioprio" => Self::Ioprio,
            _ => Self::Ignored,
        }
    }
}

fn columns(line: &str) -> Vec<Column> {
    line.split(',').map(Column::named).collect()
}

/// Whether the line names what a request needs.
fn is_header(columns: &[Column]) -> bool {
    let has = |wanted: [Column; 2]| columns.iter().any(|column| wanted.contains(column));
    has([Column::Sector, Column::Offset]) && has([Column::Sectors, Column::Bytes])
}

fn content(text: &str) -> impl Iterator<Item = (At, &str)> {
    text::lines(text).filter(|(_, line)| !line.starts_with('#'))
}

pub(super) fn is_one(text: &str) -> bool {
    content(text)
        .next()
        .is_some_and(|(_, line)| is_header(&columns(line)))
}

pub(super) fn read(text: &str, trace: &mut Trace) -> Result<(), Fault> {
    let mut lines = content(text);
    let (at, first) = lines.next().unwrap_or((At::Line(1), ""));
    let columns = columns(first);
    if !is_header(&columns) {
        let wanted = "the names of columns, with sector or offset and sectors or bytes among them";
        return Err(Fault::new(at, wanted, quoted(first)));
    }
    for (at, line) in lines {
        let row = CsvLine::parse(at, line, &columns)?;
        row.add_to(trace)?;
    }
    Ok(())
}

/// A line, parsed.
struct CsvLine {
    at: At,
    /// First byte and length, or first sector and sectors.
    start: Place,
    length: Place,
    task: Task,
    request: TraceRequest,
}

#[derive(Clone, Copy)]
enum Place {
    Bytes(u64),
    Sectors(u64),
}

impl Place {
    /// In bytes.
    fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Sectors(sectors) => sectors.checked_mul(512),
        }
    }
}

impl CsvLine {
    fn parse(at: At, line: &str, columns: &[Column]) -> Result<Self, Fault> {
        let mut row = Self {
            at,
            start: Place::Bytes(0),
            length: Place::Bytes(0),
            task: Task::default(),
            request: TraceRequest::new(Op::Read, 0, 0),
        };
        let values: Vec<&str> = line.split(',').map(str::trim).collect();
        if values.len() != columns.len() {
            let wanted = format!("{} values, as there are columns", columns.len());
            return Err(Fault::new(at, wanted, values.len().to_string()));
        }
        for (column, value) in columns.iter().zip(values) {
            row.set(*column, value)?;
        }
        // A process of one thread, where only one of the two is known.
        if row.task.tgid == 0 {
            row.task.tgid = row.task.pid;
        }
        Ok(row)
    }

    fn set(&mut self, column: Column, value: &str) -> Result<(), Fault> {
        let at = self.at;
        match column {
            Column::Sector => self.start = Place::Sectors(number(at, "a sector", value)?),
            Column::Offset => self.start = Place::Bytes(number(at, "an offset", value)?),
            Column::Sectors => self.length = Place::Sectors(number(at, "a number of sectors", value)?),
            Column::Bytes => self.length = Place::Bytes(number(at, "a number of bytes", value)?),
            Column::Op => self.request.op = op(at, value)?,
            Column::Time(digits) => self.request.time_ns = time(at, value, digits)?,
            Column::Pid => self.task.pid = number(at, "a thread", value)?,
            Column::Tgid => self.task.tgid = number(at, "a process", value)?,
            Column::Comm => self.task.comm = Task::new(0, value, 0).comm,
            Column::Cgroup => self.task.cgroup_id = number(at, "a cgroup", value)?,
            Column::Flags => self.request.flags = flags(at, value)?,
            Column::Ioprio => self.request.ioprio = number(at, "an I/O priority", value)?,
            Column::Ignored => {}
        }
        Ok(())
    }

    fn add_to(mut self, trace: &mut Trace) -> Result<(), Fault> {
        let at = self.at;
        let (Some(start), Some(length)) = (self.start.bytes(), self.length.bytes()) else {
            return Err(Fault::new(at, "a range of a device", "one beyond any"));
        };
        (self.request.sector, self.request.nr_sectors) = match self.request.op {
            Op::Flush => (0, 0),
            _ => sectors(at, start, length)?,
        };
        self.request.task = trace.task(self.task);
        push(trace, at, self.request)
    }
}

fn op(at: At, value: &str) -> Result<Op, Fault> {
    Ok(match value.to_ascii_lowercase().as_str() {
        "" | "r" | "read" => Op::Read,
        "w" | "write" => Op::Write,
        "f" | "flush" => Op::Flush,
        "d" | "discard" | "trim" => Op::Discard,
        "z" | "write-zeroes" => Op::WriteZeroes,
        _ => {
            return Err(Fault::new(
                at,
                "an operation (read, write, flush, discard, write-zeroes)",
                quoted(value),
            ));
        }
    })
}

fn flags(at: At, value: &str) -> Result<u32, Fault> {
    let mut flags = 0;
    for name in value.split('+').filter(|name| !name.is_empty()) {
        flags |= match name.to_ascii_lowercase().as_str() {
            "fua" => request_flags::FUA,
            "meta" => request_flags::META,
            "sync" => request_flags::SYNC,
            "prio" => request_flags::PRIO,
            "rahead" => request_flags::RAHEAD,
            _ => {
                return Err(Fault::new(
                    at,
                    "a flag (fua, meta, sync, prio, rahead)",
                    quoted(name),
                ));
            }
        };
    }
    Ok(flags)
}
