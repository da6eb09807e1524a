//! The classifier of one device: loaded, attached and pinned, or reopened from its pins.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::{PerCpuArray, PerCpuValues};
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use ublk_bpf_abi::{
    CONFIG_GLOBAL, CacheCounters, Config, Decisions, IndexEntry, Member, Op, ServerCounters, VerdictSlot, map,
};

use super::builtin::CLASSIFIER;
use super::causes::chain;
use super::config::{CONFIG_PIN, check_config};
use super::error::PolicyError;
use super::maps::{CacheMaps, DeviceCounters, Verdicts, WrittenMap};
use super::offsets::KernelLayout;
use super::patch::patch;
use super::pin::{PinDir, open_map, pin_error};
use super::spec::{CacheSpec, ClassifierSpec};
use super::verifier::Refusal;

/// The name of the object in errors.
const WHAT: &str = "the classifier";
/// The program in the classifier's object, and the tracepoint that it is attached to.
const PROGRAM: &str = "classify";
pub(super) const TRACEPOINT: &str = "block_rq_issue";
/// The map that aya creates for the object's read-only globals.
const RODATA: &str = ".rodata";
/// The map that aya creates for its mutable globals.
const BSS: &str = ".bss";
/// The name of its pin: bpffs allows no dot in a name. The other one's is [`CONFIG_PIN`].
const MEMORY_PIN: &str = "memory";

/// [`Config`] as the bytes that aya writes to the object's global.
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
        let mut ebpf = load_object(spec)?;
        name_operations(&mut ebpf)?;
        let pins = PinDir::of(&spec.disk);
        pins.create()?;
        let pinned = attach_and_pin(&mut ebpf, &pins).and_then(|()| Self::open(spec, &pins));
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
        let cache = open(map::CACHE, size_of::<CacheCounters>(), 1)?;
        let maps = |of: CacheSpec| {
            let [index, heat, counters] = [&index, &heat, &cache].map(|map| map.fd().as_fd());
            CacheMaps::map(of.blocks, (index, heat, of.heat_words()), counters)
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

/// Creates the classifier's maps and its program, which is not verified yet.
pub(super) fn load_object(spec: &ClassifierSpec) -> Result<Ebpf, PolicyError> {
    let layout = KernelLayout::of_running_kernel()?;
    let config = ConfigBytes(spec.config(&layout));
    let object = patch(CLASSIFIER, &Member::ALL[..Member::CLASSIFIED], &layout.offsets)?;
    EbpfLoader::new()
        .override_global(CONFIG_GLOBAL, &config, true)
        .map_max_entries(map::VERDICTS, spec.slots())
        .map_max_entries(map::SERVER, spec.queues.into())
        .map_max_entries(map::WRITTEN, spec.written_words())
        .map_max_entries(map::INDEX, spec.index_entries())
        .map_max_entries(map::HEAT, spec.heat_words())
        .load(&object)
        .map_err(|error| ebpf_error(WHAT, error))
}

/// The classifier's program, which the verifier has accepted.
pub(super) fn verified(ebpf: &mut Ebpf) -> Result<&mut BtfTracePoint, PolicyError> {
    let failed = |error: &(dyn std::error::Error + 'static)| PolicyError::Attach {
        what: WHAT.to_owned(),
        detail: chain(error),
    };
    let btf = Btf::from_sys_fs().map_err(|e| failed(&e))?;
    let program = ebpf.program_mut(PROGRAM).ok_or_else(|| PolicyError::Attach {
        what: WHAT.to_owned(),
        detail: format!("no program {PROGRAM}"),
    })?;
    let program: &mut BtfTracePoint = program.try_into().map_err(|e: ProgramError| failed(&e))?;
    program
        .load(TRACEPOINT, &btf)
        .map_err(|e| program_error(WHAT, e))?;
    Ok(program)
}

/// Writes each operation's number into its entry, so that a dump of the map is readable.
fn name_operations(ebpf: &mut Ebpf) -> Result<(), PolicyError> {
    let failed = |detail: String| PolicyError::Access {
        map: map::DECISIONS,
        detail,
    };
    let map = ebpf
        .map_mut(map::DECISIONS)
        .ok_or_else(|| failed("the object has none".to_owned()))?;
    let mut entries: PerCpuArray<_, [u64; Decisions::WORDS]> =
        PerCpuArray::try_from(map).map_err(|e| failed(chain(&e)))?;
    let cpus = aya::util::nr_cpus().map_err(|(path, e)| failed(format!("{path}: {e}")))?;
    for op in Op::ALL {
        let mut entry = [0; Decisions::WORDS];
        entry[Decisions::WORDS - 1] = op as u64;
        let values = PerCpuValues::try_from(vec![entry; cpus]).map_err(|e| failed(e.to_string()))?;
        entries.set(op as u32, values, 0).map_err(|e| failed(chain(&e)))?;
    }
    Ok(())
}

fn attach_and_pin(ebpf: &mut Ebpf, pins: &PinDir) -> Result<(), PolicyError> {
    let pin = |path: &Path, error: &(dyn std::error::Error + 'static)| {
        pin_error("pinning to", path.to_owned(), io::Error::other(chain(error)))
    };
    for (name, map) in ebpf.maps() {
        let path = pins.map(match name {
            RODATA => CONFIG_PIN,
            BSS => MEMORY_PIN,
            name => name,
        });
        map.pin(&path).map_err(|e| pin(&path, &e))?;
    }
    let program = verified(ebpf)?;
    program
        .pin(pins.classifier())
        .map_err(|e| pin(&pins.classifier(), &e))?;
    let link = program
        .attach()
        .and_then(|id| program.take_link(id))
        .map_err(|e| PolicyError::Attach {
            what: WHAT.to_owned(),
            detail: chain(&e),
        })?;
    FdLink::from(link)
        .pin(pins.link())
        .map_err(|e| pin(&pins.link(), &e))?;
    Ok(())
}

/// aya's error of loading an object.
pub(super) fn ebpf_error(what: &str, error: EbpfError) -> PolicyError {
    if is_permission(&error) {
        return PolicyError::NoPermission;
    }
    match error {
        EbpfError::ProgramError(error) => program_error(what, error),
        error => PolicyError::Load {
            what: what.to_owned(),
            detail: chain(&error),
        },
    }
}

/// aya's error of loading a program.
pub(super) fn program_error(what: &str, error: ProgramError) -> PolicyError {
    if is_permission(&error) {
        return PolicyError::NoPermission;
    }
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => Refusal::from_log(what, &io_error, &verifier_log.to_string()).into(),
        error => PolicyError::Load {
            what: what.to_owned(),
            detail: chain(&error),
        },
    }
}

/// The verifier refuses with EACCES, EINVAL and others; EPERM is about the caller.
fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(cause) = error {
        let errno = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        if errno == Some(libc::EPERM) {
            return true;
        }
        error = cause.source();
    }
    false
}
