//! Little-endian numbers at offsets that come from outside: what is not there is `None`, never a panic.

/// The 32-bit number at byte `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let number = bytes.get(at..at.checked_add(4)?)?.first_chunk()?;
    Some(u32::from_le_bytes(*number))
}

/// The 16-bit number at byte `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let number = bytes.get(at..at.checked_add(2)?)?.first_chunk()?;
    Some(u16::from_le_bytes(*number))
}

/// `len` bytes from byte `start`, all of which must be there.
pub(super) fn part(bytes: &[u8], start: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(start).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}
