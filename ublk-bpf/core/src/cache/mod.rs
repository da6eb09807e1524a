//! The cache: copies of the backing device's blocks on a faster one.
//!
//! A block of the backing device is [`1 << shift`](Shape::shift) bytes, and in the cache has a *slot* of that size.
//! The index maps blocks to slots: one word for each block ([`IndexEntry`](ublk_bpf_abi::IndexEntry)), which the
//! classifier reads and only the server writes.
//!
//! | who | does | file |
//! |---|---|---|
//! | a queue | reads from a slot, marks its writes | `shared.rs` |
//! | | fills what it misses with the data that it reads | `fills.rs` |
//! | the mover, one for each device | frees slots, fills behind the misses, verifies | `mover/`, `upkeep.rs` |
//! | an eviction algorithm | chooses the slot to evict | `evict/`, one file each |
//! | the server | saves the index at a clean stop | `cache/disk/` of the server |
//! | | trusts what can be trusted of the index of a killed server | `recover.rs` |
//! | the log | what of the cache is dirty, on the cache device | `log/` |
//! | write-back | writes that end in the slot | `writeback.rs`, `back.rs`, `dirty.rs` |
//! | | makes them durable | `commit.rs` |
//! | | writes what is dirty to the backing device | `clean.rs`, `mover/back.rs`, `drain.rs` |
//! | | not faster than requests bear | `times.rs`, `mover/rate.rs` |
//!
//! `blocks.rs` has the protocol that they all follow, and `loom.rs` checks it.
//!
//! # The states of a block
//!
//! ```text
//!             a slot, and regions to fill                     compared: the same, run by run
//!   absent ────────────────────────────────► present ◄──────────────────────────────────── unverified
//!     ▲                                       │  ▲ │                                            │
//!     │ evicted; discarded; a write met a     │  └─┘ regions are filled, written, hidden        │
//!     │ claim; no region is left              │                                                 │
//!     └───────────────────────────────────────┴─────────────── written, evicted, differs ───────┘
//! ```
//!
//! With write-back a block is *dirty* instead of present while its slot has, or is about to have, data that the backing device
//! lacks. It is then neither evicted nor taken out of its slot; it is present again when all of it was cleaned.
//!
//! Two words say all of a block, and every step is one atomic operation on one of them:
//!
//! - its *entry* in the index: state, slot, writes in flight, and its **hidden** regions, which the slot cannot serve;
//! - its slot's word in the server's memory: the owner, the **pins**, and the regions that are **claimed**.
//!
//! # The rules
//!
//! 1. **A slot in use is pinned**, and is given to another block only while it has no pin. A reader that pins looks at the entry
//!    again and takes the pin back if the block has left.
//! 2. **A region has one claim at a time**, and a claim is a pin as well. Only its holder stores in the region, and only
//!    its holder hides or publishes it. So what its holder sees hidden was hidden before, and stays so. All that others
//!    can do is to take the whole block out of the slot.
//! 3. **A write is counted in the entry before it is issued.** Where it gets its claim, it hides its regions until it ends.
//!    Where it meets another claim, and for a discard or write-zeroes, it takes the block out of the slot instead. An
//!    absent block is not filled while writes of it are in flight.
//! 4. **A fill claims before it reads the backing device**, and stores in hidden regions only. At its end, one
//!    compare-and-swap publishes them if the block is in its slot still.
//! 5. **The end of a claim changes the entry first, then releases the claim, then wakes** who waits for it.
//! 6. **A write-through is copied from the client's pages once, and goes from there to the backing device first and then
//!    to the slot**: the client may change its pages at any time. It makes valid what it covers whole and what was valid
//!    before. A write-around, and a write that covers invalid regions in part only, leaves its regions hidden.
//!
//! # Why no race breaks them
//!
//! - *A read and an eviction.* The read's pin comes first, and the slot is not given away (1); or the eviction does, and the
//!   read's second look finds the block gone. The same block back in the same slot, being filled: its regions are hidden.
//! - *A read and a write of its regions.* A read that began before the write may find old data, new data, or each by sector.
//!   One that begins after the write has ended finds the regions hidden or with the new data.
//! - *A write and a fill.* The write first: the fill does not get the claim, or finds a writer of the absent block. The fill
//!   first: the write takes the block out (3), and the fill publishes nothing, even if the block has come back meanwhile:
//!   it cannot come back to this slot, which the claim pins (1). Beside each other: they have different regions.
//! - *Two writes.* If they overlap, the second takes the block out: the two devices might see them in different orders.
//! - *Two fills.* One gets the claim, and the other waits. Of two that bring in the same absent block, one loses the
//!   compare-and-swap, and reports its slot unused.
//! - *A fill and an eviction.* A claimed slot is no victim. If the claim is a moment later than that look, the block
//!   leaves, the fill publishes nothing, and its slot is free when the claim ends.
//! - *A wait and the end of a claim.* The waiter registers and then looks for the claim; the holder releases the claim and
//!   then looks for waiters. The second of the two sees the first.
//! - *A kill.* What is hidden is not valid, and with a write in flight nothing is. What a fill stored and did not publish
//!   is hidden, wherever the kill was.
//!
//! Like `queue/`, nothing here knows io_uring, libc or the clock: time and results are passed in.

mod back;
mod bits;
mod blocks;
mod clean;
mod commit;
#[cfg(test)]
mod crash;
mod dirty;
mod drain;
pub mod evict;
mod fills;
mod free;
mod hints;
pub mod log;

#[cfg(test)]
mod loom;
mod maps;
mod mover;
mod pages;
mod recover;
mod seam;
mod shared;
mod slots;
#[cfg(test)]
mod stress;
mod tenants;
mod times;
mod upkeep;
mod waiters;
mod word;
mod writeback;

pub use back::BackEnd;
pub use clean::CleanFailure;
pub use commit::{CommitIo, CommitNext, CommitTicket, Scope};
pub use drain::{CleanLimits, DrainProgress, FailingRange};
pub use fills::{Fill, FillEnd, FillStart, MAX_FILL_BUFFERS, fill_buffers};
pub use hints::Hinted;
pub use maps::Maps;
pub use mover::{Mover, MoverIo, PromoteLimits, Rest};
pub use recover::{Damaged, DirtyBlock, Resident, Survivors, Trust, surviving};
pub use shared::{Cache, CacheFailure, Change, Mode, Shape, SlotPin, WriteClaim};
pub use slots::MAX_TAGS;
pub use times::Sampler;
pub use waiters::QueueSet;
pub use writeback::{BackWrite, ChangeStart, Downgrade};

/// The least bytes that a cache block has.
pub const MIN_BLOCK: u32 = 4 << 10;
/// The most.
pub const MAX_BLOCK: u32 = 1 << 20;

/// Maximum heat of a block: high enough to distinguish blocks that are read occasionally from those that are read
/// constantly, low enough to decay in a few halvings.
pub const HEAT_LIMIT: u32 = 255;
