//! The blocks that the server knows to read as zeroes.

use std::sync::atomic::{AtomicU64, Ordering};

/// One bit for each block of the device: set if the block may hold data, clear if it reads as zeroes.
///
/// A bit is set before the write that needs it is issued, and never cleared. The words are shared between
/// queues and with the classifier. Relaxed accesses do: a client that has seen its write complete has
/// synchronised with the queue that marked it, through the kernel, before its next request arrives at any
/// queue; and a read concurrent with a write may see the range before or after it.
#[derive(Clone, Copy, Debug)]
pub struct Written<'w> {
    words: &'w [AtomicU64],
    shift: u32,
}

impl<'w> Written<'w> {
    /// Nothing is known: every block may hold data.
    #[must_use]
    pub const fn untracked() -> Self {
        Self { words: &[], shift: 0 }
    }

    /// Bit `b % 64` of word `b / 64` is block `b`, of `1 << shift` bytes. What is beyond the words may hold
    /// data. `shift` is below 64.
    #[must_use]
    pub const fn new(words: &'w [AtomicU64], shift: u32) -> Self {
        assert!(shift < u64::BITS, "a block has fewer than 2^64 bytes");
        Self { words, shift }
    }

    /// The range may hold data from now on. `length` is not zero, and the range ends below 2^64.
    #[inline]
    pub fn mark(&self, offset: u64, length: u64) {
        self.each_word(offset, length, |word, mask| {
            // Most writes are to blocks that were written before: no locked operation for them.
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::Relaxed);
            }
            true
        });
    }

    /// Whether every byte of the range is known to read as zero. As for [`mark`](Self::mark).
    #[inline]
    #[must_use]
    pub fn reads_as_zeroes(&self, offset: u64, length: u64) -> bool {
        self.each_word(offset, length, |word, mask| {
            word.load(Ordering::Relaxed) & mask == 0
        })
    }

    /// Calls `f` with each word of the range and the bits of it that are in the range, while it returns true.
    /// Returns whether it always did and the words cover the range.
    #[inline]
    fn each_word(&self, offset: u64, length: u64, mut f: impl FnMut(&AtomicU64, u64) -> bool) -> bool {
        debug_assert!(length > 0 && offset.checked_add(length).is_some());
        if self.words.is_empty() {
            return false;
        }
        let (first, last) = (offset >> self.shift, (offset + (length - 1)) >> self.shift);
        for index in first / 64..=last / 64 {
            let from = if index == first / 64 { first % 64 } else { 0 };
            let to = if index == last / 64 { last % 64 } else { 63 };
            let mask = (u64::MAX << from) & (u64::MAX >> (63 - to));
            let word = usize::try_from(index)
                .ok()
                .and_then(|index| self.words.get(index));
            if !word.is_some_and(|word| f(word, mask)) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_words_nothing_reads_as_zeroes() {
        let written = Written::untracked();
        written.mark(0, 512);
        assert!(!written.reads_as_zeroes(0, 512));
    }

    #[test]
    fn what_is_beyond_the_words_may_hold_data() {
        let words = [AtomicU64::new(0)];
        let written = Written::new(&words, 16);
        assert!(written.reads_as_zeroes(0, 64 << 16));
        assert!(!written.reads_as_zeroes(63 << 16, (1 << 16) + 1));
        assert!(!written.reads_as_zeroes(u64::MAX - 512, 512));
    }

    #[test]
    fn marking_reaches_every_word_even_if_the_end_is_beyond() {
        let words = [const { AtomicU64::new(0) }; 2];
        Written::new(&words, 9).mark(512 * 60, 512 * 200);
        assert_eq!(words[0].load(Ordering::Relaxed), 0xf << 60);
        assert_eq!(words[1].load(Ordering::Relaxed), u64::MAX);
    }

    proptest! {
        /// Against one bool a block.
        #[test]
        fn agrees_with_a_plain_model(
            shift in 9_u32..13,
            marks in proptest::collection::vec((0_u64..200 << 9, 1_u64..40 << 9), 0..6),
            asked in (0_u64..200 << 9, 1_u64..40 << 9),
        ) {
            let words = [const { AtomicU64::new(0) }; 4];
            let written = Written::new(&words, shift);
            let blocks = |(offset, length): (u64, u64)| offset >> shift..=(offset + length - 1) >> shift;
            let mut model = [false; 256];
            for mark in marks {
                written.mark(mark.0, mark.1);
                for block in blocks(mark) {
                    model[usize::try_from(block).expect("small")] = true;
                }
            }
            let zeroes = blocks(asked).all(|block| !model[usize::try_from(block).expect("small")]);
            prop_assert_eq!(written.reads_as_zeroes(asked.0, asked.1), zeroes);
        }
    }
}
