//! Memory mappings that unmap themselves, and the descriptor array of a queue.

use std::ffi::c_void;
use std::io;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::process::page_size;
use super::uapi::{IoDesc, UBLK_MAX_QUEUE_DEPTH, UBLKSRV_CMD_BUF_OFFSET};

/// The accesses that a mapping permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapAccess {
    /// Loads only.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// A mapping, unmapped when dropped.
///
/// The kernel and other processes may change its memory at any time, so it is never lent as a slice: users make volatile
/// or atomic accesses through [`Mmap::as_ptr`].
#[derive(Debug)]
pub struct Mmap {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; `Mmap` itself makes no access.
unsafe impl Send for Mmap {}
// SAFETY: as above; `&Mmap` gives out a raw pointer only, whose users justify their accesses.
unsafe impl Sync for Mmap {}

impl Mmap {
    /// Maps `len` bytes of `file` from `offset`, shared. `offset` is a multiple of the page size.
    pub fn of(file: BorrowedFd<'_>, offset: u64, len: usize, access: MapAccess) -> io::Result<Self> {
        let protection = match access {
            MapAccess::Read => ProtFlags::READ,
            MapAccess::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: the kernel chooses the address (no MAP_FIXED), so no existing memory is touched.
        let start = unsafe { mmap(null_mut(), len, protection, MapFlags::SHARED, file, offset) }?;
        Ok(Self::at(start, len))
    }

    /// Maps `len` bytes of zeroed memory, private to this process and allocated at once.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: as in `of`.
        let start = unsafe { mmap_anonymous(null_mut(), len, protection, flags) }?;
        Ok(Self::at(start, len))
    }

    fn at(start: *mut c_void, len: usize) -> Self {
        let start = NonNull::new(start.cast()).expect("mmap without MAP_FIXED never maps page zero");
        Self { start, len }
    }

    /// Its first byte; valid for [`Mmap::len`] bytes until this is dropped, aligned to a page.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length in bytes; never zero: mmap(2) refuses that.
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mmap {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are what mmap returned; `as_ptr`'s users hold no pointer past this.
        let result = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(result, Ok(()), "munmap of a whole mapping cannot fail");
    }
}

/// The descriptors of one queue's tags, which the driver writes and the server reads.
///
/// A tag's descriptor is valid only between the tag's arrival and its commit. While this mapping exists, DEL_DEV
/// waits.
#[derive(Debug)]
pub struct Descriptors {
    map: Mmap,
    depth: u16,
    stride: usize,
}

impl Descriptors {
    /// Maps the descriptors of queue `queue` from `/dev/ublkcN`. `depth` and `stride` (bytes from one descriptor to
    /// the next) come from the device's info.
    ///
    /// # Errors
    /// If `stride` is not that of a descriptor, or mmap(2) fails.
    pub fn map(char_device: BorrowedFd<'_>, queue: u16, depth: u16, stride: u16) -> io::Result<Self> {
        let stride = usize::from(stride);
        if stride < size_of::<IoDesc>() || !stride.is_multiple_of(align_of::<IoDesc>()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the driver's descriptors have {stride} bytes; at least 24 and a multiple of 8 were expected"
                ),
            ));
        }
        let bytes = |depth: u16| (usize::from(depth) * stride).next_multiple_of(page_size());
        // Queues are spaced for the largest depth, not for this device's.
        let offset = UBLKSRV_CMD_BUF_OFFSET + u64::from(queue) * bytes(UBLK_MAX_QUEUE_DEPTH) as u64;
        let map = Mmap::of(char_device, offset, bytes(depth), MapAccess::Read)?;
        Ok(Self { map, depth, stride })
    }

    /// Reads a tag's descriptor; `None` if the queue has no such tag.
    #[inline]
    pub fn read(&self, tag: u16) -> Option<IoDesc> {
        if tag >= self.depth {
            return None;
        }
        let at = self
            .map
            .as_ptr()
            .as_ptr()
            .wrapping_add(usize::from(tag) * self.stride);
        // Member by member: a volatile load of the whole goes through the stack.
        let u32_at = |offset| {
            // SAFETY: `tag < depth` and the mapping has `depth * stride` bytes, so a whole descriptor is at `at`. The
            // start is page aligned and the stride a multiple of 8, so it is aligned. Any bytes are a value. Volatile
            // because the driver writes it, though not while the server holds the tag; a torn value is a value too.
            unsafe { at.wrapping_add(offset).cast::<u32>().read_volatile() }
        };
        let u64_at = |offset| {
            // SAFETY: as above.
            unsafe { at.wrapping_add(offset).cast::<u64>().read_volatile() }
        };
        Some(IoDesc {
            op_flags: u32_at(offset_of!(IoDesc, op_flags)),
            nr_sectors: u32_at(offset_of!(IoDesc, nr_sectors)),
            start_sector: u64_at(offset_of!(IoDesc, start_sector)),
            addr: u64_at(offset_of!(IoDesc, addr)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn descriptors_are_found_by_tag_and_stride() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let desc = IoDesc {
            op_flags: 1,
            nr_sectors: 8,
            start_sector: 77,
            addr: 0,
        };
        // Queue 1 of stride 32 starts after 4096 descriptors of queue 0; tag 2 is the third there.
        use std::io::{Seek, SeekFrom};
        file.seek(SeekFrom::Start(4096 * 32 + 2 * 32)).unwrap();
        file.write_all(desc.as_bytes()).unwrap();
        let descriptors = Descriptors::map(file.as_fd(), 1, 3, 32).unwrap();
        assert_eq!(descriptors.read(2), Some(desc));
        assert_eq!(descriptors.read(0), Some(IoDesc::default()));
        assert_eq!(descriptors.read(3), None);
    }

    #[test]
    fn nonsense_strides_are_refused() {
        let file = tempfile::tempfile().unwrap();
        for stride in [0, 16, 25] {
            Descriptors::map(file.as_fd(), 0, 3, stride).unwrap_err();
        }
    }

    #[test]
    fn anonymous_memory_is_zeroed_and_writable() {
        let map = Mmap::anonymous(8192).unwrap();
        let last = map.as_ptr().as_ptr().wrapping_add(map.len() - 1);
        // SAFETY: within the mapping, which is ours alone.
        assert_eq!(unsafe { last.read_volatile() }, 0);
        // SAFETY: as above; it is mapped for writing.
        unsafe { last.write_volatile(7) };
    }
}
