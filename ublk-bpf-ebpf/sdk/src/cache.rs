//! The cache of the device as a whole, as the server last described it: within the last second or so.

use ublk_bpf_abi::CacheState;

/// Declares a policy's view of the device's cache, a [`CacheView`]: `static NAME;`. A policy without one does not pay for
/// it.
///
/// ```
/// use ublk_bpf_policy::{Decision, Request, cache_view};
///
/// cache_view! {
///     static CACHE;
/// }
///
/// /// Lets writes end in the cache until a third of it is dirty.
/// fn decide(_: &Request) -> Decision {
///     if CACHE.dirty_per_mille() < 333 {
///         Decision::pass().back()
///     } else {
///         Decision::pass().around()
///     }
/// }
/// ```
#[macro_export]
macro_rules! cache_view {
    ($(#[$about:meta])* $visibility:vis static $view:ident;) => {
        // The loader has the device's map in its place.
        $crate::map! {
            $(#[$about])*
            $visibility static $view: $crate::CacheView = "ublk_cache";
        }
    };
}

/// The device's cache, which [`cache_view!`](crate::cache_view!) declares. Without a cache nothing is dirty, and nothing is
/// written back.
#[cfg(target_arch = "bpf")]
pub type CacheView = crate::Array<CacheState, 1>;

/// The device's cache, which [`cache_view!`](crate::cache_view!) declares. On the host it is what this thread last passed
/// to [`set`], as the test kit and a replay do for each request.
#[cfg(not(target_arch = "bpf"))]
pub struct CacheView(());

impl CacheView {
    /// Thousandths of the cache's slots that are dirty, rounded up: 0 to 1000.
    #[must_use]
    #[inline(always)]
    pub fn dirty_per_mille(&self) -> u32 {
        self.state().dirty_per_mille
    }

    /// Whether a write ends in the cache alone if the policy does not say where it ends: the cache's mode is write-back,
    /// and its device works.
    #[must_use]
    #[inline(always)]
    pub fn writes_back(&self) -> bool {
        self.state().writes_back != 0
    }

    #[inline(always)]
    #[cfg(target_arch = "bpf")]
    fn state(&self) -> CacheState {
        self.get(0).unwrap_or_default()
    }
}

#[cfg(not(target_arch = "bpf"))]
pub use native::set;

#[cfg(not(target_arch = "bpf"))]
mod native {
    use core::cell::Cell;

    use super::{CacheState, CacheView};

    thread_local! {
        static STATE: Cell<CacheState> = const {
            Cell::new(CacheState { dirty_per_mille: 0, writes_back: 0 })
        };
    }

    /// Sets how the cache is, for this thread of the host.
    pub fn set(state: CacheState) {
        STATE.set(state);
    }

    impl CacheView {
        /// The definition, for [`cache_view!`](crate::cache_view!).
        #[must_use]
        #[expect(clippy::new_without_default, reason = "a declaration, not a value")]
        pub const fn new() -> Self {
            Self(())
        }

        #[expect(clippy::unused_self, reason = "as in BPF")]
        pub(super) fn state(&self) -> CacheState {
            STATE.get()
        }
    }
}
