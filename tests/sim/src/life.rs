//! How servers end, and what the next one finds.

use std::sync::atomic::Ordering;

use super::Check;
use super::bug::Bug;
use super::cache::{Side, Start};
use super::fault::Fault;
use super::fills::FillMemory;
use super::kernel::Place;
use super::pattern::POISON;
use super::sim::{Queue, Sim};
use ublk_bpf::cache::{Resident, Trust};
use ublk_bpf::queue::Event;
use ublk_bpf::sys::uapi::UBLK_IO_OP_READ;

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
        self.maybe_break();
        if self.cache.as_ref().is_some_and(|side| !side.has_room()) {
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
                self.each(|sim| {
                    if sim.queue.finished {
                        return Ok(());
                    }
                    sim.queue.machine.handle(Event::Abandon);
                    sim.poll()
                })
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
        for queue in std::iter::once(&mut self.queue).chain(&mut self.others) {
            queue.kernel.cancel(&mut self.rng, &mut self.counts);
        }
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

    /// The machines say that they have ended, and the mover has. Whatever a client was promised must be kept.
    pub(super) fn close(&mut self) -> Check {
        self.each(Self::check_finished)?;
        let saved = self.cache.as_ref().filter(|_| self.ending == Ending::Stop);
        let saved = saved.map(Side::saved);
        self.succeed(saved)
    }

    fn check_finished(&mut self) -> Check {
        if let Some(op) = self.queue.ops.first() {
            return Err(format!("the queue finished with {op:?} in flight"));
        }
        if let Some(op) = self.queue.fills.first() {
            return Err(format!("the queue finished with {op:?} in flight"));
        }
        let held = self.queue.kernel.count(Place::Server);
        if held > 0 && self.ending != Ending::Abandon {
            return Err(format!("the queue finished with {held} requests"));
        }
        let counters = self.queue.machine.counters();
        if self.ending != Ending::Abandon && counters.arrived != counters.completed + counters.failed {
            return Err(format!(
                "what arrived was not all completed or failed: {counters:?}"
            ));
        }
        Ok(())
    }

    /// The server dies.
    fn kill(&mut self) -> Check {
        self.counts.hit(if self.world.reissue {
            Fault::KillReissue
        } else {
            Fault::KillFail
        });
        self.ops_of_the_dead()?;
        self.succeed(None)
    }

    /// Operations in flight happen, or not, or in part.
    fn ops_of_the_dead(&mut self) -> Check {
        self.fills_of_the_dead();
        self.each(Self::ops_of_the_dead_queue)
    }

    fn ops_of_the_dead_queue(&mut self) -> Check {
        self.fill_ops_of_the_dead()?;
        while !self.queue.ops.is_empty() {
            let chosen = self.rng.index(self.queue.ops.len());
            let op = self.queue.ops.swap_remove(chosen);
            self.carry_out_some(&op)?;
        }
        Ok(())
    }

    /// A new server takes the queue over, with what the old one saved if it did. Requests that that had are issued again,
    /// or fail.
    fn succeed(&mut self, saved: Option<Vec<Resident>>) -> Check {
        self.check_cache()?;
        self.each(Self::inherit)?;
        let was_changed = self.maybe_change_backing();
        let start = saved.map_or(Start::Left, |saved| {
            let is_proven = !was_changed && self.rng.chance(500);
            let trust = if is_proven || self.bug == Some(Bug::BelieveSurvivors) {
                Trust::Proven
            } else {
                Trust::ToVerify
            };
            Start::Saved(saved, trust)
        });
        self.new_server(start)
    }

    /// What becomes of the requests of a queue.
    fn inherit(&mut self) -> Check {
        let mut tags = self.queue.kernel.close();
        while !tags.is_empty() {
            let chosen = self.rng.index(tags.len());
            let tag = tags.swap_remove(chosen);
            let slot = self.queue.kernel.tag(tag);
            if self.world.reissue {
                slot.place = Place::Fifo;
                slot.request.again = 0;
                if slot.request.op() == UBLK_IO_OP_READ {
                    slot.request.pages.fill(POISON);
                }
                self.queue.kernel.fifo.push_back(tag);
            } else {
                slot.request.excused = true;
                self.complete(tag, -5)?;
            }
        }
        Ok(())
    }

    fn new_server(&mut self, start: Start) -> Check {
        self.new_cache(start)?;
        self.ending = Ending::None;
        self.progress();
        self.each(Self::new_queue)
    }

    fn new_queue(&mut self) -> Check {
        self.counters.add(self.queue.machine.counters());
        let cache = self.cache.as_ref().map(|side| side.cache);
        let machine = Self::new_machine(self.world, self.words, self.bug, cache, self.queue.number);
        self.queue.machine = machine.map_err(|error| error.to_string())?;
        self.queue.staging = Queue::new_staging(self.world);
        self.queue.fill_memory = FillMemory::of(self.world);
        self.queue.ops.clear();
        self.queue.fills.clear();
        self.queue.is_rung = false;
        self.queue.finished = false;
        self.poll()
    }

    /// The power fails: server, clients and their requests are gone. What is left on the media is looked at, and
    /// is where everything starts again.
    fn power_cut(&mut self) -> Check {
        self.counts.hit(Fault::PowerCut);
        self.ops_of_the_dead()?;
        self.check_cache()?;
        for queue in std::iter::once(&mut self.queue).chain(&mut self.others) {
            for tag in queue.kernel.close() {
                queue.kernel.tag(tag).place = Place::Free;
                self.completed += 1;
            }
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
        self.new_server(Start::Cold)
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
