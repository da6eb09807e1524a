//! The memory of one queue that the kernel reads and writes.

use std::io;

use io_uring::Submitter;
use io_uring::types::Timespec;

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
    /// The buffers of fills.
    pub(super) fills: StagingMemory,
    /// How long each tag's request is kept.
    delays: Box<[Timespec]>,
}

impl Memory {
    /// Maps the staging buffers and those of fills, each a number and the bytes of one, and what `depth` tags and the FETCH
    /// commands need.
    pub(super) fn map(depth: u16, staging: (u16, u32), fills: (u16, u32)) -> io::Result<Self> {
        Ok(Self {
            fetches: [FetchBuffer::new()?, FetchBuffer::new()?],
            staging: StagingMemory::map(staging.0, staging.1)?,
            fills: StagingMemory::map(fills.0, fills.1)?,
            delays: vec![Timespec::new(); usize::from(depth)].into_boxed_slice(),
        })
    }

    /// Where the kernel finds how long the request of this tag is kept: so many microseconds.
    ///
    /// # Panics
    /// If there is no such tag.
    pub(super) fn delay(&mut self, tag: u16, micros: u32) -> &Timespec {
        let delay = &mut self.delays[usize::from(tag)];
        *delay = std::time::Duration::from_micros(micros.into()).into();
        delay
    }

    /// Registers the buffers as the two of the ring's table from `first` on. Without, each operation pins its pages.
    ///
    /// # Safety
    /// `self` must outlive the ring.
    pub(super) unsafe fn register(&mut self, submitter: &Submitter<'_>, first: u16) {
        for (memory, index) in [&mut self.staging, &mut self.fills].into_iter().zip(first..) {
            // SAFETY: as the caller says.
            let registered = unsafe { memory.register(submitter, index) };
            if let Err(error) = registered {
                tracing::debug!("buffers are not registered, so each operation pins their pages: {error}");
            }
        }
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
    /// Its place in the ring's table of buffers.
    index: Option<u16>,
}

/// A byte of a buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) address: *mut u8,
    /// The buffer's place in the ring's table, if it has one.
    pub(super) index: Option<u16>,
}

impl Place {
    /// A place that is only read from, in no buffer of the ring's table.
    pub(super) const fn unregistered(address: *const u8) -> Self {
        Self {
            address: address.cast_mut(),
            index: None,
        }
    }
}

impl StagingMemory {
    pub(super) fn map(count: u16, bytes: u32) -> io::Result<Self> {
        Ok(Self {
            map: Mmap::anonymous((usize::from(count) * bytes as usize).max(1))?,
            bytes,
            index: None,
        })
    }

    /// Registers all buffers as one of the ring's table.
    ///
    /// # Safety
    /// `self` must outlive the ring.
    unsafe fn register(&mut self, submitter: &Submitter<'_>, index: u16) -> io::Result<()> {
        let all = libc::iovec {
            iov_base: self.map.as_ptr().as_ptr().cast(),
            iov_len: self.map.len(),
        };
        // SAFETY: the memory is mapped, and lives long enough, as the caller says.
        unsafe { submitter.register_buffers_update(index.into(), &[all], None) }?;
        self.index = Some(index);
        Ok(())
    }

    /// A byte of a buffer, for an operation of the ring.
    ///
    /// # Panics
    /// If there is no such byte.
    #[inline]
    pub(super) fn place(&self, buffer: u16, skip: u32) -> Place {
        Place {
            address: self.address(buffer, skip),
            index: self.index,
        }
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

    /// The address of `len` bytes from one of a buffer on, which may go on in the buffers behind it.
    ///
    /// # Panics
    /// If there are fewer.
    pub(super) fn range(&self, buffer: u16, skip: u32, len: u32) -> *mut u8 {
        let at = usize::from(buffer) * self.bytes as usize + skip as usize;
        assert!(
            at + len as usize <= self.map.len(),
            "{len} bytes from byte {skip} of staging buffer {buffer}"
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
