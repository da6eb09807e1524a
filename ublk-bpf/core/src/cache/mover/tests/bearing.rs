//! Cleaning beside clients that need the backing device too, in simulated time.

use std::collections::VecDeque;

use super::write_back::job_of;
use super::*;
use crate::cache::{BackEnd, ChangeStart, CleanLimits, maps};

const SHIFT: u32 = 16;
const BLOCK: u64 = 1 << SHIFT;
const BLOCKS: u64 = 4096;
const SLOTS: u32 = 1024;
const LOW: u32 = 200;
const HIGH: u32 = 800;
const SECOND: Duration = Duration::from_secs(1);

/// A request of a client, or an operation of the mover, at the backing device.
enum Work {
    Read,
    Mover(MoverIo),
}

/// A slow device that does one thing at a time, and clients at random: reads that miss the cache, and writes of blocks that
/// end in it.
struct Room {
    random: u64,
    now: Duration,
    reads_a_second: f64,
    writes_a_second: f64,
    next_read: Duration,
    next_write: Duration,
    queue: VecDeque<(Work, Duration)>,
    /// When what the device does is done.
    busy_until: Option<Duration>,
    /// How long the clients' requests took, in microseconds.
    taken: Vec<u64>,
    downgrades: u32,
}

impl Room {
    fn new(reads_a_second: f64, writes_a_second: f64) -> Self {
        let mut room = Self {
            random: 0x9e37_79b9_7f4a_7c15,
            now: SECOND,
            reads_a_second,
            writes_a_second,
            next_read: Duration::ZERO,
            next_write: Duration::ZERO,
            queue: VecDeque::new(),
            busy_until: None,
            taken: Vec::new(),
            downgrades: 0,
        };
        room.next_read = room.now + room.pause(reads_a_second);
        room.next_write = room.now + room.pause(writes_a_second);
        room
    }

    fn random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Until the next of so many a second.
    fn pause(&mut self, rate: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.random()).ln() / rate)
    }

    /// What an operation takes: to get there, and to write.
    fn cost(&mut self, work: &Work) -> Duration {
        let seek = Duration::from_secs_f64(0.001 + 0.003 * self.random());
        match work {
            Work::Read => seek,
            Work::Mover(MoverIo::StoreBacking { len, .. }) => {
                seek + Duration::from_secs_f64(f64::from(*len) / 200e6)
            }
            Work::Mover(_) => seek,
        }
    }

    fn submit(&mut self, work: Work) {
        self.queue.push_back((work, self.now));
        self.start();
    }

    fn start(&mut self) {
        if self.busy_until.is_none()
            && let Some((work, since)) = self.queue.pop_front()
        {
            let cost = self.cost(&work);
            self.busy_until = Some(self.now + cost);
            self.queue.push_front((work, since));
        }
    }

    fn record(&mut self, cache: &Cache<'_>, since: Duration) {
        let taken = self.now - since + Duration::from_micros(50);
        cache.writeback.times.record(taken);
        self.taken.push(u64::try_from(taken.as_micros()).expect("short"));
    }

    /// The mover does what it may. The cache device takes no time.
    fn turn(&mut self, mover: &mut Mover<'_, '_>) -> Option<Duration> {
        loop {
            match mover.poll(self.now) {
                Ok(io) => self.issue(mover, io),
                Err(Rest::Until(then)) => return Some(then),
                Err(Rest::UntilWoken) => return None,
            }
        }
    }

    fn issue(&mut self, mover: &mut Mover<'_, '_>, io: MoverIo) {
        let mut next = Some(io);
        while let Some(io) = next.take() {
            match io {
                MoverIo::StoreBacking { .. } | MoverIo::FlushBacking { .. } => {
                    self.submit(Work::Mover(io));
                }
                io => {
                    let (job, good) = job_of(&io);
                    next = mover.done(job, good);
                }
            }
        }
    }

    fn done(&mut self, cache: &Cache<'_>, mover: &mut Mover<'_, '_>) {
        let (work, since) = self.queue.pop_front().expect("it is being done");
        self.busy_until = None;
        match work {
            Work::Read => self.record(cache, since),
            Work::Mover(io) => {
                let (job, good) = job_of(&io);
                if let Some(next) = mover.done(job, good) {
                    self.issue(mover, next);
                }
            }
        }
        self.start();
    }

    /// A write of a block, which takes no time in its slot.
    fn write(&mut self, cache: &Cache<'_>) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a random block"
        )]
        let block = (self.random() * BLOCKS as f64) as u64;
        match cache.start_write(block * BLOCK, BLOCK, None) {
            ChangeStart::Back(write) => cache.end_back(block * BLOCK, BLOCK, write, BackEnd::Stored),
            ChangeStart::Marked(change, _) => {
                self.downgrades += 1;
                cache.end_change(block * BLOCK, BLOCK, change.claim, false);
                false
            }
            other => panic!("{other:?}"),
        };
        self.record(cache, self.now);
    }

    fn run(&mut self, cache: &Cache<'_>, mover: &mut Mover<'_, '_>, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let rest = self.turn(mover).unwrap_or(Duration::MAX);
            let tick = self.now + SECOND;
            let events = [
                self.next_read,
                self.next_write,
                self.busy_until.unwrap_or(Duration::MAX),
                rest,
                tick,
            ];
            self.now = events.into_iter().min().expect("some").max(self.now);
            if self.busy_until == Some(self.now) {
                self.done(cache, mover);
            } else if self.next_read == self.now {
                cache.count_requests(1);
                self.submit(Work::Read);
                self.next_read = self.now + self.pause(self.reads_a_second);
            } else if self.next_write == self.now {
                cache.count_requests(1);
                self.write(cache);
                self.next_write = self.now + self.pause(self.writes_a_second);
            }
        }
    }

    /// The p99 since the last call, in microseconds.
    fn p99(&mut self) -> u64 {
        self.taken.sort_unstable();
        let p99 = self.taken[self.taken.len() * 99 / 100];
        self.taken.clear();
        p99
    }
}

const LIMITS: CleanLimits = CleanLimits {
    low: LOW,
    high: HIGH,
    rate: None,
};

/// The p99 of these clients beside cleaning by other limits.
fn p99_with(limits: CleanLimits, reads: f64, writes: f64) -> u64 {
    let memory = maps::Room::of(SHIFT, BLOCKS, SLOTS);
    let cache = memory.logged_cache();
    let mut mover = mover(&cache).with_writeback(limits);
    let mut room = Room::new(reads, writes);
    room.run(&cache, &mut mover, 120 * SECOND);
    room.p99()
}

#[test]
fn between_the_watermarks_cleaning_adds_no_tenth_to_the_p99() {
    let (reads, writes) = (100.0, 6.0);
    let never = CleanLimits {
        low: SLOTS,
        high: SLOTS,
        rate: None,
    };
    let alone = p99_with(never, reads, writes);
    // All that can be, in long writes.
    let soon = CleanLimits {
        low: LOW,
        high: LOW + 1,
        rate: None,
    };
    let rude = p99_with(soon, reads, 10.0 * writes);
    let same = p99_with(never, reads, 10.0 * writes);
    assert!(rude * 10 > same * 11, "{rude} us, and {same} us alone");
    let memory = maps::Room::of(SHIFT, BLOCKS, SLOTS);
    let cache = memory.logged_cache();
    let mut mover = mover(&cache).with_writeback(LIMITS);
    let mut room = Room::new(reads, writes);
    room.run(&cache, &mut mover, 120 * SECOND);
    room.p99();
    room.downgrades = 0;
    let before = mover.counters().cleaned_bytes;
    room.run(&cache, &mut mover, 600 * SECOND);
    let beside = room.p99();
    let counters = mover.counters();
    let rate = (counters.cleaned_bytes - before) / 600;
    assert!(beside * 10 <= alone * 11, "{beside} us, and {alone} us alone");
    assert!(rate > 5 * BLOCK, "all that is written is cleaned: {rate}");
    assert!(cache.dirty_slots() < HIGH / 2 + LOW / 2);
    assert!(counters.clean_held_back > 0, "it would be faster");
    assert_eq!(room.downgrades, 0);
}

#[test]
fn near_the_high_watermark_the_floor_wins() {
    // More than could be cleaned unnoticed, and less than the device can.
    let (reads, writes) = (100.0, 120.0);
    let memory = maps::Room::of(SHIFT, BLOCKS, SLOTS);
    let cache = memory.logged_cache();
    let mut mover = mover(&cache).with_writeback(LIMITS);
    let mut room = Room::new(reads, writes);
    room.run(&cache, &mut mover, 60 * SECOND);
    room.downgrades = 0;
    let before = mover.counters().cleaned_bytes;
    room.run(&cache, &mut mover, 120 * SECOND);
    let rate = (mover.counters().cleaned_bytes - before) / 120;
    assert!(rate > 70 * BLOCK, "{rate}");
    assert!(
        (LOW..HIGH).contains(&cache.dirty_slots()),
        "{}",
        cache.dirty_slots()
    );
    assert_eq!(room.downgrades, 0, "there is always room for what is written");
}

#[test]
fn a_limit_holds_even_at_the_high_watermark() {
    let memory = maps::Room::of(SHIFT, BLOCKS, SLOTS);
    let cache = memory.logged_cache();
    let rate = 10 * BLOCK;
    let limits = CleanLimits {
        rate: Some(rate),
        ..LIMITS
    };
    let mut mover = mover(&cache).with_writeback(limits);
    let mut room = Room::new(100.0, 120.0);
    room.run(&cache, &mut mover, 60 * SECOND);
    let before = mover.counters().cleaned_bytes;
    room.run(&cache, &mut mover, 60 * SECOND);
    let cleaned = (mover.counters().cleaned_bytes - before) / 60;
    assert!((rate * 8 / 10..=rate * 11 / 10).contains(&cleaned), "{cleaned}");
    assert!(cache.dirty_slots() >= HIGH - 10);
    assert!(room.downgrades > 0, "the others pass through");
}
