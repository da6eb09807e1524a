//! What can be wrong with a target.

use std::io;
use std::path::PathBuf;

/// Why a target cannot serve. One line each, which begins with its name: what was found, what to do. The caller says
/// what the target was to be, such as "backing".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing there.
    #[error("{}: does not exist: create it first, for example with `truncate -s 1G {}`", .0.display(), .0.display())]
    Missing(PathBuf),
    /// A directory, a pipe, a character device or the like.
    #[error("{}: is a {what}: give a regular file or a block device", path.display())]
    WrongKind {
        /// What was named.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Someone else holds it.
    #[error("{}: in use {by}: unmount, detach or stop that first", path.display())]
    InUse {
        /// What was named.
        path: PathBuf,
        /// By whom, as far as that is known.
        by: String,
    },
    /// The caller may not open it.
    #[error("{}: permission denied: run as root or as its owner", .0.display())]
    Denied(PathBuf),
    /// An empty file, or a device without a medium.
    #[error("{}: is empty: give it a size, for example with `truncate -s 1G {}`", .0.display(), .0.display())]
    Empty(PathBuf),
    /// A size that is not whole blocks.
    #[error(
        "{}: {bytes} bytes is not a multiple of its block of {block} bytes: use `truncate -s {} {}`",
        path.display(), bytes.next_multiple_of(u64::from(*block)), path.display()
    )]
    Unaligned {
        /// What was named.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The block that the size must be a multiple of.
        block: u32,
    },
    /// No direct I/O.
    #[error(
        "{}: its file system has no direct I/O (O_DIRECT): put it on one that has, such as ext4, xfs \
         or tmpfs", .0.display()
    )]
    NoDirectIo(PathBuf),
    /// Blocks larger than ublk can have.
    #[error("{}: its block of {block} bytes is larger than the 4096 that ublk can serve", path.display())]
    BlockTooLarge {
        /// What was named.
        path: PathBuf,
        /// Its block.
        block: u32,
    },
    /// Anything else that the system refused.
    #[error("{name}: cannot {what}: {source}")]
    System {
        /// What was named.
        name: String,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
