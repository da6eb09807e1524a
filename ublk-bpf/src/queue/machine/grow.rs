//! A device that grows while it is served.

use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf_abi::SECTOR_SIZE;

use super::{Arrival, BlockRequest, Machine};
use crate::errno::Errno;

/// The sectors of a device that does not grow: no more than it begins with.
pub(super) static FIXED: AtomicU64 = AtomicU64::new(0);

impl<'w> Machine<'w> {
    /// The same machine, for a device whose present number of sectors is in this word, which only grows: it is stored before
    /// the kernel sends a request beyond the former end. Call it before anything else.
    #[must_use]
    pub fn with_capacity(mut self, sectors: &'w AtomicU64) -> Self {
        self.sectors = sectors;
        self
    }

    /// Parses a request that is refused as far as this queue knows the device. That it has grown is found out here, by its
    /// first request beyond the former end, and costs no other one anything.
    #[cold]
    pub(super) fn parse_again(&mut self, arrival: &Arrival, refused: Errno) -> Result<BlockRequest, Errno> {
        // Relaxed: the kernel was told the size after it was stored, and sent the request after that.
        let now = self.sectors.load(Ordering::Relaxed);
        if now <= self.limits.capacity {
            return Err(refused);
        }
        self.limits.capacity = now;
        // A file that has grown ends further on. One that was truncated meanwhile is seen when the ends are looked at.
        self.seen[0] = self.seen[0].max(self.ends.backing());
        self.limits.reach = now.min(self.seen[0] / SECTOR_SIZE);
        BlockRequest::parse(arrival, &self.limits)
    }
}

#[cfg(test)]
mod tests {
    use ublk_bpf_abi::{TakenVerdict, VerdictSlot};

    use super::super::tests::{CONFIG, PASSTHROUGH, READ, WRITE, committed, done, effects};
    use super::*;
    use crate::queue::{Ends, Event, Written};

    /// A request for the eight sectors from this one.
    fn arrive(machine: &mut Machine<'_>, tag: u16, op: u32, sector: u64) {
        let head = VerdictSlot::head(PASSTHROUGH, op, 8);
        machine.handle(Event::Arrived(Arrival {
            tag,
            op_flags: op,
            nr_sectors: 8,
            start_sector: sector,
            verdict: TakenVerdict {
                head,
                place: VerdictSlot::place(0, sector),
            },
        }));
    }

    #[test]
    fn requests_beyond_the_former_end_are_served_once_the_device_has_grown() {
        static CACHE: AtomicU64 = AtomicU64::new(u64::MAX);
        let (sectors, end) = (AtomicU64::new(CONFIG.capacity), AtomicU64::new(u64::MAX));
        let machine = Machine::new(&CONFIG, Written::untracked()).unwrap();
        let mut machine = machine.with_ends(Ends::new(&end, &CACHE)).with_capacity(&sectors);
        effects(&mut machine);
        machine.handle(Event::Prepared(0));
        effects(&mut machine);
        let beyond = CONFIG.capacity;
        arrive(&mut machine, 0, READ, beyond);
        assert_eq!(committed(&mut machine), [(0, -22)]);

        sectors.store(2 * CONFIG.capacity, Ordering::Relaxed);
        for (tag, op) in [(0, READ), (1, WRITE)] {
            arrive(&mut machine, tag, op, beyond);
            assert_eq!(effects(&mut machine).len(), 1);
            assert_eq!(done(&mut machine, tag, 4096), []);
            assert_eq!(committed(&mut machine), [(tag, 4096)]);
        }
        arrive(&mut machine, 0, READ, 2 * beyond);
        assert_eq!(committed(&mut machine), [(0, -22)]);

        // A file's end is raised before the device grows again.
        end.store(2 * beyond * SECTOR_SIZE, Ordering::Relaxed);
        machine.look_at_ends();
        sectors.store(4 * beyond, Ordering::Relaxed);
        end.store(4 * beyond * SECTOR_SIZE, Ordering::Relaxed);
        arrive(&mut machine, 0, READ, 3 * beyond);
        assert_eq!(effects(&mut machine).len(), 1);
        assert_eq!(done(&mut machine, 0, 4096), []);
        assert_eq!(committed(&mut machine), [(0, 4096)]);

        // Others truncate the backing to its former size: what has grown is lost again.
        end.store(beyond * SECTOR_SIZE, Ordering::Relaxed);
        machine.look_at_ends();
        arrive(&mut machine, 0, READ, beyond);
        assert_eq!(committed(&mut machine), [(0, -5)]);
    }
}
