//! Commands, as ioctl numbers, and the command area of control commands.

use std::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::request::BatchIo;

// Control commands, sent to `/dev/ublk-control`.

/// CPUs that a hardware queue serves.
pub const UBLK_U_CMD_GET_QUEUE_AFFINITY: u32 = ior::<CtrlCmd>(0x01);
/// Read the description of a device.
pub const UBLK_U_CMD_GET_DEV_INFO: u32 = ior::<CtrlCmd>(0x02);
/// Add a device.
pub const UBLK_U_CMD_ADD_DEV: u32 = iowr::<CtrlCmd>(0x04);
/// Delete a device and wait until its id is free.
pub const UBLK_U_CMD_DEL_DEV: u32 = iowr::<CtrlCmd>(0x05);
/// Create the block device, when every queue is ready.
pub const UBLK_U_CMD_START_DEV: u32 = iowr::<CtrlCmd>(0x06);
/// Remove the block device.
pub const UBLK_U_CMD_STOP_DEV: u32 = iowr::<CtrlCmd>(0x07);
/// Set the parameters of a device before it starts.
pub const UBLK_U_CMD_SET_PARAMS: u32 = iowr::<CtrlCmd>(0x08);
/// Read the parameters of a device.
pub const UBLK_U_CMD_GET_PARAMS: u32 = ior::<CtrlCmd>(0x09);
/// Begin the recovery of a device without a server.
pub const UBLK_U_CMD_START_USER_RECOVERY: u32 = iowr::<CtrlCmd>(0x10);
/// The new server's queues are ready.
pub const UBLK_U_CMD_END_USER_RECOVERY: u32 = iowr::<CtrlCmd>(0x11);
/// [`UBLK_U_CMD_GET_DEV_INFO`] with the character device's path, which also works for an unprivileged device.
pub const UBLK_U_CMD_GET_DEV_INFO2: u32 = ior::<CtrlCmd>(0x12);
/// The features of this kernel's ublk.
pub const UBLK_U_CMD_GET_FEATURES: u32 = ior::<CtrlCmd>(0x13);
/// Delete a device without waiting for its id.
pub const UBLK_U_CMD_DEL_DEV_ASYNC: u32 = ior::<CtrlCmd>(0x14);
/// Change a live device's size.
pub const UBLK_U_CMD_UPDATE_SIZE: u32 = iowr::<CtrlCmd>(0x15);
/// Detach a live device from its server, for another server to recover it.
pub const UBLK_U_CMD_QUIESCE_DEV: u32 = iowr::<CtrlCmd>(0x16);
/// Stop a device unless it is open.
pub const UBLK_U_CMD_TRY_STOP_DEV: u32 = iowr::<CtrlCmd>(0x17);

// Queue commands in batch mode, sent to `/dev/ublkcN`.

/// Give every tag of a queue to the kernel.
pub const UBLK_U_IO_PREP_IO_CMDS: u32 = iowr::<BatchIo>(0x25);
/// Complete requests.
pub const UBLK_U_IO_COMMIT_IO_CMDS: u32 = iowr::<BatchIo>(0x26);
/// Receive tags of requests, multishot, into provided buffers.
pub const UBLK_U_IO_FETCH_IO_CMDS: u32 = iowr::<BatchIo>(0x27);

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

const _: () = {
    assert!(size_of::<CtrlCmd>() == 32);
    assert!(offset_of!(CtrlCmd, addr) == 8);
    assert!(offset_of!(CtrlCmd, dev_path_len) == 24);
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
