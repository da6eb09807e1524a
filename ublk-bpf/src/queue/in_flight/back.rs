//! What write-back needs of a request: to be answered after a commit, to wait until its blocks are clean, and to start again on
//! the backing device.

use super::{InFlight, Leg, MAX_RETRIES, NOT_PLAIN, Next};
use crate::cache::{CommitIo, CommitTicket, Scope};
use crate::errno::Errno;
use crate::queue::event::Tier;
use crate::queue::legs::Legs;
use crate::queue::plan::Route;
use crate::queue::request::{Action, BlockRequest};

impl InFlight {
    /// A request that has succeeded with so many bytes of `data`, and is answered once a commit has made them durable.
    pub(in super::super) fn commit(&mut self, data: u32, ticket: CommitTicket, scope: Scope) {
        *self = Self {
            legs: Legs::Commit(ticket, scope),
            device: Tier::Cache,
            step: Leg::Record,
            whole: NOT_PLAIN,
            done: data,
            retries: 0,
            ..*self
        };
    }

    /// What it commits, and the bytes of data that it succeeds with.
    pub(in super::super) const fn committed(&self) -> Option<(CommitTicket, Scope, u32)> {
        match self.legs {
            Legs::Commit(ticket, scope) => Some((ticket, scope, self.done)),
            _ => None,
        }
    }

    /// The result of the operation of the commit that it leads; `None`: it is to be issued again.
    pub(in super::super) fn led_result(&mut self, result: i32) -> Option<Result<(), Errno>> {
        let errno = match Errno::of_result(result) {
            _ if self.is_cut => return Some(Err(Errno::EIO)),
            None if result.unsigned_abs() == self.chunk => return Some(Ok(())),
            // The whole record again: it is the same.
            None => Errno::EIO,
            Some(errno @ (Errno::EAGAIN | Errno::EINTR)) => errno,
            Some(errno) => return Some(Err(errno)),
        };
        if self.retries == MAX_RETRIES {
            return Some(Err(errno));
        }
        self.retries += 1;
        None
    }

    /// It is at this operation of the commit that it leads.
    pub(in super::super) fn lead(&mut self, io: CommitIo) {
        (self.step, self.slot_delta, self.chunk) = match io {
            CommitIo::Flush => (Leg::Flush, 0, 0),
            CommitIo::Record { offset, length } => (Leg::Record, offset, length),
        };
    }

    /// The operation of the commit that it leads.
    pub(in super::super) fn led(&self) -> CommitIo {
        if self.step == Leg::Record {
            CommitIo::Record {
                offset: self.slot_delta,
                length: self.chunk,
            }
        } else {
            CommitIo::Flush
        }
    }

    /// What the slots needed is durable; the backing device has to be flushed as well.
    pub(in super::super) fn flush_backing(&mut self, owed: u64) {
        self.legs = Legs::Backing;
        (self.step, self.device, self.chunk, self.moved, self.done) = (Leg::Flush, Tier::Backing, 0, 0, 0);
        self.slot_delta = owed;
        self.owes_flush = true;
    }

    /// How much a flush of the backing device that has just succeeded has made durable, for a cache with write-back.
    pub(in super::super) fn flushed(&self) -> Option<u64> {
        self.owes_flush.then_some(self.slot_delta)
    }

    /// The request that waits at its first operation, and its route, if it is not a read that looks into the cache.
    pub(in super::super) fn as_waiting(&self) -> Option<(BlockRequest, Route)> {
        let (action, route) = match self.step {
            Leg::Discard => (Action::Discard, Route::Device),
            Leg::WriteZeroes => (Action::WriteZeroes, Route::Device),
            Leg::Write => (Action::Write, Route::Direct),
            Leg::CopyIn => (Action::Write, Route::Copy),
            Leg::Load => (Action::Read, Route::Copy),
            _ => return None,
        };
        let request = BlockRequest {
            action,
            durable: self.durable,
            keep_allocated: self.keep_allocated,
            registered: route != Route::Copy,
            mode: self.mode,
            tenant: self.tenant,
            ..self.as_read()
        };
        Some((request, route))
    }

    /// Whether it must be durable when it is answered.
    pub(in super::super) const fn is_durable(&self) -> bool {
        self.durable
    }

    /// Starts again on the backing device, with these legs.
    pub(in super::super) fn again_with(&mut self, legs: Legs, staging_bytes: u32) -> Next {
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        let (step, chunk) = match self.step {
            // The buffer has the last chunk alone.
            Leg::Store | Leg::CopyIn => (Leg::CopyIn, length.min(staging_bytes)),
            step => (step, length),
        };
        *self = Self {
            legs,
            step,
            chunk,
            device: Tier::Backing,
            whole: NOT_PLAIN,
            done: 0,
            moved: 0,
            retries: 0,
            is_cut: false,
            ..*self
        };
        Next::Issue
    }
}
