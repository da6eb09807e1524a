//! Commits that fail, and logs that are full.

use std::collections::HashMap;
use std::time::Duration;

use ublk_bpf_abi::{CacheCounters, Priority};

use super::super::evict::Algorithm;
use super::super::log::{LOG_PAGE, LogLayout, LogSeal, ReadPages, replay};
use super::super::maps::Room;
use super::super::{BackEnd, ChangeStart, CleanLimits, Mover, MoverIo, PromoteLimits, Rest};
use super::*;

const BLOCK: u64 = 4096;
const SLOTS: u32 = Room::SLOTS;
const SEAL: LogSeal = LogSeal {
    cache_id: [7; 16],
    log_id: 1,
};

fn layout() -> LogLayout {
    LogLayout::new(u64::from(SLOTS) * BLOCK, SLOTS, 8)
}

/// The pages of the log on a device that fails if it is told so.
#[derive(Default)]
struct Device(HashMap<u64, Vec<u8>>);

impl ReadPages for Device {
    type Error = ();

    fn page(&mut self, offset: u64) -> Result<&[u8], ()> {
        Ok(self.0.entry(offset).or_insert_with(|| vec![0; LOG_PAGE]))
    }
}

impl Device {
    /// With a log that has ended its first checkpoint.
    fn new(cache: &Cache<'_>) -> Self {
        let mut log = Log::new(layout(), SEAL);
        let checkpoint = log.begin_checkpoint();
        let mut page = vec![0; LOG_PAGE];
        let placed = checkpoint.head(&mut page);
        log.end_checkpoint(&checkpoint);
        cache.set_log(log, false);
        Self([(placed.offset, page)].into())
    }

    /// A FLUSH; the operations that `fails` says fail.
    fn flush(&mut self, cache: &Cache<'_>, fails: impl Fn(CommitIo) -> bool) -> Result<CommitNext, Errno> {
        let ticket = cache.begin_flush();
        let mut next = cache.commit(ticket, Scope::All, 0);
        while let CommitNext::Lead(io) = next {
            let result = if fails(io) { Err(Errno::EIO) } else { Ok(()) };
            if let CommitIo::Record { offset, length } = io
                && result.is_ok()
            {
                self.0.insert(offset, cache.record_bytes(length as usize));
            }
            next = match cache.commit_done(io, result)? {
                // The log is full: now it has to wait like all others.
                CommitNext::Wait => cache.commit(ticket, Scope::All, 0),
                next => next,
            };
        }
        Ok(next)
    }

    /// The slots that a power cut leaves dirty.
    fn dirty(&mut self) -> Vec<(u32, u16)> {
        let replayed = replay(self, &layout(), &SEAL, 16).unwrap();
        replayed.dirty.iter().map(|of| (of.slot, of.dirty)).collect()
    }
}

const fn none(_: CommitIo) -> bool {
    false
}

fn is_flush(io: CommitIo) -> bool {
    io == CommitIo::Flush
}

fn is_record(io: CommitIo) -> bool {
    !is_flush(io)
}

/// A write of a whole block. It gets this slot, if it has none.
fn write(cache: &Cache<'_>, block: u32, slot: u32) {
    let offset = u64::from(block) * BLOCK;
    if !cache.entry(block).is_present() {
        cache.free.slots.push(slot).unwrap();
    }
    let ChangeStart::Back(write) = cache.start_write(offset, BLOCK, None) else {
        panic!("it has a slot");
    };
    cache.end_back(offset, BLOCK, write, BackEnd::Stored);
    cache.free.reports.pop();
}

fn clean(cache: &Cache<'_>, block: u32) {
    let (slot, regions, generation) = cache.blocks.begin_clean(block).unwrap();
    cache.blocks.end_clean(slot, (regions, generation));
    assert!(cache.blocks.settle(block, u16::MAX));
}

#[test]
fn a_record_that_failed_is_written_before_any_other() {
    let room = Room::new();
    let cache = room.cache();
    let mut device = Device::new(&cache);
    write(&cache, 3, 0);
    assert_eq!(device.flush(&cache, is_record), Err(Errno::EIO));
    write(&cache, 4, 1);
    assert_eq!(device.flush(&cache, is_flush), Err(Errno::EIO));
    write(&cache, 5, 2);
    assert_eq!(device.flush(&cache, none), Ok(CommitNext::Done));
    assert_eq!(device.dirty(), [(0, u16::MAX), (1, u16::MAX), (2, u16::MAX)]);
}

#[test]
fn what_changed_since_a_record_that_failed_is_recorded_after_it() {
    let room = Room::new();
    let cache = room.cache();
    let mut device = Device::new(&cache);
    write(&cache, 3, 0);
    assert_eq!(device.flush(&cache, none), Ok(CommitNext::Done));
    clean(&cache, 3);
    assert_eq!(device.flush(&cache, is_record), Err(Errno::EIO));
    write(&cache, 3, 0);
    assert_eq!(device.flush(&cache, none), Ok(CommitNext::Done));
    assert_eq!(device.dirty(), [(0, u16::MAX)]);
}

/// Commits until the log is full.
fn fill_log(device: &mut Device, cache: &Cache<'_>) {
    for nth in 0..=layout().log_pages {
        write(cache, 3, 0);
        if nth % 2 == 1 {
            clean(cache, 3);
        }
        match device.flush(cache, none).unwrap() {
            CommitNext::Done => {}
            next => return assert_eq!(next, CommitNext::Wait),
        }
    }
    panic!("the log has room for ever");
}

fn mover<'c, 'm>(cache: &'c Cache<'m>, rate: Option<u64>) -> Mover<'c, 'm> {
    let limits = CleanLimits {
        low: SLOTS,
        high: SLOTS,
        rate: None,
    };
    let counters = CacheCounters::default();
    let mover = Mover::new(cache, Algorithm::Clock, PromoteLimits { rate }, counters);
    mover.with_writeback(limits)
}

/// Of nothing, because nothing is dirty.
fn begins_checkpoint(mover: &mut Mover<'_, '_>) {
    let job = mover.jobs() - 1;
    assert_eq!(mover.poll(Duration::ZERO), Ok(MoverIo::FlushCache { job }));
}

#[test]
fn a_log_that_is_full_wakes_the_mover() {
    let room = Room::new();
    let cache = room.cache();
    let mut device = Device::new(&cache);
    let mut mover = mover(&cache, None);
    assert_eq!(mover.poll(Duration::ZERO), Err(Rest::UntilWoken));
    while cache.free.slots.pop().is_some() {}
    fill_log(&mut device, &cache);
    assert!(cache.must_wake());
    begins_checkpoint(&mut mover);
}

#[test]
fn a_flush_that_finds_the_log_full_is_woken_by_the_checkpoint() {
    // With a cache device that has to be flushed first, and without.
    for is_durable in [false, true] {
        let room = Room::new();
        let cache = room.cache();
        let mut device = Device::new(&cache);
        cache.commits.lock().is_durable = is_durable;
        fill_log(&mut device, &cache);
        let checkpoint = cache.begin_checkpoint().unwrap();
        let _ = cache.take_woken();
        cache.end_checkpoint(&checkpoint);
        assert!(cache.take_woken().contains(0), "durable: {is_durable}");
        assert_eq!(device.flush(&cache, none), Ok(CommitNext::Done));
    }
}

#[test]
fn and_one_that_waits_for_the_promotion_limit() {
    let room = Room::new();
    let cache = room.cache();
    let mut device = Device::new(&cache);
    let mut mover = mover(&cache, Some(1));
    cache.free.spend(1 << 20);
    let rest = mover.poll(Duration::ZERO);
    assert!(matches!(rest, Err(Rest::Until(_))), "{rest:?}");
    while cache.free.slots.pop().is_some() {}
    cache.hint(0, Priority::Normal);
    assert!(!cache.must_wake(), "a hint has to wait for the limit");
    fill_log(&mut device, &cache);
    assert!(cache.must_wake() && !cache.must_wake());
    begins_checkpoint(&mut mover);
}
