//! What drives the mover: it carries out its operations.

use std::ops::Range;
use std::time::Duration;

use ublk_bpf_abi::Priority;

use super::devices::{Io, Place, Side};
use super::life::Life;
use super::recovery::log_pages;
use super::{BLOCK, BLOCKS, Omission, Point, UNIT};
use crate::cache::{CommitIo, Mover, MoverIo};

impl Life<'_, '_, '_> {
    /// The mover may begin something.
    pub(super) fn poll_mover(&mut self) {
        self.now += Duration::from_millis(1 + self.world.random.below(150));
        if self.world.random.one_in(3) {
            let block = self.world.random.below(BLOCKS);
            self.cache.hint(block * BLOCK, Priority::Normal);
        }
        if let Ok(io) = self.mover.poll(self.now) {
            self.carry_out(io);
        }
    }

    fn carry_out(&mut self, io: MoverIo) {
        let operation = match io {
            MoverIo::Load { offset, len, .. } => Io::read(places(Side::Backing, offset, len)),
            MoverIo::LoadSlot { offset, len, .. } => Io::read(places(Side::Cache, offset, len)),
            MoverIo::Store {
                job,
                offset,
                skip,
                len,
            } => self.store((Side::Cache, offset, len), job, skip),
            MoverIo::StoreBacking {
                buffer, offset, len, ..
            } => self.store((Side::Backing, offset, len), buffer, 0),
            MoverIo::FlushBacking { .. } if self.world.omits(Omission::FlushOfCleaned) => Io::nothing(),
            MoverIo::FlushBacking { .. } => Io::flush(&mut self.world.devices, Side::Backing),
            MoverIo::FlushCache { job } if !is_of_checkpoint(&self.mover, job) => {
                self.commit_io(CommitIo::Flush)
            }
            MoverIo::FlushCache { .. } if self.world.omits(Omission::FlushOfCheckpoint) => Io::nothing(),
            MoverIo::FlushCache { .. } => Io::flush(&mut self.world.devices, Side::Cache),
            MoverIo::StoreRecord { offset, len, .. } => {
                self.commit_io(CommitIo::Record { offset, length: len })
            }
            MoverIo::StorePages {
                offset,
                len,
                is_durable,
                ..
            } => {
                let bytes = self.mover.page_bytes(len as usize);
                Io::write(log_pages(offset, &bytes), is_durable)
            }
            MoverIo::Compare { job, buffer, len } => {
                let is_same = self.buffers[staged(job, 0, len)] == self.buffers[staged(buffer, 0, len)];
                // Another program may have changed the backing device meanwhile.
                let is_same = is_same && !self.world.random.one_in(8);
                if let Some(next) = self.mover.compared(job, is_same) {
                    self.carry_out(next);
                }
                return;
            }
        };
        let operation = self.issue(operation);
        self.moving.push((io, operation));
    }

    fn store(&self, (side, offset, len): (Side, u64, u32), buffer: u16, skip: u32) -> Io {
        let units = self.buffers[staged(buffer, skip, len)].iter().cloned();
        Io::write(places(side, offset, len).zip(units), false)
    }

    /// Some operation of the mover goes on.
    pub(super) fn advance_mover(&mut self) {
        let Some((io, mut operation)) = self.world.random.take(&mut self.moving) else {
            return;
        };
        let Some(end) = self.advance(&mut operation) else {
            return self.moving.push((io, operation));
        };
        let (job, len) = job(&io);
        match io {
            MoverIo::Load {
                job: buffer, skip, ..
            }
            | MoverIo::LoadSlot { buffer, skip, .. } => {
                // What was read before an error; the rest of the buffer stays.
                let read = std::mem::take(&mut operation.read);
                let to = self.buffers[staged(buffer, skip, len)].iter_mut();
                to.zip(read).for_each(|(to, content)| *to = content);
            }
            _ => {}
        }
        let result = if end.is_ok() { len.cast_signed() } else { -5 };
        if let Some(next) = self.mover.done(job, result) {
            self.carry_out(next);
        }
    }
}

/// Where a staging buffer is among all, which are one behind the other.
fn staged(buffer: u16, skip: u32, len: u32) -> Range<usize> {
    let first = (u64::from(buffer) * BLOCK + u64::from(skip)) / UNIT;
    first as usize..(first + u64::from(len) / UNIT) as usize
}

fn places(side: Side, offset: u64, len: u32) -> impl Iterator<Item = Place> {
    (0..u64::from(len) / UNIT).map(move |unit| Place::at(side, offset + unit * UNIT))
}

/// The mover's last job is the checkpoint of the log.
fn is_of_checkpoint(mover: &Mover<'_, '_>, job: u16) -> bool {
    job + 1 == mover.jobs()
}

/// An operation's job, and how many bytes it moves.
const fn job(io: &MoverIo) -> (u16, u32) {
    match *io {
        MoverIo::Load { job, len, .. }
        | MoverIo::Store { job, len, .. }
        | MoverIo::LoadSlot { job, len, .. }
        | MoverIo::StoreBacking { job, len, .. }
        | MoverIo::StoreRecord { job, len, .. }
        | MoverIo::StorePages { job, len, .. }
        | MoverIo::Compare { job, len, .. } => (job, len),
        MoverIo::FlushBacking { job } | MoverIo::FlushCache { job } => (job, 0),
    }
}

pub(super) fn point(mover: &Mover<'_, '_>, io: &MoverIo) -> Point {
    match *io {
        MoverIo::Load { .. } => Point::FillLoad,
        MoverIo::Store { .. } => Point::FillStore,
        MoverIo::LoadSlot { .. } | MoverIo::Compare { .. } => Point::SlotLoad,
        MoverIo::StoreBacking { .. } => Point::CopyStore,
        MoverIo::FlushBacking { .. } => Point::CopyFlush,
        MoverIo::FlushCache { job } if is_of_checkpoint(mover, job) => Point::CheckpointFlush,
        MoverIo::FlushCache { .. } => Point::MoverCommitFlush,
        MoverIo::StoreRecord { .. } => Point::MoverCommitRecord,
        MoverIo::StorePages {
            is_durable: false, ..
        } => Point::CheckpointPages,
        MoverIo::StorePages { is_durable: true, .. } => Point::CheckpointHead,
    }
}
