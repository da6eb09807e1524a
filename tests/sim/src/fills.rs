//! Fills by the miss: the operations of machines that are no tag's, the buffers that they use, and the bells.

use super::bug::Bug;
use super::cache::overlap;
use super::fault::Fault;
use super::kernel::{Cqe, MAX_IN_A_ROW};
use super::op::{cache_range, is_write};
use super::pattern::{POISON, SECTOR, writer_of};
use super::sim::{Queue, Sim};
use super::world::World;
use super::{Check, index};
use ublk_bpf::cache::QueueSet;
use ublk_bpf::queue::{FillBuffer, FillIo, Io, UserCopy};

/// An operation of a fill that is out.
#[derive(Clone, Copy, Debug)]
pub(super) struct FillOp {
    pub(super) fill: FillBuffer,
    pub(super) io: FillIo,
}

/// The buffer of a fill.
#[derive(Clone, Debug)]
pub(super) struct FillMemory {
    pub(super) bytes: Vec<u8>,
    /// The block that it was last loaded for, and the slot that this had then.
    pub(super) block: u64,
    pub(super) slot: u32,
    /// Operations in a row that were not done.
    again: u8,
}

impl FillMemory {
    /// Those of a new server's queue.
    pub(super) fn of(world: &World) -> Vec<Self> {
        let bytes = world.cache.map_or(0, |cache| 1 << cache.shift);
        let memory = Self {
            bytes: vec![POISON; bytes],
            block: 0,
            slot: 0,
            again: 0,
        };
        vec![memory; usize::from(world.config().fill_buffers)]
    }
}

impl FillOp {
    /// Where it is on its device, where in the buffer, and how much it moves.
    pub(super) const fn parts(&self) -> (u64, u32, u32) {
        match self.io {
            FillIo::Load { offset, skip, len } | FillIo::Store { offset, skip, len } => (offset, skip, len),
        }
    }

    /// The range of a store on the cache device.
    pub(super) const fn stored(&self) -> Option<(u64, u64)> {
        match self.io {
            FillIo::Store { offset, len, .. } => Some((offset, len as u64)),
            FillIo::Load { .. } => None,
        }
    }
}

impl Queue<'_> {
    /// Whether a user copy from the buffer of a fill is out.
    fn copies_from(&self, fill: FillBuffer) -> bool {
        let mut ops = self.ops.iter();
        ops.any(|op| matches!(op.io, Io::Copy(UserCopy::Filled { fill: from, .. }) if from == fill))
    }

    /// The fills with an operation that is out, or that the machine was not told of yet.
    pub(super) fn unended_fills(&self) -> impl Iterator<Item = FillBuffer> + '_ {
        let told = self.kernel.cq.iter().filter_map(|cqe| match cqe {
            Cqe::FillDone { fill, .. } => Some(*fill),
            _ => None,
        });
        self.fills.iter().map(|op| op.fill).chain(told)
    }

    /// Whether the buffer is being loaded.
    pub(super) fn is_loading(&self, fill: FillBuffer) -> bool {
        let mut fills = self.fills.iter();
        fills.any(|op| op.fill == fill && op.stored().is_none())
    }
}

impl Sim<'_> {
    /// The machine issues an operation of a fill.
    pub(super) fn issue_fill_op(&mut self, fill: FillBuffer, io: FillIo) -> Check {
        let op = FillOp { fill, io };
        self.check_fill_op(&op).map_err(|why| format!("{why}: {op:?}"))?;
        self.issued += 1;
        if let (FillIo::Load { offset, .. }, Some(side)) = (io, &self.cache) {
            let memory = &mut self.queue.fill_memory[usize::from(fill.0)];
            memory.block = offset >> side.of.shift;
            memory.slot = side.entry(offset / 512).slot();
        }
        self.queue.fills.push(op);
        Ok(())
    }

    fn check_fill_op(&self, op: &FillOp) -> Check {
        let Some(side) = &self.cache else {
            return Err("a fill without a cache".into());
        };
        let (offset, skip, len) = op.parts();
        if usize::from(op.fill.0) >= self.queue.fill_memory.len() {
            return Err("no such fill buffer".into());
        }
        if self.queue.fills.iter().any(|other| other.fill == op.fill) {
            return Err("two operations of one fill".into());
        }
        let block_bytes = side.block_sectors() * 512;
        let mask = u64::from(self.world.logical_block) - 1;
        if len == 0 || u64::from(skip) + u64::from(len) > block_bytes || (offset | u64::from(len)) & mask != 0
        {
            return Err("outside the buffer, or not aligned".into());
        }
        if offset % block_bytes != u64::from(skip) && op.stored().is_none() {
            return Err("not at its place in the buffer".into());
        }
        let Some(stored) = op.stored() else {
            if self.queue.copies_from(op.fill) {
                return Err("a buffer is loaded that is being copied from".into());
            }
            if offset / 512 + u64::from(len) / 512 > self.world.sectors() {
                return Err("beyond the device".into());
            }
            return Ok(());
        };
        if side.sector_of(offset).is_none() || side.is_filling(stored) {
            return Err("in no slot, or in one that the mover is filling".into());
        }
        let queues = || std::iter::once(&self.queue).chain(&self.others);
        let written = queues()
            .flat_map(|queue| &queue.ops)
            .filter(|other| is_write(&other.io))
            .filter_map(|other| cache_range(&other.io));
        let filled = queues().flat_map(|queue| &queue.fills).filter_map(FillOp::stored);
        if written.chain(filled).any(|other| overlap(other, stored)) {
            return Err("two writes to one place of a slot".into());
        }
        Ok(())
    }

    /// Some operation of a fill is carried out and completes.
    pub(super) fn execute_fill(&mut self) -> Check {
        let chosen = self.rng.index(self.queue.fills.len());
        let op = self.queue.fills.swap_remove(chosen);
        let (_, _, len) = op.parts();
        let rate = self.world.io_faults;
        let is_store = op.stored().is_some();
        let fails = if is_store {
            self.cache_fails()
        } else {
            self.rng.chance(rate / 8)
        };
        let again = &mut self.queue.fill_memory[usize::from(op.fill.0)].again;
        let mut moved = len;
        let mut result = len.cast_signed();
        if fails {
            self.counts.hit(if is_store {
                Fault::CacheError
            } else {
                Fault::MissError
            });
            moved = self.rng.below32(len + 1);
            result = self.rng.pick(&[-5, -28, 0, i32::MAX]);
        } else if self.rng.chance(rate / 2) && *again < MAX_IN_A_ROW {
            *again += 1;
            (moved, result) = (0, self.rng.pick(&[-11, -4]));
        } else if self.rng.chance(rate) && *again < MAX_IN_A_ROW {
            *again += 1;
            self.counts.hit(Fault::ShortMiss);
            moved = 1 + self.rng.below32(len);
            result = moved.cast_signed();
        } else {
            *again = 0;
        }
        self.carry_out_fill_op(&op, moved, false)?;
        self.queue.kernel.cq.push_back(Cqe::FillDone {
            fill: op.fill,
            result,
        });
        Ok(())
    }

    /// The first `moved` bytes of an operation of a fill.
    fn carry_out_fill_op(&mut self, op: &FillOp, moved: u32, is_dying: bool) -> Check {
        let (offset, skip, _) = op.parts();
        let (skip, moved) = (index(skip.into()), index(moved.into()));
        let memory = &mut self.queue.fill_memory[usize::from(op.fill.0)];
        if op.stored().is_none() {
            super::backend::read(&self.disk, offset, &mut memory.bytes[skip..skip + moved]);
            return Ok(());
        }
        let Some(side) = &mut self.cache else {
            return Ok(());
        };
        let first = memory.block * side.block_sectors();
        for (at, bytes) in (skip..)
            .step_by(SECTOR)
            .zip(memory.bytes[skip..skip + moved].chunks(SECTOR))
        {
            let sector = first + at as u64 / 512;
            let on_device = offset + (at - skip) as u64;
            let Some(writer) = writer_of(&memory.bytes[at..at + SECTOR], sector) else {
                return Err(format!(
                    "{op:?} stores for sector {sector} what was never written"
                ));
            };
            // A device that lives stores sectors whole. After a death, one may hold both, which matters only if they differ.
            if bytes.len() == SECTOR {
                side.write(on_device, Some((writer, sector)));
            } else if is_dying && !side.holds(on_device, Some(writer), sector) {
                side.write(on_device, None);
            }
        }
        Ok(())
    }

    /// What the fills of a dead server had in flight happens, or not, or in part.
    pub(super) fn fill_ops_of_the_dead(&mut self) -> Check {
        for op in std::mem::take(&mut self.queue.fills) {
            let moved = self.rng.below32(op.parts().2 + 1);
            self.carry_out_fill_op(&op, moved, true)?;
        }
        Ok(())
    }

    /// Copies a part of a fill's buffer to a request's pages.
    pub(super) fn copy_filled(
        &mut self,
        tag: u16,
        fill: FillBuffer,
        skip: u32,
        pages: std::ops::Range<usize>,
    ) -> Check {
        if self.queue.is_loading(fill) {
            return Err(format!("{fill:?} is copied from while it is loaded"));
        }
        let memory = &self.queue.fill_memory[usize::from(fill.0)];
        let from = index(skip.into());
        let bytes = &memory.bytes[from..from + pages.len()];
        self.queue.kernel.tags[usize::from(tag)].request.pages[pages].copy_from_slice(bytes);
        Ok(())
    }

    /// These queues are rung.
    pub(super) fn ring(&mut self, queues: QueueSet, caller: Option<u16>) {
        if self.bug == Some(Bug::ForgetToRing) {
            return;
        }
        for queue in std::iter::once(&mut self.queue).chain(&mut self.others) {
            queue.is_rung |= queues.contains(queue.number) && caller != Some(queue.number);
        }
    }

    /// The mover's thread rings for those whose wait it has ended.
    pub(super) fn mover_rings(&mut self) {
        if let Some(side) = &self.cache {
            let woken = side.cache.take_woken();
            self.ring(woken, None);
        }
    }
}
