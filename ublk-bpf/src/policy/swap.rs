//! Policies: selected, attached in place of the classifier's default one, and detached.
//!
//! All of this uses the pins, without the server: any process that may call bpf(2) can do it. Callers serialise their
//! calls for each device.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use aya::programs::links::PinnedLink;
use aya_obj::btf::{Btf, BtfKind};
use object::Endianness;
use ublk_bpf_abi::{POLICY_FUNCTION, map};

use super::builtin::{Builtin, builtin};
use super::causes::chain;
use super::error::PolicyError;
use super::loader::{Loaded, Loader};
use super::object::{PolicyObject, pin_name};
use super::pin::{Disk, PinDir, pin_at, pin_error, unlink};
use crate::path_text::{self, ShowPath as _};
use crate::sys::bpf::load::{self, Hook};
use crate::sys::bpf::{open_pinned, program_facts};

/// The kernel frees a link some time after its last reference is dropped. Until then it refuses another attachment.
const DETACH_PATIENCE: Duration = Duration::from_secs(5);
const DETACH_POLL: Duration = Duration::from_millis(1);

/// The policy of a device without another one.
pub const DEFAULT_POLICY: &str = "passthrough";

/// A policy to attach.
#[derive(Clone, Debug)]
pub enum Policy {
    /// One that comes with this program.
    Builtin(&'static Builtin),
    /// A user's own.
    Object(PolicyObject),
}

impl Policy {
    /// The policy that `NAME` or `FILE.o` names, a path as [`path_text`] writes it. A file with the name of a built-in
    /// policy is written `./NAME`.
    ///
    /// The maps of a policy from a file may use `memory` bytes.
    pub fn parse(argument: &str, memory: u64) -> Result<Self, PolicyError> {
        if let Some(found) = builtin().iter().find(|known| known.name == argument) {
            return Ok(Self::Builtin(found));
        }
        let path = path_text::parse(argument);
        if !argument.contains(['/', '.']) && !path.exists() {
            let known: Vec<&str> = builtin().iter().map(|known| known.name).collect();
            return Err(PolicyError::Unknown {
                name: argument.to_owned(),
                known: known.join(", "),
            });
        }
        Ok(Self::Object(PolicyObject::open(&path, memory)?))
    }

    /// The name that `show` and `list` print.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Builtin(builtin) => builtin.name.to_owned(),
            Self::Object(object) => object.path().shown().to_string(),
        }
    }

    /// Whether it has no effect on a device without a cache. For a user's own policy this is unknown: false.
    #[must_use]
    pub fn needs_cache(&self) -> bool {
        matches!(self, Self::Builtin(builtin) if builtin.needs_cache)
    }

    /// A refusal of the verifier, with what the policy's object says of the place.
    fn explain(&self, error: PolicyError) -> PolicyError {
        match (error, self) {
            (PolicyError::Refused(refusal), Self::Object(object)) => refusal.explained(object).into(),
            (error, _) => error,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Builtin(builtin) => builtin.object(),
            Self::Object(object) => object.bytes(),
        }
    }
}

/// The verifier's work on a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Instructions processed on all paths together: a request never executes more of the policy's. At most a million.
    pub instructions: u32,
}

impl Verified {
    /// Instructions above which a policy may noticeably slow every request down, by some microseconds.
    pub const MANY: u32 = 10_000;

    /// A warning, if a request may execute many instructions.
    #[must_use]
    pub fn warning(self) -> Option<String> {
        (self.instructions > Self::MANY).then(|| {
            format!(
                "the verifier went through {} instructions of this policy, more than {}: a request may run as many, and \
                 its submitter waits; see what it costs with `ublk-bpf stats ID --run-time`",
                self.instructions,
                Self::MANY
            )
        })
    }
}

/// Replaces the policy of a disk.
///
/// The new policy is loaded and verified first; if it is refused, the old one stays attached. The kernel allows one
/// policy at a time, so until it has freed the old one's link, requests get the default policy, passthrough. The old
/// policy's maps are removed.
pub fn swap(disk: &Disk, policy: &Policy) -> Result<Verified, PolicyError> {
    let pins = PinDir::open(disk)?;
    let classifier = open_classifier(&pins)?;
    let what = format!("policy {}", policy.name());
    let loaded = load_object(policy, Some(&pins), &what)?;
    let (program, hook) = verified(policy, &loaded, classifier.as_fd(), &what)?;
    let facts = verified_facts(program.as_fd(), &what)?;
    detach(&pins)?;
    let placed = attach_and_pin(&loaded, (program.as_fd(), hook), &pins, &what);
    if placed.is_err() {
        // Remove what was attached and pinned. The first error is the one to report.
        let _ = detach(&pins);
    }
    placed.map(|()| facts)
}

/// The verifier's work on a program that it has accepted.
pub(super) fn verified_facts(program: BorrowedFd<'_>, what: &str) -> Result<Verified, PolicyError> {
    let facts = program_facts(program).map_err(|e| failed(what, &e))?;
    Ok(Verified {
        instructions: facts.verified_instructions,
    })
}

/// Creates a policy's maps; its program is not verified yet. It shares the maps of the device with these pins that say how
/// the cache is, and whose.
pub(super) fn load_object(policy: &Policy, pins: Option<&PinDir>, what: &str) -> Result<Loaded, PolicyError> {
    let shared = [map::STATE, map::USAGE].map(|name| (name, pins.map(|pins| pins.map(name))));
    let mut loader = Loader::default();
    for (name, pin) in &shared {
        if let Some(pin) = pin.as_ref().filter(|pin| pin.exists()) {
            loader = loader.pinned(name, pin);
        }
    }
    // Objects that are known to break the loader were refused before. Any other panic fails this policy only.
    let loaded = catch_unwind(|| loader.load(policy.bytes(), what));
    loaded.unwrap_or_else(|_| {
        Err(PolicyError::Load {
            what: what.to_owned(),
            detail: "it breaks the loader: build it again".to_owned(),
        })
    })
}

/// Detaches the policy of a disk; requests get the default one, passthrough. Returns whether there was one.
pub fn reset(disk: &Disk) -> Result<bool, PolicyError> {
    let pins = PinDir::open(disk)?;
    open_classifier(&pins)?;
    detach(&pins)
}

pub(super) fn open_classifier(pins: &PinDir) -> Result<OwnedFd, PolicyError> {
    let path = pins.classifier();
    if matches!(path.try_exists(), Ok(false)) {
        return Err(PolicyError::NotClassified {
            path: pins.path().to_owned(),
        });
    }
    open_pinned(&path).map_err(|e| pin_error("opening", path, e))
}

/// The policy's program, which the verifier has checked against the function that it replaces.
pub(super) fn verified<'a>(
    policy: &Policy,
    loaded: &Loaded,
    classifier: BorrowedFd<'a>,
    what: &str,
) -> Result<(OwnedFd, Hook<'a>), PolicyError> {
    let hook = Hook::Replace(classifier, policy_function(classifier, what)?);
    let program = loaded.program(POLICY_FUNCTION, hook);
    Ok((program.map_err(|error| policy.explain(error))?, hook))
}

/// The number of the function that a policy replaces, in the type information of a program that calls it.
pub(super) fn policy_function(classifier: BorrowedFd<'_>, what: &str) -> Result<u32, PolicyError> {
    let types = load::types_of(classifier).map_err(|e| failed(what, &e))?;
    let types = Btf::parse(&types, Endianness::Little).map_err(|e| failed(what, &e))?;
    let function = types.id_by_type_name_kind(POLICY_FUNCTION, BtfKind::Func);
    function.map_err(|e| failed(what, &e))
}

fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> PolicyError {
    PolicyError::Load {
        what: what.to_owned(),
        detail: chain(error),
    }
}

/// Detaches the policy, if there is one, and removes its pins.
pub(super) fn detach(pins: &PinDir) -> Result<bool, PolicyError> {
    let path = pins.policy_link();
    let attached = matches!(path.try_exists(), Ok(true));
    if attached {
        let failed = |e: &(dyn std::error::Error + 'static)| {
            pin_error(
                "detaching the policy of",
                path.clone(),
                io::Error::other(chain(e)),
            )
        };
        // The link ends when its last reference is dropped, here.
        PinnedLink::from_pin(&path)
            .map_err(|e| failed(&e))?
            .unpin()
            .map_err(|e| failed(&e))?;
    }
    unlink(&pins.policy())?;
    let maps = pins.policy_maps();
    let entries = std::fs::read_dir(&maps).map_err(|e| pin_error("reading", maps.clone(), e))?;
    for entry in entries {
        unlink(&entry.map_err(|e| pin_error("reading", maps.clone(), e))?.path())?;
    }
    Ok(attached)
}

fn attach_and_pin(
    loaded: &Loaded,
    (program, hook): (BorrowedFd<'_>, Hook<'_>),
    pins: &PinDir,
    what: &str,
) -> Result<(), PolicyError> {
    loaded.pin_maps(|name| pins.policy_maps().join(pin_name(name)))?;
    pin_at(program, &pins.policy())?;
    let link = attach(program, hook, what)?;
    pin_at(link.as_fd(), &pins.policy_link())
}

/// Attaches as soon as the kernel has freed the link of the previous policy.
pub(super) fn attach(program: BorrowedFd<'_>, hook: Hook<'_>, what: &str) -> Result<OwnedFd, PolicyError> {
    let give_up = Instant::now() + DETACH_PATIENCE;
    loop {
        let error = match load::attach(program, hook) {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        let is_busy = error.raw_os_error() == Some(libc::EBUSY);
        if is_busy && Instant::now() < give_up {
            std::thread::sleep(DETACH_POLL);
            continue;
        }
        let detail = match is_busy {
            true => "another policy stays attached to the classifier".to_owned(),
            false => error.to_string(),
        };
        return Err(PolicyError::Attach {
            what: what.to_owned(),
            detail,
        });
    }
}
