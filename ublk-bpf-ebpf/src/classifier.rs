//! The classifier: asks the policy about every request of one disk, before the server sees it.
//!
//! It hangs on the tracepoint `block_rq_issue`, which fires in the submitter's context when a request is
//! started and before ublk hands its tag to the server, and leaves its verdict in the slot of the tag.
//! The kernel skips it, silently, for a request that is issued while it already runs on that CPU, so a slot
//! says which request it is about and the server checks that.
//!
//! It runs for every request of every disk, and for each of ours once: its length is measured, so it loads
//! what it needs through plain pointers (the server puts the offsets of the running kernel's structures into its
//! instructions, see [`Member`](ublk_bpf_abi::Member)) and calls no helper on the way to a verdict.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(linkage))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod classify {
    use core::cell::UnsafeCell;

    use aya_ebpf::{
        Global,
        bindings::BPF_F_MMAPABLE,
        btf_maps::{Array, PerCpuArray},
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };
    use ublk_bpf_abi::{
        CacheCounters, Config, Decision, Decisions, IndexEntry, Member, Op, Reason, Request, ServerCounters,
        Verdict, VerdictSlot, hint, regions, req_op, request_flags,
    };
    // Brings the panic handler.
    use ublk_bpf_policy as _;

    const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

    /// What the loader says about this kernel and this device.
    #[unsafe(no_mangle)]
    static CONFIG: Global<Config> = Global::new(Config {
        disk_name: [0; 2],
        abi_version: 0,
        depth: 0,
        written_shift: 0,
        flag_masks: [0; request_flags::FROM_KERNEL],
        any_flag: 0,
        queues: 0,
        cache_shift: 0,
        heat_limit: 0,
        reserved: 0,
    });

    // The loader sets the number of entries of each of these but `decisions`, `cache` and `codes`.

    /// The verdict of each tag.
    #[btf_map(name = "verdicts")]
    static VERDICTS: Array<VerdictSlot, 1, MMAPABLE> = Array::new();

    /// What was decided, for each operation.
    #[btf_map(name = "decisions")]
    static DECISIONS: PerCpuArray<Decisions, { Op::COUNT }> = PerCpuArray::new();

    /// What the server counted, for each queue. Not read here: it lives and is pinned with the others.
    #[btf_map(name = "server")]
    static SERVER: Array<ServerCounters, 1, MMAPABLE> = Array::new();

    /// Which blocks may hold data.
    #[btf_map(name = "written")]
    static WRITTEN: Array<u64, 1, MMAPABLE> = Array::new();

    /// Which blocks are in the cache, and where.
    #[btf_map(name = "index")]
    static INDEX: Array<IndexEntry, 1, MMAPABLE> = Array::new();

    /// How often each block was read of late: a byte for each, eight to an entry.
    #[btf_map(name = "heat")]
    static HEAT: Array<u64, 1, MMAPABLE> = Array::new();

    /// What the server counted of the cache. Not read here.
    #[btf_map(name = "cache")]
    static CACHE: Array<CacheCounters, 1, MMAPABLE> = Array::new();

    /// How often the policy had each reason of its own.
    #[btf_map(name = "codes")]
    static CODES: PerCpuArray<u64, 256> = PerCpuArray::new();

    /// The licence that the kernel reads.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    const PASSTHROUGH: u32 = Decision::new(Verdict::Passthrough, Reason::Default).pack();
    const HIT: u32 = Decision::new(Verdict::Hit, Reason::Cached).pack();

    /// The answer while no policy is attached: pass through. A policy takes this function's place, so it must
    /// stay a function: `weak` keeps the linker from seeing through it.
    #[unsafe(no_mangle)]
    #[inline(never)]
    #[linkage = "weak"]
    extern "C" fn policy(request: *const Request) -> u32 {
        // The loads keep the argument, and with it the function's type, as they are.
        core::hint::black_box(request);
        PASSTHROUGH
    }

    /// One field of [`CONFIG`]: a load that the compiler may not fold and the verifier does.
    macro_rules! config {
        ($($field:tt)+) => {{
            let config = (&raw const CONFIG).cast::<Config>();
            // SAFETY: `Global` is a transparent wrapper of an initialised `Config` that nobody writes.
            unsafe { (&raw const (*config).$($field)+).read_volatile() }
        }};
    }

    #[btf_tracepoint(function = "block_rq_issue")]
    fn classify(ctx: BtfTracePointContext) -> i32 {
        let rq = Kernel(ctx.arg::<*const u8>(0));
        if is_ours(rq) {
            // The verifier knows which it is, and leaves out the other.
            if config!(cache_shift) == 0 {
                decide::<false>(rq);
            } else {
                decide::<true>(rq);
            }
        }
        0
    }

    /// The request queue of our disk, once a request of it was seen: it has the same one as long as it lives.
    static QUEUE: Remembered = Remembered(UnsafeCell::new(core::ptr::null()));

    /// A pointer that is compared and never followed.
    struct Remembered(UnsafeCell<*const u8>);

    // SAFETY: it is accessed by loads and stores of its whole only, and all CPUs store the same.
    unsafe impl Sync for Remembered {}

    /// Whether the request is for our disk.
    #[inline(always)]
    fn is_ours(rq: Kernel) -> bool {
        let queue = rq.pointer(Member::RequestQueue);
        // SAFETY: see `Remembered`.
        let ours = unsafe { QUEUE.0.get().read_volatile() };
        if ours.is_null() {
            return is_first_of_ours(queue);
        }
        queue.0 == ours
    }

    /// Whether the disk is ours by its name: that is known before the disk exists, so that not even the first request
    /// is missed.
    #[inline(always)]
    fn is_first_of_ours(queue: Kernel) -> bool {
        let disk = queue.pointer(Member::QueueDisk);
        let is_ours = disk.load::<u64>(Member::DiskName) == config!(disk_name[0])
            && disk.load::<u64>(Member::DiskNameEnd) == config!(disk_name[1]);
        if is_ours {
            // SAFETY: see `Remembered`.
            unsafe { QUEUE.0.get().write_volatile(queue.0) };
        }
        is_ours
    }

    #[inline(always)]
    fn decide<const HAS_CACHE: bool>(rq: Kernel) {
        let Some((qid, tag, slot)) = place(rq) else {
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
        // Most requests carry none of them.
        if cmd_flags & config!(any_flag) != 0 {
            request.flags = flags(cmd_flags);
        }
        let heat = if HAS_CACHE {
            look_up(&mut request)
        } else {
            core::ptr::null_mut()
        };
        if config!(written_shift) != 0 && request.op == Op::Read as u32 {
            note_never_written(&mut request);
        }
        let answer = checked(policy(&request));
        leave_verdict(&request, slot, answer);
        count(&request, answer);
        if !heat.is_null() {
            warm(&request, heat, answer);
        }
    }

    /// The request's queue and tag, and the slot of its verdict.
    #[inline(always)]
    fn place(rq: Kernel) -> Option<(u32, u32, u32)> {
        let tag = rq.load::<u32>(Member::RequestTag);
        // The verifier knows the number of queues and leaves out the other way. With one, a tag that is none has no slot.
        if config!(queues) == 1 {
            return Some((0, tag, tag));
        }
        let depth = config!(depth);
        if tag >= depth {
            return None;
        }
        let qid = rq.pointer(Member::RequestHctx).load::<u32>(Member::HctxNumber);
        Some((qid, tag, qid * depth + tag))
    }

    /// The priority of who asks. A request without data has no bio, of which a load gives zero.
    #[inline(always)]
    fn ioprio(rq: Kernel) -> u32 {
        let bio = rq.pointer(Member::RequestBio);
        bio.load::<u16>(Member::BioPriority).into()
    }

    /// Says of a request whether the cache has it and how hot its block is. Returns where that is counted, or null: an
    /// `Option` of it has a half that is never written, and the verifier finds it read.
    #[inline(always)]
    fn look_up(request: &mut Request) -> *mut u8 {
        let shift = config!(cache_shift) - 9;
        request.block = request.sector >> (shift & 63);
        let block = request.block as u32;
        let Some(entry) = INDEX.get_ptr(block) else {
            return core::ptr::null_mut();
        };
        // SAFETY: the server writes the word with atomic stores of its whole.
        let entry = unsafe { entry.read_volatile() };
        // Nearly always nobody writes to it.
        if entry.is_present()
            && (entry.writing() == 0
                || entry.serves(regions(config!(cache_shift), request.sector, request.nr_sectors)))
        {
            request.flags |= request_flags::CACHED;
        }
        let Some(word) = HEAT.get_ptr_mut(block >> 3) else {
            return core::ptr::null_mut();
        };
        // SAFETY: one of the word's eight bytes.
        let heat = unsafe { word.cast::<u8>().add((block & 7) as usize) };
        // SAFETY: as above. Others may write it at the same time: a count may get lost, which changes no answer much.
        request.heat = unsafe { heat.read_volatile() }.into();
        heat
    }

    /// Counts a read in its block's heat, unless the policy does not want that.
    #[inline(always)]
    fn warm(request: &Request, heat: *mut u8, answer: u32) {
        let counts = answer & (hint::COLD as u32) << 16 == 0;
        if request.op == Op::Read as u32 && counts && request.heat < config!(heat_limit) {
            // SAFETY: `look_up` found it in its map.
            unsafe { heat.write_volatile(request.heat as u8 + 1) };
        }
    }

    /// What a policy answers is any number, to the verifier and so to us.
    #[inline(always)]
    fn checked(answer: u32) -> u32 {
        // The commonest answers first: it is worth a dozen instructions.
        if answer == PASSTHROUGH || answer == HIT || Decision::is_answer(answer) {
            return answer;
        }
        Decision::BAD_ANSWER.pack()
    }

    /// Our flags for the kernel's. A function of its own, for inlined it would take the caller's registers.
    #[inline(never)]
    fn flags(cmd_flags: u32) -> u32 {
        let mut flags = 0;
        for (bit, mask) in config!(flag_masks).iter().enumerate() {
            if cmd_flags & mask != 0 {
                flags |= 1 << bit;
            }
        }
        flags
    }

    /// Words of `written` that a request may need: 1 MiB in blocks of 4 KiB, not aligned to a word.
    const MAX_WORDS: u32 = 6;

    /// Says of a read whether all of it was never written. A function of its own, for inlined some of it would be done for
    /// every request.
    #[inline(never)]
    fn note_never_written(request: &mut Request) {
        if never_written(request) {
            request.flags |= request_flags::NEVER_WRITTEN;
        }
    }

    /// Whether every block of a read is marked as free of data.
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

    /// Leaves the verdict for the server. The head goes last: a slot with a head is whole.
    #[inline(always)]
    fn leave_verdict(request: &Request, slot: u32, answer: u32) {
        let Some(slot) = VERDICTS.get_ptr_mut(slot) else {
            return;
        };
        let head = VerdictSlot::head(answer, request.op, request.nr_sectors);
        let words = slot.cast::<u64>();
        // SAFETY: A slot is two words, and the server reads no tag's slot before the tag arrives.
        unsafe { words.add(1).write_volatile(request.sector) };
        // SAFETY: As above.
        unsafe { words.write_volatile(head) };
    }

    /// Counts the decision. Nobody else writes this CPU's counters: the program does not nest.
    #[inline(always)]
    fn count(request: &Request, answer: u32) {
        let Some(decisions) = DECISIONS.get_ptr_mut(request.op) else {
            return;
        };
        let counters = decisions.cast::<u64>();
        // Masks, not checks: they hold every index inside of `Decisions` in the verifier's eyes too. Each verdict has eight
        // reasons: `Decisions::word`.
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
        // SAFETY: `count` hands over counters of this CPU only.
        unsafe { *counter += by };
    }

    /// A pointer to one of the kernel's structures. A load from it cannot fault: where the kernel is not sure of
    /// the pointer, it makes the load give zero.
    #[derive(Clone, Copy)]
    struct Kernel(*const u8);

    impl Kernel {
        /// Loads a member of the structure that it points to.
        #[inline(always)]
        fn load<T: Copy>(self, member: Member) -> T {
            let placeholder = usize::from(member.placeholder());
            // SAFETY: The verifier admits this load only at a member of `T`'s size of the structure that it knows
            // the pointer to be, and the kernel catches its fault.
            unsafe { self.0.add(placeholder).cast::<T>().read_volatile() }
        }

        #[inline(always)]
        fn pointer(self, member: Member) -> Self {
            Self(self.load(member))
        }
    }
}
