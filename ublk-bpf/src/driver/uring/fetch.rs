//! The memory that a FETCH command writes tags into.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;

use crate::sys::mmap::Mmap;
use crate::sys::process::page_size;

/// Bytes of tags that a command can bring before it has to be issued again: 8192 tags. Larger makes that
/// rarer, smaller keeps the buffer in the cache.
const BUFFER_BYTES: u32 = 16 << 10;

/// `IOU_PBUF_RING_INC` of `include/uapi/linux/io_uring.h`: completions append to a buffer until it is full.
const IOU_PBUF_RING_INC: u16 = 2;

// `struct io_uring_buf` and, over its first entry, `struct io_uring_buf_ring` of the same.
const ADDR: usize = 0;
const LEN: usize = 8;
const TAIL: usize = 14;

/// A group of provided buffers that has one buffer, for one FETCH command.
pub(super) struct FetchBuffer {
    /// One page: the ring of one entry.
    ring: Mmap,
    buffer: Mmap,
    /// Where the next completion's tags start.
    at: u32,
}

impl FetchBuffer {
    /// Makes the memory.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            ring: Mmap::anonymous(page_size())?,
            buffer: Mmap::anonymous(BUFFER_BYTES as usize)?,
            at: 0,
        })
    }

    /// Registers the memory as this group of the ring.
    ///
    /// # Safety
    /// `self` must outlive the ring.
    pub(super) unsafe fn register(&self, submitter: &Submitter<'_>, group: u16) -> io::Result<()> {
        let address = self.ring.as_ptr().as_ptr() as u64;
        // SAFETY: the page is zeroed, has room for the one entry, and lives long enough, as the caller says.
        unsafe { submitter.register_buf_ring_with_flags(address, 1, group, IOU_PBUF_RING_INC) }
    }

    /// Gives the whole buffer to the kernel. No FETCH command may be out for this group.
    pub(super) fn give(&mut self) {
        let ring = self.ring.as_ptr().as_ptr();
        // SAFETY: the entry's length is in the page, aligned to 4; the kernel writes it, hence volatile.
        let left = unsafe { ring.wrapping_add(LEN).cast::<u32>().read_volatile() };
        // SAFETY: the tail is in the page, aligned to 2, and only accessed through atomics.
        let tail = unsafe { AtomicU16::from_ptr(ring.wrapping_add(TAIL).cast()) };
        let address = self.buffer.as_ptr().as_ptr() as u64;
        // SAFETY: the entry's address is in the page, aligned to 8; no command reads it now.
        unsafe { ring.wrapping_add(ADDR).cast::<u64>().write_volatile(address) };
        // SAFETY: as for the load of the length.
        unsafe { ring.wrapping_add(LEN).cast::<u32>().write_volatile(BUFFER_BYTES) };
        // The kernel zeroes the length of an entry that it has used up, and moves on to the next. One that it
        // has not used up is still its next one: moving the tail would give it the entry twice.
        if left == 0 {
            tail.store(tail.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        }
        self.at = 0;
    }

    /// The tags of a completion that brought `bytes`; `None` if the kernel claims what the buffer cannot hold.
    pub(super) fn take(&mut self, bytes: u32) -> Option<FetchedTags> {
        if bytes > BUFFER_BYTES - self.at || !bytes.is_multiple_of(2) {
            return None;
        }
        let next = self
            .buffer
            .as_ptr()
            .as_ptr()
            .wrapping_add(self.at as usize)
            .cast::<u16>()
            .cast_const();
        self.at += bytes;
        Some(FetchedTags {
            next,
            left: bytes / 2,
        })
    }
}

/// The tags of one completion. Invalid once the buffer is given to the kernel again.
#[derive(Clone)]
pub(super) struct FetchedTags {
    next: *const u16,
    left: u32,
}

impl Iterator for FetchedTags {
    type Item = u16;

    #[inline]
    fn next(&mut self) -> Option<u16> {
        self.left = self.left.checked_sub(1)?;
        // SAFETY: `take` found all tags inside the buffer, whose mapping is aligned and initialised; the
        // kernel wrote them before the completion and writes others only behind them.
        let tag = unsafe { self.next.read_volatile() };
        self.next = self.next.wrapping_add(1);
        Some(tag)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_completion_cannot_claim_more_than_the_buffer() {
        let io = io_uring::IoUring::new(4).unwrap();
        let mut buffer = FetchBuffer::new().unwrap();
        // SAFETY: nothing is submitted to this ring.
        unsafe { buffer.register(&io.submitter(), 0).unwrap() };
        buffer.give();
        assert_eq!(buffer.take(6).unwrap().collect::<Vec<_>>(), [0, 0, 0]);
        assert!(buffer.take(3).is_none());
        assert!(buffer.take(BUFFER_BYTES - 4).is_none());
        assert_eq!(buffer.take(BUFFER_BYTES - 6).unwrap().count(), 8189);
        assert!(buffer.take(2).is_none());
    }

    #[test]
    fn the_kernel_appends_to_a_buffer_and_gets_it_back_whole() {
        use io_uring::{opcode, types};
        let mut buffer = FetchBuffer::new().unwrap();
        let mut io = io_uring::IoUring::new(4).unwrap();
        // SAFETY: the ring is dropped first.
        unsafe { buffer.register(&io.submitter(), 5).unwrap() };
        buffer.give();
        // An unused buffer is not given twice.
        buffer.give();
        let (reader, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut receive = |len: usize, io: &mut io_uring::IoUring| {
            writer.write_all(&vec![1; len]).unwrap();
            let entry = opcode::Recv::new(types::Fd(reader.as_raw_fd()), std::ptr::null_mut(), 0)
                .buf_group(5)
                .build()
                .flags(io_uring::squeue::Flags::BUFFER_SELECT);
            // SAFETY: the entry names no memory; the buffer that the kernel selects lives in `buffer`.
            unsafe { io.submission().push(&entry).unwrap() };
            io.submit_and_wait(1).unwrap();
            io.completion().next().unwrap().result()
        };
        assert_eq!(receive(4, &mut io), 4);
        assert_eq!(buffer.take(4).unwrap().collect::<Vec<_>>(), [0x0101, 0x0101]);
        let rest = BUFFER_BYTES as usize - 4;
        assert_eq!(receive(rest, &mut io), i32::try_from(rest).unwrap());
        assert_eq!(receive(2, &mut io), -libc::ENOBUFS);
        buffer.give();
        assert_eq!(receive(2, &mut io), 4);
        assert_eq!(buffer.take(4).unwrap().collect::<Vec<_>>(), [0x0101, 0x0101]);
    }
}
