//! A device that grows with its backing while it is served.

use std::io::{self, Seek as _, SeekFrom};
use std::sync::atomic::Ordering;

use ublk_bpf_abi::SECTOR_SIZE;

use super::running::RunningDevice;
use crate::backend::{BackingKind, Size};
use crate::control::{ControlError, Features, Missing};
use crate::policy::Watch;
use crate::queue::Written;
use crate::registry::{Record, RecordError};

/// Why a device was not resized. One line: what was wanted, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResizeError {
    #[error(
        "{disk} has a cache, whose index covers {size} and cannot grow: stop the device and run it again on the larger \
         backing, with --cache-reset"
    )]
    Cached { disk: String, size: Size },
    #[error(
        "{disk} is on {backing}: only a device on a block device or a file can grow while it is served; restart this one"
    )]
    Backing { disk: String, backing: String },
    #[error(
        "the backing {backing} of {disk} was truncated by another program meanwhile: what was behind its new end is lost"
    )]
    Truncated { disk: String, backing: String },
    #[error("the backing of {disk} does not say how large it is: {source}")]
    Unknown { disk: String, source: io::Error },
    #[error("{disk} has blocks of {block} bytes, and {wanted} bytes are not whole blocks: give a multiple")]
    Unaligned { disk: String, block: u32, wanted: u64 },
    #[error(
        "{disk} has {size} and cannot shrink to {wanted}: what is behind the new end would be lost; make another device"
    )]
    Shrinks { disk: String, size: Size, wanted: Size },
    #[error(
        "{disk} cannot have {wanted}: its backing {backing} has {found}: make that larger first, or give no size"
    )]
    TooSmall {
        disk: String,
        backing: String,
        wanted: Size,
        found: Size,
    },
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl RunningDevice<'_> {
    /// Gives the device so many bytes, or as many as its backing has now. `files` watches a backing that is a file. Returns what
    /// to tell the user.
    pub(super) fn resize(&self, bytes: Option<u64>, files: &Watch) -> Result<String, ResizeError> {
        let disk = self.info.id.disk_name();
        let before = self.bytes();
        let wanted = self.new_size(bytes)?;
        if wanted == before {
            return Ok(format!("{disk} has {} already", Size(before)));
        }
        self.control.features()?.require(Features::UPDATE_SIZE)?;
        // Before any request can reach there.
        if let Some(file) = self.backend.regular_file()
            && !files.grow(file, before, wanted)
        {
            let backing = self.backend.spec().to_string();
            return Err(ResizeError::Truncated { disk, backing });
        }
        // What others wrote behind the former end is data.
        if let Some(map) = self.classifier.written() {
            Written::new(map.words(), map.shift()).mark(before, wanted - before);
        }
        // A recovery must find no less than the kernel's size in the record.
        self.record_size(wanted)?;
        self.sectors.store(wanted / SECTOR_SIZE, Ordering::Relaxed);
        let resized = self
            .errands
            .resize(self.control, self.info.id, wanted / SECTOR_SIZE);
        if let Err(error) = resized {
            // The queues know more sectors than the kernel asks for, which does no harm.
            self.record_size(before)?;
            return Err(error.into());
        }
        Ok(format!(
            "{disk} has grown from {} to {}",
            Size(before),
            Size(wanted)
        ))
    }

    /// The bytes that the device has now.
    pub(super) fn bytes(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed) * SECTOR_SIZE
    }

    /// The size that it may have.
    fn new_size(&self, bytes: Option<u64>) -> Result<u64, ResizeError> {
        let disk = self.info.id.disk_name();
        let size = Size(self.bytes());
        let backing = self.backend.spec().to_string();
        if self.cache.is_some() {
            return Err(ResizeError::Cached { disk, size });
        }
        if !matches!(self.backend.kind(), BackingKind::Block | BackingKind::File) {
            return Err(ResizeError::Backing { disk, backing });
        }
        let found = match self.backend.file().map(|mut file| file.seek(SeekFrom::End(0))) {
            Some(Ok(found)) => found,
            Some(Err(source)) => return Err(ResizeError::Unknown { disk, source }),
            None => return Err(ResizeError::Backing { disk, backing }),
        };
        let block = self.backend.facts().logical_block;
        let wanted = bytes.unwrap_or(found - found % u64::from(block));
        if !wanted.is_multiple_of(block.into()) {
            Err(ResizeError::Unaligned { disk, block, wanted })
        } else if wanted < size.0 {
            let wanted = Size(wanted);
            Err(ResizeError::Shrinks { disk, size, wanted })
        } else if wanted > found {
            Err(ResizeError::TooSmall {
                disk,
                backing,
                wanted: Size(wanted),
                found: Size(found),
            })
        } else {
            Ok(wanted)
        }
    }

    fn record_size(&self, bytes: u64) -> Result<(), RecordError> {
        Record::change(self.info.id, |record| {
            record.set_size(bytes / SECTOR_SIZE);
            Ok(())
        })
    }
}
