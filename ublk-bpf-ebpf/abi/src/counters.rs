//! What is counted, by the classifier and by the server.

use crate::{Op, Reason, Verdict};

/// How often the classifier decided the same for each [`Reason`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reasons {
    /// [`Reason::Default`]
    pub default: u64,
    /// [`Reason::Advisory`]
    pub advisory: u64,
    /// [`Reason::NeverWritten`]
    pub never_written: u64,
    /// [`Reason::FaultRange`]
    pub fault_range: u64,
    /// [`Reason::User`]
    pub user: u64,
    /// [`Reason::Cached`]
    pub cached: u64,
    /// [`Reason::Sequential`]
    pub sequential: u64,
    /// [`Reason::BadAnswer`]
    pub bad_answer: u64,
}

/// How often the classifier decided what, for one operation on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decisions {
    /// Requests that it advised to pass through.
    pub passthrough: Reasons,
    /// Requests that it found in the cache.
    pub hit: Reasons,
    /// Requests that it advised to drop.
    pub drop: Reasons,
    /// Requests that it left to the server.
    pub slow: Reasons,
    /// Sectors of all these requests.
    pub sectors: u64,
    /// The operation, so that a dump says what each entry is.
    pub op: Op,
}

impl Decisions {
    /// Index of the counter of a verdict and a reason, in words: from [`Verdict::Passthrough`] on each verdict has one
    /// for each reason.
    #[must_use]
    pub const fn word(verdict: Verdict, reason: Reason) -> usize {
        (verdict as usize - Verdict::Passthrough as usize) * Reason::COUNT + reason as usize
    }

    /// Index of `sectors`, in words.
    pub const SECTORS: usize = (Verdict::COUNT - 1) * Reason::COUNT;
    /// How many words this type has, `op` included.
    pub const WORDS: usize = Self::SECTORS + 2;
}

/// Declares a set of counters once: the struct, its field names and its descriptions feed every output.
macro_rules! counters {
    ($(#[$about:meta])* $set:ident { $($(#[doc = $doc:literal])+ $name:ident,)+ }) => {
        $(#[$about])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $set {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl $set {
            /// Each counter's name and description, in the order of the struct.
            pub const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($name), concat!($($doc),+)),)+];

            /// The values, in the order of [`Self::FIELDS`].
            #[must_use]
            pub const fn values(&self) -> [u64; Self::FIELDS.len()] {
                [$(self.$name,)+]
            }

            /// The counters with these values, in the order of [`Self::FIELDS`].
            #[must_use]
            pub const fn from_values(values: [u64; Self::FIELDS.len()]) -> Self {
                let [$($name,)+] = values;
                Self { $($name,)+ }
            }

            /// Adds other counts.
            pub const fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.wrapping_add(other.$name);)+
            }
        }
    };
}

counters! {
    /// What the server did on one hardware queue since the device was made. Only ever grows.
    ServerCounters {
        /// Requests that arrived from the kernel.
        arrived,
        /// Requests completed with success.
        completed,
        /// Requests completed with an error.
        failed,
        /// Requests served between their own pages and the backing device.
        passthrough,
        /// Reads served between their own pages and the cache device.
        hits,
        /// Reads that the policy found in the cache and the server did not: served from the backing device.
        hits_lost,
        /// Reads that failed on the cache device: served from the backing device.
        hits_failed,
        /// Writes that went to the cache device as well.
        cache_writes,
        /// Blocks that a write, discard or write-zeroes took out of the cache.
        invalidated,
        /// Promotions that the policy asked for and the promoter was told of.
        hinted,
        /// Promotions that the policy asked for when too many others waited.
        hints_dropped,
        /// Requests completed without I/O because the policy said so and nothing was lost by it.
        dropped,
        /// Requests served by the slow path.
        slow,
        /// Tags that came without a verdict: the classifier was not run for them.
        verdict_missing,
        /// Verdicts that were about another request than the descriptor's.
        verdict_stale,
        /// Verdicts that are none: a number out of range, or a hit without a cache.
        verdict_invalid,
        /// Drops that would have lost data, so the request was served in full.
        drop_refused,
        /// Requests whose pages could not be registered with the ring, served by copy.
        unregistered,
        /// Copies between a request's pages and the server's memory.
        user_copies,
        /// Bytes of these copies.
        user_copy_bytes,
        /// Backend reads and writes that came back short and were continued.
        short_io,
        /// Backend operations that failed.
        io_errors,
        /// Backend operations submitted.
        io_submitted,
        /// COMMIT commands submitted.
        commits,
        /// COMMIT commands that stopped early and were resubmitted behind the failing element.
        partial_commits,
        /// Elements that the kernel refused to commit.
        commit_refused,
        /// FETCH commands issued, the first ones included.
        fetches,
        /// Completions of FETCH that brought tags.
        fetch_batches,
        /// Times that the thread entered the kernel for its ring.
        enters,
    }
}

counters! {
    /// What was done behind the requests to keep the cache filled. Only ever grows, but for `used`.
    CacheCounters {
        /// Blocks that hold something now.
        used,
        /// Blocks that were brought into the cache.
        promoted,
        /// Blocks that had to make room.
        evicted,
        /// Promotions that a write overtook, so that what was read is not used.
        overtaken,
        /// Promotions given up because every block was in use.
        no_room,
        /// Operations for promotions that failed.
        errors,
        /// Bytes that went through a staging buffer on their way into the cache.
        staged_bytes,
    }
}
