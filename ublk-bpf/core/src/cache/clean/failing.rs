//! What cannot be cleaned: it stays dirty, and is tried again, later each time.

use std::collections::HashMap;
use std::time::Duration;

use super::Cleaner;
use super::run::{Piece, Run};
use crate::errno::Errno;

/// A block that could not be cleaned is tried again after so long, then after twice as long each time, up to 64 times.
const RETRY: Duration = Duration::from_secs(1);
const MAX_DOUBLINGS: u32 = 6;

/// Why something could not be cleaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{during} failed with {errno} at byte {offset}: what is dirty there stays so, and is tried again")]
pub struct CleanFailure {
    /// The operation: `reading the cache device`, for example.
    pub during: &'static str,
    /// Its error.
    pub errno: Errno,
    /// The first byte of the copy, on the device.
    pub offset: u64,
}

/// A block that cannot be cleaned, or was copied together with one. It is copied alone.
#[derive(Clone, Copy, Debug, Default)]
struct Failing {
    tries: u32,
    until: Duration,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Failures {
    blocks: HashMap<u32, Failing>,
    /// The first failure since there were none, and whether it was told.
    first: Option<CleanFailure>,
    has_told: bool,
}

impl Failures {
    /// Whether a block is copied alone.
    pub(super) fn contain(&self, block: u32) -> bool {
        self.blocks.contains_key(&block)
    }

    /// Whether it is too early to try a block again.
    pub(super) fn must_wait(&self, block: u32, now: Duration) -> bool {
        self.blocks.get(&block).is_some_and(|of| of.until > now)
    }

    /// All may be tried again at once.
    pub(super) fn retry(&mut self) {
        self.blocks.values_mut().for_each(|of| of.until = Duration::ZERO);
    }
}

impl Cleaner<'_, '_> {
    /// The first failure since nothing failed, once.
    pub(in crate::cache) fn take_failure(&mut self) -> Option<CleanFailure> {
        let of = &mut self.failures;
        let is_new = !std::mem::replace(&mut of.has_told, of.first.is_some());
        of.first.filter(|_| is_new)
    }

    /// A device has failed an operation of a copy. Of the copy remains what was read before.
    #[cold]
    pub(super) fn fail(&mut self, run: &mut Run, errno: Errno) {
        let left = if run.is_loaded { 0 } else { run.loaded };
        let during = if run.is_loaded {
            "writing to the backing device"
        } else {
            "reading the cache device"
        };
        let failed = run.pieces.split_off(left);
        self.note_failure(during, errno, failed.first());
        // Of several blocks in one write, each is tried by itself.
        let is_joined = run.is_loaded && failed.len() > 1;
        for (at, piece) in failed.iter().enumerate() {
            if is_joined {
                self.failures.blocks.entry(piece.span.block).or_default();
            }
            self.drop_piece(piece);
            if !is_joined && at == 0 {
                self.give_up(piece, !run.is_loaded);
            }
        }
    }

    pub(super) fn note_failure(&mut self, during: &'static str, errno: Errno, at: Option<&Piece>) {
        self.counts.errors += 1;
        let offset = at.map_or(0, |piece| match during {
            "reading the cache device" => piece.span.slot_offset,
            _ => piece.span.offset,
        });
        self.failures.first.get_or_insert(CleanFailure {
            during,
            errno,
            offset,
        });
    }

    /// What is dirty of a block stays so, and requests that wait for it fail. `is_unreadable`: its slot could not be read.
    #[cold]
    pub(super) fn give_up(&mut self, piece: &Piece, is_unreadable: bool) {
        let Piece { span, .. } = piece;
        let failing = self.failures.blocks.entry(span.block).or_default();
        failing.until = self.now + RETRY * (1 << failing.tries.min(MAX_DOUBLINGS));
        failing.tries += 1;
        let cache = self.cache;
        if is_unreadable {
            cache.blocks.dirty.unreadable.insert(span.block);
        } else {
            cache.blocks.dirty.unreadable.remove(span.block);
        }
        if !cache.blocks.dirty.stuck.contains(span.block) {
            cache.blocks.dirty.stuck.insert(span.block);
            cache.writeback.count_stuck(1);
        }
        cache.blocks.waiters.wake(span.slot);
    }

    /// A block does not fail, or not any more.
    pub(super) fn recover(&mut self, block: u32) {
        if self.failures.blocks.remove(&block).is_none() {
            return;
        }
        let cache = self.cache;
        if cache.blocks.dirty.stuck.contains(block) {
            cache.blocks.dirty.stuck.remove(block);
            cache.blocks.dirty.unreadable.remove(block);
            cache.writeback.count_stuck(-1);
        }
        if self.failures.blocks.is_empty() {
            self.failures = Failures::default();
        }
    }
}
