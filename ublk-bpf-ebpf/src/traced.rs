//! A request as a trace has it.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated};
use ublk_bpf_abi::{Member, Op, TraceRecord, req_op};

use crate::advice::advice;
use crate::issued::{config, flags, ioprio};
use crate::kernel::KernelPtr;

/// Writes every field.
#[inline(always)]
pub(crate) fn fill(record: &mut MaybeUninit<TraceRecord>, rq: KernelPtr, qid: u32, slot: u32) {
    let cmd_flags = rq.load::<u32>(Member::RequestFlags);
    let sector = rq.load::<u64>(Member::RequestSector);
    let nr_sectors = rq.load::<u32>(Member::RequestBytes) >> 9;
    let op = Op::from_req_op(cmd_flags & req_op::MASK) as u32;
    let task = bpf_get_current_pid_tgid();
    record.write(TraceRecord {
        // SAFETY: the helper takes no arguments and returns a number.
        time: unsafe { bpf_ktime_get_ns() },
        sector,
        nr_sectors,
        op_and_advice: op | advice(slot, sector, nr_sectors, op) << 8,
        flags: if cmd_flags & config!(any_flag) != 0 {
            flags(cmd_flags) as u16
        } else {
            0
        },
        ioprio: ioprio(rq) as u16,
        pid: task as u32,
        tgid: (task >> 32) as u32,
        qid: qid as u16,
        reserved: 0,
        // SAFETY: as above.
        cgroup_id: unsafe { generated::bpf_get_current_cgroup_id() },
        comm: [0; 16],
    });
    // SAFETY: it was written above.
    let comm = unsafe { &raw mut record.assume_init_mut().comm };
    // SAFETY: the name has 16 bytes. If the helper fails, they are zeroes.
    unsafe { generated::bpf_get_current_comm(comm.cast(), 16) };
}
