//! What a new and a recovered device have in common: what they open, how they are served, and how they end.

use std::sync::atomic::{AtomicBool, AtomicU64};

use super::cache::{self, CacheDevice, Contents, RunningCache};
use super::claim::Claim;
use super::error::{CacheError, ServeError};
use super::life::{End, Host};
use super::running::RunningDevice;
use crate::backend::{Backend, BackingKind, NullReads};
use crate::control::{DeviceId, DeviceInfo, Recovery};
use crate::policy::{self, Classifier, Disk, Observe, WrittenSpec};
use crate::queue::Written;
use crate::registry::owners::{Opening, StorageError};
use crate::registry::{DeviceOptions, Record, Role, Scheduler};

/// Blocks of 64 KiB in the map of what may hold data: 2 MiB of map for a TiB of device.
const WRITTEN_SHIFT: u32 = 16;

/// A device that can be served: this server has it, and its requests are classified.
pub(super) struct Prepared<'a> {
    pub(super) backend: &'a Backend,
    /// With what is in it.
    pub(super) cache: Option<(&'a CacheDevice, Contents)>,
    pub(super) record: Record,
    /// The device is recovered: it was there before this process.
    pub(super) was_waiting: bool,
    /// Its cache is another one than that of the earlier server.
    pub(super) is_attached_anew: bool,
    pub(super) scheduler: &'a Scheduler,
    // Dropped in this order.
    pub(super) classifier: Classifier,
    pub(super) claim: Claim<'a>,
}

impl Prepared<'_> {
    /// Serves the device until its end. Removes it then, or leaves it to another server.
    pub(super) fn serve(mut self, host: &Host<'_>) -> Result<(), ServeError> {
        let cache = self.cache.take().zip(self.classifier.cache());
        let cache = cache.map(|((device, contents), maps)| {
            RunningCache::new(
                device,
                self.backend,
                maps,
                contents,
                &self.record,
                self.was_waiting,
                self.is_attached_anew,
            )
        });
        let device = RunningDevice {
            control: host.control,
            errands: host.errands,
            info: &self.claim.info,
            backend: self.backend,
            classifier: &self.classifier,
            cache: cache.as_ref(),
            record: &self.record,
            sectors: AtomicU64::new(self.record.sectors),
            stopping: AtomicBool::new(false),
            was_waiting: self.was_waiting,
            scheduler: self.scheduler,
        };
        let end = device.run(host);
        drop(cache);
        let stays = match &end {
            Ok(End::Stopped) => false,
            Ok(End::Left) | Err(ServeError::Left { .. }) => true,
            Err(_) => self.was_waiting,
        };
        if stays {
            self.classifier.leave_pinned();
            self.claim.leave();
        } else {
            self.classifier.remove_when_dropped();
            self.claim.delete_when_dropped();
        }
        end.map(|end| end.say(self.record.id(), self.record.recovery))
    }
}

/// Opens the backing and the cache by their paths, so before the process leaves its mounts. `own` is the waiting device
/// that uses them; `None` for a new device.
pub(super) fn open_devices(
    options: &DeviceOptions,
    opening: &mut Opening<'_>,
    own: Option<DeviceId>,
) -> Result<(Backend, Option<CacheDevice>), ServeError> {
    let mut backend = opening.backend(Role::Backing, &options.backing, options.read_only, own)?;
    if let Some(block) = options.logical_block {
        backend = backend
            .with_logical_block(block)
            .map_err(StorageError::backend(Role::Backing))?;
    }
    if backend.kind() == BackingKind::Memory && options.recovery != Recovery::None {
        return Err(ServeError::Forgetful);
    }
    let cache = options.cache.as_ref();
    let cache = cache
        .map(|of| CacheDevice::open(of, &mut backend, opening, own))
        .transpose()?;
    cache::pair::require(&options.backing, &backend, cache.as_ref(), options.abandon_dirty)?;
    Ok((backend, cache))
}

/// `sectors` is the device's size.
pub(super) fn classifier_spec(
    info: &DeviceInfo,
    backend: &Backend,
    sectors: u64,
    cache: Option<&CacheDevice>,
    observe: Observe,
) -> Result<policy::ClassifierSpec, CacheError> {
    let is_tracked = matches!(
        backend.kind(),
        BackingKind::File | BackingKind::Memory | BackingKind::Null(NullReads::Zeroes)
    );
    if cache.is_some() {
        cache::check_tags(info)?;
    }
    Ok(policy::ClassifierSpec {
        disk: Disk::ublk(info.id.number()),
        queues: info.queues,
        depth: info.depth,
        written: WrittenSpec::for_device(sectors, WRITTEN_SHIFT).filter(|_| is_tracked),
        cache: cache.map(|cache| cache.maps(sectors)).transpose()?,
        observe,
    })
}

/// Marks the ranges of the backing that hold data.
pub(super) fn mark_data(backend: &Backend, classifier: &Classifier) -> Result<(), ServeError> {
    let Some(map) = classifier.written() else {
        return Ok(());
    };
    let written = Written::new(map.words(), map.shift());
    backend
        .for_each_data_range(|range| {
            if !range.is_empty() {
                written.mark(range.start, range.end - range.start);
            }
        })
        .map_err(|source| ServeError::System {
            what: "find out where the backing holds data",
            source,
        })
}
