//! The histograms: how long the requests of one disk take, by operation and verdict, and how large they are.
//!
//! Two programs, loaded only when asked for. One is attached to `block_rq_issue` after the classifier, and notes the time
//! and the verdict of the request's tag before the server takes it. The other is attached to `block_rq_complete`, and
//! counts. Each request is counted once, however it ends, if both have seen it: the kernel does not run a program that
//! already runs on the CPU.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[expect(
    dead_code,
    unused_imports,
    reason = "flags and priority are for other programs"
)]
mod issued;
#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(target_arch = "bpf")]
mod measure {
    use aya_ebpf::{
        bindings::BPF_F_MMAPABLE,
        btf_maps::{Array, PerCpuArray},
        helpers::bpf_ktime_get_ns,
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };
    use ublk_bpf_abi::{Issue, Latencies, Latency, Member, Op, Sizes, Verdict, VerdictSlot, log2, req_op};
    // Brings the panic handler.
    use ublk_bpf_policy as _;

    use crate::issued::{is_ours, locate};
    use crate::kernel::KernelPtr;

    /// The classifier's map, which the loader reuses.
    #[btf_map(name = "verdicts")]
    static VERDICTS: Array<VerdictSlot, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

    /// The request of each tag. The loader sets its number of entries.
    #[btf_map(name = "issues")]
    static ISSUES: Array<Issue, 1> = Array::new();

    /// Latencies, per operation.
    #[btf_map(name = "latencies")]
    static LATENCIES: PerCpuArray<Latencies, { Op::COUNT }> = PerCpuArray::new();

    /// Sizes, per operation.
    #[btf_map(name = "sizes")]
    static SIZES: PerCpuArray<Sizes, { Op::COUNT }> = PerCpuArray::new();

    /// The licence that the kernel reads.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[btf_tracepoint(function = "block_rq_issue")]
    fn issue(ctx: BtfTracePointContext) -> i32 {
        let rq = KernelPtr(ctx.arg::<*const u8>(0));
        if is_ours(rq)
            && let Some((_, _, slot)) = locate(rq)
            && let (Some(verdict), Some(issue)) = (VERDICTS.get_ptr(slot), ISSUES.get_ptr_mut(slot))
        {
            // SAFETY: the first byte of the slot. The server clears it later, when the tag arrives.
            let verdict = unsafe { verdict.cast::<u8>().read_volatile() };
            // SAFETY: the helper takes no arguments and returns a number.
            let time = unsafe { bpf_ktime_get_ns() };
            // SAFETY: an entry of the map, which only this tag's request uses.
            unsafe {
                issue.write(Issue {
                    time,
                    verdict: verdict.into(),
                });
            }
        }
        0
    }

    #[btf_tracepoint(function = "block_rq_complete")]
    fn complete(ctx: BtfTracePointContext) -> i32 {
        let rq = KernelPtr(ctx.arg::<*const u8>(0));
        if is_ours(rq)
            && let Some((_, _, slot)) = locate(rq)
            && let Some(issue) = ISSUES.get_ptr_mut(slot)
        {
            // SAFETY: as in `issue`.
            let Issue { time, verdict } = unsafe { issue.read() };
            // A flush completes the request that asked for it too, which has the same tag and was not issued.
            if time != 0 {
                // SAFETY: as in `issue`.
                unsafe { (&raw mut (*issue).time).write(0) };
                count(rq, time, verdict);
            }
        }
        0
    }

    #[inline(always)]
    fn count(rq: KernelPtr, issued: u64, verdict: u64) {
        let op = Op::from_req_op(rq.load::<u32>(Member::RequestFlags) & req_op::MASK) as u32;
        let bytes = rq.load::<u32>(Member::RequestBytes);
        // SAFETY: the helper takes no arguments and returns a number.
        let now = unsafe { bpf_ktime_get_ns() };
        if let Some(latencies) = LATENCIES.get_ptr_mut(op) {
            count_latency(latencies.cast(), verdict, now.saturating_sub(issued));
        }
        if bytes != 0
            && let Some(sizes) = SIZES.get_ptr_mut(op)
        {
            count_size(sizes.cast(), bytes);
        }
    }

    /// Only this program writes this CPU's counters, and it does not nest.
    #[inline(always)]
    fn count_latency(words: *mut u64, verdict: u64, ns: u64) {
        if verdict >= Verdict::COUNT as u64 {
            return;
        }
        let bucket = (log2(ns) as usize).min(Latency::BUCKETS - 1);
        // SAFETY: the map's value is `Latencies`, which has so many words for each verdict.
        let words = unsafe { words.add(verdict as usize * Latency::WORDS) };
        // SAFETY: one of them.
        add(unsafe { words.add(bucket) }, 1);
        // SAFETY: the last of them.
        add(unsafe { words.add(Latency::BUCKETS) }, ns);
    }

    #[inline(always)]
    fn count_size(words: *mut u64, bytes: u32) {
        let bucket = log2(bytes.into()) as usize & (Sizes::BUCKETS - 1);
        // SAFETY: the map's value is `Sizes`, which begins with the buckets.
        add(unsafe { words.add(bucket) }, 1);
        // SAFETY: the word behind them.
        add(unsafe { words.add(Sizes::BUCKETS) }, bytes.into());
    }

    #[inline(always)]
    fn add(counter: *mut u64, by: u64) {
        // SAFETY: `count` passes only this CPU's counters.
        unsafe { *counter += by };
    }
}
