//! Direct I/O of the first block of a device.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::aligned::Aligned;

/// Bytes of a block: a region of a cache block of 64 KiB.
pub const BLOCK: usize = 4096;

/// A device, for direct I/O.
pub fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options
        .open(path)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

/// The first 4 KiB of a device.
pub fn first_block(path: &Path) -> [u8; BLOCK] {
    let mut memory = Aligned::new(BLOCK);
    let block = memory.first(BLOCK);
    open(path).read_exact_at(block, 0).expect("a read");
    (&*block).try_into().expect("a block")
}

/// Writes them.
pub fn write_first_block(path: &Path, content: &[u8; BLOCK]) {
    let mut memory = Aligned::new(BLOCK);
    let block = memory.first(BLOCK);
    block.copy_from_slice(content);
    open(path).write_all_at(block, 0).expect("a write");
}
