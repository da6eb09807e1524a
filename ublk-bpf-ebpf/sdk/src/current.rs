//! Who asks: the task that submits the request.
//!
//! Each of these is a call, so that a policy that does not ask pays nothing. They tell the truth about I/O that a
//! process issues itself, reads and direct I/O; buffered writes are issued later, by the kernel's own threads. On the
//! host they tell what [`set`] said last in this thread.

#[cfg(target_arch = "bpf")]
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated};

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
#[cfg(target_arch = "bpf")]
pub fn comm() -> [u8; 16] {
    bpf_get_current_comm().unwrap_or([0; 16])
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
pub use native::{Task, cgroup_id, comm, pid, set, tgid};

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
        /// What [`comm`] says.
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

    /// The thread's name, filled up with zeroes.
    #[must_use]
    pub fn comm() -> [u8; 16] {
        CURRENT.get().comm
    }

    /// The id of the thread's cgroup.
    #[must_use]
    pub fn cgroup_id() -> u64 {
        CURRENT.get().cgroup_id
    }
}
