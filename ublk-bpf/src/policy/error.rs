//! Errors of the classifier and of policies.

use std::io;
use std::path::PathBuf;

use super::object::ObjectError;
use super::offsets::BtfError;
use super::patch::PatchError;
use super::verifier::Refusal;
use crate::sys::trust::Distrusted;

/// Why a classifier or a policy could not be loaded, attached, replaced or found.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The classifier does not support the running kernel.
    #[error(transparent)]
    Kernel(#[from] BtfError),
    /// The classifier cannot be patched for the running kernel.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// The caller may not use bpf(2).
    #[error(
        "loading BPF programs was refused: run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN, on a kernel that is not locked down"
    )]
    NoPermission,
    /// There is no bpffs to pin to, and none could be mounted.
    #[error(
        "no BPF file system at {}: mount one (mount -t bpf bpf {}): {source}",
        path.display(), path.display()
    )]
    NoBpffs {
        /// Where it is expected.
        path: PathBuf,
        /// Why mounting it failed.
        source: io::Error,
    },
    /// A name that is neither a built-in policy's nor a file's.
    #[error("no policy `{name}`: it is neither a file nor built in ({known})")]
    Unknown {
        /// The name.
        name: String,
        /// The names of the built-in policies.
        known: String,
    },
    /// A policy that has no effect without a cache.
    #[error("policy {0} needs a cache, and the device has none: it would act as passthrough")]
    NeedsCache(String),
    /// A device without a shadow policy.
    #[error("{0} has no shadow policy: attach one with `ublk-bpf policy shadow ID NAME|FILE.o`")]
    NoShadow(String),
    /// A policy's name that is too long to keep.
    #[error("the path of a shadow policy has at most {limit} bytes, and this one has {found}: copy the file")]
    LongName {
        /// Its bytes.
        found: usize,
        /// The most.
        limit: usize,
    },
    /// A user's object cannot be a policy.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The verifier refused a program.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// aya could not load an object.
    #[error("loading {what} failed: {detail}")]
    Load {
        /// Which object.
        what: String,
        /// aya's error with its causes.
        detail: String,
    },
    /// A program could not be attached.
    #[error("attaching {what} failed: {detail}")]
    Attach {
        /// Which program.
        what: String,
        /// aya's error with its causes.
        detail: String,
    },
    /// A pin could not be made, opened or removed.
    #[error("{action} {} failed: {source}", path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The pin.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another user can write to the pin directory.
    #[error(transparent)]
    Distrusted(#[from] Distrusted),
    /// No classifier is pinned for this disk.
    #[error("no classifier is pinned at {}: is there a running ublk-bpf device of this id?", path.display())]
    NotClassified {
        /// The pin directory of the disk.
        path: PathBuf,
    },
    /// A pin was made by another version, or for a device of another shape.
    #[error("{} does not fit this device: {what} is {found}, expected {wanted}", path.display())]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// The property that differs.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The value that fits.
        wanted: u64,
    },
    /// A map's memory could not be mapped.
    #[error("mapping the memory of BPF map `{map}` failed: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("accessing BPF map `{map}` failed: {detail}")]
    Access {
        /// The map.
        map: &'static str,
        /// aya's error with its causes.
        detail: String,
    },
}
