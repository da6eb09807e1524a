//! The cache: copies of the backing device's blocks on a faster one.
//!
//! A block of the backing device is [`1 << shift`](Shape::shift) bytes, and in the cache has a *slot* of that size.
//! The index maps blocks to slots: one word for each block ([`IndexEntry`](ublk_bpf_abi::IndexEntry)), which the
//! classifier reads and only the server writes.
//!
//! | who | does | file |
//! |---|---|---|
//! | a queue | reads from a slot, marks its writes | `shared.rs` |
//! | the mover, one for each device | fills slots behind the misses, evicts, verifies | `mover/`, `upkeep.rs` |
//! | an eviction algorithm | chooses the slot to evict | `evict/`, one file each |
//! | the server | saves the index at a clean stop | `cache/disk/` of the server |
//! | | trusts what can be trusted of the index of a killed server | `recover.rs` |
//!
//! # The states of a block
//!
//! ```text
//!            mover: nobody writes it             mover: filled, and nobody wrote it meanwhile
//!   absent ─────────────────────────────► filling ─────────────────────────────────────► present
//!     ▲                                      │                                             │ ▲
//!     │    a write, discard or write-zeroes  │    other than a write-through,              │ │ a write-through
//!     └──────────────────────────────────────┴─────────────────────────────────────────────┘ └─ begins and ends
//! ```
//!
//! Every step is one compare-and-swap of the block's word, which also counts the writes in flight. Three rules keep a
//! slot from ever holding what the backing device does not:
//!
//! - **A write is counted before it is issued**, and a block is begun to be filled only while none is. A write
//!   invalidates a block that is being filled, so the mover cannot publish what it read before.
//! - **A write-through is copied from the client's pages once, and goes from there to the backing device first and then
//!   to the slot**: the client may change its pages at any time. Until both have it, the regions that it
//!   writes are read from the backing device. One that would overlap another in flight invalidates the block instead:
//!   the two devices might see the two in different orders.
//! - **A slot in use is pinned**, by a read until its completion and by a write-through until its end. A pinned slot is
//!   given to no other block, even if its own is invalidated.
//!
//! Like `queue/`, nothing here knows io_uring, libc or the clock: time and results are passed in.

mod blocks;
pub mod evict;
mod fills;
mod hints;
#[cfg(test)]
mod loom;
mod maps;
mod mover;
mod recover;
mod shared;
mod slots;
#[cfg(test)]
mod stress;
mod upkeep;
mod waiters;
mod word;

pub use fills::{Fill, FillEnd, FillStart, MAX_FILL_BUFFERS, fill_buffers};
pub use hints::Hinted;
pub use maps::Maps;
pub use mover::{Mover, MoverIo, PromoteLimits, Rest};
pub use recover::{Resident, Trust, surviving};
pub use shared::{Cache, CacheFailure, Change, Mode, Shape, SlotPin, WriteClaim};
pub use slots::MAX_TAGS;
pub use waiters::QueueSet;

/// The least bytes that a cache block has.
pub const MIN_BLOCK: u32 = 4 << 10;
/// The most.
pub const MAX_BLOCK: u32 = 1 << 20;

/// Maximum heat of a block: high enough to distinguish blocks that are read occasionally from those that are read
/// constantly, low enough to decay in a few halvings.
pub const HEAT_LIMIT: u32 = 255;
