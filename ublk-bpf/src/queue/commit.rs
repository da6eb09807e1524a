//! Results, in batches for the kernel.

use super::event::QueueFailure;
use crate::errno::Errno;
use crate::sys::uapi::ElemHeader;

/// One tag's result in a batch: `struct ublk_elem_header`. `buf_index` is the tag.
pub type Element = ElemHeader;

/// Bytes of an element: COMMIT's results are multiples of it.
const ELEMENT_BYTES: u32 = 8;
const _: () = assert!(size_of::<Element>() == ELEMENT_BYTES as usize);

/// One batch fills while one is out with COMMIT: 1 + 1. PREP, which is out before anything fills, uses the first.
pub(super) const BATCHES: usize = 2;

/// How often in a row a COMMIT of which nothing was handled is submitted again. There is no clock here: this
/// is a bound on work, for failures that pass by themselves.
const MAX_COMMIT_RETRIES: u8 = 16;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This many of its bytes were moved; none for a request without data.
    Moved(u32),
    /// It failed.
    Failed(Errno),
}

/// The result that the kernel is given for a request with `data` bytes of data: a success is for all of them.
///
/// The driver takes any result above zero for the success of the whole request when, as here, data is not
/// mapped (`__ublk_complete_rq`: `!need_map` ends it with `BLK_STS_OK`), so anything but the exact length would
/// give a client pages that were never filled, or acknowledge a write that was never made. Requests without data
/// succeed with 0, which is an error for READ only; their length may not fit a result at all.
///
/// # Panics
/// If a request that is not complete is about to succeed.
#[inline]
pub(super) fn result_of(data: u32, outcome: Outcome) -> i32 {
    let result = match outcome {
        Outcome::Moved(bytes) => i32::try_from(bytes).unwrap_or(i32::MAX),
        Outcome::Failed(errno) => errno.for_client().result(),
    };
    if result >= 0 && result.unsigned_abs() != data {
        incomplete(data, result);
    }
    result
}

/// Panics. Out of line: its arguments would otherwise be kept in memory on the path of every request.
#[cold]
#[inline(never)]
fn incomplete(data: u32, result: i32) -> ! {
    panic!("a request of {data} bytes may not complete with result {result}")
}

/// What a COMMIT's completion means for its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Every element was handled or refused.
    Done,
    /// The rest has to be submitted: elements from this one on.
    Rest(u16),
    /// It will never be handled.
    Failed(QueueFailure),
}

/// The batch that is out.
#[derive(Clone, Copy, Debug)]
struct Out {
    batch: u8,
    /// Its first element in the COMMIT that is out.
    from: u16,
    retries: u8,
}

/// A batch of results. The elements never move: the kernel reads them where they are.
#[derive(Debug)]
struct Batch {
    elements: Box<[Element]>,
    len: u16,
}

/// The queue's batches.
#[derive(Debug)]
pub(super) struct Batches {
    filling: Batch,
    /// The one that is out, or empty.
    other: Batch,
    /// The number of the batch that fills: batches are counted from 0, and the two take turns.
    number: u64,
    out: Option<Out>,
}

impl Batches {
    /// Batches with room for every tag: a tag is in the filling one at most once, so that never overflows.
    pub(super) fn new(depth: u16) -> Self {
        let batch = || Batch {
            elements: vec![Element::default(); usize::from(depth)].into_boxed_slice(),
            len: 0,
        };
        Self {
            filling: batch(),
            other: batch(),
            number: 0,
            out: None,
        }
    }

    /// Fills a batch with every tag and sends it out, for PREP.
    pub(super) fn prepare(&mut self) -> u8 {
        let Batch { elements, len } = &mut self.filling;
        for (element, tag) in elements.iter_mut().zip(0..) {
            *element = Element {
                tag,
                buf_index: tag,
                result: 0,
            };
            *len += 1;
        }
        self.turn()
    }

    /// The filling batch is out from now on, and the other one fills. Returns which went out.
    #[inline]
    fn turn(&mut self) -> u8 {
        let batch = index(self.number);
        self.out = Some(Out {
            batch,
            from: 0,
            retries: 0,
        });
        std::mem::swap(&mut self.filling, &mut self.other);
        self.number += 1;
        assert!(self.is_empty(), "the batch that was out has come back");
        batch
    }

    /// PREP is through: its batch is free.
    pub(super) fn prepared(&mut self) {
        if let Some(out) = self.out.take() {
            self.clear(out.batch);
        }
    }

    /// The number of the batch that fills. Those of lower numbers have been sent.
    #[inline]
    pub(super) fn filling(&self) -> u64 {
        self.number
    }

    /// Puts a result into the filling batch. Says whether it is full now.
    #[inline]
    pub(super) fn push(&mut self, tag: u16, result: i32) -> bool {
        let batch = &mut self.filling;
        batch.elements[usize::from(batch.len)] = Element {
            tag,
            buf_index: tag,
            result,
        };
        batch.len += 1;
        usize::from(batch.len) == batch.elements.len()
    }

    /// Whether the filling batch has no room.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        usize::from(self.filling.len) == self.filling.elements.len()
    }

    /// Whether no result waits to be submitted.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.filling.len == 0
    }

    /// Whether a COMMIT is out.
    #[inline]
    pub(super) fn is_out(&self) -> bool {
        self.out.is_some()
    }

    /// Sends the filling batch out, if it has anything and no other is out. Says which it was.
    #[inline]
    pub(super) fn send(&mut self) -> Option<u8> {
        if self.is_out() || self.is_empty() {
            return None;
        }
        Some(self.turn())
    }

    /// The first element of the COMMIT that is out.
    #[inline]
    pub(super) fn from(&self) -> u16 {
        self.out.map_or(0, |out| out.from)
    }

    /// All elements of a batch.
    #[inline]
    pub(super) fn elements(&self, batch: u8) -> &[Element] {
        let batch = if batch == index(self.number) {
            &self.filling
        } else {
            &self.other
        };
        &batch.elements[..usize::from(batch.len)]
    }

    /// Reads the completion of the COMMIT that is out. The second value is the element that was refused.
    ///
    /// The kernel stops at the first element that it cannot handle and says how far it got; only if it handled
    /// none does it say why (`ublk_handle_batch_commit_cmd`). The failing element is never submitted again: its
    /// tag is not the server's, may become so at any time with another request, and would then complete that
    /// one.
    ///
    /// # Panics
    /// If that batch is not out.
    pub(super) fn completed(&mut self, batch: u8, result: i32) -> (Answer, Option<Element>) {
        let Some(out) = self.out.as_mut().filter(|out| out.batch == batch) else {
            panic!("a COMMIT of batch {batch} completed, but it is not out");
        };
        let len = self.other.len;
        let elements = u32::from(len - out.from);
        let handled = match Errno::of_result(result) {
            None => result.unsigned_abs(),
            // The first element is not the server's.
            Some(Errno::EBUSY) => 0,
            // These pass, and nothing was handled.
            Some(Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM | Errno::EFAULT)
                if out.retries < MAX_COMMIT_RETRIES =>
            {
                out.retries += 1;
                return (Answer::Rest(out.from), None);
            }
            // EINVAL among them: every tag here is below the depth, so the command itself is at fault, and its
            // other elements would be refused as well.
            Some(errno) => return (Answer::Failed(QueueFailure::Commit(errno)), None),
        };
        if handled % ELEMENT_BYTES != 0 || handled / ELEMENT_BYTES > elements {
            return (
                Answer::Failed(QueueFailure::CommitResult {
                    elements,
                    bytes: result,
                }),
                None,
            );
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "at most the batch's elements, by the line above"
        )]
        let stopped_at = out.from + (handled / ELEMENT_BYTES) as u16;
        if stopped_at == len {
            return (self.done(batch), None);
        }
        let refused = self.other.elements[usize::from(stopped_at)];
        out.from = stopped_at + 1;
        out.retries = 0;
        let answer = if out.from == len {
            self.done(batch)
        } else {
            Answer::Rest(stopped_at + 1)
        };
        (answer, Some(refused))
    }

    /// The batch is free. Its elements stay readable until it fills again.
    fn done(&mut self, batch: u8) -> Answer {
        debug_assert!(index(self.number) != batch);
        self.out = None;
        Answer::Done
    }

    /// Empties a batch that is through.
    pub(super) fn clear(&mut self, batch: u8) {
        debug_assert!(index(self.number) != batch);
        self.other.len = 0;
    }

    /// Gives up the batch that is out.
    pub(super) fn give_up(&mut self) {
        self.out = None;
    }
}

/// Where the batch of a number is, and what it is called outside.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "below `BATCHES`")]
const fn index(number: u64) -> u8 {
    (number % BATCHES as u64) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(tags: u16) -> Batches {
        let mut batches = Batches::new(8);
        for tag in 0..tags {
            batches.push(tag, 512);
        }
        assert_eq!(batches.send(), Some(0));
        batches
    }

    #[test]
    fn a_success_is_for_the_whole_request() {
        assert_eq!(result_of(4096, Outcome::Moved(4096)), 4096);
        assert_eq!(result_of(0, Outcome::Moved(0)), 0);
        assert_eq!(result_of(4096, Outcome::Failed(Errno::EIO)), -5);
        assert_eq!(result_of(0, Outcome::Failed(Errno::EAGAIN)), -5);
    }

    #[test]
    #[should_panic(expected = "a request of 4096 bytes may not complete with result 512")]
    fn a_short_success_is_caught() {
        result_of(4096, Outcome::Moved(512));
    }

    #[test]
    #[should_panic(expected = "may not complete with result 0")]
    fn an_empty_success_is_caught() {
        result_of(512, Outcome::Moved(0));
    }

    #[test]
    fn a_full_commit_frees_its_batch() {
        let mut batches = sent(3);
        batches.push(7, 0);
        assert_eq!(batches.send(), None, "one at a time");
        assert_eq!(batches.completed(0, 24), (Answer::Done, None));
        batches.clear(0);
        assert_eq!(batches.send(), Some(1));
        assert_eq!(
            batches.elements(1),
            [Element {
                tag: 7,
                buf_index: 7,
                result: 0
            }]
        );
    }

    #[test]
    fn a_partial_commit_goes_on_behind_the_refused_element() {
        let mut batches = sent(4);
        let (answer, refused) = batches.completed(0, 8);
        assert_eq!((answer, refused.map(|e| e.tag)), (Answer::Rest(2), Some(1)));
        assert_eq!(batches.from(), 2);
        // Two are out: the first is handled, the last refused; none remains.
        let (answer, refused) = batches.completed(0, 8);
        assert_eq!((answer, refused.map(|e| e.tag)), (Answer::Done, Some(3)));
    }

    #[test]
    fn a_commit_that_handled_nothing_because_of_its_first_element_goes_on_behind_it() {
        let mut batches = sent(2);
        let (answer, refused) = batches.completed(0, -16);
        assert_eq!((answer, refused.map(|e| e.tag)), (Answer::Rest(1), Some(0)));
        let (answer, refused) = batches.completed(0, 0);
        assert_eq!((answer, refused.map(|e| e.tag)), (Answer::Done, Some(1)));
    }

    #[test]
    fn passing_failures_are_retried_so_often_and_no_oftener() {
        let mut batches = sent(2);
        for _ in 0..MAX_COMMIT_RETRIES {
            assert_eq!(batches.completed(0, -12), (Answer::Rest(0), None));
        }
        let failed = Answer::Failed(QueueFailure::Commit(Errno::ENOMEM));
        assert_eq!(batches.completed(0, -12), (failed, None));
    }

    #[test]
    fn a_malformed_command_or_result_fails_the_queue() {
        assert_eq!(
            sent(2).completed(0, -22).0,
            Answer::Failed(QueueFailure::Commit(Errno::EINVAL))
        );
        for bytes in [7, 24, i32::MAX] {
            let failure = QueueFailure::CommitResult { elements: 2, bytes };
            assert_eq!(sent(2).completed(0, bytes).0, Answer::Failed(failure));
        }
    }

    #[test]
    #[should_panic(expected = "it is not out")]
    fn a_completion_of_a_batch_that_is_not_out_is_caught() {
        sent(1).completed(1, 8);
    }
}
