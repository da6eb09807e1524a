//! Loads the programs of a device without a device, to see what this kernel takes. Nothing is pinned, the classifier is
//! not attached, and all of it is gone when the call returns.

use super::causes::chain;
use super::error::PolicyError;
use super::load::{load_object, verified};
use super::pin::Disk;
use super::spec::ClassifierSpec;
use super::swap::{DEFAULT_POLICY, Policy, attach, entry, load, load_entry};
use super::watch;

/// A name that the kernel gives no disk.
const NO_DISK: &str = "ublk-bpf-check";

/// Has the verifier check the classifier, then attaches a policy to it as `policy swap` does. The second result is the
/// policy's.
///
/// # Errors
/// If this kernel, or this process's privileges, do not allow the classifier.
pub fn try_classifier() -> Result<Result<(), PolicyError>, PolicyError> {
    let spec = ClassifierSpec {
        disk: Disk::named(NO_DISK),
        queues: 1,
        depth: 2,
        written: None,
        cache: None,
    };
    let mut ebpf = load_object(&spec)?;
    let program = verified(&mut ebpf)?;
    let classifier = program
        .fd()
        .and_then(|fd| Ok(fd.try_clone()?))
        .map_err(|e| PolicyError::Load {
            what: "the classifier".to_owned(),
            detail: chain(&e),
        })?;
    let what = format!("policy {DEFAULT_POLICY}");
    let policy = Policy::parse(DEFAULT_POLICY, 0)?;
    let replace = || {
        let mut ebpf = load(&policy, &what)?;
        load_entry(&mut ebpf, classifier, &what)?;
        attach(entry(&mut ebpf, &what)?, &what).map(drop)
    };
    Ok(replace())
}

/// Attaches the watch for truncated files, over no file.
///
/// # Errors
/// If this kernel, or this process's privileges, do not allow it.
pub fn try_watch() -> Result<(), PolicyError> {
    watch::attach([None, None]).map(drop)
}
