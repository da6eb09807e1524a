//! What the driver has yet to do, in order.

use super::event::{FETCHES, FillBuffer};

/// An effect that was decided on, without what the machine can look up when the driver polls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Todo {
    Prepare(u8),
    Fetch(u8),
    Io(u16),
    Delay(u16),
    Fill(FillBuffer),
    Commit(u8),
    Wake,
    Ring,
    Failed,
    Finished,
}

/// A ring of fixed size.
#[derive(Debug)]
pub(super) struct Todos {
    slots: Box<[Todo]>,
    /// Slots minus one; their number is a power of two.
    mask: u32,
    /// Taken so far, modulo 2^32.
    head: u32,
    /// Put in so far, modulo 2^32.
    tail: u32,
}

impl Todos {
    /// Room for all that can be decided on and not yet polled.
    pub(super) fn new(depth: u16, fills: u16) -> Self {
        let most = 1 // PREP
            + u32::from(FETCHES) // each FETCH command is issued again only after it ended
            + u32::from(depth) // a tag has at most one operation
            + u32::from(fills) // and so has a fill
            + 1 // one COMMIT is out at a time
            + 2 // the mover is woken once a round, and so are other queues
            + 1 // a queue fails once
            + 1; // and finishes once
        let slots = most.next_power_of_two();
        let nothing = vec![Todo::Finished; slots as usize];
        Self {
            slots: nothing.into_boxed_slice(),
            mask: slots - 1,
            head: 0,
            tail: 0,
        }
    }

    /// Adds to the end.
    ///
    /// # Panics
    /// If the sum in [`Self::new`] is wrong.
    #[inline]
    pub(super) fn push(&mut self, todo: Todo) {
        assert!(
            self.tail.wrapping_sub(self.head) <= self.mask,
            "more effects than the sum allows"
        );
        self.slots[(self.tail & self.mask) as usize] = todo;
        self.tail = self.tail.wrapping_add(1);
    }

    /// Takes the first.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Todo> {
        if self.head == self.tail {
            return None;
        }
        let todo = self.slots[(self.head & self.mask) as usize];
        self.head = self.head.wrapping_add(1);
        Some(todo)
    }
}

/// Whom the machine may have to wake when it is next idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wake(u8);

impl Wake {
    pub(super) const NONE: Self = Self(0);

    /// The mover: a hint or a failure is new, or free slots have become few.
    pub(super) fn mover(&mut self) {
        self.0 |= 1;
    }

    /// Queues, perhaps this one: a claim may have ended that reads wait for.
    pub(super) fn queues(&mut self) {
        self.0 |= 2;
    }

    pub(super) fn is_for_mover(self) -> bool {
        self.0 & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out_across_the_end() {
        let mut todos = Todos::new(2, 0);
        for round in 0..100 {
            todos.push(Todo::Io(round));
            todos.push(Todo::Fetch(1));
            assert_eq!(todos.pop(), Some(Todo::Io(round)));
            assert_eq!(todos.pop(), Some(Todo::Fetch(1)));
            assert_eq!(todos.pop(), None);
        }
    }

    #[test]
    #[should_panic(expected = "more effects than the sum allows")]
    fn it_has_the_room_that_it_needs_and_a_limit() {
        let mut todos = Todos::new(2, 0);
        for _ in 0..17 {
            todos.push(Todo::Finished);
        }
    }
}
