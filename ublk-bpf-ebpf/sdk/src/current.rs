//! Who asks: the task that submits the request.
//!
//! Each of these is a call, so that a policy that does not ask pays nothing. They tell the truth about I/O that a
//! process issues itself, reads and direct I/O; buffered writes are issued later, by the kernel's own threads. On the
//! host they tell what [`set`] said last in this thread.

#[cfg(target_arch = "bpf")]
use core::mem::MaybeUninit;

#[cfg(target_arch = "bpf")]
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};

/// The id of the thread, as the kernel numbers tasks (`gettid(2)`).
#[must_use]
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub fn pid() -> u32 {
    // The lower half.
    bpf_get_current_pid_tgid() as u32
}

/// The id of the process (`getpid(2)`).
#[must_use]
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The thread's name, filled up with zeroes; all zeroes if it cannot be had.
#[must_use]
#[inline(always)]
pub fn comm() -> [u8; 16] {
    let [first, last] = comm_words();
    let mut name = [0; 16];
    name[..8].copy_from_slice(&first.to_le_bytes());
    name[8..].copy_from_slice(&last.to_le_bytes());
    name
}

/// Whether the thread has this name, of which the kernel keeps 15 bytes. A few instructions, where comparing
/// [`comm`] is a loop.
#[must_use]
#[inline(always)]
pub fn is_named(name: &str) -> bool {
    comm_words() == words(name)
}

/// A name as [`comm_words`] gives it.
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

/// The thread's name as two words, little endian as BPF is here: they are compared and copied faster than bytes.
#[inline(always)]
#[cfg(target_arch = "bpf")]
fn comm_words() -> [u64; 2] {
    let mut words = MaybeUninit::<[u64; 2]>::uninit();
    // SAFETY: There are 16 bytes to write to.
    unsafe { generated::bpf_get_current_comm(words.as_mut_ptr().cast(), 16) };
    // SAFETY: The helper has written all of them; zeroes, where it failed.
    unsafe { words.assume_init() }
}

/// The id of the thread's cgroup (version 2): the inode number of its directory, `stat -c %i /sys/fs/cgroup/NAME`.
#[must_use]
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub fn cgroup_id() -> u64 {
    // SAFETY: The helper takes nothing and gives a number.
    unsafe { generated::bpf_get_current_cgroup_id() }
}

#[cfg(not(target_arch = "bpf"))]
use native::comm_words;
#[cfg(not(target_arch = "bpf"))]
pub use native::{Task, cgroup_id, pid, set, tgid};

#[cfg(not(target_arch = "bpf"))]
mod native {
    use core::cell::Cell;

    /// A task that issues requests.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Task {
        /// What [`pid`] says.
        pub pid: u32,
        /// What [`tgid`] says.
        pub tgid: u32,
        /// What `comm` says.
        pub comm: [u8; 16],
        /// What [`cgroup_id`] says.
        pub cgroup_id: u64,
    }

    impl Task {
        /// The only thread of a process. Of a name of more than 15 bytes, those are taken, as the kernel does.
        #[must_use]
        pub fn new(pid: u32, comm: &str, cgroup_id: u64) -> Self {
            let mut name = [0; 16];
            for (to, from) in name[..15].iter_mut().zip(comm.bytes()) {
                *to = from;
            }
            Self {
                pid,
                tgid: pid,
                comm: name,
                cgroup_id,
            }
        }
    }

    thread_local! {
        static CURRENT: Cell<Task> = const {
            Cell::new(Task { pid: 0, tgid: 0, comm: [0; 16], cgroup_id: 0 })
        };
    }

    /// Says who asks from now on, in this thread of the host's.
    pub fn set(task: Task) {
        CURRENT.set(task);
    }

    /// The id of the thread.
    #[must_use]
    pub fn pid() -> u32 {
        CURRENT.get().pid
    }

    /// The id of the process.
    #[must_use]
    pub fn tgid() -> u32 {
        CURRENT.get().tgid
    }

    pub(super) fn comm_words() -> [u64; 2] {
        let name = CURRENT.get().comm;
        let word = |at| core::array::from_fn(|i| name[at + i]);
        [u64::from_le_bytes(word(0)), u64::from_le_bytes(word(8))]
    }

    /// The id of the thread's cgroup.
    #[must_use]
    pub fn cgroup_id() -> u64 {
        CURRENT.get().cgroup_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_the_kernel_keeps_them() {
        set(Task::new(1, "tar", 7));
        assert!(is_named("tar"));
        assert!(!is_named("ta") && !is_named("tart") && !is_named(""));
        assert_eq!(comm(), *b"tar\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!((pid(), tgid(), cgroup_id()), (1, 1, 7));
        set(Task::new(1, "a-name-of-17-byte", 7));
        assert!(is_named("a-name-of-17-byte") && is_named("a-name-of-17-by"));
    }
}
