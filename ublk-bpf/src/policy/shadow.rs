//! The shadow policy of a device: answers every request beside the policy that decides, without an effect.
//!
//! A program of its own calls it (`ublk-bpf-ebpf/src/shadow.rs`), behind the classifier on the same tracepoint, and counts
//! how the two answers compare. Everything is pinned, so a shadow needs no process; it ends with the device. Callers
//! serialise their calls for each device, also with those of [`swap`](super::swap()).

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use aya::maps::{Array, Map, MapData, MapError};
use ublk_bpf_abi::{AboutShadow, CONFIG_GLOBAL, Compared, Member, VerdictSlot, map};

use super::builtin::SHADOW;
use super::causes::chain;
use super::config::config_of_device;
use super::error::PolicyError;
use super::load::name_operations;
use super::loader::{Loaded, Loader};
use super::object::pin_name;
use super::offsets::KernelLayout;
use super::patch::patch;
use super::pin::{Disk, PinDir, ShadowPins, open_map, pin_at, pin_error};
use super::swap::{self, Policy, Verified, open_classifier, policy_function};
use crate::sys::bpf::load::{Hook, attach};
use crate::sys::bpf::{open_pinned, program_facts};

/// The program in the object.
const PROGRAM: &str = "shadow";
const WHAT: &str = "the program that calls the shadow policy";

/// [`AboutShadow`] as bytes.
type AboutBytes = [u8; size_of::<AboutShadow>()];

/// Which policy a device has as its shadow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowPolicy {
    /// Its name, or the absolute path of its object.
    pub policy: String,
    /// Memory limit for the maps of a policy loaded from a file, in bytes.
    pub policy_memory: u64,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

impl ShadowPolicy {
    /// The shadow of the device with these pins, if it has one.
    ///
    /// # Errors
    /// If the kernel refuses to read it.
    pub fn of(pins: &PinDir) -> Result<Option<Self>, PolicyError> {
        let shadow = pins.shadow();
        // The last pin that is made, and the first that is removed.
        if matches!(shadow.link().try_exists(), Ok(false)) {
            return Ok(None);
        }
        let map = open_map(&shadow.map(map::ABOUT), size_of::<AboutShadow>(), 1)?;
        let map: Array<_, AboutBytes> = Array::try_from(Map::Array(map)).map_err(|e| unreadable(&e))?;
        Ok(Some(Self::from_bytes(
            &map.get(&0, 0).map_err(|e| unreadable(&e))?,
        )))
    }

    fn from_bytes(bytes: &AboutBytes) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let name = bytes[16..].split(|&byte| byte == 0).next().unwrap_or_default();
        Self {
            policy: String::from_utf8_lossy(name).into_owned(),
            policy_memory: word(0),
            since: word(8),
        }
    }

    fn to_bytes(&self) -> Result<AboutBytes, PolicyError> {
        let mut bytes = [0; size_of::<AboutShadow>()];
        bytes[..8].copy_from_slice(&self.policy_memory.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.since.to_le_bytes());
        let name = self.policy.as_bytes();
        let place = bytes[16..].get_mut(..name.len()).ok_or(PolicyError::LongName {
            found: name.len(),
            limit: AboutShadow::NAME,
        })?;
        place.copy_from_slice(name);
        Ok(bytes)
    }
}

fn unreadable(error: &MapError) -> PolicyError {
    PolicyError::Access {
        map: map::ABOUT,
        detail: chain(error),
    }
}

/// Makes a policy the shadow of a disk, in place of another one. `policy_memory` is what
/// [`Policy::parse`] had.
///
/// # Errors
/// If the policy is refused; an earlier shadow stays then.
pub fn attach_shadow(disk: &Disk, policy: &Policy, policy_memory: u64) -> Result<Verified, PolicyError> {
    let pins = PinDir::open(disk)?;
    open_classifier(&pins)?;
    let about = ShadowPolicy {
        policy: policy.name(),
        policy_memory,
        since: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
    };
    let loaded = load_shadow(&pins, &about)?;
    let hook = Hook::Tracepoint(KernelLayout::of_running_kernel()?.issue);
    let program = loaded.program(PROGRAM, hook)?;
    let what = format!("shadow policy {}", policy.name());
    let answers = swap::load_object(policy, Some(&pins), &what)?;
    let (policy, place) = swap::verified(policy, &answers, program.as_fd(), &what)?;
    let facts = program_facts(policy.as_fd()).map_err(|e| failed(&e.to_string()))?;
    let shadow = pins.shadow();
    shadow.remove()?;
    let placed = shadow
        .create()
        .and_then(|()| place_policy(&answers, (policy.as_fd(), place), &shadow, &what))
        .and_then(|()| place_program(&loaded, (program.as_fd(), hook), &shadow));
    if placed.is_err() {
        // Report the first error, not another one of the clean-up.
        let _ = shadow.remove();
    }
    placed.map(|()| Verified {
        instructions: facts.verified_instructions,
    })
}

/// Creates the program's own maps, and takes the classifier's.
fn load_shadow(pins: &PinDir, about: &ShadowPolicy) -> Result<Loaded, PolicyError> {
    let (config, slots) = config_of_device(pins)?;
    let classifiers = [map::VERDICTS, map::INDEX, map::HEAT, map::WRITTEN].map(|name| (name, pins.map(name)));
    open_map(&classifiers[0].1, size_of::<VerdictSlot>(), slots)?;
    let layout = KernelLayout::of_running_kernel()?;
    let object = patch(SHADOW, &Member::ALL[..Member::CLASSIFIED], &layout.offsets)?;
    let mut loader = Loader::default().global(CONFIG_GLOBAL, &config);
    for (name, path) in &classifiers {
        loader = loader.pinned(name, path);
    }
    let mut loaded = loader.load(&object, WHAT)?;
    name_operations::<{ Compared::WORDS }>(&mut loaded, map::COMPARED)?;
    let map = loaded.map_mut(map::ABOUT).ok_or_else(|| failed("no map"))?;
    let mut map: Array<&mut MapData, AboutBytes> = Array::try_from(map).map_err(|e| unreadable(&e))?;
    map.set(0, about.to_bytes()?, 0).map_err(|e| unreadable(&e))?;
    Ok(loaded)
}

fn place_policy(
    answers: &Loaded,
    (policy, place): (BorrowedFd<'_>, Hook<'_>),
    shadow: &ShadowPins,
    what: &str,
) -> Result<(), PolicyError> {
    answers.pin_maps(|name| shadow.policy_maps().join(pin_name(name)))?;
    pin_at(policy, &shadow.policy())?;
    let link = swap::attach(policy, place, what)?;
    pin_at(link.as_fd(), &shadow.policy_link())
}

/// From the last step on, the shadow runs.
fn place_program(
    loaded: &Loaded,
    (program, hook): (BorrowedFd<'_>, Hook<'_>),
    shadow: &ShadowPins,
) -> Result<(), PolicyError> {
    for name in [map::COMPARED, map::SHADOW_CODES, map::ABOUT] {
        loaded.pin_map(name, shadow.map(name))?;
    }
    pin_at(program, &shadow.program())?;
    let link = attach(program, hook).map_err(|e| failed(&e.to_string()))?;
    pin_at(link.as_fd(), &shadow.link())
}

/// Removes the shadow of a disk. Returns whether there was one.
///
/// # Errors
/// If a pin cannot be removed.
pub fn detach_shadow(disk: &Disk) -> Result<bool, PolicyError> {
    let pins = PinDir::open(disk)?;
    let shadow = pins.shadow();
    let existed = matches!(shadow.link().try_exists(), Ok(true));
    shadow.remove()?;
    Ok(existed)
}

/// Makes the shadow the policy that decides, with what its maps have learned, and ends the shadow. Until the kernel has
/// freed the earlier policy's link, requests get the default policy, passthrough.
///
/// # Errors
/// If there is no shadow, or it cannot be attached to the classifier.
pub fn promote_shadow(disk: &Disk) -> Result<ShadowPolicy, PolicyError> {
    let pins = PinDir::open(disk)?;
    let found = ShadowPolicy::of(&pins)?.ok_or_else(|| PolicyError::NoShadow(disk.name().to_owned()))?;
    let classifier = open_classifier(&pins)?;
    let (shadow, what) = (pins.shadow(), format!("policy {}", found.policy));
    let path = shadow.policy();
    let policy: OwnedFd = open_pinned(&path).map_err(|e| pin_error("opening", path, e))?;
    let place = Hook::Replace(classifier.as_fd(), policy_function(classifier.as_fd(), &what)?);
    swap::detach(&pins)?;
    let link = swap::attach(policy.as_fd(), place, &what)?;
    move_pins(&shadow, &pins)?;
    pin_at(link.as_fd(), &pins.policy_link())?;
    shadow.remove()?;
    Ok(found)
}

/// Moves the policy's pins and those of its maps to where a policy has them.
fn move_pins(from: &ShadowPins, to: &PinDir) -> Result<(), PolicyError> {
    let maps = from.policy_maps();
    let unreadable = |e| pin_error("reading", maps.clone(), e);
    for entry in fs::read_dir(&maps).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        rename(&entry.path(), &to.policy_maps().join(entry.file_name()))?;
    }
    rename(&from.policy(), &to.policy())
}

fn rename(from: &Path, to: &Path) -> Result<(), PolicyError> {
    fs::rename(from, to).map_err(|e| pin_error("moving", from.to_owned(), e))
}

fn failed(detail: &str) -> PolicyError {
    PolicyError::Attach {
        what: WHAT.to_owned(),
        detail: detail.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shadow_is_comes_back_from_its_map() {
        let shadow = |policy: String| ShadowPolicy {
            policy,
            policy_memory: 1 << 26,
            since: 1_700_000_000,
        };
        for name in ["lru".to_owned(), "x".repeat(AboutShadow::NAME)] {
            let shadow = shadow(name);
            assert_eq!(ShadowPolicy::from_bytes(&shadow.to_bytes().unwrap()), shadow);
        }
        let error = shadow("x".repeat(AboutShadow::NAME + 1)).to_bytes().unwrap_err();
        assert!(
            error
                .to_string()
                .contains("at most 4080 bytes, and this one has 4081"),
            "{error}"
        );
    }
}
