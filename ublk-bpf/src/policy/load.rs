//! The classifier of one device: loaded, attached and pinned, or reopened from its pins.

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{PerCpuArray, PerCpuValues};
use ublk_bpf_abi::{
    CONFIG_GLOBAL, CacheCounters, Config, Decisions, DirtyEntry, IndexEntry, Member, Op, ServerCounters,
    TENANTS, VerdictSlot, map,
};

use super::builtin::CLASSIFIER;
use super::causes::chain;
use super::config::{CONFIG_PIN, check_config};
use super::error::PolicyError;
use super::histograms;
use super::loader::{Loaded, Loader};
use super::maps::{CacheMaps, DeviceCounters, Verdicts, WrittenMap};
use super::offsets::KernelLayout;
use super::patch::patch;
use super::pin::{PinDir, open_map, pin_at};
use super::spec::{CacheSpec, ClassifierSpec, Observe};
use super::state::StateMap;
use crate::sys::bpf::load::{Hook, attach};

/// The object and its program, for messages, and the program's name.
const WHAT: &str = "the classifier";
const PROGRAM: &str = "classify";
/// The map that aya creates for the object's read-only globals.
const RODATA: &str = ".rodata";
/// The map that aya creates for its mutable globals.
const BSS: &str = ".bss";
/// The name of its pin: bpffs allows no dot in a name. The other one's is [`CONFIG_PIN`].
const MEMORY_PIN: &str = "memory";

/// [`Config`] as plain bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct ConfigBytes(Config);

// SAFETY: `Config` is `repr(C)`, consists of integers and has no padding (its size is asserted beside it).
unsafe impl aya::Pod for ConfigBytes {}

/// A device's classifier, attached and pinned.
///
/// The pins keep the classifier in the kernel. Dropping this removes the pins, and with them the classifier, unless
/// [`Classifier::leave_pinned`] was called: a failed start and a clean stop leave nothing pinned.
#[derive(Debug)]
pub struct Classifier {
    pins: PinDir,
    verdicts: Verdicts,
    counters: DeviceCounters,
    written: Option<WrittenMap>,
    cache: Option<CacheMaps>,
    leave_pinned: bool,
}

impl Classifier {
    /// Loads the classifier for a device, attaches it and pins it, with the default policy. Call it after the device is
    /// added and before it is started: no request is issued before then. Removes the pins of an earlier device of that
    /// name.
    pub fn load(spec: &ClassifierSpec) -> Result<Self, PolicyError> {
        let mut loaded = load_object(spec)?;
        name_operations::<{ Decisions::WORDS }>(&mut loaded, map::DECISIONS)?;
        let pins = PinDir::of(&spec.disk);
        pins.create()?;
        let observe = || match spec.observe {
            Observe::Full => histograms::attach_and_pin(&pins),
            Observe::Off | Observe::Counters => Ok(()),
        };
        let pinned = attach_and_pin(&loaded, &pins)
            .and_then(|()| observe())
            .and_then(|()| Self::open(spec, &pins));
        if pinned.is_err() {
            // Report the first error, not another one of the clean-up.
            let _ = pins.remove();
        }
        pinned
    }

    /// Reopens the pinned classifier of an earlier server of the same device, for a server that recovers it. The pins
    /// must have this program's ABI version and this device's shape. They stay when this is dropped, until
    /// [`Classifier::remove_when_dropped`] is called. The verdicts are the earlier server's: call [`Verdicts::clear`]
    /// before the device resumes.
    pub fn reopen(spec: &ClassifierSpec) -> Result<Self, PolicyError> {
        let pins = PinDir::open(&spec.disk)?;
        for needed in [pins.classifier(), pins.link()] {
            if !needed.exists() {
                return Err(PolicyError::NotClassified {
                    path: pins.path().to_owned(),
                });
            }
        }
        check_config(spec, &pins)?;
        let mut found = Self::open(spec, &pins)?;
        found.leave_pinned = true;
        Ok(found)
    }

    fn open(spec: &ClassifierSpec, pins: &PinDir) -> Result<Self, PolicyError> {
        let open =
            |name: &str, value_size: usize, entries: u32| open_map(&pins.map(name), value_size, entries);
        let verdicts = open(map::VERDICTS, size_of::<VerdictSlot>(), spec.slots())?;
        let server = open(map::SERVER, size_of::<ServerCounters>(), spec.queues.into())?;
        let written = open(map::WRITTEN, size_of::<u64>(), spec.written_words())?;
        let index = open(map::INDEX, size_of::<IndexEntry>(), spec.index_entries())?;
        let heat = open(map::HEAT, size_of::<u64>(), spec.heat_words())?;
        let dirty = open(map::DIRTY, size_of::<DirtyEntry>(), spec.dirty_entries())?;
        let tenants = open(map::TENANTS, size_of::<u64>(), spec.tenant_words())?;
        let usage = open(map::USAGE, size_of::<u64>(), TENANTS)?;
        let cache = open(map::CACHE, size_of::<CacheCounters>(), 1)?;
        let state = StateMap::open(pins)?;
        let maps = |of: CacheSpec| {
            let maps = [&index, &heat, &dirty, &tenants, &usage, &cache];
            CacheMaps::map(of, maps.map(|map| map.fd().as_fd()), state)
        };
        Ok(Self {
            pins: pins.clone(),
            verdicts: Verdicts::map(verdicts.fd().as_fd(), spec.queues, spec.depth)?,
            counters: DeviceCounters::map(server.fd().as_fd(), spec.queues)?,
            written: spec
                .written
                .map(|of| WrittenMap::map(written.fd().as_fd(), of.words, of.shift))
                .transpose()?,
            cache: spec.cache.map(maps).transpose()?,
            leave_pinned: false,
        })
    }

    /// The verdicts of every queue.
    #[must_use]
    pub fn verdicts(&self) -> &Verdicts {
        &self.verdicts
    }

    /// The server's published counters.
    #[must_use]
    pub fn counters(&self) -> &DeviceCounters {
        &self.counters
    }

    /// The map of blocks that may hold data, if the server tracks it.
    #[must_use]
    pub fn written(&self) -> Option<&WrittenMap> {
        self.written.as_ref()
    }

    /// The maps of the cache, if the device has one.
    #[must_use]
    pub fn cache(&self) -> Option<&CacheMaps> {
        self.cache.as_ref()
    }

    /// Its pin directory.
    #[must_use]
    pub fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// Keeps the pins when this is dropped, for a server that leaves the device to another.
    pub fn leave_pinned(&mut self) {
        self.leave_pinned = true;
    }

    /// Removes the pins when this is dropped, for a server that has recovered the device.
    pub fn remove_when_dropped(&mut self) {
        self.leave_pinned = false;
    }
}

impl Drop for Classifier {
    fn drop(&mut self) {
        if self.leave_pinned {
            return;
        }
        if let Err(error) = self.pins.remove() {
            tracing::warn!("{error}");
        }
    }
}

/// Creates the classifier's maps; its program is not verified yet.
pub(super) fn load_object(spec: &ClassifierSpec) -> Result<Loaded, PolicyError> {
    let layout = KernelLayout::of_running_kernel()?;
    let config = ConfigBytes(spec.config(&layout));
    let object = patch(CLASSIFIER, &Member::ALL[..Member::CLASSIFIED], &layout.offsets)?;
    Loader::default()
        .global(CONFIG_GLOBAL, &config)
        .entries(map::VERDICTS, spec.slots())
        .entries(map::SERVER, spec.queues.into())
        .entries(map::WRITTEN, spec.written_words())
        .entries(map::INDEX, spec.index_entries())
        .entries(map::HEAT, spec.heat_words())
        .entries(map::DIRTY, spec.dirty_entries())
        .entries(map::TENANTS, spec.tenant_words())
        .load(&object, WHAT)
}

/// The classifier's program, which the verifier has accepted, and what it is to be attached to.
pub(super) fn verified(loaded: &Loaded) -> Result<(OwnedFd, Hook<'static>), PolicyError> {
    let hook = Hook::Tracepoint(KernelLayout::of_running_kernel()?.issue);
    Ok((loaded.program(PROGRAM, hook)?, hook))
}

/// Writes each operation's number into the last word of its entry, so that a dump of the map is readable.
pub(super) fn name_operations<const WORDS: usize>(
    loaded: &mut Loaded,
    name: &'static str,
) -> Result<(), PolicyError> {
    let failed = |detail: String| PolicyError::Access { map: name, detail };
    let map = loaded
        .map_mut(name)
        .ok_or_else(|| failed("the object has none".to_owned()))?;
    let mut entries: PerCpuArray<_, [u64; WORDS]> =
        PerCpuArray::try_from(map).map_err(|e| failed(chain(&e)))?;
    let cpus = aya::util::nr_cpus().map_err(|(path, e)| failed(format!("{path}: {e}")))?;
    for op in Op::ALL {
        let mut entry = [0; WORDS];
        entry[WORDS - 1] = op as u64;
        let values = PerCpuValues::try_from(vec![entry; cpus]).map_err(|e| failed(e.to_string()))?;
        entries.set(op as u32, values, 0).map_err(|e| failed(chain(&e)))?;
    }
    Ok(())
}

fn attach_and_pin(loaded: &Loaded, pins: &PinDir) -> Result<(), PolicyError> {
    loaded.pin_maps(|name| {
        pins.map(match name {
            RODATA => CONFIG_PIN,
            BSS => MEMORY_PIN,
            name => name,
        })
    })?;
    let (program, hook) = verified(loaded)?;
    pin_at(program.as_fd(), &pins.classifier())?;
    let link = attach(program.as_fd(), hook).map_err(|error| PolicyError::Attach {
        what: WHAT.to_owned(),
        detail: error.to_string(),
    })?;
    pin_at(link.as_fd(), &pins.link())
}
