//! fio's I/O log (`write_iolog`): version 2 has `FILE ACTION [OFFSET LENGTH]` and `wait`, version 3 a time in microseconds
//! in front of each line. All lines that do I/O are of one file.

use ublk_bpf_abi::Op;

use super::fault::{At, Fault, push, quoted};
use super::text::{self, number, sectors};
use crate::replay::trace::{Trace, TraceRequest};

pub(super) fn is_one(text: &str) -> bool {
    text.starts_with("fio version ")
}

pub(super) fn read(text: &str, trace: &mut Trace) -> Result<(), Fault> {
    let mut lines = text::lines(text);
    let (at, first) = lines.next().unwrap_or((At::Line(1), ""));
    let has_times = match first.trim_end() {
        "fio version 2 iolog" => false,
        "fio version 3 iolog" => true,
        other => return Err(Fault::new(at, "`fio version 2 iolog` or 3", quoted(other))),
    };
    let mut time_us: u64 = 0;
    let mut file = None;
    for (at, line) in lines {
        let mut words = line.split_ascii_whitespace();
        if has_times {
            time_us = number(at, "a time", words.next().unwrap_or_default())?;
        }
        let (Some(name), Some(action)) = (words.next(), words.next()) else {
            return Err(Fault::new(at, "a file and an action", quoted(line)));
        };
        let mut field = |what| number::<u64>(at, what, words.next().unwrap_or_default());
        let op = match action {
            "add" | "open" | "close" => continue,
            "wait" if !has_times => {
                time_us = time_us.saturating_add(field("a wait in microseconds")?);
                continue;
            }
            "read" => Op::Read,
            "write" => Op::Write,
            "trim" => Op::Discard,
            "sync" | "datasync" | "sync_file_range" => Op::Flush,
            other => return Err(Fault::new(at, "an action of fio", quoted(other))),
        };
        if *file.get_or_insert(name) != name {
            let wanted = format!("I/O of one device, {}", quoted(file.unwrap_or_default()));
            return Err(Fault::new(at, wanted, quoted(name)));
        }
        let (sector, nr_sectors) = match op {
            Op::Flush => (0, 0),
            _ => sectors(at, field("an offset")?, field("a length")?)?,
        };
        let fault = || Fault::new(at, "a time in microseconds", time_us.to_string());
        let request = TraceRequest {
            time_ns: time_us.checked_mul(1000).ok_or_else(fault)?,
            ..TraceRequest::new(op, sector, nr_sectors)
        };
        push(trace, at, request)?;
    }
    Ok(())
}
