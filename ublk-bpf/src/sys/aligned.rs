//! Memory that is aligned for direct I/O on every device.

use std::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The largest logical block size of ublk and of backings, and so the strictest alignment.
pub(crate) const PAGE: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Whole pages of 4 KiB, aligned to 4 KiB; zeroed at first.
#[derive(Clone)]
pub(crate) struct Aligned(Vec<Page>);

impl Aligned {
    /// At least `bytes`, rounded up to whole pages.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(vec![Page([0; PAGE]); bytes.div_ceil(PAGE)])
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_whole_pages() {
        let memory = Aligned::new(4097);
        assert_eq!((memory.len(), memory.as_ptr().addr() % PAGE), (8192, 0));
    }
}
