//! Locks the process's memory: a page fault that this very device would have to serve never ends.

use std::io;

use rustix::mm::{MapFlags, MlockAllFlags, ProtFlags, mlockall, mmap_anonymous, munlockall, munmap};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::process::{locked_memory_limit, page_size};

/// The result of [`lock_present_memory`], in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockedMemory {
    /// Locked.
    pub locked: u64,
    /// Mapped, and able to be paged out unless locked.
    pub present: u64,
    /// `RLIMIT_MEMLOCK`.
    pub limit: u64,
}

/// Whether all memory, present and future, can be locked: `RLIMIT_MEMLOCK` is unlimited, or CAP_IPC_LOCK overrides it.
/// Raises the limit if the process may (CAP_SYS_RESOURCE).
pub fn may_lock_all_memory() -> bool {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    setrlimit(Resource::Memlock, unlimited).is_ok() || can_map_locked(locked_memory_limit())
}

/// Whether the kernel maps locked memory beyond `limit`. Capabilities count in the first user namespace only, so the mask
/// of capabilities does not answer this. Pages without access are accounted for but never allocated.
fn can_map_locked(limit: u64) -> bool {
    let page = page_size();
    let length = usize::try_from(limit)
        .ok()
        .and_then(|limit| limit.checked_add(page));
    let Some(length) = length else {
        return true;
    };
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::LOCKED;
    // SAFETY: the kernel chooses the address, so no existing memory is touched.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::empty(), flags) };
    let Ok(start) = start else {
        return false;
    };
    // SAFETY: exactly the mapping made above, to which there are no references.
    let unmapped = unsafe { munmap(start, length) };
    debug_assert_eq!(unmapped, Ok(()), "munmap of a whole mapping cannot fail");
    true
}

/// Makes all threads allocate from one heap. By default glibc reserves 64 MiB of address space for a thread that
/// allocates, and all of it counts as locked. A server's threads hardly allocate once it is ready, so they do not
/// contend. To be called before there is a second thread.
pub fn keep_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call changes a setting of the allocator and touches no memory of the program.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free memory of the heap back to the kernel: parsing the kernel's BTF leaves 20 MiB of it. Unlocks all memory,
/// since locked pages cannot be given back.
pub fn shrink_heap() {
    // It fails for want of a privilege only, and then nothing was locked.
    let _ = munlockall();
    #[cfg(target_env = "gnu")]
    // SAFETY: the call releases pages of the allocator that hold no allocation.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Locks all memory of the process, present and future. Unless [`may_lock_all_memory`], a later allocation or thread
/// could fail because of it.
pub fn lock_all_memory() -> io::Result<()> {
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)?)
}

/// Locks what the process has mapped now, the smallest mappings first, up to `RLIMIT_MEMLOCK`. Later mappings are neither
/// locked nor limited by this.
pub fn lock_present_memory() -> io::Result<LockedMemory> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut mappings: Vec<(usize, usize)> = maps.lines().filter_map(parse_mapping).collect();
    mappings.sort_by_key(|&(_, length)| length);
    let mut memory = LockedMemory {
        locked: 0,
        present: 0,
        limit: locked_memory_limit(),
    };
    for (start, length) in mappings {
        memory.present += length as u64;
        // SAFETY: the call changes no contents, and returns an error for an address that is no longer mapped.
        if unsafe { libc::mlock(start as *const libc::c_void, length) } == 0 {
            memory.locked += length as u64;
        }
    }
    Ok(memory)
}

/// Start and length of a mapping that can be paged out, from its line in `/proc/PID/maps`.
///
/// The kernel's own pages (BPF maps, rings, descriptors) are never paged out. The main thread's stack is skipped: once
/// locked, it could not grow beyond the limit, and a fault there would end the process.
fn parse_mapping(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let access = fields.next()?;
    let name = fields.nth(3).unwrap_or_default();
    let is_kernels = ["anon_inode:", "/dev/", "[v", "[stack]"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    if access.starts_with("---") || is_kernels {
        return None;
    }
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_that_can_be_paged_out_are_locked() {
        let heap = "55d0c8a00000-55d0c8a21000 rw-p 00000000 00:00 0                          [heap]";
        assert_eq!(parse_mapping(heap), Some((0x55d0_c8a0_0000, 0x21000)));
        let text = "55d0c8000000-55d0c8001000 r-xp 00001000 fe:00 77   /usr/bin/ublk-bpf";
        assert_eq!(parse_mapping(text), Some((0x55d0_c800_0000, 0x1000)));
        let anonymous = "7f0000000000-7f0000002000 rw-p 00000000 00:00 0";
        assert_eq!(parse_mapping(anonymous), Some((0x7f00_0000_0000, 0x2000)));
        for skipped in [
            "7f0000002000-7f0000003000 ---p 00000000 00:00 0",
            "7f0000003000-7f0000004000 rw-s 00000000 00:0e 1  anon_inode:bpf-map",
            "7f0000004000-7f0000005000 r--s 00000000 00:06 2  /dev/ublkc0",
            "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0  [stack]",
            "7ffc00030000-7ffc00032000 r-xp 00000000 00:00 0  [vdso]",
            "",
        ] {
            assert_eq!(parse_mapping(skipped), None, "{skipped}");
        }
    }
}
