//! What may go wrong, and how often it did.

/// Declares the faults once: the enum and their list.
macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A fault that the simulator injects. The header of the simulator's module says why each is legal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Fault {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Fault {
            /// Every fault.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
        }
    };
}

faults! {
    /// A backend read moved only part of what was asked for.
    ShortRead,
    /// A backend write did.
    ShortWrite,
    /// A backend read or write ended inside a logical block.
    UnalignedShort,
    /// Zeroing did.
    ShortZero,
    /// User copy did.
    ShortCopy,
    /// A backend operation failed.
    BackendError,
    /// A user copy failed.
    CopyError,
    /// A backend read or write moved nothing: the end of a truncated file.
    NothingMoved,
    /// A backend claims to have moved more than was asked for.
    Overlong,
    /// An operation has to be tried again.
    Again,
    /// An operation completed before an older one.
    Reordered,
    /// A request's pages could not be registered.
    Unregistered,
    /// FETCH ended for want of room.
    NoBuffers,
    /// FETCH failed to post, and its tags went back to the end of the FIFO.
    TagsBack,
    /// FETCH ended after tags, without MORE and without an error.
    NoMore,
    /// FETCH ended with nothing.
    EmptyFetch,
    /// FETCH failed at its submission.
    FetchError,
    /// COMMIT stopped at an element.
    PartialCommit,
    /// COMMIT handled nothing, for a reason that passes.
    CommitAgain,
    /// A tag arrived again before the COMMIT that gave it back was seen to complete.
    EarlyReturn,
    /// A request was kept, on the advice of the policy.
    Delayed,
    /// The classifier did not run.
    VerdictMissing,
    /// The slot held the advice for another request.
    VerdictStale,
    /// The slot held random bytes.
    VerdictGarbage,
    /// The policy advised to drop what must not be dropped.
    VerdictHostile,
    /// The descriptor asked for what this device does not serve.
    BadRequest,
    /// The device was stopped.
    Stop,
    /// The queue was cancelled with requests in service.
    Quiesce,
    /// A FETCH was not cancelled with the others.
    FetchSurvived,
    /// The server was told to leave its requests to a successor.
    Abandon,
    /// The server died; its requests were issued again.
    KillReissue,
    /// The server died; its requests failed.
    KillFail,
    /// The power failed.
    PowerCut,
    /// A read or write crossed a cache block.
    Crossing,
    /// An operation on the cache device failed.
    CacheError,
    /// The cache device failed for good.
    CacheBroken,
    /// The mover's read of the backing device failed.
    FillError,
    /// An operation of the mover moved only part of what was asked for.
    ShortFill,
    /// An operation of the mover has to be tried again.
    FillAgain,
    /// A fill's read of the backing device failed.
    MissError,
    /// An operation of a fill moved only part of what was asked for.
    ShortMiss,
    /// The submission queue was full: an operation was given back to the machine.
    Requeued,
    /// The backing device was written to while no server was there.
    BackingChanged,
    /// A client changed the buffer that it writes from while the server had the request.
    BufferChanged,
}

/// How often each fault was injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultCounts([u64; Fault::ALL.len()]);

impl Default for FaultCounts {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl FaultCounts {
    /// How often this one was.
    #[must_use]
    pub const fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    pub(super) const fn hit(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}
