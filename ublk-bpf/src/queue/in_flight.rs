//! A request in service: which operation it is at, how much of it is done, what comes next.

use ublk_bpf_abi::{Extent, Priority, REGIONS};

use super::event::{FillBuffer, Io, Staging, Tier, UserCopy};
use super::legs::Legs;
use super::plan::Route;
use super::request::{Action, BlockRequest};
use crate::cache::{BackWrite, Mode, SlotPin};
use crate::errno::Errno;

mod back;
mod steps;

/// How often in a row an operation that made no progress is issued again before its request fails.
const MAX_RETRIES: u8 = 16;

/// How often a read waits for fills that it cannot be served from, before it passes through.
const MAX_WAITS: u8 = 4;

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
    /// A record of the log is written.
    Record,
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

/// Sizes that decide where the operations of a request may begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grain {
    /// Bytes of a logical block, minus one.
    pub(super) block_mask: u32,
    /// Log2 of the bytes of a cache block; 0 without a cache.
    pub(super) cache_shift: u32,
}

impl Grain {
    /// The position in its cache block of a byte of the backing device.
    #[expect(clippy::cast_possible_truncation, reason = "a cache block has at most 1 MiB")]
    pub(super) const fn in_cache_block(self, offset: u64) -> u32 {
        offset as u32 & ((1 << self.cache_shift) - 1)
    }

    /// Where in its cache block the first of `regions` (not 0) begins, and where the last one ends.
    pub(super) const fn bytes_of(self, regions: u16) -> (u32, u32) {
        let region_shift = self.cache_shift - REGIONS.ilog2();
        let (first, end) = (regions.trailing_zeros(), u16::BITS - regions.leading_zeros());
        (first << region_shift, end << region_shift)
    }
}

/// Memory of the server that a request moves its data through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buffer {
    /// Its own, until it ends.
    Staging(Staging),
    /// That of a fill, which it reads from.
    Fill(FillBuffer),
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
    /// The buffer that it goes through, if it does.
    pub(super) buffer: Option<Buffer>,
    step: Leg,
    /// Which device the step is on.
    device: Tier,
    pub(super) legs: Legs,
    /// Promote the block once the request has succeeded.
    pub(super) promote: Option<Priority>,
    /// Fill so much of the block with it: for a read that waits for another fill.
    pub(super) fill: Option<Extent>,
    /// Where it ends, if the policy says so: for a write that waits before it begins.
    mode: Option<Mode>,
    /// To whom what it brings into the cache is accounted; 0: no tenant.
    pub(super) tenant: u8,
    /// Issues in a row without progress.
    retries: u8,
    durable: bool,
    keep_allocated: bool,
    /// The flush of the backing device that it is at is owed for `slot_delta` operations.
    owes_flush: bool,
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
        buffer: None,
        step: Leg::Flush,
        device: Tier::Backing,
        legs: Legs::Backing,
        promote: None,
        fill: None,
        mode: None,
        tenant: 0,
        retries: 0,
        durable: false,
        keep_allocated: false,
        owes_flush: false,
        is_cut: false,
    };

    /// At the first operation of `request` by `route`, which is one that has operations. A device without a
    /// volatile cache has every completed write on stable media: nothing needs to be `durable`.
    #[inline(always)]
    pub(super) fn new(
        request: &BlockRequest,
        route: Route,
        volatile_cache: bool,
        staging_bytes: u32,
    ) -> Self {
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
            mode: request.mode,
            tenant: request.tenant,
            ..Self::IDLE
        }
    }

    /// At the one operation of a read or write with registered pages, not durable, on the backing device alone.
    #[inline(always)]
    pub(super) fn direct(request: &BlockRequest) -> Self {
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
    pub(super) fn hit(request: &BlockRequest, pin: SlotPin, slot_delta: u64) -> Self {
        Self {
            slot_delta,
            device: Tier::Cache,
            legs: Legs::Slot(pin),
            ..Self::direct(request)
        }
    }

    /// The one result that completes the request without further checks. No result is [`NOT_PLAIN`].
    #[inline]
    pub(super) const fn whole(&self) -> u32 {
        self.whole
    }

    /// At the first piece of a read with these legs, which are split. Those in the slot are `slot_delta` further on.
    pub(super) fn split(request: &BlockRequest, legs: Legs, slot_delta: u64, grain: Grain) -> Self {
        let mut read = Self {
            slot_delta,
            legs,
            whole: NOT_PLAIN,
            ..Self::direct(request)
        };
        read.begin_piece(grain);
        read
    }

    /// The request has marked the blocks that it changes. If its data goes to a slot too, that is `slot_delta` further on.
    pub(super) fn change(&mut self, legs: Legs, slot_delta: u64) {
        debug_assert!(
            self.step == Leg::CopyIn || !matches!(legs, Legs::Through(_)),
            "{:?} to two devices from the client's pages",
            self.step
        );
        self.legs = legs;
        self.slot_delta = slot_delta;
        if matches!(legs, Legs::Back(_)) {
            self.device = Tier::Cache;
            if self.step == Leg::Write && !self.durable {
                self.whole = self.chunk;
            }
        }
    }

    /// At the one operation of a write with registered pages, not durable, to the slot alone.
    #[inline(always)]
    pub(super) fn back(request: &BlockRequest, write: BackWrite, slot_delta: u64) -> Self {
        Self {
            slot_delta,
            device: Tier::Cache,
            legs: Legs::Back(write),
            ..Self::direct(request)
        }
    }

    /// Whether the cache has to be updated when the request ends.
    #[inline]
    pub(super) fn concerns_cache(&self) -> bool {
        self.legs != Legs::Backing || self.promote.is_some()
    }

    /// The fill whose buffer the next operation copies from.
    pub(super) fn awaited_fill(&self) -> Option<FillBuffer> {
        match self.buffer {
            Some(Buffer::Fill(fill)) if self.step == Leg::CopyOut => Some(fill),
            _ => None,
        }
    }

    /// A read that waits for the `waits`th time for the end of a claim.
    pub(super) fn parked(
        request: &BlockRequest,
        fill: Option<Extent>,
        promote: Option<Priority>,
        waits: u8,
    ) -> Self {
        Self {
            whole: NOT_PLAIN,
            fill: fill.filter(|_| waits <= MAX_WAITS),
            promote,
            retries: waits,
            ..Self::direct(request)
        }
    }

    /// What [`parked`](Self::parked) was told: the extent, the priority, and the number of waits.
    pub(super) const fn unparked(&self) -> (Option<Extent>, Option<Priority>, u8) {
        (self.fill, self.promote, self.retries)
    }

    /// The read with registered pages, not durable, that it is.
    pub(super) const fn as_read(&self) -> BlockRequest {
        BlockRequest {
            action: Action::Read,
            durable: false,
            keep_allocated: false,
            registered: true,
            mode: None,
            tenant: self.tenant,
            offset: self.offset,
            length: self.length,
        }
    }

    /// First byte on the backing device, and bytes.
    pub(super) const fn range(&self) -> (u64, u64) {
        (self.offset, self.length)
    }

    /// Whether the operation that it is at is on the cache device.
    pub(super) fn is_on_cache(&self) -> bool {
        self.device == Tier::Cache
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

    /// Goes on behind the present leg, whose slot has failed.
    pub(super) fn go_on_with(&mut self, legs: Legs, grain: Grain) -> Next {
        *self = Self {
            legs,
            is_cut: false,
            device: Tier::Backing,
            retries: 0,
            ..*self
        };
        self.next_with_data(grain)
    }

    /// Restarts a read on the backing device. It holds nothing in the cache any longer.
    pub(super) fn restart(&mut self) {
        *self = Self {
            whole: NOT_PLAIN,
            ..Self::direct(&self.as_read())
        };
    }

    /// Bytes of data that the request has: what it succeeds with.
    #[inline]
    pub(super) fn data(&self) -> u32 {
        match self.step {
            Leg::Flush | Leg::Record | Leg::Discard | Leg::WriteZeroes => 0,
            // At most `MAX_DATA_BYTES`: parsed so.
            _ => u32::try_from(self.length).unwrap_or(u32::MAX),
        }
    }

    /// Whether `result` completes the request: its last operation was whole.
    pub(super) fn is_whole(&self, result: i32) -> bool {
        let last = match self.step {
            Leg::Read | Leg::Write | Leg::Zero | Leg::Flush | Leg::Discard => true,
            Leg::WriteZeroes => !self.durable,
            Leg::CopyZero | Leg::Load | Leg::CopyOut | Leg::CopyIn | Leg::Store | Leg::Record | Leg::Trim => {
                false
            }
        };
        last && result >= 0
            && result.unsigned_abs() == self.chunk - self.moved
            && self.served() == self.data()
    }

    /// Bytes of the request that are served once its last operation is whole.
    #[inline]
    pub(super) fn served(&self) -> u32 {
        self.done + self.chunk
    }

    /// The operation to issue.
    #[inline(always)]
    pub(super) fn io(&self, grain: Grain) -> Io {
        let device = self.device;
        let at = self.done + self.moved;
        let len = self.chunk - self.moved;
        let skip = self.moved;
        let offset = match device {
            Tier::Backing => self.offset + u64::from(at),
            Tier::Cache => self.offset.wrapping_add(self.slot_delta) + u64::from(at),
        };
        // Of two copies, that on the backing device survives a power failure.
        let is_only_copy = device == Tier::Backing || matches!(self.legs, Legs::Back(_));
        let durable = self.durable && is_only_copy;
        // A leg that needs a buffer is not issued before the request has one.
        let staging = match self.buffer {
            Some(Buffer::Staging(staging)) => staging,
            Some(Buffer::Fill(_)) | None => Staging(u16::MAX),
        };
        match self.step {
            Leg::Read => Io::Read {
                from: device,
                offset,
                at,
                len,
            },
            Leg::Write => Io::Write {
                to: device,
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
            Leg::CopyOut => Io::Copy(match self.buffer {
                Some(Buffer::Fill(fill)) => UserCopy::Filled {
                    fill,
                    skip: grain.in_cache_block(offset),
                    at,
                    len,
                },
                _ => UserCopy::Out {
                    staging,
                    skip,
                    at,
                    len,
                },
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
            Leg::Record => Io::Record {
                offset: self.slot_delta,
                len: self.chunk,
            },
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
}
