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
mod issued;
#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(target_arch = "bpf")]
mod classify {
    use aya_ebpf::{
        bindings::BPF_F_MMAPABLE,
        btf_maps::{Array, PerCpuArray},
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };
    use ublk_bpf_abi::{
        CacheCounters, Decision, Decisions, IndexEntry, Member, Op, Reason, Request, ServerCounters, Verdict,
        VerdictSlot, hint, regions, req_op, request_flags,
    };
    // Brings the panic handler.
    use ublk_bpf_policy as _;

    use crate::issued::{config, flags, ioprio, is_ours, locate};
    use crate::kernel::KernelPtr;

    const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

    // The loader sets the number of entries of each map except `decisions`, `cache` and `codes`.

    /// The verdict of each tag.
    #[btf_map(name = "verdicts")]
    static VERDICTS: Array<VerdictSlot, 1, MMAPABLE> = Array::new();

    /// Decision counters, per operation.
    #[btf_map(name = "decisions")]
    static DECISIONS: PerCpuArray<Decisions, { Op::COUNT }> = PerCpuArray::new();

    /// Server counters, per queue. Not used here: created and pinned with the other maps.
    #[btf_map(name = "server")]
    static SERVER: Array<ServerCounters, 1, MMAPABLE> = Array::new();

    /// Which blocks may hold data.
    #[btf_map(name = "written")]
    static WRITTEN: Array<u64, 1, MMAPABLE> = Array::new();

    /// Which blocks are cached, and in which slot.
    #[btf_map(name = "index")]
    static INDEX: Array<IndexEntry, 1, MMAPABLE> = Array::new();

    /// Recent reads of each block: one byte per block, eight per entry.
    #[btf_map(name = "heat")]
    static HEAT: Array<u64, 1, MMAPABLE> = Array::new();

    /// Cache counters of the server. Not used here.
    #[btf_map(name = "cache")]
    static CACHE: Array<CacheCounters, 1, MMAPABLE> = Array::new();

    /// Counters of the policy's own reasons.
    #[btf_map(name = "codes")]
    static CODES: PerCpuArray<u64, 256> = PerCpuArray::new();

    /// The licence that the kernel reads.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    const PASSTHROUGH: u32 = Decision::new(Verdict::Passthrough, Reason::Default).pack();
    const HIT: u32 = Decision::new(Verdict::Hit, Reason::Cached).pack();

    /// The decision while no policy is attached: pass through. A policy replaces this function, so it must stay a
    /// function: `weak` keeps the linker from inlining it.
    #[unsafe(no_mangle)]
    #[inline(never)]
    #[linkage = "weak"]
    extern "C" fn policy(request: *const Request) -> u32 {
        // Keeps the argument, and with it the function's type.
        core::hint::black_box(request);
        PASSTHROUGH
    }

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
        let mut request = Request {
            sector: rq.load::<u64>(Member::RequestSector),
            nr_sectors: rq.load::<u32>(Member::RequestBytes) >> 9,
            flags: 0,
            op: Op::from_req_op(cmd_flags & req_op::MASK) as u32,
            qid: qid as u16,
            tag: tag as u16,
            block: 0,
            heat: 0,
            ioprio: ioprio(rq),
        };
        // Most requests have none of these flags.
        if cmd_flags & config!(any_flag) != 0 {
            request.flags = flags(cmd_flags);
        }
        let heat = if HAS_CACHE {
            look_up(&mut request)
        } else {
            core::ptr::null_mut()
        };
        if config!(written_shift) != 0 && request.op == Op::Read as u32 {
            flag_never_written(&mut request);
        }
        let answer = checked(policy(&request));
        store_verdict(&request, slot, answer);
        if config!(uncounted) == 0 {
            count(&request, answer);
        }
        if !heat.is_null() {
            warm(&request, heat, answer);
        }
    }

    /// Looks up whether the request is cached and the heat of its block. Returns a pointer to the heat counter, or
    /// null: with an `Option`, the verifier sees a read of its uninitialised half.
    #[inline(always)]
    fn look_up(request: &mut Request) -> *mut u8 {
        let shift = config!(cache_shift) - 9;
        request.block = request.sector >> (shift & 63);
        let block = request.block as u32;
        let Some(entry) = INDEX.get_ptr(block) else {
            return core::ptr::null_mut();
        };
        // SAFETY: the server updates the word only with whole-word atomic operations.
        let entry = unsafe { entry.read_volatile() };
        // Almost always every region can be read.
        if entry.is_present() {
            let is_cached = entry.hidden() == 0
                || entry.serves(regions(config!(cache_shift), request.sector, request.nr_sectors));
            request.flags |= if is_cached {
                request_flags::CACHED
            } else {
                request_flags::PARTLY_CACHED
            };
        }
        let Some(word) = HEAT.get_ptr_mut(block >> 3) else {
            return core::ptr::null_mut();
        };
        // SAFETY: one of the word's eight bytes.
        let heat = unsafe { word.cast::<u8>().add((block & 7) as usize) };
        // SAFETY: as above. Other CPUs may write it at the same time; a lost count is harmless.
        request.heat = unsafe { heat.read_volatile() }.into();
        heat
    }

    /// Counts a read in its block's heat, unless the policy hinted `COLD`.
    #[inline(always)]
    fn warm(request: &Request, heat: *mut u8, answer: u32) {
        let counts = answer & (hint::COLD as u32) << 16 == 0;
        if request.op == Op::Read as u32 && counts && request.heat < config!(heat_limit) {
            // SAFETY: `look_up` returned it, a valid pointer into the map.
            unsafe { heat.write_volatile(request.heat as u8 + 1) };
        }
    }

    /// Validates a policy's answer: to the verifier, and so to us, it can be any number.
    #[inline(always)]
    fn checked(answer: u32) -> u32 {
        // The most common answers first: saves a dozen instructions.
        if answer == PASSTHROUGH || answer == HIT || Decision::is_answer(answer) {
            return answer;
        }
        Decision::BAD_ANSWER.pack()
    }

    /// Maximum words of `written` that a request spans: 1 MiB in 4 KiB blocks, not aligned to a word.
    const MAX_WORDS: u32 = 6;

    /// Flags a read whose whole range was never written. Not inlined, because part of it would then run for every
    /// request.
    #[inline(never)]
    fn flag_never_written(request: &mut Request) {
        if never_written(request) {
            request.flags |= request_flags::NEVER_WRITTEN;
        }
    }

    /// Whether no block of a read is marked as holding data.
    #[inline(always)]
    fn never_written(request: &Request) -> bool {
        if request.nr_sectors == 0 {
            return false;
        }
        let shift = (config!(written_shift) - 9) & 63;
        let first = request.sector >> shift;
        let last = (request.sector + u64::from(request.nr_sectors) - 1) >> shift;
        let mut mask = u64::MAX << (first & 63);
        for i in 0..MAX_WORDS {
            let index = (first >> 6) + u64::from(i);
            let is_last = index == last >> 6;
            if is_last {
                mask &= u64::MAX >> (63 - (last & 63));
            }
            match WRITTEN.get(index as u32) {
                Some(word) if word & mask == 0 => {}
                _ => return false,
            }
            if is_last {
                return true;
            }
            mask = u64::MAX;
        }
        false
    }

    /// Stores the verdict for the server. The head is written last: a slot with a head is complete.
    #[inline(always)]
    fn store_verdict(request: &Request, slot: u32, answer: u32) {
        let Some(slot) = VERDICTS.get_ptr_mut(slot) else {
            return;
        };
        let head = VerdictSlot::head(answer, request.op, request.nr_sectors);
        let words = slot.cast::<u64>();
        // SAFETY: A slot is two words, and the server does not read a slot before its tag arrives.
        unsafe { words.add(1).write_volatile(request.sector) };
        // SAFETY: As above.
        unsafe { words.write_volatile(head) };
    }

    /// Counts the decision. Only this program writes this CPU's counters, and it does not nest.
    #[inline(always)]
    fn count(request: &Request, answer: u32) {
        let Some(decisions) = DECISIONS.get_ptr_mut(request.op) else {
            return;
        };
        let counters = decisions.cast::<u64>();
        // Masks instead of checks: they prove to the verifier that every index is inside `Decisions`. Each verdict has
        // eight reasons: see `Decisions::word`.
        let verdict = (answer.wrapping_sub(Verdict::Passthrough as u32) & 3) as usize;
        let reason = (answer >> 8 & 7) as usize;
        // SAFETY: At most word 31, the last before `Decisions::SECTORS`.
        increment(unsafe { counters.add(verdict * Reason::COUNT + reason) }, 1);
        // SAFETY: One of its words.
        increment(
            unsafe { counters.add(Decisions::SECTORS) },
            u64::from(request.nr_sectors),
        );
        // Only a reason of the policy's own has a code.
        if answer >> 24 != 0
            && let Some(counter) = CODES.get_ptr_mut(answer >> 24)
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
