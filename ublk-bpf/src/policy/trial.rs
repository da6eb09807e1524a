//! Loads the programs of a device without a device, to see what this kernel takes. Nothing is pinned, the classifier is
//! not attached, and all of it is gone when the call returns.

use std::os::fd::AsFd as _;

use super::error::PolicyError;
use super::pin::Disk;
use super::spec::{ClassifierSpec, Observe};
use super::swap::{DEFAULT_POLICY, Policy};
use super::{load, swap, watch};

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
        observe: Observe::default(),
    };
    let (classifier, _) = load::verified(&load::load_object(&spec)?)?;
    let what = format!("policy {DEFAULT_POLICY}");
    let policy = Policy::parse(DEFAULT_POLICY, 0)?;
    let replace = || {
        let loaded = swap::load_object(&policy, &what)?;
        let (program, hook) = swap::verified(&loaded, classifier.as_fd(), &what)?;
        swap::attach(program.as_fd(), hook, &what).map(drop)
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
