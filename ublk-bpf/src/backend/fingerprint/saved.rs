//! An identity on the disk.

use ublk_bpf_abi::SECTOR_SIZE;
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::name::Name;
use super::{BlockIdentity, Counters, FileIdentity, Identity, Stamp, VolatileIdentity};

/// An [`Identity`] as a cache device keeps it: 256 bytes, little endian. What a kind does not have is zero.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct SavedIdentity {
    pub(super) kind: u8,
    name_len: u8,
    reserved: [u8; 6],
    pub(super) bytes: U64,
    file_system: [u8; 16],
    inode: U64,
    modified: SavedStamp,
    changed: SavedStamp,
    boot: [u8; 16],
    sectors_written: U64,
    sectors_discarded: U64,
    samples: U32,
    nonce: [u8; 16],
    name: [u8; Name::LEN],
    disk_sequence: U64,
    beside_written: U64,
    beside_discarded: U64,
    /// What shows every change; older programs wrote [`NOTHING`].
    pub(super) evidence: u8,
    rest: [u8; 11],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SavedStamp {
    seconds: I64,
    nanoseconds: I64,
}

/// What shows every change.
const NOTHING: u8 = 0;
const COUNTERS: u8 = 1;
const TIME_STAMPS: u8 = 2;

/// The kinds' numbers on the disk.
const FILE: u8 = 1;
const BLOCK: u8 = 2;
const MEMORY: u8 = 3;
const NULL: u8 = 4;

impl SavedIdentity {
    /// The identity as it is stored.
    pub(crate) fn new(identity: &Identity) -> Self {
        let mut saved = Self::new_zeroed();
        saved.bytes = identity.bytes().into();
        match identity {
            Identity::File(file) => {
                saved.kind = FILE;
                saved.put_file(file);
            }
            Identity::Block(block) => {
                saved.kind = BLOCK;
                let name = block.name.0.as_bytes();
                saved.name[..name.len()].copy_from_slice(name);
                saved.name_len = u8::try_from(name.len()).unwrap_or(u8::MAX);
                match &block.file {
                    Some(file) => saved.put_file(file),
                    None if block.counts_all => saved.evidence = COUNTERS,
                    None => saved.evidence = NOTHING,
                }
                saved.boot = block.boot;
                saved.disk_sequence = block.disk_sequence.into();
                saved.sectors_written = block.counted.written.into();
                saved.sectors_discarded = block.counted.discarded.into();
                saved.beside_written = block.beside.written.into();
                saved.beside_discarded = block.beside.discarded.into();
                saved.samples = block.samples.into();
            }
            Identity::Volatile(volatile) => {
                saved.kind = if volatile.memory { MEMORY } else { NULL };
                saved.nonce = volatile.nonce;
            }
        }
        saved
    }

    /// A file, or a loop device's.
    fn put_file(&mut self, file: &FileIdentity) {
        self.inode = file.inode.into();
        self.file_system = file.file_system;
        self.modified = file.modified.into();
        self.changed = file.changed.into();
        self.boot = file.boot;
        self.evidence = if file.exact { TIME_STAMPS } else { NOTHING };
    }

    fn file(&self, bytes: u64) -> FileIdentity {
        FileIdentity {
            bytes,
            inode: self.inode.get(),
            file_system: self.file_system,
            modified: self.modified.into(),
            changed: self.changed.into(),
            boot: self.boot,
            exact: self.evidence == TIME_STAMPS,
        }
    }

    /// The stored identity; `None` if these bytes are none.
    pub(crate) fn parse(&self) -> Option<Identity> {
        let bytes = self.bytes.get();
        let identity = match self.kind {
            FILE => Identity::File(self.file(bytes)),
            BLOCK => Identity::Block(BlockIdentity {
                bytes,
                name: Name::parse(self.name.get(..self.name_len.into())?)?,
                boot: self.boot,
                disk_sequence: self.disk_sequence.get(),
                counted: Counters {
                    written: self.sectors_written.get(),
                    discarded: self.sectors_discarded.get(),
                },
                beside: Counters {
                    written: self.beside_written.get(),
                    discarded: self.beside_discarded.get(),
                },
                counts_all: self.evidence == COUNTERS,
                file: (self.evidence == TIME_STAMPS).then(|| self.file(0)),
                samples: self.samples.get(),
            }),
            MEMORY | NULL => Identity::Volatile(VolatileIdentity {
                bytes,
                memory: self.kind == MEMORY,
                nonce: self.nonce,
            }),
            _ => return None,
        };
        let sized = bytes > 0 && bytes.is_multiple_of(SECTOR_SIZE) && i64::try_from(bytes).is_ok();
        // If it is the same when written again, every byte of it was understood.
        (sized && Self::new(&identity).as_bytes() == self.as_bytes()).then_some(identity)
    }
}

impl From<Stamp> for SavedStamp {
    fn from(stamp: Stamp) -> Self {
        Self {
            seconds: stamp.seconds.into(),
            nanoseconds: stamp.nanoseconds.into(),
        }
    }
}

impl From<SavedStamp> for Stamp {
    fn from(saved: SavedStamp) -> Self {
        Self {
            seconds: saved.seconds.get(),
            nanoseconds: saved.nanoseconds.get(),
        }
    }
}
