//! The owner of each tag.

use super::event::Tier;
use super::in_flight::InFlight;

/// The one place that a tag is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// With the kernel: it may arrive.
    Kernel,
    /// Its request waits: for a staging buffer, for a fill's data, or for the end of a claim in the cache.
    Waiting,
    /// An operation for its request is out, or on its way to the driver.
    InFlight,
    /// Its result is in the batch of this number. As long as that one fills, the tag is here. Once it is sent, the
    /// tag may arrive: the kernel takes it back when it handles the element, which may be before the COMMIT's
    /// completion is seen. So sending a batch updates no tag.
    Answered(u64),
    /// Its request stays uncommitted: the kernel reissues it to the next server, or fails it.
    Abandoned,
}

/// A tag's owner and the request that it stands for while it is here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) owner: Owner,
    pub(super) in_flight: InFlight,
}

impl Slot {
    /// Whether the tag's request is in service.
    #[inline]
    pub(super) const fn is_here(&self) -> bool {
        matches!(self.owner, Owner::InFlight | Owner::Waiting)
    }
}

/// Every tag of the queue.
#[derive(Debug)]
pub(super) struct Tags {
    slots: Box<[Slot]>,
}

impl Tags {
    /// `depth` tags, all with the kernel.
    pub(super) fn new(depth: u16) -> Self {
        let slot = Slot {
            owner: Owner::Kernel,
            in_flight: InFlight::IDLE,
        };
        Self {
            slots: vec![slot; usize::from(depth)].into_boxed_slice(),
        }
    }

    /// A tag arrives: from the kernel, or from a batch that was sent, one before the batch `filling`.
    ///
    /// # Panics
    /// If the kernel gives a tag that it does not own: serving it twice would corrupt a request.
    #[inline]
    pub(super) fn arrive(&mut self, tag: u16, filling: u64) -> &mut Slot {
        let slot = &mut self.slots[usize::from(tag)];
        let is_kernels = match slot.owner {
            Owner::Answered(batch) => batch < filling,
            owner => owner == Owner::Kernel,
        };
        if !is_kernels {
            surprising("arrived", tag, slot.owner);
        }
        slot
    }

    /// The slot of a tag that is in flight.
    ///
    /// # Panics
    /// If it is not: its completion belongs to no request.
    #[inline]
    pub(super) fn expect_in_flight(&mut self, tag: u16) -> &mut Slot {
        let slot = &mut self.slots[usize::from(tag)];
        if slot.owner != Owner::InFlight {
            surprising("completed an operation", tag, slot.owner);
        }
        slot
    }

    /// Moves a tag from one place to another.
    ///
    /// # Panics
    /// If it is not where it is said to be.
    #[inline]
    pub(super) fn shift(&mut self, tag: u16, from: Owner, to: Owner) {
        let slot = &mut self.slots[usize::from(tag)];
        assert!(
            slot.owner == from,
            "tag {tag} shall go from {from:?} to {to:?}, but it is {:?}",
            slot.owner
        );
        slot.owner = to;
    }

    /// The request that a tag stands for.
    #[inline]
    pub(super) fn in_flight(&self, tag: u16) -> &InFlight {
        &self.slots[usize::from(tag)].in_flight
    }

    /// Whether a tag's request is in service.
    #[inline]
    pub(super) fn is_here(&self, tag: u16) -> bool {
        self.slots[usize::from(tag)].is_here()
    }

    /// Whether there is such a tag, and its request is in service.
    pub(super) fn serve(&self, tag: u16) -> bool {
        self.slots.get(usize::from(tag)).is_some_and(Slot::is_here)
    }

    /// The file of a device was truncated to `end`: marks every request in service that this concerns.
    #[cold]
    pub(super) fn cut(&mut self, device: Tier, end: u64) {
        for slot in self.slots.iter_mut().filter(|slot| slot.is_here()) {
            slot.in_flight.cut(device, end);
        }
    }

    /// The slot of a tag, wherever it is.
    #[inline]
    pub(super) fn slot(&mut self, tag: u16) -> &mut Slot {
        &mut self.slots[usize::from(tag)]
    }
}

/// Panics. Aside and by value: to format a tag where it is in use would keep it in memory there.
#[cold]
#[inline(never)]
fn surprising(what: &str, tag: u16, owner: Owner) -> ! {
    panic!("tag {tag} {what}, but it is {owner:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_arrives_from_the_kernel_or_from_a_batch_that_was_sent() {
        let mut tags = Tags::new(2);
        tags.arrive(0, 5).owner = Owner::InFlight;
        tags.shift(0, Owner::InFlight, Owner::Answered(5));
        tags.arrive(0, 6).owner = Owner::InFlight;
        assert_eq!(tags.expect_in_flight(0).owner, Owner::InFlight);
    }

    #[test]
    #[should_panic(expected = "tag 0 arrived, but it is Answered(7)")]
    fn a_tag_whose_result_is_here_cannot_arrive() {
        let mut tags = Tags::new(1);
        tags.slot(0).owner = Owner::Answered(7);
        tags.arrive(0, 7);
    }

    #[test]
    #[should_panic(expected = "tag 0 arrived, but it is InFlight")]
    fn a_tag_in_flight_cannot_arrive() {
        let mut tags = Tags::new(1);
        tags.slot(0).owner = Owner::InFlight;
        tags.arrive(0, 1);
    }

    #[test]
    #[should_panic(expected = "tag 0 arrived, but it is Abandoned")]
    fn a_tag_that_was_left_to_the_next_server_cannot_arrive() {
        let mut tags = Tags::new(1);
        tags.slot(0).owner = Owner::Abandoned;
        tags.arrive(0, 1);
    }

    #[test]
    #[should_panic(expected = "tag 0 completed an operation, but it is Kernel")]
    fn a_completion_without_an_operation_is_caught() {
        Tags::new(1).expect_in_flight(0);
    }
}
