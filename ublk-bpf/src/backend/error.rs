//! What can be wrong with a backend.

use std::io;
use std::path::PathBuf;

use crate::path_text::ShowPath as _;

/// Why a backend cannot serve. One line each, which begins with its name: what was found, what to do. Whether it was to be
/// the backing or a cache is for the caller to say.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Nothing there.
    #[error("{}: does not exist: create it first, for example with `truncate -s 1G {}`", .0.shown(), .0.shown())]
    Missing(PathBuf),
    /// A directory, a pipe, a character device or the like.
    #[error("{}: is a {what}: give a regular file or a block device", path.shown())]
    WrongKind {
        /// What was named.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Another program holds it.
    #[error("{}: in use {by}: unmount, detach or stop that first", path.shown())]
    InUse {
        /// What was named.
        path: PathBuf,
        /// By whom, as far as that is known.
        by: String,
    },
    /// The caller may not open it.
    #[error("{}: permission denied: run as root or as its owner", .0.shown())]
    Denied(PathBuf),
    /// An empty file, or a device without a medium.
    #[error("{}: is empty: give it a size, for example with `truncate -s 1G {}`", .0.shown(), .0.shown())]
    Empty(PathBuf),
    /// A size that is not whole blocks.
    #[error(
        "{}: {bytes} bytes is not a multiple of its block of {block} bytes: use `truncate -s {} {}`",
        path.shown(), bytes.next_multiple_of(u64::from(*block)), path.shown()
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
         or tmpfs", .0.shown()
    )]
    NoDirectIo(PathBuf),
    /// Blocks larger than ublk can have.
    #[error("{}: its block of {block} bytes is larger than the 4096 that ublk can serve", path.shown())]
    BlockTooLarge {
        /// What was named.
        path: PathBuf,
        /// Its block.
        block: u32,
    },
    /// The device asks for larger blocks than were wanted.
    #[error(
        "{}: its block of {demanded} bytes is larger than the {wanted} that --logical-block asks for: give {demanded} or more",
        path.shown()
    )]
    BlockTooSmall {
        /// What was named.
        path: PathBuf,
        /// What was asked for.
        wanted: u32,
        /// What direct I/O on it demands.
        demanded: u32,
    },
    /// A disk whose zones are written in order only.
    #[error(
        "{}: is a zoned disk ({model}), whose zones take writes only in sequence: give one that is not, or put a \
         file system made for zones on it and a file there",
        path.shown()
    )]
    Zoned {
        /// What was named.
        path: PathBuf,
        /// `host-managed` or `host-aware`, as the kernel says it.
        model: String,
    },
    /// The file's attributes forbid writing, even to root.
    #[error(
        "{}: is {attribute} (chattr +{letter}): take that away with `chattr -{letter}`{}",
        path.shown(), if *letter == 'i' { ", or serve it by --read-only" } else { "" }
    )]
    Protected {
        /// What was named.
        path: PathBuf,
        /// In words.
        attribute: &'static str,
        /// The letter that `chattr` knows it by.
        letter: char,
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
