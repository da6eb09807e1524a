//! A start or recovery, up to the first request: it may be cut short as well.

use std::sync::atomic::AtomicU64;

use super::devices::{Content, Io, Pages, Place, Side};
use super::{BLOCKS, End, Omission, Point, SLOTS, World, layout};
use crate::cache::log::{LOG_PAGE, Log, LogEntry, LogSeal, replay};
use crate::cache::{DirtyBlock, Maps, Survivors, surviving};

/// The maps, which outlive a kill: index and heat, and what is dirty.
pub(super) struct Memory(pub(super) Maps, pub(super) Vec<AtomicU64>);

impl Memory {
    pub(super) fn new() -> Self {
        let dirty = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Self(Maps::of(BLOCKS), dirty)
    }
}

pub(super) struct Started {
    pub(super) log: Log,
    pub(super) survivors: Survivors,
}

/// What a server finds, and the log that it goes on with; or how it ended before it could serve.
pub(super) fn start(world: &mut World, memory: &mut Memory, last: End) -> Result<Started, End> {
    let (mut log, logged) = open(world);
    let survivors = if last == End::Kill && !world.omits(Omission::Survivors) {
        surviving(&memory.0.index, &memory.1, SLOTS, &logged).expect("a sound index")
    } else {
        *memory = Memory::new();
        Survivors {
            dirty: logged.iter().map(dirty_block).collect(),
            clean: Vec::new(),
        }
    };
    let crash_at = match world.random.below(16) {
        0 => Some(Point::RecoveryPages),
        1 => Some(Point::RecoveryFlush),
        2 => Some(Point::RecoveryHead),
        3 => Some(Point::RecoverySuperblock),
        _ => None,
    };
    checkpoint(world, &mut log, &logged, crash_at)?;
    if !world.omits(Omission::DirtySuperblock) {
        world.superblock = Some(log.seal());
    }
    cut(world, crash_at, Point::RecoverySuperblock)?;
    Ok(Started { log, survivors })
}

fn dirty_block(entry: &LogEntry) -> DirtyBlock {
    DirtyBlock {
        slot: entry.slot,
        block: entry.block,
        dirty: entry.dirty,
        logged: entry.dirty,
    }
}

/// What the log on the device says, and its successor.
fn open(world: &mut World) -> (Log, Vec<LogEntry>) {
    world.log_ids += 1;
    let seal = LogSeal {
        cache_id: [7; 16],
        log_id: world.log_ids,
    };
    let Some(found) = world.superblock else {
        return (Log::new(layout(), seal), Vec::new());
    };
    let mut pages = Pages(&world.devices, Vec::new());
    let replayed = replay(&mut pages, &layout(), &found, BLOCKS).expect("no crash damages the log");
    (replayed.previous.successor(seal), replayed.dirty)
}

fn checkpoint(
    world: &mut World,
    log: &mut Log,
    dirty: &[LogEntry],
    crash_at: Option<Point>,
) -> Result<(), End> {
    let mut buffer = vec![0; LOG_PAGE];
    let mut checkpoint = log.begin_checkpoint();
    let mut entries = dirty.iter().copied();
    while let Some(placed) = checkpoint.append(&mut entries, &mut buffer) {
        write(world, placed.offset, &buffer[..placed.length], false);
    }
    cut(world, crash_at, Point::RecoveryPages)?;
    if !world.omits(Omission::FlushOfCheckpoint) {
        world.devices.flush(Side::Cache);
    }
    cut(world, crash_at, Point::RecoveryFlush)?;
    let placed = checkpoint.head(&mut buffer);
    write(world, placed.offset, &buffer[..placed.length], true);
    log.end_checkpoint(&checkpoint);
    cut(world, crash_at, Point::RecoveryHead)
}

fn write(world: &mut World, offset: u64, bytes: &[u8], is_durable: bool) {
    let mut io = Io::write(log_pages(offset, bytes), is_durable);
    while io.advance(&mut world.devices, &mut world.random).is_none() {}
    world.counts.operations += 1;
    world.late_one();
}

fn cut(world: &mut World, crash_at: Option<Point>, point: Point) -> Result<(), End> {
    if crash_at == Some(point) {
        return Err(world.crash(Vec::new(), std::iter::once(point)));
    }
    Ok(())
}

/// Pages of the log, with their places on the cache device.
pub(super) fn log_pages(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (Place, Content)> {
    let places = (offset..).step_by(LOG_PAGE).map(|at| Place::at(Side::Cache, at));
    places.zip(bytes.chunks(LOG_PAGE).map(|page| Content::Page(page.into())))
}

impl World {
    /// Perhaps something of what a dead server had in flight happens.
    pub(super) fn late_one(&mut self) {
        if !self.late.is_empty()
            && self.random.one_in(4)
            && let Some(late) = self.random.take(&mut self.late)
        {
            late.happen(&mut self.devices);
        }
    }
}
