//! User copy: between a request's pages and this process's memory, by `pread` and `pwrite` on `/dev/ublkcN`.
//!
//! Only the slow path uses it. The thread makes these calls itself, not through the ring: they copy memory and never
//! wait.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sys::uapi::{UBLK_QID_OFF, UBLK_TAG_OFF, UBLKSRV_IO_BUF_OFFSET};

/// The position of byte `at` of a request in `/dev/ublkcN`.
pub(super) fn position(queue: u16, tag: u16, at: u32) -> u64 {
    UBLKSRV_IO_BUF_OFFSET
        + (u64::from(queue) << UBLK_QID_OFF | u64::from(tag) << UBLK_TAG_OFF | u64::from(at))
}

/// Copies `len` bytes from `memory` to the request's pages at `position`. Bytes copied, or a negative errno.
///
/// # Safety
/// `memory` must be readable for `len` bytes.
pub(super) unsafe fn to_request(device: BorrowedFd<'_>, position: u64, memory: *const u8, len: u32) -> i32 {
    // SAFETY: the caller answers for the memory.
    result(|| unsafe { libc::pwrite(device.as_raw_fd(), memory.cast(), len as usize, offset(position)) })
}

/// Copies `len` bytes of the request's pages at `position` to `memory`. Bytes copied, or a negative errno.
///
/// # Safety
/// `memory` must be writable for `len` bytes, and nothing else may access it during the call.
pub(super) unsafe fn from_request(device: BorrowedFd<'_>, position: u64, memory: *mut u8, len: u32) -> i32 {
    // SAFETY: the caller answers for the memory.
    result(|| unsafe { libc::pread(device.as_raw_fd(), memory.cast(), len as usize, offset(position)) })
}

fn offset(position: u64) -> i64 {
    i64::try_from(position).expect("a position has 53 bits")
}

fn result(mut call: impl FnMut() -> isize) -> i32 {
    loop {
        let result = call();
        if result >= 0 {
            return i32::try_from(result).unwrap_or(i32::MAX);
        }
        match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR) => {}
            error => return -error.unwrap_or(libc::EIO),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_position_names_queue_tag_and_byte() {
        assert_eq!(position(0, 0, 0), 0x8000_0000);
        assert_eq!(position(3, 5, 512), 0x8000_0000 + (3 << 41) + (5 << 25) + 512);
    }

    #[test]
    fn copies_say_how_much_or_why_not() {
        let file = tempfile::tempfile().unwrap();
        let mut memory = [7_u8; 512];
        // SAFETY: the memory is a local array of that length.
        let written = unsafe { to_request(file.as_fd(), 100, memory.as_ptr(), 512) };
        assert_eq!(written, 512);
        // SAFETY: as above.
        let read = unsafe { from_request(file.as_fd(), 356, memory.as_mut_ptr(), 512) };
        assert_eq!(read, 256);
        let read_only = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: as above.
        let refused = unsafe { to_request(read_only.as_fd(), 0, memory.as_ptr(), 512) };
        assert_eq!(refused, -libc::EBADF);
    }
}
