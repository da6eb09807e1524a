//! A device that owns its cache and maps.

use super::counts::Counts;
use super::device::{Pace, ReplayDevice};
use crate::cache::{Cache, Maps, Mode, Shape};

self_cell::self_cell!(
    struct CacheWithMaps {
        owner: Maps,
        #[covariant]
        dependent: Cache,
    }
);

type DeviceOf<'a> = ReplayDevice<'a, 'a>;

self_cell::self_cell!(
    struct WithCache {
        owner: CacheWithMaps,
        #[not_covariant]
        dependent: DeviceOf,
    }
);

/// A [`ReplayDevice`] that borrows nothing.
pub struct OwnedDevice(WithCache);

impl OwnedDevice {
    /// A device at time 0, with an empty cache of this shape.
    #[must_use]
    pub fn new(shape: Shape, pace: Pace) -> Self {
        let cache = CacheWithMaps::new(maps(&shape), |maps| cache(shape, maps));
        Self(WithCache::new(cache, |of| {
            ReplayDevice::new(of.borrow_dependent(), of.borrow_owner(), pace)
        }))
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.with_dependent(|_, device| device.counts())
    }

    /// Looks at the device.
    pub fn with<R>(&self, function: impl for<'d> FnOnce(&'d ReplayDevice<'d, 'd>) -> R) -> R {
        self.0.with_dependent(|_, device| function(device))
    }

    /// Changes the device.
    pub fn with_mut<R>(&mut self, function: impl for<'d> FnOnce(&mut ReplayDevice<'d, 'd>) -> R) -> R {
        self.0.with_dependent_mut(|_, device| function(device))
    }
}

/// The maps of a cache of this shape.
pub(super) fn maps(shape: &Shape) -> Maps {
    let maps = Maps::of(shape.capacity >> (shape.shift - 9));
    if shape.mode == Mode::WriteBack {
        maps.with_writeback(shape.slots)
    } else {
        maps
    }
}

/// An empty cache of this shape, on maps that were made for it.
pub(super) fn cache(shape: Shape, maps: &Maps) -> Cache<'_> {
    let cache = Cache::new(shape, &maps.index, &maps.heat);
    if shape.mode == Mode::WriteBack {
        cache.with_writeback(&maps.dirty)
    } else {
        cache
    }
}
