//! Who owns each tag.

use super::service::Service;

/// The one place that a tag is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// With the kernel: it may arrive.
    Kernel,
    /// Its request waits for a staging buffer.
    Waiting,
    /// An operation for its request is out, or on its way to the driver.
    InFlight,
    /// Its result is in this batch, which has not been submitted.
    Ready(u8),
    /// Its result is in this batch, which is out with COMMIT. The kernel takes a tag back when it handles the
    /// element, which may be before the COMMIT's completion is seen: such a tag may arrive again.
    Committing(u8),
    /// Its request is left, uncommitted, to the kernel and whoever serves the device next.
    Abandoned,
}

/// A tag's owner and the request that it stands for while it is here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) owner: Owner,
    pub(super) service: Service,
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
            service: Service::IDLE,
        };
        Self {
            slots: vec![slot; usize::from(depth)].into_boxed_slice(),
        }
    }

    /// A tag arrives: from the kernel, or from a COMMIT that the kernel has handled so far.
    ///
    /// # Panics
    /// If the kernel gives a tag that it does not have: serving it twice would corrupt a request.
    #[inline]
    pub(super) fn arrive(&mut self, tag: u16) -> &mut Slot {
        let slot = &mut self.slots[usize::from(tag)];
        assert!(
            matches!(slot.owner, Owner::Kernel | Owner::Committing(_)),
            "tag {tag} arrived, but it is {:?}",
            slot.owner
        );
        slot
    }

    /// The slot of a tag that is in flight.
    ///
    /// # Panics
    /// If it is not: a completion for it is nobody's.
    #[inline]
    pub(super) fn in_flight(&mut self, tag: u16) -> &mut Slot {
        let slot = &mut self.slots[usize::from(tag)];
        assert!(
            slot.owner == Owner::InFlight,
            "an operation of tag {tag} completed, but it is {:?}",
            slot.owner
        );
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

    /// A COMMIT of this batch is through with the tag. If it has arrived again in the meantime, it stays
    /// where it is.
    #[inline]
    pub(super) fn committed(&mut self, tag: u16, batch: u8) {
        let slot = &mut self.slots[usize::from(tag)];
        if slot.owner == Owner::Committing(batch) {
            slot.owner = Owner::Kernel;
        }
    }

    /// The request that a tag stands for.
    #[inline]
    pub(super) fn service(&self, tag: u16) -> &Service {
        &self.slots[usize::from(tag)].service
    }

    /// The slot of a tag, wherever it is.
    #[inline]
    pub(super) fn slot(&mut self, tag: u16) -> &mut Slot {
        &mut self.slots[usize::from(tag)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_arrives_from_the_kernel_or_from_a_commit_that_is_out() {
        let mut tags = Tags::new(2);
        tags.arrive(0).owner = Owner::InFlight;
        tags.shift(0, Owner::InFlight, Owner::Ready(1));
        tags.shift(0, Owner::Ready(1), Owner::Committing(1));
        tags.arrive(0).owner = Owner::InFlight;
        tags.committed(0, 1);
        assert_eq!(
            tags.slot(0).owner,
            Owner::InFlight,
            "it has arrived again before the completion"
        );
    }

    #[test]
    fn a_committed_tag_is_the_kernels() {
        let mut tags = Tags::new(2);
        tags.slot(1).owner = Owner::Committing(0);
        tags.committed(1, 1);
        assert_eq!(
            tags.slot(1).owner,
            Owner::Committing(0),
            "another batch's completion says nothing about it"
        );
        tags.committed(1, 0);
        assert_eq!(tags.slot(1).owner, Owner::Kernel);
    }

    #[test]
    #[should_panic(expected = "tag 0 arrived, but it is Ready(0)")]
    fn a_tag_that_is_here_cannot_arrive() {
        let mut tags = Tags::new(1);
        tags.slot(0).owner = Owner::Ready(0);
        tags.arrive(0);
    }

    #[test]
    #[should_panic(expected = "completed, but it is Kernel")]
    fn a_completion_without_an_operation_is_caught() {
        Tags::new(1).in_flight(0);
    }
}
