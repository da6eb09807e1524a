//! A backing whose newest data is in a cache is served with that cache, or not at all.

use std::path::{Path, PathBuf};

use super::{CacheDevice, CacheError};
use crate::backend::fingerprint::{Identity, Uuid};
use crate::backend::{Backend, Spec};
use crate::cache::disk::DiskError;
use crate::registry::dirty_pair::{self, DirtyPair};

/// Refuses a backing if a cache that is not `cache` has what it lacks. With `abandon`, that is lost, and the cache is never to
/// be used for it again.
///
/// # Errors
/// [`CacheError::Missing`], or if the records cannot be used.
pub(in super::super) fn require(
    spec: &Spec,
    backing: &Backend,
    cache: Option<&CacheDevice>,
    abandon: bool,
) -> Result<(), CacheError> {
    let Spec::Path(path) = spec else {
        return Ok(());
    };
    let identity = Identity::of(backing).map_err(CacheError::Identity)?;
    let given = cache.map(CacheDevice::held).transpose()?.flatten();
    while let Some(pair) = dirty_pair::dirty_cache_of(&identity, path)? {
        if given
            .as_ref()
            .is_some_and(|given| given.cache_id == pair.cache_id)
        {
            return Ok(());
        }
        if !abandon {
            return Err(missing(path, pair));
        }
        tracing::warn!(
            "what {} lacks is abandoned: all dirty blocks of the cache {} ({}); how many cannot be known without it",
            path.display(),
            Uuid(pair.cache_id),
            pair.cache_path.display()
        );
        dirty_pair::abandon(pair.cache_id)?;
    }
    Ok(())
}

fn missing(path: &Path, pair: DirtyPair) -> CacheError {
    CacheError::Missing {
        backing: path.to_owned(),
        cache: pair.cache_path,
        id: Uuid(pair.cache_id).to_string(),
    }
}

/// Records that the cache may hold what the backing lacks. Not of a backing that is gone with its server.
pub(super) fn remember(
    cache: &CacheDevice,
    backing: &Backend,
    identity: &Identity,
) -> Result<(), CacheError> {
    if identity.is_volatile() {
        return Ok(());
    }
    let Some(held) = cache.held()? else {
        return Err(cache.failed(DiskError::Superseded));
    };
    let pair = DirtyPair {
        backing: identity.clone(),
        backing_path: path_of(backing.spec()),
        cache_id: held.cache_id,
        cache_path: path_of(&cache.options.device),
    };
    Ok(dirty_pair::remember(&pair)?)
}

fn path_of(spec: &Spec) -> PathBuf {
    match spec {
        Spec::Path(path) => path.clone(),
        other => PathBuf::from(other.to_string()),
    }
}
