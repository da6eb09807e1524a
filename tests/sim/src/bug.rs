//! Bugs that the simulator must find.

/// Declares the bugs once: the enum and their list.
macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A bug that a machine or a driver might have. The simulator puts it between the machine and the
        /// kernel, to show that its checks would find it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Bug {
            /// Every bug.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
        }
    };
}

bugs! {
    /// A short read or write counts as a whole one.
    TakeShortForWhole,
    /// An error counts as success.
    TakeErrorForWhole,
    /// A request is committed with fewer bytes than it has.
    CommitShort,
    /// After a partial COMMIT, the refused element is submitted again.
    RecommitRefused,
    /// Writes are not durable when they have to be.
    ForgetDurable,
    /// FLUSH does nothing.
    SkipFlush,
    /// Pages that must read as zeroes are not filled.
    SkipZero,
    /// A write is acknowledged and not made.
    SkipWrite,
    /// A tag that arrived is lost.
    LoseTag,
    /// The machine assumes that it may lose data.
    ObeyDrops,
    /// Writes are not marked: what they wrote seems to read as zeroes.
    ForgetWritten,
    /// The wrong staging buffer is copied to a client.
    MixStaging,
    /// Reads go to the wrong place.
    MisplaceRead,
    /// A FETCH that ended is not issued again.
    ForgetFetch,
    /// The other operations of a queue that is cancelled are not awaited.
    EndEarly,
    /// A write does not mark its blocks: one that is being filled is published with what was there before.
    ForgetToMark,
    /// A write goes to the slot beside another that overlaps it.
    OverlapWrites,
    /// A slot is given to another block while it is read.
    ReusePinned,
    /// A discard leaves the cache as it is.
    DiscardBesideCache,
    /// A write that one of the devices failed stays in the cache.
    PublishFailedWrite,
    /// A write-around leaves its block in the cache.
    ForgetToInvalidate,
    /// Recovery trusts entries of blocks that are being filled or written.
    TrustUnfinished,
    /// The index from before a power failure is trusted.
    TrustAfterPowerCut,
    /// The mover is not woken.
    ForgetToWake,
    /// What an earlier server had in the cache is hit without being compared with the backing device.
    BelieveSurvivors,
    /// A block of an earlier server is published whatever the comparison found.
    PublishUncompared,
    /// A block of an earlier server is published though it was written while it was compared.
    PublishOvertaken,
    /// What goes to both devices is read from the client's pages for each of them.
    WriteFromPagesTwice,
    /// A read joins a fill that a write has overtaken.
    JoinOvertaken,
    /// A read that waits for a fill is forgotten when that fails.
    ForgetWaiter,
    /// A queue that waits for another's fill is not rung for.
    ForgetToRing,
    /// A region that was never filled is read from the slot.
    ReadInvalid,
    /// A cache that starts with nothing remembers what left the one before it.
    KeepGhosts,
}

impl Bug {
    /// Whether it shows only with a cache.
    #[must_use]
    pub const fn is_of_cache(self) -> bool {
        self as usize >= Self::ForgetToMark as usize
    }
}
