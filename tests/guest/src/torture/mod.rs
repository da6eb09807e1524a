//! A torture test: random operations by concurrent threads, checked against a model of every sector.
//!
//! [`Torture::new`] orders operations on the same sectors, so that every read has one correct result. Operations that
//! share a cache block but no sector run concurrently. With [`Torture::overlapping`] nothing is ordered: a read during
//! writes must return each sector whole, as one of them left it.
//!
//! Operation N of a seed is always the same, regardless of the thread that runs it.

pub(crate) mod content;
pub(crate) mod disk;
mod model;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::scope;

pub use disk::Disk;

use crate::aligned::Aligned;
use content::{FIRST, Pattern, SECTOR, ZEROES, mix};
use disk::Direct;
use model::{Model, Ranges};

/// Maximum size of a read or write, in bytes.
const LARGEST: u64 = 1 << 20;

/// A torture test to run.
pub struct Torture {
    disk: Box<dyn Disk>,
    threads: usize,
    operations: u64,
    seed: u64,
    overlapping: bool,
}

/// Result of a torture: its operations and the expected content of the disk.
#[derive(Debug)]
pub struct Report {
    /// Number of operations of each kind.
    pub done: Done,
    model: Model,
    pattern: Pattern,
    size: u64,
}

/// Number of operations of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Reads, each compared byte by byte.
    pub reads: u64,
    /// Writes, including forced ones.
    pub writes: u64,
    /// Ranges zeroed.
    pub zeroes: u64,
    /// Ranges discarded.
    pub discards: u64,
    /// Flushes.
    pub flushes: u64,
}

impl Torture {
    /// Tortures the block device at this path; its content is lost.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::on(direct(path.as_ref(), true))
    }

    /// Tortures a file on a file system at its current size; its content is lost.
    pub fn on_file(path: impl AsRef<Path>) -> Self {
        Self::new(path)
    }

    /// Tortures any disk.
    pub fn on(disk: impl Disk + 'static) -> Self {
        Self {
            disk: Box::new(disk),
            threads: 8,
            operations: 10_000,
            seed: 1,
            overlapping: false,
        }
    }

    /// Sets the number of threads (default 8).
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Sets the total number of operations (default 10,000).
    #[must_use]
    pub fn operations(mut self, operations: u64) -> Self {
        self.operations = operations;
        self
    }

    /// Sets the seed of the operations.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Allows concurrent operations on the same sectors, for disks that never tear a sector (disks in memory may).
    #[must_use]
    pub fn overlapping(mut self) -> Self {
        self.overlapping = true;
        self
    }

    /// Runs it, then reads the whole disk; panics with the seed, the operation and the first wrong byte.
    pub fn run(self) -> Report {
        let seed = self.seed;
        self.find().unwrap_or_else(|fault| panic!("seed {seed}: {fault}"))
    }

    /// Runs it, then reads the whole disk.
    ///
    /// # Errors
    ///
    /// The first fault that was found.
    pub fn find(self) -> Result<Report, Fault> {
        let size = self.disk.size() / self.disk.unit() * self.disk.unit();
        let run = Run {
            torture: &self,
            model: Model::new(size / SECTOR as u64, self.threads),
            pattern: Pattern::new(self.seed),
            ranges: Ranges::default(),
            size,
            next: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        };
        run.lay_down()?;
        let done = run.torture()?;
        let report = Report {
            done,
            model: run.model,
            pattern: run.pattern,
            size,
        };
        report.verify(&*self.disk)?;
        Ok(report)
    }
}

impl Report {
    /// Compares everything at this path with the expected content; panics at the first difference.
    ///
    /// For checking the backing once the device is stopped.
    pub fn compare(&self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        self.verify(&direct(path, false))
            .unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
    }

    fn verify(&self, disk: &dyn Disk) -> Result<(), Fault> {
        let mut buffer = Aligned::new(bytes(LARGEST));
        for range in pieces(self.size) {
            let found = buffer.first(bytes(range.end - range.start));
            let reading = self.model.begin_read(0);
            let fault = |found: String| Fault {
                operation: None,
                what: format!("the disk at the end, {}", at(&range)),
                found,
            };
            disk.read(found, range.start).map_err(|e| fault(e.to_string()))?;
            self.model
                .end_read(&reading, &self.pattern, range.start / SECTOR as u64, found)
                .map_err(|wrong| fault(describe(&self.pattern, &range, found, &wrong)))?;
        }
        Ok(())
    }
}

/// A fault found by a torture.
#[derive(Debug)]
pub struct Fault {
    operation: Option<u64>,
    what: String,
    found: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(operation) = self.operation {
            write!(f, "operation {operation}: ")?;
        }
        write!(f, "{}: {}", self.what, self.found)
    }
}

/// A running torture.
struct Run<'a> {
    torture: &'a Torture,
    model: Model,
    pattern: Pattern,
    ranges: Ranges,
    size: u64,
    next: AtomicU64,
    failed: AtomicBool,
}

impl Run<'_> {
    /// Writes the initial content of the model.
    fn lay_down(&self) -> Result<(), Fault> {
        let mut buffer = Aligned::new(bytes(LARGEST));
        for range in pieces(self.size) {
            let content = buffer.first(bytes(range.end - range.start));
            self.pattern.fill(content, range.start / SECTOR as u64, FIRST);
            self.torture
                .disk
                .write(content, range.start, false)
                .map_err(|e| Fault {
                    operation: None,
                    what: format!("the first content, {}", at(&range)),
                    found: e.to_string(),
                })?;
        }
        Ok(())
    }

    fn torture(&self) -> Result<Done, Fault> {
        scope(|scope| {
            let threads: Vec<_> = (0..self.torture.threads)
                .map(|thread| scope.spawn(move || self.work(thread)))
                .collect();
            let mut done = Done::default();
            for thread in threads {
                done.add(thread.join().expect("faults are returned, not panicked")?);
            }
            Ok(done)
        })
    }

    /// The work of one thread, until all operations are done or one has failed.
    fn work(&self, thread: usize) -> Result<Done, Fault> {
        let mut buffer = Aligned::new(bytes(LARGEST));
        let mut done = Done::default();
        while !self.failed.load(Relaxed) {
            let number = self.next.fetch_add(1, Relaxed);
            if number >= self.torture.operations {
                break;
            }
            let operation = Operation::choose(&*self.torture.disk, self.size, self.torture.seed, number);
            self.perform(&operation, number, thread, &mut buffer)
                .map_err(|found| {
                    self.failed.store(true, Relaxed);
                    Fault {
                        operation: Some(number),
                        what: format!("{:?}, {}", operation.kind, at(&operation.range)),
                        found,
                    }
                })?;
            done.count(operation.kind);
        }
        Ok(done)
    }

    fn perform(
        &self,
        operation: &Operation,
        number: u64,
        thread: usize,
        buffer: &mut Aligned,
    ) -> Result<(), String> {
        let Operation { kind, range } = operation;
        let sectors = range.start / SECTOR as u64..range.end / SECTOR as u64;
        let length = range.end - range.start;
        let shared = matches!(kind, Kind::Read | Kind::Flush);
        let _held = (!self.torture.overlapping).then(|| self.ranges.hold(sectors.clone(), shared));
        let disk = &self.torture.disk;
        let buffer = buffer.first(bytes(length));
        let said = |result: std::io::Result<()>| result.map_err(|e| e.to_string());
        let change = match *kind {
            Kind::Read => {
                let reading = self.model.begin_read(thread);
                said(disk.read(buffer, range.start))?;
                return self
                    .model
                    .end_read(&reading, &self.pattern, sectors.start, buffer)
                    .map_err(|wrong| describe(&self.pattern, range, buffer, &wrong));
            }
            Kind::Flush => return said(disk.flush()),
            Kind::Write { forced } => {
                self.pattern.fill(buffer, sectors.start, number + 2);
                let change = self.model.begin_write(sectors, number + 2);
                said(disk.write(buffer, range.start, forced))?;
                change
            }
            Kind::Zero { punch } => {
                let change = self.model.begin_write(sectors, ZEROES);
                said(disk.zero(range.start, length, punch))?;
                change
            }
            Kind::Discard => {
                let change = self.model.begin_discard(sectors);
                said(disk.discard(range.start, length))?;
                change
            }
        };
        self.model.end(change);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write { forced: bool },
    Zero { punch: bool },
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
    /// Operation `number` of a seed on a disk of `size` bytes.
    fn choose(disk: &dyn Disk, size: u64, seed: u64, number: u64) -> Self {
        let mut dice = Dice::new(mix(seed) ^ mix(!number));
        let kind = Kind::choose(&mut dice, disk.has_discard());
        let unit = match kind {
            Kind::Zero { .. } => disk.zeroing_unit(),
            // Half of the operations resemble a file system's I/O.
            _ if dice.percent(50) => disk.unit().max(4096),
            _ => disk.unit(),
        };
        let longest = match dice.below(100) {
            0..80 => 16 << 10,
            80..98 => 128 << 10,
            _ => LARGEST,
        };
        let length = (dice.below(longest) + 1)
            .next_multiple_of(unit)
            .min(size / unit * unit);
        let (from, room) = place(&mut dice, size);
        let start = (from + dice.below(room)).min(size - length) / unit * unit;
        Self {
            kind,
            range: start..start + length,
        }
    }
}

/// Start of an operation: most are in one tenth of the disk, larger than a small cache, and half of those in a quarter
/// of it, which is smaller.
fn place(dice: &mut Dice, size: u64) -> (u64, u64) {
    let hot = size / 2..size / 2 + size / 10;
    match dice.below(100) {
        0..40 => (hot.start, size / 40),
        40..80 => (hot.start, size / 10),
        _ => (0, size),
    }
}

impl Kind {
    fn choose(dice: &mut Dice, has_discard: bool) -> Self {
        let (forced, punch) = (dice.percent(10), dice.percent(50));
        match dice.below(100) {
            0..55 => Self::Read,
            55..92 => Self::Write { forced },
            92..95 => Self::Flush,
            95..98 if has_discard => Self::Discard,
            _ => Self::Zero { punch },
        }
    }
}

impl Done {
    fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Read => &mut self.reads,
            Kind::Write { .. } => &mut self.writes,
            Kind::Zero { .. } => &mut self.zeroes,
            Kind::Discard => &mut self.discards,
            Kind::Flush => &mut self.flushes,
        } += 1;
    }

    fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.zeroes += other.zeroes;
        self.discards += other.discards;
        self.flushes += other.flushes;
    }
}

/// A pseudorandom sequence.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below the limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % limit.max(1)
    }

    /// Whether something of this chance in percent happens.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// A whole disk in pieces of the largest size.
fn pieces(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(LARGEST)).map(move |i| i * LARGEST..size.min((i + 1) * LARGEST))
}

/// Describes a mismatch: position, origin of the content, and expected origin.
fn describe(pattern: &Pattern, range: &Range<u64>, found: &[u8], wrong: &model::Wrong) -> String {
    let sector = wrong.byte / SECTOR * SECTOR;
    let content = &found[sector..sector + SECTOR];
    let position = (range.start + sector as u64) / SECTOR as u64;
    let is = origin(pattern, position, content);
    let may: Vec<String> = wrong
        .possible
        .iter()
        .map(|&version| version_name(version))
        .collect();
    format!(
        "the first wrong byte is {}: sector {position} holds {is}; it may hold {}",
        range.start + wrong.byte as u64,
        may.join(" or ")
    )
}

/// Where the content of a sector is from, in words.
pub(crate) fn origin(pattern: &Pattern, position: u64, content: &[u8]) -> String {
    match pattern.origin(content) {
        Some((version, _)) if version == ZEROES => version_name(version),
        Some((version, place)) if place == position => version_name(version),
        Some((version, place)) => format!("what belongs to sector {place}: {}", version_name(version)),
        None => format!("nothing that was ever written whole: {:02x?}...", &content[..32]),
    }
}

pub(crate) fn version_name(version: u64) -> String {
    match version {
        ZEROES => "zeroes".to_owned(),
        FIRST => "the first content".to_owned(),
        version => format!("the write of operation {}", version - 2),
    }
}

pub(crate) fn at(range: &Range<u64>) -> String {
    format!("{} bytes at {}", range.end - range.start, range.start)
}

fn bytes(length: u64) -> usize {
    usize::try_from(length).expect("within memory")
}

fn direct(path: &Path, writable: bool) -> Direct {
    Direct::open(path, writable).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
}
