//! What an earlier server left in a cache.

use std::sync::atomic::Ordering;

use super::{CacheDevice, CacheError, pair};
use crate::backend::fingerprint::Identity;
use crate::backend::{Backend, BackingKind};
use crate::cache::disk::{self, Abandon, DiskError, Opened, SavedEntry, Started};
use crate::cache::log::{Log, LogEntry};
use crate::cache::{self, DirtyBlock, Resident, Trust};
use crate::policy::CacheMaps;
use crate::registry::dirty_pair;

use ublk_bpf_abi::{DirtyEntry, Priority, SECTOR_SIZE};

/// Slots that are compared with the backing even where it is proven to be as it was.
const SAMPLES: usize = 64;

/// The content that an earlier server left, and how far it can be trusted.
#[derive(Debug)]
pub(in super::super) struct Contents {
    pub(super) entries: Vec<SavedEntry>,
    pub(super) trust: Trust,
    /// What its backing has yet to get.
    pub(super) dirty: Vec<DirtyBlock>,
    /// The log to go on with, if writes may end in the cache.
    pub(super) log: Option<Log>,
}

impl Contents {
    const fn trusted(entries: Vec<SavedEntry>, trust: Trust) -> Self {
        Self {
            entries,
            trust,
            dirty: Vec::new(),
            log: None,
        }
    }

    /// The blocks that are not dirty.
    pub(super) fn residents(&self) -> impl Iterator<Item = Resident> + '_ {
        self.entries.iter().filter_map(|entry| {
            Some(Resident {
                slot: entry.slot,
                block: u32::try_from(entry.block).ok()?,
                priority: Priority::parse(entry.priority).unwrap_or(Priority::Normal),
                heat: entry.heat,
                valid: entry.valid,
            })
        })
    }
}

impl CacheDevice {
    /// Takes what is on it for a new device on `backing`. `abandon`: what becomes of dirty blocks if it is to be emptied.
    pub(in super::super) fn warm(&self, backing: &Backend, abandon: Abandon) -> Result<Contents, CacheError> {
        let identity = Identity::of(backing).map_err(CacheError::Identity)?;
        if self.options.reset {
            self.empty(&identity, abandon)?;
            let mut contents = Contents::trusted(Vec::new(), Trust::Proven);
            contents.log = self.begin_log(backing, &identity, None)?;
            return Ok(contents);
        }
        let started = disk::open(&self.file, &self.layout, &identity);
        let Started {
            opened, dirty, log, ..
        } = started.map_err(|source| self.failed(source))?;
        if !self.writes_back && !dirty.is_empty() {
            return Err(self.failed(DiskError::Dirty(dirty.len())));
        }
        let mut contents = self.opened(backing, opened, &dirty)?;
        contents.dirty = dirty.iter().map(as_logged).collect();
        contents.log = self.begin_log(backing, &identity, log)?;
        Ok(contents)
    }

    fn opened(&self, backing: &Backend, opened: Opened, dirty: &[LogEntry]) -> Result<Contents, CacheError> {
        Ok(match opened {
            Opened::New => Contents::trusted(Vec::new(), Trust::Proven),
            Opened::Cold { reason } => {
                let begins = match dirty.len() {
                    0 => "it begins empty".to_owned(),
                    blocks => format!("it begins with its {blocks} dirty blocks alone"),
                };
                tracing::warn!("the cache {} {reason}: {begins}", self.options.device);
                Contents::trusted(Vec::new(), Trust::Proven)
            }
            Opened::Unproven { entries, reason } => {
                tracing::warn!(
                    "each block in the cache {} is verified before its first hit: its backing {reason}",
                    self.options.device
                );
                Contents::trusted(entries, Trust::ToVerify)
            }
            Opened::Warm(entries) => {
                self.compare(backing, &entries, dirty)
                    .map_err(|source| self.failed(source))?;
                Contents::trusted(entries, Trust::Proven)
            }
        })
    }

    /// Empties it.
    fn empty(&self, identity: &Identity, abandon: Abandon) -> Result<(), CacheError> {
        let failed = |source| self.failed(source);
        let before = self.held()?;
        let lost = disk::reset(&self.file, &self.layout, identity, abandon).map_err(failed)?;
        if lost > 0 {
            tracing::warn!(
                "{lost} dirty blocks were discarded with the content of the cache {}: their backing keeps older data",
                self.options.device
            );
        }
        if let Some(held) = before {
            dirty_pair::forget(held.cache_id)?;
        }
        Ok(())
    }

    /// The content that the maps of a dead server list. The backing may have changed since, so each block is verified, but for
    /// what is dirty, which is right.
    pub(in super::super) fn survivors(
        &self,
        backing: &Backend,
        maps: &CacheMaps,
    ) -> Result<Contents, CacheError> {
        if self.backend.kind() == BackingKind::Memory {
            return Ok(Contents::trusted(Vec::new(), Trust::Proven));
        }
        let (logged, log) = match self.writes_back {
            true => disk::resume(&self.file, &self.layout)
                .map_err(|source| self.failed(source))?
                .unzip(),
            false => (None, None),
        };
        let logged = logged.unwrap_or_default();
        let found = cache::surviving(maps.index(), maps.dirty(), self.layout.slots, &logged);
        let found = found.map_err(|source| CacheError::Damaged {
            device: self.options.device.to_string(),
            source,
        })?;
        let entries = found.clean.into_iter().map(SavedEntry::from).collect();
        let mut contents = Contents::trusted(entries, Trust::ToVerify);
        contents.dirty = found.dirty;
        let identity = Identity::of(backing).map_err(CacheError::Identity)?;
        contents.log = self.begin_log(backing, &identity, log)?;
        Ok(contents)
    }

    /// Takes it in the place of the cache that a dead server had detached, for a device that has the maps of that. Nothing that
    /// is on it is used: the backing has gone on without it.
    pub(in super::super) fn empty_at_first(
        &self,
        backing: &Backend,
        maps: &CacheMaps,
    ) -> Result<Contents, CacheError> {
        let lost = maps.dirty().iter();
        let lost = lost.filter(|word| DirtyEntry(word.load(Ordering::SeqCst)).dirty() != 0);
        match lost.count() {
            0 => {}
            blocks => return Err(CacheError::StillDirty(blocks)),
        }
        let contents = self.warm(backing, Abandon::Nothing)?;
        if !contents.dirty.is_empty() {
            return Err(self.failed(DiskError::Dirty(contents.dirty.len())));
        }
        Ok(Contents {
            entries: Vec::new(),
            ..contents
        })
    }

    /// The log to go on with: `log`, or a new one. Before there is one, the pair is on record outside of both devices.
    fn begin_log(
        &self,
        backing: &Backend,
        identity: &Identity,
        log: Option<Log>,
    ) -> Result<Option<Log>, CacheError> {
        if !self.writes_back {
            return Ok(None);
        }
        pair::remember(self, backing, identity)?;
        let log = match log {
            Some(log) => log,
            None => disk::mark_dirty(&self.file, &self.layout).map_err(|source| self.failed(source))?,
        };
        Ok(Some(log))
    }

    fn compare(
        &self,
        backing: &Backend,
        entries: &[SavedEntry],
        dirty: &[LogEntry],
    ) -> Result<(), DiskError> {
        let bytes = backing.facts().sectors * SECTOR_SIZE;
        match backing.file() {
            Some(file) => {
                disk::sample_matches(&self.file, file, &self.layout, entries, dirty, bytes, SAMPLES)
            }
            None => Ok(()),
        }
    }
}

/// A dirty block of a cache that has no maps: what is durable is what the log says.
const fn as_logged(entry: &LogEntry) -> DirtyBlock {
    DirtyBlock {
        slot: entry.slot,
        block: entry.block,
        dirty: entry.dirty,
        logged: entry.dirty,
    }
}

impl From<Resident> for SavedEntry {
    fn from(of: Resident) -> Self {
        Self {
            slot: of.slot,
            block: of.block.into(),
            priority: of.priority as u8,
            heat: of.heat,
            valid: of.valid,
        }
    }
}
