//! The backings: a file, a block device, memory, or nothing.
//!
//! A [`Spec`] names a backing. [`Backend::open`] opens it, refuses in one line what cannot serve, and finds out what a
//! device on it may promise ([`Facts`]) and what executes its operations ([`Access`]).

mod block;
mod error;
mod facts;
mod file;
pub mod fingerprint;
mod memory;
mod null;
mod params;
mod spec;
pub(crate) mod spec_text;
mod storage;
mod sysfs;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use ublk_bpf_abi::SECTOR_SIZE;

use crate::sys;

pub use error::BackendError;
pub use facts::{DiscardBy, DiscardFacts, Facts, RingOps, WriteZeroes};
pub use spec::{NullReads, Size, Spec, SpecError, parse_size};
pub use storage::StorageStack;

/// What a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingKind {
    /// A regular file.
    File,
    /// A block device.
    Block,
    /// Memory.
    Memory,
    /// Nothing.
    Null(NullReads),
}

impl BackingKind {
    /// The name that commands and tables print.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Block => "block",
            Self::Memory => "memory",
            Self::Null(_) => "null",
        }
    }
}

/// What executes a request's operations on a backend.
///
/// Every backend of today that keeps bytes is a file, which the queue's ring reads and writes. One that no ring can reach
/// would be a variant of its own.
#[derive(Clone, Copy, Debug)]
pub enum Access<'a> {
    /// The ring executes them all, on this file.
    Ring {
        /// The file, opened for direct I/O.
        file: &'a File,
        /// How it discards and zeroes.
        ops: RingOps,
    },
    /// There are none: no bytes are kept.
    Nothing(NullReads),
}

/// Where a backend keeps its bytes.
#[derive(Debug)]
enum Store {
    File(File),
    Block(File),
    Memory(File),
    Null(NullReads),
}

/// An open backend. A file is locked, a block device held exclusively, for as long as this lives.
#[derive(Debug)]
pub struct Backend {
    spec: Spec,
    facts: Facts,
    store: Store,
}

impl Backend {
    /// Opens what `spec` names, read-only if `read_only`; a backend that cannot be written is opened
    /// read-only in any case ([`Facts::read_only`]).
    ///
    /// # Errors
    /// One line for everything that cannot serve: missing, a directory, in use, empty, of a size that is not
    /// whole blocks, on a file system without direct I/O.
    pub fn open(spec: &Spec, read_only: bool) -> Result<Self, BackendError> {
        let (facts, store) = match spec {
            Spec::Path(path) => {
                if file::is_block_device(path)? {
                    let (facts, file) = block::open(path, read_only)?;
                    (facts, Store::Block(file))
                } else {
                    let (facts, file) = file::open(path, read_only)?;
                    (facts, Store::File(file))
                }
            }
            Spec::Memory(bytes) => {
                let (facts, file) = memory::open(*bytes, read_only)?;
                (facts, Store::Memory(file))
            }
            Spec::Null { bytes, reads } => (null::facts(*bytes, read_only), Store::Null(*reads)),
        };
        let backend = Self {
            spec: spec.clone(),
            facts,
            store,
        };
        if let Some(file) = backend.file() {
            // A read need not write to the backend's inode. Without the right to ask for that, it does.
            let _ = sys::file::keep_access_time(file);
        }
        backend.refuse_loop_device()?;
        Ok(backend)
    }

    /// A loop device does not lock the file that it is attached to.
    fn refuse_loop_device(&self) -> Result<(), BackendError> {
        let writes = self.storage().filter(|_| !self.facts.read_only);
        match writes.and_then(|storage| storage.loop_device_above()) {
            Some(device) => Err(BackendError::InUse {
                path: self.spec.to_string().into(),
                by: format!("(it backs /dev/{device})"),
            }),
            None => Ok(()),
        }
    }

    /// What it was opened from.
    #[must_use]
    pub const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> BackingKind {
        match self.store {
            Store::File(_) => BackingKind::File,
            Store::Block(_) => BackingKind::Block,
            Store::Memory(_) => BackingKind::Memory,
            Store::Null(reads) => BackingKind::Null(reads),
        }
    }

    /// What executes operations on it.
    #[must_use]
    pub fn access(&self) -> Access<'_> {
        match &self.store {
            Store::File(file) | Store::Block(file) | Store::Memory(file) => Access::Ring {
                file,
                ops: self.facts.ring_ops(),
            },
            Store::Null(reads) => Access::Nothing(*reads),
        }
    }

    /// Identifies the file or device itself, whatever its path leads to later. Valid until the machine reboots.
    #[must_use]
    pub fn identity(&self) -> String {
        let found = self.file().and_then(|file| file.metadata().ok());
        match (self.kind(), found) {
            (BackingKind::File, Some(file)) => storage::file_name(file.dev(), file.ino()),
            (BackingKind::Block, Some(file)) => storage::block_name(file.rdev()),
            (kind, _) => kind.name().to_owned(),
        }
    }

    /// What its bytes are on; `None` for memory and nothing, which no other backend can be on.
    #[must_use]
    pub fn storage(&self) -> Option<StorageStack> {
        match &self.store {
            Store::File(file) | Store::Block(file) => {
                StorageStack::of(&file.metadata().ok()?, self.facts.read_only)
            }
            Store::Memory(_) | Store::Null(_) => None,
        }
    }

    /// Makes `block` bytes, a power of two from 512 to 4096, the unit of addresses and lengths.
    ///
    /// # Errors
    /// If direct I/O demands a larger one, or its size is not whole blocks.
    pub fn with_logical_block(mut self, block: u32) -> Result<Self, BackendError> {
        let path = || self.spec.to_string().into();
        let (bytes, demanded) = (self.facts.sectors * SECTOR_SIZE, self.facts.logical_block);
        if block < demanded {
            return Err(BackendError::BlockTooSmall {
                path: path(),
                wanted: block,
                demanded,
            });
        }
        if !bytes.is_multiple_of(block.into()) {
            return Err(BackendError::Unaligned {
                path: path(),
                bytes,
                block,
            });
        }
        self.facts.set_logical_block(block);
        Ok(self)
    }

    /// Lowers what a device on it promises to what `other`, which serves some of its requests and has no larger logical
    /// block, can keep.
    pub fn suit(&mut self, other: &Facts) {
        debug_assert!(other.logical_block <= self.facts.logical_block);
        self.facts.memory_align = self.facts.memory_align.max(other.memory_align);
        self.facts.stable_writes |= other.stable_writes;
    }

    /// What a device on it may promise.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The open file; a null backend has none.
    #[must_use]
    pub const fn file(&self) -> Option<&File> {
        match &self.store {
            Store::File(file) | Store::Block(file) | Store::Memory(file) => Some(file),
            Store::Null(_) => None,
        }
    }

    /// The open file if it is a regular one, which others may truncate.
    #[must_use]
    pub const fn regular_file(&self) -> Option<&File> {
        match &self.store {
            Store::File(file) => Some(file),
            Store::Block(_) | Store::Memory(_) | Store::Null(_) => None,
        }
    }

    /// Calls `mark` with each range of bytes that may read as something else than zeroes, in ascending
    /// order and within the capacity.
    ///
    /// # Errors
    /// If the file system cannot say where data is and where holes are.
    pub fn for_each_data_range(&self, mut mark: impl FnMut(Range<u64>)) -> io::Result<()> {
        let bytes = self.facts.sectors * SECTOR_SIZE;
        match &self.store {
            Store::File(file) | Store::Memory(file) => file::for_each_data_range(file, bytes, mark),
            Store::Null(NullReads::Zeroes) => Ok(()),
            Store::Block(_) | Store::Null(NullReads::Unfilled) => {
                mark(0..bytes);
                Ok(())
            }
        }
    }
}
