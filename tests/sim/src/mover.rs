//! The mover as one more actor beside the queues, and what becomes of its operations.

use std::time::Duration;

use super::bug::Bug;
use super::cache::{Fill, Side, Start, overlap, trusted};
use super::fault::Fault;
use super::fills::FillOp;
use super::history::End;
use super::op::{cache_range, is_write};
use super::sim::{Queue, Sim};
use super::{Check, index};
use ublk_bpf::cache::{MoverIo, Rest, Trust};

impl Sim<'_> {
    /// The mover does something, or something happens to it.
    pub(super) fn promote(&mut self) -> Check {
        match self.rng.below(4) {
            0 => self.begin_fills()?,
            1 => self.tell_mover()?,
            _ => self.carry_out_fill(),
        }
        self.mover_rings();
        Ok(())
    }

    fn begin_fills(&mut self) -> Check {
        let now = Duration::from_millis(self.now);
        for _ in 0..=self.rng.below(4) {
            let Some(side) = &mut self.cache else {
                return Ok(());
            };
            match side.sleeps {
                Some(Rest::UntilWoken) => return Ok(()),
                Some(Rest::Until(then)) if now < then => return Ok(()),
                _ => {}
            }
            match side.mover.poll(now) {
                Ok(effect) => self.issue_fill(effect)?,
                Err(rest) => side.sleeps = Some(rest),
            }
        }
        Ok(())
    }

    /// The mover is told of the result of an operation.
    fn tell_mover(&mut self) -> Check {
        let next = self.cache.as_mut().and_then(|side| {
            let (job, result) = side.done.pop_front()?;
            side.wake();
            side.mover.done(job, result)
        });
        next.map_or(Ok(()), |effect| self.issue_fill(effect))
    }

    fn issue_fill(&mut self, effect: MoverIo) -> Check {
        let in_use = self.machines_on_cache();
        let Some(side) = &mut self.cache else {
            return Ok(());
        };
        if let MoverIo::Compare { job, buffer, len } = effect {
            let is_same = self.bug == Some(Bug::PublishUncompared) || side.is_same(job, buffer, len);
            let next = side.mover.compared(job, is_same);
            if next.is_none() {
                side.verifying.retain(|&(verified, _)| verified != job);
            }
            side.wake();
            return next.map_or(Ok(()), |effect| self.issue_fill(effect));
        }
        let (job, skip, len) = parts(&effect);
        if side.fills.iter().any(|fill| parts(&fill.effect).0 == job) {
            return Err(format!("two operations on one staging buffer: {effect:?}"));
        }
        if job >= side.mover.jobs() || len == 0 || u64::from(skip + len) > side.block_sectors() * 512 {
            return Err(format!("outside the staging buffers: {effect:?}"));
        }
        if let MoverIo::LoadSlot { buffer, .. } = effect
            && (buffer < side.mover.jobs() || buffer >= side.mover.buffers())
        {
            return Err(format!("not a verification's other buffer: {effect:?}"));
        }
        if let MoverIo::Store { offset, len, .. } | MoverIo::LoadSlot { offset, len, .. } = effect {
            let range = (offset, u64::from(len));
            if side.sector_of(offset).is_none() || side.is_filling(range) {
                return Err(format!("in no slot, or in one that is being filled: {effect:?}"));
            }
            if in_use.iter().any(|&used| overlap(used, range)) {
                return Err(format!("a slot is filled or verified that is in use: {effect:?}"));
            }
        }
        if let MoverIo::LoadSlot { offset, skip: 0, .. } = effect {
            side.verifying.push((job, side.slot_of(offset)));
        }
        self.issued += 1;
        side.fills.push(Fill { effect, again: 0 });
        Ok(())
    }

    /// What machines write on the cache device now. A read may be there that began before a write hid what is filled again:
    /// it is as old as that write, and finds what was there or what is there.
    fn machines_on_cache(&self) -> Vec<(u64, u64)> {
        let queues = std::iter::once(&self.queue).chain(&self.others);
        let of = |queue: &Queue<'_>| -> Vec<(u64, u64)> {
            let writes = queue.ops.iter().filter(|op| is_write(&op.io));
            let ops = writes.filter_map(|op| cache_range(&op.io));
            ops.chain(queue.fills.iter().filter_map(FillOp::stored)).collect()
        };
        queues.flat_map(of).collect()
    }

    /// Some operation of the mover that is out is carried out.
    fn carry_out_fill(&mut self) {
        let rate = self.world.io_faults;
        let Some(side) = &mut self.cache else {
            return;
        };
        if side.fills.is_empty() {
            return;
        }
        let chosen = self.rng.index(side.fills.len());
        let fill = side.fills.swap_remove(chosen);
        let (job, _, len) = parts(&fill.effect);
        let is_on_cache = !matches!(fill.effect, MoverIo::Load { .. });
        let fails = if is_on_cache {
            side.is_broken || self.rng.chance(rate / 8) && self.rng.chance(20)
        } else {
            self.rng.chance(rate / 8)
        };
        let mut moved = len;
        let mut result = len.cast_signed();
        if fails {
            self.counts.hit(if is_on_cache {
                Fault::CacheError
            } else {
                Fault::FillError
            });
            moved = self.rng.below32(len + 1);
            result = self.rng.pick(&[-5, -28, 0, i32::MAX]);
        } else if self.rng.chance(rate / 2) && fill.again == 0 {
            self.counts.hit(Fault::FillAgain);
            (moved, result) = (0, self.rng.pick(&[-11, -4]));
        } else if self.rng.chance(rate / 2) {
            self.counts.hit(Fault::ShortFill);
            moved = 1 + self.rng.below32(len);
            result = moved.cast_signed();
        }
        self.copy(&fill.effect, moved, false);
        if let Some(side) = &mut self.cache {
            side.done.push_back((job, result));
        }
    }

    /// The first `moved` bytes of an operation of the mover.
    fn copy(&mut self, effect: &MoverIo, moved: u32, is_dying: bool) {
        let Some(side) = &mut self.cache else {
            return;
        };
        let (job, skip, _) = parts(effect);
        let buffers = usize::from(side.mover.buffers());
        if side.staging.len() < buffers {
            let block = index(side.block_sectors());
            side.staging.resize(buffers, vec![None; block]);
        }
        // The content of a sector that was moved in part is unknown. A device that lives stores sectors whole.
        for i in 0..u64::from(moved.div_ceil(512)) {
            let is_whole = (i + 1) * 512 <= u64::from(moved);
            let staged = index(u64::from(skip / 512) + i);
            match *effect {
                MoverIo::Load { offset, .. } => {
                    let sector = offset / 512 + i;
                    side.staging[usize::from(job)][staged] =
                        is_whole.then(|| (self.disk.read(index(sector)), sector));
                }
                MoverIo::Store { offset, .. } if is_whole || is_dying => {
                    let content = side.staging[usize::from(job)][staged].filter(|_| is_whole);
                    side.write(offset + i * 512, content);
                }
                MoverIo::LoadSlot { buffer, offset, .. } => {
                    side.staging[usize::from(buffer)][staged] =
                        side.read(offset + i * 512).filter(|_| is_whole);
                }
                _ => {}
            }
        }
    }

    /// What the mover of a dead server had in flight happens, or not, or in part.
    pub(super) fn fills_of_the_dead(&mut self) {
        let fills = self.cache.as_mut().map(|side| std::mem::take(&mut side.fills));
        for fill in fills.unwrap_or_default() {
            let moved = self.rng.below32(parts(&fill.effect).2 + 1);
            self.copy(&fill.effect, moved, true);
        }
    }

    /// Without a server, another program writes to the backing device. Says whether.
    pub(super) fn maybe_change_backing(&mut self) -> bool {
        let shows = matches!(
            self.bug,
            None | Some(Bug::BelieveSurvivors | Bug::PublishUncompared | Bug::PublishOvertaken)
        );
        if self.cache.is_none() || !shows || !self.rng.chance(400) {
            return false;
        }
        self.counts.hit(Fault::BackingChanged);
        for _ in 0..=self.rng.below(3) {
            // Neither the last request that ended nor the next that begins is at the same time.
            self.now += 1;
            let id = self.next_id();
            let sector = self.rng.index(self.disk.sectors());
            self.history.begin(sector, id, id, self.now);
            let oldest_read = self.oldest_read();
            self.history.end(sector, id, End::Durable, self.now, oldest_read);
            self.disk.write(sector, id, true);
            self.now += 1;
        }
        self.mark_what_is_there();
        true
    }

    /// Perhaps the cache device fails for good, or is another after all.
    pub(super) fn maybe_break(&mut self) {
        let rate = u64::from(self.world.io_faults);
        let breaks = self.rng.below(500_000) < rate;
        if let Some(side) = &mut self.cache
            && breaks
            && !side.is_broken
        {
            side.is_broken = true;
            self.counts.hit(Fault::CacheBroken);
        }
    }

    /// What is not being written is the same on both devices. After a failure, nothing is left in the cache.
    pub(super) fn check_cache(&self) -> Check {
        self.cache.as_ref().map_or(Ok(()), |side| {
            side.check(self.world, |sector| self.disk.read(sector))
        })
    }

    /// A new server has a cache of its own.
    pub(super) fn new_cache(&mut self, start: Start) -> Check {
        let Some(side) = &mut self.cache else {
            return Ok(());
        };
        let left = match self.bug {
            Some(Bug::TrustUnfinished | Bug::BelieveSurvivors) => Trust::Proven,
            _ => Trust::ToVerify,
        };
        let is_cold = start == Start::Cold;
        let (saved, trust) = match start {
            Start::Cold if self.bug == Some(Bug::TrustAfterPowerCut) => {
                (trusted(side, self.bug), Trust::Proven)
            }
            Start::Cold => (Vec::new(), Trust::Proven),
            Start::Saved(saved, trust) => (saved, trust),
            Start::Left => (trusted(side, self.bug), left),
        };
        side.counters.add(side.mover.counters());
        (side.counters.used, side.counters.unverified) = (0, 0);
        let place = &side.places[side.servers];
        side.servers += 1;
        side.cache = Side::new_cache(self.world, &side.of, side.maps, place);
        side.mover = Side::new_mover(&side.of, side.cache);
        if is_cold && self.bug != Some(Bug::KeepGhosts) {
            side.cache.reset();
        } else {
            side.cache.clear();
        }
        if is_cold && side.has_heat() {
            return Err("nothing is known of any block, and one has heat".into());
        }
        side.fills.clear();
        side.verifying.clear();
        side.done.clear();
        side.staging.clear();
        side.is_broken = false;
        side.sleeps = None;
        side.is_stopping = false;
        // A block of which nothing but what is beyond the end of the device is valid was being filled.
        let count = saved.iter().filter(|of| side.has_valid(self.world, of)).count();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let restored = side.mover.restore(saved, trust);
        if restored != count {
            return Err(format!("of {count} blocks {restored} were put back"));
        }
        Ok(())
    }
}

/// Staging buffer, where in it, and how much.
const fn parts(effect: &MoverIo) -> (u16, u32, u32) {
    match *effect {
        MoverIo::Load { job, skip, len, .. }
        | MoverIo::Store { job, skip, len, .. }
        | MoverIo::LoadSlot { job, skip, len, .. } => (job, skip, len),
        MoverIo::Compare { job, len, .. } => (job, 0, len),
        MoverIo::StoreBacking { .. }
        | MoverIo::FlushBacking { .. }
        | MoverIo::FlushCache { .. }
        | MoverIo::StoreRecord { .. }
        | MoverIo::StorePages { .. } => panic!("these caches have no write-back"),
    }
}
