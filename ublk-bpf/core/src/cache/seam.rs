//! Where the crash tests change what the code does: a rule is left out, to see that a crash shows it. Outside of tests, all of it
//! is constant.

/// A rule of write-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// A record has what was dirty before the flush that precedes it.
    SnapshotFirst,
    /// A record has what is clean as well.
    CleanIsRecorded,
    /// Of what is to be recorded, what is clean comes first.
    CleanComesFirst,
    /// Without a flush of the slots, a record has only regions that a write with FUA has covered whole.
    OwnRegionsAreWhole,
    /// Likewise, and only while no clean slot is to be recorded.
    OwnEntryIsLast,
    /// What is dirty is written in its slot, whatever is asked for.
    StickyDirty,
    /// What is dirty is neither discarded nor zeroed on the backing device.
    DiscardsWait,
    /// What was written again since its copy began is not clean.
    SameGeneration,
    /// A slot is held while the log says that it is dirty.
    HeldByLog,
    /// And until the record is durable that says that it is clean.
    HeldByRecord,
    /// A record that failed is written again, and what there is to record is judged by what it says.
    FailedIsJudged,
    /// A server forgets which slots the one before it held.
    HoldsAreForgotten,
    /// What is valid is dirty before its slot is written.
    DirtyFirst,
    /// What is not valid is dirty when its slot has been written.
    DirtyWhenWritten,
    /// There is one copy of a block at a time.
    OneCopy,
}

/// Whether a rule is left out.
#[cfg(not(test))]
#[inline(always)]
pub(super) const fn is_left_out(_: Rule) -> bool {
    false
}

/// How many entries a record may have, if the log has room for more.
#[cfg(not(test))]
#[inline(always)]
pub(super) const fn most_entries() -> usize {
    usize::MAX
}

#[cfg(test)]
pub(super) use self::tests::{is_left_out, leave_out, most_entries};

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        static CHANGED: Cell<(Option<Rule>, usize)> = const { Cell::new((None, usize::MAX)) };
    }

    /// Leaves this rule out on this thread, and has no more than so many entries in a record.
    pub(in crate::cache) fn leave_out(rule: Option<Rule>, most_entries: usize) {
        CHANGED.set((rule, most_entries));
    }

    pub(in crate::cache) fn is_left_out(rule: Rule) -> bool {
        CHANGED.get().0 == Some(rule)
    }

    pub(in crate::cache) fn most_entries() -> usize {
        CHANGED.get().1
    }
}
