//! The cache under real threads: what the simulator, which interleaves whole calls, cannot show.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ublk_bpf_abi::{CacheCounters, Priority, SECTOR_SIZE};

use super::evict::Algorithm;
use super::maps::Maps;
use super::{Cache, Mode, Mover, MoverIo, PromoteLimits, Resident, Shape};

const SHIFT: u32 = 12;
const BLOCK: u64 = 1 << SHIFT;
const BLOCKS: u64 = 64;
const SLOTS: u32 = 8;
const THREADS: u64 = 4;
const ROUNDS: u64 = 400_000;

/// Both devices. A block's content is one word: its number in the high half, and how often it was written.
struct Devices {
    backing: Vec<AtomicU64>,
    slots: Vec<AtomicU64>,
    /// The content of each block that its last completed write left.
    completed: Vec<AtomicU64>,
}

fn words(n: u64, value: impl Fn(u64) -> u64) -> Vec<AtomicU64> {
    (0..n).map(|i| AtomicU64::new(value(i))).collect()
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("small")
}

/// A queue: reads any block, writes those that are its own, and asks for promotions.
fn queue(cache: &Cache<'_>, devices: &Devices, own: u64) {
    let mut random = own + 1;
    for round in 0..ROUNDS {
        if round % 64 == 0 {
            // With fewer processors than threads the mover would hardly ever run beside the queues.
            thread::yield_now();
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let block = random % BLOCKS;
        let offset = block * BLOCK;
        if random >> 32 & 3 == 0 && block % THREADS == own {
            let content = devices.completed[index(block)].load(Ordering::SeqCst) + 1;
            let change = cache.begin_write(offset, BLOCK);
            devices.backing[index(block)].store(content, Ordering::SeqCst);
            if let Some(claim) = change.claim.filter(|claim| claim.stores()) {
                let at = cache.slot_delta(claim.pin(), offset).wrapping_add(offset);
                devices.slots[index(at >> SHIFT)].store(content, Ordering::SeqCst);
            }
            cache.end_change(offset, BLOCK, change.claim, true);
            devices.completed[index(block)].store(content, Ordering::SeqCst);
            continue;
        }
        let oldest = devices.completed[index(block)].load(Ordering::SeqCst);
        let found = match cache.begin_read(offset, BLOCK) {
            Some(pin) => {
                let at = cache.slot_delta(pin, offset).wrapping_add(offset);
                let found = devices.slots[index(at >> SHIFT)].load(Ordering::SeqCst);
                cache.end_read(pin);
                found
            }
            None => devices.backing[index(block)].load(Ordering::SeqCst),
        };
        assert_eq!(found >> 32, block, "another block's content");
        assert!(
            found >= oldest,
            "block {block} reads as it was before a write that had completed"
        );
        cache.hint(offset, Priority::Normal);
    }
}

/// The mover, until all queues are through.
fn promote(mover: &mut Mover<'_, '_>, devices: &Devices, is_over: &AtomicBool) {
    let mut staging = vec![0; usize::from(mover.jobs())];
    while !is_over.load(Ordering::SeqCst) {
        let Ok(mut effect) = mover.poll(Duration::ZERO) else {
            thread::yield_now();
            continue;
        };
        loop {
            let job = match effect {
                MoverIo::Load { job, offset, .. } => {
                    let content = devices.backing[index(offset >> SHIFT)].load(Ordering::SeqCst);
                    staging[usize::from(job)] = content;
                    job
                }
                MoverIo::Store { job, offset, .. } => {
                    let content = staging[usize::from(job)];
                    devices.slots[index(offset >> SHIFT)].store(content, Ordering::SeqCst);
                    job
                }
                MoverIo::LoadSlot { .. } | MoverIo::Compare { .. } => {
                    unreachable!("there is no earlier server: {effect:?}")
                }
            };
            match mover.done(job, 1 << SHIFT) {
                Some(next) => effect = next,
                None => break,
            }
        }
    }
}

fn stress(mode: Mode, algorithm: Algorithm) -> CacheCounters {
    let maps = Maps::of(BLOCKS);
    let devices = Devices {
        backing: words(BLOCKS, |block| block << 32),
        slots: words(SLOTS.into(), |_| u64::MAX),
        completed: words(BLOCKS, |block| block << 32),
    };
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
    thread::scope(|scope| {
        let promoting = scope.spawn(|| promote(&mut mover, &devices, &is_over));
        let queues: Vec<_> = (0..THREADS)
            .map(|own| {
                scope.spawn({
                    let (cache, devices) = (&cache, &devices);
                    move || queue(cache, devices, own)
                })
            })
            .collect();
        let ends: Vec<_> = queues.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::SeqCst);
        promoting.join().expect("the mover");
        for end in ends {
            end.expect("a queue");
        }
    });
    for Resident { slot, block, .. } in mover.residents() {
        let cached = devices.slots[slot as usize].load(Ordering::SeqCst);
        assert_eq!(cached, devices.backing[block as usize].load(Ordering::SeqCst));
    }
    assert!(
        maps.index
            .iter()
            .all(|word| word.load(Ordering::SeqCst) >> 32 == 0),
        "a write never ended"
    );
    *mover.counters()
}

#[test]
fn no_thread_reads_what_was_overwritten_or_is_anothers() {
    for mode in [Mode::WriteThrough, Mode::WriteAround] {
        for algorithm in [Algorithm::Clock, Algorithm::Adaptive] {
            let counters = stress(mode, algorithm);
            assert!(counters.promoted > 0 && counters.evicted > 0, "{counters:?}");
        }
    }
}
