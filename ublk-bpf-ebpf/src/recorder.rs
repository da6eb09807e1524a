//! The recorder: passes the requests of one disk to user space, each with its task and its verdict.
//!
//! It is attached to `block_rq_issue` only while a trace is recorded. The kernel runs the programs of a tracepoint in the
//! order in which they were attached, so the classifier has stored its verdict before this runs, and the server takes
//! it later. It reads the verdict from the slot, whichever policy decided.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod advice;
#[cfg(target_arch = "bpf")]
mod issued;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod traced;

#[cfg(target_arch = "bpf")]
mod record {
    use aya_ebpf::{
        bindings::BPF_RB_NO_WAKEUP,
        btf_maps::{PerCpuArray, RingBuf},
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };
    use ublk_bpf_abi::TraceRecord;
    // Brings the panic handler.
    use ublk_bpf_policy as _;

    use crate::issued::{is_ours, locate};
    use crate::kernel::KernelPtr;
    use crate::traced::fill;

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

    /// Only this program writes this CPU's counter, and it does not nest.
    #[inline(always)]
    fn count_dropped() {
        if let Some(counter) = DROPPED.get_ptr_mut(0) {
            // SAFETY: this CPU's counter.
            unsafe { *counter += 1 };
        }
    }
}
