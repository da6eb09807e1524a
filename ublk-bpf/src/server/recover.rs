//! A device whose server died: recovered, served and ended.

use std::thread;
use std::time::Instant;

use ublk_bpf_abi::SECTOR_SIZE;

use super::cache::CacheDevice;
use super::claim::Claim;
use super::described;
use super::error::{CacheError, ServeError};
use super::life::{Device, Host};
use super::prepared::{Prepared, classifier_spec, mark_data, open_devices};
use crate::backend::{Backend, Size};
use crate::control::{Control, DeviceId, DeviceInfo, Features};
use crate::errno::Errno;
use crate::policy::{self, Classifier, DEFAULT_POLICY, Policy, PolicyError};
use crate::registry::lock::Lock;
use crate::registry::owners::Opening;
use crate::registry::record::CacheRecord;
use crate::registry::stale::{self, POLL, SETTLING};
use crate::registry::{DeviceOptions, Record, RecordError};
use crate::sys::process;

/// A device that waits for a server, with everything open that it was on.
pub(super) struct OrphanedDevice {
    info: DeviceInfo,
    before: Record,
    options: DeviceOptions,
    policy: Result<Policy, PolicyError>,
    backend: Backend,
    cache: Option<CacheDevice>,
    lock: Lock,
    /// Keeps other processes from changing the policy until the record is rewritten.
    policy_lock: Lock,
}

impl OrphanedDevice {
    /// Opens the backing and cache of device `id`, without changing the device.
    pub(super) fn open(
        control: &Control,
        id: DeviceId,
        opening: &mut Opening<'_>,
    ) -> Result<Self, ServeError> {
        let lock = lock_of_the_dead(id)?;
        let policy_lock = Lock::change_policy(id)?;
        let before = Record::read(id).inspect_err(|error| {
            // It was removed meanwhile, and these files are new ones.
            if matches!(error, RecordError::Absent(_)) {
                policy_lock.remove_file();
                lock.remove_file();
            }
        })?;
        let options = before.options();
        let info = waiting(control, id)?;
        let policy = Policy::parse(&options.policy, options.policy_memory);
        let (backend, mut cache) = open_devices(&options, opening, Some(id))?;
        check_unchanged(control, &before, &backend)?;
        if let Some((cache, before)) = cache.as_mut().zip(before.cache.as_ref()) {
            cache.take_up(before)?;
        }
        Ok(Self {
            info,
            before,
            options,
            policy,
            backend,
            cache,
            lock,
            policy_lock,
        })
    }

    /// The same, if the device matches the `wanted` options.
    pub(super) fn open_described(
        control: &Control,
        id: DeviceId,
        wanted: &DeviceOptions,
        opening: &mut Opening<'_>,
    ) -> Result<Self, ServeError> {
        let device = Self::open(control, id, opening)?;
        if let Some((was, asked)) = described::difference(&device.before, wanted) {
            return Err(ServeError::Otherwise { id, was, asked });
        }
        tracing::info!(
            "{} is recovered with the options it was made with",
            id.disk_name()
        );
        Ok(device)
    }

    /// The pinned classifier of the dead server with its maps, or a new one if it cannot be reopened.
    fn classifier(&self, spec: &policy::ClassifierSpec) -> Result<Classifier, ServeError> {
        let classifier = match Classifier::reopen(spec) {
            Ok(classifier) => classifier,
            Err(error) => {
                if let Some(cache) = self.cache.as_ref().filter(|cache| cache.is_written_back()) {
                    return Err(cache.no_maps(error).into());
                }
                tracing::warn!("{error}: loading a new classifier");
                let mut classifier = Classifier::load(spec)?;
                classifier.leave_pinned();
                classifier
            }
        };
        classifier.verdicts().clear();
        mark_data(&self.backend, &classifier)?;
        Ok(classifier)
    }

    /// Its cache, if it has one.
    pub(super) const fn cache(&self) -> Option<&CacheDevice> {
        self.cache.as_ref()
    }
}

impl Device for OrphanedDevice {
    /// Resumes where the dead server stopped. A failure before the recovery ends does not change the device.
    fn live(mut self, host: Host<'_>) -> Result<(), ServeError> {
        let control = host.control;
        let id = self.info.id;
        let sectors = self.before.sectors;
        start_recovery(control, id)?;
        // Its maps are those of the size that it was made with.
        let of_maps = self.before.grown_from.unwrap_or(sectors);
        let spec = classifier_spec(
            &self.info,
            &self.backend,
            of_maps,
            self.cache.as_ref(),
            self.options.observe,
        )?;
        let classifier = self.classifier(&spec)?;
        if self.options.policy != DEFAULT_POLICY && !classifier.pins().policy_link().exists() {
            // Data matters more than advice about it.
            if let Err(error) = self.policy.and_then(|policy| policy::swap(&spec.disk, &policy)) {
                tracing::warn!("{error}: every request passes through until `ublk-bpf policy swap {id}`");
                DEFAULT_POLICY.clone_into(&mut self.options.policy);
            }
        }
        let claim = Claim::take_over(control, self.info, self.lock);
        let (backend, cache) = (&self.backend, self.cache.as_ref());
        let of_cache = self.before.cache;
        let is_attached_anew = of_cache.as_ref().is_some_and(|cache| cache.is_attached_anew);
        let detached = of_cache.and_then(|cache| cache.detached);
        let of_record = cache.map(|cache| CacheRecord {
            detached,
            // Until its maps are in order.
            is_attached_anew,
            ..cache.record()
        });
        let mut record = Record::new(&claim.info, &self.options, sectors, backend, of_record);
        record.changed = self.before.changed;
        record.grown_from = self.before.grown_from;
        record.write()?;
        drop(self.policy_lock);
        let contents = cache.zip(classifier.cache());
        let contents = contents.map(|(cache, maps)| {
            let contents = match is_attached_anew {
                true => cache.empty_at_first(backend, maps)?,
                false => cache.survivors(backend, maps)?,
            };
            Ok::<_, CacheError>((cache, contents))
        });
        let contents = contents.transpose()?;
        if let Some(cache) = record.cache.as_mut().filter(|_| is_attached_anew) {
            cache.is_attached_anew = false;
            record.write()?;
        }
        let prepared = Prepared {
            backend,
            cache: contents,
            record,
            was_waiting: true,
            is_attached_anew,
            scheduler: &self.options.scheduler,
            classifier,
            claim,
        };
        prepared.serve(&host)
    }
}

/// The lock of a device whose server is dead, or dying: a process that was killed keeps its locks until it has ended.
fn lock_of_the_dead(id: DeviceId) -> Result<Lock, RecordError> {
    let is_dying = || Record::read(id).is_ok_and(|record| process::is_dying(record.pid));
    let deadline = Instant::now() + SETTLING;
    loop {
        match Lock::serve(id) {
            Err(RecordError::Locked(_)) if is_dying() && Instant::now() < deadline => thread::sleep(POLL),
            other => return other,
        }
    }
}

/// The kernel reports a device as waiting a moment before another server can take it over.
fn start_recovery(control: &Control, id: DeviceId) -> Result<(), ServeError> {
    let deadline = Instant::now() + SETTLING;
    loop {
        match control.start_recovery(id) {
            Err(error) if error.errno() == Some(Errno::EBUSY) && Instant::now() < deadline => {
                thread::sleep(POLL);
            }
            other => return Ok(other?),
        }
    }
}

/// Whether a device that was promised to its clients can be served on `backend`: the same one, with no less of anything.
fn check_unchanged(control: &Control, before: &Record, backend: &Backend) -> Result<(), ServeError> {
    let (id, facts) = (before.id(), backend.facts());
    let promised = control.params(id)?;
    let bytes = |sectors: u64| Size(sectors * SECTOR_SIZE);
    let storages = before.storage.as_ref().zip(backend.storage());
    let difference = if backend.identity() != before.identity {
        format!("it is {} and was {}", backend.identity(), before.identity)
    } else if let Some(what) = storages.and_then(|(was, is)| was.difference(&is)) {
        format!("{} {what}", backend.identity())
    } else if facts.sectors < before.sectors {
        format!(
            "it has {} and had {}",
            bytes(facts.sectors),
            bytes(before.sectors)
        )
    } else if facts.logical_block > promised.logical_block {
        format!(
            "it has blocks of {} bytes and had {}",
            facts.logical_block, promised.logical_block
        )
    } else if facts.memory_align > promised.dma_alignment {
        format!(
            "it needs memory aligned to {} bytes and needed {}",
            facts.memory_align, promised.dma_alignment
        )
    } else if facts.read_only && !promised.read_only {
        "it is read-only now".to_owned()
    } else if facts.volatile_cache && !promised.volatile_cache {
        "it has a volatile cache now".to_owned()
    } else {
        return Ok(());
    };
    Err(ServeError::Changed {
        id,
        backing: before.backing.to_string(),
        difference,
    })
}

/// The devices of this program that wait for a server, in ascending order. Those that another process serves, or takes
/// over meanwhile, are not among them.
///
/// # Errors
/// If the records or the kernel cannot be asked.
pub fn waiting_devices(control: &Control) -> Result<Vec<DeviceId>, ServeError> {
    let mut waiting = Vec::new();
    for id in stale::known()? {
        let is_ours =
            |info: &DeviceInfo| info.state.is_recoverable() && info.flags.contains(Features::SERVED);
        if !Lock::is_served(id)? && stale::settled(control, id)?.as_ref().is_some_and(is_ours) {
            waiting.push(id);
        }
    }
    Ok(waiting)
}

/// The device, if it waits for a server.
fn waiting(control: &Control, id: DeviceId) -> Result<DeviceInfo, ServeError> {
    match stale::settled(control, id)? {
        Some(info) if info.state.is_recoverable() => Ok(info),
        other => {
            let state = other.map_or_else(|| "gone".to_owned(), |info| info.state.to_string());
            Err(ServeError::NotWaiting { id, state })
        }
    }
}
