//! The language between the machine and whoever drives it.

/// What the driver found in a tag's verdict slot when it took it: the slot's raw bytes, parsed by nobody yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenVerdict {
    /// The first eight bytes of a [`VerdictSlot`](ublk_bpf_abi::VerdictSlot), little endian. Zero: empty.
    pub head: u64,
    /// Its `sector`.
    pub sector: u64,
}

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
    /// What the classifier left for the tag.
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
    /// COMMIT of batch `batch` completed: bytes handled, or a negative errno.
    Committed {
        /// Which of the machine's batches.
        batch: u8,
        /// The CQE's result.
        result: i32,
    },
    /// The driver has no further event at hand: what is ready may be committed now.
    Idle,
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
    /// Submit COMMIT with the elements of batch `batch`, from `from` to its end.
    Commit {
        /// Which batch holds the elements.
        batch: u8,
        /// The first element to commit.
        from: u16,
    },
    /// The queue has ended: no tag is held, no command is out. Nothing follows.
    Finished,
}

/// Where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The device that holds everything.
    Backing,
}

/// A staging buffer of the queue, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging(pub u16);

/// One backend operation. Offsets and lengths are in bytes; `at` is an offset inside the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Device to the request's registered pages.
    Read {
        from: Device,
        offset: u64,
        at: u32,
        len: u32,
    },
    /// The request's registered pages to the device; durable when done if `durable` (`RWF_DSYNC`).
    Write {
        to: Device,
        offset: u64,
        at: u32,
        len: u32,
        durable: bool,
    },
    /// Zeroes to the request's registered pages.
    Zero { at: u32, len: u32 },
    /// Device to a staging buffer (from the buffer's start).
    Load {
        from: Device,
        offset: u64,
        staging: Staging,
        len: u32,
    },
    /// A staging buffer (from its start) to the device.
    Store {
        to: Device,
        offset: u64,
        staging: Staging,
        len: u32,
        durable: bool,
    },
    /// User copy: a staging buffer (from its start) to the request's pages.
    CopyOut { staging: Staging, at: u32, len: u32 },
    /// User copy: the request's pages to a staging buffer (from its start).
    CopyIn { staging: Staging, at: u32, len: u32 },
    /// User copy: zeroes to the request's pages, for a request without registered pages.
    CopyZero { at: u32, len: u32 },
    /// Make what the device has completed durable.
    Flush { device: Device },
    /// The device may forget this range.
    Discard { device: Device, offset: u64, len: u64 },
    /// The range reads as zeroes from now on; its space stays allocated if `keep_allocated`.
    WriteZeroes {
        device: Device,
        offset: u64,
        len: u64,
        keep_allocated: bool,
    },
}
