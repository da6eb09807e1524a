//! The interface between the machine and its driver.

use ublk_bpf_abi::TakenVerdict;

use crate::cache::QueueSet;
use crate::errno::Errno;

/// FETCH commands of a queue: while one has ended and is not issued again yet, the other takes tags.
pub const FETCHES: u8 = 2;

/// A tag that the kernel handed to the server, with what the driver read about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The tag, as the kernel gave it.
    pub tag: u16,
    /// `op_flags` of the tag's descriptor (`struct ublksrv_io_desc`).
    pub op_flags: u32,
    /// `nr_sectors` of the descriptor.
    pub nr_sectors: u32,
    /// `start_sector` of the descriptor.
    pub start_sector: u64,
    /// The classifier's verdict for the tag.
    pub verdict: TakenVerdict,
}

/// Something that happened outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// PREP completed with this result.
    Prepared(i32),
    /// A FETCH brought a tag.
    Arrived(Arrival),
    /// FETCH number `fetch` ended: its CQE came without MORE, or with an error. `result` is the CQE's.
    FetchEnded {
        /// Which of the queue's FETCH commands.
        fetch: u8,
        /// The CQE's result.
        result: i32,
    },
    /// The operation of [`Effect::Io`] for this tag completed: bytes moved, or a negative errno.
    IoDone {
        /// The tag it was for.
        tag: u16,
        /// The CQE's result.
        result: i32,
    },
    /// The operation of [`Effect::Fill`] for this buffer completed: bytes moved, or a negative errno.
    FillDone {
        /// The buffer of the fill.
        fill: FillBuffer,
        /// The CQE's result.
        result: i32,
    },
    /// Another thread rang for this queue ([`Effect::Ring`], or the mover): a claim that a read may wait for has ended.
    Rung,
    /// COMMIT of batch `batch` completed: bytes handled, or a negative errno.
    Committed {
        /// Which of the machine's batches.
        batch: u8,
        /// The CQE's result.
        result: i32,
    },
    /// The driver has no further event: results that are ready may be committed now.
    Idle,
    /// The server leaves the queue to a successor (recovery): it waits for operations in flight and commits the requests
    /// that they complete; all others stay uncommitted, for the kernel to reissue.
    Abandon,
}

/// Something that the driver must do. It must do effects in the order it polls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Submit PREP with the elements of batch `batch`.
    Prepare {
        /// Which batch holds the elements.
        batch: u8,
    },
    /// Submit FETCH number `fetch`, its buffer given back to the kernel whole.
    Fetch {
        /// Which of the queue's FETCH commands.
        fetch: u8,
    },
    /// Submit this operation; its completion is [`Event::IoDone`] for the tag.
    Io {
        /// The tag it is for. A tag has at most one operation in flight.
        tag: u16,
        /// What to do.
        io: Io,
    },
    /// Submit this operation, which is no tag's; its completion is [`Event::FillDone`] for the buffer.
    Fill {
        /// The buffer of the fill, which has at most one operation in flight.
        fill: FillBuffer,
        /// What to do.
        io: FillIo,
    },
    /// Submit COMMIT with the elements of batch `batch`, from `from` to its end.
    Commit {
        /// Which batch holds the elements.
        batch: u8,
        /// The first element to commit.
        from: u16,
    },
    /// Wake the mover: there is a block to promote, or the cache device has failed.
    Wake,
    /// Ring for these queues, except this one: each is told [`Event::Rung`] at least once after this.
    Ring(QueueSet),
    /// The queue has failed. It waits for what is in flight, as after [`Event::Abandon`]; [`Effect::Finished`]
    /// follows.
    Failed(QueueFailure),
    /// The queue has ended: no operation is in flight and no COMMIT is out. A FETCH may still be (see
    /// [`Machine`](super::Machine)); closing the ring cancels it. Nothing follows.
    Finished,
}

/// Why a queue failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFailure {
    /// PREP was refused.
    #[error("the kernel refused to prepare the queue ({0})")]
    Prepare(Errno),
    /// FETCH ended too often in a row without having brought a tag.
    #[error("FETCH command {fetch} ended {times} times in a row without a tag, last with result {result}")]
    Fetch {
        /// Which of the queue's FETCH commands ended last.
        fetch: u8,
        /// How often FETCH commands ended without a tag in between.
        times: u32,
        /// The last one's result.
        result: i32,
    },
    /// COMMIT failed as a whole, and would again.
    #[error("the kernel refused to commit results ({0})")]
    Commit(Errno),
    /// COMMIT claims to have handled what it was not given.
    #[error("COMMIT of {elements} elements claims to have handled {bytes} bytes")]
    CommitResult {
        /// Elements that the command had.
        elements: u32,
        /// Its result.
        bytes: i32,
    },
}

/// Where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The device that holds everything.
    Backing,
    /// The device that holds copies of some of it.
    Cache,
}

/// A staging buffer of the queue, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging(pub u16);

/// A buffer of the queue that a fill is read into, by number. It has the size of a cache block, and each byte is at its
/// position in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillBuffer(pub u16);

/// An operation of a fill. Offsets and lengths are in bytes; `skip` is an offset inside the buffer. No length is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillIo {
    /// The backing device to the buffer.
    Load {
        /// Where on the backing device.
        offset: u64,
        /// Where in the buffer.
        skip: u32,
        /// How many.
        len: u32,
    },
    /// The buffer to the cache device. User copies may read the buffer at the same time.
    Store {
        /// Where on the cache device.
        offset: u64,
        /// Where in the buffer.
        skip: u32,
        /// How many.
        len: u32,
    },
}

/// A read or write between all pages of a request and a device: the one operation of nearly every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    /// Which way, and which device.
    pub way: Way,
    /// Where on the device.
    pub offset: u64,
    /// How many bytes: all that the request has.
    pub len: u32,
}

/// Between which device and a request's own pages bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From this device to the pages.
    Read(Tier),
    /// From the pages to this device.
    Write(Tier),
}

impl From<Direct> for Io {
    fn from(direct: Direct) -> Self {
        let Direct { way, offset, len } = direct;
        match way {
            Way::Write(to) => Self::Write {
                to,
                offset,
                at: 0,
                len,
                durable: false,
            },
            Way::Read(from) => Self::Read {
                from,
                offset,
                at: 0,
                len,
            },
        }
    }
}

/// One operation for a request. Offsets and lengths are in bytes; `at` is an offset inside the request, `skip`
/// one inside the staging buffer. No length is zero.
///
/// The variant says what executes it: a [`Copy`](Self::Copy) is made by the queue's thread, at once; all others are the
/// ring's. Work that neither can do (a backing behind a network protocol, or behind a library that blocks) would be a
/// further variant, which the engine hands to another thread. Nothing else changes: its completion is
/// [`Event::IoDone`] like the others, whenever it comes.
///
/// Its result is the number of bytes moved, or for those without data any number that is not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// A device to the request's registered pages.
    Read {
        /// Where the bytes are.
        from: Tier,
        /// Where on the device.
        offset: u64,
        /// Where in the request.
        at: u32,
        /// How many.
        len: u32,
    },
    /// The request's registered pages to one device, and to no other: the client may change its pages while they are
    /// written, so two writes from them may differ. Data for two devices is copied into a staging buffer once.
    Write {
        /// Where the bytes go.
        to: Tier,
        /// Where on the device.
        offset: u64,
        /// Where in the request.
        at: u32,
        /// How many.
        len: u32,
        /// They are on stable media when it completes (`RWF_DSYNC`).
        durable: bool,
    },
    /// Zeroes to the request's registered pages.
    Zero {
        /// Where in the request.
        at: u32,
        /// How many.
        len: u32,
    },
    /// A device to a staging buffer.
    Load {
        /// Where the bytes are.
        from: Tier,
        /// Where on the device.
        offset: u64,
        /// The buffer.
        staging: Staging,
        /// Where in the buffer.
        skip: u32,
        /// How many.
        len: u32,
    },
    /// A staging buffer to the device.
    Store {
        /// Where the bytes go.
        to: Tier,
        /// Where on the device.
        offset: u64,
        /// The buffer.
        staging: Staging,
        /// Where in the buffer.
        skip: u32,
        /// How many.
        len: u32,
        /// They are on stable media when it completes (`RWF_DSYNC`).
        durable: bool,
    },
    /// The one operation that the ring does not carry out.
    Copy(UserCopy),
    /// Nothing, for so long. It always ends with an error (`ETIME`).
    Delay {
        /// How many microseconds.
        micros: u32,
    },
    /// Make what the device has completed durable.
    Flush {
        /// The device.
        device: Tier,
    },
    /// A record of the cache's log ([`Cache::record`](crate::cache::Cache::record)) to the cache device, where it is on stable
    /// media when it completes (`RWF_DSYNC`).
    Record {
        /// Where on the device.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Truncate the backing file to this many bytes: a write that was in flight when another program truncated it may have
    /// extended it again.
    Trim {
        /// Where it ends.
        end: u64,
    },
    /// Discard the range.
    Discard {
        /// The device.
        device: Tier,
        /// Where on the device.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Make the range read as zeroes.
    WriteZeroes {
        /// The device.
        device: Tier,
        /// Where on the device.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Its space stays allocated (`REQ_NOUNMAP`).
        keep_allocated: bool,
    },
}

/// A copy between a request's pages and memory of the server (user copy). It may move fewer bytes than asked for; the rest
/// is asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserCopy {
    /// A staging buffer to the request's pages.
    Out {
        /// The buffer.
        staging: Staging,
        /// Where in the buffer.
        skip: u32,
        /// Where in the request.
        at: u32,
        /// How many.
        len: u32,
    },
    /// A fill's buffer to the request's pages.
    Filled {
        /// The buffer.
        fill: FillBuffer,
        /// Where in the buffer.
        skip: u32,
        /// Where in the request.
        at: u32,
        /// How many.
        len: u32,
    },
    /// The request's pages to a staging buffer.
    In {
        /// The buffer.
        staging: Staging,
        /// Where in the buffer.
        skip: u32,
        /// Where in the request.
        at: u32,
        /// How many.
        len: u32,
    },
    /// Zeroes to the request's pages, for a request without registered pages.
    Zero {
        /// Where in the request.
        at: u32,
        /// How many.
        len: u32,
    },
}
