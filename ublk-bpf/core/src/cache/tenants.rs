//! Whose the cached blocks are: how many slots each tenant has, for policies that give each a share of the cache.
//!
//! A slot is a tenant's from the fill or write that brought its block in until another block gets it. Both maps are shared:
//! the next server knows whose the slots are that it takes over, and policies read what each tenant has.

use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf_abi::TENANTS;

use super::shared::Cache;
use super::{BackWrite, Fill};

/// Slots whose tenants are in one word.
const SLOTS_A_WORD: u32 = 8;

/// The tenant of each slot, and the slots of each tenant. Without maps there are no tenants.
#[derive(Debug, Default)]
pub(super) struct Tenants<'m> {
    of_slot: &'m [AtomicU64],
    used: &'m [AtomicU64],
}

impl<'m> Tenants<'m> {
    fn new(of_slot: &'m [AtomicU64], used: &'m [AtomicU64]) -> Self {
        Self { of_slot, used }
    }

    /// A slot that the caller has to itself becomes a tenant's.
    fn account(&self, slot: u32, tenant: u8) {
        if tenant != 0 && self.replace(slot, tenant).is_some() {
            self.used[usize::from(tenant)].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A block is to be promoted for a tenant: it counts from now on.
    pub(super) fn reserve(&self, tenant: u8) {
        if let Some(used) = self.used_by(tenant) {
            used.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Its turn has come, when the slot is accounted instead, or it was dropped.
    pub(super) fn unreserve(&self, tenant: u8) {
        if let Some(used) = self.used_by(tenant) {
            used.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn used_by(&self, tenant: u8) -> Option<&AtomicU64> {
        self.used.get(usize::from(tenant)).filter(|_| tenant != 0)
    }

    /// A slot has left its block.
    pub(super) fn vacated(&self, slot: u32) {
        if let Some(tenant @ 1..) = self.replace(slot, 0) {
            self.used[usize::from(tenant)].fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Sets the tenant of a slot. Returns the former one, if there are tenants.
    fn replace(&self, slot: u32, tenant: u8) -> Option<u8> {
        let word = self.of_slot.get((slot / SLOTS_A_WORD) as usize)?;
        let at = (slot % SLOTS_A_WORD) as usize;
        let mut found = word.load(Ordering::Relaxed);
        loop {
            let mut bytes = found.to_le_bytes();
            let before = std::mem::replace(&mut bytes[at], tenant);
            if before == tenant {
                return Some(before);
            }
            // The other bytes are those of slots that other threads have.
            let now = u64::from_le_bytes(bytes);
            match word.compare_exchange_weak(found, now, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(before),
                Err(now) => found = now,
            }
        }
    }

    /// Counts anew, on maps that an earlier server may have used: a slot that is not `in_use` is no tenant's.
    fn count(&self, in_use: impl Fn(u32) -> bool) {
        self.used.iter().for_each(|used| used.store(0, Ordering::Relaxed));
        for (word, first) in self.of_slot.iter().zip((0..).step_by(SLOTS_A_WORD as usize)) {
            let found = word.load(Ordering::Relaxed);
            // Nearly always.
            if found == 0 {
                continue;
            }
            let mut bytes = found.to_le_bytes();
            for (tenant, slot) in bytes.iter_mut().zip(first..) {
                if !in_use(slot) {
                    *tenant = 0;
                }
                if *tenant != 0 {
                    self.used[usize::from(*tenant)].fetch_add(1, Ordering::Relaxed);
                }
            }
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }
}

impl<'m> Cache<'m> {
    /// The same with tenants: a byte for each slot, and the number of slots for each tenant. Slots for which the map has no
    /// byte, as it was made for a smaller cache, are no tenant's.
    ///
    /// # Panics
    /// If `used` is too small.
    #[must_use]
    pub fn with_tenants(mut self, of_slot: &'m [AtomicU64], used: &'m [AtomicU64]) -> Self {
        assert!(used.len() >= TENANTS as usize);
        self.tenants = Tenants::new(of_slot, used);
        self
    }

    /// Counts the slots of each tenant, when those that are in use have their blocks and before requests are served.
    pub fn count_tenants(&self) {
        let slots = &self.blocks.slots;
        self.tenants
            .count(|slot| slot < slots.count() && slots.owner(slot).is_some());
    }

    /// Accounts a fill to a tenant, if it brings its block in; 0: to none.
    pub fn account_fill(&self, fill: &Fill, tenant: u8) {
        if fill.report.is_some() {
            self.tenants.account(fill.slot, tenant);
        }
    }

    /// The same of a write that ends in a slot.
    pub fn account_write(&self, write: &BackWrite, tenant: u8) {
        if write.0.is_new {
            self.tenants.account(write.0.slot, tenant);
        }
    }

    /// The slots of a tenant, with those of blocks that are to be promoted for it.
    #[must_use]
    pub fn slots_of(&self, tenant: u8) -> u64 {
        let used = self.tenants.used.get(usize::from(tenant));
        used.map_or(0, |used| used.load(Ordering::Relaxed))
    }

    /// Takes a slot from its block, unless it is in use.
    pub(super) fn take_slot(&self, slot: u32) -> bool {
        let is_taken = self.blocks.slots.take(slot);
        if is_taken {
            self.tenants.vacated(slot);
        }
        is_taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    fn used(tenants: &Tenants<'_>, tenant: usize) -> u64 {
        tenants.used[tenant].load(Ordering::Relaxed)
    }

    #[test]
    fn a_slot_is_a_tenants_until_it_is_vacated() {
        let (of_slot, counts) = (words(2), words(TENANTS as usize));
        let tenants = Tenants::new(&of_slot, &counts);
        for slot in [0, 7, 8, 15] {
            tenants.account(slot, 3);
        }
        tenants.account(1, 255);
        tenants.account(2, 0);
        assert_eq!([0, 3, 255].map(|of| used(&tenants, of)), [0, 4, 1]);
        tenants.vacated(7);
        tenants.vacated(7);
        tenants.vacated(2);
        tenants.vacated(1);
        assert_eq!([0, 3, 255].map(|of| used(&tenants, of)), [0, 3, 0]);
    }

    #[test]
    fn the_next_server_counts_the_slots_that_are_in_use() {
        let (of_slot, counts) = (words(2), words(TENANTS as usize));
        let tenants = Tenants::new(&of_slot, &counts);
        (0..16).for_each(|slot| tenants.account(slot, 9));
        counts[4].store(77, Ordering::Relaxed);
        tenants.count(|slot| slot % 4 == 0);
        assert_eq!([4, 9].map(|of| used(&tenants, of)), [0, 4]);
        tenants.vacated(1);
        tenants.vacated(4);
        assert_eq!(used(&tenants, 9), 3);
    }

    #[test]
    fn threads_that_have_neighbouring_slots_do_not_lose_one_anothers() {
        let (of_slot, counts) = (words(1), words(TENANTS as usize));
        let tenants = Tenants::new(&of_slot, &counts);
        std::thread::scope(|scope| {
            for slot in 0..8 {
                let tenants = &tenants;
                scope.spawn(move || {
                    for round in (0..200_u8).cycle().take(1000) {
                        tenants.account(slot, 1 + round % 5);
                        tenants.vacated(slot);
                    }
                    tenants.account(slot, 200);
                });
            }
        });
        let counted: Vec<u64> = (0..TENANTS as usize).map(|of| used(&tenants, of)).collect();
        assert_eq!((counted[200], counted.iter().sum::<u64>()), (8, 8));
    }
}
