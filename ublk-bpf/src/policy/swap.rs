//! Policies: chosen, put in the place of the classifier's default one, and taken away again.
//!
//! All of this works on pins, without the server: any process with the right to bpf(2) may do it. Callers
//! serialise themselves for each device.

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
use super::error::{PolicyError, chain};
use super::load::{ebpf_error, program_error};
use super::object::{PolicyObject, pin_name};
use super::pin::{Disk, PinDir, pin_error, unlink};
use crate::path_text::{self, ShowPath as _};
use crate::sys::bpf::program_facts;

/// The kernel frees a link some time after its last reference is gone; so long an attachment may be refused.
const DETACH_PATIENCE: Duration = Duration::from_secs(5);
const DETACH_POLL: Duration = Duration::from_millis(1);

/// The policy that answers where there is none.
pub const DEFAULT_POLICY: &str = "passthrough";

/// A policy to put in place.
#[derive(Clone, Debug)]
pub enum Policy {
    /// One that comes with this program.
    Builtin(&'static Builtin),
    /// A user's own.
    Object(PolicyObject),
}

impl Policy {
    /// The policy that `NAME` or `FILE.o` names, a path as [`path_text`] writes it. A file that is called like a
    /// built-in policy is named as `./NAME`.
    ///
    /// The maps of a file's policy may take `memory` bytes.
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

    /// Whether it does nothing on a device without a cache. What a user's own does cannot be told.
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

/// What the verifier went through to admit a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Instructions on all paths together: no request runs more of the policy's. The kernel gives up after a million.
    pub instructions: u32,
}

impl Verified {
    /// Instructions above which a policy may slow every request down noticeably: some microseconds.
    pub const MANY: u32 = 10_000;

    /// A warning, if a request may run many instructions.
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

/// Puts a policy in the place of the one that a disk's classifier asks now.
///
/// The new one is loaded and verified first: one that is refused leaves the old one as it is. The kernel lets no
/// two policies be attached at a time, so between the old and the new one, until the kernel has let go of the
/// old, the default one answers: passthrough. No request is lost by that. The old policy's maps go with it.
pub fn swap(disk: &Disk, policy: &Policy) -> Result<Verified, PolicyError> {
    let pins = PinDir::open(disk)?;
    let classifier = open_classifier(&pins)?;
    let what = format!("policy {}", policy.name());
    let mut ebpf = load(policy, &what)?;
    let verified = load_entry(&mut ebpf, classifier, &what)?;
    detach(&pins)?;
    let placed = attach_and_pin(&mut ebpf, &pins, &what);
    if placed.is_err() {
        // Half a policy is none. The first error says what went wrong.
        let _ = detach(&pins);
    }
    placed.map(|()| verified)
}

/// Makes a policy's maps and its program, which is not verified yet.
fn load(policy: &Policy, what: &str) -> Result<Ebpf, PolicyError> {
    // What is known to break the loader was refused at the door. Should there be more, it is the policy that ends.
    let loaded = catch_unwind(|| EbpfLoader::new().load(policy.bytes()));
    let loaded = loaded.map_err(|_| PolicyError::Load {
        what: what.to_owned(),
        detail: "it breaks the loader: build it again".to_owned(),
    })?;
    loaded.map_err(|error| ebpf_error(what, error))
}

/// Takes away the policy of a disk, so that the default one answers: passthrough. Says whether there was one.
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

/// Has the verifier check the policy's program against the function that it is to replace.
fn load_entry(ebpf: &mut Ebpf, classifier: ProgramFd, what: &str) -> Result<Verified, PolicyError> {
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

fn entry<'a>(ebpf: &'a mut Ebpf, what: &str) -> Result<&'a mut Extension, PolicyError> {
    let failed = |detail: String| PolicyError::Load {
        what: what.to_owned(),
        detail,
    };
    let program = ebpf
        .program_mut(POLICY_FUNCTION)
        .ok_or_else(|| failed(format!("no program `{POLICY_FUNCTION}` in it")))?;
    program.try_into().map_err(|e: ProgramError| failed(chain(&e)))
}

/// Takes the policy away, if there is one, with its pins.
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
        // Dropped at once: the link ends with its last reference.
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

/// Attaches as soon as the kernel has let go of the policy before.
fn attach(program: &mut Extension, what: &str) -> Result<ExtensionLink, PolicyError> {
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
