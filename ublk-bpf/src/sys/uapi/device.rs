//! Devices: features of the driver and flags of a device, states, limits.

use std::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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
/// Requests in flight at a dead server are reissued to the next one.
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
/// A live device can be detached from its server.
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

/// No block device.
pub const UBLK_S_DEV_DEAD: u16 = 0;
/// Block device with a server.
pub const UBLK_S_DEV_LIVE: u16 = 1;
/// Block device without a server; requests wait.
pub const UBLK_S_DEV_QUIESCED: u16 = 2;
/// Block device without a server; requests fail.
pub const UBLK_S_DEV_FAIL_IO: u16 = 3;

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
    /// Bytes from one [`IoDesc`](super::IoDesc) to the next.
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
    /// Stored for the server; not used by the driver.
    pub ublksrv_flags: u64,
    /// User id of the process that added it.
    pub owner_uid: u32,
    /// Group id of the process that added it.
    pub owner_gid: u32,
    /// Zero.
    pub reserved1: u64,
    /// Zero.
    pub reserved2: u64,
}

const _: () = {
    assert!(size_of::<RawDevInfo>() == 64);
    assert!(offset_of!(RawDevInfo, flags) == 24);
    assert!(offset_of!(RawDevInfo, owner_uid) == 40);
};
