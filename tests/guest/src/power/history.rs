//! What each sector of a disk may hold: now, and after a power cut.
//!
//! Every change of a sector has a start and an end on a common clock; the end is its acknowledgement. A change is *safe*
//! when a flush that started after its end has been acknowledged, or when it was forced. After a power cut a sector may
//! hold any content that it was ever given, but for what ended before a safe change of it started. A read while the power
//! is on may find what had not been replaced when it started: a change replaces, when it ends, what had ended before it
//! started. A read that meets no change decides in which order changes at the same time have been.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::supply::lock;
use crate::torture::content::{FIRST, Pattern, SECTOR, ZEROES, version};

/// Sectors under one lock.
const GROUP: u64 = 128;
/// A time in the future.
const NEVER: u64 = u64::MAX;

/// What may be in every sector of a disk.
#[derive(Debug)]
pub(super) struct History {
    groups: Vec<Mutex<Vec<Vec<Content>>>>,
    clock: AtomicU64,
    /// Start of the last flush that was acknowledged.
    flushed: AtomicU64,
    /// Start of each thread's read.
    reads: Vec<AtomicU64>,
}

/// A content that a sector was given.
#[derive(Clone, Copy, Debug)]
struct Content {
    version: u64,
    start: u64,
    end: u64,
    /// When it was replaced for certain.
    gone: u64,
    /// Whether what was there before ends with it. A discard and a write that failed may have done nothing.
    replaces: bool,
    /// It was on the media when it ended.
    forced: bool,
}

/// A change in progress.
#[derive(Debug)]
#[must_use]
pub(super) struct Change {
    sectors: Range<u64>,
    start: u64,
}

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was acknowledged.
    Done,
    /// It was acknowledged, and is on the media.
    Forced,
    /// It may have been done: it failed, or was a discard.
    Perhaps,
}

/// Content that is not allowed.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Which sector.
    pub(super) sector: u64,
    /// The versions that were possible.
    pub(super) possible: Vec<u64>,
}

/// When a read is.
#[derive(Clone, Copy)]
enum When {
    /// Between this time and now.
    Since(u64),
    /// After a power cut.
    AfterCut,
}

impl History {
    /// A disk of `sectors` sectors with the first content on the media, accessed by at most `threads` threads.
    pub(super) fn new(sectors: u64, threads: usize) -> Self {
        let group = |i| {
            let count = GROUP.min(sectors - i * GROUP);
            Mutex::new((0..count).map(|_| vec![Content::safe(FIRST, 0)]).collect())
        };
        Self {
            groups: (0..sectors.div_ceil(GROUP)).map(group).collect(),
            clock: AtomicU64::new(1),
            flushed: AtomicU64::new(0),
            reads: (0..threads).map(|_| AtomicU64::new(NEVER)).collect(),
        }
    }

    /// Starts a change to this version.
    pub(super) fn begin(&self, sectors: Range<u64>, version: u64) -> Change {
        let start = self.tick();
        self.each(sectors.clone(), |_, contents| {
            contents.push(Content {
                version,
                start,
                end: NEVER,
                gone: NEVER,
                replaces: false,
                forced: false,
            });
        });
        Change { sectors, start }
    }

    /// Ends a change.
    pub(super) fn end(&self, change: Change, ended: Ended) {
        let now = self.tick();
        let (oldest, flushed) = (self.oldest_read(), self.flushed.load(SeqCst));
        let replaces = ended != Ended::Perhaps;
        let Change { sectors, start } = change;
        self.each(sectors, |_, contents| {
            for content in contents.iter_mut() {
                if content.start == start {
                    content.end = now;
                    content.replaces = replaces;
                    content.forced = ended == Ended::Forced;
                } else if replaces && content.end < start {
                    content.gone = content.gone.min(now);
                }
            }
            let safe = last_safe(contents, flushed);
            contents.retain(|content| content.gone >= oldest || content.end >= safe);
        });
    }

    /// The time at which a flush starts.
    pub(super) fn begin_flush(&self) -> u64 {
        self.tick()
    }

    /// The flush that started at this time was acknowledged.
    pub(super) fn end_flush(&self, start: u64) {
        self.flushed.fetch_max(start, SeqCst);
    }

    /// Starts a read by this thread.
    pub(super) fn begin_read(&self, thread: usize) -> u64 {
        // Register the read first, so that no content that it may find is dropped.
        self.reads[thread].store(self.clock.load(SeqCst), SeqCst);
        self.tick()
    }

    /// Ends the read that started at `since` with this content of the sectors from `first` on.
    pub(super) fn end_read(
        &self,
        (thread, since): (usize, u64),
        pattern: &Pattern,
        first: u64,
        found: &[u8],
    ) -> Result<(), Wrong> {
        let now = self.tick();
        let result = self.compare(When::Since(since), pattern, first, found, |contents, version| {
            settle(contents, version, since, now);
        });
        self.reads[thread].store(NEVER, SeqCst);
        result
    }

    /// Judges what was found in the sectors from `first` on after a power cut. It is on the media from now on.
    pub(super) fn after_cut(&self, pattern: &Pattern, first: u64, found: &[u8]) -> Result<(), Wrong> {
        let now = self.tick();
        self.compare(When::AfterCut, pattern, first, found, |contents, version| {
            *contents = vec![Content::safe(version, now)];
        })
    }

    fn compare(
        &self,
        when: When,
        pattern: &Pattern,
        first: u64,
        found: &[u8],
        mut right: impl FnMut(&mut Vec<Content>, u64),
    ) -> Result<(), Wrong> {
        let flushed = self.flushed.load(SeqCst);
        let mut result = Ok(());
        let end = first + (found.len() / SECTOR) as u64;
        self.each(first..end, |sector, contents| {
            if result.is_err() {
                return;
            }
            let at = usize::try_from(sector - first).expect("within the buffer") * SECTOR;
            let found = &found[at..at + SECTOR];
            let claimed = version(found);
            let mut possible = possible(contents, when, flushed);
            if possible.any(|version| version == claimed)
                && pattern.difference(found, sector, claimed).is_none()
            {
                drop(possible);
                right(contents, claimed);
                return;
            }
            drop(possible);
            result = Err(Wrong {
                sector,
                possible: self::possible(contents, when, flushed).collect(),
            });
        });
        result
    }

    fn each(&self, sectors: Range<u64>, mut act: impl FnMut(u64, &mut Vec<Content>)) {
        let mut sector = sectors.start;
        while sector < sectors.end {
            let index = |number: u64| usize::try_from(number).expect("within memory");
            let mut group = lock(&self.groups[index(sector / GROUP)]);
            let left = index(sectors.end - sector);
            for contents in group.iter_mut().skip(index(sector % GROUP)).take(left) {
                act(sector, contents);
                sector += 1;
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

impl Content {
    /// One that was on the media at this time.
    fn safe(version: u64, now: u64) -> Self {
        Self {
            version,
            start: now,
            end: now,
            gone: NEVER,
            replaces: true,
            forced: true,
        }
    }
}

/// Start of the last safe change: what ended before it is not found after a power cut.
fn last_safe(contents: &[Content], flushed: u64) -> u64 {
    let is_safe = |content: &&Content| content.replaces && (content.forced || content.end < flushed);
    let starts = contents.iter().filter(is_safe).map(|content| content.start);
    starts.max().unwrap_or(0)
}

/// The versions that may be found.
fn possible(contents: &[Content], when: When, flushed: u64) -> impl Iterator<Item = u64> {
    let safe = last_safe(contents, flushed);
    let may_be_found = move |content: &&Content| match when {
        When::Since(since) => content.gone > since,
        When::AfterCut => content.end >= safe,
    };
    contents
        .iter()
        .filter(may_be_found)
        .map(|content| content.version)
}

/// A read that started at `since` found this version: if no change met the read, all others were before it.
fn settle(contents: &mut [Content], version: u64, since: u64, now: u64) {
    let met = contents.iter().any(|content| content.end >= since);
    let mut found = contents.iter().filter(|content| content.version == version);
    let (Some(start), None) = (found.next().map(|content| content.start), found.next()) else {
        return;
    };
    if met || version == ZEROES {
        return;
    }
    for content in contents.iter_mut().filter(|content| content.version != version) {
        content.gone = content.gone.min(now);
        // Not one that was in progress with it: a flush may have made that durable alone, and then it is found after a cut.
        if content.start < start {
            content.end = content.end.min(start.saturating_sub(1));
        }
    }
}
