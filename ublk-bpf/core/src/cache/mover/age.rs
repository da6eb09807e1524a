//! How long the oldest dirty block has been so.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::cache::Cache;

/// Slots that are looked at in a second.
const SLOTS_A_LOOK: u32 = 64 << 10;
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Goes through all slots, some each second.
#[derive(Debug, Default)]
pub(super) struct AgeScan {
    next_at: Duration,
    next: u32,
    /// When the oldest that this pass has found became dirty, in seconds of the mover's clock.
    found: Option<u32>,
    oldest: Option<u32>,
}

impl AgeScan {
    /// Seconds since the oldest dirty block became dirty, as of the last pass; 0: nothing is.
    pub(super) fn look(&mut self, cache: &Cache<'_>, now: Duration) -> u64 {
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        if now >= self.next_at {
            self.next_at = now + LOOK_EVERY;
            cache.blocks.dirty.clock.store(seconds, Ordering::Relaxed);
            self.scan(cache);
        }
        if cache.dirty_slots() == 0 {
            self.oldest = None;
        }
        self.oldest
            .map_or(0, |since| seconds.saturating_sub(since).into())
    }

    fn scan(&mut self, cache: &Cache<'_>) {
        let dirty = &cache.blocks.dirty;
        let count = cache.blocks.slots.count();
        let end = self.next.saturating_add(SLOTS_A_LOOK).min(count);
        let since = (self.next..end).filter(|&slot| dirty.of(slot) != 0);
        let since = since.map(|slot| dirty.since(slot)).min();
        self.found = self.found.into_iter().chain(since).min();
        self.next = end;
        if end == count {
            self.oldest = self.found.take();
            self.next = 0;
        }
    }
}
