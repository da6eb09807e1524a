//! The client of a disk whose power is cut: random operations of several threads, each sector told by its content, and
//! after the cut the judgement of every sector.
//!
//! Operation N of a seed is always the same, whatever thread performs it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::scope;

use super::history::{Ended, History, Wrong};
use super::supply::lock;
use crate::aligned::Aligned;
use crate::torture::content::{FIRST, Pattern, SECTOR, ZEROES, mix};
use crate::torture::{Dice, Disk, at, origin, version_name};

/// Threads that write and read at the same time.
const THREADS: usize = 4;
/// Maximum size of a read or write, in bytes.
const LARGEST: u64 = 256 << 10;

/// A client, with all that it knows of the disk.
#[derive(Debug)]
pub struct Client {
    seed: u64,
    size: u64,
    history: History,
    pattern: Pattern,
    next: AtomicU64,
    /// The bytes whose operations may fail, but for a power cut.
    may_fail: Mutex<Range<u64>>,
}

/// What a client did before it stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Reads, each compared byte by byte.
    pub reads: u64,
    /// Writes, zeroed and discarded ranges.
    pub changes: u64,
    /// Flushes and forced writes.
    pub flushes: u64,
    /// Operations that failed.
    pub failed: u64,
}

/// When the threads stop.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// Each at its first operation that fails.
    Failure,
    /// After this many operations, whether they fail or not.
    Operations(u64),
}

/// Wrong content.
#[derive(Debug)]
pub struct Fault {
    seed: u64,
    what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.what)
    }
}

impl Client {
    /// A client of a disk of so many bytes.
    pub fn new(seed: u64, size: u64) -> Self {
        Self {
            seed,
            size,
            history: History::new(size / SECTOR as u64, THREADS),
            pattern: Pattern::new(seed),
            next: AtomicU64::new(0),
            may_fail: Mutex::new(0..0),
        }
    }

    /// From now on operations that touch this range of bytes may fail, and no others; flushes too if it is everything.
    pub fn expect_failures(&self, range: Range<u64>) {
        *lock(&self.may_fail) = range;
    }

    /// Writes the first content, to the media.
    pub fn lay_down(&self, disk: &dyn Disk) {
        let mut buffer = Aligned::new(bytes(LARGEST));
        for range in self.pieces() {
            let content = buffer.first(bytes(range.end - range.start));
            self.pattern.fill(content, range.start / SECTOR as u64, FIRST);
            disk.write(content, range.start, false)
                .unwrap_or_else(|e| panic!("the first content, {}: {e}", at(&range)));
        }
        disk.flush().unwrap_or_else(|e| panic!("the first flush: {e}"));
    }

    /// Performs operations by several threads; goes on where an earlier call has ended.
    ///
    /// # Errors
    /// The first read that found what it must not.
    pub fn work(&self, disk: &dyn Disk, until: Until) -> Result<Done, Fault> {
        let stop = AtomicBool::new(false);
        let first = self.next.load(Relaxed);
        scope(|scope| {
            let work = |thread| {
                let stop = &stop;
                move || self.thread(disk, thread, until, first, stop)
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
            let mut done = Done::default();
            for thread in threads {
                done.add(thread.join().expect("faults are returned, not panicked")?);
            }
            Ok(done)
        })
    }

    /// Reads the whole disk after a power cut. What it finds is on the media from then on.
    ///
    /// # Errors
    /// The first sector that holds what it must not, or a read that failed.
    pub fn verify_after_cut(&self, disk: &dyn Disk) -> Result<(), Fault> {
        self.verify(disk, |first, found| {
            self.history.after_cut(&self.pattern, first, found)
        })
    }

    /// Reads the whole disk while the power is on.
    ///
    /// # Errors
    /// The first sector that holds what it must not, or a read that failed.
    pub fn verify_now(&self, disk: &dyn Disk) -> Result<(), Fault> {
        self.verify(disk, |first, found| {
            let reading = (0, self.history.begin_read(0));
            self.history.end_read(reading, &self.pattern, first, found)
        })
    }

    fn verify(&self, disk: &dyn Disk, judge: impl Fn(u64, &[u8]) -> Result<(), Wrong>) -> Result<(), Fault> {
        let mut buffer = Aligned::new(bytes(LARGEST));
        for range in self.pieces() {
            let found = buffer.first(bytes(range.end - range.start));
            disk.read(found, range.start)
                .map_err(|e| self.fault(format!("reading {}: {e}", at(&range))))?;
            let first = range.start / SECTOR as u64;
            judge(first, found).map_err(|wrong| self.describe(first, found, &wrong))?;
        }
        Ok(())
    }

    fn thread(
        &self,
        disk: &dyn Disk,
        thread: usize,
        until: Until,
        first: u64,
        stop: &AtomicBool,
    ) -> Result<Done, Fault> {
        let mut buffer = Aligned::new(bytes(LARGEST));
        let mut done = Done::default();
        while !stop.load(Relaxed) {
            let number = self.next.fetch_add(1, Relaxed);
            if matches!(until, Until::Operations(most) if number - first >= most) {
                break;
            }
            let operation = Operation::choose(self.seed, number, self.size, disk.unit());
            let result = self
                .perform(disk, thread, number, &operation, &mut buffer)
                .inspect_err(|_| stop.store(true, Relaxed))?;
            done.count(operation.kind, result.is_ok());
            match (result, until) {
                (Ok(()), _) => {}
                (Err(_), Until::Failure) => break,
                (Err(error), Until::Operations(_)) => {
                    self.check_failure(number, &operation, &error)
                        .inspect_err(|_| stop.store(true, Relaxed))?;
                }
            }
        }
        Ok(done)
    }

    /// Whether this operation may fail.
    fn check_failure(&self, number: u64, operation: &Operation, error: &io::Error) -> Result<(), Fault> {
        let (range, broken) = (&operation.range, lock(&self.may_fail));
        let meets = range.start < broken.end && broken.start < range.end;
        let all = *broken == (0..self.size);
        if all || meets && !matches!(operation.kind, Kind::Flush) {
            return Ok(());
        }
        let (kind, at) = (operation.kind, at(range));
        Err(self.fault(format!("operation {number}, {kind:?} of {at}, failed: {error}")))
    }

    /// Performs an operation; the inner result says whether the disk did it.
    fn perform(
        &self,
        disk: &dyn Disk,
        thread: usize,
        number: u64,
        operation: &Operation,
        buffer: &mut Aligned,
    ) -> Result<io::Result<()>, Fault> {
        let Operation { kind, range } = operation;
        let (offset, length) = (range.start, range.end - range.start);
        let sectors = range.start / SECTOR as u64..range.end / SECTOR as u64;
        let buffer = buffer.first(bytes(length));
        let (change, result, ended) = match *kind {
            Kind::Read => return self.read(disk, thread, range, buffer),
            Kind::Flush => return Ok(self.flush(disk)),
            Kind::Write { forced } => {
                self.pattern.fill(buffer, sectors.start, number + 2);
                let change = self.history.begin(sectors, number + 2);
                let ended = if forced { Ended::Forced } else { Ended::Done };
                (change, disk.write(buffer, offset, forced), ended)
            }
            Kind::Zero => {
                let change = self.history.begin(sectors, ZEROES);
                (
                    change,
                    disk.zero(offset, length, number.is_multiple_of(2)),
                    Ended::Done,
                )
            }
            Kind::Discard => {
                let change = self.history.begin(sectors, ZEROES);
                (change, disk.discard(offset, length), Ended::Perhaps)
            }
        };
        let ended = if result.is_ok() { ended } else { Ended::Perhaps };
        self.history.end(change, ended);
        Ok(result)
    }

    fn read(
        &self,
        disk: &dyn Disk,
        thread: usize,
        range: &Range<u64>,
        buffer: &mut [u8],
    ) -> Result<io::Result<()>, Fault> {
        let first = range.start / SECTOR as u64;
        let since = self.history.begin_read(thread);
        if let Err(error) = disk.read(buffer, range.start) {
            return Ok(Err(error));
        }
        self.history
            .end_read((thread, since), &self.pattern, first, buffer)
            .map_err(|wrong| self.describe(first, buffer, &wrong))?;
        Ok(Ok(()))
    }

    fn flush(&self, disk: &dyn Disk) -> io::Result<()> {
        let start = self.history.begin_flush();
        disk.flush()?;
        self.history.end_flush(start);
        Ok(())
    }

    fn pieces(&self) -> impl Iterator<Item = Range<u64>> {
        let size = self.size;
        (0..size.div_ceil(LARGEST)).map(move |i| i * LARGEST..size.min((i + 1) * LARGEST))
    }

    fn describe(&self, first: u64, found: &[u8], wrong: &Wrong) -> Fault {
        let content = &found[bytes(wrong.sector - first) * SECTOR..][..SECTOR];
        let is = origin(&self.pattern, wrong.sector, content);
        let may: Vec<String> = wrong
            .possible
            .iter()
            .map(|&version| version_name(version))
            .collect();
        self.fault(format!(
            "sector {} holds {is}; it may hold {}",
            wrong.sector,
            may.join(" or ")
        ))
    }

    fn fault(&self, what: String) -> Fault {
        Fault {
            seed: self.seed,
            what,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write { forced: bool },
    Zero,
    Discard,
    Flush,
}

/// One operation; its range is in bytes.
#[derive(Debug)]
struct Operation {
    kind: Kind,
    range: Range<u64>,
}

impl Operation {
    fn choose(seed: u64, number: u64, size: u64, unit: u64) -> Self {
        let mut dice = Dice::new(mix(seed) ^ mix(!number));
        let kind = match dice.below(100) {
            0..20 => Kind::Read,
            20..78 => Kind::Write { forced: false },
            78..84 => Kind::Write { forced: true },
            84..94 => Kind::Flush,
            94..97 => Kind::Discard,
            _ => Kind::Zero,
        };
        let unit = if dice.percent(60) { unit.max(4096) } else { unit };
        let longest = match dice.below(100) {
            0..75 => 16 << 10,
            75..95 => 64 << 10,
            _ => LARGEST,
        };
        let length = (dice.below(longest) + 1).next_multiple_of(unit);
        // Most are where they meet.
        let room = if dice.percent(70) { size / 8 } else { size };
        let start = dice.below(room).min(size - length) / unit * unit;
        Self {
            kind,
            range: start..start + length,
        }
    }
}

impl Done {
    fn count(&mut self, kind: Kind, succeeded: bool) {
        *match kind {
            _ if !succeeded => &mut self.failed,
            Kind::Read => &mut self.reads,
            Kind::Flush | Kind::Write { forced: true } => &mut self.flushes,
            Kind::Write { forced: false } | Kind::Zero | Kind::Discard => &mut self.changes,
        } += 1;
    }

    /// Adds what was done elsewhere.
    pub fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.changes += other.changes;
        self.flushes += other.flushes;
        self.failed += other.failed;
    }
}

fn bytes(length: u64) -> usize {
    usize::try_from(length).expect("within memory")
}
