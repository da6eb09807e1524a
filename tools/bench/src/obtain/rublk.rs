//! rublk, the ublk server written in Rust on libublk.

use std::path::PathBuf;

use anyhow::Result;

use host::setup::crates_io::Crate;

const RUBLK: Crate = Crate {
    name: "rublk",
    version: "0.2.15",
    // Static, for the guest: with a `--target`, the flags do not apply to build scripts and macros. Without the
    // default features, which add a target in OpenCL memory.
    options: &["--no-default-features", "--target", "x86_64-unknown-linux-gnu"],
    flags: Some("-C target-feature=+crt-static"),
};

pub(super) fn present() -> Result<Option<PathBuf>> {
    RUBLK.present()
}

/// The program, built if it is not there. The caller holds the cache's lock.
pub(super) fn obtain() -> Result<PathBuf> {
    match present()? {
        Some(path) => Ok(path),
        None => RUBLK.build(),
    }
}
