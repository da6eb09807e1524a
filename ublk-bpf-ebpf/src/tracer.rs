//! The tracer: passes the requests of one disk to user space when they end, each with its task, its verdict and the time
//! it took.
//!
//! It is attached to `block_rq_issue`, behind the classifier, and to `block_rq_complete`, only while a command traces.
//! What is known at the issue waits in the tag's entry of an array. The kernel skips a program that runs already on the
//! CPU, so a request whose end was skipped is overwritten by the next one of its tag, and never reported.
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
mod trace {
    use core::mem::MaybeUninit;

    use aya_ebpf::{
        bindings::BPF_RB_NO_WAKEUP,
        btf_maps::{Array, PerCpuArray, RingBuf},
        helpers::{bpf_ktime_get_ns, generated},
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };
    use ublk_bpf_abi::{EndedRecord, TraceRecord};
    // Brings the panic handler.
    use ublk_bpf_policy as _;

    use crate::issued::{is_ours, locate};
    use crate::kernel::KernelPtr;
    use crate::traced::fill;

    /// Requests that have not ended; a time of 0: none. The loader sets its size.
    #[btf_map(name = "issued")]
    static ISSUED: Array<TraceRecord, 1> = Array::new();

    /// Requests that have ended and that user space has not read yet. The loader sets its size.
    #[btf_map(name = "ended")]
    static ENDED: RingBuf<EndedRecord, 4096> = RingBuf::new();

    /// Requests that found the ring full.
    #[btf_map(name = "dropped")]
    static DROPPED: PerCpuArray<u64, 1> = PerCpuArray::new();

    /// One request in so many is traced. User space sets it.
    #[btf_map(name = "every")]
    static EVERY: Array<u64, 1> = Array::new();

    /// The licence that the kernel reads.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    /// The reader looks at the ring periodically: a wake-up would cost more than the record.
    const SUBMIT: u64 = BPF_RB_NO_WAKEUP as u64;

    #[btf_tracepoint(function = "block_rq_issue")]
    fn begin(ctx: BtfTracePointContext) -> i32 {
        let rq = KernelPtr(ctx.arg::<*const u8>(0));
        if is_ours(rq)
            && let Some((qid, _, slot)) = locate(rq)
            && let Some(issued) = ISSUED.get_ptr_mut(slot)
        {
            // SAFETY: the tag's entry. The tag has one request at a time, which is being issued here.
            let issued = unsafe { &mut *issued.cast::<MaybeUninit<TraceRecord>>() };
            if is_chosen() {
                fill(issued, rq, qid, slot);
            } else {
                // SAFETY: any bytes are a record.
                unsafe { issued.assume_init_mut().time = 0 };
            }
        }
        0
    }

    #[inline(always)]
    fn is_chosen() -> bool {
        let every = EVERY.get(0).map_or(1, |every| *every) as u32;
        // SAFETY: the helper takes no arguments and returns a number.
        every <= 1 || unsafe { generated::bpf_get_prandom_u32() } % every == 0
    }

    #[btf_tracepoint(function = "block_rq_complete")]
    fn end(ctx: BtfTracePointContext) -> i32 {
        let rq = KernelPtr(ctx.arg::<*const u8>(0));
        if is_ours(rq)
            && let Some((_, _, slot)) = locate(rq)
            && let Some(issued) = ISSUED.get_ptr_mut(slot)
        {
            // SAFETY: as in `begin`; here the request ends.
            let issued = unsafe { &mut *issued };
            if issued.time != 0 {
                pass(issued, ctx.arg::<u8>(1).into());
                issued.time = 0;
            }
        }
        0
    }

    /// Passes a request that ends to user space.
    #[inline(always)]
    fn pass(issued: &TraceRecord, status: u64) {
        // SAFETY: the helper takes no arguments and returns a number.
        let now = unsafe { bpf_ktime_get_ns() };
        match ENDED.reserve(0) {
            Some(mut ended) => {
                ended.write(EndedRecord {
                    record: *issued,
                    latency: now.saturating_sub(issued.time),
                    status,
                });
                ended.submit(SUBMIT);
            }
            None => count_dropped(),
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
