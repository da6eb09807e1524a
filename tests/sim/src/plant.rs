//! Bugs of a cache, put in from outside: the index is a map, which the simulator may scribble on, and a lease may be given
//! back twice. So the rules that they break need no switch in production.

use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf_abi::{BlockState, IndexEntry};

use super::bug::Bug;
use super::client::sectors;
use super::kernel::Request;
use super::op::{Op, cache_range};
use super::sim::Sim;
use ublk_bpf::cache::{Cache, Mode};
use ublk_bpf::queue::{Event, Io, Tier};
use ublk_bpf::sys::uapi::{UBLK_IO_OP_DISCARD, UBLK_IO_OP_READ, UBLK_IO_OP_WRITE, UBLK_IO_OP_WRITE_ZEROES};

/// Words of the index before the machine was told of something.
pub(super) struct Before<'w>(Vec<(&'w AtomicU64, u64)>);

impl<'w> Sim<'w> {
    /// To be called before the machine is told of an event.
    pub(super) fn plant(&mut self, event: &Event) -> Before<'w> {
        let none = Before(Vec::new());
        let (Some(bug), Some(side)) = (self.bug, &self.cache) else {
            return none;
        };
        let Event::Arrived(arrival) = event else {
            return match *event {
                Event::IoDone { tag, .. } if bug == Bug::PublishFailedWrite => self.words_of(tag),
                _ => none,
            };
        };
        let request = &self.queue.kernel.tags[usize::from(arrival.tag)].request;
        let through = self
            .world
            .cache
            .is_some_and(|cache| cache.mode == Mode::WriteThrough);
        let is_write = request.op() == UBLK_IO_OP_WRITE;
        let is_discard = [UBLK_IO_OP_DISCARD, UBLK_IO_OP_WRITE_ZEROES].contains(&request.op());
        match bug {
            Bug::ForgetToMark | Bug::PublishOvertaken if is_write => self.words_of(arrival.tag),
            Bug::ForgetToInvalidate if is_write && !through => self.words_of(arrival.tag),
            Bug::DiscardBesideCache if is_discard => self.words_of(arrival.tag),
            Bug::JoinOvertaken if request.op() == UBLK_IO_OP_READ => self.revive_overtaken(),
            Bug::ReadInvalid if request.op() == UBLK_IO_OP_READ => self.unhide(arrival.tag),
            // The other write's regions seem to be free.
            Bug::OverlapWrites if is_write && !request.bad => {
                for word in side.words(&sectors(request)) {
                    let entry = IndexEntry(word.load(Ordering::SeqCst));
                    word.store(entry.with_writers(entry.writers(), 0).0, Ordering::SeqCst);
                }
                none
            }
            _ => none,
        }
    }

    /// To be called when it was told.
    pub(super) fn planted(&self, before: &Before<'_>) {
        for &(word, old) in &before.0 {
            let (was, is) = (IndexEntry(old), IndexEntry(word.load(Ordering::SeqCst)));
            match self.bug {
                Some(Bug::PublishFailedWrite) => {
                    if was.is_present() && was.hidden() != 0 && !is.is_present() {
                        word.store(was.with_writers(is.writers(), 0).0, Ordering::SeqCst);
                    }
                }
                Some(Bug::PublishOvertaken) => {
                    if self.cache.as_ref().is_some_and(|side| side.is_verifying(was)) {
                        word.store(old, Ordering::SeqCst);
                    }
                }
                // Of a block that is in the cache already, all is as it should be.
                Some(Bug::ForgetToMark) if was.is_present() => {}
                _ => word.store(old, Ordering::SeqCst),
            }
        }
    }

    /// What a read finds hidden, although it is not being written, seems to be valid.
    fn unhide(&self, tag: u16) -> Before<'w> {
        let before = self.words_of(tag);
        for &(word, old) in &before.0 {
            let entry = IndexEntry(old);
            if entry.is_present() && entry.writers() == 0 {
                word.store(entry.with_writers(0, 0).0, Ordering::SeqCst);
            }
        }
        before
    }

    /// Fills that a write has overtaken seem to be current: a read that arrives now joins one.
    fn revive_overtaken(&self) -> Before<'w> {
        let Some(side) = &self.cache else {
            return Before(Vec::new());
        };
        let revived = self.queue.unended_fills().filter_map(|fill| {
            let memory = &self.queue.fill_memory[usize::from(fill.0)];
            let word = side.maps_word(memory.block)?;
            let now = IndexEntry(word.load(Ordering::SeqCst));
            if now.is_present() && now.slot() == memory.slot {
                return None;
            }
            let current = IndexEntry::new(BlockState::Present, memory.slot);
            let current = current.with_writers(now.writers(), u16::MAX);
            Some((word, word.swap(current.0, Ordering::SeqCst)))
        });
        Before(revived.collect())
    }

    fn words_of(&self, tag: u16) -> Before<'w> {
        let request: &Request = &self.queue.kernel.tags[usize::from(tag)].request;
        let words = match &self.cache {
            Some(side) if !request.bad => side.words(&sectors(request)),
            _ => &[],
        };
        Before(
            words
                .iter()
                .map(|word| (word, word.load(Ordering::SeqCst)))
                .collect(),
        )
    }

    /// The pin of a read that was just issued is lost.
    pub(super) fn lose_pin(&self, op: &Op) {
        if let Some((cache, offset, len)) = self.unpinned(op)
            && let Some(pin) = cache.begin_read(offset, len)
        {
            cache.end_read(pin);
            cache.end_read(pin);
        }
    }

    /// A read whose pin was lost is about to be carried out. Its pin is back if its block is; otherwise it takes its time.
    pub(super) fn is_late(&self, op: &Op) -> bool {
        let Some((cache, offset, len)) = self.unpinned(op) else {
            return false;
        };
        let Some(pin) = cache.begin_read(offset, len) else {
            return true;
        };
        let is_elsewhere = cache_range(&op.io)
            .is_none_or(|(there, _)| there != offset.wrapping_add(cache.slot_delta(pin, offset)));
        if is_elsewhere {
            cache.end_read(pin);
        }
        is_elsewhere
    }

    /// The cache and the range of a read whose pin is to be lost.
    fn unpinned(&self, op: &Op) -> Option<(&'w Cache<'w>, u64, u64)> {
        let side = self
            .cache
            .as_ref()
            .filter(|_| self.bug == Some(Bug::ReusePinned))?;
        let Io::Read {
            from: Tier::Cache,
            at,
            len,
            ..
        } = op.io
        else {
            return None;
        };
        let request = &self.queue.kernel.tags[usize::from(op.tag)].request;
        Some((side.cache, request.sector * 512 + u64::from(at), u64::from(len)))
    }
}
