//! A look at whether the slots hold what the backing does.

use std::fs::File;

use ublk_bpf_abi::REGIONS;

use super::storage::{Storage, failed};
use super::{DiskError, Layout, SavedEntry};
use crate::backend::fingerprint::scatter;
use crate::cache::log::LogEntry;
use crate::sys::aligned::Aligned;

/// Compares up to `n` of the slots in use, as far as they are valid and not dirty,
/// with the backing of `capacity_bytes`: always the same ones of
/// the same entries, spread over all. Nothing may write to either meanwhile.
///
/// # Errors
/// At the first one that is not what the backing has, and if one cannot be read.
pub fn sample_matches(
    cache: &File,
    backing: &File,
    layout: &Layout,
    entries: &[SavedEntry],
    dirty: &[LogEntry],
    capacity_bytes: u64,
    n: usize,
) -> Result<(), DiskError> {
    let block_bytes = layout.block_bytes as usize;
    let (mut cached, mut backed) = (Aligned::new(block_bytes), Aligned::new(block_bytes));
    for entry in sampled(entries, n) {
        let at = entry.block * u64::from(layout.block_bytes);
        // The last block may be shorter. Its slot is not.
        let len = capacity_bytes.saturating_sub(at).min(layout.block_bytes.into());
        let backed = &mut backed[..usize::try_from(len).unwrap_or(block_bytes)];
        backing
            .read(backed, at)
            .map_err(failed("read the backing to compare with it"))?;
        cache
            .read(&mut cached, layout.data_of(entry.slot))
            .map_err(failed("read a slot"))?;
        let at = dirty.binary_search_by_key(&entry.slot, |dirty| dirty.slot);
        let clean = entry.valid & !at.map_or(0, |at| dirty[at].dirty);
        if !is_same_where_valid(clean, block_bytes, &cached, backed) {
            return Err(DiskError::Stale {
                block: entry.block,
                slot: entry.slot,
            });
        }
    }
    Ok(())
}

/// Whether the valid regions of a block are the same, up to the backing's end.
fn is_same_where_valid(valid: u16, block_bytes: usize, cached: &[u8], backed: &[u8]) -> bool {
    let regions = REGIONS as usize;
    let size = block_bytes / regions;
    (0..regions)
        .filter(|region| valid >> region & 1 == 1)
        .all(|region| {
            let end = ((region + 1) * size).min(backed.len());
            let start = (region * size).min(end);
            cached[start..end] == backed[start..end]
        })
}

/// One of each of `n` equal parts, at a place that looks random; all of them if there are no more.
fn sampled(entries: &[SavedEntry], n: usize) -> impl Iterator<Item = &SavedEntry> {
    let n = n.min(entries.len());
    (0..n).map(move |part| {
        let (from, to) = (part * entries.len() / n, (part + 1) * entries.len() / n);
        &entries[from + usize::try_from(scatter(part as u64)).unwrap_or(0) % (to - from)]
    })
}
