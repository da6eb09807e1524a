//! A torture: random operations by several threads at once, and a model of what each sector holds then.
//!
//! [`Torture::new`] orders operations that touch the same sectors, so that every read has one answer, and lets those
//! run at once that touch the same block of a cache but no common sector. With [`Torture::overlapping`] nothing is
//! ordered: a read beside writes must find each sector whole, and as one of them left it.
//!
//! Operation N of a seed is always the same, whichever thread does it.

mod content;
mod disk;
mod model;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::scope;

pub use disk::Disk;

use content::{FIRST, Pattern, SECTOR, ZEROES, mix};
use disk::{Aligned, Direct};
use model::{Model, Ranges};

/// The most that one operation reads or writes, in bytes.
const LARGEST: u64 = 1 << 20;

/// A torture to be run.
pub struct Torture {
    disk: Box<dyn Disk>,
    threads: usize,
    operations: u64,
    seed: u64,
    overlapping: bool,
}

/// What a torture did, and what it left on the disk.
#[derive(Debug)]
pub struct Report {
    /// How many operations of each kind were done.
    pub done: Done,
    model: Model,
    pattern: Pattern,
    size: u64,
}

/// A number of operations of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Reads, each compared byte by byte.
    pub reads: u64,
    /// Writes, the forced ones included.
    pub writes: u64,
    /// Ranges made zeroes.
    pub zeroes: u64,
    /// Ranges given up.
    pub discards: u64,
    /// Flushes.
    pub flushes: u64,
}

impl Torture {
    /// Of the block device at this path; its content is lost.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::on(direct(path.as_ref(), true))
    }

    /// Of a file on a file system, as large as it is; its content is lost.
    pub fn on_file(path: impl AsRef<Path>) -> Self {
        Self::new(path)
    }

    /// Of anything that holds bytes.
    pub fn on(disk: impl Disk + 'static) -> Self {
        Self {
            disk: Box::new(disk),
            threads: 8,
            operations: 10_000,
            seed: 1,
            overlapping: false,
        }
    }

    /// With so many threads (8, if not said).
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// With so many operations in all (10,000, if not said).
    #[must_use]
    pub fn operations(mut self, operations: u64) -> Self {
        self.operations = operations;
        self
    }

    /// With the operations of this seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// With operations on the same sectors at the same time, for a disk that never tears a sector: one on memory may.
    #[must_use]
    pub fn overlapping(mut self) -> Self {
        self.overlapping = true;
        self
    }

    /// Runs it, then reads the whole disk; panics with the seed, the operation and the first byte that is wrong.
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
    /// Compares all that is at this path with what must be there, and panics at the first byte that differs.
    ///
    /// For a look past the device once it is stopped: at its backing.
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

/// What a torture found to be wrong.
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

/// A torture that runs.
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
    /// Writes what the model begins with.
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
                done.add(thread.join().expect("a fault is told, not panicked")?);
            }
            Ok(done)
        })
    }

    /// One thread's share, until all operations are done or one has failed.
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
        let mut dice = Dice(mix(seed) ^ mix(!number));
        let kind = Kind::choose(&mut dice, disk.has_discard());
        let unit = match kind {
            Kind::Zero { .. } => disk.zeroing_unit(),
            // Half of what is done has the shape of a file system's I/O.
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

/// Where an operation begins: most in a tenth of the disk, which is more than a small cache, and half of those in a
/// quarter of that, which is less.
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

/// A sequence of numbers that are as good as random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % limit.max(1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// A whole disk in pieces of the largest size.
fn pieces(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(LARGEST)).map(move |i| i * LARGEST..size.min((i + 1) * LARGEST))
}

/// What was found in a range, in words: where, whose it is, and whose it should be.
fn describe(pattern: &Pattern, range: &Range<u64>, found: &[u8], wrong: &model::Wrong) -> String {
    let sector = wrong.byte / SECTOR * SECTOR;
    let content = &found[sector..sector + SECTOR];
    let position = (range.start + sector as u64) / SECTOR as u64;
    let is = match pattern.origin(content) {
        Some((version, _)) if version == ZEROES => name(version),
        Some((version, place)) if place == position => name(version),
        Some((version, place)) => format!("what belongs to sector {place}: {}", name(version)),
        None => format!("nothing that was ever written whole: {:02x?}...", &content[..32]),
    };
    let may: Vec<String> = wrong.possible.iter().map(|&version| name(version)).collect();
    format!(
        "the first wrong byte is {}: sector {position} holds {is}; it may hold {}",
        range.start + wrong.byte as u64,
        may.join(" or ")
    )
}

fn name(version: u64) -> String {
    match version {
        ZEROES => "zeroes".to_owned(),
        FIRST => "the first content".to_owned(),
        version => format!("the write of operation {}", version - 2),
    }
}

fn at(range: &Range<u64>) -> String {
    format!("{} bytes at {}", range.end - range.start, range.start)
}

fn bytes(length: u64) -> usize {
    usize::try_from(length).expect("within memory")
}

fn direct(path: &Path, writable: bool) -> Direct {
    Direct::open(path, writable).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
}
