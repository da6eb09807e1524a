//! The protocol of the index and the slots under a model checker: every order in which a few threads can take turns.

use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use std::sync::atomic::Ordering::SeqCst;

use super::blocks::{Blocks, FillAttempt, WantedRegions};

/// The only region that the threads use, of blocks that have two.
const REGION: u16 = 1;
const ALL: u16 = 3;

const WISH: WantedRegions = WantedRegions {
    needed: REGION,
    wanted: ALL,
    all: ALL,
};

/// Two blocks, one or two slots, and what the devices hold of the region: how often it was written, and by which block.
struct World {
    blocks: Blocks<'static, AtomicU64>,
    free: AtomicU64,
    backing: AtomicU64,
    slots: [AtomicU64; 2],
    /// The last write that has ended.
    completed: AtomicU64,
}

/// What another block stores in a slot.
const FOREIGN: u64 = 1 << 32;

impl World {
    /// Without a cached block, and with this number of free slots.
    fn new(slots: u32) -> Self {
        let index: Vec<_> = (0..2).map(|_| AtomicU64::new(0)).collect();
        Self {
            // The checker keeps an eye on leaks of its own objects only.
            blocks: Blocks::new(Box::leak(index.into_boxed_slice()), slots, 1),
            free: AtomicU64::new((1 << slots) - 1),
            backing: AtomicU64::new(1),
            slots: [AtomicU64::new(0), AtomicU64::new(0)],
            completed: AtomicU64::new(1),
        }
    }

    fn free_slot(&self) -> Option<u32> {
        let free = self.free.load(SeqCst);
        let slot = free.trailing_zeros();
        let others = free & free.wrapping_sub(1);
        let took = free != 0 && self.free.compare_exchange(free, others, SeqCst, SeqCst).is_ok();
        took.then_some(slot)
    }

    /// A read that misses fills. Whether it did, or the slot that it did not use.
    fn fill(&self) -> FillAttempt {
        let start = self.blocks.begin_fill(0, &WISH, || self.free_slot());
        if let FillAttempt::Begun { slot, regions, .. } = start {
            let content = self.backing.load(SeqCst);
            self.slots[slot as usize].store(content, SeqCst);
            self.blocks.end_fill(0, slot, (regions, regions), ALL);
        }
        start
    }

    /// The next version is written, through the cache if the block is there.
    fn write(&self, content: u64) {
        let claim = self.blocks.begin_write(0, REGION);
        if claim.is_none() {
            Blocks::begin_discard(&self.blocks.index[0]);
        }
        self.backing.store(content, SeqCst);
        match claim {
            Some((slot, _)) => {
                self.slots[slot as usize].store(content, SeqCst);
                self.blocks.end_write(0, slot, (REGION, REGION), ALL);
            }
            None => Blocks::end_discard(&self.blocks.index[0]),
        }
        self.completed.store(content, SeqCst);
    }

    /// The same, around the cache.
    fn write_around(&self, content: u64) {
        let claim = self.blocks.begin_write(0, REGION);
        if claim.is_none() {
            Blocks::begin_discard(&self.blocks.index[0]);
        }
        self.backing.store(content, SeqCst);
        match claim {
            Some((slot, _)) => self.blocks.end_write(0, slot, (REGION, 0), ALL),
            None => Blocks::end_discard(&self.blocks.index[0]),
        }
        self.completed.store(content, SeqCst);
    }

    /// A read finds what was written before it began, or something newer.
    fn read(&self) {
        let oldest = self.completed.load(SeqCst);
        let found = match self.blocks.begin_read(0, || REGION) {
            Some(slot) => {
                let found = self.slots[slot as usize].load(SeqCst);
                self.blocks.slots.unpin(slot);
                found
            }
            None => self.backing.load(SeqCst),
        };
        assert!(
            (oldest..FOREIGN).contains(&found),
            "{oldest} was written, {found:#x} read"
        );
    }

    /// Evicts the block, and gives its slot to the other block, if it is not in use.
    fn replace(&self) {
        let slot = self.blocks.entry(0).slot();
        if self.blocks.evict(0, slot) && self.blocks.slots.take(slot) {
            self.blocks.slots.give(slot, 1);
            self.slots[slot as usize].store(FOREIGN, SeqCst);
        }
    }

    /// The same, and the slot goes from the other block back to this one, which is filled again.
    fn replace_and_fill(&self) {
        self.replace();
        let slot = 0;
        if self.blocks.slots.is_of(slot, 1) && self.blocks.slots.take(slot) {
            self.free.store(1, SeqCst);
            self.fill();
        }
    }

    /// When all threads have ended: nothing is in use, and what can be read is what the backing has.
    fn check(&self) {
        let entry = self.blocks.entry(0);
        assert_eq!(entry.writers(), 0);
        for slot in 0..self.blocks.slots.count() {
            assert!(!self.blocks.slots.is_pinned(slot));
        }
        if entry.serves(REGION) {
            let cached = self.slots[entry.slot() as usize].load(SeqCst);
            assert_eq!(cached, self.backing.load(SeqCst));
        }
    }
}

/// Lets the threads run in every order that needs at most two preemptions.
fn explore(slots: u32, prepare: fn(&World), threads: &'static [fn(&World)]) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(move || {
        let world = Arc::new(World::new(slots));
        prepare(&world);
        let running: Vec<_> = threads
            .iter()
            .map(|run| {
                let world = Arc::clone(&world);
                thread::spawn(move || run(&world))
            })
            .collect();
        running.into_iter().for_each(|thread| thread.join().unwrap());
        world.check();
    });
}

fn cached(world: &World) {
    assert!(matches!(world.fill(), FillAttempt::Begun { .. }));
}

#[test]
fn a_write_overtakes_a_fill_or_goes_with_it() {
    explore(
        1,
        |_| {},
        &[
            |of| {
                of.fill();
            },
            |of| of.write(2),
            |of| of.read(),
        ],
    );
}

#[test]
fn a_read_finds_what_a_write_left_in_the_slot() {
    explore(1, cached, &[|of| of.write(2), |of| of.read()]);
}

#[test]
fn overlapping_writes_never_leave_the_devices_different() {
    // They are one client's: either may be the last on the backing.
    explore(1, cached, &[|of| of.write(2), |of| of.write(3)]);
}

#[test]
fn a_slot_is_not_given_away_while_it_is_read_written_or_filled() {
    explore(1, cached, &[|of| of.replace(), |of| of.read(), |of| of.write(2)]);
}

#[test]
fn a_slot_that_came_back_is_not_read_before_it_is_filled() {
    explore(1, cached, &[|of| of.replace_and_fill(), |of| of.read()]);
}

#[test]
fn a_write_around_overtakes_a_fill() {
    explore(
        1,
        |_| {},
        &[
            |of| {
                of.fill();
            },
            |of| of.write_around(2),
        ],
    );
}

#[test]
fn what_was_hidden_is_filled_while_another_writes() {
    let hidden: fn(&World) = |of| {
        cached(of);
        // A write around it.
        let (slot, _) = of.blocks.begin_write(0, REGION).unwrap();
        of.blocks.end_write(0, slot, (REGION, 0), ALL);
    };
    explore(
        1,
        hidden,
        &[
            |of| {
                of.fill();
            },
            |of| of.write(2),
            |of| of.read(),
        ],
    );
}

#[test]
fn of_two_fills_one_reads_and_the_other_is_woken() {
    fn wait(of: &World) {
        if of.fill() == FillAttempt::Busy && of.blocks.wait_for_fill(0, REGION, 5) {
            // The other one has ended, or wakes it when it does.
            while !of.blocks.waiters.take().contains(5) {
                thread::yield_now();
            }
            of.read();
        }
    }
    explore(
        2,
        |_| {},
        &[wait, |of| {
            of.fill();
        }],
    );
}
