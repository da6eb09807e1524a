//! systemd and udev with all that they need, from Debian's archive: a root file system that a guest can boot.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::apt::Archive;
use crate::cache;

const SUITE: &str = "trixie";
/// `util-linux` for fsck, which systemd starts for what /etc/fstab says.
const PACKAGES: [&str; 6] = ["systemd", "udev", "mount", "util-linux", "e2fsprogs", "kmod"];
const WITNESSES: [&str; 3] = ["usr/lib/systemd/systemd", "usr/bin/udevadm", "usr/bin/mount"];

/// The root file system in the cache, if it is whole.
pub fn present() -> Result<Option<PathBuf>> {
    let folder = folder()?;
    Ok(cache::is_complete(&folder).then_some(folder))
}

/// The root file system, fetched if the cache has none. The caller holds the cache's lock.
pub fn obtain() -> Result<PathBuf> {
    if let Some(folder) = present()? {
        return Ok(folder);
    }
    let folder = folder()?;
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove the unfinished {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Archive::open(SUITE)?.unpack_all(&PACKAGES, &folder)?;
    cache::complete(&folder, &WITNESSES.map(|path| Path::new(path).to_path_buf()))?;
    Ok(folder)
}

fn folder() -> Result<PathBuf> {
    Ok(cache::dir()?.join("system").join(SUITE))
}
