//! A set of slots or blocks, one bit each, that threads add to while one thread walks it.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::word::zeroed;

/// A set of numbers below a bound. Above the bits is a level with a bit for each word that is not 0, and so on up to one
/// word: a walk skips what is empty, and costs nothing if all is.
///
/// Any thread inserts. Only one, the set's owner, removes and walks: an insertion that was complete before a walk began is
/// found by it.
#[derive(Debug)]
pub(super) struct Bits {
    /// The bits, then the levels above.
    levels: Vec<Box<[AtomicU64]>>,
}

impl Bits {
    /// The empty set of numbers below `len`.
    pub(super) fn new(len: usize) -> Self {
        let mut levels = Vec::new();
        let mut words = len.div_ceil(64).max(1);
        loop {
            levels.push(zeroed(words));
            if words == 1 {
                return Self { levels };
            }
            words = words.div_ceil(64);
        }
    }

    /// Adds `n`, which is below the bound.
    pub(super) fn insert(&self, n: u32) {
        let mut n = n as usize;
        for level in &self.levels {
            let (word, bit) = (&level[n / 64], 1 << (n % 64));
            // Most often it is there already: a load is cheaper than an exchange.
            if word.load(SeqCst) & bit != 0 || word.fetch_or(bit, SeqCst) != 0 {
                return;
            }
            n /= 64;
        }
    }

    /// Removes `n`. Only the owner calls this.
    pub(super) fn remove(&self, n: u32) {
        let mut n = n as usize;
        for (at, level) in self.levels.iter().enumerate() {
            let (word, bit) = (&level[n / 64], 1 << (n % 64));
            let left = word.fetch_and(!bit, SeqCst) & !bit;
            // Something may have been added below since, and not have found its word empty.
            let is_filled = at > 0 && self.levels[at - 1][n].load(SeqCst) != 0;
            if is_filled {
                word.fetch_or(bit, SeqCst);
            }
            if left != 0 || is_filled {
                return;
            }
            n /= 64;
        }
    }

    /// Whether `n` is in it.
    pub(super) fn contains(&self, n: u32) -> bool {
        let word = self.levels[0].get(n as usize / 64);
        word.is_some_and(|word| word.load(SeqCst) >> (n % 64) & 1 == 1)
    }

    /// The least number from `from` on. Only the owner calls this.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        let mut at = from as usize;
        let mut level = 0;
        loop {
            let words = self.levels.get(level)?;
            let word = words.get(at / 64)?.load(SeqCst) & (u64::MAX << (at % 64));
            if word == 0 {
                at = at / 64 + 1;
                level += 1;
                continue;
            }
            at = at / 64 * 64 + word.trailing_zeros() as usize;
            if level == 0 {
                return u32::try_from(at).ok();
            }
            level -= 1;
            at *= 64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_in_order(len in 1_u32..300_000, ops in prop::collection::vec((any::<u32>(), any::<bool>()), 0..200)) {
            let (bits, mut model) = (Bits::new(len as usize), BTreeSet::new());
            for (n, is_added) in ops {
                let n = n % len;
                if is_added {
                    bits.insert(n);
                    model.insert(n);
                } else {
                    bits.remove(n);
                    model.remove(&n);
                }
                prop_assert_eq!(bits.next(n), model.range(n..).next().copied());
            }
            let mut found = Vec::new();
            let mut from = 0;
            while let Some(n) = bits.next(from) {
                found.push(n);
                from = n + 1;
            }
            prop_assert_eq!(found, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_added_beside_removals_is_found() {
        let bits = Bits::new(1 << 13);
        std::thread::scope(|scope| {
            for half in 0..2_u32 {
                let bits = &bits;
                scope.spawn(move || (0..1 << 12).for_each(|n| bits.insert(2 * n + half)));
            }
            let mut left = 1 << 13;
            while left > 0 {
                if let Some(n) = bits.next(0) {
                    bits.remove(n);
                    left -= 1;
                }
            }
        });
        assert_eq!(bits.next(0), None);
    }
}
