//! The atomic words that the index and the slots consist of.

use std::sync::atomic::Ordering::SeqCst;

use zerocopy::FromZeros;

pub(super) use std::sync::atomic::AtomicU64;

/// So many values that are all zeroes. The kernel makes them so: a large cache has millions of slots, and to write each value
/// would take a tenth of a start.
///
/// # Panics
/// If there is no memory.
pub(super) fn zeroed<T: FromZeros>(count: usize) -> Box<[T]> {
    <[T]>::new_box_zeroed_with_elems(count).expect("memory for each slot or block")
}

/// A word of 64 bits with the operations that the protocol needs. All of them are sequentially consistent: it relates
/// words of the index to words of the slots.
pub(super) trait Word {
    fn new(value: u64) -> Self;
    /// So many words of 0.
    fn zeroes(count: usize) -> Box<[Self]>
    where
        Self: Sized;
    fn load(&self) -> u64;
    fn swap(&self, value: u64) -> u64;
    fn fetch_add(&self, value: u64) -> u64;
    fn fetch_sub(&self, value: u64) -> u64;
    fn fetch_or(&self, value: u64) -> u64;
    /// Fails with the value that it found.
    fn compare_exchange(&self, from: u64, to: u64) -> Result<(), u64>;
}

/// Implements [`Word`] for an atomic integer, with how to load it and to make many.
macro_rules! word {
    ($atomic:ty, $load:expr, $zeroes:expr) => {
        impl Word for $atomic {
            #[inline(always)]
            fn new(value: u64) -> Self {
                <$atomic>::new(value)
            }

            fn zeroes(count: usize) -> Box<[Self]> {
                $zeroes(count)
            }

            #[inline(always)]
            fn load(&self) -> u64 {
                $load(self)
            }

            #[inline(always)]
            fn swap(&self, value: u64) -> u64 {
                <$atomic>::swap(self, value, SeqCst)
            }

            #[inline(always)]
            fn fetch_add(&self, value: u64) -> u64 {
                <$atomic>::fetch_add(self, value, SeqCst)
            }

            #[inline(always)]
            fn fetch_sub(&self, value: u64) -> u64 {
                <$atomic>::fetch_sub(self, value, SeqCst)
            }

            #[inline(always)]
            fn fetch_or(&self, value: u64) -> u64 {
                <$atomic>::fetch_or(self, value, SeqCst)
            }

            #[inline(always)]
            fn compare_exchange(&self, from: u64, to: u64) -> Result<(), u64> {
                <$atomic>::compare_exchange(self, from, to, SeqCst, SeqCst).map(|_| ())
            }
        }
    };
}

word!(AtomicU64, |word: &AtomicU64| word.load(SeqCst), zeroed);

// To loom, sequentially consistent is no more than acquire and release. An operation that reads and writes finds the latest
// value, as a load does in the one order of all operations here.
#[cfg(test)]
word!(
    loom::sync::atomic::AtomicU64,
    |word: &loom::sync::atomic::AtomicU64| { word.fetch_or(0, SeqCst) },
    |count| (0..count).map(|_| Self::new(0)).collect()
);
