//! The cache under real threads: what the simulator, which interleaves whole calls, cannot show.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ublk_bpf_abi::{CacheCounters, Extent, Priority, SECTOR_SIZE, regions};

use super::evict::Algorithm;
use super::{Cache, FillStart, Maps, Mode, Mover, MoverIo, PromoteLimits, Resident, Shape, WriteClaim};

const SHIFT: u32 = 16;
const BLOCK: u64 = 1 << SHIFT;
/// Bytes of a region: what a device reads and writes at once here.
const REGION: u64 = BLOCK / 16;
const BLOCKS: u64 = 64;
const SLOTS: u32 = 8;
const THREADS: u64 = 4;
const ROUNDS: u64 = 200_000;

/// Both devices. A region's content is one word: its number in the high half, and how often it was written.
struct Devices {
    backing: Vec<AtomicU64>,
    slots: Vec<AtomicU64>,
    /// The content of each region that its last completed write left.
    completed: Vec<AtomicU64>,
}

fn words(n: u64, value: impl Fn(u64) -> u64) -> Vec<AtomicU64> {
    (0..n).map(|i| AtomicU64::new(value(i))).collect()
}

fn at(device: &[AtomicU64], offset: u64) -> &AtomicU64 {
    &device[usize::try_from(offset / REGION).expect("small")]
}

impl Devices {
    fn new() -> Self {
        Self {
            backing: words(BLOCKS * 16, |region| region << 32),
            slots: words(u64::from(SLOTS) * 16, |_| u64::MAX),
            completed: words(BLOCKS * 16, |region| region << 32),
        }
    }

    /// A read has found this of a region whose last write was `oldest` when it began.
    fn check(offset: u64, oldest: u64, found: u64) {
        assert_eq!(found >> 32, offset / REGION, "another region's content");
        assert!(
            found >= oldest,
            "region {} reads as it was before a write that had completed",
            offset / REGION
        );
    }
}

/// A queue: reads, fills what it misses, writes the regions that are its own, forgets blocks, and asks for promotions.
struct Queue<'t> {
    cache: &'t Cache<'t>,
    devices: &'t Devices,
    own: u64,
    random: u64,
    fills: u64,
    splits: u64,
}

impl Queue<'_> {
    fn run(&mut self) {
        for round in 0..ROUNDS {
            if round % 64 == 0 {
                // With fewer processors than threads the mover would hardly ever run beside the queues.
                thread::yield_now();
            }
            let offset = self.below(BLOCKS) * BLOCK + self.below(16) * REGION;
            match self.below(16) {
                0..4 if offset / REGION % THREADS == self.own => self.write(offset),
                4 if self.below(8) == 0 => {
                    // A discard that was dropped.
                    let change = self.cache.marked_discard(offset, BLOCK);
                    self.cache.end_change(offset, BLOCK, change.claim, true);
                }
                5 => {
                    self.cache.hint(offset, Priority::Normal);
                }
                _ => self.read(offset),
            }
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % end
    }

    fn write(&self, offset: u64) {
        let (cache, devices) = (self.cache, self.devices);
        let content = at(&devices.completed, offset).load(Ordering::SeqCst) + 1;
        let change = cache.marked_write(offset, REGION);
        at(&devices.backing, offset).store(content, Ordering::SeqCst);
        if let Some(claim) = change.claim.filter(|&claim| WriteClaim::stores(claim)) {
            let in_slot = cache.slot_delta(claim.pin(), offset).wrapping_add(offset);
            at(&devices.slots, in_slot).store(content, Ordering::SeqCst);
        }
        cache.end_change(offset, REGION, change.claim, true);
        at(&devices.completed, offset).store(content, Ordering::SeqCst);
    }

    /// Reads from one to four regions.
    fn read(&mut self, offset: u64) {
        let most = (BLOCK - offset % BLOCK) / REGION;
        let count = 1 + self.below(most.min(4));
        let (cache, length) = (self.cache, count * REGION);
        let oldest = |place: u64| at(&self.devices.completed, place).load(Ordering::SeqCst);
        let places: Vec<_> = (0..count)
            .map(|i| offset + i * REGION)
            .map(|place| (place, oldest(place)))
            .collect();
        if let Some(pin) = cache.begin_read(offset, length) {
            self.check(&places, |place| {
                let in_slot = cache.slot_delta(pin, place).wrapping_add(place);
                at(&self.devices.slots, in_slot).load(Ordering::SeqCst)
            });
            return cache.end_read(pin);
        }
        let extent = match self.below(3) {
            0 => Extent::Request,
            1 => Extent::Around,
            _ => Extent::Block,
        };
        match cache.begin_fill(offset, length, extent, Priority::Normal) {
            FillStart::Begun(fill) => return self.fill(&fill, &places),
            FillStart::Busy => {
                let _ = cache.wait_for_fill(offset, length, 0);
            }
            FillStart::Readable | FillStart::Later | FillStart::Refused => {}
        }
        let backing = |place| at(&self.devices.backing, place).load(Ordering::SeqCst);
        match cache.begin_split_read(offset, length) {
            Some((pin, readable)) => {
                self.check(&places, |place| {
                    let region = regions(SHIFT, place / SECTOR_SIZE, 1);
                    let in_slot = cache.slot_delta(pin, place).wrapping_add(place);
                    match readable & region {
                        0 => backing(place),
                        _ => at(&self.devices.slots, in_slot).load(Ordering::SeqCst),
                    }
                });
                cache.end_read(pin);
                self.splits += 1;
            }
            None => self.check(&places, backing),
        }
    }

    fn check(&self, places: &[(u64, u64)], found: impl Fn(u64) -> u64) {
        for &(place, oldest) in places {
            Devices::check(place, oldest, found(place));
        }
    }

    /// Fills, and serves the read from the same buffer: what the fill covers, and sometimes a read that joins late.
    fn fill(&mut self, fill: &super::Fill, places: &[(u64, u64)]) {
        let devices = self.devices;
        let span: Vec<u64> = (0..u64::from(fill.length) / REGION).map(|i| i * REGION).collect();
        let buffer: Vec<u64> = span
            .iter()
            .map(|from| at(&devices.backing, fill.offset + from).load(Ordering::SeqCst))
            .collect();
        let held = |place: u64| {
            let index = place.checked_sub(fill.offset)? / REGION;
            buffer.get(usize::try_from(index).expect("small")).copied()
        };
        for &(place, oldest) in places {
            held(place).inspect(|&found| Devices::check(place, oldest, found));
        }
        // The order of a read that joins: what it may expect, then whether the fill is current.
        let joined: Vec<_> = places
            .iter()
            .map(|&(place, _)| (place, at(&devices.completed, place).load(Ordering::SeqCst)))
            .collect();
        if self.cache.is_current(fill) {
            for (place, oldest) in joined {
                held(place).inspect(|&found| Devices::check(place, oldest, found));
            }
        }
        for (from, content) in span.iter().zip(&buffer) {
            at(&devices.slots, fill.slot_offset + from).store(*content, Ordering::SeqCst);
        }
        self.fills += u64::from(self.cache.end_fill(fill, true).is_published);
    }
}

/// The mover, until all queues are through.
fn promote(mover: &mut Mover<'_, '_>, devices: &Devices, is_over: &AtomicBool) {
    let mut staging = vec![[0; 16]; usize::from(mover.jobs())];
    while !is_over.load(Ordering::SeqCst) {
        let Ok(mut effect) = mover.poll(Duration::ZERO) else {
            thread::yield_now();
            continue;
        };
        loop {
            let (job, len) = match effect {
                MoverIo::Load { job, offset, len, .. } => {
                    for (place, content) in (0..u64::from(len) / REGION).zip(&mut staging[usize::from(job)]) {
                        *content = at(&devices.backing, offset + place * REGION).load(Ordering::SeqCst);
                    }
                    (job, len)
                }
                MoverIo::Store { job, offset, len, .. } => {
                    for (place, content) in (0..u64::from(len) / REGION).zip(&staging[usize::from(job)]) {
                        at(&devices.slots, offset + place * REGION).store(*content, Ordering::SeqCst);
                    }
                    (job, len)
                }
                other => unreachable!("{other:?}: there is no earlier server and no write-back"),
            };
            match mover.done(job, len.cast_signed()) {
                Some(next) => effect = next,
                None => break,
            }
        }
    }
}

fn stress(mode: Mode, algorithm: Algorithm) -> (CacheCounters, u64, u64) {
    let maps = Maps::of(BLOCKS);
    let devices = Devices::new();
    let shape = Shape {
        shift: SHIFT,
        capacity: BLOCKS * BLOCK / SECTOR_SIZE,
        slots: SLOTS,
        data_offset: 0,
        mode,
    };
    let cache = Cache::new(shape, &maps.index, &maps.heat);
    let limits = PromoteLimits { rate: None };
    let mut mover = Mover::new(&cache, algorithm, limits, CacheCounters::default());
    let is_over = AtomicBool::new(false);
    let (mut fills, mut splits) = (0, 0);
    thread::scope(|scope| {
        let promoting = scope.spawn(|| promote(&mut mover, &devices, &is_over));
        let queues: Vec<_> = (0..THREADS)
            .map(|own| {
                let mut queue = Queue {
                    cache: &cache,
                    devices: &devices,
                    own,
                    random: own + 1,
                    fills: 0,
                    splits: 0,
                };
                scope.spawn(move || {
                    queue.run();
                    (queue.fills, queue.splits)
                })
            })
            .collect();
        let ends: Vec<_> = queues.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::SeqCst);
        promoting.join().expect("the mover");
        for end in ends {
            let (filled, split) = end.expect("a queue");
            fills += filled;
            splits += split;
        }
    });
    for Resident {
        slot, block, valid, ..
    } in mover.residents()
    {
        for region in (0..16).filter(|region| valid >> region & 1 == 1) {
            let cached = at(&devices.slots, u64::from(slot) * BLOCK + region * REGION);
            let backing = at(&devices.backing, u64::from(block) * BLOCK + region * REGION);
            assert_eq!(cached.load(Ordering::SeqCst), backing.load(Ordering::SeqCst));
        }
    }
    let ended = |word: &AtomicU64| word.load(Ordering::SeqCst) >> 32 & 0xffff == 0;
    assert!(maps.index.iter().all(ended), "a write never ended");
    let in_use = (0..SLOTS).filter(|&slot| cache.blocks.slots.is_pinned(slot));
    assert_eq!(in_use.count(), 0, "a pin or claim was never released");
    (*mover.counters(), fills, splits)
}

#[test]
fn no_thread_reads_what_was_overwritten_or_is_anothers() {
    for mode in [Mode::WriteThrough, Mode::WriteAround] {
        for algorithm in [Algorithm::Clock, Algorithm::Adaptive] {
            let (counters, fills, splits) = stress(mode, algorithm);
            assert!(counters.promoted > 0 && counters.evicted > 0, "{counters:?}");
            assert!(fills > 0 && splits > 0, "{fills} fills, {splits} reads in part");
        }
    }
}
