//! A request as the policy sees it: what the kernel says of it, and what the maps say of its block.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use ublk_bpf_abi::{BlockState, IndexEntry, Member, Op, Request, regions, req_op, request_flags};

use crate::issued::{config, flags, ioprio};
use crate::kernel::KernelPtr;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Which blocks may hold data.
#[btf_map(name = "written")]
static WRITTEN: Array<u64, 1, MMAPABLE> = Array::new();

/// Which blocks are cached, and in which slot.
#[btf_map(name = "index")]
static INDEX: Array<IndexEntry, 1, MMAPABLE> = Array::new();

/// Recent reads of each block: one byte per block, eight per entry.
#[btf_map(name = "heat")]
static HEAT: Array<u64, 1, MMAPABLE> = Array::new();

/// The request without what the maps say of it.
#[inline(always)]
pub(crate) fn request(rq: KernelPtr, cmd_flags: u32, qid: u32, tag: u32) -> Request {
    Request {
        sector: rq.load::<u64>(Member::RequestSector),
        nr_sectors: rq.load::<u32>(Member::RequestBytes) >> 9,
        flags: 0,
        op: Op::from_req_op(cmd_flags & req_op::MASK) as u32,
        qid: qid as u16,
        tag: tag as u16,
        block: 0,
        heat: 0,
        ioprio: ioprio(rq),
    }
}

/// Adds flags, block and heat. Returns a pointer to the heat counter of its block: null without a cache.
#[inline(always)]
pub(crate) fn complete<const HAS_CACHE: bool>(request: &mut Request, cmd_flags: u32) -> *mut u8 {
    // Most requests have none of these flags.
    if cmd_flags & config!(any_flag) != 0 {
        request.flags = flags(cmd_flags);
    }
    let heat = if HAS_CACHE {
        look_up(request)
    } else {
        core::ptr::null_mut()
    };
    if config!(written_shift) != 0 && request.op == Op::Read as u32 {
        flag_never_written(request);
    }
    heat
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
    match entry.state() {
        BlockState::Absent => {}
        // Almost always every region can be read.
        BlockState::Present if entry.hidden() == 0 => request.flags |= request_flags::CACHED,
        _ => request.flags |= unusual(entry, request.sector, request.nr_sectors),
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

/// What the flags say of a request of a block that is cached in part, dirty or unverified. Not inlined, because part of it
/// would then run for every request.
#[inline(never)]
fn unusual(entry: IndexEntry, sector: u64, nr_sectors: u32) -> u32 {
    let dirty = match entry.state() {
        BlockState::Present => 0,
        BlockState::Dirty => request_flags::DIRTY,
        BlockState::Absent | BlockState::Unverified => return 0,
    };
    if entry.hidden() & regions(config!(cache_shift), sector, nr_sectors) == 0 {
        dirty | request_flags::CACHED
    } else {
        dirty | request_flags::PARTLY_CACHED
    }
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
