//! Settings of the calling process and thread that a server in the writeback path needs.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr;

use rustix::fs::{CWD, Mode};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, configure_io_flusher_behavior, getrlimit, pidfd_open,
    pidfd_send_signal, setrlimit,
};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, UnshareFlags, capabilities, move_into_link_name_space, unshare_unsafe,
};

/// Marks the calling thread as one that serves a block device: its allocations never wait for writeback
/// (`PR_SET_IO_FLUSHER`, Linux >= 5.6, needs CAP_SYS_RESOURCE). Threads that it starts later inherit the mark.
///
/// The setting is read back, so `Ok` means that it is in effect.
pub fn set_io_flusher() -> io::Result<()> {
    configure_io_flusher_behavior(true)?;
    if is_io_flusher()? {
        Ok(())
    } else {
        Err(io::Error::other(
            "PR_SET_IO_FLUSHER was accepted but has no effect",
        ))
    }
}

/// Whether the calling thread has the mark of [`set_io_flusher`]. Needs CAP_SYS_RESOURCE too.
pub fn is_io_flusher() -> io::Result<bool> {
    Ok(rustix::process::is_io_flusher()?)
}

/// Moves the calling thread, and the threads that it starts later, to a new mount namespace that exchanges no mount
/// events with others. A later mount of this server's own device does not appear in it: such a mount could keep the
/// server from exiting. Needs CAP_SYS_ADMIN.
pub fn leave_mount_namespace() -> io::Result<()> {
    // SAFETY: only the mount namespace is unshared; the threads keep one table of descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    Ok(mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )?)
}

/// The mount namespace of the calling thread. As long as this is held, the namespace stays with all that is mounted there.
pub(crate) fn mount_namespace() -> io::Result<OwnedFd> {
    Ok(fs::File::open("/proc/thread-self/ns/mnt")?.into())
}

/// Moves the calling thread alone to another mount namespace, and to the root of that. Needs CAP_SYS_ADMIN and
/// CAP_SYS_CHROOT. The thread must not start others.
pub(crate) fn enter_mount_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: only root, working directory and umask are unshared; the threads keep one table of descriptors.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    Ok(move_into_link_name_space(
        namespace,
        Some(LinkNameSpaceType::Mount),
    )?)
}

/// Detaches a mount from the calling thread's mount namespace, even if it is in use. Other namespaces keep it if no
/// mount events are exchanged with them ([`leave_mount_namespace`]).
pub fn detach_mount(path: &Path) -> io::Result<()> {
    Ok(unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// A process. Its id is not reused as long as this is held (pidfd_open(2)).
#[derive(Debug)]
pub(crate) struct ProcessHandle(OwnedFd);

impl ProcessHandle {
    /// The process that has this id now.
    pub(crate) fn open(process: u32) -> io::Result<Self> {
        let process = process.try_into().ok().and_then(Pid::from_raw);
        let process = process.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self(pidfd_open(process, PidfdFlags::empty())?))
    }

    /// Sends it SIGTERM.
    pub(crate) fn terminate(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, Signal::TERM)?)
    }
}

/// A capability that a server needs (`include/uapi/linux/capability.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `CAP_IPC_LOCK`: memory is locked without a limit.
    IpcLock,
    /// `CAP_SYS_ADMIN`: privileged ublk devices, BPF, mount namespaces.
    SysAdmin,
    /// `CAP_SYS_RESOURCE`: no OOM killer, no wait for writeback, higher limits.
    SysResource,
}

/// Whether the calling thread has the capability in effect, in its own user namespace.
///
/// # Errors
/// If capget(2) fails.
pub fn has_capability(capability: Capability) -> io::Result<bool> {
    let wanted = match capability {
        Capability::IpcLock => CapabilitySet::IPC_LOCK,
        Capability::SysAdmin => CapabilitySet::SYS_ADMIN,
        Capability::SysResource => CapabilitySet::SYS_RESOURCE,
    };
    Ok(capabilities(None)?.effective.contains(wanted))
}

/// Bytes of memory that the process has locked, by `/proc/self/status`.
pub(crate) fn locked_memory() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let field = field.ok_or(io::ErrorKind::NotFound)?;
    let kib = field.trim().trim_end_matches("kB").trim_end().parse::<u64>();
    Ok(kib.map_err(io::Error::other)? << 10)
}

/// Bytes that the process may lock (`RLIMIT_MEMLOCK`); `u64::MAX`: no limit.
pub(crate) fn locked_memory_limit() -> u64 {
    getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX)
}

/// The hard limit of open files; `u64::MAX`: no limit.
pub(crate) fn open_files_limit() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Raises the soft limit of open files to the hard limit, and returns that; `u64::MAX`: no limit.
pub(crate) fn raise_open_files() -> io::Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised)?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// A detached copy of the mount at `path`, without the mounts below it (`open_tree(2)`, Linux >= 5.2). Needs
/// CAP_SYS_ADMIN.
pub fn copy_mount(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, path, flags)?)
}

/// Attaches what [`copy_mount`] returned at `path` (`move_mount(2)`).
pub fn attach_mount(copy: &OwnedFd, path: &Path) -> io::Result<()> {
    Ok(move_mount(
        copy,
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Exempts this process, and those that it starts, from the OOM killer (`oom_score_adj`). Needs CAP_SYS_RESOURCE.
pub fn refuse_oom_killer() -> io::Result<()> {
    // `OOM_SCORE_ADJ_MIN` of `include/uapi/linux/oom.h`.
    fs::write("/proc/self/oom_score_adj", "-1000")
}

/// Ignores the signals by which a mere write can end or stop a server: beyond `RLIMIT_FSIZE` (`SIGXFSZ`; the write
/// then fails), and to a terminal that belongs to another job (`SIGTTOU`, with `stty tostop`; the write then
/// succeeds). Rust ignores `SIGPIPE` already.
pub fn ignore_signals_of_writes() {
    for signal in [libc::SIGXFSZ, libc::SIGTTOU] {
        // SAFETY: ignoring a signal is a valid action, and takes no pointer.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Whether the process ignores a signal, as `nohup` has it ignore SIGHUP.
///
/// # Errors
/// If there is no such signal.
pub fn ignores(signal: i32) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, it only writes the present one to `action`.
    let result = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it is initialised.
    let action = unsafe { action.assume_init() };
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

/// The effective user id of the process.
pub(crate) fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Clears the write permission of group and others on every file that the process creates from now on, whatever umask
/// it inherited.
pub fn protect_new_files() {
    file_mode_mask(0o022);
}

/// Sets the umask of the process, and returns the previous one (`umask(2)`).
pub(crate) fn file_mode_mask(mask: u32) -> u32 {
    rustix::process::umask(Mode::from_raw_mode(mask)).as_raw_mode()
}

/// The size of a page in bytes.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// 128 unpredictable random bits (`getrandom(2)`).
pub(crate) fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    // Up to 256 bytes come whole (getrandom(2)).
    match getrandom(&mut bytes, GetRandomFlags::empty())? {
        16 => Ok(bytes),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Whether the process is exiting, is a zombie, has a SIGKILL pending, or does not exist. It runs no more code of its
/// own, but may still hold files and locks.
pub(crate) fn is_dying(pid: u32) -> bool {
    /// `PF_EXITING` of `include/linux/sched.h`.
    const EXITING: u64 = 0x4;
    /// SIGKILL in the masks of `/proc/PID/status`.
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    // The name, in parentheses, may contain anything. The fields after it: state, parent, group, session, terminal,
    // terminal's group, flags.
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

/// The number of processors that the machine may have.
pub(crate) fn processors() -> usize {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
    usize::try_from(count).unwrap_or(1)
}

/// Whether the process has a controlling terminal.
pub(crate) fn has_terminal() -> bool {
    fs::File::open("/dev/tty").is_ok()
}

/// The ids of all processes that `/proc` lists.
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
