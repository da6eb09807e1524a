//! A copy of adjacent dirty regions: of one block, or of several whose dirty regions adjoin.

use super::CleanIo;
use crate::cache::fills::Fill;

/// Bytes of a copy at most, but those of a block if they are more.
const MAX_BYTES: u32 = 512 << 10;

/// The bytes of the longest copy, in blocks of `1 << shift`.
pub(in crate::cache) const fn longest(shift: u32) -> u32 {
    if 1 << shift > MAX_BYTES {
        1 << shift
    } else {
        MAX_BYTES
    }
}

/// One run of adjacent dirty regions of a block, as it was in one generation of its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) span: Fill,
    pub(super) generation: u32,
}

/// A copy: it is read piece by piece into one buffer, and written at once.
#[derive(Debug)]
pub(super) struct Run {
    /// At least one; each begins on the backing device where the one before ends.
    pub(super) pieces: Vec<Piece>,
    /// How many of these are in the buffer.
    pub(super) loaded: usize,
    pub(super) is_loaded: bool,
    pub(super) retries: u8,
    /// Requests wait for it.
    pub(super) is_urgent: bool,
}

impl Run {
    pub(super) const fn new(pieces: Vec<Piece>, is_urgent: bool) -> Self {
        Self {
            pieces,
            loaded: 0,
            is_loaded: false,
            retries: 0,
            is_urgent,
        }
    }

    pub(super) fn length(&self) -> u32 {
        length(&self.pieces)
    }

    /// The operation that is next.
    pub(super) fn io(&self, copy: usize) -> CleanIo {
        if self.is_loaded {
            let offset = self.pieces.first().map_or(0, |piece| piece.span.offset);
            let len = self.length();
            return CleanIo::Store { copy, offset, len };
        }
        let piece = &self.pieces[self.loaded];
        CleanIo::Load {
            copy,
            offset: piece.span.slot_offset,
            skip: length(&self.pieces[..self.loaded]),
            len: piece.span.length,
        }
    }
}

fn length(pieces: &[Piece]) -> u32 {
    pieces.iter().map(|piece| piece.span.length).sum()
}
