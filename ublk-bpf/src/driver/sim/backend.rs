//! Operations that the machine issues: whether they may be, and what becomes of them.

use super::bug::Bug;
use super::client::sectors;
use super::fault::Fault;
use super::kernel::{Cqe, MOST_IN_A_ROW, Place, Request};
use super::pattern::{POISON, SECTOR, fill, writer_of};
use super::{Check, Sim, index};
use crate::queue::{Io, Staging};
use crate::sys::uapi::{
    UBLK_IO_F_FUA, UBLK_IO_F_NEED_REG_BUF, UBLK_IO_OP_DISCARD, UBLK_IO_OP_FLUSH, UBLK_IO_OP_READ,
    UBLK_IO_OP_WRITE, UBLK_IO_OP_WRITE_ZEROES,
};

/// An operation that is out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    pub(super) tag: u16,
    pub(super) io: Io,
    /// In the order of their issue.
    number: u64,
    /// Writes that the disk had completed at its issue: what a flush must make durable.
    writes: u64,
}

/// Bytes that an operation moves, or `None` if it has no data.
const fn length(io: &Io) -> Option<u32> {
    match *io {
        Io::Read { len, .. }
        | Io::Write { len, .. }
        | Io::Zero { len, .. }
        | Io::Load { len, .. }
        | Io::Store { len, .. }
        | Io::CopyOut { len, .. }
        | Io::CopyIn { len, .. }
        | Io::CopyZero { len, .. } => Some(len),
        Io::Flush { .. } | Io::Discard { .. } | Io::WriteZeroes { .. } => None,
    }
}

/// The staging buffer of an operation.
const fn staging_of(io: &Io) -> Option<(Staging, u32, u32)> {
    match *io {
        Io::Load {
            staging, skip, len, ..
        }
        | Io::Store {
            staging, skip, len, ..
        }
        | Io::CopyOut {
            staging, skip, len, ..
        }
        | Io::CopyIn {
            staging, skip, len, ..
        } => Some((staging, skip, len)),
        _ => None,
    }
}

/// The device range of an operation, and where in the request it has to be.
const fn device_range(io: &Io) -> Option<(u64, u64)> {
    match *io {
        Io::Read { offset, len, .. }
        | Io::Write { offset, len, .. }
        | Io::Load { offset, len, .. }
        | Io::Store { offset, len, .. } => Some((offset, len as u64)),
        Io::Discard { offset, len, .. } | Io::WriteZeroes { offset, len, .. } => Some((offset, len)),
        _ => None,
    }
}

/// The part of the request's pages that an operation touches.
const fn page_range(io: &Io) -> Option<(u32, u32)> {
    match *io {
        Io::Read { at, len, .. }
        | Io::Write { at, len, .. }
        | Io::Zero { at, len }
        | Io::CopyOut { at, len, .. }
        | Io::CopyIn { at, len, .. }
        | Io::CopyZero { at, len } => Some((at, len)),
        _ => None,
    }
}

/// Operations that serve a request of this kind.
const fn serves(io: &Io, op: u8) -> bool {
    match io {
        Io::Read { .. } | Io::Zero { .. } | Io::Load { .. } | Io::CopyOut { .. } | Io::CopyZero { .. } => {
            op == UBLK_IO_OP_READ
        }
        Io::Write { .. } | Io::Store { .. } | Io::CopyIn { .. } => op == UBLK_IO_OP_WRITE,
        // A WRITE_ZEROES that must be durable is followed by one.
        Io::Flush { .. } => op == UBLK_IO_OP_FLUSH || op == UBLK_IO_OP_WRITE_ZEROES,
        Io::Discard { .. } => op == UBLK_IO_OP_DISCARD,
        Io::WriteZeroes { .. } => op == UBLK_IO_OP_WRITE_ZEROES,
    }
}

impl Sim<'_> {
    /// The machine issues an operation.
    pub(super) fn issue(&mut self, tag: u16, io: Io) -> Check {
        self.check_issue(tag, &io)
            .map_err(|why| format!("{why}: tag {tag}, {io:?}"))?;
        self.issued += 1;
        self.ops.push(Op {
            tag,
            io,
            number: self.issued,
            writes: self.disk.writes(),
        });
        Ok(())
    }

    fn check_issue(&mut self, tag: u16, io: &Io) -> Check {
        if self.ops.iter().any(|op| op.tag == tag) {
            return Err("two operations of one tag".into());
        }
        if let Some((buffer, skip, len)) = staging_of(io) {
            if self
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
        if self.unsupported(self.kernel.tags[usize::from(tag)].request.op()) {
            return Err("an operation that the backing does not have".into());
        }
        let slot = self.kernel.tag(tag);
        let request = &slot.request;
        if slot.place != Place::Server || request.bad || !serves(io, request.op()) {
            return Err(format!("no operation for {:?} {request:?}", slot.place));
        }
        if length(io) == Some(0) {
            return Err("an operation without length".into());
        }
        if let Some((offset, len)) = device_range(io) {
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

    /// Some operation that is out is carried out and completes.
    pub(super) fn execute(&mut self) -> Check {
        if self.ops.is_empty() {
            return Ok(());
        }
        let chosen = self.rng.index(self.ops.len());
        let op = self.ops.swap_remove(chosen);
        if self.ops.iter().any(|other| other.number < op.number) {
            self.counts.hit(Fault::Reordered);
        }
        let result = self.perform(&op)?;
        let reported = self.told(&op, result);
        self.kernel.cq.push_back(Cqe::IoDone {
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
        let rate = self.world.io_faults;
        let is_copy = matches!(
            op.io,
            Io::CopyOut { .. } | Io::CopyIn { .. } | Io::CopyZero { .. }
        );
        let again = &mut self.kernel.tag(op.tag).request.again;
        if self.rng.chance(rate / 2) && *again < MOST_IN_A_ROW {
            *again += 1;
            self.counts.hit(Fault::Again);
            return Ok(self.rng.pick(&[-11, -4]));
        }
        if self.rng.chance(rate / 8) {
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
        if moved == len && self.rng.chance(rate / 16) {
            self.counts.hit(Fault::Overlong);
            self.excuse(op.tag);
            return Ok((moved + 1 + self.rng.below32(4096)).cast_signed());
        }
        Ok(moved.cast_signed())
    }

    /// The request of this tag may fail now.
    fn excuse(&mut self, tag: u16) {
        self.kernel.tag(tag).request.excused = true;
    }

    /// How far a short operation comes.
    fn short(&mut self, op: &Op, len: u32, is_copy: bool) -> u32 {
        let device = device_range(&op.io).is_some();
        if device && self.rng.chance(60) {
            self.counts.hit(Fault::NothingMoved);
            self.excuse(op.tag);
            return 0;
        }
        let block = self.world.logical_block;
        let request = &mut self.kernel.tag(op.tag).request;
        let mut moved = 1 + self.rng.below32(len);
        if device && (moved < block || self.rng.chance(500)) {
            // Whole blocks, or at least one if this goes on for too long.
            moved = (moved / block * block).max(if request.again < MOST_IN_A_ROW { 1 } else { block });
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
        let range = sectors(&self.kernel.tag(op.tag).request);
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
        let source = match op.io {
            Io::Write { offset, durable, .. } => {
                Some((offset, durable, Source::Pages(op.tag, pages.clone())))
            }
            Io::Store { offset, durable, .. } => {
                Some((offset, durable, Source::Staging(number, staged.clone())))
            }
            _ => None,
        };
        if let Some((offset, durable, source)) = source {
            return self.write(
                self.kernel.tags[usize::from(op.tag)].request.id,
                offset,
                durable,
                source,
            );
        }
        let request = &mut self.kernel.tags[usize::from(op.tag)].request;
        let staging = &mut self.staging[number][staged.clone()];
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
            Io::Zero { .. } | Io::CopyZero { .. } => request.pages[pages].fill(0),
            Io::CopyOut { .. } => {
                let slip = usize::from(self.bug == Some(Bug::MixStaging));
                let number = (number + slip) % self.staging.len();
                request.pages[pages].copy_from_slice(&self.staging[number][staged]);
            }
            Io::CopyIn { .. } => staging.copy_from_slice(&request.pages[pages]),
            _ => {}
        }
        Ok(())
    }

    /// Puts whole sectors on the disk, after a look at what they are.
    fn write(&mut self, id: u64, offset: u64, durable: bool, source: Source) -> Check {
        let bytes = match source {
            Source::Pages(tag, range) => &self.kernel.tags[usize::from(tag)].request.pages[range],
            Source::Staging(buffer, range) => &self.staging[buffer][range],
        };
        let durable = durable && self.bug != Some(Bug::ForgetDurable);
        for (bytes, sector) in bytes.chunks_exact(SECTOR).zip(offset / 512..) {
            match writer_of(bytes, sector) {
                Some(writer) if writer == id => {}
                found => {
                    return Err(format!(
                        "request {id} writes to sector {sector} what is {found:?}'s"
                    ));
                }
            }
            if self.bug != Some(Bug::SkipWrite) {
                self.disk.write(index(sector), id, durable);
            }
        }
        Ok(())
    }

    /// The staging buffers of a new server.
    pub(super) fn new_staging(&self) -> Vec<Vec<u8>> {
        let bytes = index(u64::from(self.world.config().staging_bytes));
        vec![vec![POISON; bytes]; usize::from(self.world.staging_buffers)]
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

/// A write is durable exactly if it has to be.
fn check_durable(io: &Io, request: &Request, volatile_cache: bool) -> Check {
    let needed = request.op_flags & UBLK_IO_F_FUA != 0 && volatile_cache;
    match *io {
        Io::Write { durable, .. } | Io::Store { durable, .. } if durable != needed => {
            Err("durability is wrong".into())
        }
        _ => Ok(()),
    }
}

/// Fills `bytes` with what the disk has at `offset`, which is a sector's.
fn read(disk: &super::disk::Disk, offset: u64, bytes: &mut [u8]) {
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
