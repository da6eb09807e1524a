//! What the machine of a queue needs to know of its device.

use super::super::host::DeviceSpec;
use crate::backend::{Access, NullReads};
use crate::cache::{Cache, Mode, fill_buffers};
use crate::queue::{Backing, Capabilities, QueueConfig};

/// Staging buffers of a queue whose slow path alone uses them. A request that finds none free waits.
const STAGING_BUFFERS: u16 = 8;
/// Bytes of each.
const STAGING_BYTES: u32 = 128 << 10;
/// Bytes of a queue's staging buffers where every write of a cached block uses one.
const WRITE_THROUGH_BYTES: u32 = 8 << 20;

/// The configuration of each queue.
pub(super) fn config(spec: &DeviceSpec<'_>) -> QueueConfig {
    let facts = spec.backend.facts();
    let backing = match spec.backend.access() {
        Access::Nothing(reads) => Backing::Null {
            filled: reads == NullReads::Zeroes,
        },
        Access::Ring { .. } => Backing::Storage(Capabilities {
            volatile_cache: facts.volatile_cache,
            discard: facts.discard.is_some(),
            write_zeroes: facts.write_zeroes.is_some(),
        }),
    };
    let (staging_buffers, staging_bytes) = staging(spec);
    QueueConfig {
        depth: spec.depth,
        staging_buffers,
        staging_bytes,
        fill_buffers: spec
            .cache
            .map_or(0, |handles| fill_buffers(handles.cache.shape().shift)),
        capacity: facts.sectors,
        logical_block: facts.logical_block,
        read_only: facts.read_only,
        lossy: spec.lossy,
        backing,
    }
}

/// Staging buffers of a queue, and bytes of each. A write-through is copied once and written to both devices from the
/// copy, so each tag has a buffer for the longest write, up to [`WRITE_THROUGH_BYTES`] in all.
fn staging(spec: &DeviceSpec<'_>) -> (u16, u32) {
    let cache = spec.cache.map(|handles| handles.cache);
    let is_through = |cache: &&Cache<'_>| cache.shape().mode == Mode::WriteThrough || cache.has_writeback();
    match cache.filter(is_through) {
        Some(cache) => {
            let bytes = (1 << cache.shape().shift).min(STAGING_BYTES);
            let buffers = u16::try_from(WRITE_THROUGH_BYTES / bytes).unwrap_or(u16::MAX);
            (buffers.min(spec.depth).max(STAGING_BUFFERS), bytes)
        }
        None => (STAGING_BUFFERS, STAGING_BYTES),
    }
}
