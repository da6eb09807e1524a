//! The ring of one queue thread.

use std::io;

use io_uring::squeue::Entry;
use io_uring::{CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter, cqueue};

use crate::cache::MAX_FILL_BUFFERS;

/// Makes a ring for `depth` tags. Only the calling thread may use it.
pub(super) fn build(depth: u16) -> io::Result<IoUring> {
    // An effect for each tag and a few commands may be pushed in a round; a deeper queue submits in several.
    let submissions = u32::from(depth).next_power_of_two().clamp(16, 256);
    // Each tag has at most one completion pending: the one that brings it, or that of its operation. Beside them
    // there are those of PREP, of the one COMMIT that may be out, of two FETCHes that end, of the stop, of a tick, of the bell
    // and of the fills.
    let completions = (u32::from(depth + MAX_FILL_BUFFERS) + 16).next_power_of_two();
    let build = |without_array: bool| {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(completions.max(2 * submissions));
        if without_array {
            builder.setup_no_sqarray();
        }
        builder.build(submissions)
    };
    match build(true) {
        // Linux before 6.6.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false),
        other => other,
    }
}

/// Submission and completion queue, with their shared heads and tails written once a round.
pub(super) struct Ring<'a> {
    submitter: Submitter<'a>,
    submissions: SubmissionQueue<'a>,
    completions: CompletionQueue<'a>,
    /// Times that the kernel was entered.
    pub(super) enters: u64,
}

impl<'a> Ring<'a> {
    /// Borrows both queues of `io` exclusively.
    pub(super) fn over(io: &'a mut IoUring) -> Self {
        let io = &*io;
        let mut submitter = io.submitter();
        if let Err(error) = submitter.register_ring_fd() {
            tracing::debug!("the ring's descriptor is not registered, so each enter looks it up: {error}");
        }
        // SAFETY: `io` was borrowed exclusively for 'a, so there is no other `SubmissionQueue`.
        let submissions = unsafe { io.submission_shared() };
        // SAFETY: the same with `CompletionQueue`.
        let completions = unsafe { io.completion_shared() };
        Self {
            submitter,
            submissions,
            completions,
            enters: 0,
        }
    }

    /// What registers files and buffers with the ring.
    pub(super) fn submitter(&self) -> &Submitter<'a> {
        &self.submitter
    }

    /// Whether another entry can be pushed.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        !self.submissions.is_full()
    }

    /// Adds an entry, which is submitted by the next [`Self::enter`]. Only after [`Self::has_room`].
    ///
    /// # Safety
    /// The memory that the entry names must be valid until its completion.
    #[inline]
    pub(super) unsafe fn push(&mut self, entry: &Entry) {
        // SAFETY: as the caller says.
        let pushed = unsafe { self.try_push(entry) };
        debug_assert!(pushed, "pushed without room");
    }

    /// The same, and says whether there was room for it.
    ///
    /// # Safety
    /// As for [`Self::push`].
    #[inline(always)]
    #[must_use]
    pub(super) unsafe fn try_push(&mut self, entry: &Entry) -> bool {
        // SAFETY: the caller answers for the memory; every entry is built by this module's siblings for
        // registered files of this ring.
        unsafe { self.submissions.push(entry) }.is_ok()
    }

    /// Submits what was pushed, runs what the kernel has deferred to this thread, and waits until there are `wanted`
    /// completions. An interruption is no error, nor are entries that the kernel takes only after completions were
    /// consumed: the next call submits them.
    pub(super) fn enter(&mut self, wanted: u32) -> io::Result<()> {
        self.completions.sync();
        self.submissions.sync();
        self.enters += 1;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "at most the 256 entries of the queue"
        )]
        let ready = self.submissions.len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed that the kernel would read or write.
        let entered = unsafe { self.submitter.enter::<libc::sigset_t>(ready, wanted, flags, None) };
        self.submissions.sync();
        self.completions.sync();
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The next completion that has arrived by the last [`Self::enter`].
    #[inline]
    pub(super) fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.completions.next()
    }
}

impl Drop for Ring<'_> {
    fn drop(&mut self) {
        // A registered descriptor would keep the ring, and with it the device, until the thread ends.
        let _ = self.submitter.unregister_ring_fd();
    }
}
