//! A checkpoint on its way to the device.

use super::block::{self, BLOCK_ENTRIES, Kind, Place};
use super::position::Position;
use super::{Half, Head, LOG_PAGE, LogEntry, LogLayout, LogSeal, Placed, head};

/// A checkpoint that has begun. In this order: write all that [`append`](Self::append) gives, flush, write the
/// [`head`](Self::head) with FUA, and call [`Log::end_checkpoint`](super::Log::end_checkpoint).
#[derive(Debug)]
pub struct Checkpoint {
    layout: LogLayout,
    seal: LogSeal,
    half: Half,
    head: Head,
    /// Slots below have been written.
    slots: u32,
}

impl Checkpoint {
    pub(super) const fn new(
        layout: LogLayout,
        seal: LogSeal,
        checkpoint: u64,
        half: Half,
        start: Position,
    ) -> Self {
        Self {
            layout,
            seal,
            half,
            head: Head {
                checkpoint,
                blocks: 0,
                start,
            },
            slots: 0,
        }
    }

    pub(super) const fn described(&self) -> &Head {
        &self.head
    }

    pub(super) const fn half(&self) -> Half {
        self.half
    }

    /// Encodes as many of the dirty slots, in ascending order over all calls, as the buffer has room for; `None` if
    /// there is no more. The caller writes it there.
    ///
    /// # Panics
    /// If slots are not in ascending order, there are no such slots, or the area has no room: the last block of a call that came
    /// to the end of the entries may be partial, so none may follow.
    pub fn append(
        &mut self,
        entries: &mut impl Iterator<Item = LogEntry>,
        into: &mut [u8],
    ) -> Option<Placed> {
        let offset = self.layout.area_page(self.half, self.head.blocks);
        let mut length = 0;
        for page in into.chunks_exact_mut(LOG_PAGE) {
            let block: Vec<LogEntry> = entries.by_ref().take(BLOCK_ENTRIES).collect();
            if block.is_empty() {
                break;
            }
            self.encode(&block, page);
            length += LOG_PAGE;
        }
        (length != 0).then_some(Placed { offset, length })
    }

    fn encode(&mut self, entries: &[LogEntry], page: &mut [u8]) {
        for entry in entries {
            assert!((self.slots..self.layout.slots).contains(&entry.slot), "{entry:?}");
            self.slots = entry.slot + 1;
        }
        assert!(self.head.blocks < self.layout.area_pages, "the area is full");
        self.head.blocks += 1;
        block::encode(
            Kind::Checkpoint,
            &self.seal,
            self.place(self.head.blocks),
            entries,
            page,
        );
    }

    fn place(&self, k: u32) -> Place {
        place(&self.head, k)
    }

    /// Encodes the head into the first page of `into`.
    #[must_use]
    pub fn head(&self, into: &mut [u8]) -> Placed {
        head::encode(&self.seal, &self.head, &mut into[..LOG_PAGE]);
        Placed {
            offset: self.layout.head(self.half),
            length: LOG_PAGE,
        }
    }
}

/// What block `k`, from 1, of the head's checkpoint says of itself.
pub(super) const fn place(head: &Head, k: u32) -> Place {
    Place {
        seq: head.checkpoint,
        tx: 0,
        k,
        n: 0,
    }
}
