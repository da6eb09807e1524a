//! Settings of the calling process and thread that a server in the writeback path needs.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::raw::c_int;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// `include/uapi/linux/prctl.h`; the libc crate does not have them.
const PR_SET_IO_FLUSHER: c_int = 57;
const PR_GET_IO_FLUSHER: c_int = 58;

/// Tells the kernel that the calling thread serves a block device: its allocations then never wait for
/// writeback (`PR_SET_IO_FLUSHER`, Linux >= 5.6, needs CAP_SYS_RESOURCE). Threads made by it afterwards inherit
/// that.
///
/// The setting is read back, so that `Ok` means it holds.
pub fn set_io_flusher() -> io::Result<()> {
    prctl(PR_SET_IO_FLUSHER, 1)?;
    if is_io_flusher()? {
        Ok(())
    } else {
        Err(io::Error::other(
            "PR_SET_IO_FLUSHER was accepted but does not hold",
        ))
    }
}

/// Whether the calling thread is marked by [`set_io_flusher`]. Needs CAP_SYS_RESOURCE too.
pub fn is_io_flusher() -> io::Result<bool> {
    Ok(prctl(PR_GET_IO_FLUSHER, 0)? == 1)
}

/// Gives the calling thread, and those it makes afterwards, a mount namespace of their own from which no mount spreads
/// and in which a later mount of this server's own device does not show: one that did could keep the server from
/// ending. Needs CAP_SYS_ADMIN.
pub fn leave_mount_namespace() -> io::Result<()> {
    // SAFETY: takes no pointer; what changes is the thread's view of mounts, not its memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    // SAFETY: the paths are NUL-terminated and static; null for source, type and data is what mount(2) asks
    // for where only propagation changes.
    let result = unsafe {
        libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        )
    };
    check(result).map(drop)
}

/// Takes a mount out of the calling process's mount namespace, whatever still uses it; in that namespace only, if
/// its mounts do not spread ([`leave_mount_namespace`]).
pub fn detach_mount(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string that lives over the call.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) }).map(drop)
}

/// A process, whose id cannot become another one's as long as this is held (pidfd_open(2)).
#[derive(Debug)]
pub(crate) struct ProcessHandle(OwnedFd);

impl ProcessHandle {
    /// The process that has this id now.
    pub(crate) fn open(process: u32) -> io::Result<Self> {
        const NO_FLAGS: libc::c_uint = 0;
        // SAFETY: takes numbers, no pointer.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process, NO_FLAGS) };
        let fd = c_int::try_from(fd).ok().filter(|fd| *fd >= 0);
        let fd = fd.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the call returned a new descriptor that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends it SIGTERM.
    pub(crate) fn terminate(&self) -> io::Result<()> {
        const NO_FLAGS: libc::c_uint = 0;
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null pointer in place of the facts is what pidfd_send_signal(2) takes for those of kill(2).
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                libc::SIGTERM,
                info,
                NO_FLAGS,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// A capability that a server needs for something (`include/uapi/linux/capability.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `CAP_IPC_LOCK`: memory is locked without a limit.
    IpcLock = 14,
    /// `CAP_SYS_ADMIN`: ublk devices that are not unprivileged, BPF, mount namespaces.
    SysAdmin = 21,
}

/// Whether the calling thread has the capability in effect, in its own user namespace.
///
/// # Errors
/// If `/proc` does not say.
pub fn has_capability(capability: Capability) -> io::Result<bool> {
    let mask = u64::from_str_radix(&status_field("CapEff:")?, 16).map_err(io::Error::other)?;
    Ok(mask >> (capability as u32) & 1 == 1)
}

/// Bytes of memory that the process has locked.
pub(crate) fn locked_memory() -> io::Result<u64> {
    let field = status_field("VmLck:")?;
    let kib = field.trim_end_matches("kB").trim().parse::<u64>();
    Ok(kib.map_err(io::Error::other)? << 10)
}

/// A field of `/proc/self/status`.
fn status_field(name: &str) -> io::Result<String> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let field = status.lines().find_map(|line| line.strip_prefix(name));
    let field = field.ok_or(io::ErrorKind::NotFound)?;
    Ok(field.trim().to_owned())
}

/// Bytes that the process may lock; `u64::MAX`: no limit.
pub(crate) fn locked_memory_limit() -> io::Result<u64> {
    limit(libc::RLIMIT_MEMLOCK).map(|limit| limit.rlim_cur)
}

/// Raises the number of files that the process may open to its hard limit, and returns that.
pub(crate) fn raise_open_files() -> io::Result<u64> {
    let limit = limit(libc::RLIMIT_NOFILE)?;
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit {
            rlim_cur: limit.rlim_max,
            ..limit
        };
        // SAFETY: `raised` is a valid structure that lives over the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) })?;
    }
    Ok(limit.rlim_max)
}

fn limit(resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable memory of the type that the call fills.
    check(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    Ok(limit)
}

/// A copy of the mount that is visible at `path`, without those on it, attached nowhere (`open_tree(2)`, Linux >= 5.2).
/// Needs CAP_SYS_ADMIN.
pub fn copy_mount(path: &Path) -> io::Result<OwnedFd> {
    // `include/uapi/linux/mount.h`.
    const OPEN_TREE_CLONE: c_int = 1;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string that lives over the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            path.as_ptr(),
            OPEN_TREE_CLONE | libc::O_CLOEXEC,
        )
    };
    let fd = check(c_int::try_from(fd).unwrap_or(-1))?;
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches what [`copy_mount`] returned at `path` (`move_mount(2)`).
pub fn attach_mount(copy: &OwnedFd, path: &Path) -> io::Result<()> {
    // `include/uapi/linux/mount.h`.
    const MOVE_MOUNT_F_EMPTY_PATH: c_int = 4;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both paths are C strings that live over the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            copy.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(c_int::try_from(result).unwrap_or(-1)).map(drop)
}

/// Asks the kernel to end other processes than this one, and those that it makes, when memory runs out
/// (`oom_score_adj`). Needs CAP_SYS_RESOURCE.
pub fn refuse_oom_killer() -> io::Result<()> {
    // `OOM_SCORE_ADJ_MIN` of `include/uapi/linux/oom.h`.
    fs::write("/proc/self/oom_score_adj", "-1000")
}

/// Ignores the signals by which a mere write can end or stop a server: beyond `RLIMIT_FSIZE` (`SIGXFSZ`; the write then
/// fails), and to a terminal that belongs to another job (`SIGTTOU`, with `stty tostop`; the write then succeeds). Rust
/// ignores `SIGPIPE` already.
pub fn ignore_signals_of_writes() {
    for signal in [libc::SIGXFSZ, libc::SIGTTOU] {
        // SAFETY: ignoring a signal is a valid action, and takes no pointer.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// The effective user id of the process.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: takes no pointer, and cannot fail.
    unsafe { libc::geteuid() }
}

/// Takes the write permission of group and others from every file that the process makes from now on, whatever umask it
/// was started with.
pub fn protect_new_files() {
    file_mode_mask(0o022);
}

/// Sets the umask of the process, and returns the one before (`umask(2)`).
pub(crate) fn file_mode_mask(mask: libc::mode_t) -> libc::mode_t {
    // SAFETY: takes no pointer, and cannot fail.
    unsafe { libc::umask(mask) }
}

/// The size of a page in bytes.
pub fn page_size() -> usize {
    // SAFETY: takes no pointer.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).expect("POSIX requires _SC_PAGESIZE, and it is positive")
}

/// 128 random bits that nobody can foresee (`getrandom(2)`).
pub(crate) fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    // SAFETY: the buffer is writable memory of the length passed.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(got) {
        // Up to 256 bytes come whole (getrandom(2)).
        Ok(got) if got == bytes.len() => Ok(bytes),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Whether the process has been killed or has ended, and its parent or the kernel is not done with it yet: it does
/// nothing more for itself, but may still hold files and locks. A process that is gone is dying, too.
pub(crate) fn is_dying(pid: u32) -> bool {
    /// `PF_EXITING` of `include/linux/sched.h`.
    const EXITING: u64 = 0x4;
    /// SIGKILL in the masks of `/proc/PID/status`.
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    // The name, in parentheses, may have anything in it. Behind it: state, parent, group, session, terminal, its
    // group, flags.
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let mut fields = behind.split_whitespace();
    let has_ended = matches!(fields.next(), Some("Z" | "X"));
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    let is_killed = status.lines().filter_map(pending).any(|mask| mask & KILLED != 0);
    has_ended || is_killed || flags.is_some_and(|flags| flags & EXITING != 0)
}

/// One of the `prctl` calls whose arguments are numbers.
fn prctl(option: c_int, value: libc::c_ulong) -> io::Result<c_int> {
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: the options passed here take numbers, not pointers.
    check(unsafe { libc::prctl(option, value, UNUSED, UNUSED, UNUSED) })
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The ids of all processes that can be seen.
pub(crate) fn ids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_a_power_of_two_of_at_least_4_kib() {
        assert!(page_size() >= 4096 && page_size().is_power_of_two());
    }

    #[test]
    fn a_process_is_dying_from_its_end_on() {
        assert!(!is_dying(std::process::id()));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!is_dying(child.id()));
        child.kill().unwrap();
        // A zombie until it is waited for.
        assert!(is_dying(child.id()));
        child.wait().unwrap();
        assert!(is_dying(child.id()));
    }

    #[test]
    fn random_bits_do_not_repeat() {
        assert_ne!(random().unwrap(), random().unwrap());
    }
}
