//! The cache as a whole, as policies see it.

/// What the server tells policies of a device's cache: [`map::STATE`](crate::map::STATE) has one. It is of some moment
/// within the last second or so. All zero on a device without a cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheState {
    /// Thousandths of the cache's slots that are dirty, rounded up: 0 to 1000.
    pub dirty_per_mille: u32,
    /// 1 if a write of whose end the policy says nothing ends in the cache, 0 if not.
    pub writes_back: u32,
}
