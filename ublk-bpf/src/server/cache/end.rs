//! What a server leaves of a cache, once every thread that used it has ended.

use super::{CacheDevice, CacheError, RunningCache};
use crate::backend::fingerprint::Identity;
use crate::backend::{Backend, BackingKind};
use crate::cache::Mover;
use crate::cache::disk::{self, SavedEntry};
use crate::cache::log::Log;
use crate::registry::dirty_pair;

impl RunningCache<'_> {
    /// Makes durable what is dirty, for a device that ends or waits, in good order or not. Returns the log that says so; `None`
    /// if nothing is dirty.
    ///
    /// # Errors
    /// If some of it is not durable: it was written since the last flush.
    fn settle(&self) -> Result<Option<Log>, CacheError> {
        if self.cache.take_log().is_none() {
            return Ok(None);
        }
        let dirty = self.cache.dirty_entries();
        let device = self.device;
        disk::settle(&device.file, &device.layout, dirty).map_err(|source| device.failed(source))
    }

    /// Leaves the device to a server that has its maps.
    pub(in super::super) fn leave(&self) {
        match self.settle() {
            // Another cache may take its place.
            Ok(None) if self.cache.failure().is_some() => self.forget(),
            Ok(_) => {}
            Err(error) => {
                tracing::error!("what was written to the cache since the last flush may be lost: {error}");
            }
        }
    }

    /// Keeps what is in it for the next server of a device that was stopped.
    pub(in super::super) fn save(&self, mover: &Mover<'_, '_>) {
        if self.device.backend.kind() == BackingKind::Memory {
            return;
        }
        let log = match self.settle() {
            Ok(log) => log,
            Err(error) => {
                return tracing::error!(
                    "what was written to the cache since the last flush may be lost: {error}"
                );
            }
        };
        if self.cache.failure().is_some() {
            // It starts empty next time.
            if log.is_none() {
                self.forget();
            }
            return;
        }
        let entries = mover.residents().map(SavedEntry::from);
        if let Err(error) = self.device.save(self.backing, log.as_ref(), entries) {
            return tracing::warn!("the next server will start with an empty cache: {error}");
        }
        match log {
            Some(_) => tracing::info!(
                "{} dirty blocks stay in the cache {}: the next start of this backing needs it",
                self.cache.dirty_slots(),
                self.device.options.device
            ),
            None => self.forget(),
        }
    }

    /// Nothing is dirty, and the cache device says so.
    fn forget(&self) {
        if !self.device.writes_back {
            return;
        }
        let forgotten = self.device.held().and_then(|held| match held {
            Some(held) => Ok(dirty_pair::forget(held.cache_id)?),
            None => Ok(()),
        });
        if let Err(error) = forgotten {
            tracing::warn!(
                "a start of the backing without its cache will be refused, though nothing is dirty: {error}"
            );
        }
    }
}

impl CacheDevice {
    /// Saves what is in the slots, for the next server.
    fn save(
        &self,
        backing: &Backend,
        log: Option<&Log>,
        entries: impl Iterator<Item = SavedEntry>,
    ) -> Result<(), CacheError> {
        if let Some(file) = backing.file() {
            file.sync_all().map_err(CacheError::Sync)?;
        }
        let identity = Identity::of(backing).map_err(CacheError::Identity)?;
        disk::save(&self.file, &self.layout, &identity, log, entries).map_err(|source| self.failed(source))
    }
}
