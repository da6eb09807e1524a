//! The ends of the files that a device is on.

use std::sync::atomic::{AtomicU64, Ordering};

/// The present ends of the backing and the cache device, in bytes: another program may truncate a file while it is served.
/// They only decrease, but for that of a backing whose device grows with it.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'e> {
    backing: &'e AtomicU64,
    cache: &'e AtomicU64,
}

/// The end of a device that cannot be truncated.
static NEVER: AtomicU64 = AtomicU64::new(u64::MAX);

impl<'e> Ends<'e> {
    /// Ends that others may lower at any time.
    #[must_use]
    pub const fn new(backing: &'e AtomicU64, cache: &'e AtomicU64) -> Self {
        Self { backing, cache }
    }

    /// The ends of devices that cannot be truncated.
    #[must_use]
    pub const fn fixed() -> Self {
        Self::new(&NEVER, &NEVER)
    }

    /// Where the backing device ends.
    ///
    /// Relaxed: who lowers it does so under the inode's lock, which every operation that could find the file longer
    /// takes afterwards, and its completion was acquired before this is asked.
    #[inline]
    #[must_use]
    pub fn backing(&self) -> u64 {
        self.backing.load(Ordering::Relaxed)
    }

    /// Where the cache device ends.
    #[inline]
    #[must_use]
    pub fn cache(&self) -> u64 {
        self.cache.load(Ordering::Relaxed)
    }
}
