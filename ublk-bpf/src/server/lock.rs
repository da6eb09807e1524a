//! Locks on a device: a server holds one for its life, which says that it lives.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::record::{RecordError, file_name};
use super::run_dir::RunDir;
use crate::control::DeviceId;

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
            Err(TryLockError::Error(source)) => Err(RecordError::System {
                what: "lock",
                path: path.to_owned(),
                source,
            }),
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
    /// lock on it, it looks like a leftover.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn start() -> Result<Self, RecordError> {
        Self::wait_for("start.lock")
    }

    fn wait_for(name: &str) -> Result<Self, RecordError> {
        Self::take(name, |file, path| {
            file.lock().map_err(|source| RecordError::System {
                what: "lock",
                path: path.to_owned(),
                source,
            })
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

    /// Whether some process serves device `id`. Asks without disturbing others who ask.
    ///
    /// # Errors
    /// If others than root can write to the lock, which then says nothing.
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
