//! The classifier of one device: loaded, attached and pinned, or reopened from its pins.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use aya::programs::BtfTracePoint;
use aya::programs::links::FdLink;
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use ublk_bpf_abi::{
    ABI_VERSION, CONFIG_GLOBAL, CacheCounters, Config, Decisions, IndexEntry, Member, Op, ServerCounters,
    VerdictSlot, map,
};

use super::builtin::CLASSIFIER;
use super::config::{CONFIG_PIN, check_config};
use super::error::{PolicyError, chain};
use super::maps::{CacheMaps, DeviceCounters, Verdicts, WrittenMap};
use super::offsets::KernelLayout;
use super::patch::patch;
use super::pin::{Disk, PinDir, pin_error};
use super::verifier::Refusal;
use crate::cache::HEAT_LIMIT;

/// The program in the classifier's object, and the tracepoint that it is attached to.
const PROGRAM: &str = "classify";
pub(super) const TRACEPOINT: &str = "block_rq_issue";
/// The map that aya creates for the object's read-only globals.
const RODATA: &str = ".rodata";
/// The map that aya creates for its mutable globals.
const BSS: &str = ".bss";
/// The name of its pin: bpffs allows no dot in a name. The other one's is [`CONFIG_PIN`].
const MEMORY_PIN: &str = "memory";

/// The device of a classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifierSpec {
    /// Its disk.
    pub disk: Disk,
    /// Hardware queues that the device really has.
    pub queues: u16,
    /// Tags in each queue.
    pub depth: u16,
    /// The map of blocks that hold data, if the server knows them for its backing device.
    pub written: Option<WrittenSpec>,
    /// The maps of its cache, if it has one.
    pub cache: Option<CacheSpec>,
}

/// The shape of the maps of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// A block's size in bytes as a power of two, 12 to 20.
    pub shift: u32,
    /// Blocks of the device.
    pub blocks: u32,
}

impl CacheSpec {
    /// The maps of a device of `sectors` sectors in blocks of `1 << shift` bytes; none if it has 2^32 blocks or more.
    #[must_use]
    pub fn for_device(sectors: u64, shift: u32) -> Option<Self> {
        debug_assert!((12..=20).contains(&shift));
        let blocks = u32::try_from(sectors.div_ceil(1 << (shift - 9))).ok()?;
        Some(Self { shift, blocks })
    }

    fn heat_words(self) -> u32 {
        self.blocks.div_ceil(HEAT_BLOCKS)
    }
}

/// Blocks whose heat is in one word.
const HEAT_BLOCKS: u32 = 8;

/// The shape of the map of blocks that may hold data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenSpec {
    /// A block's size in bytes as a power of two, 12 to 30.
    pub shift: u32,
    /// 64-bit words, one bit for each block of the device.
    pub words: u32,
}

impl WrittenSpec {
    /// The map of a device of `sectors` sectors in blocks of `1 << shift` bytes; none if the map would have more
    /// than 2^32 words.
    #[must_use]
    pub fn for_device(sectors: u64, shift: u32) -> Option<Self> {
        debug_assert!((12..=30).contains(&shift));
        let blocks = sectors.div_ceil(1 << (shift - 9));
        Some(Self {
            shift,
            words: u32::try_from(blocks.div_ceil(64).max(1)).ok()?,
        })
    }
}

impl ClassifierSpec {
    fn config(&self, layout: &KernelLayout) -> Config {
        Config {
            disk_name: self.disk.name_words(),
            abi_version: ABI_VERSION,
            depth: self.depth.into(),
            written_shift: self.written.map_or(0, |written| written.shift),
            flag_masks: layout.flag_masks,
            any_flag: layout.flag_masks.iter().fold(0, |all, mask| all | mask),
            queues: self.queues.into(),
            cache_shift: self.cache.map_or(0, |cache| cache.shift),
            heat_limit: HEAT_LIMIT,
            reserved: 0,
        }
    }

    fn slots(&self) -> u32 {
        u32::from(self.queues) * u32::from(self.depth)
    }

    fn written_words(&self) -> u32 {
        self.written.map_or(1, |written| written.words)
    }

    fn index_entries(&self) -> u32 {
        self.cache.map_or(1, |cache| cache.blocks)
    }

    fn heat_words(&self) -> u32 {
        self.cache.map_or(1, CacheSpec::heat_words)
    }
}

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
        let layout = KernelLayout::of_running_kernel()?;
        let config = ConfigBytes(spec.config(&layout));
        let object = patch(CLASSIFIER, &Member::ALL[..Member::CLASSIFIED], &layout.offsets)?;
        let mut ebpf = EbpfLoader::new()
            .override_global(CONFIG_GLOBAL, &config, true)
            .map_max_entries(map::VERDICTS, spec.slots())
            .map_max_entries(map::SERVER, spec.queues.into())
            .map_max_entries(map::WRITTEN, spec.written_words())
            .map_max_entries(map::INDEX, spec.index_entries())
            .map_max_entries(map::HEAT, spec.heat_words())
            .load(&object)
            .map_err(|error| ebpf_error("the classifier", error))?;
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
    let attach = |detail| PolicyError::Attach {
        what: "the classifier".to_owned(),
        detail,
    };
    let btf = Btf::from_sys_fs().map_err(|e| attach(chain(&e)))?;
    let program = ebpf
        .program_mut(PROGRAM)
        .ok_or_else(|| attach(format!("no program {PROGRAM}")))?;
    let program: &mut BtfTracePoint = program.try_into().map_err(|e| attach(chain(&e)))?;
    program
        .load(TRACEPOINT, &btf)
        .map_err(|e| program_error("the classifier", e))?;
    program
        .pin(pins.classifier())
        .map_err(|e| pin(&pins.classifier(), &e))?;
    let link = program
        .attach()
        .and_then(|id| program.take_link(id))
        .map_err(|e| attach(chain(&e)))?;
    FdLink::from(link)
        .pin(pins.link())
        .map_err(|e| pin(&pins.link(), &e))?;
    Ok(())
}

/// Opens a pinned map and checks its shape.
pub(super) fn open_map(path: &Path, value_size: usize, entries: u32) -> Result<MapData, PolicyError> {
    let failed = |e: aya::maps::MapError| pin_error("opening", path.to_owned(), io::Error::other(chain(&e)));
    let map = MapData::from_pin(path).map_err(failed)?;
    let info = map.info().map_err(failed)?;
    let properties = [
        (
            "the size of its values",
            u64::from(info.value_size()),
            value_size as u64,
        ),
        ("its number of entries", info.max_entries().into(), entries.into()),
    ];
    for (what, found, wanted) in properties {
        if found != wanted {
            return Err(PolicyError::Foreign {
                path: path.to_owned(),
                what,
                found,
                wanted,
            });
        }
    }
    Ok(map)
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
pub(super) fn program_error(what: &str, error: aya::programs::ProgramError) -> PolicyError {
    use aya::programs::ProgramError;
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
