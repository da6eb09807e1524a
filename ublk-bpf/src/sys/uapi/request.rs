//! Requests: operations, flags, descriptors, and batches of tags.

use std::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Read sectors.
pub const UBLK_IO_OP_READ: u8 = 0;
/// Write sectors.
pub const UBLK_IO_OP_WRITE: u8 = 1;
/// Make completed writes durable.
pub const UBLK_IO_OP_FLUSH: u8 = 2;
/// Sectors may be discarded.
pub const UBLK_IO_OP_DISCARD: u8 = 3;
/// Never sent by the driver.
pub const UBLK_IO_OP_WRITE_SAME: u8 = 4;
/// Sectors read as zeroes afterwards.
pub const UBLK_IO_OP_WRITE_ZEROES: u8 = 5;

/// Fail fast on device errors.
pub const UBLK_IO_F_FAILFAST_DEV: u32 = 1 << 8;
/// Fail fast on transport errors.
pub const UBLK_IO_F_FAILFAST_TRANSPORT: u32 = 1 << 9;
/// Fail fast on driver errors.
pub const UBLK_IO_F_FAILFAST_DRIVER: u32 = 1 << 10;
/// The request is for a file system's metadata.
pub const UBLK_IO_F_META: u32 = 1 << 11;
/// The write is durable when it completes.
pub const UBLK_IO_F_FUA: u32 = 1 << 13;
/// Write zeroes, but keep the space allocated.
pub const UBLK_IO_F_NOUNMAP: u32 = 1 << 15;
/// The request is for swap.
pub const UBLK_IO_F_SWAP: u32 = 1 << 16;
/// The request's pages could not be registered.
pub const UBLK_IO_F_NEED_REG_BUF: u32 = 1 << 17;
/// The request has integrity data.
pub const UBLK_IO_F_INTEGRITY: u32 = 1 << 18;
/// The request's pages are in registered shared memory.
pub const UBLK_IO_F_SHMEM_ZC: u32 = 1 << 19;

/// Elements of a batch carry a zone append address.
pub const UBLK_BATCH_F_HAS_ZONE_LBA: u16 = 1 << 0;
/// Elements of a batch carry a buffer address.
pub const UBLK_BATCH_F_HAS_BUF_ADDR: u16 = 1 << 1;
/// A tag whose pages cannot be registered is delivered with [`UBLK_IO_F_NEED_REG_BUF`], not failed.
pub const UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK: u16 = 1 << 2;

/// `struct ublksrv_io_desc`: a request, written by the driver when its tag is delivered.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoDesc {
    /// `UBLK_IO_OP_*` in bits 0 to 7, `UBLK_IO_F_*` above.
    pub op_flags: u32,
    /// Length in sectors of 512 bytes.
    pub nr_sectors: u32,
    /// First sector.
    pub start_sector: u64,
    /// Address of the server's buffer; unused with user copy and registered buffers.
    pub addr: u64,
}

/// `struct ublk_elem_header`: one tag in the array of PREP or COMMIT.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ElemHeader {
    /// The tag.
    pub tag: u16,
    /// Where in the ring's buffer table the next request's pages go.
    pub buf_index: u16,
    /// COMMIT: the request's result in bytes, or a negative errno.
    pub result: i32,
}

/// `struct ublk_batch_io`: the command area of PREP, COMMIT and FETCH.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BatchIo {
    /// The queue.
    pub q_id: u16,
    /// `UBLK_BATCH_F_*`.
    pub flags: u16,
    /// Elements in the array.
    pub nr_elem: u16,
    /// Bytes of an element.
    pub elem_bytes: u8,
    /// Zero.
    pub reserved: u8,
    /// Zero.
    pub reserved2: u64,
}

/// Bytes of an [`IoDesc`].
#[expect(clippy::cast_possible_truncation, reason = "24, asserted below")]
pub const IO_DESC_BYTES: u16 = size_of::<IoDesc>() as u16;

const _: () = {
    assert!(size_of::<IoDesc>() == 24);
    assert!(size_of::<ElemHeader>() == 8);
    assert!(size_of::<BatchIo>() == 16);
};
