//! What follows an operation: the rest of it, the next one, or the request's end.

use super::{Grain, InFlight, Leg, MAX_RETRIES, NOT_PLAIN, Next, Noted};
use crate::errno::Errno;
use crate::queue::event::Tier;
use crate::queue::legs::{Legs, Source};

impl InFlight {
    /// Takes in the result of the operation that was issued.
    #[cold]
    pub(in super::super) fn advance(&mut self, result: i32, grain: Grain) -> (Next, Noted) {
        self.whole = NOT_PLAIN;
        let mut noted = Noted::default();
        let next = match Errno::of_result(result) {
            None if self.chunk == 0 => self.next_without_data(),
            None => self.advance_data(result.unsigned_abs(), grain, &mut noted),
            Some(errno @ (Errno::EAGAIN | Errno::EINTR)) => self.retry(errno),
            // A device below may find out only now that it cannot unmap (a loop device on a file system without
            // holes): zeroes that stay allocated can always be written.
            Some(Errno::EOPNOTSUPP) if self.step == Leg::WriteZeroes && !self.keep_allocated => {
                self.keep_allocated = true;
                Next::Issue
            }
            Some(errno) => Next::Failed(errno),
        };
        noted.error = matches!(next, Next::Failed(_));
        (next, noted)
    }

    /// A step with data has moved `bytes` more.
    fn advance_data(&mut self, bytes: u32, grain: Grain, noted: &mut Noted) -> Next {
        let asked = self.chunk - self.moved;
        // More than was asked for is impossible, and nothing means the end of the device (a truncated file): both fail the
        // request.
        if bytes > asked || bytes == 0 {
            return Next::Failed(Errno::EIO);
        }
        let mut progress = bytes;
        if matches!(self.step, Leg::CopyZero | Leg::CopyOut | Leg::CopyIn) {
            noted.copied = bytes;
        } else if bytes < asked {
            noted.short = true;
            if self.step != Leg::Zero {
                // Direct I/O starts at block boundaries: a partial block is moved again.
                progress -= bytes & grain.block_mask;
            }
        }
        if progress == 0 {
            return self.retry(Errno::EIO);
        }
        self.retries = 0;
        self.moved += progress;
        if self.moved < self.chunk {
            Next::Issue
        } else {
            self.next_with_data(grain)
        }
    }

    /// The present step has moved the whole chunk.
    pub(in super::super) fn next_with_data(&mut self, grain: Grain) -> Next {
        self.moved = 0;
        if matches!(self.legs, Legs::Through(_)) && self.step == Leg::Store {
            if self.device == Tier::Backing {
                self.device = Tier::Cache;
                return Next::Issue;
            }
            self.device = Tier::Backing;
        }
        let next_chunk = match self.step {
            Leg::Load => {
                self.step = Leg::CopyOut;
                return Next::Issue;
            }
            Leg::CopyIn => {
                self.step = Leg::Store;
                return Next::Issue;
            }
            Leg::CopyOut => Leg::Load,
            Leg::Store => Leg::CopyIn,
            step => step,
        };
        // The chunk is served. `done` is moved only if another follows: `served` adds the last one.
        let rest = self.data() - self.served();
        if rest == 0 {
            return Next::Done;
        }
        self.done += self.chunk;
        if self.legs.is_split() {
            self.begin_piece(grain);
        } else {
            self.chunk = self.chunk.min(rest);
            self.step = next_chunk;
        }
        Next::Issue
    }

    /// The next piece of a split read becomes its chunk.
    pub(in super::super) fn begin_piece(&mut self, grain: Grain) {
        let at = grain.in_cache_block(self.offset + u64::from(self.done));
        let (source, end) = self.legs.piece(at, grain.cache_shift);
        self.chunk = (end - at).min(self.data() - self.done);
        (self.step, self.device) = match source {
            Source::Device(device) => (Leg::Read, device),
            Source::Fill => (Leg::CopyOut, Tier::Backing),
        };
    }

    /// An operation without data has succeeded.
    fn next_without_data(&mut self) -> Next {
        if self.step == Leg::WriteZeroes && self.durable {
            self.step = Leg::Flush;
            self.retries = 0;
            return Next::Issue;
        }
        Next::Done
    }

    /// The same operation again, unless it was retried too often.
    fn retry(&mut self, errno: Errno) -> Next {
        if self.retries == MAX_RETRIES {
            return Next::Failed(errno);
        }
        self.retries += 1;
        Next::Issue
    }
}
