//! A job of the mover: what all kinds of them share.

use ublk_bpf_abi::Priority;

use super::MoverIo;
use crate::cache::Fill;
use crate::errno::Errno;

/// Direct I/O must resume at a multiple of this: the largest logical block of a backing.
const ALIGNMENT: u32 = 4096;

/// How often one step is issued again, after an interruption or for the rest of a short transfer.
const MAX_RETRIES: u8 = 16;

/// What a job does. Each kind has a file of its own: how it begins and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Fill,
    Verify,
}

impl Kind {
    const fn steps(self) -> &'static [Step] {
        match self {
            Self::Fill => &[Step::Load, Step::Store],
            Self::Verify => &[Step::LoadSlot, Step::Load, Step::Compare],
        }
    }
}

/// One operation of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Backing device to staging buffer.
    Load,
    /// Cache device to the second staging buffer.
    LoadSlot,
    /// Staging buffer to cache device.
    Store,
    /// Compare both staging buffers.
    Compare,
}

/// What follows a step's operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterStep {
    /// Another operation, of this step or the next.
    Continues,
    /// The last step is done.
    Done,
    /// The step failed.
    Failed(Errno),
}

/// A job in progress: it has claimed the regions that it moves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) kind: Kind,
    /// What it moves: of a verification, one run of regions after another.
    pub(super) fill: Fill,
    /// Regions that a verification has claimed, and comes to after these.
    pub(super) rest: u16,
    pub(super) priority: Priority,
    /// The step, as an index of the kind's steps.
    at: usize,
    /// Bytes that the step has moved.
    moved: u32,
    retries: u8,
}

impl Job {
    /// A job at its first step.
    pub(super) const fn new(kind: Kind, fill: Fill, priority: Priority) -> Self {
        Self {
            kind,
            fill,
            rest: 0,
            priority,
            at: 0,
            moved: 0,
            retries: 0,
        }
    }

    pub(super) const fn step(&self) -> Step {
        self.kind.steps()[self.at]
    }

    /// The step's operation completed with this result: bytes moved, or a negative errno.
    pub(super) fn advance(&mut self, result: i32) -> AfterStep {
        let asked = self.fill.length - self.moved;
        let bytes = result.unsigned_abs();
        match Errno::of_result(result) {
            Some(Errno::EAGAIN | Errno::EINTR) if self.retries < MAX_RETRIES => self.retries += 1,
            None if bytes == asked => return self.next_step(),
            None if (1..asked).contains(&bytes) && self.retries < MAX_RETRIES => {
                self.retries += 1;
                self.moved += bytes / ALIGNMENT * ALIGNMENT;
            }
            errno => return AfterStep::Failed(errno.unwrap_or(Errno::EIO)),
        }
        AfterStep::Continues
    }

    const fn next_step(&mut self) -> AfterStep {
        if self.at + 1 == self.kind.steps().len() {
            return AfterStep::Done;
        }
        self.at += 1;
        (self.moved, self.retries) = (0, 0);
        AfterStep::Continues
    }

    /// What is left of the step, as an operation of job number `job`. `buffer` is the second buffer, of a verification.
    pub(super) const fn io(&self, job: u16, buffer: u16) -> MoverIo {
        let (skip, len) = (self.moved, self.fill.length - self.moved);
        let slot_offset = self.fill.slot_offset + skip as u64;
        match self.step() {
            Step::Load => MoverIo::Load {
                job,
                offset: self.fill.offset + skip as u64,
                skip,
                len,
            },
            Step::LoadSlot => MoverIo::LoadSlot {
                job,
                buffer,
                offset: slot_offset,
                skip,
                len,
            },
            Step::Store => MoverIo::Store {
                job,
                offset: slot_offset,
                skip,
                len,
            },
            Step::Compare => MoverIo::Compare { job, buffer, len },
        }
    }
}
