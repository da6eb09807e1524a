//! A device's cache: opened, used, and saved so that the next server starts warm.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use ublk_bpf_abi::{Priority, SECTOR_SIZE};

use super::error::{CacheError, ServeError};
use super::isolation::protect_thread;
use super::{limits, panics};
use crate::backend::fingerprint::Identity;
use crate::backend::{Backend, BackingKind, Size};
use crate::cache::disk::{self, Abandon, DiskError, Layout, Opened, SavedEntry};
use crate::cache::{self, Cache, CacheFailure, Mover, PromoteLimits, Resident, Shape, Trust};
use crate::control::{DeviceId, DeviceInfo, Params};
use crate::driver::{CacheHandles, Engine};
use crate::errno::Errno;
use crate::policy::{CacheMaps, CacheSpec};
use crate::registry::owners::Opening;
use crate::registry::record::{CacheRecord, Detached, Record, now};
use crate::registry::{CacheOptions, RecordError, Role};

/// Limit of cache blocks in one discard or write-zeroes: a queue marks each of them before it continues.
const MAX_BLOCKS_A_DISCARD: u32 = 16 << 10;

/// Slots that are compared with the backing even where it is proven to be as it was.
const SAMPLES: usize = 64;

/// The content that an earlier server saved in a cache, and how far it can be trusted.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    entries: Vec<SavedEntry>,
    trust: Trust,
}

impl Contents {
    const NONE: Self = Self {
        entries: Vec::new(),
        trust: Trust::Proven,
    };
}

/// The cache device, open and divided into slots.
#[derive(Debug)]
pub(super) struct CacheDevice {
    options: CacheOptions,
    backend: Backend,
    file: File,
    layout: Layout,
}

impl CacheDevice {
    /// Opens what the options name, for a device on `backing`, which will promise no more than both can keep: a new one,
    /// or `own`, which waits. A cache does not change the unit of addresses: what works without it works with it.
    pub(super) fn open(
        options: &CacheOptions,
        backing: &mut Backend,
        opening: &mut Opening<'_>,
        own: Option<DeviceId>,
    ) -> Result<Self, ServeError> {
        if matches!(backing.kind(), BackingKind::Null(_)) {
            return Err(CacheError::Null.into());
        }
        let backend = opening.backend(Role::Cache, &options.device, false, own)?;
        let Some(file) = backend.file() else {
            return Err(CacheError::NullCache.into());
        };
        let file = file.try_clone().map_err(|source| ServeError::System {
            what: "use the cache device's descriptor twice",
            source,
        })?;
        let name = options.device.to_string();
        if backend.facts().read_only {
            return Err(CacheError::ReadOnly(name).into());
        }
        let layout = Layout::plan(backend.facts().sectors * SECTOR_SIZE, options.block);
        let layout = layout.map_err(|source| CacheError::Disk {
            device: name.clone(),
            source,
        })?;
        let (block, smaller) = (backend.facts().logical_block, backing.facts().logical_block);
        if block > smaller {
            return Err(CacheError::LargerBlocks {
                device: name,
                block,
                backing: smaller,
            }
            .into());
        }
        backing.suit(backend.facts());
        Ok(Self {
            options: options.clone(),
            backend,
            file,
            layout,
        })
    }

    /// Where the copies are.
    pub(super) const fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The maps that the classifier needs.
    pub(super) fn maps(&self, sectors: u64) -> Result<CacheSpec, CacheError> {
        CacheSpec::for_device(sectors, self.options.shift()).ok_or(CacheError::TooManyBlocks {
            size: Size(sectors * SECTOR_SIZE),
            block: Size(self.options.block.into()),
        })
    }

    /// The device's parameters with this cache: no read or write touches two blocks, and no discard too many.
    pub(super) fn adapt(&self, params: Params) -> Params {
        let block_sectors = self.options.block / 512;
        let most = block_sectors.saturating_mul(MAX_BLOCKS_A_DISCARD);
        Params {
            chunk_sectors: block_sectors,
            discard: params.discard.map(|discard| crate::control::Discard {
                max_sectors: discard.max_sectors.min(most),
                ..discard
            }),
            max_write_zeroes_sectors: params.max_write_zeroes_sectors.min(most),
            ..params
        }
    }

    /// Its part of the device's record.
    pub(super) fn record(&self) -> CacheRecord {
        CacheRecord {
            options: CacheOptions {
                reset: false,
                ..self.options.clone()
            },
            identity: self.backend.identity(),
            storage: self.backend.storage(),
            slots: self.layout.slots,
            detached: None,
        }
    }

    /// Checks that it is the cache that `before` describes.
    pub(super) fn check_unchanged(&self, before: &CacheRecord) -> Result<(), CacheError> {
        let mut found = self.backend.identity();
        let storages = before.storage.as_ref().zip(self.backend.storage());
        if let Some(what) = storages.and_then(|(was, is)| was.difference(&is)) {
            found = format!("{found}, which {what}");
        } else if found == before.identity && self.layout.slots == before.slots {
            return Ok(());
        }
        Err(CacheError::Changed {
            wanted: before.identity.clone(),
            found,
        })
    }

    /// Takes what is on it for a new device on `backing`.
    pub(super) fn warm(&self, backing: &Backend) -> Result<Contents, CacheError> {
        let identity = Identity::of(backing).map_err(CacheError::Identity)?;
        let failed = |source| self.failed(source);
        if self.options.reset {
            disk::reset(&self.file, &self.layout, &identity, Abandon::Nothing).map_err(failed)?;
            return Ok(Contents::NONE);
        }
        let started = disk::open(&self.file, &self.layout, &identity).map_err(failed)?;
        if !started.dirty.is_empty() {
            return Err(failed(DiskError::Dirty(started.dirty.len())));
        }
        match started.opened {
            Opened::New => Ok(Contents::NONE),
            Opened::Cold { reason } => {
                tracing::warn!("the cache {} {reason}: it begins empty", self.options.device);
                Ok(Contents::NONE)
            }
            Opened::Unproven { entries, reason } => {
                tracing::warn!(
                    "each block in the cache {} is verified before its first hit: its backing {reason}",
                    self.options.device
                );
                let trust = Trust::ToVerify;
                Ok(Contents { entries, trust })
            }
            Opened::Warm(entries) => {
                self.compare(backing, &entries).map_err(failed)?;
                let trust = Trust::Proven;
                Ok(Contents { entries, trust })
            }
        }
    }

    /// The content that the index of a dead server lists. The backing may have changed since, so each block is verified.
    pub(super) fn survivors(&self, maps: &CacheMaps) -> Contents {
        if self.backend.kind() == BackingKind::Memory {
            return Contents::NONE;
        }
        let survivors = cache::surviving(maps.index(), &[], self.layout.slots, &[]);
        let entries = survivors.unwrap_or_default().clean.into_iter().map(saved_entry);
        Contents {
            entries: entries.collect(),
            trust: Trust::ToVerify,
        }
    }

    fn compare(&self, backing: &Backend, entries: &[SavedEntry]) -> Result<(), DiskError> {
        let bytes = backing.facts().sectors * SECTOR_SIZE;
        match backing.file() {
            Some(file) => disk::sample_matches(&self.file, file, &self.layout, entries, &[], bytes, SAMPLES),
            None => Ok(()),
        }
    }

    /// Saves what is in the slots, for the next server.
    fn save(&self, backing: &Backend, entries: impl Iterator<Item = SavedEntry>) -> Result<(), CacheError> {
        if let Some(file) = backing.file() {
            file.sync_all().map_err(CacheError::Sync)?;
        }
        let identity = Identity::of(backing).map_err(CacheError::Identity)?;
        disk::save(&self.file, &self.layout, &identity, None, entries).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: DiskError) -> CacheError {
        CacheError::Disk {
            device: self.options.device.to_string(),
            source,
        }
    }
}

fn saved_entry(of: Resident) -> SavedEntry {
    SavedEntry {
        slot: of.slot,
        block: of.block.into(),
        priority: of.priority as u8,
        heat: of.heat,
        valid: of.valid,
    }
}

/// Whether a device can count its writes in flight in the index.
pub(super) fn check_tags(info: &DeviceInfo) -> Result<(), CacheError> {
    let most = cache::MAX_TAGS;
    if u32::from(info.queues) * u32::from(info.depth) <= most {
        return Ok(());
    }
    Err(CacheError::TooManyTags {
        queues: info.queues,
        depth: info.depth,
        most,
    })
}

/// A cache in service.
#[derive(Debug)]
pub(super) struct RunningCache<'a> {
    device: &'a CacheDevice,
    backing: &'a Backend,
    maps: &'a CacheMaps,
    cache: Cache<'a>,
    /// What is in it at the start.
    contents: Contents,
}

impl<'a> RunningCache<'a> {
    /// A cache with these contents, for the device of the record. If the device is recovered, the maps are those of the
    /// dead server. The kernel zeroed new ones: to do so again would dominate the start of a large device.
    pub(super) fn new(
        device: &'a CacheDevice,
        backing: &'a Backend,
        maps: &'a CacheMaps,
        contents: Contents,
        record: &Record,
        is_recovered: bool,
    ) -> Self {
        let shape = Shape {
            shift: device.options.shift(),
            capacity: record.sectors,
            slots: device.layout.slots,
            data_offset: device.layout.data_offset,
            mode: device.options.mode,
        };
        let cache = Cache::new(shape, maps.index(), maps.heat());
        if is_recovered {
            cache.clear();
            // A cache that had failed stays detached.
            if record.is_detached() {
                cache.reset();
                cache.detach(CacheFailure {
                    during: "serving an earlier server,",
                    errno: Errno::EIO,
                });
            }
        }
        Self {
            device,
            backing,
            maps,
            cache,
            contents,
        }
    }

    /// The cache device, if it is a regular file, which another program may truncate.
    pub(super) fn regular_file(&self) -> Option<&File> {
        self.device.backend.regular_file()
    }

    /// What a queue needs of it.
    pub(super) fn handles(&self) -> CacheHandles<'_> {
        CacheHandles {
            cache: &self.cache,
            device: &self.device.file,
        }
    }

    /// What fills it, with what is in it already.
    pub(super) fn mover(&self) -> Mover<'_, 'a> {
        let limits = PromoteLimits {
            rate: self.device.options.promote_limit,
        };
        let algorithm = self.device.options.eviction;
        let mut mover = Mover::new(&self.cache, algorithm, limits, self.maps.published());
        let entries = &self.contents.entries;
        let blocks = entries.iter().filter_map(|entry| {
            Some(Resident {
                slot: entry.slot,
                block: u32::try_from(entry.block).ok()?,
                priority: Priority::parse(entry.priority).unwrap_or(Priority::Normal),
                heat: entry.heat,
                valid: entry.valid,
            })
        });
        mover.restore(blocks, self.contents.trust);
        mover
    }

    /// Limits promotion to so many bytes a second from now on; `None`: no limit. The mover follows within a second.
    pub(super) fn limit_promotion(&self, rate: Option<u64>) {
        self.cache.limit_promotion(PromoteLimits { rate });
    }

    /// Starts the thread of this name that fills it. It returns the mover when the engine stops it.
    pub(super) fn spawn<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        name: String,
        mut mover: Mover<'env, 'a>,
        engine: &'env Engine<'env>,
    ) -> std::io::Result<ScopedJoinHandle<'scope, Mover<'env, 'a>>>
    where
        'a: 'scope,
    {
        limits::thread(name).spawn_scoped(scope, move || {
            protect_thread();
            self.run_mover(&mut mover, engine);
            mover
        })
    }

    fn run_mover(&self, mover: &mut Mover<'_, '_>, engine: &Engine<'_>) {
        let publish = |counters: &_| {
            panics::point();
            self.maps.publish(counters);
        };
        // Without a mover the device is served as if it had no cache.
        let why = match catch_unwind(AssertUnwindSafe(|| engine.run_mover(mover, publish))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its thread panicked".to_owned(),
        };
        tracing::error!("promotion stopped: {why}");
        self.cache.detach(CacheFailure {
            during: "promoting to",
            errno: Errno::EIO,
        });
        // Empties the index, which is the mover's to do; one that panicked may do so again.
        let _ = catch_unwind(AssertUnwindSafe(|| mover.poll(Duration::ZERO)));
        engine.wake_queues();
    }

    /// Keeps what is in it for the next server. The queues have ended.
    pub(super) fn save(&self, mover: &Mover<'_, '_>) {
        if self.cache.failure().is_some() || self.device.backend.kind() == BackingKind::Memory {
            return;
        }
        let entries = mover.residents().map(saved_entry);
        if let Err(error) = self.device.save(self.backing, entries) {
            tracing::warn!("the next server will start with an empty cache: {error}");
        }
    }

    /// Why it is detached, if it is.
    pub(super) fn failure(&self) -> Option<&CacheFailure> {
        self.cache.failure()
    }
}

/// Records that the device's cache is detached. The first cause is kept.
pub(super) fn note_detached(record: &Record, failure: &CacheFailure) {
    let why = format!("{failure}");
    tracing::error!("the cache is detached: {why}");
    let written = Record::change(record.id(), |record| {
        if let Some(cache) = &mut record.cache {
            let detached = Detached { since: now(), why };
            cache.detached.get_or_insert(detached);
        }
        Ok::<_, RecordError>(())
    });
    if let Err(error) = written {
        tracing::error!("cannot record that the cache is detached: {error}");
    }
}
