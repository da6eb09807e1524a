//! The log of what is dirty, read and written while no request is served.

use std::io;

use super::DiskError;
use super::layout::PAGE;
use super::storage::{Storage, failed};
use super::superblock::{Copies, Superblock};
use crate::cache::log::{
    self, LOG_BUFFER, LOG_PAGE, Log, LogEntry, LogSeal, Placed, ReadPages, ReplayError, Replayed,
};
use crate::sys;
use crate::sys::aligned::Aligned;

/// What the log of this superblock says is dirty.
pub(super) fn replay(storage: &impl Storage, saved: &Superblock) -> Result<Replayed, DiskError> {
    let seal = saved.log_seal().ok_or(DiskError::Superseded)?;
    let blocks = saved.layout.blocks_of(saved.identity.bytes());
    let mut pages = Pages::new(storage, saved.layout.log().end());
    log::replay(&mut pages, &saved.layout.log(), &seal, blocks).map_err(|error| match error {
        ReplayError::Read(source) => failed("read its record of dirty blocks")(source),
        ReplayError::Damaged(damage) => DiskError::Log(damage),
    })
}

/// How many blocks are dirty.
pub(super) fn count(storage: &impl Storage, saved: &Superblock) -> Result<usize, DiskError> {
    match saved.log_id {
        Some(_) => replay(storage, saved).map(|replayed| replayed.dirty.len()),
        None => Ok(0),
    }
}

/// Goes on from what a log says, under a new one, or none if nothing is dirty: the superblock is not clean after this. What
/// the old log needs stays until then.
pub(super) fn go_on(
    storage: &impl Storage,
    copies: &Copies,
    saved: &Superblock,
    replayed: &Replayed,
) -> Result<Option<Log>, DiskError> {
    let mut log = match replayed.dirty.is_empty() {
        true => None,
        false => Some(replayed.previous.successor(new_seal(saved)?)),
    };
    if let Some(log) = &mut log {
        checkpoint(storage, log, &replayed.dirty)?;
    }
    let log_id = log.as_ref().map(|log| log.seal().log_id);
    copies.replace(storage, &saved.next(false, log_id))?;
    Ok(log)
}

/// For a new log of this cache.
pub(super) fn new_seal(of: &Superblock) -> Result<LogSeal, DiskError> {
    let random = sys::process::random().map_err(failed("get random numbers for its log"))?;
    let [half @ .., _, _, _, _, _, _, _, _] = random;
    Ok(LogSeal {
        cache_id: of.seal.id,
        // 0 is none.
        log_id: u64::from_le_bytes(half).max(1),
    })
}

/// Makes a whole checkpoint of what is dirty, durably.
pub(super) fn checkpoint(storage: &impl Storage, log: &mut Log, dirty: &[LogEntry]) -> Result<(), DiskError> {
    let mut checkpoint = log.begin_checkpoint();
    let mut entries = dirty.iter().copied();
    let mut buffer = Aligned::new(LOG_BUFFER);
    let failed = failed("write its record of dirty blocks");
    let write = |placed: Placed, buffer: &[u8]| storage.write(&buffer[..placed.length], placed.offset);
    while let Some(placed) = checkpoint.append(&mut entries, &mut buffer) {
        write(placed, &buffer).map_err(&failed)?;
    }
    storage.sync().map_err(&failed)?;
    let placed = checkpoint.head(&mut buffer);
    write(placed, &buffer)
        .and_then(|()| storage.sync())
        .map_err(&failed)?;
    log.end_checkpoint(&checkpoint);
    Ok(())
}

/// Reads pages ahead.
pub(super) struct Pages<'a, S> {
    storage: &'a S,
    buffer: Aligned,
    /// Where the buffer's content is from, and how much it is.
    offset: u64,
    length: usize,
    /// Nothing is read beyond.
    end: u64,
}

impl<'a, S: Storage> Pages<'a, S> {
    pub(super) fn new(storage: &'a S, end: u64) -> Self {
        Self {
            storage,
            buffer: Aligned::new(LOG_BUFFER),
            offset: 0,
            length: 0,
            end,
        }
    }

    fn is_read(&self, offset: u64) -> bool {
        (self.offset..self.offset + self.length as u64).contains(&offset)
    }

    fn read_ahead(&mut self, offset: u64) -> io::Result<()> {
        let left = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = left.clamp(LOG_PAGE, LOG_BUFFER);
        self.length = 0;
        self.storage.read(&mut self.buffer[..length], offset)?;
        (self.offset, self.length) = (offset, length);
        Ok(())
    }
}

impl<S: Storage> ReadPages for Pages<'_, S> {
    type Error = io::Error;

    fn page(&mut self, offset: u64) -> io::Result<&[u8]> {
        if !self.is_read(offset) {
            self.read_ahead(offset)?;
        }
        let at = usize::try_from(offset - self.offset).unwrap_or(usize::MAX);
        Ok(&self.buffer[at..at + LOG_PAGE])
    }
}

const _: () = assert!(LOG_PAGE as u64 == PAGE);
