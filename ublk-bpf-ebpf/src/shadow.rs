//! The shadow: has a second policy answer every request of one disk, and counts how its answers compare with those that
//! the classifier stored. Nothing acts on them.
//!
//! It is attached to `block_rq_issue`, behind the classifier, only while there is a shadow policy. It sees each request
//! as the classifier did: with the state of the cache that the live policy has made of it.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(linkage))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod advice;
#[cfg(target_arch = "bpf")]
mod answer;
#[cfg(target_arch = "bpf")]
mod issued;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod seen;

#[cfg(target_arch = "bpf")]
mod compare {
    use aya_ebpf::{
        btf_maps::{Array, PerCpuArray},
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };
    use ublk_bpf_abi::{AboutShadow, Compared, Member, Op, Reason, Request, Verdict, hint};
    // Brings the panic handler.
    use ublk_bpf_policy as _;

    use crate::advice::advice;
    use crate::answer::{checked, policy};
    use crate::issued::{config, is_ours, locate};
    use crate::kernel::KernelPtr;
    use crate::seen;

    /// Both answers, per operation.
    #[btf_map(name = "compared")]
    static COMPARED: PerCpuArray<Compared, { Op::COUNT }> = PerCpuArray::new();

    /// Counters of the shadow policy's own reasons.
    #[btf_map(name = "shadow_codes")]
    static CODES: PerCpuArray<u64, 256> = PerCpuArray::new();

    /// Which policy it is. Not used here: created and pinned with the other maps.
    #[btf_map(name = "about")]
    static ABOUT: Array<AboutShadow, 1> = Array::new();

    /// The licence that the kernel reads.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    const COLD: u32 = (hint::COLD as u32) << 16;

    #[btf_tracepoint(function = "block_rq_issue")]
    fn shadow(ctx: BtfTracePointContext) -> i32 {
        let rq = KernelPtr(ctx.arg::<*const u8>(0));
        if is_ours(rq) {
            // The verifier knows the value and removes the dead branch.
            if config!(cache_shift) == 0 {
                compare::<false>(rq);
            } else {
                compare::<true>(rq);
            }
        }
        0
    }

    #[inline(always)]
    fn compare<const HAS_CACHE: bool>(rq: KernelPtr) {
        let Some((qid, tag, slot)) = locate(rq) else {
            return;
        };
        let cmd_flags = rq.load::<u32>(Member::RequestFlags);
        let mut request = seen::request(rq, cmd_flags, qid, tag);
        seen::complete::<HAS_CACHE>(&mut request, cmd_flags);
        let live = advice(slot, request.sector, request.nr_sectors, request.op);
        take_back_heat(&mut request, live);
        // Nothing acts on the rest: neither tenant nor delay.
        let answer = checked(policy(&request)) as u32;
        count(request.op, live, answer);
    }

    /// Takes this read out of its block's heat: the classifier has counted it since it asked its policy. At the limit it
    /// cannot be told whether it did.
    #[inline(always)]
    fn take_back_heat(request: &mut Request, live: u32) {
        let was_counted = request.op == Op::Read as u32 && live != 0 && live & COLD == 0;
        if was_counted && request.heat != 0 && request.heat < config!(heat_limit) {
            request.heat -= 1;
        }
    }

    /// Only this program writes this CPU's counters, and it does not nest.
    #[inline(always)]
    fn count(op: u32, live: u32, answer: u32) {
        let Some(compared) = COMPARED.get_ptr_mut(op) else {
            return;
        };
        let words = compared.cast::<u64>();
        // Each of these is in range; the verifier wants to see it.
        let verdicts = (live & 7) as usize * Verdict::COUNT + (answer & 7) as usize;
        if verdicts < Compared::LIVE_REASONS {
            // SAFETY: one of `verdicts`.
            increment(unsafe { words.add(verdicts) });
        }
        if live != 0 {
            // SAFETY: one of `live_reasons`, of which there are eight.
            increment(unsafe { words.add(Compared::LIVE_REASONS + (live >> 8 & 7) as usize) });
        }
        // SAFETY: one of `shadow_reasons`, of which there are eight.
        increment(unsafe { words.add(Compared::SHADOW_REASONS + (answer >> 8 & 7) as usize) });
        let cached = usize::from(caches(live)) + 2 * usize::from(caches(answer));
        // SAFETY: one of `cached`, of which there are four.
        increment(unsafe { words.add(Compared::CACHED + cached) });
        // Only a reason of the policy's own has a code.
        if answer >> 24 != 0
            && let Some(counter) = CODES.get_ptr_mut(answer >> 24)
        {
            increment(counter);
        }
    }

    const _: () = assert!(Reason::COUNT == 8);

    /// Whether a packed decision brings the block into the cache.
    #[inline(always)]
    fn caches(packed: u32) -> bool {
        hint::caches((packed >> 16) as u8)
    }

    #[inline(always)]
    fn increment(counter: *mut u64) {
        // SAFETY: `count` passes only this CPU's counters.
        unsafe { *counter += 1 };
    }
}
