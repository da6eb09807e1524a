//! Changes of a device while it exists: what its record says of them, and the policy, which needs no server.

use std::mem;

use ublk_bpf_abi::SECTOR_SIZE;

use super::error::RecordError;
use super::record::Record;
use crate::backend::Size;
use crate::cache::Mode;
use crate::cache::evict::Algorithm;
use crate::control::DeviceId;
use crate::policy::{self, DEFAULT_POLICY, Disk, Policy, PolicyError, Verified};

/// Why a policy was not changed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyChangeError {
    /// The policy's.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The record's or the lock's.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A limit of bytes a second, as `ublk-bpf set` takes it.
pub(crate) fn limit_in_words(limit: Option<u64>) -> String {
    limit.map_or_else(|| "none".to_owned(), |bytes| Size(bytes).to_string())
}

/// Replaces the policy of device `id` by the one that `name` and `memory` [parse](Policy::parse) to. The path of a file is
/// absolute.
///
/// # Errors
/// If the policy is refused, which leaves the present one attached, or there is no such device.
pub fn swap_policy(
    id: DeviceId,
    policy: &Policy,
    name: &str,
    memory: u64,
) -> Result<Verified, PolicyChangeError> {
    if policy.needs_cache() && Record::read(id)?.cache.is_none() {
        return Err(PolicyError::NeedsCache(name.to_owned()).into());
    }
    Record::change(id, |record| {
        let verified = policy::swap(&Disk::ublk(id.number()), policy)?;
        record.set_policy(name, memory);
        Ok(verified)
    })
}

/// Removes the policy of device `id`: every request passes through.
///
/// # Errors
/// If it cannot be detached, or there is no such device.
pub fn reset_policy(id: DeviceId) -> Result<(), PolicyChangeError> {
    Record::change(id, |record| {
        policy::reset(&Disk::ublk(id.number()))?;
        record.set_policy(DEFAULT_POLICY, record.policy_memory);
        Ok(())
    })
}

impl Record {
    /// Sets the policy.
    pub(crate) fn set_policy(&mut self, name: &str, memory: u64) {
        let before = mem::replace(&mut self.policy, name.to_owned());
        self.policy_memory = memory;
        self.note_change("policy", before, name);
    }

    /// Sets the limit of promotion, if the device has a cache.
    pub(crate) fn set_promote_limit(&mut self, limit: Option<u64>) {
        if let Some(cache) = &mut self.cache {
            let before = mem::replace(&mut cache.options.promote_limit, limit);
            self.note_change("promote-limit", limit_in_words(before), &limit_in_words(limit));
        }
    }

    /// Sets how writes treat cached blocks, if the device has a cache.
    pub(crate) fn set_cache_mode(&mut self, mode: Mode) {
        if let Some(cache) = &mut self.cache {
            let before = mem::replace(&mut cache.options.mode, mode);
            self.note_change("cache-mode", before.name().to_owned(), mode.name());
        }
    }

    /// Sets the eviction algorithm, if the device has a cache.
    pub(crate) fn set_eviction(&mut self, algorithm: Algorithm) {
        if let Some(cache) = &mut self.cache {
            let before = mem::replace(&mut cache.options.eviction, algorithm);
            self.note_change("cache-eviction", before.name().to_owned(), algorithm.name());
        }
    }

    /// Sets what percentage of the cache may be dirty, if the device has one.
    pub(crate) fn set_dirty_high(&mut self, percent: u8) {
        if let Some(cache) = &mut self.cache {
            let before = mem::replace(&mut cache.options.dirty_high, percent);
            self.note_change("dirty-high", before.to_string(), &percent.to_string());
        }
    }

    /// Sets the limit of writing back, if the device has a cache.
    pub(crate) fn set_clean_limit(&mut self, limit: Option<u64>) {
        if let Some(cache) = &mut self.cache {
            let before = mem::replace(&mut cache.options.clean_limit, limit);
            self.note_change("clean-limit", limit_in_words(before), &limit_in_words(limit));
        }
    }

    /// Sets the capacity, in sectors.
    pub(crate) fn set_size(&mut self, sectors: u64) {
        let words = |sectors: u64| Size(sectors * SECTOR_SIZE).to_string();
        let before = mem::replace(&mut self.sectors, sectors);
        self.grown_from.get_or_insert(before);
        self.note_change("size", words(before), &words(sectors));
    }

    /// Notes that an option has another value now, in the words of `ublk-bpf set`. Only the value that the device was made
    /// with is kept, and none if the new one is the same.
    pub(crate) fn note_change(&mut self, option: &str, before: String, now: &str) {
        let made_with = self.changed.entry(option.to_owned()).or_insert(before);
        if made_with == now {
            self.changed.remove(option);
        }
    }
}
