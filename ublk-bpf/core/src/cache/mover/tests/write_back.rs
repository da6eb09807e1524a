//! Write-back where something fails, or grows meanwhile.

use super::*;
use crate::cache::log::{Log, LogLayout, LogSeal};
use crate::cache::maps::Room;
use crate::cache::{BackEnd, ChangeStart, CommitNext, Scope};

pub(super) const SLOTS: u32 = Room::SLOTS;

fn layout() -> LogLayout {
    LogLayout::new(u64::from(SLOTS) * BLOCK, SLOTS, 8)
}

fn set_log(cache: &Cache<'_>) {
    let seal = LogSeal {
        cache_id: [7; 16],
        log_id: 1,
    };
    cache.set_log(Log::new(layout(), seal), false);
}

/// Nothing is cleaned that is not asked for.
pub(super) fn lazy<'c, 'm>(cache: &'c Cache<'m>) -> Mover<'c, 'm> {
    let limits = CleanLimits {
        low: SLOTS,
        high: SLOTS,
        rate: None,
    };
    let mut mover = mover(cache).with_writeback(limits);
    cache.free.is_wanted.store(true, Ordering::SeqCst);
    while mover.poll(Duration::ZERO).is_ok() {}
    mover
}

fn write(cache: &Cache<'_>, mover: &mut Mover<'_, '_>, block: u64, now: Duration) -> Vec<MoverIo> {
    let begun = std::iter::from_fn(|| mover.poll(now).ok()).collect();
    cache.count_requests(1);
    let ChangeStart::Back(write) = cache.start_write(block * BLOCK, BLOCK, None) else {
        panic!("there is a slot");
    };
    cache.end_back(block * BLOCK, BLOCK, write, BackEnd::Stored);
    begun
}

pub(super) fn job_of(io: &MoverIo) -> (u16, i32) {
    match *io {
        MoverIo::LoadSlot { job, len, .. }
        | MoverIo::StoreBacking { job, len, .. }
        | MoverIo::StoreRecord { job, len, .. }
        | MoverIo::StorePages { job, len, .. } => (job, len.cast_signed()),
        MoverIo::FlushBacking { job } | MoverIo::FlushCache { job } => (job, 0),
        ref io => panic!("no write-back: {io:?}"),
    }
}

#[test]
fn a_backing_that_fails_is_not_asked_all_the_time_and_does_not_keep_a_stop() {
    let room = Room::new();
    let cache = room.cache();
    let mut mover = lazy(&cache);
    write(&cache, &mut mover, 5, Duration::ZERO);
    mover.drain();
    let mut stores = 0;
    let mut run = |mover: &mut Mover<'_, '_>, now| {
        for _ in 0..50 {
            let Ok(mut io) = mover.poll(now) else { break };
            loop {
                let (job, good) = job_of(&io);
                let is_store = matches!(io, MoverIo::StoreBacking { .. });
                stores += u32::from(is_store);
                match mover.done(job, if is_store { -5 } else { good }) {
                    Some(next) => io = next,
                    None => break,
                }
            }
        }
        stores
    };
    assert_eq!(run(&mut mover, Duration::ZERO), 1);
    assert_eq!(run(&mut mover, Duration::from_millis(999)), 1);
    assert_eq!(run(&mut mover, Duration::from_secs(1)), 2);
    assert!(!mover.is_idle(), "it is to be drained");
    mover.stop();
    assert_eq!(run(&mut mover, Duration::from_secs(1)), 3, "once more");
    assert!(mover.is_idle() && cache.dirty_slots() == 1);
}

#[test]
fn a_record_that_is_written_in_part_is_not_durable() {
    let room = Room::new();
    let cache = room.cache();
    set_log(&cache);
    let mut mover = lazy(&cache);
    write(&cache, &mut mover, 5, Duration::ZERO);
    let mut io = mover.poll(Duration::from_secs(1)).expect("a commit");
    while !matches!(io, MoverIo::StoreRecord { .. }) {
        let (job, good) = job_of(&io);
        io = mover.done(job, good).expect("its record");
    }
    let (job, good) = job_of(&io);
    assert_eq!(mover.done(job, good - 512), None);
    let again = mover.poll(Duration::from_secs(2)).expect("the commit once more");
    assert!(matches!(
        again,
        MoverIo::StoreRecord { .. } | MoverIo::FlushCache { .. }
    ));
}

#[test]
fn a_checkpoint_stays_in_its_area_though_more_becomes_dirty_meanwhile() {
    let room = Room::new();
    let cache = room.cache();
    set_log(&cache);
    let mut mover = lazy(&cache);
    let mut now = Duration::ZERO;
    let mut pages = None;
    for block in 0..5 {
        write(&cache, &mut mover, block, now);
        now += Duration::from_secs(1);
        while let Ok(mut io) = mover.poll(now) {
            if matches!(io, MoverIo::StorePages { .. }) {
                pages = Some(io);
                continue;
            }
            while let Some(next) = {
                let (job, good) = job_of(&io);
                mover.done(job, good)
            } {
                io = next;
            }
        }
    }
    // One more has been committed while the pages of the others are written.
    let layout = layout();
    let mut next = Some(pages.expect("half of the log is used"));
    for block in 6..8 {
        write(&cache, &mut mover, block, now);
        now += Duration::from_secs(1);
        while let Ok(mut io) = mover.poll(now) {
            while let Some(next) = {
                let (job, good) = job_of(&io);
                mover.done(job, good)
            } {
                io = next;
            }
        }
    }
    let area = u64::from(layout.area_pages) * 4096;
    let mut in_areas = Vec::new();
    while let Some(io) = next {
        if let MoverIo::StorePages {
            offset,
            len,
            is_durable: false,
            ..
        } = io
        {
            in_areas.push((offset - layout.areas_offset, u64::from(len)));
        }
        let (job, good) = job_of(&io);
        next = mover.done(job, good);
    }
    let half = in_areas[0].0 / area;
    assert!(
        in_areas
            .iter()
            .all(|&(at, len)| at / area == half && (at + len - 1) / area == half),
        "{in_areas:?} with areas of {area} bytes"
    );
}

#[test]
fn slots_that_were_cleaned_are_given_to_other_blocks() {
    for (algorithm, has_log) in [
        (Algorithm::Clock, true),
        (Algorithm::default(), true),
        (Algorithm::Clock, false),
        (Algorithm::default(), false),
    ] {
        let room = Room::new();
        let cache = room.cache();
        if has_log {
            set_log(&cache);
        }
        let no_limit = PromoteLimits { rate: None };
        let mover = Mover::new(&cache, algorithm, no_limit, CacheCounters::default());
        let mut mover = mover.with_writeback(CleanLimits {
            low: 2,
            high: 4,
            rate: None,
        });
        for block in 0..16 {
            // What is clean is free of the log one commit later.
            for second in 2 * block..2 * block + 2 {
                carry_out(&mut mover, Duration::from_secs(second));
                if !has_log {
                    let mut next = cache.commit(cache.begin_flush(), Scope::All, 0);
                    while let CommitNext::Lead(io) = next {
                        next = cache.commit_done(io, Ok(())).expect("it succeeds");
                    }
                }
            }
            cache.count_requests(1);
            let start = cache.start_write(block * BLOCK, BLOCK, None);
            let ChangeStart::Back(write) = start else {
                panic!("block {block}, {algorithm:?}, with a log: {has_log}: {start:?}");
            };
            cache.end_back(block * BLOCK, BLOCK, write, BackEnd::Stored);
        }
        assert!(mover.counters().evicted >= 8, "{:?}", mover.counters());
    }
}

/// Carries out all that the mover wants done.
fn carry_out(mover: &mut Mover<'_, '_>, now: Duration) {
    while let Ok(mut io) = mover.poll(now) {
        while let Some(next) = {
            let (job, good) = job_of(&io);
            mover.done(job, good)
        } {
            io = next;
        }
    }
}
