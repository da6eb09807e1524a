//! The binary interface of ublk: `include/uapi/linux/ublk_cmd.h` as of Linux 7.3, as far as this server uses it.
//!
//! Constants keep the header's names, so that one search finds both; structs have Rust names and say which
//! struct of the header they are. Sizes and offsets are asserted here at compile time, and `tests/headers`
//! compares everything in this file with a real header.

use std::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(any(
    target_arch = "powerpc64",
    target_arch = "powerpc",
    target_arch = "mips64",
    target_arch = "sparc64"
))]
compile_error!("ioctl numbers are encoded differently on this architecture");

// --- Control commands, sent to /dev/ublk-control -------------------------------------------------------

/// CPUs that a hardware queue serves.
pub const UBLK_U_CMD_GET_QUEUE_AFFINITY: u32 = ior::<CtrlCmd>(0x01);
/// What a device is.
pub const UBLK_U_CMD_GET_DEV_INFO: u32 = ior::<CtrlCmd>(0x02);
/// Make a device.
pub const UBLK_U_CMD_ADD_DEV: u32 = iowr::<CtrlCmd>(0x04);
/// Delete a device and wait until its id is free.
pub const UBLK_U_CMD_DEL_DEV: u32 = iowr::<CtrlCmd>(0x05);
/// Make the block device, when every queue is ready.
pub const UBLK_U_CMD_START_DEV: u32 = iowr::<CtrlCmd>(0x06);
/// Remove the block device.
pub const UBLK_U_CMD_STOP_DEV: u32 = iowr::<CtrlCmd>(0x07);
/// Say what a device can do, before it starts.
pub const UBLK_U_CMD_SET_PARAMS: u32 = iowr::<CtrlCmd>(0x08);
/// Read back what a device can do.
pub const UBLK_U_CMD_GET_PARAMS: u32 = ior::<CtrlCmd>(0x09);
/// Begin to give a device without a server a new one.
pub const UBLK_U_CMD_START_USER_RECOVERY: u32 = iowr::<CtrlCmd>(0x10);
/// The new server's queues are ready.
pub const UBLK_U_CMD_END_USER_RECOVERY: u32 = iowr::<CtrlCmd>(0x11);
/// [`UBLK_U_CMD_GET_DEV_INFO`] with the character device's path, so that an unprivileged device answers too.
pub const UBLK_U_CMD_GET_DEV_INFO2: u32 = ior::<CtrlCmd>(0x12);
/// What this kernel's ublk can do.
pub const UBLK_U_CMD_GET_FEATURES: u32 = ior::<CtrlCmd>(0x13);
/// Delete a device without waiting for its id.
pub const UBLK_U_CMD_DEL_DEV_ASYNC: u32 = ior::<CtrlCmd>(0x14);
/// Change a live device's size.
pub const UBLK_U_CMD_UPDATE_SIZE: u32 = iowr::<CtrlCmd>(0x15);
/// Take a live device from its server, for another one to recover it.
pub const UBLK_U_CMD_QUIESCE_DEV: u32 = iowr::<CtrlCmd>(0x16);
/// Stop a device unless somebody has it open.
pub const UBLK_U_CMD_TRY_STOP_DEV: u32 = iowr::<CtrlCmd>(0x17);

// --- Queue commands in batch mode, sent to /dev/ublkcN --------------------------------------------------

/// Hand every tag of a queue to the kernel.
pub const UBLK_U_IO_PREP_IO_CMDS: u32 = iowr::<BatchIo>(0x25);
/// Complete requests.
pub const UBLK_U_IO_COMMIT_IO_CMDS: u32 = iowr::<BatchIo>(0x26);
/// Receive tags of requests, multishot, into provided buffers.
pub const UBLK_U_IO_FETCH_IO_CMDS: u32 = iowr::<BatchIo>(0x27);

// --- Features of the driver and flags of a device -------------------------------------------------------

/// Bytes of the feature word.
pub const UBLK_FEATURES_LEN: u16 = 8;

/// Request pages can be registered as io_uring buffers.
pub const UBLK_F_SUPPORT_ZERO_COPY: u64 = 1 << 0;
/// Commands complete in task work.
pub const UBLK_F_URING_CMD_COMP_IN_TASK: u64 = 1 << 1;
/// Writes ask for a buffer first.
pub const UBLK_F_NEED_GET_DATA: u64 = 1 << 2;
/// The device outlives its server.
pub const UBLK_F_USER_RECOVERY: u64 = 1 << 3;
/// What a dead server had in hand is issued again to the next.
pub const UBLK_F_USER_RECOVERY_REISSUE: u64 = 1 << 4;
/// The device belongs to a user without privileges.
pub const UBLK_F_UNPRIVILEGED_DEV: u64 = 1 << 5;
/// Commands are encoded as ioctl numbers.
pub const UBLK_F_CMD_IOCTL_ENCODE: u64 = 1 << 6;
/// Request data is copied by `pread`/`pwrite` on `/dev/ublkcN`.
pub const UBLK_F_USER_COPY: u64 = 1 << 7;
/// Zoned devices.
pub const UBLK_F_ZONED: u64 = 1 << 8;
/// Requests fail while there is no server.
pub const UBLK_F_USER_RECOVERY_FAIL_IO: u64 = 1 << 9;
/// A live device can change its size.
pub const UBLK_F_UPDATE_SIZE: u64 = 1 << 10;
/// Request pages are registered as io_uring buffers before the tag is delivered.
pub const UBLK_F_AUTO_BUF_REG: u64 = 1 << 11;
/// A live device can be taken from its server.
pub const UBLK_F_QUIESCE: u64 = 1 << 12;
/// Each tag may have its own task.
pub const UBLK_F_PER_IO_DAEMON: u64 = 1 << 13;
/// Buffers can be registered from any task.
pub const UBLK_F_BUF_REG_OFF_DAEMON: u64 = 1 << 14;
/// Tags are fetched and committed in batches.
pub const UBLK_F_BATCH_IO: u64 = 1 << 15;
/// Requests may carry integrity metadata.
pub const UBLK_F_INTEGRITY: u64 = 1 << 16;
/// `TRY_STOP_DEV` exists.
pub const UBLK_F_SAFE_STOP_DEV: u64 = 1 << 17;
/// Partitions need not be scanned at start.
pub const UBLK_F_NO_AUTO_PART_SCAN: u64 = 1 << 18;
/// Buffers in shared memory are recognised in requests.
pub const UBLK_F_SHMEM_ZC: u64 = 1 << 19;
/// The server chooses the descriptor's size.
pub const UBLK_F_IO_DESC_SIZE: u64 = 1 << 20;

// --- Device states --------------------------------------------------------------------------------------

/// No block device.
pub const UBLK_S_DEV_DEAD: u16 = 0;
/// Block device with a server.
pub const UBLK_S_DEV_LIVE: u16 = 1;
/// Block device without a server; requests wait.
pub const UBLK_S_DEV_QUIESCED: u16 = 2;
/// Block device without a server; requests fail.
pub const UBLK_S_DEV_FAIL_IO: u16 = 3;

// --- Limits and the layout of /dev/ublkcN ---------------------------------------------------------------

/// Most tags of a queue.
pub const UBLK_MAX_QUEUE_DEPTH: u16 = 4096;
/// Most queues of a device.
pub const UBLK_MAX_NR_QUEUES: u16 = 1 << UBLK_QID_BITS;
/// First id that no device can have (`UBLK_MAX_UBLKS` in `ublk_drv.c`: every minor number, of 20 bits).
pub const UBLK_MAX_UBLKS: u32 = 1 << 20;
/// Where the descriptor arrays are mapped.
pub const UBLKSRV_CMD_BUF_OFFSET: u64 = 0;
/// Where user copy finds request data.
pub const UBLKSRV_IO_BUF_OFFSET: u64 = 0x8000_0000;
/// Bits of the byte offset in a user-copy position: one request has at most 32 MiB.
pub const UBLK_IO_BUF_BITS: u32 = 25;
/// Where the tag starts in a user-copy position.
pub const UBLK_TAG_OFF: u32 = UBLK_IO_BUF_BITS;
/// Bits of the tag there.
pub const UBLK_TAG_BITS: u32 = 16;
/// Where the queue number starts in a user-copy position.
pub const UBLK_QID_OFF: u32 = UBLK_TAG_OFF + UBLK_TAG_BITS;
/// Bits of the queue number there.
pub const UBLK_QID_BITS: u32 = 12;

// --- Requests -------------------------------------------------------------------------------------------

/// Read sectors.
pub const UBLK_IO_OP_READ: u8 = 0;
/// Write sectors.
pub const UBLK_IO_OP_WRITE: u8 = 1;
/// Make completed writes durable.
pub const UBLK_IO_OP_FLUSH: u8 = 2;
/// Sectors may be forgotten.
pub const UBLK_IO_OP_DISCARD: u8 = 3;
/// Never sent by the driver.
pub const UBLK_IO_OP_WRITE_SAME: u8 = 4;
/// Sectors read as zeroes from now on.
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

// --- Parameters -----------------------------------------------------------------------------------------

/// [`ParamBasic::attrs`]: writes are refused.
pub const UBLK_ATTR_READ_ONLY: u32 = 1 << 0;
/// [`ParamBasic::attrs`]: seeks are slow.
pub const UBLK_ATTR_ROTATIONAL: u32 = 1 << 1;
/// [`ParamBasic::attrs`]: a completed write is durable only after a flush.
pub const UBLK_ATTR_VOLATILE_CACHE: u32 = 1 << 2;
/// [`ParamBasic::attrs`]: single writes can be made durable. Without a volatile cache it means nothing.
pub const UBLK_ATTR_FUA: u32 = 1 << 3;

/// [`RawParams::basic`] is set.
pub const UBLK_PARAM_TYPE_BASIC: u32 = 1 << 0;
/// [`RawParams::discard`] is set.
pub const UBLK_PARAM_TYPE_DISCARD: u32 = 1 << 1;
/// [`RawParams::devt`] is set, by the kernel only.
pub const UBLK_PARAM_TYPE_DEVT: u32 = 1 << 2;
/// [`RawParams::zoned`] is set.
pub const UBLK_PARAM_TYPE_ZONED: u32 = 1 << 3;
/// [`RawParams::dma`] is set.
pub const UBLK_PARAM_TYPE_DMA_ALIGN: u32 = 1 << 4;
/// [`RawParams::seg`] is set.
pub const UBLK_PARAM_TYPE_SEGMENT: u32 = 1 << 5;
/// [`RawParams::integrity`] is set.
pub const UBLK_PARAM_TYPE_INTEGRITY: u32 = 1 << 6;

// --- Structs --------------------------------------------------------------------------------------------

/// `struct ublksrv_ctrl_cmd`: a control command, in the SQE's command area.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CtrlCmd {
    /// Which device; `u32::MAX` in ADD_DEV for any free one.
    pub dev_id: u32,
    /// `u16::MAX` for a command that is not for a queue.
    pub queue_id: u16,
    /// Bytes at `addr`.
    pub len: u16,
    /// Address of the command's buffer.
    pub addr: u64,
    /// The command's number: a pid, a size, a timeout, a queue.
    pub data: [u64; 1],
    /// Bytes of the character device's path, NUL included, at the start of the buffer.
    pub dev_path_len: u16,
    /// Zero.
    pub pad: u16,
    /// Zero.
    pub reserved: u32,
}

/// `struct ublksrv_ctrl_dev_info`: what a device is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RawDevInfo {
    /// Hardware queues; the kernel lowers it to the number of CPUs.
    pub nr_hw_queues: u16,
    /// Tags of each queue.
    pub queue_depth: u16,
    /// `UBLK_S_DEV_*`.
    pub state: u16,
    /// Bytes from one [`IoDesc`] to the next.
    pub io_desc_size: u16,
    /// Most bytes of a request.
    pub max_io_buf_bytes: u32,
    /// The device's id.
    pub dev_id: u32,
    /// The server's process id as the reader sees it, or -1.
    pub ublksrv_pid: i32,
    /// Zero.
    pub pad1: u32,
    /// `UBLK_F_*`.
    pub flags: u64,
    /// Kept for the server; the driver does not look.
    pub ublksrv_flags: u64,
    /// Who made it.
    pub owner_uid: u32,
    /// Who made it.
    pub owner_gid: u32,
    /// Zero.
    pub reserved1: u64,
    /// Zero.
    pub reserved2: u64,
}

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

/// `struct ublk_param_basic`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamBasic {
    /// `UBLK_ATTR_*`.
    pub attrs: u32,
    /// log2 of the logical block size in bytes.
    pub logical_bs_shift: u8,
    /// log2 of the physical block size in bytes.
    pub physical_bs_shift: u8,
    /// log2 of the optimal I/O size in bytes.
    pub io_opt_shift: u8,
    /// log2 of the smallest preferred I/O size in bytes.
    pub io_min_shift: u8,
    /// Most sectors of a request.
    pub max_sectors: u32,
    /// Reads and writes do not cross multiples of this many sectors; 0: no such limit.
    pub chunk_sectors: u32,
    /// The device's size in sectors.
    pub dev_sectors: u64,
    /// Mask of addresses that a data segment must not cross; 0: none.
    pub virt_boundary_mask: u64,
}

/// `struct ublk_param_discard`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamDiscard {
    /// Offset in bytes of the first discardable unit.
    pub discard_alignment: u32,
    /// Smallest unit of discards in bytes; not 0.
    pub discard_granularity: u32,
    /// Most sectors of a discard; 0: discards are not supported.
    pub max_discard_sectors: u32,
    /// Most sectors of a write-zeroes; 0: not supported.
    pub max_write_zeroes_sectors: u32,
    /// 1, where discards are supported.
    pub max_discard_segments: u16,
    /// Zero.
    pub reserved0: u16,
}

/// `struct ublk_param_devt`: device numbers, filled in by the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamDevt {
    /// Of `/dev/ublkcN`.
    pub char_major: u32,
    /// Of `/dev/ublkcN`.
    pub char_minor: u32,
    /// Of `/dev/ublkbN`; 0 before it starts.
    pub disk_major: u32,
    /// Of `/dev/ublkbN`; 0 before it starts.
    pub disk_minor: u32,
}

/// `struct ublk_param_zoned`: not used here, but part of the layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamZoned {
    /// Most open zones.
    pub max_open_zones: u32,
    /// Most active zones.
    pub max_active_zones: u32,
    /// Most sectors of a zone append.
    pub max_zone_append_sectors: u32,
    /// Zero.
    pub reserved: [u8; 20],
}

/// `struct ublk_param_dma_align`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamDmaAlign {
    /// Mask (a power of two less one) that the address of a request's data is aligned to.
    pub alignment: u32,
    /// Zero.
    pub pad: [u8; 4],
}

/// `struct ublk_param_segment`: not used here, but part of the layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamSegment {
    /// Mask of addresses that a segment must not cross.
    pub seg_boundary_mask: u64,
    /// Most bytes of a segment.
    pub max_segment_size: u32,
    /// Most segments of a request.
    pub max_segments: u16,
    /// Zero.
    pub pad: [u8; 2],
}

/// `struct ublk_param_integrity`: not used here, but part of the layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamIntegrity {
    /// `LBMD_PI_CAP_*`.
    pub flags: u32,
    /// Most segments of integrity data.
    pub max_integrity_segments: u16,
    /// log2 of the data bytes that one tuple covers.
    pub interval_exp: u8,
    /// Bytes of metadata for each interval.
    pub metadata_size: u8,
    /// Where the tuple is in the metadata.
    pub pi_offset: u8,
    /// `LBMD_PI_CSUM_*`.
    pub csum_type: u8,
    /// Bytes of the application's tag.
    pub tag_size: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// `struct ublk_params`: what a device can do.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RawParams {
    /// Bytes of this struct that count.
    pub len: u32,
    /// `UBLK_PARAM_TYPE_*`: which of the members below count.
    pub types: u32,
    /// Always set.
    pub basic: ParamBasic,
    /// Discard and write-zeroes.
    pub discard: ParamDiscard,
    /// Device numbers.
    pub devt: ParamDevt,
    /// Zones.
    pub zoned: ParamZoned,
    /// Alignment of data.
    pub dma: ParamDmaAlign,
    /// The padding that C inserts here; zero.
    pub padding: [u8; 4],
    /// Limits of segments.
    pub seg: ParamSegment,
    /// Integrity metadata.
    pub integrity: ParamIntegrity,
}

/// Bytes of an [`IoDesc`].
#[expect(clippy::cast_possible_truncation, reason = "24, asserted below")]
pub const IO_DESC_BYTES: u16 = size_of::<IoDesc>() as u16;
/// Bytes of [`RawParams`].
#[expect(clippy::cast_possible_truncation, reason = "152, asserted below")]
pub const PARAMS_BYTES: u32 = size_of::<RawParams>() as u32;

// The header's numbers on every 64-bit architecture.
const _: () = {
    assert!(size_of::<CtrlCmd>() == 32);
    assert!(offset_of!(CtrlCmd, addr) == 8);
    assert!(offset_of!(CtrlCmd, dev_path_len) == 24);
    assert!(size_of::<RawDevInfo>() == 64);
    assert!(offset_of!(RawDevInfo, flags) == 24);
    assert!(offset_of!(RawDevInfo, owner_uid) == 40);
    assert!(size_of::<IoDesc>() == 24);
    assert!(size_of::<ElemHeader>() == 8);
    assert!(size_of::<BatchIo>() == 16);
    assert!(size_of::<ParamBasic>() == 32);
    assert!(size_of::<ParamDiscard>() == 20);
    assert!(size_of::<ParamDevt>() == 16);
    assert!(size_of::<ParamZoned>() == 32);
    assert!(size_of::<ParamDmaAlign>() == 8);
    assert!(size_of::<ParamSegment>() == 16);
    assert!(size_of::<ParamIntegrity>() == 16);
    assert!(size_of::<RawParams>() == 152);
    assert!(offset_of!(RawParams, seg) == 120);
    assert!(UBLK_U_CMD_ADD_DEV == 0xc020_7504);
    assert!(UBLK_U_CMD_GET_FEATURES == 0x8020_7513);
    assert!(UBLK_U_IO_COMMIT_IO_CMDS == 0xc010_7526);
};

/// `_IOR('u', nr, T)` of `asm-generic/ioctl.h`: the kernel writes.
const fn ior<T>(nr: u8) -> u32 {
    ioc::<T>(2, nr)
}

/// `_IOWR('u', nr, T)`: both ways.
const fn iowr<T>(nr: u8) -> u32 {
    ioc::<T>(2 | 1, nr)
}

/// Direction in bits 30 and 31, size of the argument in 16 to 29, type `u` in 8 to 15, number in 0 to 7.
#[expect(clippy::cast_possible_truncation, reason = "the assertion bounds it")]
const fn ioc<T>(direction: u32, nr: u8) -> u32 {
    assert!(size_of::<T>() < 1 << 14, "the argument's size has 14 bits");
    direction << 30 | (size_of::<T>() as u32) << 16 | (b'u' as u32) << 8 | nr as u32
}
