//! Counters of the classifier and of the server.

use crate::{Op, Reason, Verdict};

/// Number of decisions with one verdict, by [`Reason`].
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

/// Number of decisions by verdict and reason, for one operation on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decisions {
    /// Requests to pass through.
    pub passthrough: Reasons,
    /// Requests to serve from the cache.
    pub hit: Reasons,
    /// Requests to drop.
    pub drop: Reasons,
    /// Requests for the slow path.
    pub slow: Reasons,
    /// Sectors of all these requests.
    pub sectors: u64,
    /// The operation, so that a dump labels each entry.
    pub op: Op,
}

impl Decisions {
    /// Index of the counter of a verdict and a reason, in words. Each verdict from [`Verdict::Passthrough`] on has one
    /// counter per reason.
    #[must_use]
    pub const fn word(verdict: Verdict, reason: Reason) -> usize {
        (verdict as usize - Verdict::Passthrough as usize) * Reason::COUNT + reason as usize
    }

    /// Index of `sectors`, in words.
    pub const SECTORS: usize = (Verdict::COUNT - 1) * Reason::COUNT;
    /// Size of this type in words, including `op`.
    pub const WORDS: usize = Self::SECTORS + 2;
}

/// Declares a set of counters once: every output uses these fields, names and descriptions.
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

            /// The values where they are, in the order of [`Self::FIELDS`].
            #[must_use]
            #[inline]
            pub const fn words(&self) -> &[u64; Self::FIELDS.len()] {
                const { assert!(size_of::<Self>() == size_of::<[u64; Self::FIELDS.len()]>()) };
                // SAFETY: the struct is `repr(C)` and consists of so many `u64`, one for each field.
                unsafe { &*(&raw const *self).cast() }
            }

            /// The counters with these values, in the order of [`Self::FIELDS`].
            #[must_use]
            pub const fn from_values(values: [u64; Self::FIELDS.len()]) -> Self {
                let [$($name,)+] = values;
                Self { $($name,)+ }
            }

            /// Adds the counts of `other`; wraps on overflow.
            pub const fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.wrapping_add(other.$name);)+
            }
        }
    };
}

counters! {
    /// What the server did on one hardware queue since the device was created. Counters never decrease.
    ServerCounters {
        /// Requests received from the kernel.
        arrived,
        /// Requests completed successfully.
        completed,
        /// Requests completed with an error.
        failed,
        /// Requests served by the backing device. Only writes that go to the cache as well are copied in user space.
        passthrough,
        /// Reads served by the cache device, without a user-space copy.
        hits,
        /// Bytes of reads that came from the cache device.
        hit_bytes,
        /// Reads served by the cache device in part, and by the backing device for the rest.
        hits_split,
        /// Reads served from the buffer of a fill: at most one of them per fill was read from the backing device.
        filled,
        /// Bytes of reads that came from the buffer of a fill.
        filled_bytes,
        /// Reads with a hit verdict that were not cached; served by the backing device.
        hits_lost,
        /// Reads that failed on the cache device; served by the backing device.
        hits_failed,
        /// Reads of the backing device that serve reads that missed, and fill the cache with the same data.
        fills,
        /// Bytes that fills read from the backing device.
        fill_bytes,
        /// Fills that were not published because the block was written meanwhile.
        fills_overtaken,
        /// Fills that failed on one of the devices.
        fills_failed,
        /// Times that a read waited for the end of another queue's or the mover's fill.
        fill_waits,
        /// Writes that also updated the cache device.
        cache_writes,
        /// Bytes of these writes.
        cache_write_bytes,
        /// Writes that ended in the cache device alone.
        absorbed,
        /// Bytes of these writes.
        absorbed_bytes,
        /// Writes that were to end in the cache, and did not because there was no free slot.
        back_no_slot,
        /// The same because they covered a part of regions that are not cached.
        back_partial,
        /// The same because as many blocks were dirty as may be.
        back_limit,
        /// The same because the cache device has failed.
        back_failing,
        /// The same because their block was being written or filled, or was yet to be verified.
        back_busy,
        /// Times that a request waited until dirty blocks of its range were clean, or for the end of another change.
        change_waits,
        /// Commits of the cache's log that a FLUSH or a durable write has led.
        log_commits,
        /// Cached blocks invalidated by a write, discard or write-zeroes.
        invalidated,
        /// Promotion hints passed to the mover.
        hinted,
        /// Promotion hints dropped because too many were waiting.
        hints_dropped,
        /// Requests completed without I/O, on the advice of the policy.
        dropped,
        /// Requests served by the slow path.
        slow,
        /// Requests that were kept for a while before they were served, on the advice of the policy.
        delayed,
        /// Microseconds that the policy had them kept, in all.
        delay_micros,
        /// Requests without a verdict: the classifier did not run for them.
        verdict_missing,
        /// Verdicts that did not match the request.
        verdict_stale,
        /// Verdicts out of range, or hits on a device without a cache.
        verdict_invalid,
        /// Drops that would have lost data; served in full.
        drop_refused,
        /// Requests whose pages could not be registered with the ring; served by copy.
        unregistered,
        /// Copies between a request's pages and the server's memory.
        user_copies,
        /// Bytes copied between request pages and the server's memory.
        user_copy_bytes,
        /// Short backend reads and writes that were continued.
        short_io,
        /// Backend operations that failed.
        io_errors,
        /// Backend operations submitted.
        io_submitted,
        /// COMMIT commands submitted.
        commits,
        /// COMMIT commands that stopped early; the rest was resubmitted.
        partial_commits,
        /// Results that the kernel refused to commit.
        commit_refused,
        /// FETCH commands issued.
        fetches,
        /// FETCH completions that returned tags.
        fetch_batches,
        /// io_uring_enter(2) calls of the queue thread.
        enters,
    }
}

counters! {
    /// Work that keeps the cache filled, outside the request path. Counters never decrease, except `used`,
    /// `unverified`, `dirty`, `dirty_seconds` and `clean_rate`.
    CacheCounters {
        /// Cache blocks in use.
        used,
        /// Blocks of an earlier server still to be compared with the backing device; none of them can be hit.
        unverified,
        /// Blocks of an earlier server that matched the backing device, and can be hit.
        verified,
        /// Blocks of an earlier server that differed from the backing device, and left the cache.
        differing,
        /// Blocks promoted into the cache.
        promoted,
        /// Blocks evicted to make room.
        evicted,
        /// Blocks that came in again not long after they were evicted.
        ghosts,
        /// Promotions discarded because the block was written meanwhile.
        overtaken,
        /// Promotions abandoned because no block could be evicted.
        no_room,
        /// Promotion hints that were too old when their turn came.
        hints_expired,
        /// I/O operations of promotions that failed.
        errors,
        /// Bytes copied into the cache through a staging buffer.
        staged_bytes,
        /// Blocks of which the cache has something that the backing device lacks.
        dirty,
        /// Seconds since the oldest of these became dirty, as far as this server knows: at most a few too many.
        dirty_seconds,
        /// Dirty bytes that were written to the backing device, and are clean.
        cleaned_bytes,
        /// Writes to the backing device for that.
        clean_writes,
        /// Flushes of the backing device after some of these.
        clean_batches,
        /// Bytes a second that may be cleaned at present; 0: nothing is held back.
        clean_rate,
        /// Seconds in which the latency of requests lowered that rate.
        clean_held_back,
        /// Operations of cleaning that failed, and are tried again.
        clean_errors,
    }
}
