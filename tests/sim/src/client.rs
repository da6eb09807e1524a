//! The clients of the simulated device: what they ask for, and what they accept as an answer.

use std::sync::atomic::Ordering;

use ublk_bpf_abi::{
    Decision, Delay, Extent, Op, Priority, Reason, TakenVerdict, Verdict, VerdictSlot, hint, regions,
};

use super::fault::Fault;
use super::history::End;
use super::kernel::{Place, Request};
use super::pattern::{POISON, SECTOR, fill, writer_of};
use super::sim::Sim;
use super::{Check, index};
use ublk_bpf::queue::Backing;
use ublk_bpf::sys::uapi::{
    UBLK_IO_F_FUA, UBLK_IO_F_META, UBLK_IO_F_NOUNMAP, UBLK_IO_OP_DISCARD, UBLK_IO_OP_FLUSH, UBLK_IO_OP_READ,
    UBLK_IO_OP_WRITE, UBLK_IO_OP_WRITE_SAME, UBLK_IO_OP_WRITE_ZEROES,
};

impl Sim<'_> {
    /// A client sends a request, if there is a tag for it.
    pub(super) fn submit(&mut self) {
        let depth = self.queue.kernel.tags.len();
        let start = self.rng.index(depth);
        let free = (0..depth)
            .map(|i| (start + i) % depth)
            .find(|&tag| self.queue.kernel.tags[tag].place == Place::Free);
        if let Some(tag) = free.and_then(|tag| u16::try_from(tag).ok()) {
            self.submit_on(tag);
        }
    }

    /// A client sends a request that has this tag.
    pub(super) fn submit_on(&mut self, tag: u16) {
        self.submitted += 1;
        let pages = std::mem::take(&mut self.queue.kernel.tag(tag).request.pages);
        let request = self.invent(pages);
        if self.changes(&request) {
            let content = if request.op() == UBLK_IO_OP_WRITE {
                request.id
            } else {
                0
            };
            for sector in sectors(&request) {
                self.history.begin(sector, request.id, content, self.now);
                if let Some(other) = request.other {
                    self.history.begin(sector, request.id, other, self.now);
                }
            }
        }
        let verdict = self.classify(&request);
        let slot = self.queue.kernel.tag(tag);
        slot.place = Place::Fifo;
        slot.request = request;
        slot.verdict = verdict;
        self.queue.kernel.fifo.push_back(tag);
    }

    /// Any request.
    fn invent(&mut self, mut pages: Vec<u8>) -> Request {
        let world = self.world;
        let block = world.block_sectors();
        let blocks = u64::from(world.blocks);
        let reads = if world.cache.is_some() { 65 } else { 44 };
        let op = match self.rng.below(100) {
            n if n < reads => UBLK_IO_OP_READ,
            0..88 => UBLK_IO_OP_WRITE,
            88..92 => UBLK_IO_OP_FLUSH,
            92..96 => UBLK_IO_OP_DISCARD,
            _ => UBLK_IO_OP_WRITE_ZEROES,
        };
        let data = op == UBLK_IO_OP_READ || op == UBLK_IO_OP_WRITE;
        let most = if data {
            u64::from(world.most_blocks).min(blocks)
        } else if world.cache.is_some() && self.rng.chance(800) {
            // Not every discard empties the cache.
            blocks.div_ceil(16)
        } else {
            blocks
        };
        let count = 1 + self.rng.below(most);
        // A device of few blocks, and one end of it in particular: requests overlap.
        let room = blocks - count + 1;
        let near = if world.cache.is_some() { 600 } else { 300 };
        let first = if self.rng.chance(near) {
            self.rng.below(room.min(8))
        } else {
            self.rng.below(room)
        };
        let (first, count) = self.within_cache_block(data, first, count);
        let mut request = Request {
            id: self.next_id(),
            op_flags: u32::from(op)
                | self
                    .rng
                    .pick(&[0, 0, UBLK_IO_F_META, UBLK_IO_F_FUA, UBLK_IO_F_NOUNMAP]),
            sector: first * block,
            nr_sectors: u32::try_from(count * block).unwrap_or(0),
            began: self.now,
            ..Request::default()
        };
        if op == UBLK_IO_OP_FLUSH {
            (request.sector, request.nr_sectors) = (u64::MAX, 0);
            request.op_flags = u32::from(op);
        } else if self.rng.chance(world.bad_requests) {
            self.spoil(&mut request);
        }
        request.bad |= world.read_only && ![UBLK_IO_OP_READ, UBLK_IO_OP_FLUSH].contains(&request.op());
        let unsupported = self.unsupported(request.op());
        // A discard may be dropped where it cannot be done.
        request.bad |= unsupported && request.op() != UBLK_IO_OP_DISCARD;
        request.excused = request.bad || unsupported;
        pages.clear();
        if data && !request.bad {
            pages.resize(SECTOR * index(u64::from(request.nr_sectors)), POISON);
            if op == UBLK_IO_OP_WRITE {
                for (bytes, sector) in pages.chunks_exact_mut(SECTOR).zip(request.sector..) {
                    fill(bytes, request.id, sector);
                }
            }
        }
        request.pages = pages;
        if op == UBLK_IO_OP_WRITE && !request.bad && self.rng.chance(300) {
            request.other = Some(self.next_id());
        }
        request
    }

    /// A client that changes the buffer that it writes from may do so whenever the server looks at it: each sector has one
    /// of two contents. One of which the server has taken a part, up to byte `from`, stays: no sector holds both.
    pub(super) fn change_buffer(&mut self, tag: u16, from: usize) {
        let request = &mut self.queue.kernel.tag(tag).request;
        let Some(other) = request.other else {
            return;
        };
        self.counts.hit(Fault::BufferChanged);
        let torn = (!from.is_multiple_of(SECTOR)).then_some(from / SECTOR);
        let sectors = request.pages.chunks_exact_mut(SECTOR).zip(request.sector..);
        for (at, (bytes, sector)) in sectors.enumerate() {
            if Some(at) != torn && self.rng.chance(300) {
                fill(bytes, self.rng.pick(&[request.id, other]), sector);
            }
        }
    }

    /// Cuts a read or write short where its cache block ends, as the block layer does; but now and then it does not.
    fn within_cache_block(&mut self, data: bool, first: u64, count: u64) -> (u64, u64) {
        let block = self.world.block_sectors();
        let Some(side) = self.cache.as_ref().filter(|_| data) else {
            return (first, count);
        };
        let in_cache_block = (side.block_sectors() / block).max(1);
        let left = in_cache_block - first % in_cache_block;
        if count <= left {
            return (first, count);
        }
        if self.rng.chance(30) {
            self.counts.hit(Fault::Crossing);
            return (first, count);
        }
        (first, left)
    }

    /// Makes it a request that the device does not serve.
    fn spoil(&mut self, request: &mut Request) {
        self.counts.hit(Fault::BadRequest);
        request.bad = true;
        match self.rng.below(4) {
            0 => request.op_flags = u32::from(self.rng.pick(&[UBLK_IO_OP_WRITE_SAME, 10, 13, 18, 255])),
            1 => request.sector = self.world.sectors() - u64::from(request.nr_sectors) + 1,
            2 => request.sector = u64::MAX - self.rng.below(9),
            _ => request.nr_sectors = 0,
        }
    }

    /// Operations that this device says it does not have.
    pub(super) fn unsupported(&self, op: u8) -> bool {
        self.world.storage().is_some_and(|storage| match op {
            UBLK_IO_OP_DISCARD => !storage.discard,
            UBLK_IO_OP_WRITE_ZEROES => !storage.write_zeroes,
            _ => false,
        })
    }

    /// Whether a request changes the device.
    fn changes(&self, request: &Request) -> bool {
        let changing =
            [UBLK_IO_OP_WRITE, UBLK_IO_OP_DISCARD, UBLK_IO_OP_WRITE_ZEROES].contains(&request.op());
        changing && !request.bad && self.world.storage().is_some()
    }

    /// What a decision says beside the verdict: now and then a tenant, and a delay of some slices.
    fn rider(&mut self) -> u64 {
        if !self.rng.chance(30) {
            return 0;
        }
        let delay = Delay::from_micros(self.rng.below(400_000));
        let tenant = self.rng.next().to_le_bytes()[0];
        Decision::pass().owned_by(tenant).delayed(delay).pack()
    }

    /// What is in the verdict slot when the request's tag arrives.
    fn classify(&mut self, request: &Request) -> TakenVerdict {
        let op = abi_op(request.op());
        let rider = self.rider();
        let of = |verdict: u8, hints: u8, op: Op, nr_sectors: u32, sector: u64| {
            let packed = u32::from_le_bytes([verdict, Reason::User as u8, hints, 0]).into();
            TakenVerdict {
                head: VerdictSlot::head(packed, op as u32, nr_sectors),
                place: VerdictSlot::place(rider, sector),
            }
        };
        let same = |verdict, hints| of(verdict, hints, op, request.nr_sectors, request.sector);
        let promote = self.wants_promotion(request) | self.wants_mode(request);
        if self.is_hit(request) && !self.rng.chance(self.world.verdict_faults) {
            let hit = Decision::new(Verdict::Hit, Reason::Cached).pack();
            return TakenVerdict {
                head: VerdictSlot::head(hit, op as u32, request.nr_sectors),
                place: VerdictSlot::place(rider, request.sector),
            };
        }
        if !self.rng.chance(self.world.verdict_faults) {
            let verdict = match self.rng.below(10) {
                0 => Verdict::Slow,
                1..4 if self.may_drop(request) => Verdict::Drop,
                _ => Verdict::Passthrough,
            };
            let verdict = if verdict == Verdict::Passthrough && self.is_partly_cached(request) {
                self.rng.pick(&[Verdict::Passthrough, Verdict::Hit])
            } else {
                verdict
            };
            let hints = if verdict == Verdict::Drop { 0 } else { promote };
            if hints == 0 && verdict == Verdict::Passthrough {
                let plain = Decision::new(verdict, Reason::Default).pack();
                return TakenVerdict {
                    head: VerdictSlot::head(plain, op as u32, request.nr_sectors),
                    place: VerdictSlot::place(rider, request.sector),
                };
            }
            return same(verdict as u8, hints);
        }
        match self.rng.below(4) {
            0 => {
                self.counts.hit(Fault::VerdictMissing);
                TakenVerdict {
                    head: 0,
                    place: self.rng.next(),
                }
            }
            1 => {
                self.counts.hit(Fault::VerdictStale);
                let drop = self.rng.pick(&[Verdict::Drop, Verdict::Passthrough]) as u8;
                match self.rng.below(3) {
                    0 => of(drop, 0, Op::Other, request.nr_sectors, request.sector),
                    1 => of(drop, 0, op, request.nr_sectors ^ 1, request.sector),
                    _ => of(drop, 0, op, request.nr_sectors, request.sector ^ 8),
                }
            }
            2 => {
                self.counts.hit(Fault::VerdictGarbage);
                TakenVerdict {
                    head: self.rng.next(),
                    place: VerdictSlot::place(rider, self.rng.pick(&[request.sector, u64::MAX])),
                }
            }
            _ => {
                self.counts.hit(Fault::VerdictHostile);
                let verdict =
                    self.rng
                        .pick(&[Verdict::Drop, Verdict::Hit, Verdict::Hit, Verdict::Passthrough]);
                let any = self.rng.next().to_le_bytes()[0];
                same(
                    verdict as u8,
                    self.rng.pick(&[0, hint::FAIL, hint::WRITE, hint::PROMOTE, any]),
                )
            }
        }
    }

    /// Hints that bring the request's block into the cache, or none. Counts the read, as a classifier does.
    fn wants_promotion(&mut self, request: &Request) -> u8 {
        let Some(cache) = self.world.cache else {
            return 0;
        };
        let is_read = request.op() == UBLK_IO_OP_READ;
        if is_read
            && self.rng.chance(900)
            && let Some(side) = &self.cache
        {
            side.count_heat(request.sector);
        }
        let chance = if is_read { cache.promote } else { 30 };
        if !self.rng.chance(chance) {
            return 0;
        }
        let all = [Priority::Normal, Priority::Low, Priority::High, Priority::Pinned];
        let priority = self.rng.pick(&all);
        if is_read && self.rng.chance(cache.fill) {
            let extent = self.rng.pick(&[Extent::Request, Extent::Around, Extent::Block]);
            return Decision::pass().fill(extent, priority).hints;
        }
        Decision::pass().promote(priority).hints
    }

    /// Hints that say where the request ends, if it is a write, or none.
    fn wants_mode(&mut self, request: &Request) -> u8 {
        if request.op() != UBLK_IO_OP_WRITE || !self.rng.chance(200) {
            return 0;
        }
        let pass = Decision::pass();
        self.rng.pick(&[pass.back(), pass.through(), pass.around()]).hints
    }

    /// Whether an honest classifier finds a read in the cache.
    fn is_hit(&self, request: &Request) -> bool {
        let (Some(side), Some(cache)) = (&self.cache, self.world.cache) else {
            return false;
        };
        if request.bad || request.op() != UBLK_IO_OP_READ || side.words(&sectors(request)).len() != 1 {
            return false;
        }
        let regions = regions(cache.shift, request.sector, request.nr_sectors);
        side.entry(request.sector).serves(regions)
    }

    /// Whether it finds its block in the cache, but not all of it.
    fn is_partly_cached(&self, request: &Request) -> bool {
        let is_read = !request.bad && request.op() == UBLK_IO_OP_READ;
        let side = self.cache.as_ref().filter(|_| is_read);
        side.is_some_and(|side| side.entry(request.sector).is_present()) && !self.is_hit(request)
    }

    /// Whether an honest policy drops it.
    fn may_drop(&self, request: &Request) -> bool {
        match request.op() {
            UBLK_IO_OP_DISCARD => true,
            UBLK_IO_OP_READ if !request.bad => {
                let mut blocks = sectors(request).map(|sector| (sector * SECTOR) >> self.world.written_shift);
                blocks.all(|block| {
                    let word = self
                        .words
                        .get(block / 64)
                        .map_or(u64::MAX, |word| word.load(Ordering::Relaxed));
                    word >> (block % 64) & 1 == 0
                })
            }
            _ => false,
        }
    }

    /// A request has completed, with what the kernel was given for it. Checks that this may be.
    pub(super) fn complete(&mut self, tag: u16, result: i32) -> Check {
        let slot = self.queue.kernel.tag(tag);
        slot.place = Place::Free;
        let request = std::mem::take(&mut slot.request);
        self.completed += 1;
        self.progress();
        let named = |what: &str| {
            Err(format!(
                "{what}: request {} of tag {tag}, flags {:#x}, sectors {}+{}, result {result}",
                request.id, request.op_flags, request.sector, request.nr_sectors
            ))
        };
        let op = request.op();
        if result < 0 && !request.excused && !self.world.lossy {
            return named("an error without a cause");
        }
        if result >= 0 && request.bad {
            return named("success of a request that cannot be served");
        }
        if result >= 0
            && op == UBLK_IO_OP_READ
            && let Err(why) = self.check_read(&request)
        {
            return named(&why);
        }
        if result >= 0 && op == UBLK_IO_OP_FLUSH && !self.world.lossy {
            self.history.flushed(request.began);
        }
        if self.changes(&request) {
            let end = self.end_of(&request, result);
            let oldest_read = self.oldest_read();
            for sector in sectors(&request) {
                self.history.end(sector, request.id, end, self.now, oldest_read);
            }
        }
        self.queue.kernel.tag(tag).request.pages = request.pages;
        Ok(())
    }

    /// How certain the change of a completed request is.
    fn end_of(&self, request: &Request, result: i32) -> End {
        if result < 0 || self.world.lossy || request.op() == UBLK_IO_OP_DISCARD {
            End::Uncertain
        } else if request.op_flags & UBLK_IO_F_FUA != 0 || !self.world.volatile_cache() {
            End::Durable
        } else {
            End::Certain
        }
    }

    /// When the oldest read that is on its way began.
    pub(super) fn oldest_read(&self) -> u64 {
        let queues = std::iter::once(&self.queue).chain(&self.others);
        let reads = queues
            .flat_map(|queue| &queue.kernel.tags)
            .filter(|tag| tag.place != Place::Free && tag.request.op() == UBLK_IO_OP_READ);
        reads.map(|tag| tag.request.began).min().unwrap_or(u64::MAX)
    }

    /// Whether a client's pages may hold what they hold.
    fn check_read(&self, request: &Request) -> Check {
        if self.world.backing == (Backing::Null { filled: false }) {
            return Ok(());
        }
        for (bytes, sector) in request.pages.chunks_exact(SECTOR).zip(sectors(request)) {
            let Some(writer) = writer_of(bytes, sector as u64) else {
                let foreign = bytes.iter().filter(|&&byte| byte == POISON).count();
                return Err(format!(
                    "sector {sector} reads as it was never written ({foreign} bytes unfilled)"
                ));
            };
            let may = if self.world.lossy {
                writer <= self.last_id
            } else {
                self.history.may_read(sector, writer, request.began)
            };
            if !may {
                return Err(format!("sector {sector} reads as request {writer} left it"));
            }
        }
        Ok(())
    }
}

/// The sectors of a request, as indices; none for a FLUSH.
pub(super) fn sectors(request: &Request) -> std::ops::Range<usize> {
    if request.nr_sectors == 0 {
        return 0..0;
    }
    let first = index(request.sector);
    first..first + index(u64::from(request.nr_sectors))
}

/// The operation's number in verdicts.
const fn abi_op(op: u8) -> Op {
    match op {
        UBLK_IO_OP_READ => Op::Read,
        UBLK_IO_OP_WRITE => Op::Write,
        UBLK_IO_OP_FLUSH => Op::Flush,
        UBLK_IO_OP_DISCARD => Op::Discard,
        UBLK_IO_OP_WRITE_ZEROES => Op::WriteZeroes,
        _ => Op::Other,
    }
}
