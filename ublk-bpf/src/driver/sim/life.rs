//! How servers end, and what the next one finds.

use std::sync::atomic::Ordering;

use super::fault::Fault;
use super::kernel::Place;
use super::pattern::POISON;
use super::{Check, Sim};
use crate::queue::Event;
use crate::sys::uapi::UBLK_IO_OP_READ;

/// Why the present server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is not.
    None,
    /// STOP_DEV waits for the last request.
    Draining,
    /// The queue was cancelled after its last request.
    Stop,
    /// The queue was cancelled at some moment.
    Quiesce,
    /// It leaves its requests to a successor.
    Abandon,
}

impl Sim<'_> {
    /// Perhaps the server's end begins.
    pub(super) fn maybe_end(&mut self) -> Check {
        if self.ending == Ending::Draining {
            if self.submitted == self.completed {
                self.cancel(Ending::Stop);
            }
            return Ok(());
        }
        // This is called in one step of sixteen.
        if self.rng.below(100_000) >= u64::from(self.world.ends) * 16 {
            return Ok(());
        }
        let ending = self.ending;
        match self.rng.below(6) {
            0 => self.kill(),
            1 => self.power_cut(),
            2 if ending == Ending::None => {
                self.ending = Ending::Draining;
                Ok(())
            }
            3 | 4 if ending == Ending::None => {
                self.counts.hit(Fault::Quiesce);
                self.cancel(Ending::Quiesce);
                Ok(())
            }
            5 if ending != Ending::Stop => {
                self.counts.hit(Fault::Abandon);
                self.ending = Ending::Abandon;
                self.machine.handle(Event::Abandon);
                self.poll()
            }
            _ => Ok(()),
        }
    }

    /// The kernel cancels the queue.
    fn cancel(&mut self, ending: Ending) {
        self.ending = ending;
        self.progress();
        if ending == Ending::Stop {
            self.counts.hit(Fault::Stop);
        }
        self.kernel.cancel(&mut self.rng, &mut self.counts);
    }

    /// The device is stopped at the end of a run, whatever was going on.
    pub(super) fn stop_for_good(&mut self) -> Check {
        while self.ending != Ending::None {
            self.step(false)?;
        }
        self.cancel(Ending::Stop);
        while self.ending != Ending::None {
            self.step(false)?;
        }
        Ok(())
    }

    /// The machine says that it has ended. Whatever a client was promised must be kept.
    pub(super) fn close(&mut self) -> Check {
        if let Some(op) = self.ops.first() {
            return Err(format!("the queue finished with {op:?} in flight"));
        }
        let held = self.kernel.count(Place::Server);
        if held > 0 && self.ending != Ending::Abandon {
            return Err(format!("the queue finished with {held} requests"));
        }
        let counters = self.machine.counters();
        if self.ending != Ending::Abandon && counters.arrived != counters.completed + counters.failed {
            return Err(format!(
                "what arrived was not all completed or failed: {counters:?}"
            ));
        }
        self.succeed()
    }

    /// The server dies.
    fn kill(&mut self) -> Check {
        self.counts.hit(if self.world.reissue {
            Fault::KillReissue
        } else {
            Fault::KillFail
        });
        self.ops_of_the_dead()?;
        self.succeed()
    }

    /// Operations in flight happen, or not, or in part.
    fn ops_of_the_dead(&mut self) -> Check {
        while !self.ops.is_empty() {
            let chosen = self.rng.index(self.ops.len());
            let op = self.ops.swap_remove(chosen);
            self.carry_out_some(&op)?;
        }
        Ok(())
    }

    /// A new server takes the queue over. Requests that the old one had are issued again, or fail.
    fn succeed(&mut self) -> Check {
        let mut tags = self.kernel.close();
        while !tags.is_empty() {
            let chosen = self.rng.index(tags.len());
            let tag = tags.swap_remove(chosen);
            let slot = self.kernel.tag(tag);
            if self.world.reissue {
                slot.place = Place::Fifo;
                slot.request.again = 0;
                if slot.request.op() == UBLK_IO_OP_READ {
                    slot.request.pages.fill(POISON);
                }
                self.kernel.fifo.push_back(tag);
            } else {
                slot.request.excused = true;
                self.complete(tag, -5)?;
            }
        }
        self.new_server()
    }

    fn new_server(&mut self) -> Check {
        self.counters.add(self.machine.counters());
        self.machine =
            Self::new_machine(self.world, self.words, self.bug).map_err(|error| error.to_string())?;
        self.staging = self.new_staging();
        self.ops.clear();
        self.ending = Ending::None;
        self.finished = false;
        self.progress();
        self.poll()
    }

    /// The power fails: server, clients and their requests are gone. What is left on the media is looked at, and
    /// is where everything starts again.
    fn power_cut(&mut self) -> Check {
        self.counts.hit(Fault::PowerCut);
        self.ops_of_the_dead()?;
        for tag in self.kernel.close() {
            self.kernel.tag(tag).place = Place::Free;
            self.completed += 1;
        }
        self.disk.power_cut(&mut self.rng);
        for sector in 0..self.disk.sectors() {
            let found = self.disk.read(sector);
            if !self.history.may_survive(sector, found) && !self.world.lossy {
                return Err(format!(
                    "after a power failure sector {sector} holds what request {found} wrote"
                ));
            }
        }
        self.words
            .iter()
            .for_each(|word| word.store(0, Ordering::Relaxed));
        self.mark_what_is_there();
        self.new_server()
    }

    /// Marks blocks that hold data as written, as a server does that looks for holes.
    pub(super) fn mark_what_is_there(&self) {
        for sector in (0..self.disk.sectors()).filter(|&sector| self.disk.read(sector) != 0) {
            let block = (sector * 512) >> self.world.written_shift;
            if let Some(word) = self.words.get(block / 64) {
                word.fetch_or(1 << (block % 64), Ordering::Relaxed);
            }
        }
    }
}
