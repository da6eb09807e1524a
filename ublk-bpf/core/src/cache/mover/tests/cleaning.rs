//! Cleaning, on two devices that keep a number for each sector.

use std::collections::HashMap;

use super::write_back::{SLOTS, job_of, lazy};
use super::*;
use crate::cache::maps::Room;
use crate::cache::{BackEnd, BackWrite, ChangeStart, CleanFailure, CleanLimits, DrainProgress};

const EIO: i32 = -5;
const SECOND: Duration = Duration::from_secs(1);

/// What the devices hold, by sector, and what was done to the backing device.
#[derive(Default)]
struct Devices {
    cache: HashMap<u64, u64>,
    backing: HashMap<u64, u64>,
    buffers: HashMap<u16, Vec<u64>>,
    writes: Vec<(u64, u32)>,
    flushes: u32,
    /// A block of the backing device that cannot be written.
    bad: Option<u64>,
}

impl Devices {
    /// Carries out an operation, and returns its result.
    fn carry_out(&mut self, io: &MoverIo) -> i32 {
        match *io {
            MoverIo::LoadSlot {
                buffer,
                offset,
                skip,
                len,
                ..
            } => {
                let buffer = self.buffers.entry(buffer).or_default();
                buffer.truncate(skip as usize / 512);
                assert_eq!(buffer.len(), skip as usize / 512, "a gap in the buffer");
                let sectors = offset / 512..(offset + u64::from(len)) / 512;
                buffer.extend(sectors.map(|at| self.cache.get(&at).copied().unwrap_or(0)));
            }
            MoverIo::StoreBacking {
                buffer, offset, len, ..
            } => {
                self.writes.push((offset, len));
                let range = offset..offset + u64::from(len);
                if self.bad.is_some_and(|bad| range.contains(&(bad * BLOCK))) {
                    return EIO;
                }
                let sectors = offset / 512..range.end / 512;
                self.backing
                    .extend(sectors.zip(self.buffers[&buffer].iter().copied()));
            }
            MoverIo::FlushBacking { .. } => self.flushes += 1,
            _ => {}
        }
        job_of(io).1
    }

    /// Carries out everything until the mover rests.
    fn run(&mut self, mover: &mut Mover<'_, '_>, now: Duration) -> Rest {
        loop {
            let mut io = match mover.poll(now) {
                Ok(io) => io,
                Err(rest) => return rest,
            };
            loop {
                let result = self.carry_out(&io);
                match mover.done(job_of(&io).0, result) {
                    Some(next) => io = next,
                    None => break,
                }
            }
        }
    }
}

/// A write of these bytes begins in its slot.
fn begin(cache: &Cache<'_>, offset: u64, length: u64) -> BackWrite {
    cache.count_requests(1);
    match cache.start_write(offset, length, None) {
        ChangeStart::Back(write) => write,
        other => panic!("{other:?}"),
    }
}

/// It ends.
fn end(devices: &mut Devices, cache: &Cache<'_>, (offset, length): (u64, u64), write: BackWrite, value: u64) {
    let at = offset.wrapping_add(cache.slot_delta(write.pin(), offset));
    let sectors = at / 512..(at + length) / 512;
    devices.cache.extend(sectors.map(|sector| (sector, value)));
    cache.end_back(offset, length, write, BackEnd::Stored);
}

/// Writes whole blocks, each with its number. The mover provides their slots.
fn write(devices: &mut Devices, mover: &mut Mover<'_, '_>, blocks: &[u64]) {
    let cache = mover.cache;
    for &block in blocks {
        devices.run(mover, Duration::ZERO);
        let begun = begin(cache, block * BLOCK, BLOCK);
        end(devices, cache, (block * BLOCK, BLOCK), begun, block);
    }
}

fn has(devices: &Devices, block: u64, value: u64) -> bool {
    let sector = block * BLOCK / 512;
    (sector..sector + BLOCK / 512).all(|at| devices.backing.get(&at) == Some(&value))
}

#[test]
fn adjacent_blocks_are_one_write_and_all_share_a_flush() {
    let (room, mut devices) = (Room::new(), Devices::default());
    let cache = room.cache();
    let mut mover = lazy(&cache);
    write(&mut devices, &mut mover, &[10, 11, 12]);
    cache.start_drain();
    devices.run(&mut mover, Duration::ZERO);
    cache.end_drain();
    (devices.writes, devices.flushes) = (Vec::new(), 0);
    write(&mut devices, &mut mover, &[9, 4, 3, 5]);
    // The end of a block, and the beginning of the next one.
    for (offset, length) in [(11 * BLOCK - 512, 512), (11 * BLOCK, 1024)] {
        devices.run(&mut mover, Duration::ZERO);
        let begun = begin(&cache, offset, length);
        end(&mut devices, &cache, (offset, length), begun, 7);
    }
    mover.drain();
    devices.run(&mut mover, Duration::ZERO);
    let small = |blocks: u64| u32::try_from(blocks * BLOCK).expect("few");
    assert_eq!(
        devices.writes,
        [
            (3 * BLOCK, small(3)),
            (9 * BLOCK, small(1)),
            (11 * BLOCK - 512, 1536)
        ]
    );
    assert_eq!((devices.flushes, cache.dirty_slots()), (1, 0));
    assert!([3, 4, 5, 9].iter().all(|&block| has(&devices, block, block)));
    let counters = mover.counters();
    assert_eq!(
        (counters.clean_writes, counters.clean_batches, counters.dirty),
        (4, 2, 0)
    );
    assert_eq!(counters.cleaned_bytes, 7 * BLOCK + 1536);
}

#[test]
fn a_slot_that_is_written_meanwhile_ends_the_copy_before_it() {
    let (room, mut devices) = (Room::new(), Devices::default());
    let cache = room.cache();
    let mut mover = lazy(&cache);
    write(&mut devices, &mut mover, &[3, 4, 5]);
    mover.drain();
    let load = mover.poll(Duration::ZERO).expect("a copy");
    let mut io = load;
    let mut begun = None;
    while !matches!(io, MoverIo::StoreBacking { .. }) {
        let result = devices.carry_out(&io);
        begun = begun.or_else(|| Some(begin(&cache, 4 * BLOCK, BLOCK)));
        io = mover
            .done(job_of(&io).0, result)
            .expect("more to read, or to write");
    }
    assert!(
        matches!(io, MoverIo::StoreBacking { offset, len, .. } if (offset, u64::from(len)) == (3 * BLOCK, BLOCK)),
        "{io:?}"
    );
    let result = devices.carry_out(&io);
    assert_eq!(mover.done(job_of(&io).0, result), None);
    let write = begun.expect("it has begun");
    end(&mut devices, &cache, (4 * BLOCK, BLOCK), write, 44);
    devices.run(&mut mover, Duration::ZERO);
    assert_eq!(cache.dirty_slots(), 0);
    assert!(has(&devices, 3, 3) && has(&devices, 4, 44) && has(&devices, 5, 5));
}

#[test]
fn a_block_that_cannot_be_written_keeps_no_other_from_becoming_clean() {
    let (room, mut devices) = (Room::new(), Devices::default());
    let cache = room.cache();
    let mut mover = lazy(&cache);
    write(&mut devices, &mut mover, &[3, 4, 5]);
    devices.bad = Some(4);
    mover.drain();
    devices.run(&mut mover, Duration::ZERO);
    assert!(has(&devices, 3, 3) && has(&devices, 5, 5) && cache.dirty_slots() == 1);
    let failure = mover.take_clean_failure();
    assert!(
        matches!(failure, Some(CleanFailure { during: "writing to the backing device", offset, .. }) if offset == 3 * BLOCK),
        "{failure:?}"
    );
    assert_eq!(mover.counters().clean_errors, 2, "together, and alone");
    assert_eq!(cache.drain_progress().stuck, 1);
    // It is tried again, and told once.
    devices.run(&mut mover, SECOND);
    assert_eq!(mover.counters().clean_errors, 3);
    assert_eq!(mover.take_clean_failure(), None);
    devices.bad = None;
    devices.run(&mut mover, 4 * SECOND);
    assert_eq!((cache.dirty_slots(), cache.drain_progress().stuck), (0, 0));
    assert!(has(&devices, 4, 4));
}

#[test]
fn a_change_waits_for_no_block_that_was_given_up_meanwhile() {
    let (room, mut devices) = (Room::new(), Devices::default());
    let cache = room.cache();
    let mut mover = lazy(&cache);
    write(&mut devices, &mut mover, &[3, 4]);
    assert_eq!(cache.start_discard(3 * BLOCK, 2 * BLOCK), ChangeStart::Wait);
    devices.bad = Some(4);
    devices.run(&mut mover, Duration::ZERO);
    assert_eq!(cache.drain_progress().stuck, 1);
    assert!(!cache.wait_to_change(3 * BLOCK, 2 * BLOCK, 0));
    assert_eq!(cache.start_discard(3 * BLOCK, 2 * BLOCK), ChangeStart::Stuck);
}

#[test]
fn the_rate_holds_a_drain_back_but_not_what_is_waited_for() {
    let (room, mut devices) = (Room::new(), Devices::default());
    let cache = room.cache();
    let mut mover = lazy(&cache);
    // Not adjacent: each is a copy of its own.
    write(&mut devices, &mut mover, &[1, 3, 5, 7, 9, 11, 13]);
    let limits = CleanLimits {
        low: 0,
        high: SLOTS,
        rate: Some(BLOCK),
    };
    cache.limit_cleaning(limits);
    assert_eq!(cache.clean_limits(), limits);
    let mut now = SECOND;
    let mut copied = Vec::new();
    for _ in 0..4 {
        let rest = devices.run(&mut mover, now);
        assert!(matches!(rest, Rest::Until(then) if then > now && then <= now + 2 * SECOND));
        copied.push(devices.writes.len());
        now += SECOND;
    }
    assert_eq!(copied, [1, 2, 3, 4]);
    assert!(devices.flushes <= 4);
    // A discard waits for one of the others.
    assert_eq!(cache.start_discard(13 * BLOCK, BLOCK), ChangeStart::Wait);
    devices.run(&mut mover, now - SECOND);
    assert!(has(&devices, 13, 13) && !has(&devices, 11, 11));
    assert!(matches!(
        cache.start_discard(13 * BLOCK, BLOCK),
        ChangeStart::Marked(..)
    ));
    cache.end_change(13 * BLOCK, BLOCK, None, false);
    // No limit any more.
    cache.limit_cleaning(CleanLimits { rate: None, ..limits });
    devices.run(&mut mover, now);
    assert_eq!(cache.dirty_slots(), 0);
}

#[test]
fn nothing_becomes_dirty_while_a_drain_lasts() {
    let (room, mut devices) = (Room::new(), Devices::default());
    let cache = room.cache();
    let mut mover = lazy(&cache);
    write(&mut devices, &mut mover, &[3, 4]);
    devices.run(&mut mover, Duration::ZERO);
    let begun = begin(&cache, 5 * BLOCK, BLOCK);
    cache.start_drain();
    let before = DrainProgress {
        blocks: 2,
        bytes: 2 * BLOCK,
        stuck: 0,
        is_done: false,
    };
    assert_eq!(cache.drain_progress(), before);
    // A write of what is dirty waits, others pass through.
    assert_eq!(cache.start_write(3 * BLOCK, 512, None), ChangeStart::Wait);
    let beside = cache.start_write(8 * BLOCK, BLOCK, None);
    assert!(matches!(beside, ChangeStart::Marked(..)), "{beside:?}");
    cache.end_change(8 * BLOCK, BLOCK, None, false);
    let rest = devices.run(&mut mover, Duration::ZERO);
    // The write that had begun may still make its block dirty.
    assert_eq!(
        cache.drain_progress(),
        DrainProgress {
            blocks: 0,
            bytes: 0,
            ..before
        }
    );
    assert!(matches!(rest, Rest::Until(then) if then < SECOND), "{rest:?}");
    end(&mut devices, &cache, (5 * BLOCK, BLOCK), begun, 5);
    assert!(!cache.drain_progress().is_done);
    devices.run(&mut mover, Duration::from_millis(10));
    assert!(has(&devices, 5, 5));
    assert!(cache.drain_progress().is_done);
    let after = cache.start_write(3 * BLOCK, BLOCK, None);
    let ChangeStart::Marked(change, _) = after else {
        panic!("{after:?}")
    };
    cache.end_change(3 * BLOCK, BLOCK, change.claim, true);
    cache.end_drain();
    assert!(!cache.drain_progress().is_done);
    write(&mut devices, &mut mover, &[3]);
    assert_eq!(cache.dirty_slots(), 1);
}

#[test]
fn a_drain_does_not_fail_writes_that_a_failing_device_keeps_dirty() {
    let (room, mut devices) = (Room::new(), Devices::default());
    let cache = room.cache();
    let mut mover = lazy(&cache);
    write(&mut devices, &mut mover, &[3, 6]);
    devices.bad = Some(6);
    cache.start_drain();
    devices.run(&mut mover, Duration::ZERO);
    let begun = begin(&cache, 6 * BLOCK, BLOCK);
    end(&mut devices, &cache, (6 * BLOCK, BLOCK), begun, 66);
    let left = DrainProgress {
        blocks: 1,
        bytes: BLOCK,
        stuck: 1,
        is_done: false,
    };
    assert_eq!(cache.drain_progress(), left);
    devices.bad = None;
    devices.run(&mut mover, 2 * SECOND);
    assert!(cache.drain_progress().is_done && has(&devices, 6, 66));
}

#[test]
fn a_mode_that_is_not_write_back_any_more_cleans_what_is_dirty() {
    let (room, mut devices) = (Room::new(), Devices::default());
    let cache = room.cache();
    let mut mover = lazy(&cache);
    write(&mut devices, &mut mover, &[3, 4]);
    devices.run(&mut mover, Duration::ZERO);
    assert_eq!(cache.dirty_slots(), 2, "as many may be dirty");
    cache.set_mode(Mode::WriteThrough);
    devices.run(&mut mover, Duration::ZERO);
    assert_eq!(cache.dirty_slots(), 0);
}
