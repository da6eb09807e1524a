//! The memory of one queue that the kernel reads and writes.

use std::io;

use super::fetch::FetchBuffer;
use crate::sys::mmap::Mmap;

/// Buffers for tags: one for each FETCH command.
pub(super) const FETCH_BUFFERS: usize = 2;

/// Zeroes for requests whose pages are not registered.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// All of it. It must outlive the ring.
pub(super) struct Memory {
    pub(super) fetches: [FetchBuffer; FETCH_BUFFERS],
    pub(super) staging: StagingMemory,
}

impl Memory {
    /// Maps `count` staging buffers of `bytes`, and what the FETCH commands need.
    pub(super) fn map(count: u16, bytes: u32) -> io::Result<Self> {
        Ok(Self {
            fetches: [FetchBuffer::new()?, FetchBuffer::new()?],
            staging: StagingMemory::map(count, bytes)?,
        })
    }

    /// Some zeroes.
    #[expect(clippy::unused_self, reason = "they are found with the rest of the memory")]
    pub(super) fn zeroes(&self) -> &'static [u8] {
        &ZEROES
    }
}

/// The staging buffers, one behind the other, each aligned to its size or a page.
pub(super) struct StagingMemory {
    map: Mmap,
    bytes: u32,
}

impl StagingMemory {
    pub(super) fn map(count: u16, bytes: u32) -> io::Result<Self> {
        Ok(Self {
            map: Mmap::anonymous(usize::from(count) * bytes as usize)?,
            bytes,
        })
    }

    /// The address of a byte of a buffer.
    ///
    /// # Panics
    /// If there is no such byte.
    #[inline]
    pub(super) fn address(&self, buffer: u16, skip: u32) -> *mut u8 {
        let at = usize::from(buffer) * self.bytes as usize + skip as usize;
        assert!(
            skip < self.bytes && at < self.map.len(),
            "byte {skip} of staging buffer {buffer}"
        );
        self.map.as_ptr().as_ptr().wrapping_add(at)
    }

    /// Whether the first `len` bytes of two buffers are equal.
    ///
    /// # Panics
    /// If one of them has fewer, or is not there.
    ///
    /// # Safety
    /// The kernel must not write to either of them during the call.
    pub(super) unsafe fn is_same(&self, one: u16, other: u16, len: u32) -> bool {
        assert!(
            len <= self.bytes,
            "{len} bytes of staging buffers of {}",
            self.bytes
        );
        // SAFETY: `address` makes sure that the buffer is there, and it has `bytes` bytes; they are initialised, for the
        // map is anonymous, and nothing writes to them: the caller ensures it for the kernel, and `&self` for this process.
        let bytes = |buffer| unsafe { std::slice::from_raw_parts(self.address(buffer, 0), len as usize) };
        bytes(one) == bytes(other)
    }

    /// Bytes of a buffer from `skip` on.
    pub(super) fn room(&self, skip: u32) -> u32 {
        self.bytes.saturating_sub(skip)
    }
}
