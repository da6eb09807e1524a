//! The kernel's headers for user space, from Debian's archive: the test package `tests/headers` compares ublk-bpf's
//! view of ublk with them. It looks for them here, in the cache folder's `headers`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::kernel::{SUITES, numbers, one};
use crate::cache;

const PACKAGE: &str = "linux-libc-dev";
const HEADER: &str = "usr/include/linux/ublk_cmd.h";
/// ublk-bpf's view was written from the header of Linux 7.3.
const OLDEST: [u32; 2] = [7, 3];

/// The folder of a whole set of headers in the cache.
pub fn present() -> Result<Option<PathBuf>> {
    let Ok(folders) = fs::read_dir(cache::dir()?.join("headers")) else {
        return Ok(None);
    };
    let mut folders = folders.filter_map(Result::ok).map(|entry| entry.path());
    Ok(folders.find(|folder| cache::is_complete(folder)))
}

/// The headers in the cache, fetched if there are none. The caller holds the cache's lock.
pub fn obtain() -> Result<PathBuf> {
    if let Some(folder) = present()? {
        return Ok(folder);
    }
    for suite in SUITES {
        let archive = crate::apt::Archive::open(suite)?;
        let package = one(&archive, PACKAGE)?;
        if numbers(&package.version).0.as_slice() < OLDEST.as_slice() {
            continue;
        }
        let folder = cache::dir()?.join("headers").join(&package.version);
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove the unfinished {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        archive.unpack(&package, &folder)?;
        cache::complete(&folder, &[Path::new(HEADER).to_path_buf()])?;
        return Ok(folder);
    }
    let [major, minor] = OLDEST;
    bail!(
        "Debian's archive has no {PACKAGE} of Linux >= {major}.{minor} in {}",
        SUITES.join(" or ")
    )
}
