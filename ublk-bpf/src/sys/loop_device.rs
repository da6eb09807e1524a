//! What a loop device is attached to.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// `struct loop_info64` of `include/uapi/linux/loop.h`.
#[derive(Clone, Copy)]
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
    /// The file.
    pub(crate) inode: u64,
    /// The number of the block device, if that is what the loop device is attached to; else 0.
    pub(crate) block_device: u64,
    /// Where in it the loop device begins, in bytes.
    pub(crate) offset: u64,
}

/// Asks the open loop device (`LOOP_GET_STATUS64`): `ENXIO` if it is attached to nothing.
pub(crate) fn attached(loop_device: &File) -> io::Result<Attached> {
    const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;
    let mut found = MaybeUninit::<LoopInfo>::zeroed();
    // SAFETY: `found` is writable memory of the size that the call fills, which the assertion above pins; on a
    // device that is no loop device the call fails.
    let result = unsafe { libc::ioctl(loop_device.as_raw_fd(), LOOP_GET_STATUS64, found.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every field is an integer or an array of them, so all-zero bytes were a valid value, and so is whatever
    // the kernel wrote.
    let found = unsafe { found.assume_init() };
    Ok(Attached {
        device: found.device,
        inode: found.inode,
        block_device: found.rdevice,
        offset: found.offset,
    })
}
