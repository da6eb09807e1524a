//! Fills: a block that was missed is copied from the backing device to a slot, after the request. This is what users know
//! as a promotion. It claims the regions that it fills, as a fill by a miss does.

use ublk_bpf_abi::{Extent, Priority};

use super::Mover;
use super::job::{Job, Kind};
use crate::cache::blocks::{FillAttempt, first_run};

impl Mover<'_, '_> {
    /// A job that fills what the block misses, unless that is nothing, is being filled or written, or has no slot to go to.
    pub(super) fn begin_fill(&mut self, block: u32, priority: Priority, tenant: u8) -> Option<Job> {
        let cache = self.cache;
        let all = cache.regions_of(block);
        let entry = cache.entry(block);
        // The first of the missing regions that adjoin, and then the next: nothing is stored where the slot may be read.
        let missing = match entry.is_present() {
            true => all & entry.hidden(),
            false => all,
        };
        let needed = if missing == 0 { all } else { first_run(missing) };
        if needed == 0 {
            return None;
        }
        let wish = cache.wish(block, needed, Extent::Block);
        match cache.blocks.begin_fill(block, &wish, || self.free_slot()) {
            FillAttempt::Begun {
                slot,
                regions,
                is_new,
            } => {
                if !is_new {
                    self.residents.set_priority(slot, priority);
                }
                let fill = cache.fill(block, slot, regions, is_new.then_some(priority));
                cache.account_fill(&fill, tenant);
                return Some(Job::new(Kind::Fill, fill, priority));
            }
            FillAttempt::Readable => self.residents.set_priority(cache.entry(block).slot(), priority),
            FillAttempt::Unverified => self.verify_soon(cache.entry(block).slot(), priority),
            FillAttempt::NoRoom => self.counters.no_room += 1,
            FillAttempt::Lost(slot) => {
                self.release(slot);
                self.counters.overtaken += 1;
            }
            FillAttempt::Busy | FillAttempt::Written | FillAttempt::Scattered => {}
        }
        None
    }

    /// A fill has ended. `is_stored`: the slot holds all of it.
    pub(super) fn end_fill(&mut self, job: &Job, is_stored: bool) {
        let is_published = self.cache.publish(&job.fill, is_stored);
        if is_stored {
            self.counters.staged_bytes += u64::from(job.fill.length);
            self.counters.promoted += u64::from(is_published);
            self.counters.overtaken += u64::from(!is_published);
        }
        if let Some(report) = job.fill.report {
            self.take_in(report);
        }
        if is_published
            && self.cache.entry(job.fill.block).hidden() != 0
            && let Some(dropped) = self.hints.push(job.fill.block, job.priority)
        {
            self.cache.tenants.unreserve(dropped);
        }
    }
}
