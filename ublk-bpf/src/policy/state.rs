//! What the server tells policies of the cache as a whole.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use ublk_bpf_abi::{CacheState, map};

use super::error::PolicyError;
use super::pin::{PinDir, open_map};
use crate::sys::bpf::load::set_globals;

/// No state: the first one is always published.
const NONE: u64 = u64::MAX;

/// The map that policies read. No program may write it, so the kernel does not let the server map it either: each change
/// is a system call.
#[derive(Clone, Debug)]
pub(super) struct StateMap(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    map: MapData,
    /// What is published.
    last: AtomicU64,
}

impl StateMap {
    pub(super) fn open(pins: &PinDir) -> Result<Self, PolicyError> {
        let map = open_map(&pins.map(map::STATE), size_of::<CacheState>(), 1)?;
        let last = AtomicU64::new(NONE);
        Ok(Self(Arc::new(Inner { map, last })))
    }

    /// Publishes a state, if it is another one than before.
    pub(super) fn publish(&self, state: CacheState) {
        let CacheState {
            dirty_per_mille,
            writes_back,
        } = state;
        let word = u64::from(writes_back) << 32 | u64::from(dirty_per_mille);
        if self.0.last.swap(word, Ordering::Relaxed) == word {
            return;
        }
        if let Err(error) = set_globals(self.0.map.fd().as_fd(), &word.to_le_bytes()) {
            // Policies have an old state: no reason to end the mover.
            tracing::warn!("cannot tell policies how much of the cache is dirty: {error}");
            self.0.last.store(NONE, Ordering::Relaxed);
        }
    }
}
