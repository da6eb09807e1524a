//! The classifier: runs the policy on every request of one disk before the server sees it.
//!
//! It is attached to the tracepoint `block_rq_issue`, which fires in the submitter's context when a request starts and
//! before ublk hands its tag to the server. It stores the verdict in the tag's slot. The kernel silently skips it for a
//! request that is issued while it is already running on that CPU, so a slot identifies its request and the server
//! checks it.
//!
//! It runs for every request of every disk, so every instruction counts. It loads what it needs through plain pointers
//! (the server patches the running kernel's structure offsets into its instructions, see
//! [`Member`](ublk_bpf_abi::Member)) and calls no helper before the verdict.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(linkage))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod answer;
#[cfg(target_arch = "bpf")]
mod issued;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod seen;

#[cfg(target_arch = "bpf")]
mod classify {
    use aya_ebpf::{
        bindings::{BPF_F_MMAPABLE, BPF_F_RDONLY_PROG},
        btf_maps::{Array, PerCpuArray},
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };
    use ublk_bpf_abi::{
        CacheCounters, CacheState, Decisions, DirtyEntry, Member, Op, Reason, Request, ServerCounters,
        Verdict, VerdictSlot, hint,
    };
    // Brings the panic handler.
    use ublk_bpf_policy as _;

    use crate::answer::{checked, policy};
    use crate::issued::{config, is_ours, locate};
    use crate::kernel::KernelPtr;
    use crate::seen;

    const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

    // The loader sets the number of entries of each map that depends on the device.

    /// The verdict of each tag.
    #[btf_map(name = "verdicts")]
    static VERDICTS: Array<VerdictSlot, 1, MMAPABLE> = Array::new();

    /// Decision counters, per operation.
    #[btf_map(name = "decisions")]
    static DECISIONS: PerCpuArray<Decisions, { Op::COUNT }> = PerCpuArray::new();

    /// Server counters, per queue. Not used here: created and pinned with the other maps.
    #[btf_map(name = "server")]
    static SERVER: Array<ServerCounters, 1, MMAPABLE> = Array::new();

    /// Cache counters of the server. Not used here.
    #[btf_map(name = "cache")]
    static CACHE: Array<CacheCounters, 1, MMAPABLE> = Array::new();

    /// What the backing device lacks, per slot of the cache. Not used here.
    #[btf_map(name = "dirty")]
    static DIRTY: Array<DirtyEntry, 1, MMAPABLE> = Array::new();

    /// Whose each slot of the cache is. Not used here.
    #[btf_map(name = "tenants")]
    static TENANTS: Array<u64, 1, MMAPABLE> = Array::new();

    /// The slots of each tenant, for policies. Not used here.
    #[btf_map(name = "ublk_usage")]
    static USAGE: Array<u64, { ublk_bpf_abi::TENANTS as usize }, MMAPABLE> = Array::new();

    /// The cache as a whole, for policies. Not used here. `BPF_F_RDONLY_PROG`: no policy may write what others read.
    #[btf_map(name = "ublk_cache")]
    static STATE: Array<CacheState, 1, { BPF_F_RDONLY_PROG as usize }> = Array::new();

    /// Counters of the policy's own reasons.
    #[btf_map(name = "codes")]
    static CODES: PerCpuArray<u64, 256> = PerCpuArray::new();

    /// The licence that the kernel reads.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[btf_tracepoint(function = "block_rq_issue")]
    fn classify(ctx: BtfTracePointContext) -> i32 {
        let rq = KernelPtr(ctx.arg::<*const u8>(0));
        if is_ours(rq) {
            // The verifier knows the value and removes the dead branch.
            if config!(cache_shift) == 0 {
                decide::<false>(rq);
            } else {
                decide::<true>(rq);
            }
        }
        0
    }

    #[inline(always)]
    fn decide<const HAS_CACHE: bool>(rq: KernelPtr) {
        let Some((qid, tag, slot)) = locate(rq) else {
            return;
        };
        let cmd_flags = rq.load::<u32>(Member::RequestFlags);
        let mut request = seen::request(rq, cmd_flags, qid, tag);
        let heat = seen::complete::<HAS_CACHE>(&mut request, cmd_flags);
        let answer = checked(policy(&request));
        store_verdict(&request, slot, answer);
        if config!(uncounted) == 0 {
            count(&request, answer);
        }
        if !heat.is_null() {
            warm(&request, heat, answer);
        }
    }

    /// Counts a read in its block's heat, unless the policy hinted `COLD`.
    #[inline(always)]
    fn warm(request: &Request, heat: *mut u8, answer: u64) {
        let counts = answer & (hint::COLD as u64) << 16 == 0;
        if request.op == Op::Read as u32 && counts && request.heat < config!(heat_limit) {
            // SAFETY: `seen::complete` returned it, a valid pointer into the map.
            unsafe { heat.write_volatile(request.heat as u8 + 1) };
        }
    }

    /// Stores the verdict for the server. The head is written last: a slot with a head is complete.
    #[inline(always)]
    fn store_verdict(request: &Request, slot: u32, answer: u64) {
        let Some(slot) = VERDICTS.get_ptr_mut(slot) else {
            return;
        };
        let head = VerdictSlot::head(answer, request.op, request.nr_sectors);
        let words = slot.cast::<u64>();
        // SAFETY: A slot is two words, and the server does not read a slot before its tag arrives.
        unsafe {
            words
                .add(1)
                .write_volatile(VerdictSlot::place(answer, request.sector))
        };
        // SAFETY: As above.
        unsafe { words.write_volatile(head) };
    }

    /// Counts the decision. Only this program writes this CPU's counters, and it does not nest.
    #[inline(always)]
    fn count(request: &Request, answer: u64) {
        let Some(decisions) = DECISIONS.get_ptr_mut(request.op) else {
            return;
        };
        let counters = decisions.cast::<u64>();
        // Masks instead of checks: they prove to the verifier that every index is inside `Decisions`. Each verdict has
        // eight reasons: see `Decisions::word`.
        let verdict = (answer.wrapping_sub(Verdict::Passthrough as u64) & 3) as usize;
        let reason = (answer >> 8 & 7) as usize;
        // SAFETY: At most word 31, the last before `Decisions::SECTORS`.
        increment(unsafe { counters.add(verdict * Reason::COUNT + reason) }, 1);
        // SAFETY: One of its words.
        increment(
            unsafe { counters.add(Decisions::SECTORS) },
            u64::from(request.nr_sectors),
        );
        // Only a reason of the policy's own has a code.
        let code = answer as u32 >> 24;
        if code != 0
            && let Some(counter) = CODES.get_ptr_mut(code)
        {
            increment(counter, 1);
        }
    }

    #[inline(always)]
    fn increment(counter: *mut u64, by: u64) {
        // SAFETY: `count` passes only this CPU's counters.
        unsafe { *counter += by };
    }
}
