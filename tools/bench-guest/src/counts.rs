//! What every cache counts.

use std::path::Path;

use anyhow::Result;

/// What a cache did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that it got; all of them are reads here.
    pub reads: u64,
    /// Reads that it served from the fast device.
    pub hits: u64,
    /// Blocks that it copied to the fast device.
    pub promoted: u64,
}

impl Counts {
    /// What came after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            reads: self.reads.saturating_sub(earlier.reads),
            hits: self.hits.saturating_sub(earlier.hits),
            promoted: self.promoted.saturating_sub(earlier.promoted),
        }
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            hits: self.hits + other.hits,
            promoted: self.promoted + other.promoted,
        }
    }
}

/// A device with a cache.
pub trait Cached {
    /// The device's file.
    fn path(&self) -> &Path;
    /// What it has counted. A program is run for it, which takes as long as some thousand reads.
    fn counts(&self) -> Result<Counts>;
}
