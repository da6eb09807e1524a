//! Locks the process's memory: a page fault that needs this very device to be served could never end.

use std::io;

use super::process::page_size;

/// What [`lock_present_memory`] came to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Locked by now.
    pub locked: u64,
    /// What there is to be locked.
    pub present: u64,
    /// `RLIMIT_MEMLOCK`.
    pub limit: u64,
}

/// Whether all memory can be locked, now and later: `RLIMIT_MEMLOCK` is unlimited, or CAP_IPC_LOCK makes it so. Raises
/// the limit where the process may (CAP_SYS_RESOURCE).
pub fn may_lock_all_memory() -> bool {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the limit is readable memory that lives over the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) } == 0 {
        return true;
    }
    match limit() {
        Ok(libc::RLIM_INFINITY) => true,
        Ok(limit) => can_map_locked(limit),
        Err(_) => false,
    }
}

/// Whether the kernel gives locked memory beyond `limit`. Capabilities count in the first user namespace only, so their
/// mask would not say. Pages without access are accounted for and never taken.
fn can_map_locked(limit: u64) -> bool {
    let page = page_size();
    let Some(length) = usize::try_from(limit)
        .ok()
        .and_then(|limit| limit.checked_add(page))
    else {
        return true;
    };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_LOCKED;
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: exactly the mapping just made, which nothing refers to.
    unsafe { libc::munmap(start, length) };
    true
}

/// Locks all memory of the process, present and future. Where [`may_lock_all_memory`] is false, a later allocation or
/// thread could fail for it.
pub fn lock_all_memory() -> io::Result<()> {
    // SAFETY: takes no pointer; it changes no contents.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })
}

/// Locks what the process has mapped by now, the smallest mappings first, until `RLIMIT_MEMLOCK` is reached. What is
/// mapped later is neither locked nor limited by this.
pub fn lock_present_memory() -> io::Result<Amount> {
    let limit = limit()?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut mappings: Vec<(usize, usize)> = maps.lines().filter_map(parse_mapping).collect();
    mappings.sort_by_key(|&(_, length)| length);
    let mut amount = Amount {
        locked: 0,
        present: 0,
        limit,
    };
    for (start, length) in mappings {
        amount.present += length as u64;
        // SAFETY: it changes no contents; an address that is mapped no longer is an error.
        if unsafe { libc::mlock(start as *const libc::c_void, length) } == 0 {
            amount.locked += length as u64;
        }
    }
    Ok(amount)
}

/// Start and length of a mapping that can be paged out, from its line in `/proc/PID/maps`.
///
/// Not so the kernel's own pages (BPF maps, rings, descriptors), which stay in memory. And the main thread's stack is left
/// out: once locked, it could not grow beyond the limit, and a fault there would end the process.
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

/// `RLIMIT_MEMLOCK` in bytes.
fn limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limit is writable memory that lives over the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    Ok(limit.rlim_cur)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_paged_out_is_to_be_locked() {
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
