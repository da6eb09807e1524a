//! What each sector may hold, and since when.
//!
//! Every change of a sector has a start and an end on one clock. A change that began after another had ended replaces
//! it when it ends itself; of changes that overlapped, any may be the one that stays. A read may return what had not
//! been replaced when it began and had begun when it ended, nothing older and nothing of its own. A read beside which
//! nothing changed tells which of several it is, and it must stay that.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::content::{FIRST, Pattern, SECTOR, ZEROES, version};

/// Sectors under one lock.
const GROUP: u64 = 128;
/// A time that has not come.
const NEVER: u64 = u64::MAX;

/// What every sector of a disk may hold.
#[derive(Debug)]
pub(super) struct Model {
    groups: Vec<Mutex<Vec<Sector>>>,
    clock: AtomicU64,
    /// Since when each thread's read runs.
    reads: Vec<AtomicU64>,
}

/// The contents that a sector may have.
type Sector = Vec<Candidate>;

/// One content that a sector may have.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    version: u64,
    start: u64,
    end: u64,
    /// When it was known to be there no more.
    gone: u64,
}

/// A change that has begun.
#[derive(Debug)]
#[must_use]
pub(super) struct Change {
    sectors: Range<u64>,
    version: u64,
    start: u64,
    replaces: bool,
}

/// A read that has begun.
#[derive(Debug)]
#[must_use]
pub(super) struct Reading {
    thread: usize,
    since: u64,
}

/// What was found that may not be.
#[derive(Debug)]
pub(super) struct Wrong {
    /// The first byte that differs, from the first that was read.
    pub(super) byte: usize,
    /// The sector's versions that were possible.
    pub(super) possible: Vec<u64>,
}

impl Model {
    /// A disk of `sectors` sectors, all of them laid down and read by at most `threads` threads at a time.
    pub(super) fn new(sectors: u64, threads: usize) -> Self {
        let laid_down = Candidate {
            version: FIRST,
            start: 0,
            end: 0,
            gone: NEVER,
        };
        let group = |i| {
            let count = GROUP.min(sectors - i * GROUP);
            Mutex::new((0..count).map(|_| vec![laid_down]).collect())
        };
        Self {
            groups: (0..sectors.div_ceil(GROUP)).map(group).collect(),
            clock: AtomicU64::new(1),
            reads: (0..threads).map(|_| AtomicU64::new(NEVER)).collect(),
        }
    }

    /// A write of this version begins (of zeroes, if it is that of zeroes).
    pub(super) fn begin_write(&self, sectors: Range<u64>, version: u64) -> Change {
        self.begin(sectors, version, true)
    }

    /// A discard begins: each of the sectors may become zeroes or stay.
    pub(super) fn begin_discard(&self, sectors: Range<u64>) -> Change {
        self.begin(sectors, ZEROES, false)
    }

    fn begin(&self, sectors: Range<u64>, version: u64, replaces: bool) -> Change {
        let start = self.tick();
        self.each(sectors.clone(), |_, sector| {
            sector.push(Candidate {
                version,
                start,
                end: NEVER,
                gone: NEVER,
            });
        });
        Change {
            sectors,
            version,
            start,
            replaces,
        }
    }

    /// The change is done: a read that begins now finds what it left.
    pub(super) fn end(&self, change: Change) {
        let Change {
            sectors,
            version,
            start,
            replaces,
        } = change;
        let now = self.tick();
        let oldest = self.oldest_read();
        self.each(sectors, |_, sector| {
            for candidate in sector.iter_mut() {
                if candidate.start == start && candidate.version == version {
                    candidate.end = now;
                } else if replaces && candidate.end < start {
                    candidate.gone = candidate.gone.min(now);
                }
            }
            sector.retain(|candidate| candidate.gone >= oldest);
        });
    }

    /// A read by this thread begins.
    pub(super) fn begin_read(&self, thread: usize) -> Reading {
        // First the word that it runs, so that nothing is forgotten that it may find.
        self.reads[thread].store(self.clock.load(SeqCst), SeqCst);
        Reading {
            thread,
            since: self.tick(),
        }
    }

    /// The read found this in the sectors from `first` on.
    pub(super) fn end_read(
        &self,
        reading: &Reading,
        pattern: &Pattern,
        first: u64,
        found: &[u8],
    ) -> Result<(), Wrong> {
        let &Reading { thread, since } = reading;
        let now = self.tick();
        let mut result = Ok(());
        let end = first + (found.len() / SECTOR) as u64;
        self.each(first..end, |position, sector| {
            if result.is_err() {
                return;
            }
            let at = usize::try_from(position - first).expect("within the buffer") * SECTOR;
            let found = &found[at..at + SECTOR];
            match judge(sector, since, pattern, position, found) {
                None => settle(sector, version(found), since, now),
                Some(byte) => {
                    result = Err(Wrong {
                        byte: at + byte,
                        possible: possible(sector, since).collect(),
                    });
                }
            }
        });
        self.reads[thread].store(NEVER, SeqCst);
        result
    }

    fn each(&self, sectors: Range<u64>, mut act: impl FnMut(u64, &mut Sector)) {
        let mut position = sectors.start;
        while position < sectors.end {
            let index = usize::try_from(position / GROUP).expect("within memory");
            let mut group = lock(&self.groups[index]);
            let skip = usize::try_from(position % GROUP).expect("within the group");
            let left = usize::try_from(sectors.end - position).expect("within memory");
            for sector in group.iter_mut().skip(skip).take(left) {
                act(position, sector);
                position += 1;
            }
        }
    }

    fn oldest_read(&self) -> u64 {
        let since = self.reads.iter().map(|read| read.load(SeqCst));
        since.min().unwrap_or(NEVER).min(self.clock.load(SeqCst))
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }
}

/// The versions that a read may find that began at `since` and ends now.
fn possible(sector: &Sector, since: u64) -> impl Iterator<Item = u64> {
    sector
        .iter()
        .filter(move |candidate| candidate.gone > since)
        .map(|candidate| candidate.version)
}

/// The first byte that is wrong.
fn judge(sector: &Sector, since: u64, pattern: &Pattern, position: u64, found: &[u8]) -> Option<usize> {
    let claimed = version(found);
    if possible(sector, since).any(|version| version == claimed) {
        return pattern.difference(found, position, claimed);
    }
    let differences = possible(sector, since).map(|version| pattern.difference(found, position, version));
    differences.max().flatten().or(Some(0))
}

/// A read that began at `since` found this version: it is the one, if nothing changed beside the read.
fn settle(sector: &mut Sector, version: u64, since: u64, now: u64) {
    if sector.len() == 1 || sector.iter().any(|candidate| candidate.end >= since) {
        return;
    }
    for candidate in sector.iter_mut().filter(|one| one.version != version) {
        candidate.gone = candidate.gone.min(now);
    }
}

/// Ranges of sectors in use: by one that changes them, or by any number that read them.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    held: Mutex<Vec<(Range<u64>, bool)>>,
    freed: Condvar,
}

/// A range in use, until dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    ranges: &'a Ranges,
    range: Range<u64>,
    shared: bool,
}

impl Ranges {
    /// Waits until no one else uses any of it, or only shares what is shared.
    pub(super) fn hold(&self, range: Range<u64>, shared: bool) -> Held<'_> {
        let free = |held: &mut Vec<(Range<u64>, bool)>| {
            held.iter()
                .any(|(other, both)| other.start < range.end && range.start < other.end && !(shared && *both))
        };
        let held = lock(&self.held);
        let mut held = self
            .freed
            .wait_while(held, free)
            .unwrap_or_else(PoisonError::into_inner);
        held.push((range.clone(), shared));
        drop(held);
        Held {
            ranges: self,
            range,
            shared,
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = lock(&self.ranges.held);
        let mine = held
            .iter()
            .position(|(range, shared)| *range == self.range && *shared == self.shared);
        held.swap_remove(mine.expect("it was put there"));
        drop(held);
        self.ranges.freed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
