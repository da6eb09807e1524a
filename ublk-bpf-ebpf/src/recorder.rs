//! The recorder: passes the requests of one disk to user space, each with its task and its verdict.
//!
//! It is attached to `block_rq_issue` only while a trace is recorded. The kernel runs the programs of a tracepoint in the
//! order in which they were attached, so the classifier has stored its verdict before this runs, and the server takes
//! it later. It reads the verdict from the slot, whichever policy decided.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod issued;
#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(target_arch = "bpf")]
mod record {
    use core::mem::MaybeUninit;

    use aya_ebpf::{
        bindings::{BPF_F_MMAPABLE, BPF_RB_NO_WAKEUP},
        btf_maps::{Array, PerCpuArray, RingBuf},
        helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated},
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };
    use ublk_bpf_abi::{Member, Op, TraceRecord, VerdictSlot, req_op};
    // Brings the panic handler.
    use ublk_bpf_policy as _;

    use crate::issued::{config, flags, ioprio, is_ours, locate};
    use crate::kernel::KernelPtr;

    /// The classifier's map, which the loader reuses.
    #[btf_map(name = "verdicts")]
    static VERDICTS: Array<VerdictSlot, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

    /// Requests that user space has not read yet. The loader sets its size.
    #[btf_map(name = "records")]
    static RECORDS: RingBuf<TraceRecord, 4096> = RingBuf::new();

    /// Requests that found the ring full.
    #[btf_map(name = "dropped")]
    static DROPPED: PerCpuArray<u64, 1> = PerCpuArray::new();

    /// The licence that the kernel reads.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    /// The reader looks at the ring periodically: a wake-up would cost the submitter more than the record.
    const SUBMIT: u64 = BPF_RB_NO_WAKEUP as u64;

    #[btf_tracepoint(function = "block_rq_issue")]
    fn record(ctx: BtfTracePointContext) -> i32 {
        let rq = KernelPtr(ctx.arg::<*const u8>(0));
        if is_ours(rq)
            && let Some((qid, _, slot)) = locate(rq)
        {
            match RECORDS.reserve(0) {
                Some(mut record) => {
                    fill(&mut record, rq, qid, slot);
                    record.submit(SUBMIT);
                }
                None => count_dropped(),
            }
        }
        0
    }

    /// Writes every field.
    #[inline(always)]
    fn fill(record: &mut MaybeUninit<TraceRecord>, rq: KernelPtr, qid: u32, slot: u32) {
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

    /// The first three bytes of the tag's slot, if it holds the verdict of this request; 0 if the kernel did not run the
    /// classifier for it.
    #[inline(always)]
    fn advice(slot: u32, sector: u64, nr_sectors: u32, op: u32) -> u32 {
        let Some(slot) = VERDICTS.get_ptr(slot) else {
            return 0;
        };
        let words = slot.cast::<u64>();
        // SAFETY: a slot is two words. The server, which clears the first one, has not seen the request yet.
        let head = unsafe { words.read_volatile() };
        // SAFETY: as above.
        let of_sector = unsafe { words.add(1).read_volatile() };
        let packed = head as u32 & 0x00ff_ffff;
        if of_sector == sector && head == VerdictSlot::head(packed, op, nr_sectors) {
            packed
        } else {
            0
        }
    }

    /// Only this program writes this CPU's counter, and it does not nest.
    #[inline(always)]
    fn count_dropped() {
        if let Some(counter) = DROPPED.get_ptr_mut(0) {
            // SAFETY: this CPU's counter.
            unsafe { *counter += 1 };
        }
    }
}
