//! The project's own format, which `ublk-bpf trace --record` writes.

use super::fault::{Fault, push};
use super::{At, Trace};
use crate::replay::trace::{Task, TraceRequest};
use crate::trace::{HEADER_BYTES, RECORD_BYTES, Reader, TraceError};

pub(super) fn read(bytes: &[u8], trace: &mut Trace) -> Result<(), Fault> {
    let reader = Reader::new(bytes).map_err(|error| fault(At::File, &error))?;
    for (number, request) in (0..).zip(reader) {
        let at = At::Byte(HEADER_BYTES as u64 + number * RECORD_BYTES as u64);
        let request = request.map_err(|error| fault(at, &error))?;
        let task = trace.task(Task {
            pid: request.pid,
            tgid: request.tgid,
            comm: request.comm,
            cgroup_id: request.cgroup_id,
        });
        let sector = if request.nr_sectors == 0 {
            0
        } else {
            request.sector
        };
        let request = TraceRequest {
            time_ns: request.time_ns,
            task,
            flags: request.flags.into(),
            ioprio: request.ioprio,
            ..TraceRequest::new(request.op, sector, request.nr_sectors)
        };
        push(trace, at, request)?;
    }
    Ok(())
}

fn fault(at: At, error: &TraceError) -> Fault {
    Fault::new(at, "a trace of ublk-bpf", error.to_string())
}
