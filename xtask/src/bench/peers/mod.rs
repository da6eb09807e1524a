//! What ublk-bpf is compared with: every other way to have such a device, each on the same empty ram disks.
//!
//! `cargo xtask bench --only peers` starts each of them once and says what it reads; `setup::peers` obtains the
//! programs.

mod bcache;
mod check;
mod disks;
mod kernel;
mod mapper;
mod nbd;
mod ublk;
mod warm;

use std::fs;

use anyhow::{Context as _, Result};

use super::subject::Kind;

pub(super) use check::table;
pub(super) use disks::{FAST, SLOW, empty, fill, make_ram_disks};
pub(super) use mapper::{BLOCK, DmCache, FAST_MIGRATION, linear};

/// All of them. They use the ram disks, which [`make_ram_disks`] has to have made; so only one may exist at a time.
pub(super) fn kinds() -> Vec<Kind> {
    [
        &kernel::KINDS[..],
        &mapper::KINDS,
        &bcache::KINDS,
        &nbd::KINDS,
        &ublk::KUBLK,
        &ublk::RUBLK,
    ]
    .concat()
}

/// The version of what the running kernel makes.
fn kernel_version() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(format!("Linux {}", release.trim()))
}
