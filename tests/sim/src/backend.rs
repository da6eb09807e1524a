//! Operations that the machine issues: whether they may be, and what becomes of them.

use super::bug::Bug;
use super::cache::overlap;
use super::client::sectors;
use super::fault::Fault;
use super::fills::FillOp;
use super::kernel::{Cqe, MAX_IN_A_ROW, Place, Request};
use super::op::{
    Op, cache_range, check_durable, device_range, is_write, length, page_range, serves, staging_of,
};
use super::pattern::{SECTOR, STALE, fill, writer_of};
use super::sim::Sim;
use super::{Check, index};
use ublk_bpf::queue::{Io, Tier, UserCopy};
use ublk_bpf::sys::uapi::UBLK_IO_F_NEED_REG_BUF;

impl Sim<'_> {
    /// The machine issues an operation.
    pub(super) fn issue(&mut self, tag: u16, io: Io) -> Check {
        self.check_issue(tag, &io)
            .map_err(|why| format!("{why}: tag {tag}, {io:?}"))?;
        self.issued += 1;
        let op = Op {
            tag,
            io,
            number: self.issued,
            writes: self.disk.writes(),
        };
        self.lose_pin(&op);
        self.queue.ops.push(op);
        Ok(())
    }

    fn check_issue(&mut self, tag: u16, io: &Io) -> Check {
        if self.queue.ops.iter().any(|op| op.tag == tag) {
            return Err("two operations of one tag".into());
        }
        if let Some((buffer, skip, len)) = staging_of(io) {
            if self
                .queue
                .ops
                .iter()
                .any(|op| staging_of(&op.io).is_some_and(|(other, ..)| other == buffer))
            {
                return Err("two operations on one staging buffer".into());
            }
            let bytes = self.world.config().staging_bytes;
            if buffer.0 >= self.world.staging_buffers || skip + len > bytes {
                return Err("outside the staging buffers".into());
            }
        }
        let block = u64::from(self.world.logical_block);
        // A request may be kept before it is refused.
        let is_delay = matches!(io, Io::Delay { .. });
        if !is_delay && self.unsupported(self.queue.kernel.tags[usize::from(tag)].request.op()) {
            return Err("an operation that the backing does not have".into());
        }
        self.check_on_cache(io)?;
        let place = self.place(tag, io)?;
        let slot = self.queue.kernel.tag(tag);
        let request = &slot.request;
        if slot.place != Place::Server || (request.bad && !is_delay) || !serves(io, request.op()) {
            return Err(format!("no operation for {:?} {request:?}", slot.place));
        }
        if length(io) == Some(0) {
            return Err("an operation without length".into());
        }
        if let Some((offset, len)) = place {
            let first = request.sector * 512;
            let last = first + u64::from(request.nr_sectors) * 512;
            if offset < first || offset + len > last || offset % block != 0 || len % block != 0 {
                return Err("outside the request's range, or not aligned".into());
            }
        }
        if let Some((at, len)) = page_range(io)
            && index(u64::from(at) + u64::from(len)) > request.pages.len()
        {
            return Err("outside the request's pages".into());
        }
        let direct = matches!(io, Io::Read { .. } | Io::Write { .. } | Io::Zero { .. });
        if direct && request.op_flags & UBLK_IO_F_NEED_REG_BUF != 0 {
            return Err("pages that are not registered".into());
        }
        check_durable(io, request, self.world.volatile_cache())
    }

    /// The range on the backing device that an operation is about.
    fn place(&self, tag: u16, io: &Io) -> Result<Option<(u64, u64)>, String> {
        let Some((offset, len)) = cache_range(io) else {
            return Ok(device_range(io));
        };
        let sector = self.queue.kernel.tags[usize::from(tag)].request.sector;
        let side = self.cache.as_ref().ok_or("there is no cache")?;
        let offset = side.backing_offset(offset, sector).ok_or("in no slot")?;
        Ok(Some((offset, len)))
    }

    /// Nothing is written where the mover or another request writes. What reads find is checked.
    fn check_on_cache(&self, io: &Io) -> Check {
        let (Some(side), Some(range)) = (&self.cache, cache_range(io)) else {
            return Ok(());
        };
        if is_write(io) && side.is_filling(range) {
            return Err("a slot is written to that is being filled".into());
        }
        let queues = std::iter::once(&self.queue).chain(&self.others);
        let mut others = queues.flat_map(|queue| &queue.ops).filter(|op| is_write(&op.io));
        let meets = |op: &Op| cache_range(&op.io).is_some_and(|other| overlap(other, range));
        if is_write(io) && others.any(meets) {
            return Err("two writes to one place of a slot".into());
        }
        let mut fills = std::iter::once(&self.queue)
            .chain(&self.others)
            .flat_map(|queue| &queue.fills)
            .filter_map(FillOp::stored);
        if is_write(io) && fills.any(|other| overlap(other, range)) {
            return Err("two writes to one place of a slot".into());
        }
        Ok(())
    }

    /// Some operation that is out is carried out and completes.
    pub(super) fn execute(&mut self) -> Check {
        let (ops, fills) = (self.queue.ops.len(), self.queue.fills.len());
        if ops + fills == 0 {
            return Ok(());
        }
        if self.rng.index(ops + fills) < fills {
            let pace = self.world.cache.map_or(0, |cache| cache.fill_pace);
            if self.rng.chance(pace) {
                return self.execute_fill();
            }
        }
        if ops == 0 {
            return Ok(());
        }
        let chosen = self.rng.index(self.queue.ops.len());
        let op = self.queue.ops.swap_remove(chosen);
        if self.is_late(&op) {
            self.queue.ops.push(op);
            return Ok(());
        }
        if self.queue.ops.iter().any(|other| other.number < op.number) {
            self.counts.hit(Fault::Reordered);
        }
        let result = self.perform(&op)?;
        let reported = self.told(&op, result);
        self.queue.kernel.cq.push_back(Cqe::IoDone {
            tag: op.tag,
            result: reported,
        });
        Ok(())
    }

    /// What the machine is told, if a bug lies to it.
    fn told(&self, op: &Op, result: i32) -> i32 {
        let whole = length(&op.io).map_or(0, u32::cast_signed);
        match self.bug {
            Some(Bug::TakeShortForWhole) if result > 0 => whole,
            Some(Bug::TakeErrorForWhole) if result < 0 => whole,
            _ => result,
        }
    }

    /// Carries an operation out, as far as it comes. Returns its result.
    fn perform(&mut self, op: &Op) -> Result<i32, String> {
        if matches!(op.io, Io::Delay { .. }) {
            self.counts.hit(Fault::Delayed);
            return Ok(-62);
        }
        let rate = self.world.io_faults;
        let is_copy = matches!(op.io, Io::Copy(_));
        let on_cache = cache_range(&op.io).is_some();
        if on_cache && self.cache_fails() {
            self.counts.hit(Fault::CacheError);
            self.carry_out_some(op)?;
            return Ok(self.rng.pick(&[-5, -28, -121, 0]));
        }
        let again = &mut self.queue.kernel.tag(op.tag).request.again;
        if self.rng.chance(rate / 2) && *again < MAX_IN_A_ROW {
            *again += 1;
            self.counts.hit(Fault::Again);
            return Ok(self.rng.pick(&[-11, -4]));
        }
        if !on_cache && self.rng.chance(rate / 8) {
            self.excuse(op.tag);
            if is_copy {
                self.counts.hit(Fault::CopyError);
                return Ok(-14);
            }
            self.counts.hit(Fault::BackendError);
            self.carry_out_some(op)?;
            return Ok(self.rng.pick(&[-5, -28, -95, -61, -121]));
        }
        let Some(len) = length(&op.io) else {
            self.carry_out_whole(op);
            return Ok(i32::from(self.rng.chance(10)));
        };
        let moved = if self.rng.chance(rate) {
            self.short(op, len, is_copy)
        } else {
            len
        };
        self.carry_out(op, moved)?;
        if moved == len && !on_cache && self.rng.chance(rate / 16) {
            self.counts.hit(Fault::Overlong);
            self.excuse(op.tag);
            return Ok((moved + 1 + self.rng.below32(4096)).cast_signed());
        }
        Ok(moved.cast_signed())
    }

    /// Whether an operation on the cache device fails. No request may fail with it.
    pub(super) fn cache_fails(&mut self) -> bool {
        let rate = self.world.io_faults / 8;
        let is_broken = self.cache.as_ref().is_some_and(|side| side.is_broken);
        is_broken || (self.rng.chance(rate) && self.rng.chance(20))
    }

    /// The request of this tag may fail now.
    fn excuse(&mut self, tag: u16) {
        self.queue.kernel.tag(tag).request.excused = true;
    }

    /// How far a short operation comes.
    fn short(&mut self, op: &Op, len: u32, is_copy: bool) -> u32 {
        let device = device_range(&op.io).is_some();
        if device && cache_range(&op.io).is_none() && self.rng.chance(60) {
            self.counts.hit(Fault::NothingMoved);
            self.excuse(op.tag);
            return 0;
        }
        let block = self.world.logical_block;
        let request = &mut self.queue.kernel.tag(op.tag).request;
        let mut moved = 1 + self.rng.below32(len);
        if device && (moved < block || self.rng.chance(500)) {
            // Whole blocks, or at least one if this happens too often in a row.
            moved = (moved / block * block).max(if request.again < MAX_IN_A_ROW { 1 } else { block });
        }
        if moved == len {
            return moved;
        }
        if device && moved < block {
            request.again += 1;
        }
        self.counts.hit(match op.io {
            _ if is_copy => Fault::ShortCopy,
            Io::Zero { .. } => Fault::ShortZero,
            Io::Write { .. } | Io::Store { .. } => Fault::ShortWrite,
            _ => Fault::ShortRead,
        });
        if device && !moved.is_multiple_of(block) {
            self.counts.hit(Fault::UnalignedShort);
        }
        moved
    }

    /// A failing operation may have done some of its work. So may one of a server that dies.
    pub(super) fn carry_out_some(&mut self, op: &Op) -> Check {
        match length(&op.io) {
            Some(len) => {
                let moved = self.rng.below32(len + 1);
                self.carry_out(op, moved)
            }
            None => {
                if self.rng.chance(500) {
                    self.carry_out_whole(op);
                }
                Ok(())
            }
        }
    }

    /// An operation without data.
    fn carry_out_whole(&mut self, op: &Op) {
        let range = sectors(&self.queue.kernel.tag(op.tag).request);
        match op.io {
            Io::Flush { .. } if self.bug != Some(Bug::SkipFlush) => self.disk.flush(op.writes),
            Io::Discard { .. } => {
                for sector in range {
                    if self.rng.chance(500) {
                        self.disk.write(sector, 0, false);
                    }
                }
            }
            Io::WriteZeroes { .. } => {
                for sector in range {
                    self.disk.write(sector, 0, false);
                }
            }
            _ => {}
        }
    }

    /// The first `moved` bytes of an operation with data.
    fn carry_out(&mut self, op: &Op, moved: u32) -> Check {
        let moved = index(u64::from(moved));
        let pages = page_range(&op.io).map_or(0..0, |(at, _)| range(at, moved));
        let number = staging_of(&op.io).map_or(0, |(buffer, ..)| usize::from(buffer.0));
        let staged = staging_of(&op.io).map_or(0..0, |(_, skip, _)| range(skip, moved));
        self.change_buffer(op.tag, pages.start);
        let source = match op.io {
            Io::Write { offset, durable, .. } => {
                Some((offset, durable, Source::Pages(op.tag, pages.clone())))
            }
            Io::Store {
                to: Tier::Cache,
                offset,
                durable,
                ..
            } if self.bug == Some(Bug::WriteFromPagesTwice) => {
                let place = self.place(op.tag, &op.io)?.map_or(offset, |(place, _)| place);
                let at = index(place) - index(self.queue.kernel.tag(op.tag).request.sector * 512);
                Some((offset, durable, Source::Pages(op.tag, at..at + moved)))
            }
            Io::Store { offset, durable, .. } => {
                Some((offset, durable, Source::Staging(number, staged.clone())))
            }
            _ => None,
        };
        if let Some((offset, durable, source)) = source {
            return self.write(op, offset, durable, source);
        }
        if let Some((offset, _)) = cache_range(&op.io) {
            self.read_cache(op.tag, offset, pages);
            return Ok(());
        }
        if let Io::Copy(UserCopy::Filled { fill, skip, .. }) = op.io {
            return self.copy_filled(op.tag, fill, skip, pages);
        }
        let request = &mut self.queue.kernel.tags[usize::from(op.tag)].request;
        let staging = &mut self.queue.staging[number][staged.clone()];
        match op.io {
            Io::Read { offset, .. } => {
                let slip = if self.bug == Some(Bug::MisplaceRead) {
                    512
                } else {
                    0
                };
                read(&self.disk, offset + slip, &mut request.pages[pages]);
            }
            Io::Load { offset, .. } => read(&self.disk, offset, staging),
            Io::Zero { .. } if self.bug == Some(Bug::SkipZero) => {}
            Io::Zero { .. } | Io::Copy(UserCopy::Zero { .. }) => request.pages[pages].fill(0),
            Io::Copy(UserCopy::Out { .. }) => {
                let slip = usize::from(self.bug == Some(Bug::MixStaging));
                let number = (number + slip) % self.queue.staging.len();
                request.pages[pages].copy_from_slice(&self.queue.staging[number][staged]);
            }
            Io::Copy(UserCopy::In { .. }) => staging.copy_from_slice(&request.pages[pages]),
            _ => {}
        }
        Ok(())
    }

    /// Puts whole sectors on the disk, after a look at what they are.
    fn write(&mut self, op: &Op, offset: u64, durable: bool, source: Source) -> Check {
        let Request { id, other, .. } = self.queue.kernel.tags[usize::from(op.tag)].request;
        let on_cache = cache_range(&op.io).is_some();
        let place = self.place(op.tag, &op.io)?.map_or(offset, |(place, _)| place);
        let bytes = match source {
            Source::Pages(tag, range) => &self.queue.kernel.tags[usize::from(tag)].request.pages[range],
            Source::Staging(buffer, range) => &self.queue.staging[buffer][range],
        };
        let durable = durable && self.bug != Some(Bug::ForgetDurable);
        for (bytes, sector) in bytes.chunks_exact(SECTOR).zip(place / 512..) {
            let content = match writer_of(bytes, sector) {
                Some(content) if content == id || Some(content) == other => content,
                found => {
                    return Err(format!(
                        "request {id} writes to sector {sector} what is {found:?}'s"
                    ));
                }
            };
            if on_cache {
                let on_device = offset + (sector * 512 - place);
                if let Some(side) = &mut self.cache {
                    side.write(on_device, Some((content, sector)));
                }
            } else if self.bug != Some(Bug::SkipWrite) {
                self.disk.write(index(sector), content, durable);
            }
        }
        Ok(())
    }

    /// Fills pages with what the cache device has at `offset`.
    fn read_cache(&mut self, tag: u16, offset: u64, pages: std::ops::Range<usize>) {
        let Some(side) = &self.cache else {
            return;
        };
        let pages = &mut self.queue.kernel.tags[usize::from(tag)].request.pages[pages];
        let mut whole = [STALE; SECTOR];
        for (bytes, at) in pages.chunks_mut(SECTOR).zip((offset..).step_by(SECTOR)) {
            match side.read(at) {
                Some((writer, sector)) => fill(&mut whole, writer, sector),
                None => whole.fill(STALE),
            }
            bytes.copy_from_slice(&whole[..bytes.len()]);
        }
    }
}

/// Where the bytes of a write are.
enum Source {
    Pages(u16, std::ops::Range<usize>),
    Staging(usize, std::ops::Range<usize>),
}

fn range(from: u32, len: usize) -> std::ops::Range<usize> {
    let from = index(u64::from(from));
    from..from + len
}

/// Fills `bytes` with what the disk has at `offset`, which is a sector's.
pub(super) fn read(disk: &super::disk::Disk, offset: u64, bytes: &mut [u8]) {
    let mut whole = [0; SECTOR];
    for (chunk, sector) in bytes.chunks_mut(SECTOR).zip(offset / 512..) {
        let writer = if index(sector) < disk.sectors() {
            disk.read(index(sector))
        } else {
            0
        };
        if chunk.len() == SECTOR {
            fill(chunk, writer, sector);
        } else {
            fill(&mut whole, writer, sector);
            chunk.copy_from_slice(&whole[..chunk.len()]);
        }
    }
}
