//! Memory that direct I/O can write from.

use std::fmt;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::log::LOG_PAGE;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; LOG_PAGE]);

/// Pages of the log on their way to the cache device.
#[derive(Default)]
pub(super) struct Pages(Box<[Page]>);

impl Pages {
    /// So many bytes, a multiple of a page.
    pub(super) fn new(bytes: usize) -> Self {
        Self(vec![Page::new_zeroed(); bytes / LOG_PAGE].into_boxed_slice())
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }

    /// Where they are, as long as these pages exist.
    pub(super) fn address(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages", self.0.len())
    }
}
