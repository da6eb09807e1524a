//! A device's cache: opened, used, and saved so that the next server starts warm.
//!
//! `contents.rs` takes what an earlier server left, `steer.rs` changes how it is used, `end.rs` leaves it to the next
//! server, and `pair.rs` keeps a backing from being used without the cache that has its newest data.

mod contents;
mod end;
pub(super) mod pair;
mod steer;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use ublk_bpf_abi::SECTOR_SIZE;

pub(super) use self::contents::Contents;
use super::error::{CacheError, ServeError};
use super::isolation::protect_thread;
use super::life::DeviceEvent;
use super::{limits, panics};
use crate::backend::{Backend, BackingKind, Size};
use crate::cache::disk::{self, DiskError, Held, Layout};
use crate::cache::{self, Cache, CacheFailure, Mode, Mover, PromoteLimits, Shape};
use crate::control::{DeviceId, DeviceInfo, Params};
use crate::driver::{CacheHandles, Engine};
use crate::errno::Errno;
use crate::policy::{CacheMaps, CacheSpec, PolicyError};
use crate::registry::owners::Opening;
use crate::registry::record::{CacheRecord, Detached, Record, now};
use crate::registry::{CacheOptions, RecordError, Role, dirty_pair};

/// Limit of cache blocks in one discard or write-zeroes: a queue marks each of them before it continues.
const MAX_BLOCKS_A_DISCARD: u32 = 16 << 10;

/// The cache device, open and divided into slots.
#[derive(Debug)]
pub(super) struct CacheDevice {
    options: CacheOptions,
    backend: Backend,
    file: File,
    layout: Layout,
    /// Slots that the device's maps have room for.
    map_slots: u32,
    /// Writes may end in it: they are to, or some have that its backing has yet to get.
    writes_back: bool,
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
        let writes_back = Self::writes_back(options, &backend, &file)?;
        if writes_back && backing.facts().read_only {
            return Err(CacheError::ReadOnlyBacking(name).into());
        }
        backing.suit(backend.facts());
        Ok(Self {
            options: options.clone(),
            backend,
            file,
            map_slots: layout.slots,
            layout,
            writes_back,
        })
    }

    /// Whether writes may end in the cache: they are to, or some have.
    fn writes_back(options: &CacheOptions, backend: &Backend, file: &File) -> Result<bool, CacheError> {
        let is_asked = options.mode == Mode::WriteBack;
        if backend.kind() == BackingKind::Memory {
            let name = || options.device.to_string();
            return if is_asked {
                Err(CacheError::Forgetful(name()))
            } else {
                Ok(false)
            };
        }
        let held = disk::held(file).map_err(|source| CacheError::Disk {
            device: options.device.to_string(),
            source,
        })?;
        let held = held.filter(|held| held.may_be_dirty);
        if let Some(held) = &held
            && !options.reset
            && dirty_pair::is_abandoned(held.cache_id)?
        {
            return Err(CacheError::Abandoned(options.device.to_string()));
        }
        Ok(is_asked || (held.is_some() && !options.reset))
    }

    /// Where the copies are.
    pub(super) const fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The maps that the classifier needs.
    pub(super) fn maps(&self, sectors: u64) -> Result<CacheSpec, CacheError> {
        let spec = CacheSpec::for_device(sectors, self.options.shift()).ok_or(CacheError::TooManyBlocks {
            size: Size(sectors * SECTOR_SIZE),
            block: Size(self.options.block.into()),
        })?;
        let spec = spec.with_slots(self.map_slots);
        Ok(match self.writes_back {
            true => spec.with_writeback(),
            false => spec,
        })
    }

    /// Whether writes may end in it.
    pub(super) const fn is_written_back(&self) -> bool {
        self.writes_back
    }

    /// The device's parameters with this cache: no read or write touches two blocks, and no discard too many. What ends in the
    /// cache is durable by a FLUSH alone.
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
            volatile_cache: params.volatile_cache || self.writes_back,
            fua: params.fua || self.writes_back,
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
            map_slots: Some(self.map_slots).filter(|&slots| slots != self.layout.slots),
            writes_back: self.writes_back,
            detached: None,
            is_attached_anew: false,
        }
    }

    /// Checks that it is the cache that `before` describes, whose device is to be recovered.
    pub(super) fn take_up(&mut self, before: &CacheRecord) -> Result<(), CacheError> {
        // What its maps and its clients were told.
        self.writes_back = before.writes_back;
        self.map_slots = before.map_slots.unwrap_or(before.slots);
        if before.is_attached_anew {
            return self.fit();
        }
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

    /// Checks that the maps of the device, which were made for another cache, have room for this one.
    fn fit(&self) -> Result<(), CacheError> {
        let device = || self.options.device.to_string();
        if self.writes_back && self.backend.kind() == BackingKind::Memory {
            return Err(CacheError::Forgetful(device()));
        }
        if !self.writes_back || self.layout.slots <= self.map_slots {
            return Ok(());
        }
        let bytes = |slots: u32| Size(u64::from(slots) * u64::from(self.options.block));
        Err(CacheError::TooLarge {
            device: device(),
            size: bytes(self.layout.slots),
            most: bytes(self.map_slots),
        })
    }

    /// The maps that a dead server left are not to be had.
    pub(super) fn no_maps(&self, error: PolicyError) -> CacheError {
        CacheError::NoMaps {
            device: self.options.device.to_string(),
            error: Box::new(error),
        }
    }

    /// The cache that is on the device.
    fn held(&self) -> Result<Option<Held>, CacheError> {
        disk::held(&self.file).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: DiskError) -> CacheError {
        CacheError::Disk {
            device: self.options.device.to_string(),
            source,
        }
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
    /// dead server, who may have had another cache (`is_new_to_maps`). The kernel zeroed new ones: to do so again would dominate the start of a large device.
    pub(super) fn new(
        device: &'a CacheDevice,
        backing: &'a Backend,
        maps: &'a CacheMaps,
        mut contents: Contents,
        record: &Record,
        is_recovered: bool,
        is_new_to_maps: bool,
    ) -> Self {
        let shape = Shape {
            shift: device.options.shift(),
            capacity: record.sectors,
            slots: device.layout.slots,
            data_offset: device.layout.data_offset,
            mode: device.options.mode,
        };
        let cache = Cache::new(shape, maps.index(), maps.heat());
        let mut cache = cache.with_tenants(maps.tenants(), maps.usage());
        if let Some(log) = contents.log.take() {
            cache = cache.with_writeback(maps.dirty());
            cache.set_log(log, !device.backend.facts().volatile_cache);
        }
        if is_new_to_maps {
            cache.forget_all();
        } else if is_recovered {
            resume(&cache, record.is_detached());
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
        if self.cache.has_writeback() {
            mover = mover.with_writeback(self.clean_limits(&self.device.options));
            mover.restore_dirty(self.contents.dirty.iter().copied());
            if self.device.options.mode != Mode::WriteBack {
                self.cache.write_all_back();
            }
        }
        mover.restore(self.contents.residents(), self.contents.trust);
        self.cache.count_tenants();
        mover
    }

    /// Starts the thread of this name that fills it. It returns the mover when the engine stops it. With write-back, the device
    /// ends without it.
    pub(super) fn spawn<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        name: String,
        mut mover: Mover<'env, 'a>,
        engine: &'env Engine<'env>,
        events: Sender<DeviceEvent>,
    ) -> std::io::Result<ScopedJoinHandle<'scope, Mover<'env, 'a>>>
    where
        'a: 'scope,
    {
        limits::thread(name).spawn_scoped(scope, move || {
            protect_thread();
            if let Err(why) = self.run_mover(&mut mover, engine) {
                // Fails only if the device's thread has ended.
                let _ = events.send(DeviceEvent::MoverEnded(why));
            }
            mover
        })
    }

    fn run_mover(&self, mover: &mut Mover<'_, '_>, engine: &Engine<'_>) -> Result<(), String> {
        let publish = |counters: &_| {
            panics::point();
            self.maps.publish(counters);
            self.maps.publish_state(self.cache.state());
        };
        let why = match catch_unwind(AssertUnwindSafe(|| engine.run_mover(mover, publish))) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its thread panicked".to_owned(),
        };
        if self.cache.has_writeback() {
            // Nothing would be written back, and the log would fill up.
            return Err(format!("the mover stopped: {why}"));
        }
        // Without a mover the device is served as if it had no cache.
        tracing::error!("promotion stopped: {why}");
        self.cache.detach(CacheFailure::Device {
            during: "promoting to",
            errno: Errno::EIO,
        });
        // Empties the index, which is the mover's to do; one that panicked may do so again.
        let _ = catch_unwind(AssertUnwindSafe(|| mover.poll(Duration::ZERO)));
        engine.wake_queues();
        Ok(())
    }

    /// Why it is detached, if it is.
    pub(super) fn failure(&self) -> Option<&CacheFailure> {
        self.cache.failure()
    }
}

/// Prepares a cache on the maps of a dead server, of which only dirty blocks are in the index still.
fn resume(cache: &Cache<'_>, is_detached: bool) {
    if cache.has_writeback() {
        // Its clients may have been told that a write has ended which the backing has not made durable.
        cache.assume_passed();
    } else {
        cache.clear();
    }
    // A cache that had failed stays detached.
    if is_detached {
        if !cache.has_writeback() {
            cache.reset();
        }
        cache.detach(CacheFailure::Device {
            during: "serving an earlier server,",
            errno: Errno::EIO,
        });
    }
}

/// Records that the device's cache is detached. The first cause is kept.
pub(super) fn note_detached(record: &Record, failure: &CacheFailure) {
    let why = format!("{failure}");
    match failure {
        CacheFailure::Asked => tracing::info!("the cache is detached: {why}"),
        CacheFailure::Device { .. } => tracing::error!("the cache is detached: {why}"),
    }
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
