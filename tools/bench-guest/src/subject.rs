//! What is measured: a block device, and what serves it.

use std::path::Path;

use anyhow::Result;

/// How a device is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Hardware queues; a device that has no such thing ignores it.
    pub queues: u16,
    /// Tags of each.
    pub depth: u16,
}

/// A device that is being served; dropped, it is gone.
pub trait Subject {
    /// The device's file.
    fn path(&self) -> &Path;
    /// The processes that serve it; none for one that the kernel serves alone.
    fn servers(&self) -> Vec<u32>;
    /// Whether all reads since it was made went the way that the kind's name promises.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// The device that does only the necessary work: what a subject is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw {
    /// The kernel's ram disk, for what ends in memory.
    Brd,
    /// null_blk, for subjects that keep nothing.
    NullBlk,
}

impl Raw {
    /// Its own name as a subject.
    pub fn name(self) -> &'static str {
        match self {
            Self::Brd => "brd",
            Self::NullBlk => "null_blk",
        }
    }
}

/// One way to have a device.
#[derive(Clone, Copy)]
pub struct Kind {
    /// What tables call it, and `--only` takes: `kublk-batch-zc-null`.
    pub name: &'static str,
    /// What it is compared with; a raw device says itself.
    pub raw: Raw,
    /// The options that make it what it is, as the page tells them.
    pub options: &'static str,
    /// The version of what makes it.
    pub version: fn() -> Result<String>,
    /// Makes one.
    pub start: fn(Shape) -> Result<Box<dyn Subject>>,
}
