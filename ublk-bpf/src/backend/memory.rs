//! Memory that serves as a device: a file without a name.

use std::fs::File;
use std::io;

use super::error::BackendError;
use super::facts::{DiscardBy, DiscardFacts, Facts, MAX_RANGE_BYTES};
use super::null;
use super::spec::Size;
use crate::sys;

/// The page, which holes are punched in.
const PAGE: u32 = 4096;

/// Makes memory of `bytes` (a multiple of 512), all zeroes. A page is taken when it is first written.
pub(super) fn open(bytes: u64, read_only: bool) -> Result<(Facts, File), BackendError> {
    let failed = |what| {
        move |source| BackendError::System {
            name: format!("mem:{}", Size(bytes)),
            what,
            source,
        }
    };
    let file = sys::file::memory_file("ublk-bpf").map_err(failed("get memory"))?;
    file.set_len(bytes).map_err(failed("get memory"))?;
    let found = file.metadata().map_err(failed("get memory"))?;
    if found.len() != bytes {
        return Err(failed("get memory")(io::ErrorKind::FileTooLarge.into()));
    }
    Ok((facts(bytes, read_only), file))
}

fn facts(bytes: u64, read_only: bool) -> Facts {
    Facts {
        physical_block: PAGE,
        io_min: PAGE,
        discard: (!read_only).then_some(DiscardFacts {
            granularity: PAGE,
            alignment: 0,
            max_bytes: MAX_RANGE_BYTES,
            how: DiscardBy::PunchHole,
        }),
        // Like null: memory loses everything with power, whatever is flushed.
        ..null::facts(bytes, read_only)
    }
}
