//! The maps of a cache in plain memory.

use std::sync::atomic::AtomicU64;

/// An index and the heat of a device's blocks, all zero, for a [`Cache`](super::Cache) that no classifier looks into.
#[derive(Debug)]
pub struct Maps {
    /// One word per block.
    pub index: Vec<AtomicU64>,
    /// One byte per block, eight to a word.
    pub heat: Vec<AtomicU64>,
}

impl Maps {
    /// For this number of blocks.
    #[must_use]
    pub fn of(blocks: u64) -> Self {
        let zeroes = |words: u64| (0..words).map(|_| AtomicU64::new(0)).collect();
        Self {
            index: zeroes(blocks),
            heat: zeroes(blocks.div_ceil(8)),
        }
    }
}
