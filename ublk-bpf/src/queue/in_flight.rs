//! A request in service: which operation it is at, how much of it is done, what comes next.

use ublk_bpf_abi::Priority;

use super::event::{Io, Staging, Tier, UserCopy};
use super::plan::Route;
use super::request::{Action, Request};
use crate::cache::{SlotPin, WriteClaim};
use crate::errno::Errno;

/// How often in a row an operation that made no progress is issued again before its request fails.
const MAX_RETRIES: u8 = 16;

/// No result of an operation: neither a number of bytes nor an errno.
const NOT_PLAIN: u32 = i32::MIN.cast_unsigned();

/// The operation that a request is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    Read,
    Write,
    Zero,
    CopyZero,
    Load,
    CopyOut,
    CopyIn,
    Store,
    Flush,
    Discard,
    WriteZeroes,
    /// The backing file is truncated again, and the request fails.
    Trim,
}

/// What a completed operation means for its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The request is served.
    Done,
    /// Another operation follows.
    Issue,
    /// The request failed.
    Failed(Errno),
}

/// What the counters need to know of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Noted {
    /// A read or write of a device was short.
    pub(super) short: bool,
    /// An operation failed.
    pub(super) error: bool,
    /// Bytes moved by user copy.
    pub(super) copied: u32,
}

/// What a request holds in the cache until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    Nothing,
    /// The slot that it reads from.
    Read(SlotPin),
    /// The marks on the blocks that it changes, and its claim in the slot of a present one.
    Change(Option<WriteClaim>),
}

/// The blocks that a request changes are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marked {
    /// Its claim in the slot of a present block.
    pub(super) claim: Option<WriteClaim>,
    /// If its data goes to the slot as well: how far that is ahead of the block.
    pub(super) slot_delta: Option<u64>,
}

/// A request in service. It moves `length` bytes chunk by chunk; without staging there is one chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    /// First byte on the device.
    offset: u64,
    /// Bytes of the request; for one with data at most `MAX_DATA_BYTES`.
    length: u64,
    /// Bytes of finished chunks.
    done: u32,
    /// Bytes of the present chunk; 0 for an operation without data.
    chunk: u32,
    /// Bytes of the chunk that the present step has moved.
    moved: u32,
    /// What the result of the one operation is that serves the request whole, or [`NOT_PLAIN`].
    whole: u32,
    /// What has to be added to a position on the backing device to get that on the cache device.
    slot_delta: u64,
    /// The request's staging buffer, if it goes through one.
    pub(super) staging: Option<Staging>,
    step: Leg,
    /// Which device the step is on.
    device: Tier,
    /// What goes to the backing device goes to the cache device next.
    then_cache: bool,
    pub(super) hold: Hold,
    /// Promote the block once the request has succeeded.
    pub(super) promote: Option<Priority>,
    /// Issues in a row without progress.
    retries: u8,
    durable: bool,
    keep_allocated: bool,
    /// Its file was truncated below its range while its operation was in flight: the result means nothing.
    is_cut: bool,
}

impl InFlight {
    /// Of a tag without a request.
    pub(super) const IDLE: Self = Self {
        offset: 0,
        length: 0,
        done: 0,
        chunk: 0,
        moved: 0,
        whole: NOT_PLAIN,
        slot_delta: 0,
        staging: None,
        step: Leg::Flush,
        device: Tier::Backing,
        then_cache: false,
        hold: Hold::Nothing,
        promote: None,
        retries: 0,
        durable: false,
        keep_allocated: false,
        is_cut: false,
    };

    /// At the first operation of `request` by `route`, which is one that has operations. A device without a
    /// volatile cache has every completed write on stable media: nothing needs to be `durable`.
    #[inline(always)]
    pub(super) fn new(request: &Request, route: Route, volatile_cache: bool, staging_bytes: u32) -> Self {
        let (step, most) = match (route, request.action) {
            (Route::Zero, _) if request.registered => (Leg::Zero, u32::MAX),
            (Route::Zero, _) => (Leg::CopyZero, u32::MAX),
            (Route::Copy, Action::Read) => (Leg::Load, staging_bytes),
            (Route::Copy, _) => (Leg::CopyIn, staging_bytes),
            (_, Action::Read) => (Leg::Read, u32::MAX),
            (_, Action::Write) => (Leg::Write, u32::MAX),
            (_, Action::Flush) => (Leg::Flush, 0),
            (_, Action::Discard) => (Leg::Discard, 0),
            (_, Action::WriteZeroes) => (Leg::WriteZeroes, 0),
        };
        Self {
            offset: request.offset,
            length: request.length,
            done: 0,
            chunk: u32::try_from(request.length).unwrap_or(u32::MAX).min(most),
            moved: 0,
            step,
            durable: request.durable && volatile_cache,
            keep_allocated: request.keep_allocated,
            ..Self::IDLE
        }
    }

    /// At the one operation of a read or write with registered pages, not durable, on the backing device alone.
    #[inline(always)]
    pub(super) fn direct(request: &Request) -> Self {
        let is_read = request.action == Action::Read;
        Self {
            offset: request.offset,
            length: request.length,
            chunk: request.data(),
            whole: request.data(),
            step: if is_read { Leg::Read } else { Leg::Write },
            ..Self::IDLE
        }
    }

    /// At the one operation of a read with registered pages whose block is in the pinned slot.
    #[inline(always)]
    pub(super) fn hit(request: &Request, pin: SlotPin, slot_delta: u64) -> Self {
        Self {
            slot_delta,
            device: Tier::Cache,
            hold: Hold::Read(pin),
            ..Self::direct(request)
        }
    }

    /// The one result that completes the request without further checks. No result is [`NOT_PLAIN`].
    #[inline]
    pub(super) const fn whole(&self) -> u32 {
        self.whole
    }

    /// The request has marked the blocks that it changes. If it has a slot, its data goes there too.
    pub(super) fn hold_change(&mut self, marked: Marked) {
        self.hold = Hold::Change(marked.claim);
        if let Some(slot_delta) = marked.slot_delta {
            debug_assert!(
                self.step == Leg::CopyIn,
                "{:?} to two devices from the client's pages",
                self.step
            );
            self.slot_delta = slot_delta;
            self.then_cache = true;
        }
    }

    /// Whether the cache has to be updated when the request ends.
    #[inline]
    pub(super) fn concerns_cache(&self) -> bool {
        self.hold != Hold::Nothing || self.promote.is_some()
    }

    /// First byte on the backing device, and bytes.
    pub(super) const fn range(&self) -> (u64, u64) {
        (self.offset, self.length)
    }

    /// Whether the operation that it is at is on the cache device.
    pub(super) fn is_on_cache(&self) -> bool {
        self.device == Tier::Cache
    }

    /// Whether all that went to the backing device went to the slot as well.
    pub(super) const fn is_in_cache(&self) -> bool {
        self.then_cache
    }

    /// A device's file was truncated to `end`. If the operation in flight may reach beyond it, its result is not trusted.
    #[cold]
    pub(super) fn cut(&mut self, device: Tier, end: u64) {
        let is_concerned = match device {
            Tier::Backing => self.offset.saturating_add(self.length) > end,
            // Wherever it is: the cache was detached.
            Tier::Cache => true,
        };
        if self.device == device && is_concerned {
            self.is_cut = true;
            self.whole = NOT_PLAIN;
        }
    }

    /// Whether [`cut`](Self::cut) has concerned the operation that it is at.
    pub(super) const fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The operation of a request that was cut on the backing device has ended. `true` if it was a write that may have
    /// extended the file beyond `end` again: truncating it follows.
    pub(super) fn trim(&mut self, result: i32, end: u64) -> bool {
        let has_written = matches!(self.step, Leg::Write | Leg::Store) && result > 0;
        if has_written {
            self.step = Leg::Trim;
            self.offset = end;
        }
        has_written
    }

    /// Restarts a read on the backing device.
    pub(super) fn fall_back(&mut self) {
        *self = Self {
            is_cut: false,
            device: Tier::Backing,
            hold: Hold::Nothing,
            done: 0,
            moved: 0,
            retries: 0,
            ..*self
        };
    }

    /// Continues a write whose store to the slot failed. That chunk is on the backing device already.
    pub(super) fn go_on_without_cache(&mut self) -> Next {
        self.then_cache = false;
        self.is_cut = false;
        self.device = Tier::Backing;
        self.retries = 0;
        self.next_with_data()
    }

    /// Bytes of data that the request has: what it succeeds with.
    #[inline]
    pub(super) fn data(&self) -> u32 {
        match self.step {
            Leg::Flush | Leg::Discard | Leg::WriteZeroes => 0,
            // At most `MAX_DATA_BYTES`: parsed so.
            _ => u32::try_from(self.length).unwrap_or(u32::MAX),
        }
    }

    /// Whether `result` completes the request: its last operation was whole.
    pub(super) fn is_whole(&self, result: i32) -> bool {
        let last = match self.step {
            Leg::Read | Leg::Write | Leg::Zero | Leg::Flush | Leg::Discard => true,
            Leg::WriteZeroes => !self.durable,
            Leg::CopyZero | Leg::Load | Leg::CopyOut | Leg::CopyIn | Leg::Store | Leg::Trim => false,
        };
        last && result >= 0 && result.unsigned_abs() == self.chunk - self.moved
    }

    /// Bytes of the request that are served once its last operation is whole.
    #[inline]
    pub(super) fn served(&self) -> u32 {
        self.done + self.chunk
    }

    /// The operation to issue.
    #[inline(always)]
    pub(super) fn io(&self) -> Io {
        let device = self.device;
        let at = self.done + self.moved;
        let len = self.chunk - self.moved;
        let skip = self.moved;
        let offset = match device {
            Tier::Backing => self.offset + u64::from(at),
            Tier::Cache => self.offset.wrapping_add(self.slot_delta) + u64::from(at),
        };
        // The cache is not what survives a power failure.
        let durable = self.durable && device == Tier::Backing;
        // A leg that needs a buffer is not issued before the request has one.
        let staging = self.staging.unwrap_or(Staging(u16::MAX));
        match self.step {
            Leg::Read => Io::Read {
                from: device,
                offset,
                at,
                len,
            },
            Leg::Write => Io::Write {
                offset,
                at,
                len,
                durable,
            },
            Leg::Zero => Io::Zero { at, len },
            Leg::CopyZero => Io::Copy(UserCopy::Zero { at, len }),
            Leg::Load => Io::Load {
                from: device,
                offset,
                staging,
                skip,
                len,
            },
            Leg::CopyOut => Io::Copy(UserCopy::Out {
                staging,
                skip,
                at,
                len,
            }),
            Leg::CopyIn => Io::Copy(UserCopy::In {
                staging,
                skip,
                at,
                len,
            }),
            Leg::Store => Io::Store {
                to: device,
                offset,
                staging,
                skip,
                len,
                durable,
            },
            Leg::Flush => Io::Flush { device },
            Leg::Trim => Io::Trim { end: self.offset },
            Leg::Discard => Io::Discard {
                device,
                offset: self.offset,
                len: self.length,
            },
            Leg::WriteZeroes => Io::WriteZeroes {
                device,
                offset: self.offset,
                len: self.length,
                keep_allocated: self.keep_allocated,
            },
        }
    }

    /// Takes in the result of the operation that was issued.
    #[cold]
    pub(super) fn advance(&mut self, result: i32, block_mask: u32) -> (Next, Noted) {
        self.whole = NOT_PLAIN;
        let mut noted = Noted::default();
        let next = match Errno::of_result(result) {
            None if self.chunk == 0 => self.next_without_data(),
            None => self.advance_data(result.unsigned_abs(), block_mask, &mut noted),
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
    fn advance_data(&mut self, bytes: u32, block_mask: u32, noted: &mut Noted) -> Next {
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
                progress -= bytes & block_mask;
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
            self.next_with_data()
        }
    }

    /// The present step has moved the whole chunk.
    fn next_with_data(&mut self) -> Next {
        self.moved = 0;
        if self.then_cache && self.step == Leg::Store {
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
        self.chunk = self.chunk.min(rest);
        self.step = next_chunk;
        Next::Issue
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
