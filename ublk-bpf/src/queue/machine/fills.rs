//! Reads that look into the cache: whole hits, reads of blocks that are cached in part, and fills by the miss.
//!
//! A fill is an entity of its own, not its first reader's: one read of the backing device into a buffer, from which every
//! read that waits copies its data and is answered, and a store of the same buffer to the slot. Then the regions are
//! published, or not, if a write has overtaken the fill.
//!
//! # Which reads a fill may serve
//!
//! A read must find what every write has left that was answered before the read arrived. A fill claims its regions before
//! it reads the backing device, so it has all that writes left which had ended by then. A write that overlaps a claim takes
//! the block out of its slot before it is issued to the backing device, and the slot cannot come back to that block while
//! it is claimed. Hence: **a read joins a fill only if its block is in the fill's slot when the read looks**
//! ([`Cache::is_current`]). Then no write of these regions that began after the claim has ended yet, and the fill's data is
//! as new as the read may expect, however late it is copied. A read that finds the block elsewhere, or absent, looks further:
//! it begins a new fill or passes through.

use ublk_bpf_abi::{Extent, REGIONS, regions};

use super::{
    Action, Advice, Advised, BlockRequest, Buffer, Effect, Errno, InFlight, Machine, Next, Owner, Phase,
    SECTOR_SIZE, Todo, plan,
};
use crate::cache::{Cache, CacheFailure, Fill, FillStart, SlotPin};
use crate::queue::event::FillBuffer;
use crate::queue::fill::{FillNext, Stage, Wish};
use crate::queue::legs::Legs;

/// How often a read looks again because the block has changed since its last look.
const MAX_LOOKS: u32 = 4;

/// What a read that is not a whole hit has found.
enum Look {
    /// A fill that has what it misses, and the part that it can read from the slot.
    Fill(FillBuffer, Fill, Option<(SlotPin, u16)>),
    /// A claim whose end it has to wait for.
    Wait,
    /// The block has just changed.
    Again,
    /// No fill, but the mover may bring the block in later.
    Nothing,
    /// Neither.
    Refused,
}

impl Machine<'_> {
    /// Whether a request is a read that looks into the cache.
    pub(super) fn asks_the_cache(&self, request: &BlockRequest, advised: &Advised) -> bool {
        let wants = match advised.advice {
            Advice::Hit => true,
            Advice::Passthrough => advised.fill.is_some(),
            Advice::Drop { .. } | Advice::Slow => false,
        };
        let wants = wants || (request.action == Action::Read && self.may_be_dirty(request));
        wants && self.cache.is_some() && request.action == Action::Read && request.registered
    }

    /// Starts a read that looks into the cache.
    #[inline(never)]
    pub(super) fn read_cached(&mut self, tag: u16, request: &BlockRequest, mut wish: Wish) {
        let Some(cache) = self.cache else {
            return self.pass_through(tag, request, wish);
        };
        for _ in 0..MAX_LOOKS {
            if let Some(pin) = cache.begin_read(request.offset, request.length) {
                self.counters.hits += 1;
                self.counters.hit_bytes += request.length;
                let slot_delta = cache.slot_delta(pin, request.offset);
                self.tags.slot(tag).in_flight = InFlight::hit(request, pin, slot_delta);
                self.note_promotion(tag, wish.promote.filter(|_| wish.extent.is_none()));
                return self.todos.push(Todo::Io(tag));
            }
            match self.look(cache, request, wish) {
                Look::Fill(buffer, fill, readable) => {
                    return self.read_filled(tag, request, (buffer, &fill), readable);
                }
                Look::Wait => return self.park(tag, request, wish),
                Look::Again => {}
                Look::Nothing => break,
                Look::Refused => {
                    wish.promote = None;
                    break;
                }
            }
        }
        match cache.begin_split_read(request.offset, request.length) {
            Some(readable) => {
                self.counters.hits_split += 1;
                self.counters.hit_bytes += self.bytes_in(request, readable.1);
                self.start_split(tag, request, Legs::of_read(0, Some(readable), 0));
                self.note_promotion(tag, wish.promote);
                self.issue_piece(tag);
            }
            None => self.pass_through(tag, request, wish),
        }
    }

    fn pass_through(&mut self, tag: u16, request: &BlockRequest, wish: Wish) {
        self.counters.hits_lost += u64::from(wish.is_hit);
        let plan = plan(request, Advice::Passthrough, &self.terms);
        self.start(tag, request, &plan);
        self.note_promotion(tag, wish.promote);
    }

    /// Finds or begins a fill that has what a read misses.
    fn look(&mut self, cache: &Cache<'_>, request: &BlockRequest, wish: Wish) -> Look {
        let (Some(extent), Some(priority)) = (wish.extent, wish.promote) else {
            return Look::Nothing;
        };
        let (offset, length) = (request.offset, request.length);
        let readable = cache.begin_split_read(offset, length);
        let (first, bytes) = self.missing(request, readable);
        if let Some((buffer, fill)) = self.fills.find(cache, first, bytes) {
            return Look::Fill(buffer, fill, readable);
        }
        // What it can read may be more once it has a claim.
        if let Some((pin, _)) = readable {
            cache.end_read(pin);
        }
        // A hint would fill all of the block.
        let later = match extent {
            Extent::Block => Look::Nothing,
            Extent::Request | Extent::Around => Look::Refused,
        };
        if !self.fills.has_room() {
            return self.wait_or(cache, request, later);
        }
        self.wake.queues();
        match cache.begin_fill(offset, length, extent, priority) {
            FillStart::Begun(fill) => {
                cache.account_fill(&fill, request.tenant);
                if cache.is_short_of_slots() {
                    self.wake.mover();
                }
                let buffer = self.begin_fill(fill);
                Look::Fill(buffer, fill, cache.begin_split_read(offset, length))
            }
            FillStart::Busy => self.wait_or(cache, request, Look::Again),
            FillStart::Readable => Look::Again,
            FillStart::Later => {
                // It may have to free slots.
                self.wake.mover();
                later
            }
            FillStart::Refused => Look::Refused,
        }
    }

    /// Waits if some of what a read misses is being filled.
    fn wait_or(&self, cache: &Cache<'_>, request: &BlockRequest, otherwise: Look) -> Look {
        if cache.wait_for_fill(request.offset, request.length, self.number) {
            Look::Wait
        } else {
            otherwise
        }
    }

    /// The bytes from the first to the last region that a read cannot find in the slot, within its range.
    fn missing(&self, request: &BlockRequest, readable: Option<(SlotPin, u16)>) -> (u64, u64) {
        let (offset, end) = (request.offset, request.offset + request.length);
        let Some((_, readable)) = readable else {
            return (offset, request.length);
        };
        let missing = self.regions(offset, request.length) & !readable;
        let block = offset - u64::from(self.grain.in_cache_block(offset));
        let (first, last) = self.grain.bytes_of(missing);
        let first = offset.max(block + u64::from(first));
        let last = end.min(block + u64::from(last));
        (first, last.saturating_sub(first))
    }

    /// Bytes of a read in these regions of its cache block.
    fn bytes_in(&self, request: &BlockRequest, regions: u16) -> u64 {
        let block = request.offset - u64::from(self.grain.in_cache_block(request.offset));
        let regions = (0..REGIONS).map(|region| 1 << region & regions);
        let bytes = regions.filter(|&region| region != 0).map(|region| {
            let (first, last) = self.grain.bytes_of(region);
            let end = (block + u64::from(last)).min(request.offset + request.length);
            end.saturating_sub(request.offset.max(block + u64::from(first)))
        });
        bytes.sum()
    }

    /// The regions of its cache block that a range touches.
    fn regions(&self, offset: u64, length: u64) -> u16 {
        let sectors = u32::try_from(length / SECTOR_SIZE).unwrap_or(u32::MAX);
        regions(self.grain.cache_shift, offset / SECTOR_SIZE, sectors)
    }

    fn begin_fill(&mut self, fill: Fill) -> FillBuffer {
        self.counters.fills += 1;
        self.counters.fill_bytes += u64::from(fill.length);
        let buffer = self.fills.begin(fill);
        self.todos.push(Todo::Fill(buffer));
        buffer
    }

    /// Starts a read with what a fill has and, if it is pinned, what the slot has.
    fn read_filled(
        &mut self,
        tag: u16,
        request: &BlockRequest,
        (buffer, fill): (FillBuffer, &Fill),
        readable: Option<(SlotPin, u16)>,
    ) {
        let filled = self.regions(fill.offset, fill.length.into());
        let wanted = self.regions(request.offset, request.length);
        let legs = Legs::of_read(wanted, readable, filled);
        let from_slot = readable.map_or(0, |(_, readable)| self.bytes_in(request, readable));
        self.counters.hit_bytes += from_slot;
        self.counters.filled += 1;
        self.counters.filled_bytes += request.length - from_slot;
        self.start_split(tag, request, legs);
        if legs.needs_fill() {
            self.fills.add_reader(buffer);
            self.tags.slot(tag).in_flight.buffer = Some(Buffer::Fill(buffer));
        }
        self.issue_piece(tag);
    }

    fn start_split(&mut self, tag: u16, request: &BlockRequest, legs: Legs) {
        let slot_delta = match (legs, self.cache) {
            (Legs::Split { pin, .. }, Some(cache)) => cache.slot_delta(pin, request.offset),
            _ => 0,
        };
        self.tags.slot(tag).in_flight = InFlight::split(request, legs, slot_delta, self.grain);
    }

    /// Issues the next piece of a split read, or waits until it is there.
    pub(super) fn issue_piece(&mut self, tag: u16) {
        let in_flight = self.tags.in_flight(tag);
        let (offset, length) = in_flight.range();
        if offset + length > self.limits.reach * SECTOR_SIZE {
            return self.go_on(tag, Next::Failed(Errno::EIO));
        }
        let Some(fill) = in_flight.awaited_fill() else {
            return self.todos.push(Todo::Io(tag));
        };
        match self.fills.get(fill).stage {
            Stage::Loading => {
                self.tags.shift(tag, Owner::InFlight, Owner::Waiting);
                self.fills.wait(fill, tag);
            }
            Stage::Storing | Stage::Loaded => self.todos.push(Todo::Io(tag)),
            Stage::Failed | Stage::Free => self.restart(tag),
        }
    }

    /// The fill that a read waits for has failed.
    #[cold]
    fn restart(&mut self, tag: u16) {
        let next = self.fall_back(tag, Errno::EIO);
        self.go_on(tag, next);
    }

    /// A read waits for the end of a claim.
    #[cold]
    fn park(&mut self, tag: u16, request: &BlockRequest, wish: Wish) {
        self.counters.fill_waits += 1;
        self.tags.slot(tag).in_flight = InFlight::parked(request, wish.extent, wish.promote, wish.waits + 1);
        self.tags.shift(tag, Owner::InFlight, Owner::Waiting);
        self.fills.park(tag);
    }

    /// [`Event::Rung`](crate::queue::Event::Rung): a claim that parked reads wait for may have ended.
    pub fn look_again(&mut self) {
        for _ in 0..self.fills.parked() {
            let Some(tag) = self.fills.unpark() else {
                return;
            };
            self.tags.shift(tag, Owner::Waiting, Owner::InFlight);
            let in_flight = self.tags.in_flight(tag);
            if in_flight.committed().is_some() {
                self.commit_again(tag);
                continue;
            }
            let waiting = in_flight.as_waiting();
            let request = in_flight.as_read();
            let (extent, promote, waits) = in_flight.unparked();
            let wish = Wish {
                extent,
                promote,
                is_hit: false,
                waits,
            };
            if request.offset + request.length > self.limits.reach * SECTOR_SIZE {
                self.refuse(tag, Errno::EIO);
            } else if let Some((request, route)) = waiting {
                self.start_change(tag, &request, route);
            } else {
                self.read_cached(tag, &request, wish);
            }
        }
    }

    /// The operation that a fill is at.
    pub(super) fn issue_fill(&mut self, fill: FillBuffer) -> Option<Effect> {
        let grain = self.grain;
        let io = self.fills.get(fill).io(|offset| grain.in_cache_block(offset))?;
        self.counters.io_submitted += 1;
        Some(Effect::Fill { fill, io })
    }

    /// [`Event::FillDone`](crate::queue::Event::FillDone).
    ///
    /// # Panics
    /// If the fill had no operation in flight.
    pub fn fill_done(&mut self, fill: FillBuffer, result: i32) {
        let block_mask = self.grain.block_mask;
        let filling = self.fills.get(fill);
        let is_loading = filling.stage == Stage::Loading;
        assert!(
            filling.is_busy(),
            "an operation of {fill:?} completed, but it has none"
        );
        match filling.advance(result, block_mask) {
            FillNext::Done if is_loading => self.loaded(fill),
            FillNext::Done => self.end_fill(fill, Stage::Loaded, true),
            FillNext::Issue if self.phase < Phase::Abandoning => self.todos.push(Todo::Fill(fill)),
            FillNext::Issue if is_loading => self.end_fill(fill, Stage::Failed, false),
            FillNext::Issue => self.end_fill(fill, Stage::Loaded, false),
            FillNext::Failed(_) if is_loading => self.load_failed(fill),
            FillNext::Failed(errno) => self.store_failed(fill, errno),
        }
    }

    /// A fill has its data: the reads that wait may copy it, and it goes to the slot.
    fn loaded(&mut self, fill: FillBuffer) {
        let filling = self.fills.get(fill);
        filling.stage = Stage::Storing;
        let of = filling.of;
        while let Some(tag) = self.fills.next_waiter(fill) {
            self.tags.shift(tag, Owner::Waiting, Owner::InFlight);
            self.todos.push(Todo::Io(tag));
        }
        let is_current = self
            .cache
            .zip(of)
            .is_some_and(|(cache, of)| cache.is_current(&of));
        if is_current && self.phase < Phase::Abandoning {
            self.todos.push(Todo::Fill(fill));
        } else {
            self.counters.fills_overtaken += u64::from(!is_current);
            self.end_fill(fill, Stage::Loaded, false);
        }
    }

    /// The backing device has failed a fill. Each read that waits for it finds out for itself what it can read.
    #[cold]
    fn load_failed(&mut self, fill: FillBuffer) {
        self.counters.fills_failed += 1;
        // First: the last of its readers frees the buffer.
        self.end_fill(fill, Stage::Failed, false);
        while let Some(tag) = self.fills.next_waiter(fill) {
            self.tags.shift(tag, Owner::Waiting, Owner::InFlight);
            self.restart(tag);
        }
    }

    /// The cache device has failed a fill, whose readers have their data.
    #[cold]
    fn store_failed(&mut self, fill: FillBuffer, errno: Errno) {
        if let Some(cache) = self.cache {
            let during = "filling";
            self.detach(cache, CacheFailure::Device { during, errno });
        }
        self.counters.fills_failed += 1;
        self.end_fill(fill, Stage::Loaded, false);
    }

    /// A fill ends. `is_stored`: its data is in the slot.
    fn end_fill(&mut self, fill: FillBuffer, stage: Stage, is_stored: bool) {
        if let (Some(cache), Some(of)) = (self.cache, self.fills.get(fill).of) {
            let end = cache.end_fill(&of, is_stored);
            self.counters.fills_overtaken += u64::from(is_stored && !end.is_published);
            self.wake.queues();
            if end.wants_mover {
                self.wake.mover();
            }
        }
        self.fills.end(fill, stage);
    }
}

#[cfg(test)]
mod tests;
