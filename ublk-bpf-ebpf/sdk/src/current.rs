//! The task that submits the request.
//!
//! Each item is a function, so a policy that does not use it pays nothing. The answers are correct for I/O that a
//! process submits itself: reads and direct I/O. Kernel threads submit buffered writes later. On the host, these
//! functions return what this thread last passed to [`set`].

#[cfg(target_arch = "bpf")]
use core::mem::MaybeUninit;

#[cfg(target_arch = "bpf")]
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};

/// Thread ID, as in `gettid(2)`.
#[must_use]
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub fn pid() -> u32 {
    // The low half is the thread.
    bpf_get_current_pid_tgid() as u32
}

/// Process ID, as in `getpid(2)`.
#[must_use]
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Thread name, zero padded; all zeroes if it cannot be read.
#[must_use]
#[inline(always)]
pub fn comm() -> [u8; 16] {
    let [first, last] = comm_words();
    let mut name = [0; 16];
    name[..8].copy_from_slice(&first.to_le_bytes());
    name[8..].copy_from_slice(&last.to_le_bytes());
    name
}

/// Whether the thread has this name. Compares the first 15 bytes, as many as the kernel keeps. Takes a few
/// instructions, while comparing [`comm`] takes a loop.
#[must_use]
#[inline(always)]
pub fn is_named(name: &str) -> bool {
    comm_words() == words(name)
}

/// A name in the form that [`comm_words`] returns.
#[inline(always)]
const fn words(name: &str) -> [u64; 2] {
    let name = name.as_bytes();
    let mut words = [0; 2];
    let mut i = 0;
    while i < name.len() && i < 15 {
        words[i / 8] |= (name[i] as u64) << (8 * (i % 8));
        i += 1;
    }
    words
}

/// Thread name as two little-endian words, which are faster to compare and copy than bytes.
#[inline(always)]
#[cfg(target_arch = "bpf")]
fn comm_words() -> [u64; 2] {
    let mut words = MaybeUninit::<[u64; 2]>::uninit();
    // SAFETY: The buffer has 16 bytes.
    unsafe { generated::bpf_get_current_comm(words.as_mut_ptr().cast(), 16) };
    // SAFETY: The helper writes all of them; zeroes if it fails.
    unsafe { words.assume_init() }
}

/// A cgroup, as a key of a map: `ublk-bpf policy map` reads and prints it as a path.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CgroupId(pub u64);

/// The thread's cgroup, as a key of a map.
#[must_use]
#[inline(always)]
pub fn cgroup() -> CgroupId {
    CgroupId(cgroup_id())
}

/// ID of the thread's cgroup (version 2): the inode number of its directory, `stat -c %i /sys/fs/cgroup/NAME`.
#[must_use]
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub fn cgroup_id() -> u64 {
    // SAFETY: The helper takes no arguments and returns a number.
    unsafe { generated::bpf_get_current_cgroup_id() }
}

#[cfg(not(target_arch = "bpf"))]
use native::comm_words;
#[cfg(not(target_arch = "bpf"))]
pub use native::{Task, cgroup_id, pid, set, tgid};

#[cfg(not(target_arch = "bpf"))]
mod native {
    use core::cell::Cell;

    pub use ublk_bpf_core::replay::Task;

    thread_local! {
        static CURRENT: Cell<Task> = const {
            Cell::new(Task { pid: 0, tgid: 0, comm: [0; 16], cgroup_id: 0 })
        };
    }

    /// Sets the task that submits requests, for this thread of the host.
    pub fn set(task: Task) {
        CURRENT.set(task);
    }

    /// Thread ID.
    #[must_use]
    pub fn pid() -> u32 {
        CURRENT.get().pid
    }

    /// Process ID.
    #[must_use]
    pub fn tgid() -> u32 {
        CURRENT.get().tgid
    }

    pub(super) fn comm_words() -> [u64; 2] {
        let name = CURRENT.get().comm;
        let word = |at| core::array::from_fn(|i| name[at + i]);
        [u64::from_le_bytes(word(0)), u64::from_le_bytes(word(8))]
    }

    /// ID of the thread's cgroup.
    #[must_use]
    pub fn cgroup_id() -> u64 {
        CURRENT.get().cgroup_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_up_to_15_bytes() {
        set(Task::new(1, "tar", 7));
        assert!(is_named("tar"));
        assert!(!is_named("ta") && !is_named("tart") && !is_named(""));
        assert_eq!(comm(), *b"tar\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!((pid(), tgid(), cgroup_id()), (1, 1, 7));
        set(Task::new(1, "a-name-of-17-byte", 7));
        assert!(is_named("a-name-of-17-byte") && is_named("a-name-of-17-by"));
    }
}
