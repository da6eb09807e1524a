//! Whether a drain is done.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::cache::Cache;

/// How soon the mover looks again for the end of writes that had begun before the drain.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A drain has closed the dirty map, but writes to slots that had begun before may still make regions dirty. All of them have
/// claims; so the drain is done when each slot that was claimed has been seen without a claim, and nothing is dirty.
#[derive(Debug, Default)]
pub(super) struct DrainWatch {
    /// The drain's number.
    number: u32,
    /// Slots that have been claimed without interruption, as far as is known.
    claimed: Vec<u32>,
}

impl DrainWatch {
    /// Whether a drain has started that was not looked at yet.
    pub(super) fn has_begun(&self, cache: &Cache<'_>) -> bool {
        cache.is_draining() && cache.writeback.drains.load(Ordering::SeqCst) != self.number
    }

    /// Looks for the end of a drain. Returns when to look again, if that may be soon.
    pub(super) fn look(&mut self, cache: &Cache<'_>, now: Duration) -> Option<Duration> {
        let number = cache.writeback.drains.load(Ordering::SeqCst);
        // The map was closed before the drain got its number.
        if !cache.is_draining() || cache.writeback.drained.load(Ordering::SeqCst) == number {
            return None;
        }
        let slots = &cache.blocks.slots;
        let is_claimed = |slot: &u32| slots.busy(*slot) != 0;
        if self.number == number {
            self.claimed.retain(is_claimed);
        } else {
            self.number = number;
            self.claimed = (0..slots.count()).filter(is_claimed).collect();
        }
        let dirty = &cache.blocks.dirty;
        // A block is dirty in the index until no write of it is in flight.
        if cache.dirty_slots() != 0 || dirty.blocks.next(0).is_some() {
            return None;
        }
        if !self.claimed.is_empty() {
            return Some(now + LOOK_AGAIN);
        }
        cache.writeback.drained.store(number, Ordering::SeqCst);
        None
    }
}
