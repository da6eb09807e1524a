//! How many slots are kept free for writes that end in them.

use super::*;
use crate::cache::maps::Room;
use crate::cache::{BackEnd, ChangeStart, CleanLimits, Downgrade};

const SLOTS: u32 = 2048;
const BLOCKS: u64 = 1 << 16;
const SECOND: Duration = Duration::from_secs(1);

/// Writes so many blocks that are not in the cache, one after the other. Returns how many end on the backing device because
/// there is no slot.
fn burst(cache: &Cache<'_>, next: &mut u64, count: u32) -> u32 {
    let mut missed = 0;
    for _ in 0..count {
        let offset = *next % BLOCKS * BLOCK;
        *next += 1;
        match cache.start_write(offset, BLOCK, None) {
            ChangeStart::Back(write) => {
                cache.end_back(offset, BLOCK, write, BackEnd::Stored);
            }
            ChangeStart::Marked(change, Some(Downgrade::NoSlot)) => {
                missed += 1;
                cache.end_change(offset, BLOCK, change.claim, false);
            }
            other => panic!("{other:?}"),
        }
    }
    cache.count_requests(count.into());
    missed
}

/// All that the mover wants is done, on devices that take no time.
fn serve(mover: &mut Mover<'_, '_>, now: Duration) {
    while let Ok(mut io) = mover.poll(now) {
        while let Some(next) = {
            let (job, good) = write_back::job_of(&io);
            mover.done(job, good)
        } {
            io = next;
        }
    }
}

#[test]
fn more_slots_are_kept_free_for_bursts_and_fewer_afterwards() {
    let room = Room::of(12, BLOCKS, SLOTS);
    let cache = room.logged_cache();
    let mut mover = mover(&cache).with_writeback(CleanLimits {
        low: 0,
        high: SLOTS,
        rate: None,
    });
    let mut now = SECOND;
    serve(&mut mover, now);
    let (mut next, mut missed) = (0, Vec::new());
    // Enough to fill the cache, so that clean blocks are evicted for the later ones.
    for _ in 0..40 {
        missed.push(burst(&cache, &mut next, 100));
        now += SECOND;
        cache.start_drain();
        serve(&mut mover, now);
        cache.end_drain();
    }
    assert!(missed[0] > 50, "{missed:?}");
    assert!(missed[1..].iter().all(|&missed| missed == 0), "{missed:?}");
    assert!(
        mover.counters().evicted > 1000 && cache.free.idle() <= SLOTS / 16,
        "{} evicted",
        mover.counters().evicted
    );
    for _ in 0..100 {
        now += SECOND;
        serve(&mut mover, now);
    }
    assert_eq!((cache.free.idle(), cache.free.slots.len()), (SLOTS / 128, 16));
}

#[test]
fn where_everything_is_dirty_writes_pass_through_until_something_is_clean() {
    let room = Room::of(12, BLOCKS, SLOTS);
    let cache = room.logged_cache();
    let mut mover = mover(&cache).with_writeback(CleanLimits {
        low: SLOTS,
        high: u32::MAX,
        rate: None,
    });
    let (mut next, mut now) = (0, Duration::ZERO);
    while cache.dirty_slots() < SLOTS {
        now += Duration::from_millis(10);
        serve(&mut mover, now);
        burst(&cache, &mut next, 16);
    }
    now += Duration::from_millis(10);
    serve(&mut mover, now);
    assert_eq!(burst(&cache, &mut next, 10), 10);
    cache.start_drain();
    serve(&mut mover, now);
    cache.end_drain();
    now += 2 * SECOND;
    serve(&mut mover, now);
    assert_eq!(burst(&cache, &mut next, 10), 0);
}
