//! What a client may find on the device: every sector is a register.
//!
//! A read may return what any write put there that began before the read ended, unless another successful write
//! came wholly after that one and wholly before the read. Requests in flight together have no order: either may
//! win, sector by sector. Failed writes and discards may or may not have happened, until something overwrites
//! them. After a power failure the same holds, but only durable writes count as overwriting: those that were FUA
//! and those that completed before a FLUSH, itself successful, began.

use super::pattern::Writer;

/// The end of a request that is in flight.
const IN_FLIGHT: u64 = u64::MAX;

/// A change to a sector, from its request's beginning to its end.
#[derive(Clone, Copy, Debug)]
struct Change {
    /// The request that makes it: several may leave zeroes.
    request: u64,
    content: Writer,
    began: u64,
    ended: u64,
    /// It certainly happened.
    certain: bool,
    /// It survives a power failure, or something later does.
    durable: bool,
}

impl Change {
    /// Whether this one came wholly after `other` and for certain.
    fn overwrites(&self, other: &Self) -> bool {
        self.certain && self.began > other.ended
    }
}

/// How a request that changes sectors ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It may or may not have happened: it failed, or it was advisory.
    Uncertain,
    Certain,
    /// And it survives a power failure.
    Durable,
}

/// The changes that still matter, of every sector.
#[derive(Debug)]
pub(super) struct History {
    sectors: Vec<Vec<Change>>,
}

impl History {
    pub(super) fn new(content: impl Iterator<Item = Writer>) -> Self {
        Self {
            sectors: content.map(|content| vec![Self::initial(content)]).collect(),
        }
    }

    const fn initial(content: Writer) -> Change {
        Change {
            request: 0,
            content,
            began: 0,
            ended: 0,
            certain: true,
            durable: true,
        }
    }

    /// A request begins to change a sector.
    pub(super) fn begin(&mut self, sector: usize, request: u64, content: Writer, now: u64) {
        let change = Change {
            request,
            content,
            began: now,
            ended: IN_FLIGHT,
            certain: false,
            durable: false,
        };
        self.sectors[sector].push(change);
    }

    /// It has ended. `oldest_read` is when the oldest read that is in flight began: what no later read
    /// can find, now or after a power failure, is forgotten.
    pub(super) fn end(&mut self, sector: usize, request: u64, end: End, now: u64, oldest_read: u64) {
        let changes = &mut self.sectors[sector];
        for change in changes.iter_mut().filter(|change| change.request == request) {
            change.ended = now;
            change.certain = end != End::Uncertain;
            change.durable = end == End::Durable;
        }
        if changes.len() > 3 {
            Self::forget(changes, oldest_read);
        }
    }

    fn forget(changes: &mut Vec<Change>, oldest_read: u64) {
        let newest = changes
            .iter()
            .filter(|change| change.certain && change.durable && change.ended < oldest_read)
            .max_by_key(|change| change.began)
            .copied();
        if let Some(newest) = newest {
            changes.retain(|change| !newest.overwrites(change));
        }
    }

    /// A FLUSH that began at `began` has succeeded.
    pub(super) fn flushed(&mut self, began: u64) {
        for change in self.sectors.iter_mut().flatten() {
            change.durable |= change.ended < began;
        }
    }

    /// Whether a read that began at `began` and ends now may find this.
    pub(super) fn may_read(&self, sector: usize, content: Writer, began: u64) -> bool {
        let changes = &self.sectors[sector];
        let overwritten = |change: &Change| {
            changes
                .iter()
                .any(|later| later.overwrites(change) && later.ended < began)
        };
        changes
            .iter()
            .any(|change| change.content == content && !overwritten(change))
    }

    /// Whether a power failure may leave this. From now on, the sector holds it.
    pub(super) fn may_survive(&mut self, sector: usize, content: Writer) -> bool {
        let changes = &self.sectors[sector];
        let overwritten = |change: &Change| {
            changes
                .iter()
                .any(|later| later.overwrites(change) && later.durable)
        };
        let may = changes
            .iter()
            .any(|change| change.content == content && !overwritten(change));
        self.sectors[sector] = vec![Self::initial(content)];
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_READ: u64 = u64::MAX;

    #[test]
    fn a_read_after_a_write_finds_it_and_one_beside_it_either() {
        let mut history = History::new([0].into_iter());
        history.begin(0, 1, 1, 10);
        assert!(history.may_read(0, 0, 11) && history.may_read(0, 1, 11));
        history.end(0, 1, End::Certain, 20, NO_READ);
        assert!(
            history.may_read(0, 0, 15),
            "the read began before the write ended"
        );
        assert!(!history.may_read(0, 0, 21) && history.may_read(0, 1, 21));
    }

    #[test]
    fn writes_in_flight_together_have_no_order() {
        let mut history = History::new([0].into_iter());
        history.begin(0, 1, 1, 10);
        history.begin(0, 2, 2, 11);
        history.end(0, 2, End::Certain, 12, NO_READ);
        history.end(0, 1, End::Certain, 13, NO_READ);
        assert!(history.may_read(0, 1, 14) && history.may_read(0, 2, 14) && !history.may_read(0, 0, 14));
    }

    #[test]
    fn a_failed_write_may_have_happened() {
        let mut history = History::new([5].into_iter());
        history.begin(0, 1, 1, 10);
        history.end(0, 1, End::Uncertain, 20, NO_READ);
        assert!(history.may_read(0, 1, 30) && history.may_read(0, 5, 30));
    }

    #[test]
    fn only_durable_writes_must_survive() {
        let mut history = History::new([0, 0, 0].into_iter());
        for (sector, end) in [(0, End::Certain), (1, End::Durable), (2, End::Certain)] {
            history.begin(sector, 1, 1, 10);
            history.end(sector, 1, end, 20, NO_READ);
        }
        history.begin(2, 2, 2, 25);
        history.flushed(22);
        assert!(history.sectors[0].iter().all(|change| change.durable));
        assert!(!history.may_survive(0, 0) && !history.may_survive(1, 0));
        assert!(
            history.may_survive(2, 2),
            "a write in flight may have reached the media"
        );
        let mut history = History::new([0].into_iter());
        history.begin(0, 1, 1, 10);
        history.end(0, 1, End::Certain, 20, NO_READ);
        history.flushed(15);
        assert!(
            history.may_survive(0, 0),
            "the flush began before the write ended"
        );
    }

    #[test]
    fn forgetting_changes_no_answer() {
        let mut history = History::new([0].into_iter());
        for write in 1..=10 {
            history.begin(0, write, write, write * 10);
            history.end(0, write, End::Durable, write * 10 + 5, 62);
        }
        assert!(history.sectors[0].len() < 8, "something was forgotten");
        assert!(history.may_read(0, 5, 62) && history.may_read(0, 6, 62) && !history.may_read(0, 4, 62));
        assert!(history.may_read(0, 10, 200) && !history.may_read(0, 9, 200));
    }
}
