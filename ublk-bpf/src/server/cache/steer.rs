//! How a cache is used, changed while it is.

use super::RunningCache;
use crate::cache::evict::Algorithm;
use crate::cache::{CacheFailure, CleanLimits, DrainProgress, FailingRange, Mode, PromoteLimits};
use crate::registry::CacheOptions;

impl RunningCache<'_> {
    /// When dirty blocks are written back: once they are half of what may be dirty, or at once if nothing is to become dirty.
    pub(super) fn clean_limits(&self, options: &CacheOptions) -> CleanLimits {
        let CacheOptions {
            mode,
            dirty_high,
            clean_limit: rate,
            ..
        } = *options;
        let limits = CleanLimits::of(self.device.layout.slots, dirty_high);
        let low = if mode == Mode::WriteBack { limits.low } else { 0 };
        CleanLimits { low, rate, ..limits }
    }

    /// Whether it was made for this mode; if not, which one it was made for.
    pub(in super::super) fn check_mode(&self, mode: Mode) -> Result<(), &'static str> {
        let made = self.device.options.mode;
        let is_good = match mode {
            Mode::WriteAround => true,
            // Its data is copied, for which a queue has buffers from its start.
            Mode::WriteThrough => made != Mode::WriteAround || self.is_written_back(),
            Mode::WriteBack => self.is_written_back(),
        };
        is_good.then_some(()).ok_or_else(|| made.name())
    }

    /// Ends writes, and writes back what is dirty, as these options say from now on.
    pub(in super::super) fn adopt(&self, options: &CacheOptions) {
        self.cache.set_mode(options.mode);
        if self.is_written_back() {
            self.cache.limit_cleaning(self.clean_limits(options));
        }
    }

    /// Whether writes may end in it.
    pub(in super::super) fn is_written_back(&self) -> bool {
        self.cache.has_writeback()
    }

    /// Begins to write back all that is dirty. Nothing becomes dirty until [`end_drain`](Self::end_drain).
    pub(in super::super) fn start_drain(&self) {
        if self.is_written_back() {
            self.cache.start_drain();
        }
    }

    /// The first so many dirty ranges that cannot be written back.
    pub(in super::super) fn failing_ranges(&self, most: usize) -> Vec<FailingRange> {
        self.cache.failing_ranges(most)
    }

    /// How far that is.
    pub(in super::super) fn drain_progress(&self) -> DrainProgress {
        let progress = self.cache.drain_progress();
        DrainProgress {
            is_done: progress.is_done || !self.is_written_back(),
            ..progress
        }
    }

    /// Writes may end in the cache again.
    pub(in super::super) fn end_drain(&self) {
        self.cache.end_drain();
    }

    /// Uses it no longer. The caller wakes the queues.
    pub(in super::super) fn detach(&self) {
        self.cache.detach(CacheFailure::Asked);
    }

    /// The cache device, as the user names it.
    pub(in super::super) fn name(&self) -> String {
        self.device.options.device.to_string()
    }

    /// Limits promotion to so many bytes a second from now on; `None`: no limit. The mover follows within a second.
    /// Evicts by another algorithm.
    pub(in super::super) fn evict_by(&self, algorithm: Algorithm) {
        self.cache.evict_by(algorithm);
    }

    pub(in super::super) fn limit_promotion(&self, rate: Option<u64>) {
        self.cache.limit_promotion(PromoteLimits { rate });
    }
}
