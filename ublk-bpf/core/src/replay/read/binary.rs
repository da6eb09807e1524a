//! What the binary formats share.

use super::fault::{At, Fault};

/// The records of a file with their offsets, and what is left of it at the end.
pub(super) fn records<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = (At, &[u8; N])> {
    let (records, _) = bytes.as_chunks();
    (0..).map(|number: u64| At::Byte(number * N as u64)).zip(records)
}

/// Fails if the file ends in the middle of a record.
pub(super) fn whole<const N: usize>(bytes: &[u8]) -> Result<(), Fault> {
    let rest = bytes.len() % N;
    if rest == 0 {
        return Ok(());
    }
    let at = At::Byte((bytes.len() - rest) as u64);
    Err(Fault::new(
        at,
        format!("a record of {N} bytes"),
        format!("the last {rest}"),
    ))
}

/// Records by whose fields a format is recognised.
const LOOKED_AT: usize = 1000;

/// Whether `is_plausible` of all of the first records, of which there is at least one.
pub(super) fn all<const N: usize>(bytes: &[u8], mut is_plausible: impl FnMut(&[u8; N]) -> bool) -> bool {
    bytes.len() >= N
        && records(bytes)
            .take(LOOKED_AT)
            .all(|(_, record)| is_plausible(record))
}

/// The bytes at `at` of a record.
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

/// The number at `at`, little endian.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(take(bytes, at))
}

/// The number at `at`, little endian.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

/// The number at `at`, little endian.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

/// A time in microseconds as nanoseconds.
pub(super) fn micros(at: At, time: u64) -> Result<u64, Fault> {
    let fault = || Fault::new(at, "a time in microseconds", time.to_string());
    time.checked_mul(1000).ok_or_else(fault)
}

/// The sectors of one unit of a format that numbers units.
pub(super) fn unit_sectors(unit: u32) -> Result<u32, Fault> {
    let is_good = unit > 0 && unit.is_multiple_of(512);
    let fault = || Fault::file("a unit that is a multiple of 512 bytes", unit.to_string());
    is_good.then_some(unit / 512).ok_or_else(fault)
}
