//! The backing file of a loop device.

use std::fs::File;
use std::io;

use rustix::ioctl::{Getter, Opcode, ioctl};

/// `struct loop_info64` of `include/uapi/linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    file_name: [u8; 64],
    names_of_encryption: [u8; 96],
    init: [u64; 2],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);

/// Where a loop device's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    /// The number of the device that holds the file.
    pub(crate) device: u64,
    /// The file's inode number.
    pub(crate) inode: u64,
    /// The device number of the backing block device; 0 if the backing is a regular file.
    pub(crate) block_device: u64,
    /// Offset of the loop device's first byte in it, in bytes.
    pub(crate) offset: u64,
}

/// Asks the open loop device (`LOOP_GET_STATUS64`).
///
/// # Errors
/// `ENXIO` if nothing is attached to it; others if it is no loop device.
pub(crate) fn attached(loop_device: &File) -> io::Result<Attached> {
    const LOOP_GET_STATUS64: Opcode = 0x4c05;
    // SAFETY: on a loop device this call writes a whole `struct loop_info64`, whose size is asserted above.
    let call = unsafe { Getter::<LOOP_GET_STATUS64, LoopInfo>::new() };
    // SAFETY: it only writes to `call`; a device of another kind refuses the number.
    let found = unsafe { ioctl(loop_device, call) }?;
    Ok(Attached {
        device: found.device,
        inode: found.inode,
        block_device: found.rdevice,
        offset: found.offset,
    })
}
