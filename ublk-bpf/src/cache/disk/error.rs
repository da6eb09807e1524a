//! What can be wrong with what is on a cache device.

use std::io;

use crate::backend::Size;
use crate::backend::fingerprint::Difference;
use crate::cache::log::Damage;

/// Why a cache device cannot be used as it is. One line, to follow the device's name and a colon: what was wanted,
/// what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Not a size that a cache block can have.
    #[error("a cache block of {0} bytes: give a power of two from 4K to 1M")]
    BlockSize(u32),
    /// No room for one slot.
    #[error(
        "has {}, too little for one slot of {}: give it at least {}, better thousands of times that",
        Size(*found), Size((*block_bytes).into()), Size(*needed)
    )]
    TooSmall {
        /// Bytes of the device.
        found: u64,
        /// Bytes that it must have.
        needed: u64,
        /// Bytes of a cache block.
        block_bytes: u32,
    },
    /// Data of another program.
    #[error(
        "holds something that is not a cache of ublk-bpf: give another device, or overwrite it with --cache-reset"
    )]
    Foreign,
    /// Written by another version of this program.
    #[error(
        "holds a cache of format version {found}, and this ublk-bpf knows version {known}: use the one that made it, \
         or empty it with --cache-reset"
    )]
    Version {
        /// Its version.
        found: u32,
        /// This program's.
        known: u32,
    },
    /// Neither copy of the superblock can be read.
    #[error("both copies of its superblock are damaged (A {a}, B {b}): empty it with --cache-reset")]
    Superblock {
        /// What is wrong with the first one.
        a: String,
        /// What is wrong with the second one.
        b: String,
    },
    /// The cache was stopped cleanly, and its entries are not what was saved.
    #[error("its list of blocks is damaged at slot {slot} ({what}): empty it with --cache-reset")]
    Entry {
        /// The first slot that is wrong.
        slot: u32,
        /// In what way.
        what: &'static str,
    },
    /// The cache is not of this backing, or not of what it holds now.
    #[error("{0}: name the right one, or empty the cache with --cache-reset")]
    Backing(#[from] Difference),
    /// The cache has what its backing has not, and this is not that backing, or not as it was left.
    #[error(
        "holds {blocks} dirty blocks, which its backing has yet to get, and {difference}: name the right one, or lose \
         them with --cache-reset --abandon-dirty"
    )]
    DirtyBacking {
        /// How many blocks have dirty regions.
        blocks: usize,
        /// What is wrong with the backing.
        difference: Difference,
    },
    /// The cache has what its backing has not, and is to be emptied.
    #[error(
        "holds {0} dirty blocks, which its backing has yet to get: start it without --cache-reset, or lose them with \
         --cache-reset --abandon-dirty"
    )]
    Dirty(usize),
    /// The cache has what its backing has not, and what that is cannot be found.
    #[error(
        "holds dirty blocks, which its backing has yet to get, and the record of them is damaged, {0}: look with \
         `ublk-bpf cache verify`, or lose them with --cache-reset --abandon-dirty"
    )]
    Log(Damage),
    /// The list of blocks and the log contradict each other.
    #[error(
        "holds dirty blocks, which its backing has yet to get, and its list of blocks has something else in slot {0}: \
         look with `ublk-bpf cache verify`, or lose them with --cache-reset --abandon-dirty"
    )]
    Contradiction(u32),
    /// The superblock is not what this server wrote.
    #[error("its superblock was changed by another program while it was in use")]
    Superseded,
    /// Cache blocks of another size.
    #[error(
        "its cache blocks have {}, not {}: run with --cache-block {}, or empty it with --cache-reset",
        Size((*saved).into()), Size((*asked).into()), Size((*saved).into())
    )]
    BlockChanged {
        /// Bytes of its blocks.
        saved: u32,
        /// Bytes of those that were asked for.
        asked: u32,
    },
    /// The device had another size when the cache was made.
    #[error(
        "was made with {saved} slots, and has room for {now} now: give it its size again, or empty it with \
         --cache-reset"
    )]
    DeviceChanged {
        /// Slots that it has.
        saved: u32,
        /// Slots that the device would be divided into now.
        now: u32,
    },
    /// A cached block is not what the backing has.
    #[error(
        "its copy of block {block} in slot {slot} is not what the backing has, which was changed since the cache was \
         saved: empty it with --cache-reset"
    )]
    Stale {
        /// The backing's block, in units of cache blocks.
        block: u64,
        /// The slot that holds the copy.
        slot: u32,
    },
    /// An entry that cannot be saved: a slot that there is not, or that was not in ascending order.
    #[error("cannot save slot {0}: slots are saved in ascending order, each once, and within the layout")]
    Unsaveable(u32),
    /// Anything else that the system refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
