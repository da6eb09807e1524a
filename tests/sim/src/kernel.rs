//! The model of one hardware queue of ublk_drv in batch mode.

use std::collections::VecDeque;

use super::fault::{Fault, FaultCounts};
use super::rng::Rng;
use super::world::World;
use ublk_bpf::queue::FillBuffer;
use ublk_bpf::sys::uapi::UBLK_IO_F_NEED_REG_BUF;
use ublk_bpf_abi::TakenVerdict;

/// Tags of one FETCH completion, at most (`MAX_NR_TAG`).
const MAX_TAGS: usize = 128;

/// Failures in a row that the modelled kernel may have: then it recovers.
pub(super) const MAX_IN_A_ROW: u8 = 8;

/// Where a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// With the block layer: no request has it.
    Free,
    /// Its request is in the queue's FIFO.
    Fifo,
    /// The server owns it, and has not seen it yet.
    Posted,
    /// The server owns it.
    Server,
}

/// A client's request.
#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    /// Unique, and what its writes leave behind.
    pub(super) id: u64,
    /// WRITE: what they may leave as well, for the client changes its buffer meanwhile.
    pub(super) other: Option<u64>,
    /// `UBLK_IO_OP_*` and `UBLK_IO_F_*` as the descriptor has them.
    pub(super) op_flags: u32,
    pub(super) sector: u64,
    pub(super) nr_sectors: u32,
    pub(super) began: u64,
    /// READ, WRITE: the client's memory.
    pub(super) pages: Vec<u8>,
    /// It asks for what the device does not serve.
    pub(super) bad: bool,
    /// Something went wrong that may make it fail.
    pub(super) excused: bool,
    /// Operations in a row that were not done.
    pub(super) again: u8,
}

impl Request {
    /// `UBLK_IO_OP_*`.
    pub(super) const fn op(&self) -> u8 {
        self.op_flags.to_le_bytes()[0]
    }
}

/// A tag and the request that has it.
#[derive(Debug)]
pub(super) struct Tag {
    pub(super) place: Place,
    pub(super) request: Request,
    /// Its verdict slot.
    pub(super) verdict: TakenVerdict,
    /// It was given back by a COMMIT whose completion is not posted yet.
    given_back: bool,
}

/// What the kernel posts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cqe {
    Prepared(i32),
    Tag(u16),
    FetchEnded { fetch: u8, result: i32 },
    IoDone { tag: u16, result: i32 },
    FillDone { fill: FillBuffer, result: i32 },
    Committed { batch: u8, result: i32 },
}

/// A FETCH command that is out, and the tags that still fit into its buffer.
#[derive(Debug)]
struct Fetch {
    number: u8,
    room: usize,
}

/// One hardware queue.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) tags: Vec<Tag>,
    pub(super) fifo: VecDeque<u16>,
    fetches: VecDeque<Fetch>,
    pub(super) cq: VecDeque<Cqe>,
    /// The COMMIT that was carried out and whose completion is not posted yet.
    late: Option<Cqe>,
    /// No request enters, no FETCH is accepted.
    pub(super) cancelling: bool,
    fetch_errors: u8,
    pub(super) commit_errors: u8,
    room: usize,
}

impl Kernel {
    pub(super) fn new(world: &World) -> Self {
        let tag = || Tag {
            place: Place::Free,
            request: Request::default(),
            verdict: TakenVerdict { head: 0, place: 0 },
            given_back: false,
        };
        Self {
            tags: (0..world.depth).map(|_| tag()).collect(),
            fifo: VecDeque::new(),
            fetches: VecDeque::new(),
            cq: VecDeque::new(),
            late: None,
            cancelling: false,
            fetch_errors: 0,
            commit_errors: 0,
            room: usize::from(world.fetch_room),
        }
    }

    pub(super) fn tag(&mut self, tag: u16) -> &mut Tag {
        &mut self.tags[usize::from(tag)]
    }

    /// Tags in this place.
    pub(super) fn count(&self, place: Place) -> usize {
        self.tags.iter().filter(|tag| tag.place == place).count()
    }

    /// FETCH is submitted.
    pub(super) fn fetch(
        &mut self,
        number: u8,
        rate: u16,
        rng: &mut Rng,
        counts: &mut FaultCounts,
    ) -> Result<(), String> {
        if self.fetches.iter().any(|fetch| fetch.number == number) {
            return Err(format!("FETCH {number} was issued while it was out"));
        }
        if self.cancelling {
            self.cq.push_back(Cqe::FetchEnded {
                fetch: number,
                result: -19,
            });
        } else if self.fetch_errors < MAX_IN_A_ROW && rng.chance(rate) {
            counts.hit(Fault::FetchError);
            self.fetch_errors += 1;
            self.cq.push_back(Cqe::FetchEnded {
                fetch: number,
                result: rng.pick(&[-12, -11, -4]),
            });
        } else {
            self.fetch_errors = 0;
            self.fetches.push_back(Fetch {
                number,
                room: 1 + rng.index(self.room),
            });
        }
        Ok(())
    }

    /// The first FETCH that is out takes tags from the FIFO.
    pub(super) fn dispatch(&mut self, world: &World, rng: &mut Rng, counts: &mut FaultCounts) {
        let Some(fetch) = self.fetches.front_mut() else {
            return;
        };
        if self.fifo.is_empty() {
            return;
        }
        let number = fetch.number;
        if fetch.room == 0 {
            counts.hit(Fault::NoBuffers);
            return self.end_fetch(number, -105);
        }
        let most = fetch.room.min(MAX_TAGS).min(self.fifo.len());
        let taken = 1 + rng.index(most);
        if rng.chance(world.fetch_faults) {
            counts.hit(Fault::TagsBack);
            self.fifo.rotate_left(taken);
            return self.end_fetch(number, -105);
        }
        fetch.room -= taken;
        for _ in 0..taken {
            self.deliver(world, rng, counts);
        }
        if rng.chance(world.fetch_faults) {
            counts.hit(Fault::NoMore);
            self.end_fetch(number, i32::try_from(taken * 2).unwrap_or(0));
        } else if rng.chance(world.fetch_faults) {
            counts.hit(Fault::EmptyFetch);
            self.end_fetch(number, 0);
        }
    }

    /// The first tag of the FIFO becomes the server's.
    fn deliver(&mut self, world: &World, rng: &mut Rng, counts: &mut FaultCounts) {
        let Some(number) = self.fifo.pop_front() else {
            return;
        };
        let tag = &mut self.tags[usize::from(number)];
        tag.place = Place::Posted;
        tag.request.op_flags &= !UBLK_IO_F_NEED_REG_BUF;
        if !tag.request.pages.is_empty() && rng.chance(world.register_faults) {
            counts.hit(Fault::Unregistered);
            tag.request.op_flags |= UBLK_IO_F_NEED_REG_BUF;
        }
        if tag.given_back && self.late.is_some() {
            counts.hit(Fault::EarlyReturn);
        }
        tag.given_back = false;
        self.cq.push_back(Cqe::Tag(number));
    }

    fn end_fetch(&mut self, number: u8, result: i32) {
        self.fetches.retain(|fetch| fetch.number != number);
        self.cq.push_back(Cqe::FetchEnded {
            fetch: number,
            result,
        });
    }

    /// A COMMIT was carried out for these tags. Its completion is posted now or later.
    pub(super) fn committed(&mut self, cqe: Cqe, tags: impl Iterator<Item = u16>, late: bool) {
        if late {
            for tag in tags {
                self.tags[usize::from(tag)].given_back = true;
            }
            self.late = Some(cqe);
        } else {
            self.cq.push_back(cqe);
        }
    }

    /// Posts what is late.
    pub(super) fn post_late(&mut self) {
        if let Some(cqe) = self.late.take() {
            for tag in &mut self.tags {
                tag.given_back = false;
            }
            self.cq.push_back(cqe);
        }
    }

    /// The FETCH commands are cancelled; one may be busy and escape.
    pub(super) fn cancel(&mut self, rng: &mut Rng, counts: &mut FaultCounts) {
        self.cancelling = true;
        let escapes = self.fetches.len() > 1 && rng.chance(300);
        if escapes {
            counts.hit(Fault::FetchSurvived);
        }
        while self.fetches.len() > usize::from(escapes) {
            if let Some(fetch) = self.fetches.pop_back() {
                self.cq.push_back(Cqe::FetchEnded {
                    fetch: fetch.number,
                    result: -19,
                });
            }
        }
    }

    /// The server's ring and its file are closed. Says which tags had requests, in some order.
    pub(super) fn close(&mut self) -> Vec<u16> {
        self.cancelling = false;
        self.late = None;
        self.fetches.clear();
        self.cq.clear();
        self.fifo.clear();
        (0..)
            .zip(&self.tags)
            .filter(|(_, tag)| tag.place != Place::Free)
            .map(|(number, _)| number)
            .collect()
    }
}
