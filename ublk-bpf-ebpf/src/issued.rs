//! A request that the block layer issues: whether it is for our disk, and what it says. For the programs that are attached
//! to `block_rq_issue`.

use core::cell::UnsafeCell;

use aya_ebpf::Global;
use ublk_bpf_abi::{Config, Member, request_flags};

use crate::kernel::KernelPtr;

/// Configuration of this kernel and this device, set by the loader.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Global<Config> = Global::new(Config {
    disk_name: [0; 2],
    abi_version: 0,
    depth: 0,
    written_shift: 0,
    flag_masks: [0; request_flags::FROM_KERNEL],
    any_flag: 0,
    queues: 0,
    cache_shift: 0,
    heat_limit: 0,
    uncounted: 0,
});

/// One field of [`CONFIG`]. The compiler must not constant-fold this load; the verifier does.
macro_rules! config {
    ($($field:tt)+) => {{
        let config = (&raw const $crate::issued::CONFIG).cast::<::ublk_bpf_abi::Config>();
        // SAFETY: `Global` is a transparent wrapper of an initialised `Config` that is never written.
        unsafe { (&raw const (*config).$($field)+).read_volatile() }
    }};
}

pub(crate) use config;

/// The request queue of our disk, once its first request was seen. It does not change during the disk's life.
static QUEUE: QueuePtr = QueuePtr(UnsafeCell::new(core::ptr::null()));

/// A pointer that is compared but never dereferenced.
struct QueuePtr(UnsafeCell<*const u8>);

// SAFETY: it is loaded and stored only as a whole word, and all CPUs store the same value.
unsafe impl Sync for QueuePtr {}

/// Whether the request is for our disk.
#[inline(always)]
pub(crate) fn is_ours(rq: KernelPtr) -> bool {
    let queue = rq.pointer(Member::RequestQueue);
    // SAFETY: see `QueuePtr`.
    let ours = unsafe { QUEUE.0.get().read_volatile() };
    if ours.is_null() {
        return is_first_of_ours(queue);
    }
    queue.0 == ours
}

/// Whether the disk has our name. The name is known before the disk exists, so the first request is not missed.
#[inline(always)]
fn is_first_of_ours(queue: KernelPtr) -> bool {
    let disk = queue.pointer(Member::QueueDisk);
    let is_ours = disk.load::<u64>(Member::DiskName) == config!(disk_name[0])
        && disk.load::<u64>(Member::DiskNameEnd) == config!(disk_name[1]);
    if is_ours {
        // SAFETY: see `QueuePtr`.
        unsafe { QUEUE.0.get().write_volatile(queue.0) };
    }
    is_ours
}

/// The request's queue and tag, and the slot of its verdict.
#[inline(always)]
pub(crate) fn locate(rq: KernelPtr) -> Option<(u32, u32, u32)> {
    let tag = rq.load::<u32>(Member::RequestTag);
    // The verifier knows the number of queues and removes the dead branch. With one queue, an invalid tag has no
    // slot.
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

/// I/O priority of the submitter. A request without data has no bio; the load then returns zero.
#[inline(always)]
pub(crate) fn ioprio(rq: KernelPtr) -> u32 {
    let bio = rq.pointer(Member::RequestBio);
    bio.load::<u16>(Member::BioPriority).into()
}

/// Translates the kernel's flags to ours. Not inlined, because it would use up the caller's registers.
#[inline(never)]
pub(crate) fn flags(cmd_flags: u32) -> u32 {
    let mut flags = 0;
    for (bit, mask) in config!(flag_masks).iter().enumerate() {
        if cmd_flags & mask != 0 {
            flags |= 1 << bit;
        }
    }
    flags
}
