//! Free slots on their way from the mover, which frees them, to the queues, which fill them.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use ublk_bpf_abi::Priority;

/// Slots that are kept free for fills by misses: one in so many, but no more than the number below.
const FREE_PART: u32 = 128;
const MAX_FREE: u32 = 64;
/// The most that are kept free where writes end in slots, for bursts of writes: one in so many, but no more than the number
/// below.
const STOCK_PART: u32 = 16;
const MAX_STOCK: u32 = 16 << 10;
/// Slots that fills in progress may have beside those: one in so many, but no more than the number below.
const BUSY_PART: u32 = 8;
const MAX_BUSY: u32 = 192;

/// A rate that stands for none.
const UNLIMITED: u64 = u64::MAX;

/// Heat of a block that was read before the read that misses it.
const KNOWN: u8 = 2;

/// The slots between the mover, which frees them, and the queues, which give them to the blocks that they fill.
///
/// The mover has at most [`most`](Self::most) of them out, with those that are being filled and not reported yet. So a
/// report always finds room.
///
/// How many are kept free is sized to the load: it grows when a queue finds none, and shrinks when that has not happened for
/// some time.
#[derive(Debug)]
pub(super) struct FreeSlots {
    /// How many are kept free. Only the mover changes it, between the two below.
    idle: AtomicU32,
    least: u32,
    stock: u32,
    /// How many may be out beside those.
    busy: u32,
    /// Times that a queue found none.
    missed: AtomicU32,
    /// How many are out. Only the mover changes it.
    pub(super) out: AtomicU32,
    pub(super) slots: ArrayQueue<u32>,
    pub(super) reports: ArrayQueue<Report>,
    /// A queue has asked for one: until then, none is kept free.
    pub(super) is_wanted: AtomicBool,
    /// Bytes that may be promoted in a second; [`UNLIMITED`]: no limit. The mover follows it.
    rate: AtomicU64,
    /// Bytes that fills may have now, if promotion is limited. Negative: overdrawn.
    pub(super) budget: AtomicI64,
    /// With less than this, only blocks that were read before are filled.
    pub(super) scarce: AtomicI64,
}

/// What became of a slot that was free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) slot: u32,
    pub(super) priority: Priority,
}

impl FreeSlots {
    /// For a cache of so many slots.
    pub(super) fn new(slots: u32) -> Self {
        Self::with_stock(slots, 0)
    }

    /// The same where writes end in slots.
    pub(super) fn for_writes(slots: u32) -> Self {
        Self::with_stock(slots, (slots / STOCK_PART).min(MAX_STOCK))
    }

    fn with_stock(slots: u32, stock: u32) -> Self {
        let least = match slots {
            1 => 0,
            _ => (slots / FREE_PART).clamp(1, MAX_FREE),
        };
        let stock = stock.max(least);
        let busy = (slots / BUSY_PART).min(MAX_BUSY);
        let room = (stock + busy).max(1) as usize;
        Self {
            idle: AtomicU32::new(least),
            least,
            stock,
            busy,
            missed: AtomicU32::new(0),
            out: AtomicU32::new(0),
            slots: ArrayQueue::new(room),
            reports: ArrayQueue::new(room),
            is_wanted: AtomicBool::new(false),
            rate: AtomicU64::new(UNLIMITED),
            budget: AtomicI64::new(i64::MAX),
            scarce: AtomicI64::new(0),
        }
    }

    /// Limits promotion to so many bytes a second from the mover's next poll on.
    pub(super) fn limit(&self, rate: Option<u64>) {
        self.rate.store(rate.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    pub(super) fn rate(&self) -> Option<u64> {
        let rate = self.rate.load(Ordering::Relaxed);
        (rate != UNLIMITED).then_some(rate)
    }

    pub(super) fn pop(&self) -> Option<u32> {
        if !self.is_wanted.load(Ordering::Relaxed) {
            self.is_wanted.store(true, Ordering::Relaxed);
        }
        let slot = self.slots.pop();
        if slot.is_none() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        slot
    }

    /// How many are kept free.
    pub(super) fn idle(&self) -> u32 {
        self.idle.load(Ordering::Relaxed)
    }

    /// How many may be out.
    pub(super) fn most(&self) -> u32 {
        self.idle() + self.busy
    }

    /// Whether the number that is kept free changes.
    pub(super) const fn is_sized(&self) -> bool {
        self.stock > self.least
    }

    /// Keeps more free if queues found none since the last call: twice as many, or so many more as were missed. Returns whether
    /// they did.
    pub(super) fn grow(&self) -> bool {
        if self.missed.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let missed = self.missed.swap(0, Ordering::Relaxed);
        let idle = self.idle();
        let more = idle.saturating_add(missed.max(idle));
        self.idle.store(more.min(self.stock), Ordering::Relaxed);
        true
    }

    /// Keeps fewer free: half as many beyond the least.
    pub(super) fn shrink(&self) {
        let more = self.idle() - self.least;
        self.idle.store(self.least + more / 2, Ordering::Relaxed);
    }

    pub(super) fn report(&self, report: Report) {
        let kept = self.reports.push(report);
        debug_assert!(kept.is_ok(), "more slots are out than there are");
    }

    pub(super) fn are_few(&self) -> bool {
        self.slots.len() <= self.idle() as usize / 2
    }

    /// Whether free slots have become few, and others were reported.
    pub(super) fn want_mover(&self) -> bool {
        self.are_few() && !self.reports.is_empty()
    }

    /// Whether promotion is limited, and what is left is too little for a block of this heat.
    pub(super) fn are_too_dear(&self, heat: u8) -> bool {
        let budget = self.budget.load(Ordering::Relaxed);
        budget <= 0 || (heat < KNOWN && budget < self.scarce.load(Ordering::Relaxed))
    }

    /// A fill of so many bytes begins.
    pub(super) fn spend(&self, bytes: u32) {
        if self.budget.load(Ordering::Relaxed) != i64::MAX {
            self.budget.fetch_sub(bytes.into(), Ordering::Relaxed);
        }
    }
}
