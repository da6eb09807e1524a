//! Checks every checksum of a cache's metadata, and changes nothing.

use std::fs::File;

use super::inspect::shortage;
use super::superblock::{Copies, Found, Superblock};
use super::{DiskError, entries, log};

/// A part of the metadata, and whether it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Which part.
    pub part: &'static str,
    /// What is good about it, or wrong with it and where, in words.
    pub found: Result<String, String>,
}

/// Checks the superblock's copies, the list of blocks if it counts, and the log if there is one.
///
/// # Errors
/// If there is no usable superblock, or the device fails. A blank device is `Ok(None)`.
pub fn verify(file: &File) -> Result<Option<Vec<Verified>>, DiskError> {
    let copies = Copies::read(file)?;
    let Some(saved) = copies.best()? else {
        super::require_blank(file)?;
        return Ok(None);
    };
    let mut parts: Vec<Verified> = ["superblock A", "superblock B"]
        .into_iter()
        .zip(copies.found())
        .map(|(part, copy)| Verified {
            part,
            found: state(copy),
        })
        .collect();
    let found = match shortage(file, saved)? {
        Some(short) => Err(short),
        None => Ok("all there".to_owned()),
    };
    let is_whole = found.is_ok();
    parts.push(Verified {
        part: "device",
        found,
    });
    if is_whole {
        parts.extend([list(file, saved)?, dirty(file, saved)?]);
    }
    Ok(Some(parts))
}

fn state(copy: &Found) -> Result<String, String> {
    match copy {
        Found::Good(_) => Ok("good".to_owned()),
        _ => Err(copy.to_string()),
    }
}

fn list(file: &File, saved: &Superblock) -> Result<Verified, DiskError> {
    let found = match saved.clean {
        false => Ok("does not count before a clean stop".to_owned()),
        true => damage(entries::read(file, saved))?.map(|entries| format!("good: {} blocks", entries.len())),
    };
    Ok(Verified {
        part: "list of blocks",
        found,
    })
}

fn dirty(file: &File, saved: &Superblock) -> Result<Verified, DiskError> {
    let found = match saved.log_id {
        None => Ok("none: nothing is dirty".to_owned()),
        Some(_) => damage(log::replay(file, saved))?
            .map(|replayed| format!("good: {} dirty blocks", replayed.dirty.len())),
    };
    Ok(Verified { part: "log", found })
}

/// Tells damage from a device that fails.
fn damage<T>(result: Result<T, DiskError>) -> Result<Result<T, String>, DiskError> {
    match result {
        Err(error @ DiskError::System { .. }) => Err(error),
        result => Ok(result.map_err(|error| error.to_string())),
    }
}
