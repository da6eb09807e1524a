//! The kernel's side of PREP and COMMIT: what the server gives back is checked, as the driver checks it, and completed.

use ublk_bpf::queue::Element;

use super::fault::Fault;
use super::kernel::{Cqe, MAX_IN_A_ROW, Place};
use super::life::Ending;
use super::sim::Sim;
use super::{Bug, Check, index};

impl Sim<'_> {
    /// PREP: every tag once.
    pub(super) fn prepare(&mut self, batch: u8) -> Check {
        let elements = self.queue.machine.batch(batch);
        let all = elements
            .iter()
            .zip(0..)
            .all(|(element, tag)| element.tag == tag && element.buf_index == tag);
        if !all || elements.len() != usize::from(self.world.depth) {
            return Err("PREP does not name every tag once".into());
        }
        self.queue.kernel.cq.push_back(Cqe::Prepared(0));
        Ok(())
    }

    /// COMMIT, as `ublk_handle_batch_commit_cmd` does it.
    pub(super) fn commit(&mut self, batch: u8, from: u16) -> Check {
        let from = match self.bug {
            Some(Bug::RecommitRefused) => usize::from(from).saturating_sub(1),
            _ => usize::from(from),
        };
        let elements: Vec<Element> = self
            .queue
            .machine
            .batch(batch)
            .get(from..)
            .unwrap_or_default()
            .to_vec();
        if elements.is_empty() {
            return Err("a COMMIT of nothing".into());
        }
        let rate = self.world.commit_faults;
        if self.queue.kernel.commit_errors < MAX_IN_A_ROW && self.rng.chance(rate) {
            self.counts.hit(Fault::CommitAgain);
            self.queue.kernel.commit_errors += 1;
            let result = self.rng.pick(&[-11, -4, -12, -14]);
            self.queue.kernel.cq.push_back(Cqe::Committed { batch, result });
            return Ok(());
        }
        self.queue.kernel.commit_errors = 0;
        let mut handled = 0;
        for element in &elements {
            self.check_element(element)?;
            if self.rng.chance(rate) {
                self.revoke(element.tag)?;
                break;
            }
            let short = if self.bug == Some(Bug::CommitShort) && element.result > 512 {
                512
            } else {
                0
            };
            self.check_result(element.tag, element.result - short)?;
            self.complete(element.tag, element.result - short)?;
            handled += 1;
        }
        let result = if handled == 0 {
            -16
        } else {
            i32::try_from(handled * 8).unwrap_or(0)
        };
        let late = self.rng.chance(400);
        let given_back = elements[..handled].iter().map(|element| element.tag);
        self.queue
            .kernel
            .committed(Cqe::Committed { batch, result }, given_back, late);
        Ok(())
    }

    /// An element must be for a tag that the server owns and is through with.
    fn check_element(&mut self, element: &Element) -> Check {
        let tag = element.tag;
        let Some(slot) = self.queue.kernel.tags.get(usize::from(tag)) else {
            return Err(format!("COMMIT of tag {tag}, which is none"));
        };
        if slot.place != Place::Server || element.buf_index != tag {
            return Err(format!("COMMIT of {element:?}, which is {:?}", slot.place));
        }
        if let Some(op) = self.queue.ops.iter().find(|op| op.tag == tag) {
            return Err(format!("COMMIT of tag {tag} with {:?} in flight", op.io));
        }
        Ok(())
    }

    /// The kernel fails a request and takes its tag, which makes COMMIT stop there.
    fn revoke(&mut self, tag: u16) -> Check {
        self.counts.hit(Fault::PartialCommit);
        self.queue.kernel.tag(tag).request.excused = true;
        self.complete(tag, -5)?;
        if self.ending == Ending::None && self.rng.chance(500) {
            self.submit_on(tag);
        }
        Ok(())
    }

    /// Nothing but the exact length, or an error.
    fn check_result(&mut self, tag: u16, result: i32) -> Check {
        let request = &self.queue.kernel.tag(tag).request;
        if result >= 0 && index(u64::from(result.unsigned_abs())) != request.pages.len() && !request.bad {
            return Err(format!(
                "tag {tag} is committed with {result} of {} bytes",
                request.pages.len()
            ));
        }
        Ok(())
    }
}
