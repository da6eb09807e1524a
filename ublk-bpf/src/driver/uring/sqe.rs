//! Submission queue entries: how each effect is passed to io_uring, and how its completion is identified.

use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::{Fixed, FsyncFlags, TimeoutFlags, Timespec};
use zerocopy::IntoBytes;

use super::memory::Place;
use crate::backend::RingOps;
use crate::queue::{Direct, FillBuffer, FillIo, Io, Tier, UserCopy, Way};
use crate::sys::uapi::{
    BatchIo, ElemHeader, UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK, UBLK_U_IO_COMMIT_IO_CMDS,
    UBLK_U_IO_FETCH_IO_CMDS, UBLK_U_IO_PREP_IO_CMDS,
};

/// Where a queue's ring has its registered files.
pub(super) mod file {
    /// `/dev/ublkcN`.
    pub(in super::super) const UBLK: u32 = 0;
    /// The backing, if it has a file.
    pub(in super::super) const BACKING: u32 = 1;
    /// `/dev/zero`.
    pub(in super::super) const ZERO: u32 = 2;
    /// The eventfd that ends the queue.
    pub(in super::super) const STOP: u32 = 3;
    /// The cache device, if there is one.
    pub(in super::super) const CACHE: u32 = 4;
    /// The eventfd that wakes the mover.
    pub(in super::super) const DOORBELL: u32 = 5;
    /// The eventfd that wakes the queue.
    pub(in super::super) const BELL: u32 = 6;
    /// How many there are.
    pub(in super::super) const COUNT: usize = 7;
}

/// Where a device's bytes are.
#[inline]
const fn of(device: Tier) -> Fixed {
    match device {
        Tier::Backing => Fixed(file::BACKING),
        Tier::Cache => Fixed(file::CACHE),
    }
}

/// `BLOCK_URING_CMD_DISCARD` of `include/uapi/linux/blkdev.h`: `_IO(0x12, 0)`.
const BLOCK_URING_CMD_DISCARD: u32 = 0x12 << 8;
/// `IORING_URING_CMD_MULTISHOT` of `include/uapi/linux/io_uring.h`.
const IORING_URING_CMD_MULTISHOT: u32 = 1 << 1;
/// `IOSQE_BUFFER_SELECT` of the same.
const IOSQE_BUFFER_SELECT: u8 = 1 << 5;

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What a completion is for. It travels through the kernel as the entry's `user_data`: the kind in bits 32 to
/// 39, its number in the low 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tagged {
    /// The operation of this tag.
    Io(u16),
    /// This FETCH command.
    Fetch(u8),
    /// COMMIT of this batch.
    Commit(u8),
    /// PREP.
    Prepare,
    /// The server asked the queue to give up.
    Stop,
    /// The mover was woken.
    Wake,
    /// Some seconds have passed.
    Tick,
    /// The operation of the fill in this buffer.
    Fill(u16),
    /// The queue was rung for.
    Rung,
}

impl Tagged {
    pub(super) const fn pack(self) -> u64 {
        let (kind, number) = match self {
            Self::Io(tag) => (0_u64, tag as u64),
            Self::Fetch(fetch) => (1, fetch as u64),
            Self::Commit(batch) => (2, batch as u64),
            Self::Prepare => (3, 0),
            Self::Stop => (4, 0),
            Self::Wake => (5, 0),
            Self::Tick => (6, 0),
            Self::Fill(fill) => (7, fill as u64),
            Self::Rung => (8, 0),
        };
        kind << 32 | number
    }

    /// The tag whose operation has this `user_data`. The same as [`Self::parse`], asked for what nearly all are.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the tag is in the low half of a word"
    )]
    pub(super) const fn tag_of(user_data: u64) -> Option<u16> {
        if user_data >> 32 == 0 {
            return Some(user_data as u16);
        }
        None
    }

    /// What `user_data` stands for; `None` if no entry of ours carried it.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the parts are taken from their bits"
    )]
    pub(super) const fn parse(user_data: u64) -> Option<Self> {
        Some(match user_data >> 32 {
            0 => Self::Io(user_data as u16),
            1 => Self::Fetch(user_data as u8),
            2 => Self::Commit(user_data as u8),
            3 => Self::Prepare,
            4 => Self::Stop,
            5 => Self::Wake,
            6 => Self::Tick,
            7 => Self::Fill(user_data as u16),
            8 => Self::Rung,
            _ => return None,
        })
    }
}

/// How long a refused COMMIT may stay unseen. It is a bug of the kernel or of ours if there is one.
pub(super) static TICK: Timespec = Timespec::new().sec(5);

/// A completion in each `period`, for as long as the ring exists.
pub(super) fn tick(period: &'static Timespec) -> Entry {
    opcode::Timeout::new(period)
        .flags(TimeoutFlags::MULTISHOT)
        .build()
        .user_data(Tagged::Tick.pack())
}

/// A completion for this tag after some time, which the kernel reads when the entry is submitted.
pub(super) fn timer(tag: u16, time: &Timespec) -> Entry {
    opcode::Timeout::new(time)
        .build()
        .user_data(Tagged::Io(tag).pack())
}

/// PREP of every tag of the queue.
pub(super) fn prepare(queue: u16, elements: &[ElemHeader]) -> Entry {
    batch_command(UBLK_U_IO_PREP_IO_CMDS, queue, elements).user_data(Tagged::Prepare.pack())
}

/// COMMIT of these elements, which must stay where they are until the command completes.
#[inline]
pub(super) fn commit(queue: u16, batch: u8, elements: &[ElemHeader]) -> Entry {
    batch_command(UBLK_U_IO_COMMIT_IO_CMDS, queue, elements).user_data(Tagged::Commit(batch).pack())
}

#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a batch has at most one element for each of 4096 tags"
)]
fn batch_command(command: u32, queue: u16, elements: &[ElemHeader]) -> Entry {
    let header = BatchIo {
        q_id: queue,
        flags: UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK,
        nr_elem: elements.len() as u16,
        elem_bytes: size_of::<ElemHeader>() as u8,
        ..BatchIo::default()
    };
    opcode::UringCmd16::new(Fixed(file::UBLK), command)
        .cmd(command_area(&header))
        .addr(Some(elements.as_ptr() as u64))
        .build()
}

fn command_area(header: &BatchIo) -> [u8; 16] {
    let mut area = [0; 16];
    area.copy_from_slice(header.as_bytes());
    area
}

/// Bytes of a tag in a FETCH command's buffer.
const TAG_BYTES: u8 = 2;

/// The number of a FETCH command is also that of its group of provided buffers.
pub(super) fn fetch(queue: u16, fetch: u8) -> Entry {
    let header = BatchIo {
        q_id: queue,
        elem_bytes: TAG_BYTES,
        ..BatchIo::default()
    };
    let entry = opcode::UringCmd16::new(Fixed(file::UBLK), UBLK_U_IO_FETCH_IO_CMDS)
        .cmd(command_area(&header))
        .build()
        .user_data(Tagged::Fetch(fetch).pack());
    into_multishot(entry, u16::from(fetch))
}

/// Turns a command into one that completes again and again into buffers of `group`, which the `io-uring`
/// crate has no builder for.
fn into_multishot(mut entry: Entry, group: u16) -> Entry {
    // `struct io_uring_sqe` of `include/uapi/linux/io_uring.h`.
    const FLAGS: usize = 1;
    const URING_CMD_FLAGS: usize = 28;
    const BUF_GROUP: usize = 40;
    const _: () = assert!(size_of::<Entry>() == 64);

    // SAFETY: `Entry` is `repr(C)` over `struct io_uring_sqe`, which has 64 bytes (asserted) without padding,
    // all initialised by the builder and valid with any value; the borrow is exclusive.
    let bytes = unsafe { &mut *(&raw mut entry).cast::<[u8; 64]>() };
    bytes[FLAGS] |= IOSQE_BUFFER_SELECT;
    bytes[URING_CMD_FLAGS..][..4].copy_from_slice(&IORING_URING_CMD_MULTISHOT.to_ne_bytes());
    bytes[BUF_GROUP..][..2].copy_from_slice(&group.to_ne_bytes());
    entry
}

/// Completes when the eventfd is written.
pub(super) fn stop() -> Entry {
    opcode::PollAdd::new(Fixed(file::STOP), libc::POLLIN as u32)
        .build()
        .user_data(Tagged::Stop.pack())
}

/// Completes each time the queue is rung for.
pub(super) fn bell() -> Entry {
    opcode::PollAdd::new(Fixed(file::BELL), libc::POLLIN as u32)
        .multi(true)
        .build()
        .user_data(Tagged::Rung.pack())
}

/// Wakes the mover.
pub(super) fn wake() -> Entry {
    static ONE: u64 = 1;
    opcode::Write::new(Fixed(file::DOORBELL), (&raw const ONE).cast(), 8)
        .build()
        .user_data(Tagged::Wake.pack())
}

/// The operation of a plain request.
#[inline(always)]
pub(super) fn direct(tag: u16, direct: &Direct) -> Entry {
    match direct.way {
        Way::Read(from) => read(tag, from, direct.offset, 0, direct.len),
        Way::Write(to) => write(tag, to, direct.offset, 0, direct.len, false),
    }
}

/// `len` bytes of a device from `offset` to the registered pages of the request, from its byte `at` on.
#[inline]
pub(super) fn read(tag: u16, from: Tier, offset: u64, at: u32, len: u32) -> Entry {
    opcode::ReadFixed::new(of(from), in_request(at), len, tag)
        .offset(offset)
        .build()
        .user_data(Tagged::Io(tag).pack())
}

/// The other way.
#[inline]
pub(super) fn write(tag: u16, to: Tier, offset: u64, at: u32, len: u32, durable: bool) -> Entry {
    opcode::WriteFixed::new(of(to), in_request(at), len, tag)
        .offset(offset)
        .rw_flags(durably(durable))
        .build()
        .user_data(Tagged::Io(tag).pack())
}

/// What executes an operation.
#[derive(Debug)]
pub(super) enum Executor {
    /// The ring, by this entry.
    Ring(Entry),
    /// The queue's thread, which makes the copy at once.
    Copy(UserCopy),
    /// The ring's timer, after so many microseconds.
    Timer(u32),
}

/// The operation of the fill in buffer `fill`. `place` gives the place of a byte in that.
pub(super) fn fill(fill: FillBuffer, io: FillIo, place: impl Fn(u16, u32) -> Place) -> Entry {
    let entry = match io {
        FillIo::Load { offset, skip, len } => load(Tier::Backing, offset, place(fill.0, skip), len),
        FillIo::Store { offset, skip, len } => store(Tier::Cache, offset, place(fill.0, skip), len, false),
    };
    entry.user_data(Tagged::Fill(fill.0).pack())
}

/// `len` bytes of a device from `offset` to a buffer.
fn load(from: Tier, offset: u64, to: Place, len: u32) -> Entry {
    match to.index {
        Some(index) => opcode::ReadFixed::new(of(from), to.address, len, index)
            .offset(offset)
            .build(),
        None => opcode::Read::new(of(from), to.address, len)
            .offset(offset)
            .build(),
    }
}

/// The other way.
fn store(to: Tier, offset: u64, from: Place, len: u32, durable: bool) -> Entry {
    let address = from.address.cast_const();
    match from.index {
        Some(index) => opcode::WriteFixed::new(of(to), address, len, index)
            .offset(offset)
            .rw_flags(durably(durable))
            .build(),
        None => opcode::Write::new(of(to), address, len)
            .offset(offset)
            .rw_flags(durably(durable))
            .build(),
    }
}

/// What executes `io`. `staging` gives the place of a byte of a staging buffer, and `record` that of the log's record.
pub(super) fn executor(
    tag: u16,
    io: Io,
    ops: RingOps,
    staging: impl Fn(u16, u32) -> Place,
    record: impl Fn() -> *const u8,
) -> Executor {
    let backing = Fixed(file::BACKING);
    let entry = match io {
        Io::Read {
            from,
            offset,
            at,
            len,
        } => read(tag, from, offset, at, len),
        Io::Write {
            to,
            offset,
            at,
            len,
            durable,
        } => write(tag, to, offset, at, len, durable),
        Io::Zero { at, len } => opcode::ReadFixed::new(Fixed(file::ZERO), in_request(at), len, tag).build(),
        Io::Load {
            from,
            offset,
            staging: buffer,
            skip,
            len,
        } => load(from, offset, staging(buffer.0, skip), len),
        Io::Store {
            to,
            offset,
            staging: buffer,
            skip,
            len,
            durable,
        } => store(to, offset, staging(buffer.0, skip), len, durable),
        Io::Flush { device } => opcode::Fsync::new(of(device)).flags(FsyncFlags::DATASYNC).build(),
        Io::Record { offset, len } => store(Tier::Cache, offset, Place::unregistered(record()), len, true),
        Io::Trim { end } => opcode::Ftruncate::new(backing, end).build(),
        Io::Discard {
            device: _,
            offset,
            len,
        } if ops.block_discard => block_discard(offset, len),
        Io::Discard {
            device: _,
            offset,
            len,
        } => opcode::Fallocate::new(backing, len)
            .offset(offset)
            .mode(PUNCH_HOLE)
            .build(),
        Io::WriteZeroes {
            device: _,
            offset,
            len,
            keep_allocated,
        } => {
            let mode = if keep_allocated && ops.zero_range {
                ZERO_RANGE
            } else {
                PUNCH_HOLE
            };
            opcode::Fallocate::new(backing, len)
                .offset(offset)
                .mode(mode)
                .build()
        }
        Io::Copy(copy) => return Executor::Copy(copy),
        Io::Delay { micros } => return Executor::Timer(micros),
    };
    Executor::Ring(entry.user_data(Tagged::Io(tag).pack()))
}

/// The address of a byte of the request in its registered buffer: such buffers start at zero.
#[inline]
fn in_request(at: u32) -> *mut u8 {
    std::ptr::without_provenance_mut(at as usize)
}

#[inline]
const fn durably(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

fn block_discard(offset: u64, len: u64) -> Entry {
    // The length goes to `addr3` of the entry, which is where the command area starts.
    let mut area = [0; 16];
    area[..8].copy_from_slice(&len.to_ne_bytes());
    opcode::UringCmd16::new(Fixed(file::BACKING), BLOCK_URING_CMD_DISCARD)
        .cmd(area)
        .addr(Some(offset))
        .build()
}

/// Moves the address of an entry up, for registered buffers that do not start at zero.
#[cfg(test)]
pub(super) fn move_address(entry: &mut Entry, by: u64) {
    const ADDR: usize = 16;
    // SAFETY: as in `into_multishot`.
    let bytes = unsafe { &mut *std::ptr::from_mut(entry).cast::<[u8; 64]>() };
    let mut address = [0; 8];
    address.copy_from_slice(&bytes[ADDR..][..8]);
    bytes[ADDR..][..8].copy_from_slice(&(u64::from_ne_bytes(address) + by).to_ne_bytes());
}

#[cfg(test)]
mod tests;
