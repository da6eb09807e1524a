//! A model of the contents that each sector may have, over time.
//!
//! Every change of a sector has a start and an end on a common clock. A change that starts after another one ended
//! replaces it when it ends itself. If changes overlap, any of them may win. A read may return content that was not yet
//! replaced when the read started and whose change had started when the read ended, and nothing else. A read without
//! concurrent changes decides which of several candidates is there, and later reads must agree.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::content::{FIRST, Pattern, SECTOR, ZEROES, version};

/// Sectors under one lock.
const GROUP: u64 = 128;
/// A time in the future.
const NEVER: u64 = u64::MAX;

/// Possible contents of every sector of a disk.
#[derive(Debug)]
pub(super) struct Model {
    groups: Vec<Mutex<Vec<Sector>>>,
    clock: AtomicU64,
    /// Start time of each thread's read.
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
    /// When it was replaced for certain.
    gone: u64,
}

/// A change in progress.
#[derive(Debug)]
#[must_use]
pub(super) struct Change {
    sectors: Range<u64>,
    version: u64,
    start: u64,
    replaces: bool,
}

/// A read in progress.
#[derive(Debug)]
#[must_use]
pub(super) struct Reading {
    thread: usize,
    since: u64,
}

/// Content that is not allowed.
#[derive(Debug)]
pub(super) struct Wrong {
    /// The first byte that differs, from the first that was read.
    pub(super) byte: usize,
    /// The versions that were possible for the sector.
    pub(super) possible: Vec<u64>,
}

impl Model {
    /// A disk of `sectors` initialised sectors, accessed by at most `threads` threads.
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

    /// Starts a write of this version (of zeroes, for the version of zeroes).
    pub(super) fn begin_write(&self, sectors: Range<u64>, version: u64) -> Change {
        self.begin(sectors, version, true)
    }

    /// Starts a discard: each of the sectors may become zeroes or keep its content.
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

    /// Ends the change: a read that starts now returns its content.
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

    /// Starts a read by this thread.
    pub(super) fn begin_read(&self, thread: usize) -> Reading {
        // Register the read first, so that no content that it may find is dropped.
        self.reads[thread].store(self.clock.load(SeqCst), SeqCst);
        Reading {
            thread,
            since: self.tick(),
        }
    }

    /// Ends the read with this content of the sectors from `first` on.
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

/// The versions that a read from `since` to now may return.
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

/// A read that started at `since` found this version: it is settled if there was no concurrent change.
fn settle(sector: &mut Sector, version: u64, since: u64, now: u64) {
    if sector.len() == 1 || sector.iter().any(|candidate| candidate.end >= since) {
        return;
    }
    for candidate in sector.iter_mut().filter(|one| one.version != version) {
        candidate.gone = candidate.gone.min(now);
    }
}

/// Locked ranges of sectors: by one writer or any number of readers.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    held: Mutex<Vec<(Range<u64>, bool)>>,
    freed: Condvar,
}

/// A locked range, released when dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    ranges: &'a Ranges,
    range: Range<u64>,
    shared: bool,
}

impl Ranges {
    /// Waits until the range is free, or shared if this use is shared.
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
