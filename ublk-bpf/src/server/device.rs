//! A new device, from its options to its end.
//!
//! Each step is undone by the drop of what it returned, in reverse order: a failure anywhere cleans up, and a clean
//! stop takes the same path.

use super::cache::{self, CacheDevice, MapOrigin, RunningCache};
use super::claim::Claim;
use super::error::{CacheError, ServeError};
use super::life::{Device, End, Host};
use super::running::RunningDevice;
use crate::backend::{Backend, Kind, NullReads};
use crate::control::{Control, DeviceId, DeviceInfo, Recovery};
use crate::policy::{self, Classifier, Disk, Policy, WrittenSpec};
use crate::queue::Written;
use crate::registry::owners::{Opening, StorageError};
use crate::registry::{DeviceOptions, Record, Role};

/// Blocks of 64 KiB in the map of what may hold data: 2 MiB of map for a TiB of device.
const WRITTEN_SHIFT: u32 = 16;

/// A device to be made.
pub(super) struct NewDevice {
    options: DeviceOptions,
    policy: Policy,
    backend: Backend,
    cache: Option<CacheDevice>,
    /// Ids that other devices of the process need.
    reserved: Vec<DeviceId>,
}

impl NewDevice {
    /// Opens what the options name.
    pub(super) fn open(
        options: &DeviceOptions,
        reserved: &[DeviceId],
        opening: &mut Opening<'_>,
    ) -> Result<Self, ServeError> {
        let policy = Policy::parse(&options.policy, options.policy_memory)?;
        let (backend, cache) = open_devices(options, opening, None)?;
        Ok(Self {
            options: options.clone(),
            policy,
            backend,
            cache,
            reserved: reserved.to_owned(),
        })
    }
}

impl Device for NewDevice {
    /// Makes the device, serves it, and deletes it.
    fn live(self, host: Host<'_>) -> Result<(), ServeError> {
        let control = host.control;
        let (options, backend, cache) = (&self.options, &self.backend, self.cache.as_ref());
        let (mut claim, policy_lock) = Claim::make(control, options, &self.reserved, backend, cache)?;
        let facts = backend.facts();
        let params = facts.params(claim.info.max_io_bytes);
        let params = cache.map_or(params, |cache| cache.adapt(params));
        control.set_params(&claim.info, &params)?;
        let spec = classifier_spec(&claim.info, backend, facts.sectors, cache)?;
        let mut classifier = Classifier::load(&spec)?;
        mark_data(backend, &classifier)?;
        let verified = policy::swap(&spec.disk, &self.policy)?;
        if let Some(warning) = verified.warning() {
            tracing::warn!("policy {}: {warning}", self.policy.name());
        }
        drop(policy_lock);
        let service = cache.zip(classifier.cache()).map(|(cache, maps)| {
            let entries = cache.warm(backend)?;
            let size = (backend, facts.sectors);
            Ok::<_, ServeError>(RunningCache::new(cache, size, maps, entries, MapOrigin::New))
        });
        let service = service.transpose()?;
        let record = Record::read(claim.info.id)?;
        let serving = RunningDevice {
            control,
            info: &claim.info,
            backend,
            classifier: &classifier,
            cache: service.as_ref(),
            record,
            was_waiting: false,
            scheduler: &self.options.scheduler,
        };
        let end = serving.run(Control::start, &host);
        drop(service);
        if let Ok(End::Left) | Err(ServeError::Left { .. }) = end {
            classifier.leave_pinned();
            claim.leave();
        }
        end.map(|end| end.say(claim.info.id, self.options.recovery))
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
    if backend.kind() == Kind::Memory && options.recovery != Recovery::None {
        return Err(ServeError::Forgetful);
    }
    let cache = options.cache.as_ref();
    let cache = cache
        .map(|of| CacheDevice::open(of, &mut backend, opening, own))
        .transpose()?;
    Ok((backend, cache))
}

/// `sectors` is the device's size.
pub(super) fn classifier_spec(
    info: &DeviceInfo,
    backend: &Backend,
    sectors: u64,
    cache: Option<&CacheDevice>,
) -> Result<policy::ClassifierSpec, CacheError> {
    let is_tracked = matches!(
        backend.kind(),
        Kind::File | Kind::Memory | Kind::Null(NullReads::Zeroes)
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
