//! Locks, which end with the process that holds them however it ends: a server holds one on its device for its life, which
//! says that it lives, and one while it starts.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::RecordError;
use super::run_dir::{DIRECTORY, RunDir, file_name};
use crate::control::DeviceId;
use crate::sys::process::{self, ProcessHandle};

/// The file of [`Lock::starting`].
const STARTS: &str = "start.lock";

/// Who asks for a lock has it for less than this, unless it is made to wait for a processor.
const ASKING: Duration = Duration::from_millis(1);

/// A lock on a device, held until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock that the server of device `id` holds for its life.
    ///
    /// # Errors
    /// [`RecordError::Locked`] if another process has it.
    pub fn serve(id: DeviceId) -> Result<Self, RecordError> {
        Self::take(&file_name(id, "lock"), |file, path| match try_lock(file) {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => Err(RecordError::Locked(id)),
            Err(TryLockError::Error(source)) => Err(cannot_lock(path, source)),
        })
    }

    /// Waits for the lock that serialises changes of the policy of device `id`.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn change_policy(id: DeviceId) -> Result<Self, RecordError> {
        Self::wait_for(&file_name(id, "policy-lock"))
    }

    /// Waits for the lock that a server holds while it chooses its device: between the making of a device and the
    /// lock on it, it looks like a leftover. Its file goes with it.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(crate) fn choose() -> Result<Choice, RecordError> {
        Self::wait_for("choose.lock").map(Choice)
    }

    /// Says that a start is under way, until its devices are ready or this is dropped: `stop --all` ends it
    /// ([`starts`]). Any number of starts hold it.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(crate) fn starting() -> Result<Self, RecordError> {
        Self::take(STARTS, |file, path| {
            file.lock_shared().map_err(|source| cannot_lock(path, source))
        })
    }

    fn wait_for(name: &str) -> Result<Self, RecordError> {
        Self::take(name, |file, path| {
            file.lock().map_err(|source| cannot_lock(path, source))
        })
    }

    /// Locks the file of this name by `lock`. The holder before may remove the file between the opening and the
    /// locking of it here: a lock counts on the file that is there.
    fn take(name: &str, lock: impl Fn(&File, &Path) -> Result<(), RecordError>) -> Result<Self, RecordError> {
        let run = RunDir::make()?;
        let path = run.path(name);
        loop {
            let file = run.lock_file(name)?;
            lock(&file, &path)?;
            if is_same_file(&file, &path) {
                return Ok(Self { _file: file, path });
            }
        }
    }

    /// Whether a process serves device `id`. Any number of processes can ask at once.
    ///
    /// # Errors
    /// If users other than root can write to the lock, which then proves nothing.
    pub fn is_served(id: DeviceId) -> Result<bool, RecordError> {
        let Some(run) = RunDir::open()? else {
            return Ok(false);
        };
        match run.open_file("lock", &file_name(id, "lock")) {
            // The lock taken here lasts until the end of this function.
            Ok(Some(file)) => Ok(matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))),
            Ok(None) => Ok(false),
            // A user without privileges cannot know; the file alone says that there was a server.
            Err(RecordError::System { source, .. }) => Ok(source.kind() == ErrorKind::PermissionDenied),
            Err(error) => Err(error),
        }
    }

    /// Removes the lock's file, while holding it; the lock itself lasts until this is dropped.
    pub fn remove_file(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// [`Lock::choose`], whose file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Choice(Lock);

impl Drop for Choice {
    fn drop(&mut self) {
        self.0.remove_file();
    }
}

/// The processes that hold [`Lock::starting`]: `None` if no start is under way.
///
/// # Errors
/// If users other than root can write to the lock, or the file system refuses.
pub(crate) fn starts() -> Result<Option<Vec<u32>>, RecordError> {
    let Some(run) = RunDir::open()? else {
        return Ok(None);
    };
    let Some(file) = run.open_file("lock", STARTS)? else {
        return Ok(None);
    };
    if !matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        return Ok(None);
    }
    let path = run.path(STARTS);
    let holders = process::ids().filter(|process| holds_shared(*process, &path));
    Ok(Some(holders.collect()))
}

/// Asks a start to end, if the process is still one: a process that is ready takes a signal for something else.
pub(crate) fn end_start(process: u32) {
    let Ok(handle) = ProcessHandle::open(process) else {
        return;
    };
    // The handle pins the process: the process that is checked here is the one that gets the signal.
    if holds_shared(process, &Path::new(DIRECTORY).join(STARTS))
        && let Err(error) = handle.terminate()
    {
        tracing::debug!("cannot signal process {process}: {error}");
    }
}

/// Whether a process has a shared lock on the file at `path`, as the kernel says of its descriptors
/// (`/proc/PID/fdinfo`, proc(5)).
fn holds_shared(process: u32, path: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter();
    descriptors.flatten().flatten().any(|descriptor| {
        let number = descriptor.file_name();
        fs::read_link(descriptor.path()).is_ok_and(|opened| opened == path)
            && fs::read_to_string(format!("/proc/{process}/fdinfo/{}", number.display())).is_ok_and(|facts| {
                facts
                    .lines()
                    .any(|fact| fact.starts_with("lock:") && fact.contains("FLOCK") && fact.contains("READ"))
            })
    })
}

fn cannot_lock(path: &Path, source: io::Error) -> RecordError {
    RecordError::System {
        what: "lock",
        path: path.to_owned(),
        source,
    }
}

/// Locks the file, unless a server has it: who only asks ([`Lock::is_served`]) has it for a moment.
fn try_lock(file: &File) -> Result<(), TryLockError> {
    for _ in 0..5 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(ASKING),
            other => return other,
        }
    }
    file.try_lock()
}

fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
        _ => false,
    }
}
