//! The maps of a cache in plain memory, for tests.

use std::sync::atomic::AtomicU64;

/// An index and the heat of a device's blocks, all zero.
pub(crate) struct Maps {
    pub(crate) index: Vec<AtomicU64>,
    pub(crate) heat: Vec<AtomicU64>,
}

impl Maps {
    /// For this number of blocks.
    pub(crate) fn of(blocks: u64) -> Self {
        let zeroes = |words: u64| (0..words).map(|_| AtomicU64::new(0)).collect();
        Self {
            index: zeroes(blocks),
            heat: zeroes(blocks.div_ceil(8)),
        }
    }
}
