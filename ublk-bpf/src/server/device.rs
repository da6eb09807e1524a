//! A new device, from its options until it can be served.
//!
//! Each step is undone by the drop of what it returned, in reverse order: a failure anywhere cleans up, and a clean
//! stop takes the same path.

use super::cache::CacheDevice;
use super::claim::Claim;
use super::error::ServeError;
use super::life::{Device, Host};
use super::prepared::{Prepared, classifier_spec, mark_data, open_devices};
use crate::backend::Backend;
use crate::cache::disk::Abandon;
use crate::control::DeviceId;
use crate::policy::{self, Classifier, Policy};
use crate::registry::owners::Opening;
use crate::registry::{DeviceOptions, Record};

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

    /// Its cache, if it has one.
    pub(super) const fn cache(&self) -> Option<&CacheDevice> {
        self.cache.as_ref()
    }
}

impl Device for NewDevice {
    /// Makes the device, serves it, and deletes it.
    fn live(self, host: Host<'_>) -> Result<(), ServeError> {
        let control = host.control;
        let (options, backend, cache) = (&self.options, &self.backend, self.cache.as_ref());
        let (claim, policy_lock) = Claim::make(control, options, &self.reserved, backend, cache)?;
        let facts = backend.facts();
        let params = facts.params(claim.info.max_io_bytes);
        let params = cache.map_or(params, |cache| cache.adapt(params));
        control.set_params(&claim.info, &params)?;
        let spec = classifier_spec(&claim.info, backend, facts.sectors, cache, options.observe)?;
        let classifier = Classifier::load(&spec)?;
        mark_data(backend, &classifier)?;
        let verified = policy::swap(&spec.disk, &self.policy)?;
        if let Some(warning) = verified.warning() {
            tracing::warn!("policy {}: {warning}", self.policy.name());
        }
        drop(policy_lock);
        let abandon = match options.abandon_dirty {
            true => Abandon::Dirty,
            false => Abandon::Nothing,
        };
        let contents = cache.map(|cache| cache.warm(backend, abandon)).transpose()?;
        let prepared = Prepared {
            backend,
            cache: cache.zip(contents),
            record: Record::read(claim.info.id)?,
            was_waiting: false,
            is_attached_anew: false,
            scheduler: &self.options.scheduler,
            classifier,
            claim,
        };
        prepared.serve(&host)
    }
}
