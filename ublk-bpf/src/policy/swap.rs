//! Policies: selected, attached in place of the classifier's default one, and detached.
//!
//! All of this uses the pins, without the server: any process that may call bpf(2) can do it. Callers serialise their
//! calls for each device.

use std::io;
use std::os::fd::AsFd;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::programs::extension::ExtensionLink;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{Extension, ProgramError, ProgramFd, ProgramInfo};
use aya::{Ebpf, EbpfLoader};
use ublk_bpf_abi::POLICY_FUNCTION;

use super::builtin::{Builtin, builtin};
use super::causes::chain;
use super::error::PolicyError;
use super::load::{ebpf_error, program_error};
use super::object::{PolicyObject, pin_name};
use super::pin::{Disk, PinDir, pin_error, unlink};
use crate::path_text::{self, ShowPath as _};
use crate::sys::bpf::program_facts;

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
    let mut ebpf = load(policy, &what)?;
    let verified = load_entry(&mut ebpf, classifier, &what)?;
    detach(&pins)?;
    let placed = attach_and_pin(&mut ebpf, &pins, &what);
    if placed.is_err() {
        // Remove what was attached and pinned. The first error is the one to report.
        let _ = detach(&pins);
    }
    placed.map(|()| verified)
}

/// Creates a policy's maps and its program, which is not verified yet.
pub(super) fn load(policy: &Policy, what: &str) -> Result<Ebpf, PolicyError> {
    // Objects that are known to break the loader were refused before. Any other panic fails this policy only.
    let loaded = catch_unwind(|| EbpfLoader::new().load(policy.bytes()));
    let loaded = loaded.map_err(|_| PolicyError::Load {
        what: what.to_owned(),
        detail: "it breaks the loader: build it again".to_owned(),
    })?;
    loaded.map_err(|error| ebpf_error(what, error))
}

/// Detaches the policy of a disk; requests get the default one, passthrough. Returns whether there was one.
pub fn reset(disk: &Disk) -> Result<bool, PolicyError> {
    let pins = PinDir::open(disk)?;
    open_classifier(&pins)?;
    detach(&pins)
}

fn open_classifier(pins: &PinDir) -> Result<ProgramFd, PolicyError> {
    let path = pins.classifier();
    if matches!(path.try_exists(), Ok(false)) {
        return Err(PolicyError::NotClassified {
            path: pins.path().to_owned(),
        });
    }
    ProgramInfo::from_pin(&path)
        .and_then(|info| info.fd())
        .map_err(|e| pin_error("opening", path, io::Error::other(chain(&e))))
}

/// Loads the policy's program: the verifier checks it against the function that it replaces.
pub(super) fn load_entry(
    ebpf: &mut Ebpf,
    classifier: ProgramFd,
    what: &str,
) -> Result<Verified, PolicyError> {
    let program = entry(ebpf, what)?;
    program
        .load(classifier, POLICY_FUNCTION)
        .map_err(|error| program_error(what, error))?;
    let failed = |error: &(dyn std::error::Error + 'static)| PolicyError::Load {
        what: what.to_owned(),
        detail: chain(error),
    };
    let fd = program.fd().map_err(|e| failed(&e))?;
    let facts = program_facts(fd.as_fd()).map_err(|e| failed(&e))?;
    Ok(Verified {
        instructions: facts.verified_instructions,
    })
}

pub(super) fn entry<'a>(ebpf: &'a mut Ebpf, what: &str) -> Result<&'a mut Extension, PolicyError> {
    let failed = |detail: String| PolicyError::Load {
        what: what.to_owned(),
        detail,
    };
    let program = ebpf
        .program_mut(POLICY_FUNCTION)
        .ok_or_else(|| failed(format!("no program `{POLICY_FUNCTION}` in it")))?;
    program.try_into().map_err(|e: ProgramError| failed(chain(&e)))
}

/// Detaches the policy, if there is one, and removes its pins.
fn detach(pins: &PinDir) -> Result<bool, PolicyError> {
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

fn attach_and_pin(ebpf: &mut Ebpf, pins: &PinDir, what: &str) -> Result<(), PolicyError> {
    let pin = |path: &Path, error: &(dyn std::error::Error + 'static)| {
        pin_error("pinning to", path.to_owned(), io::Error::other(chain(error)))
    };
    for (name, map) in ebpf.maps() {
        let path = pins.policy_maps().join(pin_name(name));
        map.pin(&path).map_err(|e| pin(&path, &e))?;
    }
    let program = entry(ebpf, what)?;
    program.pin(pins.policy()).map_err(|e| pin(&pins.policy(), &e))?;
    let link = attach(program, what)?;
    FdLink::from(link)
        .pin(pins.policy_link())
        .map_err(|e| pin(&pins.policy_link(), &e))?;
    Ok(())
}

/// Attaches as soon as the kernel has freed the link of the previous policy.
pub(super) fn attach(program: &mut Extension, what: &str) -> Result<ExtensionLink, PolicyError> {
    let give_up = Instant::now() + DETACH_PATIENCE;
    loop {
        match program.attach().and_then(|id| program.take_link(id)) {
            Ok(link) => return Ok(link),
            Err(error) if is_busy(&error) && Instant::now() < give_up => std::thread::sleep(DETACH_POLL),
            Err(error) if is_busy(&error) => {
                let detail = "another policy stays attached to the classifier".to_owned();
                return Err(PolicyError::Attach {
                    what: what.to_owned(),
                    detail,
                });
            }
            Err(error) => {
                return Err(PolicyError::Attach {
                    what: what.to_owned(),
                    detail: chain(&error),
                });
            }
        }
    }
}

fn is_busy(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else {
        return false;
    };
    error.io_error.raw_os_error() == Some(libc::EBUSY)
}
