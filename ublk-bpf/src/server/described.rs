//! Devices that exist, compared with what options describe.

use super::error::ServeError;
use crate::backend::Spec;
use crate::control::Control;
use crate::registry::owners::{self, Standing};
use crate::registry::{DeviceName, DeviceOptions, Record};

/// Those of the described devices that no live server has, and the records of the others.
///
/// # Errors
/// If a device that is served was made with other options than the described ones, or the records or the kernel cannot be
/// asked.
pub fn not_served(
    control: &Control,
    described: Vec<DeviceOptions>,
) -> Result<(Vec<DeviceOptions>, Vec<Record>), ServeError> {
    let (mut rest, mut served) = (Vec::new(), Vec::new());
    for wanted in described {
        match owners::described_by(control, &wanted)? {
            Some((record, Standing::Served)) => {
                if let Some((was, asked)) = difference(&record, &wanted) {
                    let (id, process) = (record.id(), record.pid);
                    return Err(ServeError::ServedOtherwise {
                        id,
                        process,
                        was,
                        asked,
                    });
                }
                served.push(record);
            }
            _ => rest.push(wanted),
        }
    }
    Ok((rest, served))
}

/// Of the options on which a device's clients and their data depend, the first that is not as `wanted`: how the device
/// was made, and how it was to be.
pub(super) fn difference(made: &Record, wanted: &DeviceOptions) -> Option<(String, String)> {
    let id = made.id();
    if let Some(asked) = wanted.id.filter(|&asked| asked != id) {
        return Some((format!("with id {id}"), format!("with id {asked}")));
    }
    let named = |name: Option<&DeviceName>| match name {
        Some(name) => format!("with the name {name}"),
        None => "without a name".to_owned(),
    };
    if made.name != wanted.name {
        return Some((named(made.name.as_ref()), named(wanted.name.as_ref())));
    }
    let writes = |read_only| if read_only { "read-only" } else { "writable" }.to_owned();
    if made.read_only != wanted.read_only {
        return Some((writes(made.read_only), writes(wanted.read_only)));
    }
    let loses = |lossy| if lossy { "lossy" } else { "without --allow-lossy" }.to_owned();
    if made.allow_lossy != wanted.allow_lossy {
        return Some((loses(made.allow_lossy), loses(wanted.allow_lossy)));
    }
    let block = |block: Option<u32>| match block {
        Some(bytes) => format!("with --logical-block {bytes}"),
        None => "without --logical-block".to_owned(),
    };
    if made.logical_block != wanted.logical_block {
        return Some((block(made.logical_block), block(wanted.logical_block)));
    }
    let was = made.cache.as_ref().map(|cache| &cache.options.device);
    let asked = wanted.cache.as_ref().map(|cache| &cache.device);
    let storage = |spec: Option<&Spec>| owners::storage_at(spec?, false);
    let is_same = was == asked
        || storage(was)
            .zip(storage(asked))
            .is_some_and(|(was, asked)| was.is_same_as(&asked));
    let with = |cache: Option<&Spec>| match cache {
        Some(cache) => format!("with the cache {cache}"),
        None => "without a cache".to_owned(),
    };
    (!is_same).then(|| (with(was), with(asked)))
}
