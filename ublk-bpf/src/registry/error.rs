//! Why a record, a lock or a log could not be used.

use std::io;
use std::path::PathBuf;

use crate::control::DeviceId;
use crate::sys::trust::Distrusted;

/// Why a record or a lock could not be used. One line: what was wanted, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// No server ever said that it serves this device, or it stopped in good order.
    #[error("ublkb{0} is not a device of ublk-bpf: see `ublk-bpf list`")]
    Absent(DeviceId),
    /// What stands there was not written by this program.
    #[error(
        "the record {} cannot be read: {reason}: stop the device with `ublk-bpf stop {id}`, or remove the file",
        path.display()
    )]
    Corrupt {
        /// The record.
        path: PathBuf,
        /// The device it is about.
        id: DeviceId,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process serves or cleans the device.
    #[error("ublkb{0} is served by another process: stop it with `ublk-bpf stop {0}`")]
    Locked(DeviceId),
    /// The record, the lock or their directory is writable by users other than root.
    #[error(transparent)]
    Distrusted(#[from] Distrusted),
    /// The system refused.
    #[error("cannot {what} {}: {source}{}", path.display(), remedy(source))]
    System {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// What to do about an error of the file system of `/run/ublk-bpf`.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            ": servers keep records and locks of their devices there: make /run writable, for example with a tmpfs"
        }
        io::ErrorKind::StorageFull => ": free some space there",
        _ => "",
    }
}
