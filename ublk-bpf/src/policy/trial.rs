//! Loads the programs of a device without a device, to see what this kernel takes. Nothing is pinned, the classifier is
//! not attached, and all of it is gone when the call returns.

use std::os::fd::{AsFd as _, OwnedFd};

use super::error::PolicyError;
use super::pin::Disk;
use super::spec::{ClassifierSpec, Observe};
use super::swap::{DEFAULT_POLICY, Policy, Verified, verified_facts};
use super::{load, swap, watch};

/// A name that the kernel gives no disk.
const NO_DISK: &str = "ublk-bpf-check";

/// Has the verifier check the classifier, then attaches a policy to it as `policy swap` does. The second result is the
/// policy's.
///
/// # Errors
/// If this kernel, or this process's privileges, do not allow the classifier.
pub fn try_classifier() -> Result<Result<(), PolicyError>, PolicyError> {
    let classifier = classifier()?;
    let what = format!("policy {DEFAULT_POLICY}");
    let policy = Policy::parse(DEFAULT_POLICY, 0)?;
    let replace = || {
        let loaded = swap::load_object(&policy, None, &what)?;
        let (program, hook) = swap::verified(&policy, &loaded, classifier.as_fd(), &what)?;
        swap::attach(program.as_fd(), hook, &what).map(drop)
    };
    Ok(replace())
}

/// The classifier of no device, which the verifier has checked.
fn classifier() -> Result<OwnedFd, PolicyError> {
    let spec = ClassifierSpec {
        disk: Disk::named(NO_DISK),
        queues: 1,
        depth: 2,
        written: None,
        cache: None,
        observe: Observe::default(),
    };
    let (classifier, _) = load::verified(&load::load_object(&spec)?)?;
    Ok(classifier)
}

/// What the verifier says of a policy.
#[derive(Debug)]
pub enum Judgement {
    /// It takes the policy.
    Verified(Verified),
    /// It refuses the policy.
    Refused(PolicyError),
    /// It was not asked: this process or this kernel cannot.
    NotAsked(PolicyError),
}

/// Has the verifier check a policy as `policy swap` would, without a device. Nothing is attached.
#[must_use]
pub fn try_policy(policy: &Policy) -> Judgement {
    let classifier = match classifier() {
        Ok(classifier) => classifier,
        Err(error) => return Judgement::NotAsked(error),
    };
    let what = format!("policy {}", policy.name());
    let verify = || {
        let loaded = swap::load_object(policy, None, &what)?;
        let (program, _) = swap::verified(policy, &loaded, classifier.as_fd(), &what)?;
        verified_facts(program.as_fd(), &what)
    };
    match verify() {
        Ok(verified) => Judgement::Verified(verified),
        Err(error @ PolicyError::NoPermission) => Judgement::NotAsked(error),
        Err(error) => Judgement::Refused(error),
    }
}

/// Attaches the watch for truncated files, over no file.
///
/// # Errors
/// If this kernel, or this process's privileges, do not allow it.
pub fn try_watch() -> Result<(), PolicyError> {
    watch::attach([None, None]).map(drop)
}
